"""Tiny data sets of pictures in their official layouts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from sparsemtl.data.images.celeba import ATTRIBUTES, IMAGES, PARTITION
from sparsemtl.data.images.celebamask import PARTS

Array = np.ndarray[Any, np.dtype[Any]]
HEIGHT, WIDTH = 16, 24
FORTY_IDS = 894
"""Names that the labelled file of NYU-v2 has."""
IN_ORDER = """
5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose Black_Hair Blond_Hair
Blurry Brown_Hair Bushy_Eyebrows Chubby Double_Chin Eyeglasses Goatee Gray_Hair Heavy_Makeup High_Cheekbones
Male Mouth_Slightly_Open Mustache Narrow_Eyes No_Beard Oval_Face Pale_Skin Pointy_Nose Receding_Hairline Rosy_Cheeks
Sideburns Smiling Straight_Hair Wavy_Hair Wearing_Earrings Wearing_Hat Wearing_Lipstick Wearing_Necklace
Wearing_Necktie Young
"""
NAMES = IN_ORDER.split()
"""CelebA's 40 attributes, in the official order."""


def save(path: Path, array: Array) -> None:
    """Write an array as the kind of file that its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        Image.fromarray(array).save(path, quality=95)


def image(number: int, height: int = HEIGHT, width: int = WIDTH) -> Array:
    """Bytes that differ from pixel to pixel; the first is the image's number."""
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3)).astype(np.uint8)
    pixels[0, 0] = number
    return pixels


def labels(number: int, low: int, high: int, height: int = HEIGHT, width: int = WIDTH) -> Array:
    """Labels in low .. high, both among them."""
    drawn = np.random.default_rng(1000 + number).integers(low, high + 1, (height, width))
    drawn[0, :2] = low, high
    return drawn


def depth(number: int, height: int = HEIGHT, width: int = WIDTH) -> Array:
    """Metres, 0 in the first row."""
    metres = np.random.default_rng(2000 + number).uniform(0.7, 9.9, (height, width)).astype(np.float32)
    metres[0] = 0
    return metres


def normals(number: int, height: int = HEIGHT, width: int = WIDTH) -> Array:
    """Unit vectors (H, W, 3), zeros in the first row."""
    vectors = np.random.default_rng(3000 + number).normal(size=(height, width, 3))
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    vectors[0] = 0
    return vectors.astype(np.float32)


def as_colours(vectors: Array) -> Array:
    """Normals as colours, unknown ones black."""
    bytes_ = np.round((vectors + 1) * 127.5).astype(np.uint8)
    bytes_[~vectors.any(axis=2)] = 0
    return bytes_


def lay_nyu_arrays(root: Path, train: int = 6, test: int = 3) -> Path:
    """The preprocessed layout; test images are numbered from 100 in their first pixel."""
    for part, count, first in (("train", train, 0), ("val", test, 100)):
        for number in range(count):
            place = root / "nyuv2" / part
            save(place / f"image/{number}.npy", image(first + number) / 255.0)
            save(place / f"label/{number}.npy", labels(first + number, -1, 12).astype(np.float32))
            save(place / f"depth/{number}.npy", depth(first + number)[..., None])
            save(place / f"normal/{number}.npy", normals(first + number))
    return root / "nyuv2"


