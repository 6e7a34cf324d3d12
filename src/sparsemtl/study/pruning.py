"""Pruning of a search: a callback that stops a run whose validation figures are behind those of earlier settings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

from sparsemtl.errors import TrainingError
from sparsemtl.storage.metrics import MetricRow
from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.study.objectives import Score
from sparsemtl.training.callbacks import Callback, FitInfo

PRUNED = "pruned after epoch"
"""Beginning of the reason why a pruned run has no result."""


class PrunedRunError(TrainingError):
    """A run of a search was stopped because earlier settings were better at the same epoch."""


class Pruning(Callback):
    """Stop a run that Optuna's pruner gives up.

    The pruner compares with the settings that ended before this one was chosen, which are part of the callback:
    decisions do not depend on the order in which runs end, and need no database on the machine of the run.

    Args:
        name: name of the search.
        pruner: Optuna's pruner.
        maximize: higher figures are better.
        earlier: trials that ended before.
        number: number of the run's trial.
        score: figure that is compared per epoch.
    """

    def __init__(
        self, name: str, pruner: Any, *, maximize: bool, earlier: Sequence[Any], number: int, score: Score
    ) -> None:
        self._given = (name, pruner, maximize, tuple(earlier), number)
        self._score = score
        self._trial: Any = None

    def on_fit_start(self, run: FitInfo) -> None:
        """Report the epochs before the last checkpoint."""
        self._trial = _trial(*self._given)
        if run.folder is not None and run.resume_at is not None:
            rows = RunFolder(run.folder).read_metrics()
            self._report(row for row in rows if row.step <= (run.resume_at or 0))

    def on_epoch_end(self, rows: Sequence[MetricRow], improved: bool) -> None:
        """Report an epoch, and stop the run if the pruner gives it up."""
        self._report(rows)

    def _report(self, rows: Iterable[MetricRow]) -> None:
        for epoch, value in epoch_scores(rows, self._score):
            self._trial.report(value, epoch)
            if self._trial.should_prune():
                raise PrunedRunError(f"{PRUNED} {epoch}: earlier settings were better at this epoch.")


def epoch_scores(rows: Iterable[MetricRow], score: Score) -> Iterator[tuple[int, float]]:
    """Yield epoch and figure of every epoch whose figure is defined."""
    validation = (row for row in rows if row.split == "validation")
    for epoch, figures in groupby(validation, key=lambda row: row.epoch):
        values: dict[str, dict[str, float]] = {}
        for row in figures:
            values.setdefault(row.task, {})[row.name] = row.value
        if math.isfinite(value := score.of(values)):
            yield epoch, value


def _trial(name: str, pruner: Any, maximize: bool, earlier: Sequence[Any], number: int) -> Any:
    """Return a trial with its number, in a study in memory with the earlier trials."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(study_name=name, pruner=pruner, direction="maximize" if maximize else "minimize")
    study.add_trials(earlier)
    for _ in range(number - len(earlier)):  # chosen at the same time as this one
        study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL))
    return study.ask()
