from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from hashlib import md5
from pathlib import Path

import pytest
import torch
from torch import Tensor
from web_server import Server

from sparsemtl.data import DATASETS, Split, TaskData
from sparsemtl.data.dkl import SOURCES
from sparsemtl.data.download import SeparateFiles
from sparsemtl.data.images.mnist import EMNIST_LETTERS, FASHION_MNIST, MNIST, LabelledImages
from sparsemtl.errors import DataError

Lay = Callable[..., dict[str, Tensor]]
ToIdx = Callable[[Tensor], bytes]


def parts(data: TaskData) -> tuple[Split, Split, Split]:
    assert isinstance(data.train, Split)
    assert isinstance(data.validation, Split)
    assert isinstance(data.test, Split)
    return data.train, data.validation, data.test


def numbers(split: Split) -> list[int]:
    """Which of the laid images are in a split."""
    return (split.x[:, 0, 0, 0] * 255).round().int().tolist()


@pytest.mark.parametrize("gzipped", [True, False])
@pytest.mark.parametrize("source", [MNIST, FASHION_MNIST])
def test_images_keep_their_labels_and_scale_to_one(
    source: LabelledImages, gzipped: bool, tmp_path: Path, lay: Lay
) -> None:
    laid = lay(tmp_path, source, gzipped=gzipped)
    train, validation, test = parts(DATASETS.build(source.name, root=str(tmp_path)))
    for split, images, labels in (
        (train, *source.files[:2]),
        (validation, *source.files[:2]),
        (test, *source.files[2:]),
    ):
        rows = torch.tensor(numbers(split)) % 100
        assert torch.equal(split.x[:, 0], laid[images][rows] / 255)
        assert torch.equal(split.targets[source.task], laid[labels][rows].long())


def test_validation_is_part_of_the_training_images_and_test_is_whole(tmp_path: Path, lay: Lay) -> None:
    lay(tmp_path, MNIST)
    train, validation, test = parts(DATASETS.build("mnist", root=tmp_path))
    assert sorted(numbers(train) + numbers(validation)) == list(range(40))
    assert len(validation) == 4
    assert numbers(test) == list(range(100, 120))


def test_fewer_images_are_part_of_all_and_noted(tmp_path: Path, lay: Lay) -> None:
    lay(tmp_path, MNIST)
    whole = parts(DATASETS.build("mnist", root=tmp_path))
    data = DATASETS.build("mnist", root=tmp_path, train_size=18, test_size=7)
    train, validation, test = parts(data)
    assert numbers(train) == numbers(whole[0])[:18]
    assert numbers(validation) == numbers(whole[1])[-2:]
    assert len(test) == 7
    assert set(numbers(test)) < set(numbers(whole[2]))
    assert any("only 18 training images" in note for note in data.notes)
    assert any("only 7 test images" in note for note in data.notes)


def test_more_images_than_there_are_are_refused(tmp_path: Path, lay: Lay) -> None:
    lay(tmp_path, MNIST)
    with pytest.raises(DataError, match="train_size=37 is too large"):
        DATASETS.build("mnist", root=tmp_path, train_size=37)
    with pytest.raises(DataError, match="21 of the test images of mnist were asked for, there are 20"):
        DATASETS.build("mnist", root=tmp_path, test_size=21)


def test_letters_stand_upright_and_count_from_zero(tmp_path: Path, lay: Lay) -> None:
    laid = lay(tmp_path, EMNIST_LETTERS)
    _, _, test = parts(DATASETS.build("emnist-letters", root=tmp_path))
    assert torch.equal(test.x[:, 0], laid["emnist-letters-test-images-idx3-ubyte"].transpose(1, 2) / 255)
    assert torch.equal(test.targets["letter"], laid["emnist-letters-test-labels-idx1-ubyte"].long() - 1)


