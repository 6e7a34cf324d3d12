"""Record of a run that stopped before its end: the cause in `summary.json`, the traceback in `error.log`."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsemtl.errors import OUT_OF_MEMORY, SparseMTLError, memory_used_up
from sparsemtl.storage.run_folder import STOPPED, RunFolder
from sparsemtl.storage.text_files import read_json, write_json, write_text

_LONGEST = 1_000_000
"""Characters of a traceback that are kept, of its end."""
_NOT_OWN = tuple(
    Path(path).resolve()
    for path in (
        str(Path(__file__).parent.parent),
        *(str(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib", "scripts")),
    )
)
"""Folders of sparsemtl, Python and installed packages: code outside of them is the user's."""
_FILE = "_sparsemtl_error_log"
"""Attribute of an error of any class, which goes with it from one process to another."""


@dataclass(frozen=True)
class Cause:
    """Cause of a stop in a user's terms.

    Attributes:
        kind: name of the error's class.
        message: the error's text, with advice if memory is used up.
        place: file, line and function of the user's own code that raised it; "" if none did.
    """

    kind: str
    message: str
    place: str

    @classmethod
    def of(cls, error: BaseException) -> Cause:
        """Return the cause that an error stands for."""
        return cls(type(error).__name__, _message(error), _own_place(error))

    def __str__(self) -> str:
        text = f"{self.kind}: {self.message}" if self.message else self.kind
        return f"{text}\nIt was raised in {self.place}." if self.place else text


@contextmanager
def recorded_stop(folder: RunFolder) -> Iterator[None]:
    """Record in a run folder why the run inside the context stopped; the caller holds the folder's lock.

    After an error or an interruption `summary.json` has the status `failed` or `interrupted` and the cause, and
    `error.log` the traceback of the error, which `traceback_file` finds. Before training has begun, or gone on, an
    interruption or an error of ours leaves no record: a mistake in a configuration leaves the folder as it was. The
    summary of a finished run never changes.

    Args:
        folder: the run folder.
    """
    before = _trainings(folder)
    try:
        yield
    except KeyboardInterrupt as stop:
        if _trainings(folder) != before:
            _record(folder, {"status": "interrupted", "signal": str(stop) or "SIGINT"})
        raise
    except Exception as error:
        if _trainings(folder) != before or not isinstance(error, SparseMTLError):
            with suppress(OSError):
                write_text(folder.error_log, "".join(traceback.format_exception(error))[-_LONGEST:])
                setattr(error, _FILE, folder.error_log)
            cause = Cause.of(error)
            shown = {"type": cause.kind, "message": cause.message, "place": cause.place}
            _record(folder, {"status": "failed", "error": shown})
        raise


def traceback_file(error: BaseException) -> Path | None:
    """Return the `error.log` that `recorded_stop` wrote for an error, in this process or another one; None without."""
    return getattr(error, _FILE, None)


def remove_stop(folder: RunFolder) -> None:
    """Remove the record of an earlier stop, as the run goes on; results of training stay in the summary."""
    folder.error_log.unlink(missing_ok=True)
    summary = _summary(folder)
    if summary.get("status") not in STOPPED:
        return
    if "tasks" in summary:
        results = {key: value for key, value in summary.items() if key not in ("signal", "error")}
        write_json(folder.summary, {**results, "status": "trained"})
    else:
        folder.summary.unlink()


def _trainings(folder: RunFolder) -> dict[Path, tuple[int, int]]:
    """Return files that are written whenever a training begins or goes on, of the run or of one inside its folder."""
    files = {path: path.stat() for path in folder.path.rglob(folder.environment.name)}
    return {path: (stat.st_ino, stat.st_mtime_ns) for path, stat in files.items()}


def _record(folder: RunFolder, stop: dict[str, Any]) -> None:
    """Write a stop into the summary, beside the results of training if they are there."""
    summary = _summary(folder)
    if summary.get("status") != "finished":
        with suppress(OSError):  # the disk may be full: the error that stopped the run is worth more
            write_json(folder.summary, {"name": folder.path.name, **summary, **stop})


def _summary(folder: RunFolder) -> dict[str, Any]:
    """Return the summary; an empty one if there is none or it is damaged."""
    with suppress(ValueError, OSError):
        if isinstance(summary := read_json(folder.summary), dict):
            return summary
    return {}


def _message(error: BaseException) -> str:
    text = str(error).strip()
    if isinstance(error, KeyError):
        text = f"{text} is missing"
    if isinstance(error, SparseMTLError) or not memory_used_up(error):
        return text
    first = text.split("\n")[0].rstrip(".")
    return f"{first}. {OUT_OF_MEMORY}" if first else OUT_OF_MEMORY


def _own_place(error: BaseException) -> str:
    """Return the place in the user's own code that is nearest to where an error, or its cause, was raised."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None and cause not in chain:
        chain.append(cause)
    for each in reversed(chain):
        for frame in reversed(traceback.extract_tb(each.__traceback__)):
            path = Path(frame.filename)
            if path.is_file() and not any(path.resolve().is_relative_to(folder) for folder in _NOT_OWN):
                return f"{frame.filename}, line {frame.lineno}, in {frame.name}"
    return ""
