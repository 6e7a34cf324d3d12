"""A finished study whose command is given again: its printed table, without the libraries that check and train.

When all runs of a study have ended, the command keeps its table in the study folder, with the digests of what the
table depends on: the command, the code, and the records of the study. The same command prints the table again if all
digests are the same and nothing is left to do; otherwise it checks the study and runs it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import entry_points
from pathlib import Path

from sparsemtl._version import __version__
from sparsemtl.cli.study_table import PrintedTable
from sparsemtl.errors import SparseMTLError
from sparsemtl.registry.plugins import GROUP
from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.storage.study_folder import StudyFolder
from sparsemtl.storage.text_files import json_text, read_json, write_text
from sparsemtl.storage.yaml_text import read_yaml
from sparsemtl.study.shown import digest, read_record

_RECORD = ".finished.json"


def command_digest(file: Path, overrides: Sequence[str], plugins: Sequence[str]) -> str | None:
    """Return the digest of a command and of the code that runs it; None if plugins may be loaded, or the file is wrong.

    Args:
        file: the study file; the file that its `base` names counts as well.
        overrides: changes of the file.
        plugins: plugins of the command line.
    """
    try:
        content = [file.read_bytes()]
        if isinstance(base := read_yaml(file).get("base"), str):
            content.append((file.parent / base).read_bytes())
    except (OSError, SparseMTLError):
        return None  # the study's own check names the mistake
    content += [text.encode() for text in overrides]
    if plugins or any(b"plugins" in part for part in content) or entry_points(group=GROUP):
        return None
    parts = [__version__, *_code(), *(hashlib.sha256(part).hexdigest() for part in content)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _code() -> list[str]:
    """Return name, time and size of the package's files: in a checkout they change while the version stays."""
    package = Path(__file__).parents[1]
    files = ((path, path.stat()) for path in sorted(package.rglob("*.py")))
    return [f"{path.relative_to(package)} {state.st_mtime_ns} {state.st_size}" for path, state in files]


def keep(folder: StudyFolder, command: str | None, runs: Sequence[str], table: PrintedTable) -> None:
    """Keep the table of a study whose runs have all ended.

    Args:
        folder: the study folder.
        command: `command_digest`; None keeps nothing.
        runs: names of all runs.
        table: the table.
    """
    if command is None:
        return
    path = folder.path / _RECORD
    text = json_text({"command": command, "records": digest(folder), "runs": list(runs), "table": asdict(table)})
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)


def recall(folder: StudyFolder, command: str | None, *, run_reports: bool) -> tuple[int, PrintedTable] | None:
    """Return the number of runs and the table of a finished study; None if anything has changed or is left to do.

    Args:
        folder: the study folder.
        command: `command_digest` of the present command.
        run_reports: runs have reports as well.
    """
    if command is None or not (path := folder.path / _RECORD).is_file():
        return None
    try:
        known = read_json(path)
        if known["command"] != command or known["records"] != digest(folder):
            return None
        if read_record(folder) != {"tables": known["records"], "report": known["records"]}:
            return None
        made = [folder.tables, folder.table_figures, folder.report]
        runs = [folder.run(name) for name in known["runs"]]
        ended = [*runs, *map(RunFolder, folder.pretraining.glob("*"))]
        if run_reports:
            made += [run.report for run in ended]
        complete = all(run.finished for run in ended) and all(file.is_file() for file in made)
        return (len(runs), PrintedTable(**known["table"])) if complete else None
    except (KeyError, TypeError, OSError, SparseMTLError):
        return None  # a damaged record: the study is checked as a whole
