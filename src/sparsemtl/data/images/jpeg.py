"""JPEG files decoded by simplejpeg (the extra `fast-images`), to the pixels that Pillow decodes.

libjpeg-turbo decodes in both. Around it, Pillow runs Python, which takes most of the time of a small image, and which
one thread runs at a time.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

_START = b"\xff\xd8\xff"
_ORIENTATIONS = (b"Exif\x00", b"tiff:Orientation")
"""Parts of a file that may hold an orientation, in EXIF data or in XMP."""
_LARGEST = 2**26
"""Pixels of the largest image; Pillow warns of larger ones, and refuses some."""


def decode_jpeg(content: bytes, *, upright: bool) -> np.ndarray[Any, np.dtype[np.uint8]] | None:
    """Return the pixels (H, W, 3) of a JPEG file, read-only.

    Args:
        content: content of the file.
        upright: the pixels must be upright.

    Returns:
        The pixels, or None if Pillow is to read the file: without simplejpeg, and for files that are no JPEG, that have
        other colours than YCbCr or grey, are very large or damaged, or may have to be turned.
    """
    library = _simplejpeg()
    if library is None or not content.startswith(_START):
        return None
    if upright and any(part in content for part in _ORIENTATIONS):
        return None
    try:
        height, width, colours, _ = library.decode_jpeg_header(content)
        if colours not in ("YCbCr", "Gray") or height * width > _LARGEST:
            return None
        pixels: np.ndarray[Any, np.dtype[np.uint8]] = library.decode_jpeg(content, "RGB")
    except ValueError:  # the error of Pillow says more
        return None
    pixels.setflags(write=False)
    return pixels


@functools.cache
def _simplejpeg() -> Any:
    """Import simplejpeg; return None if it is not installed."""
    try:
        import simplejpeg
    except ImportError:
        return None
    return simplejpeg
