from __future__ import annotations

import os
import pickle
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import each
from PIL import Image
from typer.testing import CliRunner

import sparsemtl as sm
from sparsemtl.backbones import CNN
from sparsemtl.cli import data as cli_data
from sparsemtl.data import DATASETS, LazySplit, TaskData
from sparsemtl.data.images.classified import cache
from sparsemtl.data.images.classified.cache import ImageCache
from sparsemtl.data.images.classified.source import Form, read_upright
from sparsemtl.data.splitting import by_class
from sparsemtl.errors import DataError, ParameterError
from sparsemtl.runs.run import run
from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.storage.yaml_text import read_yaml
from sparsemtl.tasks import Classification

PARTS = ("train", "validation", "test")
COUNTS = {"crow": 4, "robin": 6, "wren": 10}


def lay(folder: Path, counts: Mapping[str, int], *, first: int = 0, suffix: str = ".png") -> Path:
    """Class folders; an image is of one brightness, its number among all."""
    number = first
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for _ in range(count):
            pixels = np.full((5, 7, 3), number, np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:03}{suffix}")
            number += 1
    return folder


def build(root: Path, **options: Any) -> TaskData:
    return DATASETS.build("image-folders", root=root, **{"workers": 0, "size": 2, **options})


def split(data: TaskData, part: str, task: str) -> LazySplit:
    parts = getattr(data, part)
    assert isinstance(parts, Mapping)
    found = parts[task]
    assert isinstance(found, LazySplit)
    return found


def numbers(data: TaskData, part: str, task: str) -> list[int]:
    """Numbers of the images, in their order."""
    return [round(255 * float(value)) for value in split(data, part, task).load().x[:, 0, 0, 0]]


def classes(data: TaskData, part: str, task: str) -> Counter[str]:
    (found,) = (one for one in data.tasks if one.name == task)
    assert isinstance(found, Classification)
    return Counter(found.class_names[label] for label in split(data, part, task).load().targets[task].tolist())


def test_folders_are_classes_and_every_class_is_divided_by_the_shares(tmp_path: Path) -> None:
    lay(tmp_path / "birds", COUNTS)
    data = build(tmp_path, tasks={"birds": "birds"}, split=[0.5, 0.25, 0.25])
    (task,) = data.tasks
    assert isinstance(task, Classification)
    assert task.class_names == ["crow", "robin", "wren"]
    for part, share in zip(PARTS, (0.5, 0.25, 0.25), strict=True):
        found = classes(data, part, "birds")
        assert found.total() == 20 * share
        assert all(abs(found[name] - share * count) <= 1 for name, count in COUNTS.items())
    every = [number for part in PARTS for number in numbers(data, part, "birds")]
    assert sorted(every) == list(range(20))
    assert data.input_shape == (3, 2, 2)
    assert data.notes == ("50 % training, 25 % validation, 25 % test, of every class, at random (seed 0)",)


def test_labels_are_the_folders_that_the_images_lie_in(tmp_path: Path) -> None:
    lay(tmp_path / "birds", COUNTS)
    data = build(tmp_path, tasks={"birds": "birds"})
    for part in PARTS:
        found = split(data, part, "birds").load().targets["birds"].tolist()
        assert found == [(number >= 4) + (number >= 10) for number in numbers(data, part, "birds")]


