"""Images and arrays from files, and their sizes.

Images are resized bilinearly (Pillow's filter, as torchvision's `Resize`); labels, depth and normals by the nearest
pixel, which invents no class, mixes no unknown pixel into a known one, bridges no edge, and leaves normals at length
one.
"""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sparsemtl.data.images.jpeg import decode_jpeg
from sparsemtl.errors import DataError, ParameterError, missing_extra
from sparsemtl.registry.parameters import Count

if TYPE_CHECKING:
    from PIL.Image import Image

Array = np.ndarray[Any, np.dtype[Any]]
Size = Count | Sequence[Count] | None
"""Height and width; or the length of the shorter side; or None: as in the file. In pixels."""
_BRIGHTEST = 2.0
"""Bound of the floats of an image; greater ones are no brightness in [0, 1]."""
TOGETHER = 2**18
"""Pixels from which on a group of images is decoded."""
_PYTHON = Lock()
_ORIENTATION = 0x0112
"""EXIF tag of the sides of the scene at which the first row and the first column of the file lie."""
_TURNS = ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90")
"""Pillow's names of the turns that undo the EXIF orientations 2 to 8."""


def read_picture(path: str | Path, *, rgb: bool, upright: bool = False) -> Array:
    """Return an image, read-only.

    Args:
        path: a PNG, JPEG or any other file that Pillow reads.
        rgb: return three channels of bytes, shape (H, W, 3), whatever the file holds; else numbers as in the file.
        upright: turn the image by its EXIF orientation, as viewers do: many cameras write photographs as they fall
            on the sensor. Not for images that have maps of their pixels.
    """
    content = _content(path)
    if rgb and (pixels := decode_jpeg(content, upright=upright)) is not None:
        return pixels
    image = _opened(content, path)
    _load(image, path)
    return _pixels(image, path, rgb=rgb, upright=upright)


def read_pictures(paths: Sequence[str | Path]) -> Iterator[Array]:
    """Yield images as `read_picture` returns them with `rgb` and `upright`."""
    rest = deque(paths)
    while rest:
        content = _content(rest[0])
        if (pixels := decode_jpeg(content, upright=True)) is None:
            yield from _group_by_pillow(rest)
        else:
            rest.popleft()
            yield pixels


def _group_by_pillow(rest: deque[str | Path]) -> list[Array]:
    """Return the first images, and remove their paths.

    Small images go through opening, decoding and conversion in groups. Opening and conversion are Python, which only
    one thread runs at a time. Without the lock, threads take Python from each other several times per image.
    """
    group: list[tuple[Image, str | Path]] = []
    pixels = 0
    with _PYTHON:
        while rest and pixels < TOGETHER:
            path = rest.popleft()
            image = _opened(_content(path), path)
            group.append((image, path))
            pixels += image.width * image.height
    for image, path in group:
        _load(image, path)
    with _PYTHON:
        return [_pixels(image, path, rgb=True, upright=True) for image, path in group]


def _pixels(image: Image, path: str | Path, *, rgb: bool, upright: bool) -> Array:
    """Return the pixels of a decoded image."""
    if upright:
        image = _upright(image)
    if rgb and image.mode != "RGB":  # Pillow would copy an image of this mode
        image = _in_bytes(image, path).convert("RGB")
    return np.asarray(image)


def _in_bytes(image: Image, path: str | Path) -> Image:
    """Return an image of bytes; Pillow itself would replace all greater values by 255."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):  # from 0 to 65535
        bright = np.rint(np.asarray(image).astype(np.float64) / 257).astype(np.uint8)
        return cast("Image", load_pillow(f"reading {path}").fromarray(bright))
    if image.mode in ("I", "F"):
        kind = "whole numbers" if image.mode == "I" else "floats"
        raise DataError(f"{path} holds {kind} of 32 bits, whose range is unknown. Save 8 or 16 bits per channel.")
    return image


def _upright(image: Image) -> Image:
    """Turn an image by its EXIF orientation, if it can be read.

    Not Pillow's `exif_transpose`, which writes the EXIF data anew and fails where anything else in them is damaged.
    """
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except SyntaxError:  # raised by Pillow for EXIF data that are none
        return image
    if orientation not in range(2, 9):
        return image
    return image.transpose(getattr(load_pillow("turning images").Transpose, _TURNS[orientation - 2]))


def load_pillow(purpose: str) -> Any:
    """Import Pillow's `Image`."""
    try:
        from PIL import Image
    except ImportError:
        raise missing_extra("pillow", "vision", purpose) from None
    return Image


