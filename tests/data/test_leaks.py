"""No picture is trained on and tested on, in whatever file, form or task it lies; and pictures that differ stay."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sparsemtl.data import DATASETS, LazySplit, TaskData
from sparsemtl.data.images.classified.duplicates import Fingerprints, copies, fingerprint, same_pixels
from sparsemtl.data.images.classified.source import ClassImages
from sparsemtl.errors import DataError, ParameterError

Array = np.ndarray[Any, np.dtype[Any]]
PARTS = ("train", "validation", "test")


@cache
def picture(seed: int, height: int = 96, width: int = 128) -> Array:
    """A picture as photographs are: most contrast in large forms, some in small ones."""
    draw = np.random.default_rng(seed)
    made = np.zeros((height, width, 3))
    for cells, strength in ((3, 60), (6, 30), (12, 15), (48, 4)):
        field = draw.normal(0, strength, (cells, cells, 3)).clip(-120, 120) + 128
        grown = Image.fromarray(field.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
        made += np.asarray(grown).astype(float) - 128
    image: Array = (made + 128).clip(0, 255).astype(np.uint8)
    image.flags.writeable = False
    return image


def save(path: Path, image: Array, size: tuple[int, int] | None = None, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shown = Image.fromarray(image)
    (shown.resize(size, Image.Resampling.BICUBIC) if size else shown).save(path, **options)


COPIES: dict[str, Callable[[Path, Array], None]] = {
    "the same pixels in another format": lambda path, image: save(path.with_suffix(".bmp"), image),
    "compressed harder": lambda path, image: save(path.with_suffix(".png"), image, optimize=True, compress_level=9),
    "saved with losses": lambda path, image: save(path.with_suffix(".jpg"), image, quality=60),
    "half as large": lambda path, image: save(path.with_suffix(".png"), image, (64, 48)),
    "larger": lambda path, image: save(path.with_suffix(".webp"), image, (200, 150), quality=80),
    "smaller with losses": lambda path, image: save(path.with_suffix(".jpg"), image, (85, 64), quality=70),
}
EXACT = ("the same pixels in another format", "compressed harder")


def build(root: Path, tasks: Mapping[str, str], **options: Any) -> TaskData:
    return DATASETS.build("image-folders", root=root, tasks=tasks, **{"workers": 0, "size": 8, **options})


def files(data: TaskData, part: str, task: str) -> set[str]:
    """Files of a part, by their folder and name without its ending."""
    found = getattr(data, part)
    split = found[task] if isinstance(found, Mapping) else found
    assert isinstance(split, LazySplit)
    paths = [Path(split.source.where(int(row))) for row in split.rows]
    return {f"{path.parent.name}/{path.stem}" for path in paths}


def lay(root: Path, copy: Callable[[Path, Array], None]) -> None:
    """A small task, and a big one among whose training images copies of two of the small one's test images lie."""
    for number in range(12):
        part = "test" if number % 3 == 0 else "train"
        save(root / "small" / part / f"c{number % 2}" / f"{number}.png", picture(number))
    for number in range(100, 112):
        part = "test" if number % 3 == 0 else "train"
        save(root / "big" / part / f"c{number % 2}" / f"{number}.png", picture(number))
    for number in (0, 3):
        copy(root / "big" / "train" / "c0" / f"copy{number}", picture(number))


@pytest.mark.parametrize("kind", COPIES)
def test_a_copy_of_what_another_task_is_tested_on_is_not_trained_on(tmp_path: Path, kind: str) -> None:
    lay(tmp_path, COPIES[kind])
    folders = {"small": "small", "big": "big"}
    data = build(tmp_path, folders)
    every = build(tmp_path, folders, deduplicate="none")
    assert files(every, "train", "big") - files(data, "train", "big") <= {"c0/copy0", "c0/copy3"}
    held_out = {name for part in ("train", "validation") for name in files(data, part, "big")}
    assert not {"c0/copy0", "c0/copy3"} & files(data, "train", "big")
    assert files(data, "test", "big") == files(every, "test", "big")
    assert all(files(data, part, "small") == files(every, part, "small") for part in PARTS)
    left_out = len({"c0/copy0", "c0/copy3"} - held_out)
    notes = [note for note in data.notes if "left out" in note]
    assert len(notes) == 1
    assert notes[0].startswith(f"big: {left_out} training images are left out")
    assert ("of the same pixels" if kind in EXACT else "saved anew or resized") in notes[0]
    exact = build(tmp_path, folders, deduplicate="exact")
    assert (files(exact, "train", "big") == files(data, "train", "big")) == (kind in EXACT)


