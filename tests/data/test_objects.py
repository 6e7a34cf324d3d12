"""The data sets of objects, tiny, in their official layouts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from object_files import DARKEST, OBJECTS, lay_caltech_101, lay_classes, lay_tiny_imagenet
from typer.testing import CliRunner

from sparsemtl.cli import data as cli_data
from sparsemtl.data import DATASETS, LazySplit, TaskData
from sparsemtl.data.base import Samples
from sparsemtl.data.check import inspect
from sparsemtl.errors import DataError, ParameterError
from sparsemtl.tasks import Classification

PARTS = ("train", "validation", "test")
OFFICES = ("office-31", "office-caltech", "office-home")
every_data_set = pytest.mark.parametrize("name", OBJECTS)


def build(name: str, root: Path, **options: Any) -> TaskData:
    return DATASETS.build(name, root=root, **{"workers": 0, "size": 4, **options})


@pytest.fixture(scope="module")
def laid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("objects")
    for lay in OBJECTS.values():
        lay(root)
    return root


def samples(data: TaskData, part: str, task: str) -> LazySplit:
    found: Mapping[str, Samples] | Samples = getattr(data, part)
    split = found[task] if isinstance(found, Mapping) else found
    assert isinstance(split, LazySplit)
    return split


def classes(data: TaskData, task: str) -> list[str]:
    (found,) = (one for one in data.tasks if one.name == task)
    assert isinstance(found, Classification)
    return found.class_names


def brightness(data: TaskData, part: str, task: str) -> list[tuple[str, int]]:
    """Class and brightness of every image."""
    split = samples(data, part, task).load()
    values = (255 * split.x[:, 0, 1, 1]).round().int().tolist()
    return [(classes(data, task)[c], v) for c, v in zip(split.targets[task].tolist(), values, strict=True)]


@every_data_set
def test_what_is_there_can_be_read_and_checked(name: str, laid: Path) -> None:
    assert inspect(name, laid).state == "there"
    arguments = ["check", name, "workers=0", "size=4", "cache=false", "--data-root", str(laid), "--read"]
    result = CliRunner().invoke(cli_data.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "It can be read: " in result.output
    assert "samples decoded, 0 of them damaged" in result.output
    assert "not the whole data set" in result.output


@every_data_set
def test_a_damaged_image_is_named_by_the_check(name: str, tmp_path: Path) -> None:
    OBJECTS[name](tmp_path)
    trained = build(name, tmp_path).train
    split = next(iter(trained.values())) if isinstance(trained, Mapping) else trained
    assert isinstance(split, LazySplit)
    path = Path(split.source.where(int(split.rows[-1])))
    path.write_bytes(path.read_bytes()[:99])
    arguments = ["check", name, "workers=0", "size=4", "--data-root", str(tmp_path), "--read"]
    result = CliRunner().invoke(cli_data.app, arguments, catch_exceptions=False)
    assert result.exit_code == 1
    assert f"{path} is not a whole image" in result.output.replace("\n", "")
    notes = build(name, tmp_path, skip_broken=True).notes
    assert any("1 of " in note and str(path) in note for note in notes)


@every_data_set
def test_what_is_absent_is_said_with_the_way_to_get_it(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{name}: .* lacks .*`sparsemtl data check {name}` says how to get it"):
        build(name, tmp_path)


@every_data_set
def test_every_image_belongs_to_one_part_and_to_its_own_class(name: str, laid: Path) -> None:
    data = build(name, laid)
    for task in data.tasks:
        rows = [int(row) for part in PARTS for row in samples(data, part, task.name).rows]
        assert sorted(rows) == list(range(len(samples(data, "train", task.name).source)))
        for part in PARTS:
            split = samples(data, part, task.name)
            names = [classes(data, task.name)[label] for label in split.load().targets[task.name].tolist()]
            assert names == [named(name, Path(split.source.where(int(row)))) for row in split.rows]


def named(name: str, path: Path) -> str:
    """The class of an image, read from its path."""
    folder = path.parent.name
    if name == "tiny-imagenet":
        return str(tiny_name(path))
    others = {"041.coffee-mug": "mug", "224.touring-bike": "bike", "backpack": "back_pack"}
    return others.get(folder, folder.partition(".")[2] or folder)


def tiny_name(path: Path) -> str:
    lines = (path.parents[2] / "val" / "val_annotations.txt") if "val" in path.parts else None
    wnid = (
        path.parents[1].name
        if lines is None
        else next(line.split("\t")[1] for line in lines.read_text().splitlines() if line.startswith(path.name))
    )
    return {"n01443537": "goldfish", "n02124075": "Egyptian cat"}.get(wnid, wnid)


@pytest.mark.parametrize(
    ("name", "domains", "kinds"),
    [
        ("office-31", ["amazon", "dslr", "webcam"], ["back_pack", "bike", "mug"]),
        ("office-caltech", ["amazon", "caltech", "dslr", "webcam"], ["back_pack", "bike", "mug"]),
        ("office-home", ["art", "clipart", "product", "real-world"], ["Alarm_Clock", "Backpack", "Mug"]),
    ],
)
def test_every_domain_is_a_task_of_the_same_classes(
    name: str, domains: list[str], kinds: list[str], laid: Path
) -> None:
    data = build(name, laid)
    assert [task.name for task in data.tasks] == domains
    assert all(classes(data, domain) == kinds for domain in domains)


@pytest.mark.parametrize("name", OFFICES)
def test_domains_and_classes_can_be_chosen(name: str, laid: Path) -> None:
    everything = build(name, laid)
    first, last = everything.tasks[0].name, everything.tasks[-1].name
    one, two, three = classes(everything, first)
    data = build(name, laid, domains=[last, first], classes=[three, one])
    assert [task.name for task in data.tasks] == [last, first]
    assert [classes(data, domain) for domain in (last, first)] == [[three, one]] * 2
    apart = build(name, laid, domains=[first, last], classes={first: [one, two]})
    assert [classes(apart, domain) for domain in (first, last)] == [[one, two], [one, two, three]]


@pytest.mark.parametrize("name", OFFICES)
def test_a_domain_or_class_that_is_not_there_is_refused_with_the_nearest(name: str, laid: Path) -> None:
    first, last = (build(name, laid).tasks[place].name for place in (0, -1))
    for options in ({"domains": [first + "s"]}, {"classes": {first + "s": ["a", "b"]}}):
        with pytest.raises(ParameterError, match=f"unknown domain '{first}s'. Did you mean '{first}'"):
            build(name, laid, **options)
    for asked in ([], [last, last]):
        with pytest.raises(ParameterError, match="`domains` names one or more of them, each once"):
            build(name, laid, domains=asked)
    with pytest.raises(ParameterError, match=f"{name}, {first}: unknown class 'mugs'. Did you mean '[mM]ug'"):
        build(name, laid, classes=["mugs", "bike"])
    with pytest.raises(ParameterError, match=r"class '[mM]ug' is named twice"):
        build(name, laid, classes=[classes(build(name, laid), first)[-1]] * 2)


def test_only_the_domains_that_are_asked_for_must_be_there(tmp_path: Path) -> None:
    lay_classes(tmp_path / "office31" / "webcam", ["bike", "mug"], "frame_{number:04}.jpg")  # without `images`
    assert [task.name for task in build("office-31", tmp_path, domains=["webcam"]).tasks] == ["webcam"]
    with pytest.raises(DataError, match=r"office31 lacks amazon/images or amazon, dslr/images or dslr\."):
        build("office-31", tmp_path)


def test_office_caltech_passes_over_what_else_office_31_has(tmp_path: Path) -> None:
    place = tmp_path / "office_caltech_10"
    lay_classes(place / "amazon" / "images", ["bike", "mug", "phone", "stapler"], "frame_{number:04}.jpg")
    lay_classes(place / "webcam", ["bike", "bottle", "mug"], "frame_{number:04}.jpg")
    data = build("office-caltech", tmp_path, domains=["amazon", "webcam"])
    assert [classes(data, domain) for domain in ("amazon", "webcam")] == [["bike", "mug"]] * 2
    assert data.notes[-1].startswith("not the whole data set: 16 images of amazon (officially 958)")
    with pytest.raises(ParameterError, match="office-caltech, amazon: unknown class 'phone'"):
        build("office-caltech", tmp_path, domains=["amazon"], classes=["bike", "phone"])
    lay_classes(place / "dslr", ["photos", "phone"], "frame_{number:04}.jpg")
    with pytest.raises(DataError, match=r"none of the folders of .*dslr is a class \(phone, photos\)\. The cl"):
        build("office-caltech", tmp_path, domains=["dslr"])


def test_how_many_images_there_should_be_is_noted_for_every_domain(laid: Path) -> None:
    notes = build("office-31", laid, domains=["dslr", "amazon"]).notes
    assert notes[-1] == (
        "not the whole data set: 24 images of dslr (officially 498), 24 images of amazon (officially 2,817)"
    )


@pytest.mark.parametrize(
    ("name", "plain", "clutter"),
    [
        ("caltech-101", ["Faces", "accordion", "yin_yang"], "BACKGROUND_Google"),
        ("caltech-256", ["ak47", "dog"], "clutter"),
    ],
)
def test_clutter_is_a_class_only_if_asked_for(name: str, plain: list[str], clutter: str, laid: Path) -> None:
    data, whole = build(name, laid), build(name, laid, clutter=True)
    assert classes(data, "object") == plain
    assert sorted(classes(whole, "object")) == sorted([*plain, clutter])
    assert (
        data.notes[-1] == whole.notes[-1] == f"not the whole data set: {8 * len(plain)} images (officially {OF[name]})"
    )
    assert not data.heterogeneous
    assert classes(build(name, laid, classes=plain[::-1][:2]), "object") == plain[::-1][:2]
    with pytest.raises(ParameterError, match="unknown class"):
        build(name, laid, classes=[*plain, clutter])


OF = {"caltech-101": "8,677", "caltech-256": "29,780"}


def test_torchvisions_folder_of_caltech_101_will_do(tmp_path: Path) -> None:
    lay_caltech_101(tmp_path)
    (tmp_path / "caltech-101").rename(tmp_path / "caltech101")
    assert len(classes(build("caltech-101", tmp_path), "object")) == 3


def test_tiny_imagenets_validation_images_are_the_test_images(laid: Path) -> None:
    data = build("tiny-imagenet", laid, validation=0.2, seed=5)
    assert classes(data, "object") == ["goldfish", "Egyptian cat", "n03126707", "n02012849"]
    near = Counter((name, round((value - DARKEST) / 20)) for name, value in brightness(data, "test", "object"))
    assert near == {(name, place): 2 for place, name in enumerate(classes(data, "object"))}
    assert len(samples(data, "validation", "object")) == 8
    assert len(samples(data, "train", "object")) == 32
    assert data.notes[0].startswith("validation: 20 % of the training images of every class at random (seed 5); test")


def test_tiny_imagenets_classes_can_be_chosen(laid: Path) -> None:
    data = build("tiny-imagenet", laid, classes=["Egyptian cat", "goldfish"])
    assert classes(data, "object") == ["Egyptian cat", "goldfish"]
    assert {name for name, _ in brightness(data, "test", "object")} == {"Egyptian cat", "goldfish"}
    with pytest.raises(ParameterError, match="tiny-imagenet: unknown class 'crane'"):
        build("tiny-imagenet", laid, classes=["goldfish", "crane"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("val_0.JPEG\tn09999999\t0\t0\t1\t1", r"line 9: .* names a class that is not in wnids.txt"),
        ("val_99.JPEG\tn01443537\t0\t0\t1\t1", r"line 9: .* names an image that is not there"),
        ("nonsense", r"line 9: 'nonsense' names a class that is not in"),
    ],
)
def test_annotations_that_do_not_fit_are_refused_with_their_line(tmp_path: Path, line: str, message: str) -> None:
    lay_tiny_imagenet(tmp_path)
    path = tmp_path / "tiny-imagenet-200" / "val" / "val_annotations.txt"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DataError, match=message):
        build("tiny-imagenet", tmp_path)


def test_tasks_can_be_cut_out_of_folders_of_objects(laid: Path) -> None:
    common = {"size": 4, "workers": 0}
    data = DATASETS.build(
        "label-subsets",
        root=laid,
        source=[
            {"name": "caltech-101", "split": [0.6, 0.2, 0.2], **common},
            {"name": "office-home", "task": "art", "split": [0.6, 0.2, 0.2], **common},
        ],
        tasks={"mixed": ["office-home/Mug", "caltech-101/Faces"]},
        samples_per_class=2,
        validation_per_class=None,
    )
    for part in PARTS:
        tens = {(name, (value - DARKEST) // 10) for name, value in brightness(data, part, "mixed")}
        assert tens <= {("office-home/Mug", 2), ("caltech-101/Faces", 1)}
    assert len(brightness(data, "train", "mixed")) == 4
    assert len(classes(data, "auxiliary")) == 6


@every_data_set
def test_a_seed_decides_the_parts(name: str, laid: Path) -> None:
    first, again, other = (build(name, laid, seed=seed) for seed in (0, 0, 3))
    for task in first.tasks:
        assert torch.equal(samples(first, "train", task.name).rows, samples(again, "train", task.name).rows)
    assert any(
        not torch.equal(samples(first, "train", task.name).rows, samples(other, "train", task.name).rows)
        for task in first.tasks
    )
    assert any("seed 3" in note for note in other.notes)
