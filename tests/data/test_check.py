from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loops import each
from typer.testing import CliRunner
from vision_files import depth, lay_celeba, lay_celebamask, lay_city_arrays, lay_cityscapes, lay_nyu_arrays, save

from sparsemtl.cli import data as cli_data
from sparsemtl.data import DATASETS, TaskData
from sparsemtl.data.check import inspect, read
from sparsemtl.data.requirements import Expected, Package, required_files, requires_files, scan
from sparsemtl.errors import ConfigError
from sparsemtl.storage.yaml_text import dump_yaml

Lay = Callable[[Path], Path]
LAID: dict[str, Lay] = {
    "nyu-v2": lay_nyu_arrays,
    "cityscapes": lay_cityscapes,
    "celeba": lay_celeba,
    "celebamask-hq": lay_celebamask,
}


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli_data.app, list(arguments), catch_exceptions=False)
    return result.exit_code, result.output


def package(*files: Expected) -> Package:
    return Package("toys", files, "https://toys.example", "free", "unpack toys.zip")


def in_files() -> list[str]:
    return [name for name in DATASETS if (layout := required_files(DATASETS[name])) and layout.alternatives]


@each("name", DATASETS)
def test_every_data_set_says_which_files_it_needs(name: str) -> None:
    layout = required_files(DATASETS[name])
    assert layout is not None
    for packages in layout.alternatives:
        for part in packages:
            assert part.source.startswith("http") or "http" in part.source
            assert part.licence
            assert part.get
            assert not all(expected.optional for expected in part.files)


def test_most_data_sets_lie_in_files() -> None:
    assert {"mnist", "dkl", "multi-fashion-mnist", *LAID} <= set(in_files())


@pytest.mark.parametrize("name", in_files())
def test_what_is_not_there_is_said_with_the_way_to_get_it(name: str, tmp_path: Path) -> None:
    assert inspect(name, tmp_path).state == "absent"
    code, output = run("check", name, "--data-root", str(tmp_path))
    assert code == 1
    layout = required_files(DATASETS[name])
    assert layout is not None
    for packages in layout.alternatives:
        for part in packages:
            assert {part.title, f"  source:   {part.source}", f"  get it:   {part.get}"} <= set(output.splitlines())
            for expected in part.files:
                assert expected.patterns[0] in output


@pytest.mark.parametrize("name", LAID)
def test_what_is_there_can_be_read(name: str, tmp_path: Path) -> None:
    LAID[name](tmp_path)
    assert inspect(name, tmp_path).state == "there"
    code, output = run("check", name, "workers=0", "--data-root", str(tmp_path))
    assert code == 0, output
    assert "It can be read: " in output
    assert "not the whole data set" in output


def test_the_files_of_mnist_count_plain_or_zipped(tmp_path: Path, lay: Callable[..., object]) -> None:
    from sparsemtl.data.images.mnist import MNIST

    lay(tmp_path, MNIST)
    code, output = run("check", "mnist", "--data-root", str(tmp_path))
    assert code == 0
    assert output.count("MNIST/raw/") == 8
    assert "MISSING" not in output
    assert "36 training, 4 validation, 20 test samples of 1x28x28" in output
    assert "Tasks: digit (classification, 10)." in output
    next((tmp_path / "MNIST" / "raw").glob("t10k-labels*")).unlink()
    code, output = run("check", "mnist", "--data-root", str(tmp_path))
    assert code == 1
    assert output.count("MISSING") == 1
    assert "download: true" in output
    assert inspect("mnist", tmp_path).state == "in part"


def test_of_several_layouts_any_one_will_do(tmp_path: Path) -> None:
    lay_city_arrays(tmp_path)
    assert inspect("cityscapes", tmp_path).state == "there"
    _, output = run("check", "cityscapes", "workers=0", "--data-root", str(tmp_path))
    assert "It needs one of 2 layouts." in output
    assert "4 training, 1 validation, 2 test samples of 3x16x24" in output


def test_options_are_checked_with_the_files(tmp_path: Path) -> None:
    lay_city_arrays(tmp_path)
    code, output = run("check", "cityscapes", "classes=19", "workers=0", "--data-root", str(tmp_path))
    assert code == 1
    assert "It cannot be read." in output
    assert "label_19 is no folder" in output


