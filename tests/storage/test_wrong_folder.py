"""A path that is not the expected folder is described, and folders of the expected kind below it are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsemtl.errors import CheckpointError
from sparsemtl.report import write_report
from sparsemtl.runs.check_run import check_run
from sparsemtl.runs.loaded import load_run
from sparsemtl.runs.run import resume
from sparsemtl.storage.study_folder import StudyFolder
from sparsemtl.storage.wrong_folder import wrong_folder

NEITHER = r"holds no run \(config.yaml is missing\) and no study \(study.json is missing\)"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a study of seven runs, a run outside it, an empty folder and a file."""
    monkeypatch.chdir(tmp_path)
    for name in (*(f"all/study/runs/{seed}" for seed in range(7)), "all/run", "empty"):
        Path(name).mkdir(parents=True)
        Path(name, "config.yaml").write_text("data: digits")
    Path("empty", "config.yaml").unlink()
    Path("all", "study", "study.json").write_text("{}")
    Path("file").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("path", "expected", "message"),
    [
        ("nowhere", "a run", "nowhere does not exist; expected the folder of a run."),
        ("file", "a study", "file is a file; expected the folder of a study."),
        ("all/run", "a study", "all/run is the folder of a run; expected the folder of a study."),
    ],
)
def test_what_a_path_is_and_what_was_expected_are_named(here: Path, path: str, expected: str, message: str) -> None:
    assert str(wrong_folder(Path(path), expected)) == message


@pytest.mark.parametrize(
    ("path", "expected", "folders"),
    [
        ("all/study", "a run", [f"all/study/runs/{seed}" for seed in range(5)]),
        ("all", "a run", ["all/run"]),
        ("all", "a study", ["all/study"]),
        ("all", "a run or a study", ["all/run", "all/study"]),
        ("empty", "a run", []),
    ],
)
def test_folders_of_the_expected_kind_are_named(here: Path, path: str, expected: str, folders: list[str]) -> None:
    more = " and 2 more" if path == "all/study" else ""
    below = f" Below it: {', '.join(folders)}{more}." if folders else ""
    assert str(wrong_folder(Path(path), expected)).endswith(f"; expected the folder of {expected}.{below}")


def test_every_reader_of_runs_and_studies_says_the_same(here: Path) -> None:
    for read in (load_run, resume, check_run, write_report, lambda path: StudyFolder(path).read_about()):
        for path, found in {"nowhere": "does not exist", "file": "is a file", "empty": NEITHER}.items():
            with pytest.raises(CheckpointError, match=f"^{path} {found}; expected the folder of a (run|study)"):
                read(path)  # type: ignore[operator]
    with pytest.raises(
        CheckpointError, match=r"all/study is the folder of a study; expected the folder of a run. Below"
    ):
        load_run("all/study")