def lay_nyu_folders(root: Path, *, pictures: bool = False, lists: Sequence[str] = ("train", "val")) -> Path:
    """NYUD_MT, three samples a list; depth and normals as pictures or arrays."""
    place, ending = root / "NYUD_MT", "png" if pictures else "npy"
    (place / "gt_sets").mkdir(parents=True)
    for number, part in enumerate(lists):
        names = [f"{100 * number + k:04d}" for k in range(3)]
        (place / "gt_sets" / f"{part}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            save(place / f"images/{name}.png", image(int(name) % 256))
            save(place / f"segmentation/{name}.png", labels(int(name), 0, 40).astype(np.uint8))
            metres, vectors = depth(int(name)), normals(int(name))
            save(place / f"depth/{name}.{ending}", (1000 * metres).round().astype(np.uint16) if pictures else metres)
            save(place / f"normals/{name}.{ending}", as_colours(vectors) if pictures else vectors)
    return place


def forty_of_894() -> Array:
    """For every name one of the 40, each of them there."""
    return np.arange(FORTY_IDS) % 40 + 1


def lay_nyu_mat(root: Path, count: int = 7, *, mapping: bool = True, split: bool = True) -> Path:
    """The labelled file: images 1, 3, 4, 7 train and 2, 6 test, as MATLAB counts."""
    import h5py
    from scipy.io import savemat

    place = root / "nyu_depth_v2"
    place.mkdir(parents=True)
    with h5py.File(place / "nyu_depth_v2_labeled.mat", "w") as file:
        file["images"] = np.stack([image(n).transpose(2, 1, 0) for n in range(count)])  # MATLAB's axes are reversed
        file["labels"] = np.stack([labels(n, 0, FORTY_IDS).T for n in range(count)]).astype(np.uint16)
        file["depths"] = np.stack([depth(n).T for n in range(count)])
    if mapping:
        savemat(place / "classMapping40.mat", {"mapClass": forty_of_894()[None]})
    if split:
        savemat(place / "splits.mat", {"trainNdxs": np.array([[1], [3], [4], [7]]), "testNdxs": np.array([[2], [6]])})
    return place


def disparity(number: int, height: int = HEIGHT, width: int = WIDTH) -> Array:
    """What a disparity file of Cityscapes holds; 0, 1 and 257 among it."""
    stored = np.random.default_rng(4000 + number).integers(2, 32257, (height, width)).astype(np.uint16)
    stored[0, :3] = 0, 1, 257
    return stored


def lay_cityscapes(root: Path, train: int = 5, test: int = 2, *, with_disparity: bool = True) -> Path:
    """The official layout: two cities to train on, one to validate."""
    place = root / "cityscapes"
    for part, count, first in (("train", train, 0), ("val", test, 100)):
        for number in range(first, first + count):
            city = ("aachen", "bochum")[number % 2] if part == "train" else "lindau"
            name = f"{city}_{number:06d}_000019"
            save(place / f"leftImg8bit/{part}/{city}/{name}_leftImg8bit.png", image(number))
            ids = labels(number, 0, 33).astype(np.uint8)
            save(place / f"gtFine/{part}/{city}/{name}_gtFine_labelIds.png", ids)
            save(place / f"gtFine/{part}/{city}/{name}_gtFine_color.png", image(number))
            if with_disparity:
                save(place / f"disparity/{part}/{city}/{name}_disparity.png", disparity(number))
    return place


def lay_city_arrays(root: Path, *, folder: str = "label_7", train: int = 5, test: int = 2) -> Path:
    """MTAN's layout."""
    place = root / "cityscapes"
    for part, count, first in (("train", train, 0), ("val", test, 100)):
        for number in range(count):
            save(place / f"{part}/image/{number}.npy", image(first + number) / 255.0)
            save(place / f"{part}/{folder}/{number}.npy", labels(first + number, -1, 6).astype(np.float64))
            save(place / f"{part}/depth/{number}.npy", depth(first + number)[..., None])
    return place


def attribute_values(count: int) -> Array:
    """-1 or 1 for every image and attribute."""
    return np.random.default_rng(7).integers(0, 2, (count, 40)) * 2 - 1


def attribute_list(names: Sequence[str], values: Array, between: str = " ") -> str:
    """A list as CelebA has it."""
    lines = [name + between + " ".join(f"{value:2d}" for value in row) for name, row in zip(names, values, strict=True)]
    return "\n".join([str(len(names)), " ".join(NAMES) + " ", *lines]) + "\n"


def lay_celeba(root: Path, parts: Sequence[int] = (0, 0, 0, 0, 1, 2, 1, 2), *, official: bool = False) -> Path:
    """CelebA, 26x22 pixels an image; flat, or in the folders of the official distribution."""
    place = root / "celeba"
    img, anno, partition = (place / folder if official else place for folder in ("Img", "Anno", "Eval"))
    names = [f"{number:06d}.jpg" for number in range(1, len(parts) + 1)]
    for number, name in enumerate(names):
        save(img / IMAGES / name, np.full((26, 22, 3), 250 - 10 * number, dtype=np.uint8))
    for folder in (anno, partition):
        folder.mkdir(parents=True, exist_ok=True)
    (anno / ATTRIBUTES).write_text(attribute_list(names, attribute_values(len(names))))
    (partition / PARTITION).write_text("".join(f"{n} {part}\n" for n, part in zip(names, parts, strict=True)))
    return place


def part_mask(number: int, part: str) -> Array:
    """Where a part is, 16x16, half of the image's side."""
    seed = 100 * number + PARTS.index(part)
    return np.random.default_rng(seed).random((16, 16)) < (0.7 if part == "skin" else 0.2)


def lay_celebamask(root: Path, numbers: Sequence[int] = (0, 1, 2, 3, 4, 5, 2000), unseen: Sequence[str] = ()) -> Path:
    """CelebAMask-HQ; images of 32x32 pixels, masks of 16x16; every third image is in another part of CelebA."""
    place = root / "CelebAMask-HQ"
    for number in numbers:
        save(place / f"CelebA-HQ-img/{number}.jpg", np.full((32, 32, 3), 250 - number % 100, dtype=np.uint8))
        for part in PARTS:
            if part not in unseen:
                mask = (255 * part_mask(number, part)).astype(np.uint8)
                path = place / f"CelebAMask-HQ-mask-anno/{number // 2000}/{number:05d}_{part}.png"
                save(path, np.stack([mask] * 3, axis=2))
    names = [f"{number}.jpg" for number in numbers]
    (place / "CelebAMask-HQ-attribute-anno.txt").write_text(attribute_list(names, attribute_values(len(names)), "  "))
    originals = [(162770, 162771, 182637, 182638)[k % 4] for k in range(len(numbers))]
    lines = [f"{n:<8d}{o - 1:<12d}{o:06d}.jpg  abc  def" for n, o in zip(numbers, originals, strict=True)]
    header = "idx     orig_idx    orig_file   proc_md5  final_md5"
    (place / "CelebA-HQ-to-CelebA-mapping.txt").write_text("\n".join([header, *lines]) + "\n")
    split = {"train": names[3:], "val": names[:1], "test": names[1:3]}
    (place / "celebA_datasplit.json").write_text(json.dumps(split))
    return place


class PerPixel(nn.Sequential):
    """The smallest encoder that gives features of every pixel."""

    out_features = 4
    stride = 1

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