def test_numbers_and_sizes_are_those_of_the_files(tmp_path: Path) -> None:
    (tmp_path / "toys").mkdir()
    for number in range(3):
        (tmp_path / "toys" / f"{number}.png").write_bytes(b"12345")
    (tmp_path / "toys" / "deep").mkdir()
    found = scan(
        package(
            Expected("images", ("toys/*.jpg", "toys/*.png"), 4),
            Expected("lists", ("toys/*.txt",), 1),
            Expected("more", ("toys/*.npy",), optional=True),
        ),
        tmp_path,
    )
    assert [(part.count, part.size, part.absent) for part in found] == [(3, 15, False), (0, 0, True), (0, 0, False)]
    assert [cli_data._state(part) for part in found] == ["3 of 4 files, 15 B", "MISSING", "missing (optional)"]


@pytest.mark.parametrize(("size", "words"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2_500_000_000, "2.5 GB")])
def test_sizes_are_put_into_words(size: int, words: str) -> None:
    assert cli_data.amount(size) == words


def test_a_data_set_that_a_package_adds_takes_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def toys(*, root: str | None = None) -> TaskData:
        """Toys."""
        raise AssertionError("nothing is there")

    monkeypatch.setitem(DATASETS._members, "toys", toys)
    assert run("check", "toys") == (0, "toys does not declare its files.\n")
    requires_files((package(Expected("bricks", ("toys/*.npy",))),))(toys)
    code, output = run("check", "toys", "--data-root", str(tmp_path))
    assert code == 1
    assert "  MISSING                 bricks: toys/*.npy" in output


def test_every_sample_can_be_read_whatever_is_wrong_with_some(tmp_path: Path) -> None:
    place = lay_nyu_arrays(tmp_path)
    (place / "val/label/0.npy").write_bytes(b"broken")
    (place / "train/image/2.npy").write_bytes(b"broken")
    metres = depth(4)
    metres[0] = np.nan
    save(place / "train/depth/4.npy", metres)
    save(place / "val/depth/1.npy", np.zeros((16, 24)))
    reading = read("nyu-v2", {"root": tmp_path, "workers": 0}, every=True)
    assert reading.samples == 9
    assert len(reading.errors) == 2
    assert {kind: count for kind, (count, _) in reading.remarks.items()} == {"depth: not finite": 1, "depth: empty": 1}
    code, output = run("check", "nyu-v2", "workers=0", "--read", "--data-root", str(tmp_path))
    assert code == 1
    assert "9 samples decoded, 2 of them damaged." in output
    assert f"{place / 'val/label/0.npy'} is not a whole" in output
    assert "1 samples: " in output


def test_a_damaged_first_image_is_a_problem_of_the_data_set(tmp_path: Path) -> None:
    place = lay_celeba(tmp_path)
    for path in place.glob("img_align_celeba/*"):
        path.write_bytes(b"broken")
    code, output = run("check", "celeba", "workers=0", "--data-root", str(tmp_path))
    assert code == 1
    assert "It cannot be read. " in output
    assert "000001.jpg is not a whole image" in output


def test_digits_need_no_files() -> None:
    code, output = run("check", "digits")
    assert code == 0
    assert "scikit-learn" in output
    assert "digits needs no files." in output