@pytest.fixture(scope="module")
def folder_with_copies(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Function of a kind of copies -> folder of pictures that each lie there twice."""

    @cache
    def folder(kind: str) -> Path:
        root = tmp_path_factory.mktemp("copies")
        for number in range(20):
            save(root / "birds" / f"c{number % 2}" / f"{number}.png", picture(number))
            if kind == "the same file":
                save(root / "birds" / f"c{number % 2}" / f"{number}-copy.png", picture(number))
            else:
                COPIES[kind](root / "birds" / f"c{number % 2}" / f"{number}-copy", picture(number))
        return root

    return folder


@pytest.mark.parametrize(
    ("kind", "seed"), [*(("the same file", seed) for seed in range(3)), *((kind, 1) for kind in COPIES)]
)
def test_copies_inside_one_task_do_not_cross_its_parts(
    folder_with_copies: Callable[[str], Path], kind: str, seed: int
) -> None:
    data = build(folder_with_copies(kind), {"birds": "birds"}, seed=seed)
    shown = {part: {name.removesuffix("-copy") for name in files(data, part, "birds")} for part in PARTS}
    assert not shown["train"] & (shown["validation"] | shown["test"])
    assert not shown["validation"] & shown["test"]
    assert any("training images are left out" in note for note in data.notes)


DIFFERENT: dict[str, Callable[[Array], Array]] = {
    "another place cut out": lambda image: image[4:-4, 8:].copy(),
    "mirrored": lambda image: image[:, ::-1].copy(),
    "moved": lambda image: np.roll(image, 10, axis=1),
    "something in one place": lambda image: pasted(image),
    "other colours": lambda image: image[..., ::-1].copy(),
    "a negative": lambda image: 255 - image,
}


def pasted(image: Array) -> Array:
    other = image.copy()
    other[40:56, 60:80] = 255 - other[40:56, 60:80]
    return other


@pytest.mark.parametrize("kind", DIFFERENT)
def test_pictures_that_are_near_and_not_the_same_stay(kind: str) -> None:
    images = [made for seed in range(30) for made in (picture(seed), DIFFERENT[kind](picture(seed)))]
    prints = Fingerprints.of(fingerprint(image) for image in images)
    rows = np.arange(len(images))
    assert copies(prints, rows[::2], rows[1::2], lambda row: images[row]) == {}
    assert same_pixels(prints, rows[::2], rows[1::2]) == {}


def test_plain_pictures_and_broken_ones_are_like_no_other(tmp_path: Path) -> None:
    images: list[Array | None] = [np.full((40, 40, 3), level, np.uint8) for level in (0, 0, 1, 200)]
    prints = Fingerprints.of(fingerprint(image) if image is not None else None for image in [*images, None, None])
    assert same_pixels(prints, np.array([0, 2, 3, 4]), np.array([1, 5])) == {0: 1}
    assert copies(prints, np.array([0, 2, 3, 4]), np.array([1, 5]), lambda _: pytest.fail("looked at")) == {}


def test_pictures_are_decoded_once_and_recognised_from_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay(tmp_path, COPIES["saved with losses"])
    first = build(tmp_path, {"small": "small", "big": "big"})
    assert isinstance(first.train, Mapping)
    monkeypatch.setattr(ClassImages, "_fingerprint", lambda *_: pytest.fail("decoded again"))
    again = build(tmp_path, {"small": "small", "big": "big"}, size=16)
    assert again.notes == first.notes
    for reader in ("read_upright", "read_pictures"):
        patch = f"sparsemtl.data.images.classified.source.{reader}"
        monkeypatch.setattr(patch, lambda paths: [pytest.fail("decoded again") for _ in paths])
    next(iter(first.train["big"].loader(4)))
    (tmp_path / "pictures").joinpath(next((tmp_path / "pictures").glob("*.safetensors"))).write_bytes(b"damage")
    monkeypatch.undo()
    assert build(tmp_path, {"small": "small", "big": "big"}).notes == first.notes


def test_a_class_of_copies_alone_is_named_with_the_way_out(tmp_path: Path) -> None:
    for number in range(6):
        save(tmp_path / "birds" / "wren" / f"{number}.png", picture(number))
        save(tmp_path / "birds" / "crow" / f"{number}.png", picture(99))
    with pytest.raises(DataError, match=r"class 'crow' has no sample.*training images are left out.*deduplicate: none"):
        build(tmp_path, {"birds": "birds"})
    assert len(files(build(tmp_path, {"birds": "birds"}, deduplicate="none"), "train", "birds")) == 8
    with pytest.raises(ParameterError, match="deduplicate"):
        build(tmp_path, {"birds": "birds"}, deduplicate="some")


@pytest.mark.slow
def test_a_thousand_pictures_take_seconds(tmp_path: Path) -> None:
    images = [picture(seed) for seed in range(1000)]
    start = time.process_time()
    prints = Fingerprints.of(fingerprint(image) for image in images)
    copies(prints, np.arange(700), np.arange(700, 1000), lambda row: images[row])
    assert time.process_time() - start < 10
