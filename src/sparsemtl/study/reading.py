"""Results of one study or of several, read from their folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sparsemtl.errors import ParameterError
from sparsemtl.storage.study_folder import StudyFolder
from sparsemtl.study.results import StudyResults, best_settings, read_results


def read_studies(folders: Sequence[StudyFolder], baseline: str | None = None) -> StudyResults:
    """Read the results of studies; arguments as those of `StudyResults.read`."""
    if not folders:
        raise ParameterError("`StudyResults.read` needs a study folder, such as runs/digits-study.")
    studies: dict[str, StudyResults] = {}
    for folder in folders:
        name = str(folder.read_about()["name"])
        if name in studies:
            raise ParameterError(
                f"{folder.path} and {studies[name].folders[0]} are both called {name!r}. Studies that are compared "
                "need names of their own; `name` in study.json sets it."
            )
        studies[name] = study_results(folder)
    if baseline is not None:
        known = list(dict.fromkeys(m for study in studies.values() for m in study.settings["method"]))
        if baseline not in known:
            raise ParameterError(f"no study has a method {baseline!r} to compare with. Known: {', '.join(known)}.")
        studies = {name: replace(study, baseline=baseline) for name, study in studies.items()}
    return next(iter(studies.values())) if len(studies) == 1 else _joined(studies)


def study_results(folder: StudyFolder) -> StudyResults:
    """Read the results of a study's finished runs, with methods and baseline as `study.json` has them.

    Raises:
        CheckpointError: if `study.json` or `results.csv` is missing, or a file is damaged.
    """
    about, frame = folder.read_about(), read_results(folder.results)
    runs = [run for name in frame["run"].unique() if (run := folder.run(str(name))).ended] if "run" in frame else []
    primary = {task: entry["primary"] for run in runs for task, entry in run.read_summary()["tasks"].items()}
    results = StudyResults.of(
        frame,
        baseline=about.get("baseline"),
        methods=about.get("methods", ()),
        primary=primary,
        tuned=about.get("tune", ()),
    )
    return replace(results, folders=(folder.path,), objectives=tuple(about.get("objectives", ())))


def _joined(studies: dict[str, StudyResults]) -> StudyResults:
    """Return the results of several studies as those of one, with one setting per method."""
    import pandas as pd

    baselines = {study.baseline for study in studies.values()}
    if len(baselines) > 1:
        raise ParameterError(
            f"the studies have different baselines: {', '.join(map(str, baselines))}. Name the one to compare with: "
            "`baseline=`, on the command line --baseline."
        )
    parts: list[pd.DataFrame] = []
    primary: dict[str, str] = {}
    for name, study in studies.items():
        best = best_settings(study)
        rows = best.frame[best.frame["task"] != ""].drop(columns=[*best.grid, "setting"])  # costs do not compare
        parts.append(rows.assign(run=f"{name}/" + rows["run"], task=f"{name}: " + rows["task"]))
        primary |= {f"{name}: {task}": metric for task, metric in best.primary.items()}
    methods = [method for study in studies.values() for method in study.settings["method"]]
    whole = StudyResults.of(
        pd.concat(parts, ignore_index=True), baseline=baselines.pop(), methods=methods, primary=primary
    )
    return replace(whole, folders=tuple(path for study in studies.values() for path in study.folders))