def test_a_table_of_ones_own_is_read_where_it_is_named(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    rows = [f"{i},{'xy'[i % 2]},{i % 3}" for i in range(20)]
    (tmp_path / "mine.csv").write_text("\n".join(["number,letter,kind", *rows]))
    code, output = run("check", "table", f"path={tmp_path}/mine.csv", "targets={kind: classification}")
    assert (code, "Tasks: kind (classification, 3)." in output) == (0, True)
    code, output = run("check", "table", f"path={tmp_path}/mine.csv", "targets={kint: classification}")
    assert (code, "unknown column 'kint'. Did you mean 'kind'?" in output) == (1, True)


def lay_birds(root: Path) -> None:
    for name in ("wren", "robin"):
        for number in range(6):
            save(root / f"birds/{name}/{number}.png", np.full((8, 8, 3), 40 * number + len(name), np.uint8))


@pytest.mark.parametrize(("name", "key"), [("image-folders", "tasks"), ("table", "path")])
def test_files_of_ones_own_are_not_said_to_be_none_and_must_be_named(
    name: str, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inspect(name).state == "files of your own"
    with pytest.raises(ConfigError, match=rf"`sparsemtl data check {name}` is not valid:\n  data\.{key}: .* required"):
        cli_data.check(name)
    output = capsys.readouterr().out
    assert "of your own" in output
    assert "needs no files" not in output


def test_folders_of_ones_own_are_named_by_dotted_keys(tmp_path: Path) -> None:
    lay_birds(tmp_path)
    code, output = run(
        "check", "image-folders", "tasks.mine=birds", "size=8", "workers=0", "--data-root", str(tmp_path)
    )
    assert (code, "Tasks: mine (classification, 2)." in output) == (0, True), output
    code, output = run("check", "image-folders", f"tasks.mine={tmp_path}/bird")
    assert (code, "It cannot be read. " in output, "needs no files" in output) == (1, True, False)


def configuration(folder: Path, **changes: Any) -> Path:
    data = {"name": "image-folders", "root": str(folder), "tasks": {"mine": "birds"}, "size": 8, "workers": 0}
    path = folder / "mine.yaml"
    path.write_text(dump_yaml({"data": data, **changes}), encoding="utf-8")
    return path


def test_the_data_of_a_run_and_of_the_run_before_are_checked(tmp_path: Path) -> None:
    lay_birds(tmp_path)
    before = {"tasks": ["digit"], "data": {"name": "digits"}}
    code, output = run("check", str(configuration(tmp_path, pretraining=before)))
    assert code == 0, output
    mine, digits = output.split("\npretraining.data:\n")
    assert mine.startswith("data:\nimage-folders: ")
    assert "Tasks: mine (classification, 2)." in mine
    assert "digits needs no files." in digits
    assert "It can be read: " in digits


def test_data_that_two_runs_have_in_common_are_checked_once(tmp_path: Path) -> None:
    lay_birds(tmp_path)
    path = configuration(tmp_path, pretraining={"tasks": ["mine"], "seed": 3})
    assert list(cli_data._sections_in(path, [])) == ["data"]
    assert list(cli_data._sections_in(path, ["pretraining.data.size=16"])) == ["data", "pretraining.data"]


def test_the_file_of_a_run_is_changed_as_by_run(tmp_path: Path) -> None:
    lay_birds(tmp_path)
    code, output = run("check", str(configuration(tmp_path)), "data.tasks.other=nowhere")
    assert (code, "nowhere is no folder" in output) == (1, True)
    with pytest.raises(ConfigError, match=r"mine\.yaml is not valid:\n  data\.sise \(command line\): unknown"):
        run("check", str(configuration(tmp_path)), "data.sise=8")
    with pytest.raises(ConfigError, match=r"absent\.yaml"):
        run("check", str(tmp_path / "absent.yaml"))


def test_different_data_of_the_runs_of_a_study_are_checked_whatever_its_seeds(tmp_path: Path) -> None:
    lay_birds(tmp_path)
    base = {"data": {"name": "image-folders", "tasks": {"mine": "birds"}, "workers": 0, "size": 8}}
    source = {"name": "digits", "task": "digit"}
    drawn = {"name": "label-subsets", "source": source, "classes": 3, "overlap": 1, "test_per_class": 2, "seed": None}
    methods = {"one": {}, "other": {"data": drawn}, "third": {"data": {"tasks": {"mine": "bird"}}}}
    path = tmp_path / "study.yaml"
    path.write_text(dump_yaml({"base": base, "methods": methods, "seeds": [5, 6]}), encoding="utf-8")
    sections = cli_data._sections_in(path, [])
    assert list(sections) == ["one_seed-5: data", "other_seed-5: data", "third_seed-5: data"]
    assert sections["other_seed-5: data"]["seed"] == 5
    code, output = run("check", str(path), "--data-root", str(tmp_path))
    assert code == 1
    assert output.count("It can be read: ") == 2
    assert output.count("It cannot be read. ") == 1


@pytest.mark.parametrize("columns", ["40", "80", "200"])
def test_the_list_shows_what_is_there(tmp_path: Path, columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    lay_celeba(tmp_path)
    (tmp_path / "nyuv2/train/image").mkdir(parents=True)
    code, output = run("list", "--data-root", str(tmp_path))
    assert code == 0
    states = {line.split()[0]: line for line in output.splitlines() if line.strip()}
    assert set(DATASETS) < set(states)
    assert "there" in states["celeba"]
    assert "kB" in states["celeba"]
    assert "absent" in states["mnist"]
    assert "needs" in states["digits"]


def test_an_unknown_name_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown data set 'nyu'"):
        inspect("nyu", tmp_path)
