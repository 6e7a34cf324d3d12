"""Files of a study beside its runs: its record, the tables and the report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sparsemtl.runs.run import Finished
from sparsemtl.storage.study_folder import StudyFolder
from sparsemtl.storage.text_files import write_json, write_text
from sparsemtl.storage.yaml_text import dump_yaml
from sparsemtl.study.costs import cost_table, with_costs
from sparsemtl.study.evidence import weak_points
from sparsemtl.study.grid import Study
from sparsemtl.study.reading import study_results
from sparsemtl.study.results import tuned_settings
from sparsemtl.study.shown import RECORD, digest, read_record
from sparsemtl.study.summary import weak_text
from sparsemtl.study.tables import metric_tables, primary_table, to_csv, to_markdown


def write_record(study: Study, folder: StudyFolder) -> None:
    """Write the configuration of a study, and what its tables need to know of it."""
    write_if_changed(folder.config, dump_yaml(study.source))
    about = {
        "name": study.name,
        "baseline": study.baseline,
        "methods": list(study.methods),
        "grid": list(study.grid),
        "notes": list(study.notes),
        **({"tune": list(study.tune)} if study.tune else {}),
        **({"objectives": list(study.search.objectives)} if study.search is not None and study.arms else {}),
    }
    if not folder.exists or folder.read_about() != about:
        write_json(folder.about, about)


def update_outputs(folder: StudyFolder, finished: Finished | None) -> None:
    """Write the tables and draw the study's report, unless they are there and nothing that they show has changed.

    Args:
        folder: the study folder, with results.
        finished: draws a report into a folder; None for no report.
    """
    shown, before = digest(folder), read_record(folder)
    if before.get("tables") != shown or not (folder.tables.is_file() and folder.table_figures.is_file()):
        _write_tables(folder)
    drawn = before.get("report")
    if finished is not None and (drawn != shown or not folder.report.is_file()):
        finished(folder.path)
        drawn = shown
    if before != (now := {"tables": shown, "report": drawn}):
        write_json(folder.path / RECORD, now)


def _write_tables(folder: StudyFolder) -> None:
    whole = study_results(folder)
    results = tuned_settings(whole)
    tables = [with_costs(primary_table(results), results), *metric_tables(results).values()]
    if (costs := cost_table(results)) is not None:
        tables.append(costs)
    sections = [f"## {table.title}\n\n{to_markdown(table)}" for table in tables]
    weak = [f"{weak_text(points)}\n"] if (points := weak_points(whole)) else []
    failed = [f"## runs without a result\n\n{_listed(failures)}"] if (failures := folder.read_failures()) else []
    write_text(folder.tables, "\n".join([f"# {folder.read_about()['name']}\n", *weak, *sections, *failed]))
    write_text(folder.table_figures, to_csv(tables))


def _listed(failures: Mapping[str, str]) -> str:
    return "".join(f"- {name}: {reason}\n" for name, reason in failures.items())


def write_if_changed(path: Path, text: str) -> None:
    """Write a text file unless it holds this text."""
    if not path.is_file() or path.read_bytes() != text.encode():
        write_text(path, text)