def test_the_environments_root_is_read(tmp_path: Path, lay: Lay, monkeypatch: pytest.MonkeyPatch) -> None:
    lay(tmp_path, MNIST)
    monkeypatch.setenv("SPARSEMTL_DATA", str(tmp_path))
    assert len(DATASETS.build("mnist").test) == 20


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_absent_files_are_named_with_the_way_to_get_them(source: LabelledImages, tmp_path: Path, lay: Lay) -> None:
    lay(tmp_path, source)
    absent = source.files[1]
    (tmp_path / source.folder / "raw" / f"{absent}.gz").unlink()
    with pytest.raises(DataError) as caught:
        DATASETS.build(source.name, root=tmp_path)
    message = str(caught.value)
    assert f"{tmp_path / source.folder / 'raw'} lacks {absent}, plain or as .gz" in message
    for word in ("download: true", source.origin.address, "SPARSEMTL_DATA"):
        assert word in message


def test_a_root_that_does_not_exist_lacks_all_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"lacks {', '.join(MNIST.files)}, plain"):
        DATASETS.build("mnist", root=tmp_path / "nowhere")


def test_download_gets_what_is_absent_only(tmp_path: Path, lay: Lay, server: Server) -> None:
    lay(tmp_path / "server", MNIST)
    served = tmp_path / "server" / "MNIST" / "raw"
    sums = {path.name: md5(path.read_bytes()).hexdigest() for path in served.iterdir()}
    source = replace(MNIST, origin=SeparateFiles(server.url("MNIST/raw/"), sums))
    lay(tmp_path, MNIST, train=30)
    raw = tmp_path / "MNIST" / "raw"
    (raw / "t10k-labels-idx1-ubyte.gz").unlink()
    kept = (raw / "train-images-idx3-ubyte.gz").read_bytes()
    train, test = source.read(tmp_path, download=True)
    assert (len(train), len(test)) == (30, 20)
    assert (raw / "train-images-idx3-ubyte.gz").read_bytes() == kept


def test_a_damaged_file_is_named(tmp_path: Path, lay: Lay) -> None:
    lay(tmp_path, MNIST)
    path = tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=f"{path} is not a whole gzip file"):
        DATASETS.build("mnist", root=tmp_path)


def overwrite(root: Path, name: str, content: bytes) -> Path:
    path = root / "MNIST" / "raw" / name
    path.write_bytes(content)
    return path


def test_as_many_labels_as_images_are_needed(tmp_path: Path, lay: Lay, to_idx: ToIdx) -> None:
    lay(tmp_path, MNIST, gzipped=False)
    path = overwrite(tmp_path, MNIST.files[1], to_idx(torch.zeros(39, dtype=torch.uint8)))
    with pytest.raises(DataError, match=rf"train-images-idx3-ubyte has 40 images, {path} 39 labels"):
        DATASETS.build("mnist", root=tmp_path)


def test_a_label_that_no_class_has_is_named(tmp_path: Path, lay: Lay, to_idx: ToIdx) -> None:
    lay(tmp_path, MNIST, gzipped=False)
    path = overwrite(tmp_path, MNIST.files[3], to_idx(torch.full((20,), 10, dtype=torch.uint8)))
    with pytest.raises(DataError, match=rf"{path} has a label 10; those of mnist are 0 .. 9"):
        DATASETS.build("mnist", root=tmp_path)


def test_images_of_another_size_are_refused(tmp_path: Path, lay: Lay, to_idx: ToIdx) -> None:
    lay(tmp_path, MNIST, gzipped=False)
    overwrite(tmp_path, MNIST.files[0], to_idx(torch.zeros(40, 32, 30, dtype=torch.uint8)))
    with pytest.raises(DataError, match="images of 32x30 pixels, not 28x28"):
        DATASETS.build("mnist", root=tmp_path)


def test_the_official_mnist_files_are_read(real_root: Path) -> None:
    train, test = MNIST.read(real_root, download=False)
    assert train.x.shape == (60_000, 28, 28)
    assert train.targets["digit"].bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert test.targets["digit"].bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert train.x.double().mean().item() / 255 == pytest.approx(0.1307, abs=5e-5)


def test_the_official_fashion_files_are_read(real_root: Path) -> None:
    train, test = FASHION_MNIST.read(real_root, download=False)
    assert train.targets["item"].bincount().tolist() == [6000] * 10
    assert test.targets["item"].bincount().tolist() == [1000] * 10
    assert train.x.double().mean().item() / 255 == pytest.approx(0.2860, abs=5e-5)
