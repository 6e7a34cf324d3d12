"""Data sets of objects, tiny, in their official layouts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

DARKEST = 130
IDS = {
    "n01443537": "goldfish, Carassius auratus",
    "n02124075": "Egyptian cat",
    "n03126707": "crane",
    "n02012849": "crane",
}


def save(path: Path, brightness: int, width: int = 16) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((12, width, 3), brightness, np.uint8)).save(path, quality=100)


def lay_classes(folder: Path, names: Sequence[str], image: str, count: int = 8, width: int = 16) -> None:
    """Class folders; an image is as bright as ten times its class's place, plus its number, plus `DARKEST`.

    Folders of one width have the same pictures.
    """
    for place, name in enumerate(names):
        for number in range(1, count + 1):
            save(folder / name / image.format(place=place + 1, number=number), DARKEST + 10 * place + number, width)


def lay_office_31(root: Path) -> None:
    for width, domain in enumerate(("amazon", "dslr", "webcam"), start=14):
        folder = root / "office31" / domain / "images"
        lay_classes(folder, ["back_pack", "bike", "mug"], "frame_{number:04}.jpg", width=width)


def lay_office_caltech(root: Path) -> None:
    for width, domain in enumerate(("amazon", "dslr", "webcam"), start=17):
        folder = root / "office_caltech_10" / domain
        lay_classes(folder, ["back_pack", "bike", "mug"], "frame_{number:04}.jpg", width=width)
    names = ["041.coffee-mug", "224.touring-bike", "backpack"]
    lay_classes(root / "office_caltech_10" / "caltech", names, "{place:03}_{number:04}.jpg")


def lay_office_home(root: Path) -> None:
    for width, domain in enumerate(("Art", "Clipart", "Product", "Real World"), start=14):
        folder = root / "OfficeHomeDataset_10072016" / domain
        lay_classes(folder, ["Alarm_Clock", "Backpack", "Mug"], "{number:05}.jpg", width=width)


def lay_caltech_101(root: Path) -> None:
    names = ["BACKGROUND_Google", "Faces", "accordion", "yin_yang"]
    lay_classes(root / "caltech-101" / "101_ObjectCategories", names, "image_{number:04}.jpg")


def lay_caltech_256(root: Path) -> None:
    folder = root / "256_ObjectCategories"
    lay_classes(folder, ["001.ak47", "056.dog", "257.clutter"], "{place:03}_{number:04}.jpg")
    (folder / "056.dog" / "greg").mkdir()  # in the official archive, too; RENAME2 there lies in 198.spider
    (folder / "056.dog" / "RENAME2").write_text("no image")


def lay_tiny_imagenet(root: Path) -> None:
    place = root / "tiny-imagenet-200"
    place.mkdir(parents=True)
    lines = []
    for number, wnid in enumerate(IDS):
        for image in range(10):
            save(place / "train" / wnid / "images" / f"{wnid}_{image}.JPEG", DARKEST + 20 * number + image)
        (place / "train" / wnid / f"{wnid}_boxes.txt").write_text("no image")
        for image in range(2):
            name = f"val_{2 * number + image}.JPEG"
            save(place / "val" / "images" / name, DARKEST + 20 * number + image, 20)
            lines.append(f"{name}\t{wnid}\t0\t32\t44\t62")
    (place / "val" / "val_annotations.txt").write_text("\n".join(sorted(lines, reverse=True)) + "\n")
    (place / "wnids.txt").write_text("\n".join(IDS) + "\n")
    (place / "words.txt").write_text("n00000000\tnothing\n" + "".join(f"{i}\t{w}\n" for i, w in IDS.items()))
    save(place / "test" / "images" / "test_0.JPEG", 7)


OBJECTS: dict[str, Callable[[Path], None]] = {
    "office-31": lay_office_31,
    "office-caltech": lay_office_caltech,
    "office-home": lay_office_home,
    "caltech-101": lay_caltech_101,
    "caltech-256": lay_caltech_256,
    "tiny-imagenet": lay_tiny_imagenet,
}
"""Data set -> what lays it under a root."""
SMALL_OBJECTS: dict[str, dict[str, Any]] = {name: {"size": 8, "workers": 0} for name in OBJECTS}
"""Data set -> parameters with which it is built quickly."""


def lay_folders(root: Path) -> None:
    """Two tasks' folders and a big one."""
    lay_classes(root / "photos" / "birds", ["crow", "wren"], "{number}.png", 8)
    lay_classes(root / "photos" / "garden", ["lily", "rose", "wren"], "{number}.jpg", 8, 14)
    lay_classes(root / "photos" / "everything", ["crow", "lily", "rose", "wren"], "{number}.jpg", 10, 18)


FOLDERS = {"birds": "photos/birds", "garden": "photos/garden"}
