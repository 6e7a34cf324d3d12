"""Reports: one self-contained HTML page per run or study, readable without server, network and script."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from sparsemtl.errors import CheckpointError, missing_extra
from sparsemtl.storage.text_files import write_text
from sparsemtl.storage.wrong_folder import wrong_folder

if TYPE_CHECKING:
    from sparsemtl.compaction import CompactionReport
    from sparsemtl.storage.run_folder import RunFolder
    from sparsemtl.training.shrinking.result import ShrinkResult

__all__ = ["write_compaction_report", "write_report", "write_shrink_report"]


def write_compaction_report(report: CompactionReport, path: str | Path, *, title: str = "Compacted network") -> Path:
    """Write the report of a compaction as a page of HTML: cost, verification, and every layer before and after.

    Args:
        report: attribute `report` of a compacted network.
        path: the file; an old one is replaced.
        title: heading of the page, such as the name of the task.

    Returns:
        Path of the page.

    Raises:
        MissingExtraError: if matplotlib, jinja2 or pandas is not installed.

    Examples:
        >>> small = sm.compact(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
        >>> sm.report.write_compaction_report(small.report, "small.html").name
        'small.html'
    """
    _check_extra()
    from sparsemtl.report.compaction_page import compaction_page

    write_text(path, compaction_page(report, title=title))
    return Path(path)


def write_shrink_report(result: ShrinkResult, path: str | Path, *, title: str = "Small networks") -> Path:
    """Write the result of `sm.shrink` as a page of HTML: quality of every task against cost, as a picture and a table.

    Args:
        result: the result.
        path: the file; an old one is replaced.
        title: heading of the page.

    Returns:
        Path of the page.

    Raises:
        MissingExtraError: if matplotlib, jinja2 or pandas is not installed.

    Examples:
        >>> sm.report.write_shrink_report(result, "small.html")   # doctest: +SKIP
    """
    _check_extra()
    from sparsemtl.report.shrink_page import shrink_page

    write_text(path, shrink_page(result.record(), title=title))
    return Path(path)


def write_report(path: str | Path) -> Path:
    """Write `report.html` into the folder of a run or a study.

    Args:
        path: a run folder (it has a `summary.json`) or a study folder (it has a `study.json`).

    Returns:
        Path of the page.

    Raises:
        CheckpointError: if the folder is neither, the run has not ended, or a file is damaged; it names the file.
        MissingExtraError: if matplotlib, jinja2 or pandas is not installed.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise wrong_folder(folder, "a run or a study")
    _check_extra()
    from sparsemtl.storage.run_folder import RunFolder
    from sparsemtl.storage.study_folder import StudyFolder

    run, study = RunFolder(folder), StudyFolder(folder)
    if study.exists:
        from sparsemtl.report.study_page import study_page

        page = study_page(folder)
    elif run.ended:
        from sparsemtl.report.run_page import run_page

        with _damage_named(folder):
            page = run_page(folder)
    elif run.begun:
        raise CheckpointError(f"the run in {folder} {_state(run)}. Go on with `sparsemtl resume {folder}`.")
    else:
        raise wrong_folder(folder, "a run that has ended or of a study")
    write_text(run.report, page)
    return run.report


def _state(run: RunFolder) -> str:
    return run.stop.rstrip(".") or "has not ended (summary.json is missing)"


def _check_extra() -> None:
    """Raise a MissingExtraError if a package that reports need is not installed."""
    for library in ("jinja2", "matplotlib", "pandas"):  # modules of the report import these freely
        if find_spec(library) is None:
            raise missing_extra(library, "report", "A report")


@contextmanager
def _damage_named(folder: Path) -> Iterator[None]:
    """Raise a CheckpointError for errors that a damaged or edited record of a run causes."""
    from jinja2 import UndefinedError

    try:
        yield
    except (LookupError, TypeError, AttributeError, UndefinedError) as error:
        raise CheckpointError(
            f"{folder / 'summary.json'}, or a file beside it, is not as sparsemtl wrote it: {error!r}. Use another "
            "copy of the folder."
        ) from error
