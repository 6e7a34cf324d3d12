from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loops import each
from PIL import Image
from vision_files import image, save

from sparsemtl.data.images import jpeg, pictures
from sparsemtl.data.images.pictures import (
    Array,
    as_size,
    bilinear,
    colours,
    nearest,
    numbers,
    read_array,
    read_picture,
    read_pictures,
    target_size,
)
from sparsemtl.errors import DataError, MissingExtraError, ParameterError

SIDES = st.integers(1, 40)


def nearest_slowly(array: Array, height: int, width: int) -> list[list[Any]]:
    """The pixel that the middle of every new pixel falls into."""
    rows = [((2 * row + 1) * array.shape[0]) // (2 * height) for row in range(height)]
    columns = [((2 * column + 1) * array.shape[1]) // (2 * width) for column in range(width)]
    return [[array[row, column] for column in columns] for row in rows]


@given(SIDES, SIDES, SIDES, SIDES)
def test_the_nearest_pixel_is_the_one_under_the_middle(height: int, width: int, rows: int, columns: int) -> None:
    array = np.arange(height * width).reshape(height, width)
    assert nearest(array, (rows, columns)).tolist() == nearest_slowly(array, rows, columns)


def test_the_nearest_pixel_keeps_its_channels_and_type() -> None:
    vectors = np.random.default_rng(0).normal(size=(6, 8, 3)).astype(np.float32)
    resized = nearest(vectors, (3, 4))
    assert resized.dtype == np.float32
    assert np.array_equal(resized, vectors[1::2, 1::2])
    assert nearest(vectors, (6, 8)) is vectors


def test_bytes_are_resized_as_pillow_does_it() -> None:
    pixels = image(3)
    expected = np.array(Image.fromarray(pixels).resize((9, 7), Image.Resampling.BILINEAR))
    x = bilinear(pixels, (7, 9))
    assert x.dtype == torch.uint8
    assert np.array_equal(x.numpy().transpose(1, 2, 0), expected)


def test_floats_are_resized_like_bytes_but_for_rounding() -> None:
    pixels = image(4)
    x = bilinear(pixels.astype(np.float32) / 255, (7, 9))
    assert torch.allclose(255 * x, bilinear(pixels, (7, 9)).float(), atol=1.01)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_an_image_of_the_right_size_stays_as_it_is(dtype: Any) -> None:
    pixels = image(5).astype(dtype)
    assert np.array_equal(bilinear(pixels, (16, 24)).numpy(), pixels.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("size", "expected"), [(None, (218, 178)), ((10, 20), (10, 20)), (64, (78, 64)), (178, (218, 178))]
)
def test_a_size_is_two_numbers_or_the_shorter_side(size: Any, expected: tuple[int, int]) -> None:
    assert target_size(size, 218, 178) == expected
    if isinstance(size, int):
        assert target_size(size, 178, 218) == expected[::-1]


@pytest.mark.parametrize("size", [[10], [1, 2, 3], [0, 5], ["a", "b"], []])
def test_other_sizes_are_refused(size: Any) -> None:
    with pytest.raises(ParameterError, match="`size` must be a height and a width"):
        as_size(size)
    assert as_size([3, 4]) == (3, 4)


def test_any_picture_is_read_as_three_channels(tmp_path: Path) -> None:
    grey = image(1)[..., 0]
    save(tmp_path / "grey.png", grey)
    Image.fromarray(np.dstack([image(1), grey])).save(tmp_path / "alpha.png")
    Image.fromarray(image(1)).quantize(8).save(tmp_path / "palette.png")
    assert np.array_equal(colours(tmp_path / "grey.png"), np.dstack([grey] * 3))
    assert np.array_equal(colours(tmp_path / "alpha.png"), image(1))
    assert colours(tmp_path / "palette.png").shape == (16, 24, 3)


def test_numbers_are_read_as_the_file_has_them(tmp_path: Path) -> None:
    stored = np.arange(16 * 24, dtype=np.uint16).reshape(16, 24) * 100
    save(tmp_path / "sixteen.png", stored)
    assert np.array_equal(numbers(tmp_path / "sixteen.png"), stored)
    palette = Image.fromarray((stored % 7).astype(np.uint8), mode="P")
    palette.putpalette(list(range(255, 0, -1)))
    palette.save(tmp_path / "palette.png")
    assert np.array_equal(numbers(tmp_path / "palette.png"), stored % 7)


def test_arrays_are_images_of_bytes_or_of_floats_up_to_one(tmp_path: Path) -> None:
    save(tmp_path / "bytes.npy", image(2))
    save(tmp_path / "floats.npy", image(2) / 255)
    assert colours(tmp_path / "bytes.npy").dtype == np.uint8
    assert colours(tmp_path / "floats.npy").dtype == np.float32
    for name, wrong in {"large": image(2) * 1.0, "nan": np.full((2, 2, 3), np.nan)}.items():
        save(tmp_path / f"{name}.npy", wrong)
        with pytest.raises(DataError, match=rf"{name}\.npy has values .* bytes, or floats in \[0, 1\]"):
            colours(tmp_path / f"{name}.npy")
    save(tmp_path / "flat.npy", np.zeros((4, 4)))
    with pytest.raises(DataError, match=r"flat\.npy has shape \(4, 4\)"):
        colours(tmp_path / "flat.npy")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.npy"])
@pytest.mark.parametrize("damage", ["absent", "cut", "text", "empty"])
def test_a_file_that_is_absent_or_damaged_is_named(tmp_path: Path, name: str, damage: str) -> None:
    path = tmp_path / name
    if damage != "absent":
        save(path, image(6))
        whole = path.read_bytes()
        path.write_bytes({"cut": whole[: len(whole) // 2], "text": b"not a picture at all", "empty": b""}[damage])
    with pytest.raises(DataError, match=str(path)):
        read_array(path) if path.suffix == ".npy" else read_picture(path, rgb=True)


def test_arrays_of_objects_are_never_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"objects\.npy is not a whole \.npy file of numbers"):
        read_array(tmp_path / "objects.npy")


def test_without_pillow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    with pytest.raises(MissingExtraError, match=r"pip install 'sparsemtl\[vision\]'"):
        read_picture(tmp_path / "a.png", rgb=True)
    with pytest.raises(MissingExtraError, match="resizing images of bytes needs 'pillow'"):
        bilinear(image(0), (4, 4))
    assert bilinear(image(0) / 255, (4, 4)).shape == (3, 4, 4)


STORED: dict[int, Callable[[Array], Array]] = {
    1: lambda seen: seen,
    2: lambda seen: seen[:, ::-1],
    3: lambda seen: seen[::-1, ::-1],
    4: lambda seen: seen[::-1],
    5: lambda seen: seen.swapaxes(0, 1),
    6: lambda seen: seen[:, ::-1].swapaxes(0, 1),
    7: lambda seen: seen[::-1, ::-1].swapaxes(0, 1),
    8: lambda seen: seen[::-1].swapaxes(0, 1),
}
"""EXIF orientation -> how a file stores what is seen, by its definition: 6 says that the first row of the file is the
right side of what is seen, and the first column its top."""


@pytest.mark.parametrize("orientation", [*STORED, 0, 9])
def test_an_image_is_upright_if_asked_for(tmp_path: Path, orientation: int) -> None:
    seen = image(7)
    stored = np.ascontiguousarray(STORED.get(orientation, STORED[1])(seen))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "photo.png"
    Image.fromarray(stored).save(path, exif=exif)
    assert np.array_equal(read_picture(path, rgb=True, upright=True), seen)
    assert np.array_equal(read_picture(path, rgb=True), stored)


def test_an_image_whose_exif_data_are_none_is_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    Image.fromarray(image(8)).save(path, exif=b"Exif\x00\x00nonsense")
    assert np.array_equal(read_picture(path, rgb=True, upright=True), image(8))


@pytest.mark.parametrize("together", [1, 60, 2**18])
@pytest.mark.parametrize("fast", [False, True])
def test_images_read_in_groups_are_those_read_one_by_one(
    tmp_path: Path, together: int, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fast:
        pytest.importorskip("simplejpeg")
    else:
        monkeypatch.setattr(jpeg, "_simplejpeg", lambda: None)
    monkeypatch.setattr(pictures, "TOGETHER", together)
    exif = Image.Exif()
    exif[0x0112] = 6
    paths = []
    for mode, ending in (("RGB", "jpg"), ("L", "jpg"), ("CMYK", "jpg"), ("P", "gif"), ("RGBA", "png"), ("L", "tif")):
        for size in ((7, 5), (40, 30)):
            paths.append(tmp_path / f"{mode}-{size[0]}.{ending}")
            Image.fromarray(image(len(paths))).resize(size).convert(mode).save(paths[-1], exif=exif)
    found = list(read_pictures(paths))
    for path, array in zip(paths, found, strict=True):
        with Image.open(io.BytesIO(path.read_bytes())) as file:  # by its path, Pillow turns a raw TIFF wrongly
            expected = np.array(file.convert("RGB"))
            turned = file.getexif().get(0x0112) == 6
        assert np.array_equal(array, np.rot90(expected, -1) if turned else expected), path
        assert np.array_equal(array, read_picture(path, rgb=True, upright=True))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether simplejpeg decoded each of the images."""
    calls: list[bool] = []

    def decode(content: bytes, *, upright: bool) -> Array | None:
        pixels = jpeg.decode_jpeg(content, upright=upright)
        calls.append(pixels is not None)
        return pixels

    pytest.importorskip("simplejpeg")
    monkeypatch.setattr(pictures, "decode_jpeg", decode)
    return calls


JPEGS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "colours in full": ("RGB", {"subsampling": "4:4:4", "quality": 95}, True),
    "halved in width": ("RGB", {"subsampling": "4:2:2", "quality": 60}, True),
    "halved in both": ("RGB", {"subsampling": "4:2:0", "quality": 30}, True),
    "progressive": ("RGB", {"progressive": True}, True),
    "restarts": ("RGB", {"restart_marker_rows": 1}, True),
    "grey": ("L", {}, True),
    "grey, progressive": ("L", {"progressive": True, "quality": 95}, True),
    "four inks": ("CMYK", {}, False),
    "not converted": ("RGB", {"keep_rgb": True}, False),
    "xmp": ("RGB", {"xmp": b'<x tiff:Orientation="1"/>'}, False),
}
"""Name -> mode, options of Pillow, and whether simplejpeg decodes the file."""


@each("kind", JPEGS)
def test_simplejpeg_decodes_the_pixels_of_pillow(tmp_path: Path, decoded: list[bool], kind: str) -> None:
    mode, options, fast = JPEGS[kind]
    path = tmp_path / "a.jpg"
    for size in ((64, 64), (65, 47), (1, 1), (8, 17)):
        Image.fromarray(image(size[0])).resize(size).convert(mode).save(path, **options)
        found = read_picture(path, rgb=True, upright=True)
        with Image.open(path) as file:
            assert np.array_equal(found, np.array(file.convert("RGB"))), size
        assert not found.flags.writeable
    assert decoded[-4:] == [fast] * 4


def test_pillow_says_what_is_wrong_with_a_damaged_jpeg(tmp_path: Path, decoded: list[bool]) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(image(1)).resize((64, 64)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"a\.jpg is not a whole image: image file is truncated"):
        read_picture(path, rgb=True)
    assert decoded == [False]


@pytest.mark.parametrize("damage", ["cut", "text"])
def test_a_damaged_image_of_a_group_is_named(tmp_path: Path, damage: str) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for number, path in enumerate(paths):
        save(path, image(number))
    whole = paths[1].read_bytes()
    paths[1].write_bytes({"cut": whole[: len(whole) // 2], "text": b"not a picture at all"}[damage])
    with pytest.raises(DataError, match=r"1\.png is not a whole image"):
        list(read_pictures(paths))
    assert np.array_equal(next(read_pictures(paths[2:])), image(2))  # no lock is held
