"""Search of values with Optuna: rounds of settings per method, until each method has its number of trials.

All that the sampler and the pruner read are the results of earlier rounds, and every trial has a sampler with a seed of
its own: a search is the same with any number of jobs, on any engine, and after an interruption.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from sparsemtl.errors import ConfigError, TrainingError
from sparsemtl.runs.spec import RunSpec
from sparsemtl.runs.validation import completed
from sparsemtl.storage.comparison import differences, plain
from sparsemtl.storage.study_folder import StudyFolder
from sparsemtl.study.grid import Study
from sparsemtl.study.objectives import Objective, primary_values, read_objectives
from sparsemtl.study.optuna_parts import distribution, import_optuna, pruner, quiet_optuna, sampler
from sparsemtl.study.pruning import PRUNED, Pruning, epoch_scores
from sparsemtl.study.results import StudyResults, best_settings, per_seed, read_results
from sparsemtl.study.rows import results_text
from sparsemtl.study.search_options import DELTA_M, Arm
from sparsemtl.study.study_runs import StudyRun, corner_runs, trial_runs, value_text
from sparsemtl.training.callbacks import Callback
from sparsemtl.training.settings import FREE

_Execute = Callable[[Sequence[StudyRun], Mapping[str, Callback], str], dict[str, str]]
"""Runs what is not finished; arguments are runs, callbacks by name of the run, and what is run. Returns failures."""
_Reference = Mapping[int, Mapping[str, float]]
"""Seed -> task -> primary metric on validation data."""
_REASON, _DESCRIPTION = "reason", "description"
"""Attributes of a trial, and of a study of Optuna."""


@dataclass
class _SearchOutcome:
    """Outcome of a search.

    Attributes:
        runs: runs of all trials, in order, without repetitions.
        missing: name -> reason of every run without a result.
        failures: label -> reason of every method, at a value of the grid, of which no setting has a result.
    """

    runs: list[StudyRun] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def check_search(study: Study) -> None:
    """Raise mistakes of a search before anything is run.

    Raises:
        ConfigError: if an objective is unknown.
        MissingExtraError: if Optuna is not installed.
    """
    if study.arms:
        import_optuna()
        _objectives(study)


def run_search(study: Study, folder: StudyFolder, execute: _Execute, say: Callable[[str], None]) -> _SearchOutcome:
    """Search the values of all methods, those of the baseline first.

    Args:
        study: the study.
        folder: its folder, which holds the trials: a search that was interrupted is resumed.
        execute: runs runs.
        say: prints a line.

    Raises:
        ConfigError: if the folder holds another search.
        TrainingError: if changes are measured against a baseline without a result.
    """
    outcome, objectives = _SearchOutcome(), _objectives(study)
    relative = any(objective.relative for objective in objectives)
    with quiet_optuna() as optuna:
        backend = optuna.storages.journal.JournalFileBackend(str(folder.search))
        storage = optuna.storages.JournalStorage(backend)
        own = [arm for arm in study.arms if arm.method == study.baseline]
        tuned = [_ArmSearch(study, arm, objectives, folder, storage) for arm in own]
        _search(tuned, execute, say)
        reference = _baseline(study, folder, tuned) if relative and study.baseline is not None else None
        others = [
            _ArmSearch(study, arm, objectives, folder, storage, reference) for arm in study.arms if arm not in own
        ]
        _search(others, execute, say)
        for search in (*tuned, *others):
            search.add_to(outcome)
    return outcome


def _search(searches: Sequence[_ArmSearch], execute: _Execute, say: Callable[[str], None]) -> None:
    """Run rounds of trials of several methods at once, until all have their number of trials."""
    if not searches:
        return
    options = searches[0].options
    for first in range(0, options.trials, options.at_once):
        last = min(first + options.at_once, options.trials)
        trials = [(search, trial) for search in searches for trial in search.chosen(first, last)]
        if not trials:
            continue
        what = f"settings {first + 1} to {last} of {options.trials}"
        probes: dict[str, Callback] = {}
        for search, trial in trials:
            probes |= search.pruning(trial, first)
        runs = [search.runs(trial) for search, trial in trials]
        lead = 1 if probes else len(runs[0])  # what may be pruned is tried in one seed first
        failures = execute([run for own in runs for run in own[:lead]], probes, what)
        rest = [run for own in runs if own[0].name not in failures for run in own[lead:]]
        failures |= execute(rest, {}, f"{what}, other seeds") if rest else {}
        for (search, trial), own in zip(trials, runs, strict=True):
            say(search.tell(trial, own, failures))


class _ArmSearch:
    """Search of one method at a value of the grid: a study of Optuna.

    Args:
        study: the study.
        arm: the method, at a value of the grid.
        objectives: the objectives.
        folder: the study folder.
        storage: storage of Optuna.
        reference: values that changes are measured against; None for those of the first setting with a result.

    Raises:
        ConfigError: if the storage holds another search of this name.
    """

    def __init__(
        self,
        study: Study,
        arm: Arm,
        objectives: Sequence[Objective],
        folder: StudyFolder,
        storage: Any,
        reference: _Reference | None = None,
    ) -> None:
        assert study.search is not None
        self.options = study.search
        self.arm, self._objectives, self._folder, self._storage = arm, objectives, folder, storage
        self._seeds, self._reference = study.seeds, reference
        self._pruner = pruner(self.options.pruner, max(run.config["training"]["epochs"] for run in corner_runs(arm)))
        directions = ["maximize" if objective.maximize else "minimize" for objective in objectives]
        self._trials = import_optuna().create_study(
            study_name=arm.label, storage=storage, directions=directions, pruner=self._pruner, load_if_exists=True
        )
        self._check_same(study)
        if reference is None:
            done = next((trial for trial in self._trials.trials if trial.state.name == "COMPLETE"), None)
            self._reference = None if done is None else self._values(self.runs(done))

    def _check_same(self, study: Study) -> None:
        """Raise if the storage holds trials of another search; the number of trials may grow."""
        own = self._description(study)
        found = self._trials.user_attrs.get(_DESCRIPTION)
        if found is None:
            self._trials.set_user_attr(_DESCRIPTION, own)
        elif wrong := list(differences(found, own, {f"config.{key}" for key in FREE})):
            more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            raise ConfigError(
                f"{self._folder.search} holds a search of {self.arm.label!r} with other keys, objectives, options or "
                f"seeds: {'; '.join(wrong[:3])}{more}. Only `search.trials` may change, and keys on which no result "
                "depends, such as `data.workers`: earlier results chose the later settings. Use another --out, or "
                f"delete {self._folder.path}."
            )

    def _description(self, study: Study) -> dict[str, Any]:
        """Return all that the settings of the search depend on."""
        options = {name: getattr(self.options, name) for name in ("sampler", "pruner", "at_once", "seed")}
        keys = {key: str(values) for key, values in self.arm.space.items()}
        seeds = {"objective": list(self.options.objectives), "seeds": list(study.seeds), "baseline": study.baseline}
        return dict(plain({"config": completed(self.arm.config), "search": {"keys": keys, **options}, **seeds}))

    def chosen(self, first: int, last: int) -> list[Any]:
        """Return the trials of a round without a result, chosen now unless they were chosen before."""
        found = self._trials.get_trials(deepcopy=False)
        space = {key: distribution(values) for key, values in self.arm.space.items()}
        for number in range(len(found), last):
            self._trials.sampler = sampler(self.options.sampler, self.options.seed + number)
            self._trials.ask(fixed_distributions=space)
        return [trial for trial in self._trials.trials[first:last] if not trial.state.is_finished()]

    def runs(self, trial: Any) -> list[StudyRun]:
        """Return the runs of a trial, one per seed."""
        return trial_runs(self.arm, self._settings(trial), self._seeds)

    def _settings(self, trial: Any) -> dict[str, Any]:
        return {key: values.value(trial.params[key]) for key, values in self.arm.space.items()}

    def pruning(self, trial: Any, first: int) -> dict[str, Callback]:
        """Return name -> callback of the run that may be pruned; empty if nothing can be compared yet."""
        (objective, *_) = self._objectives
        if self._pruner is None or objective.score is None or (objective.relative and self._reference is None):
            return {}
        run = self.runs(trial)[0]
        callback = Pruning(
            self.arm.label,
            self._pruner,
            maximize=objective.maximize,
            earlier=self._trials.trials[:first],
            number=trial.number,
            score=objective.against((self._reference or {}).get(run.seed)),
        )
        return {run.name: callback}

    def tell(self, trial: Any, runs: Sequence[StudyRun], failures: Mapping[str, str]) -> str:
        """Record the result of a trial, and return it as a line."""
        from optuna.trial import TrialState

        reason = next((failures[run.name] for run in runs if run.name in failures), "")
        self._record_epochs(trial, runs[0])
        values = [] if reason else self._objective_values(runs)
        if not reason and any(map(math.isnan, values)):
            names = [o.name for o, value in zip(self._objectives, values, strict=True) if math.isnan(value)]
            reason = f"its {' and '.join(names)} cannot be computed"
        if reason:
            state = TrialState.PRUNED if reason.startswith(PRUNED) else TrialState.FAIL
            self._storage.set_trial_user_attr(self._identity(trial), _REASON, reason)
            self._trials.tell(trial.number, state=state)
        else:
            self._trials.tell(trial.number, values)
        figures = ", ".join(f"{o.name} {value:.4g}" for o, value in zip(self._objectives, values, strict=False))
        settings = ", ".join(f"{key} {value_text(value)}" for key, value in self._settings(trial).items())
        return f"{self.arm.label}, setting {trial.number + 1} ({settings}): {reason or figures}"

    def _identity(self, trial: Any) -> int:
        """Return the key of a trial in the storage."""
        study: int = self._storage.get_study_id_from_name(self.arm.label)
        identity: int = self._storage.get_trial_id_from_study_id_trial_number(study, trial.number)
        return identity

    def _objective_values(self, runs: Sequence[StudyRun]) -> list[float]:
        """Return the objectives of a trial, means over seeds; its values are the reference if there is none yet."""
        if self._reference is None:
            self._reference = self._values(runs)
        summaries = {run.seed: self._folder.run(run.name).read_summary() for run in runs}
        return [
            fmean(objective.of(summary, self._reference.get(seed)) for seed, summary in summaries.items())
            for objective in self._objectives
        ]

    def _values(self, runs: Sequence[StudyRun]) -> _Reference:
        return {run.seed: primary_values(self._folder.run(run.name).read_summary()) for run in runs}

    def _record_epochs(self, trial: Any, run: StudyRun) -> None:
        """Record the figures per epoch that later settings are compared with."""
        (objective, *_) = self._objectives
        if self._pruner is None or objective.score is None:
            return
        reference = self._reference
        if objective.relative and reference is None:
            if not self._folder.run(run.name).finished:
                return
            reference = self._values([run])
        identity = self._identity(trial)
        rows = self._folder.run(run.name).read_metrics()
        for epoch, value in epoch_scores(rows, objective.against((reference or {}).get(run.seed))):
            self._storage.set_trial_intermediate_value(identity, epoch, value)
            self._pruner.prune(self._trials, self._storage.get_trial(identity))  # Hyperband records its rungs

    def all_runs(self) -> list[StudyRun]:
        """Return the runs of all trials; trials with the same values have the same runs."""
        runs = (run for trial in self._trials.trials[: self.options.trials] for run in self.runs(trial))
        return list({run.name: run for run in runs}.values())

    def add_to(self, outcome: _SearchOutcome) -> None:
        """Add runs and failures of all trials to the outcome of the search."""
        trials = self._trials.trials[: self.options.trials]
        outcome.runs += self.all_runs()
        for trial in trials:
            for run in self.runs(trial):
                if _REASON in trial.user_attrs and not self._folder.run(run.name).finished:
                    outcome.missing[run.name] = trial.user_attrs[_REASON]
        if trials and all(trial.state.name != "COMPLETE" for trial in trials):
            reasons = [trial.user_attrs.get(_REASON, "") for trial in trials]
            outcome.failures[self.arm.label] = f"none of {len(trials)} settings has a result; the last: {reasons[-1]}"


def _objectives(study: Study) -> list[Objective]:
    """Return the objectives of a study, with the tasks of its first method."""
    assert study.search is not None
    config = corner_runs(study.arms[0])[0].config
    tasks = RunSpec(config).data.tasks
    return read_objectives(study.search.objectives, tasks, measured=config["training"]["measure_cost"])


def _baseline(study: Study, folder: StudyFolder, tuned: Sequence[_ArmSearch]) -> _Reference:
    """Return the primary metrics of the baseline per seed, of the setting that is best on validation data."""
    runs = [run for run in study.runs if run.method == study.baseline]
    runs += [run for search in tuned for run in search.all_runs()]
    finished = [run for run in runs if folder.run(run.name).finished]
    if not finished:
        raise TrainingError(
            f"no run of the baseline {study.baseline!r} has a result, against which {DELTA_M!r} is measured."
        )
    primary = {task: entry["primary"] for task, entry in folder.run(finished[0].name).read_summary()["tasks"].items()}
    frame = read_results(io.StringIO(results_text(finished, study.grid, folder)))
    best = best_settings(StudyResults.of(frame, primary=primary))
    figures: Any = per_seed(best, best.primary, "validation").to_dict("index")
    return {int(seed): dict(row) for (_, seed), row in figures.items()}