def test_the_seed_alone_divides_the_images(tmp_path: Path) -> None:
    lay(tmp_path / "birds", COUNTS)
    state = torch.get_rng_state()
    one, again, other = (build(tmp_path, tasks={"birds": "birds"}, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert [numbers(one, part, "birds") for part in PARTS] == [numbers(again, part, "birds") for part in PARTS]
    assert numbers(one, "train", "birds") != numbers(other, "train", "birds")


@pytest.mark.parametrize("validation", ["val", "validation", "valid"])
def test_folders_of_parts_say_what_trains_validates_and_tests(tmp_path: Path, validation: str) -> None:
    for first, part in enumerate(("train", validation, "test")):
        lay(tmp_path / "birds" / part, {"crow": 2, "wren": 3}, first=10 * first)
    data = build(tmp_path, tasks={"birds": "birds"})
    for first, part in enumerate(PARTS):
        assert numbers(data, part, "birds") == [10 * first + number for number in range(5)]
        assert classes(data, part, "birds") == {"crow": 2, "wren": 3}
    assert data.notes == ("the parts are those of the folders",)


@pytest.mark.parametrize("tested", ["test", "val"])
def test_validation_images_are_held_out_where_they_have_no_folder(tmp_path: Path, tested: str) -> None:
    lay(tmp_path / "birds" / "train", {"crow": 4, "wren": 8})
    lay(tmp_path / "birds" / tested, {"crow": 1, "wren": 1}, first=50)
    data = build(tmp_path, tasks={"birds": "birds"}, split=[0.6, 0.2, 0.2], seed=4)
    assert classes(data, "validation", "birds").total() == 3
    assert sorted(numbers(data, "train", "birds") + numbers(data, "validation", "birds")) == list(range(12))
    assert numbers(data, "test", "birds") == [50, 51]
    (note,) = data.notes
    assert note.startswith("validation: 25 % of the training images of every class at random (seed 4)")


def test_a_class_may_be_called_like_a_part(tmp_path: Path) -> None:
    lay(tmp_path / "traffic", {"bus": 8, "train": 8})
    data = build(tmp_path, tasks={"traffic": "traffic"})
    assert set(classes(data, "train", "traffic")) == {"bus", "train"}


def test_tasks_have_images_and_classes_of_their_own_beside_the_auxiliary_one(tmp_path: Path) -> None:
    lay(tmp_path / "birds", {"crow": 8, "wren": 8})
    lay(tmp_path / "garden", {"rose": 8, "wren": 8}, first=30)
    lay(tmp_path / "all", {"crow": 20, "rose": 20, "wren": 20}, first=60)
    folders = {"birds": str(tmp_path / "birds"), "garden": "garden"}
    data = build(tmp_path, tasks=folders, auxiliary="all")
    assert [(task.name, task.class_names) for task in data.tasks if isinstance(task, Classification)] == [
        ("birds", ["crow", "wren"]),
        ("garden", ["rose", "wren"]),
        ("auxiliary", ["crow", "rose", "wren"]),
    ]
    assert data.heterogeneous
    assert set(numbers(data, "test", "garden")) <= set(range(30, 46))
    assert len(numbers(data, "train", "auxiliary")) == 42


def test_a_folder_is_found_from_here_before_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay(tmp_path / "here" / "birds", {"crow": 8, "wren": 8})
    lay(tmp_path / "root" / "birds", {"crow": 8, "wren": 8}, first=100)
    monkeypatch.chdir(tmp_path / "here")
    assert max(numbers(build(tmp_path / "root", tasks={"birds": "birds"}), "train", "birds")) < 16
    monkeypatch.chdir(tmp_path)
    assert min(numbers(build(tmp_path / "root", tasks={"birds": "birds"}), "train", "birds")) >= 100


def test_files_and_folders_that_are_no_images_are_passed_over(tmp_path: Path) -> None:
    birds = lay(tmp_path / "birds", {"crow": 8, "wren": 8})
    (birds / "crow" / "Thumbs.db").write_bytes(b"no image")
    (birds / "crow" / "._000.png").write_bytes(b"no image")
    (birds / ".cache").mkdir()
    (birds / "list.txt").write_text("no class")
    Image.fromarray(np.full((4, 4, 3), 200, np.uint8)).save(birds / "wren" / "LAST.JPG")
    data = build(tmp_path, tasks={"birds": "birds"})
    assert sum((classes(data, part, "birds") for part in PARTS), Counter()) == {"crow": 8, "wren": 9}


def decode(form: Form, path: Path) -> torch.Tensor:
    return form.apply(read_upright(path))


def picture(height: int, width: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize("shape", [(9, 14), (14, 9), (6, 6), (3, 8)])
def test_a_square_is_cut_out_of_the_middle_as_pillow_would(tmp_path: Path, shape: tuple[int, int]) -> None:
    path, pixels, side = tmp_path / "one.png", picture(*shape), min(shape)
    Image.fromarray(pixels).save(path)
    top, left = (shape[0] - side) // 2, (shape[1] - side) // 2
    cut = Image.fromarray(pixels).crop((left, top, left + side, top + side))
    expected = np.asarray(cut.resize((6, 6), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.array_equal(decode(Form.of(6, grey=False), path).numpy(), expected)


def test_an_image_is_squeezed_to_a_height_and_a_width(tmp_path: Path) -> None:
    path, pixels = tmp_path / "one.png", picture(9, 14)
    Image.fromarray(pixels).save(path)
    expected = np.asarray(Image.fromarray(pixels).resize((4, 8), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.array_equal(decode(Form.of([8, 4], grey=False), path).numpy(), expected)


def test_grey_is_pillows_grey(tmp_path: Path) -> None:
    path, pixels = tmp_path / "one.png", picture(40, 40)
    pixels[0, :8] = [[255, 255, 255], [0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255], [1, 1, 1], [7, 7, 7], [9, 0, 9]]
    Image.fromarray(pixels).save(path)
    x = decode(Form.of(40, grey=True), path)
    assert x.dtype == torch.uint8
    assert np.array_equal(x[0].numpy(), np.asarray(Image.fromarray(pixels).convert("L")))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_images_of_any_colours_become_three_channels_or_one(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("one.tif" if mode == "CMYK" else "one.png")
    Image.fromarray(picture(6, 6)).convert(mode).save(path)
    assert decode(Form.of(4, grey=False), path).shape == (3, 4, 4)
    assert decode(Form.of(4, grey=True), path).shape == (1, 4, 4)


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_images_of_16_bits_have_the_brightness_of_8(tmp_path: Path, ending: str) -> None:
    values = np.arange(256).reshape(16, 16)
    Image.fromarray(values.astype(np.uint8)).save(tmp_path / "eight.png")
    deep = tmp_path / f"sixteen.{ending}"
    if ending == "pgm":
        deep.write_bytes(b"P5 16 16 65535\n" + (values * 257).astype(">u2").tobytes())
    else:
        Image.fromarray((values * 257).astype(np.uint16)).save(deep)
    form = Form.of(16, grey=False)
    assert torch.equal(decode(form, deep), decode(form, tmp_path / "eight.png"))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_an_image_whose_range_is_unknown_is_named(tmp_path: Path, dtype: Any) -> None:
    Image.fromarray(np.arange(16).reshape(4, 4).astype(dtype)).save(tmp_path / "deep.tif")
    with pytest.raises(DataError, match=r"deep\.tif holds .* of 32 bits, whose range is unknown"):
        decode(Form.of(4, grey=False), tmp_path / "deep.tif")


@pytest.mark.parametrize("size", [None, [3], [3, 0], [3, 4, 5]])
def test_a_size_must_be_a_number_or_two(tmp_path: Path, size: Any) -> None:
    lay(tmp_path / "birds", COUNTS)
    with pytest.raises(ParameterError, match=r"[`']size[`'].* must be"):
        build(tmp_path, tasks={"birds": "birds"}, size=size)


def broken(root: Path) -> Path:
    """Birds, of which a wren and a crow cannot be decoded; 12 others can."""
    birds = lay(root / "birds", {"crow": 7, "wren": 7})
    whole = (birds / "wren" / "010.png").read_bytes()
    (birds / "wren" / "010.png").write_bytes(whole[: len(whole) // 2])
    (birds / "crow" / "003.png").write_text("<html>404</html>")
    return birds


def test_a_broken_image_is_an_error_that_names_it(tmp_path: Path) -> None:
    broken(tmp_path)
    data = build(tmp_path, tasks={"birds": "birds"})
    with pytest.raises(DataError, match=r"birds.(crow.003|wren.010)\.png is not a whole image"):
        [split(data, part, "birds").load() for part in PARTS]


@pytest.mark.parametrize("cache", [True, False])
def test_broken_images_are_left_out_and_counted_if_asked_for(tmp_path: Path, cache: bool) -> None:
    broken(tmp_path)
    for _ in range(2):  # the second time by what was found the first time
        data = build(tmp_path, tasks={"birds": "birds"}, skip_broken=True, cache=cache)
        every = sorted(number for part in PARTS for number in numbers(data, part, "birds"))
        assert every == [number for number in range(14) if number not in (3, 10)]
        first = Path("birds", "crow", "003.png")
        assert any(
            note.startswith("2 of 14 images cannot be decoded and are left out") and note.endswith(str(first))
            for note in data.notes
        )
    assert len(list(tmp_path.rglob("*.safetensors"))) == cache


def test_workers_find_the_same_broken_images(tmp_path: Path) -> None:
    broken(tmp_path)
    alone, together = (
        build(tmp_path, tasks={"birds": "birds"}, skip_broken=True, cache=False, workers=workers) for workers in (0, 2)
    )
    assert alone.notes == together.notes
    assert numbers(alone, "train", "birds") == numbers(together, "train", "birds")


def test_an_image_that_was_mended_counts_again(tmp_path: Path) -> None:
    birds = broken(tmp_path)
    build(tmp_path, tasks={"birds": "birds"}, skip_broken=True)
    Image.fromarray(np.full((5, 5, 3), 3, np.uint8)).save(birds / "crow" / "003.png")
    _, counted = build(tmp_path, tasks={"birds": "birds"}, skip_broken=True).notes
    assert counted.startswith("1 of 14 images")


def test_broken_images_leave_a_class_without_training_images(tmp_path: Path) -> None:
    birds = lay(tmp_path / "birds", {"crow": 1, "robin": 1, "wren": 9})
    (birds / "crow" / "000.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"birds: class 'crow' has no sample in the training split"):
        build(tmp_path, tasks={"birds": "birds"}, skip_broken=True)


def test_a_bomb_of_pixels_is_a_broken_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay(tmp_path / "birds", COUNTS)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 15)  # an image has 35, more than twice as many
    with pytest.raises(DataError, match=r"birds.crow.\d+\.png is not a whole image.*decompression bomb"):
        numbers(build(tmp_path, tasks={"birds": "birds"}), "train", "birds")


def forget(root: Path) -> None:
    """Overwrite all images with black ones, and let them look as they did."""
    for path in root.rglob("*.png"):
        size, times = path.stat().st_size, (path.stat().st_atime_ns, path.stat().st_mtime_ns)
        Image.fromarray(np.zeros((5, 7, 3), np.uint8)).save(path)
        path.write_bytes(path.read_bytes().ljust(size, b"\0")[:size])
        os.utime(path, ns=times)


@pytest.mark.parametrize("grey", [False, True])
def test_decoded_images_are_read_from_where_they_are_kept(tmp_path: Path, grey: bool) -> None:
    lay(tmp_path / "birds", COUNTS)
    options: dict[str, Any] = {"tasks": {"birds": "birds"}, "grey": grey, "deduplicate": "none"}
    first = [numbers(build(tmp_path, **options), part, "birds") for part in PARTS]
    forget(tmp_path)
    assert [numbers(build(tmp_path, **options), part, "birds") for part in PARTS] == first
    assert set(numbers(build(tmp_path, **options, cache=False), "train", "birds")) == {0}
    assert set(numbers(build(tmp_path, **{**options, "size": 3}), "train", "birds")) == {0}
    assert set(numbers(build(tmp_path, **{**options, "grey": not grey}), "train", "birds")) == {0}


def test_kept_images_are_those_that_are_decoded(tmp_path: Path) -> None:
    folder = tmp_path / "birds" / "crow"
    folder.mkdir(parents=True)
    for number in range(4):
        Image.fromarray(picture(8 + number, 9)).save(folder / f"{number}.png")
    lay(tmp_path / "more", {"wren": 4})
    (tmp_path / "more" / "wren").rename(tmp_path / "birds" / "wren")
    options: dict[str, Any] = {"tasks": {"birds": "birds"}, "size": [5, 4], "memory": 0.0}
    plain, kept = build(tmp_path, **options, cache=False), build(tmp_path, **options)
    for _ in range(2):
        for part in PARTS:
            assert torch.equal(split(kept, part, "birds").load().x, split(plain, part, "birds").load().x)


def test_a_photograph_that_lies_on_its_side_in_the_file_is_turned(tmp_path: Path) -> None:
    seen = np.zeros((16, 16, 3), np.uint8)
    seen[:8] = 200  # bright above, dark below
    exif = Image.Exif()
    exif[0x0112] = 6  # the right side of what is seen is the first row of the file
    for kind in ("crow", "wren"):
        (tmp_path / "birds" / kind).mkdir(parents=True)
        for number in range(4):
            path = tmp_path / "birds" / kind / f"{number}.jpg"
            Image.fromarray(seen[:, ::-1].swapaxes(0, 1)).save(path, exif=exif, quality=100)
    for _ in range(2):  # decoded, and from where decoded images are kept
        x = split(build(tmp_path, tasks={"birds": "birds"}, size=4, deduplicate="none"), "train", "birds").load().x
        assert (x[:, :, 0] > 0.7).all()
        assert (x[:, :, 3] < 0.1).all()


def test_images_that_another_version_kept_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    birds = lay(tmp_path / "birds", COUNTS)
    paths = [str(path) for path in birds.rglob("*.png")]
    here = ImageCache.of(tmp_path, paths, "options", 12)
    for other in range(cache.FORMAT):
        monkeypatch.setattr(cache, "FORMAT", other)
        assert ImageCache.of(tmp_path, paths, "options", 12) != here


def test_a_newer_image_is_decoded_anew_though_it_be_as_large(tmp_path: Path) -> None:
    birds = lay(tmp_path / "birds", COUNTS, suffix=".bmp")
    numbers(build(tmp_path, tasks={"birds": "birds"}), "train", "birds")
    for path in birds.rglob("*.bmp"):
        size, written = path.stat().st_size, path.stat().st_mtime_ns
        Image.fromarray(np.full((5, 7, 3), 99, np.uint8)).save(path)
        os.utime(path, ns=(written, written + 10**9))
        assert path.stat().st_size == size
    assert set(numbers(build(tmp_path, tasks={"birds": "birds"}, deduplicate="none"), "train", "birds")) == {99}


def test_images_of_another_form_and_as_many_bytes_are_others(tmp_path: Path) -> None:
    birds = lay(tmp_path / "birds", COUNTS)
    for path in birds.rglob("*.png"):
        Image.fromarray(picture(9, 14)).save(path)
    for size in ([2, 6], [6, 2], [3, 4]):
        options: dict[str, Any] = {"tasks": {"birds": "birds"}, "size": size, "deduplicate": "none"}
        plain, kept = build(tmp_path, **options, cache=False), build(tmp_path, **options)
        assert torch.equal(split(kept, "train", "birds").load().x, split(plain, "train", "birds").load().x)


def test_a_damaged_place_is_decoded_again_and_mended(tmp_path: Path) -> None:
    lay(tmp_path / "birds", COUNTS)
    data = build(tmp_path, tasks={"birds": "birds"}, memory=0.0)
    before = [numbers(data, part, "birds") for part in PARTS]
    (path,) = (tmp_path / "pictures").glob("*.pictures")
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 1
    for content in (bytes(damaged), whole[: len(whole) // 2], b""):
        path.write_bytes(content)
        assert [numbers(data, part, "birds") for part in PARTS] == before
        assert path.read_bytes() == whole


def test_workers_fill_the_same_file(tmp_path: Path) -> None:
    lay(tmp_path / "birds", COUNTS)
    alone = build(tmp_path, tasks={"birds": "birds"}, cache=False)
    for _ in range(2):
        together = build(tmp_path, tasks={"birds": "birds"}, workers=2)
        assert numbers(together, "train", "birds") == numbers(alone, "train", "birds")
    forget(tmp_path)
    assert numbers(build(tmp_path, tasks={"birds": "birds"}), "train", "birds") == numbers(alone, "train", "birds")


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 9), st.binary(min_size=4, max_size=4)), max_size=25))
def test_a_cache_gives_back_what_was_written_last(writes: list[tuple[int, bytes]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        cache = ImageCache(Path(folder) / "a" / "b.pictures", 4, Path(folder) / "prints")
        held: dict[int, bytes] = {}
        for row, content in writes:
            cache.write(row, content)
            held[row] = content
        assert [cache.read(row) for row in range(10)] == [held.get(row) for row in range(10)]
        assert pickle.loads(pickle.dumps(cache)) == cache


def test_many_writers_leave_whole_images(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path / "all.pictures", 1000, tmp_path / "prints")
    images = {row: bytes([row]) * 1000 for row in range(40)}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda row: cache.write(row, images[row]), [*images, *images]))
    assert all(cache.read(row) == content for row, content in images.items())


def test_a_root_that_cannot_be_written_is_named_with_a_way_out(tmp_path: Path) -> None:
    lay(tmp_path / "birds", COUNTS)
    (tmp_path / "pictures").write_text("a file where the folder would be")
    with pytest.raises(DataError, match=r"cannot be kept in .*pictures.*or set `cache` to false"):
        build(tmp_path, tasks={"birds": "birds"})
    numbers(build(tmp_path, tasks={"birds": "birds"}, cache=False), "train", "birds")


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 8), st.integers(1, 8), st.integers(0, 9))
def test_every_class_is_divided_by_the_shares_and_has_a_training_sample(
    labels: list[int], train: int, validation: int, seed: int
) -> None:
    shares = [train / (train + validation + 3), validation / (train + validation + 3), 3 / (train + validation + 3)]
    parts = by_class(torch.tensor(labels), shares, seed=seed)
    assert sorted(row for part in parts for row in part.tolist()) == list(range(len(labels)))
    for label in set(labels):
        found = [sum(labels[row] == label for row in part.tolist()) for part in parts]
        assert found[0] >= 1
        assert all(abs(got - share * labels.count(label)) < 2 for got, share in zip(found, shares, strict=True))


def test_shares_that_come_out_even_are_exact_in_every_class() -> None:
    labels = torch.arange(7).repeat(20)
    parts = by_class(labels, [0.7, 0.15, 0.15], seed=0)
    assert [torch.bincount(labels[part]).tolist() for part in parts] == [[14] * 7, [3] * 7, [3] * 7]


@each("count", [2, 5, 10, 50])
@each("seed", range(5))
def test_small_classes_take_no_share_from_any_part_of_the_whole(count: int, seed: int) -> None:
    parts = by_class(torch.arange(30).repeat_interleave(count), [0.7, 0.15, 0.15], seed=seed)
    assert [len(part) / (30 * count) for part in parts] == pytest.approx([0.7, 0.15, 0.15], abs=1 / (30 * count))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": {}}, r"expected a mapping of tasks to folders, got \{\}"),
        ({"tasks": {"auxiliary": "birds"}, "auxiliary": "garden"}, r"'auxiliary' is what `auxiliary` is called"),
        ({"tasks": {"one": "birds", "two": "birds"}}, r"tasks 'one' and 'two' have the same images"),
        (
            {"tasks": {"one": "birds/wren/inner"}, "auxiliary": "birds"},
            r"tasks 'one' and 'auxiliary' have the same images",
        ),
        ({"tasks": {"one": "birds"}, "split": [0.7, 0.3]}, r"one needs the shares of training, validation and test"),
        ({"tasks": {"one": "birds"}, "split": [0.7, 0.2, 0.2]}, r"parts of a split must .* add up to 1"),
        ({"tasks": {"one": "birds"}, "split": [0.7]}, r"expected the shares of training, validation and test"),
        ({"tasks": {"one": "birds"}, "seed": -1}, r"'seed' parameter of image_folders must be an int in \[0, inf\)"),
    ],
)
def test_wrong_parameters_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    lay(tmp_path / "birds", COUNTS)
    lay(tmp_path / "birds" / "wren" / "inner", {"a": 3, "b": 3})
    lay(tmp_path / "garden", COUNTS, first=50)
    with pytest.raises(ParameterError, match=message):
        build(tmp_path, **options)


def test_folders_that_do_not_do_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"birds is no folder, nor is .*birds\. Folders are found from"):
        build(tmp_path, tasks={"one": "birds"})
    (tmp_path / "birds").mkdir()
    with pytest.raises(DataError, match=r"birds has no folders; expected one for each class"):
        build(tmp_path, tasks={"one": "birds"})
    lay(tmp_path / "birds", {"crow": 3})
    with pytest.raises(DataError, match=r"birds has 1 class, a classification at least 2: crow"):
        build(tmp_path, tasks={"one": "birds"})
    lay(tmp_path / "birds", {"wren": 0})
    with pytest.raises(DataError, match=r"birds: class 'wren' has no image\. Expected files that end in \.jpg"):
        build(tmp_path, tasks={"one": "birds"})


def test_a_class_without_training_image_is_named(tmp_path: Path) -> None:
    lay(tmp_path / "birds" / "train", {"crow": 3, "robin": 3})
    lay(tmp_path / "birds" / "test", {"crow": 1, "wren": 1, "zebra": 1})
    with pytest.raises(DataError, match=r"one: class 'wren' and 1 more has no sample in the training split"):
        build(tmp_path, tasks={"one": "birds"})


def test_too_few_images_for_a_part_are_told(tmp_path: Path) -> None:
    lay(tmp_path / "birds", {"crow": 1, "wren": 1})
    with pytest.raises(DataError, match=r"one: of 2 images none is left for validation.*`split`"):
        build(tmp_path, tasks={"one": "birds"})


def test_two_folders_of_validation_images_are_one_too_many(tmp_path: Path) -> None:
    for part in ("train", "val", "validation"):
        lay(tmp_path / "birds" / part, {"crow": 1, "wren": 1})
    with pytest.raises(DataError, match="several of which hold the same part"):
        build(tmp_path, tasks={"one": "birds"})


def test_the_command_line_says_that_the_files_are_ones_own() -> None:
    result = CliRunner().invoke(cli_data.app, ["check", "image-folders"])
    assert result.exit_code == 1
    assert "folders of your own" in result.output


@pytest.mark.slow
def test_the_example_trains_on_five_small_folders_and_a_big_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = read_yaml(Path(__file__).parents[2] / "examples" / "folders.yaml")
    folders = [*config["data"]["tasks"].values(), config["data"]["auxiliary"]]
    assert len(folders) == 6
    for folder in folders:
        lay(tmp_path / folder, {"crow": 4, "wren": 4})
    monkeypatch.chdir(tmp_path)
    config["data"] |= {"size": 8, "workers": 0}
    config["encoder"] |= {"width": 2, "fc": [4, 4]}
    for training in (config["training"], config["pretraining"]["training"]):
        training |= {"epochs": 1, "accelerator": "cpu"}
    results = run(config, tmp_path / "run", progress=False)
    assert set(results) == set(config["data"]["tasks"])
    assert RunFolder(tmp_path / "run" / "pretraining").finished


@pytest.mark.filterwarnings("ignore:.*no sample has class:sparsemtl.errors.LabelWarning")  # splits of few images
def test_networks_learn_from_folders_of_different_classes(tmp_path: Path) -> None:
    lay(tmp_path / "birds", {"crow": 4, "wren": 4})
    lay(tmp_path / "garden", {"lily": 4, "rose": 4, "wren": 4}, first=20)
    data = build(tmp_path, tasks={"birds": "birds", "garden": "garden"})
    train, validation, test = data.loaders(4)
    model = sm.SharedBottom(CNN(data.input_shape, widths=[4]), data.tasks)
    results = sm.Trainer(model, epochs=1, progress=False, accelerator="cpu").fit(train, validation).test(test)
    assert set(results) == {"birds", "garden"}


def held_out(data: TaskData, task: str) -> set[int]:
    return {*numbers(data, "validation", task), *numbers(data, "test", task)}


@pytest.mark.parametrize("seed", range(3))
def test_no_task_learns_from_what_another_is_validated_or_tested_on(tmp_path: Path, seed: int) -> None:
    """Small folders sorted out of a big one: an image of a number is one file, wherever it lies."""
    lay(tmp_path / "birds", COUNTS)
    lay(tmp_path / "rest", {"jay": 5, "tit": 5}, first=20)
    lay(tmp_path / "all", {"crow": 4, "robin": 6, "wren": 10, "owl": 20})
    data = build(tmp_path, tasks={"birds": "birds", "rest": "rest"}, auxiliary="all", seed=seed)
    tasks = ("birds", "rest", "auxiliary")
    alone = {t: build(tmp_path, tasks={t: "all" if t == "auxiliary" else t}, seed=seed) for t in tasks}
    for task in tasks:
        others = set().union(*(held_out(data, other) for other in tasks))
        before = numbers(alone[task], "train", task)
        kept = [number for number in before if number not in others]
        assert numbers(data, "train", task) == kept
        assert held_out(data, task) == held_out(alone[task], task)
        note = f"{len(before) - len(kept)} training images are left out, for they are validation or test images as well"
        assert (note in " ".join(data.notes)) == (len(kept) < len(before))
    assert held_out(data, "birds") & set(numbers(alone["auxiliary"], "train", "auxiliary"))


def test_a_class_of_which_another_task_is_tested_on_all_training_images_is_named(tmp_path: Path) -> None:
    lay(tmp_path / "all" / "train", {"crow": 1, "wren": 4})
    lay(tmp_path / "all" / "test", {"crow": 2, "wren": 2}, first=10)
    lay(tmp_path / "birds" / "train", {"crow": 2, "wren": 2}, first=20)
    lay(tmp_path / "birds" / "test", {"crow": 1, "wren": 1})
    with pytest.raises(DataError, match="auxiliary: class 'crow' has no sample in the training split"):
        build(tmp_path, tasks={"birds": "birds"}, auxiliary="all")