def _opened(content: bytes, path: str | Path) -> Image:
    """Return an image whose header is read; `_load` decodes its pixels."""
    pillow = load_pillow(f"reading {path}")
    try:
        return cast("Image", pillow.open(io.BytesIO(content)))
    except pillow.UnidentifiedImageError:  # its text names a buffer
        raise DataError(f"{path} is not a whole image: Pillow knows no such format. Get it again.") from None
    except Exception as error:  # Pillow raises errors of any type for a damaged file
        raise _damaged(path, error) from None


def _load(image: Image, path: str | Path) -> None:
    try:
        image.load()
    except Exception as error:
        raise _damaged(path, error) from None


def _damaged(path: str | Path, error: Exception) -> DataError:
    return DataError(f"{path} is not a whole image: {error}. Get it again.")


def _content(path: str | Path) -> bytes:
    """Read a file by few calls: at each, a thread gives up the interpreter's lock, and other threads take it."""
    try:
        file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist.") from None
    except OSError as error:
        raise _damaged(path, error) from None
    try:
        size = os.fstat(file).st_size
        content = os.read(file, size)
        while len(content) < size and (more := os.read(file, size - len(content))):  # 2 GB at most per call
            content += more
        return content
    except OSError as error:
        raise _damaged(path, error) from None
    finally:
        os.close(file)


def read_array(path: Path) -> Array:
    """Read a NumPy file."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)  # checks the header against the file's size first
        if isinstance(array, np.ndarray):
            array = np.array(array)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist.") from None
    except Exception as error:  # NumPy parses the header as Python, and raises the errors of its tokenizer
        raise DataError(f"{path} is not a whole .npy file of numbers: {error}. Get it again.") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "buif":
        raise DataError(f"{path} holds no array of numbers.")
    return array


def colours(path: Path) -> Array:
    """Read an image as three channels: bytes, or floats in [0, 1] from a NumPy file, shape (H, W, 3)."""
    if path.suffix != ".npy":
        return read_picture(path, rgb=True)
    array = read_array(path)
    if array.ndim != 3 or array.shape[2] != 3:
        raise DataError(f"{path} has shape {array.shape}; an image has (height, width, 3).")
    if array.dtype == np.uint8:
        return array
    if not np.isfinite(array).all() or array.max() > _BRIGHTEST:
        raise DataError(
            f"{path} has values from {array.min():.4g} to {array.max():.4g}; an image has bytes, or floats in [0, 1]."
        )
    return array.astype(np.float32)


def numbers(path: Path) -> Array:
    """Read the numbers of every pixel, shape (H, W) or (H, W, channels)."""
    array = read_array(path) if path.suffix == ".npy" else read_picture(path, rgb=False)
    if array.ndim not in (2, 3) or array.size == 0:
        raise DataError(
            f"{path} has shape {array.shape}; expected one of (height, width) or (height, width, channels)."
        )
    return array


@dataclass(frozen=True)
class Files:
    """Files of one folder, one per sample, decoded by `decode`; `names` are paths under the folder."""

    folder: Path
    names: tuple[str, ...]
    decode: Callable[[Path], Array]

    def __len__(self) -> int:
        return len(self.names)

    def where(self, row: int) -> str:
        """Return the path of a sample's file."""
        return str(self.folder / self.names[row])

    def read(self, row: int) -> Array:
        """Decode the file of a sample."""
        return self.decode(self.folder / self.names[row])


def as_size(size: Size) -> int | tuple[int, int] | None:
    """Check a parameter `size`."""
    if size is None or isinstance(size, int):
        return size
    if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise ParameterError(f"`size` must be a height and a width, each at least 1, or one number; got {size!r}.")
    return (size[0], size[1])


def target_size(size: int | tuple[int, int] | None, height: int, width: int) -> tuple[int, int]:
    """Return the height and width to which an image is resized."""
    if size is None:
        return height, width
    if isinstance(size, tuple):
        return size
    if height <= width:
        return size, int(size * width / height)
    return int(size * height / width), size


def bilinear(image: Array, size: tuple[int, int]) -> Tensor:
    """Resize an image (H, W, 3) to a tensor (3, *size) of the same type, bytes or floats."""
    if image.shape[:2] != size and image.dtype == np.uint8:
        pillow = load_pillow("resizing images of bytes")
        image = np.asarray(pillow.fromarray(image).resize(size[::-1], pillow.Resampling.BILINEAR))
    x = torch.from_numpy(image.transpose(2, 0, 1).copy())
    if tuple(x.shape[1:]) == size:
        return x
    return F.interpolate(x[None], size=size, mode="bilinear", antialias=True, align_corners=False)[0]


def nearest(array: Array, size: tuple[int, int]) -> Array:
    """Resize a map (H, W, ...): every pixel is the one that its centre falls into."""
    if array.shape[:2] == size:
        return array
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new)  # in whole numbers: a centre on a border falls to the right
        for new, old in zip(size, array.shape[:2], strict=True)
    )
    return np.asarray(array[rows[:, None], columns])
