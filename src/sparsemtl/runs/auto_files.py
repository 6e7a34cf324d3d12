"""Files of a run with `sharing: auto`: the record of the networks that were chosen, and of the choice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sparsemtl.balancing import as_balancer
from sparsemtl.data.base import Loaders
from sparsemtl.networks.model import MultiTaskModel, placement
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.runs.auto_options import AUTO
from sparsemtl.runs.spec import RunSpec
from sparsemtl.sharing import Sharing
from sparsemtl.storage.metrics import MetricRow
from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.storage.text_files import write_json
from sparsemtl.training.callbacks.csv_file import CSVCallback
from sparsemtl.training.checkpoints.run_files import RunFiles
from sparsemtl.training.choosing.auto_result import AutoResult
from sparsemtl.training.choosing.candidates import slug
from sparsemtl.training.choosing.choice import MetricGain
from sparsemtl.training.costs import measure_costs
from sparsemtl.training.evaluation.epoch_averages import result_rows
from sparsemtl.training.evaluation.evaluate import sample_predictions
from sparsemtl.training.evaluation.results import Results
from sparsemtl.training.evaluation.selection import Selection
from sparsemtl.training.evaluation.trained import Trained
from sparsemtl.training.setup import RunParts
from sparsemtl.training.summary import RunResults, summarize


@dataclass(frozen=True)
class ChosenFigures:
    """Figures of the chosen networks.

    Attributes:
        validation: metrics on all validation rows.
        test: metrics on test rows.
        gains: gains on test rows.
        loaders: the test rows.
        groups: note on groups of tasks; "" without the candidate `groups`.
    """

    validation: Results
    test: Results
    gains: Mapping[str, MetricGain]
    loaders: Loaders
    groups: str


def write_choice(spec: RunSpec, folder: RunFolder, result: AutoResult, figures: ChosenFigures) -> None:
    """Write the files of a run whose networks were chosen among candidates.

    Args:
        spec: the run.
        folder: its folder, which holds the candidates' folders.
        result: the choice.
        figures: figures of the chosen networks.
    """
    model, networks, config = result.model, result.networks, spec.config
    device, files = placement(model)[0], RunFiles(folder)
    files.write_begin(config, device, config["seed"])
    write_json(folder.choice, {task: choice.candidate for task, choice in result.choices.items()})
    files.write_networks(model, networks)
    files.write_samples(sample_predictions(Trained(model, networks, model), figures.loaders, device))
    chosen = {task: RunFolder(folder.candidates / slug(choice.candidate)) for task, choice in result.choices.items()}
    record = _record(spec, folder, result, figures, chosen)
    CSVCallback(folder.metrics).on_test_end(_rows(chosen, record["epochs"], figures.test))
    files.write_summary(record)


def _record(
    spec: RunSpec, folder: RunFolder, result: AutoResult, figures: ChosenFigures, chosen: Mapping[str, RunFolder]
) -> dict[str, Any]:
    """Return the summary of the run: that of a training, with what was chosen in place of what was trained."""
    config, model, networks = spec.config, result.model, result.networks
    own_rows = config[AUTO]["choose"] is not None
    every = [RunFolder(folder.candidates / slug(name)).read_summary() for name in result.epochs]
    record = summarize(
        RunResults(
            name=config["name"] or folder.path.name,
            status="finished",
            epochs=max(result.epochs.values()),
            seconds=sum(summary["seconds"] for summary in every),
            validation=figures.validation,
            test=figures.test,
            notes=tuple(filter(None, (*spec.data.notes, _cost_note(result, own_rows=own_rows), figures.groups))),
            cost=measure_costs(model, networks, figures.loaders) if config["training"]["measure_cost"] else None,
        ),
        RunParts(model, _ChosenSharing(result, figures.gains), as_balancer("mean"), _no_optimizer, None),
        config=config,
        networks=networks,
        selection=Selection(model),
    )
    record["axes"]["sharing"], record["axes"]["architecture"] = AUTO, "assembled"
    record["method"] = config["label"] or AUTO
    record["selection"]["rule"] = _rule(own_rows=own_rows)
    for task, run in chosen.items():
        record["tasks"][task]["best_epoch"] = run.read_summary()["tasks"][task]["best_epoch"]
    return record


def _rows(chosen: Mapping[str, RunFolder], epochs: int, test: Results) -> list[MetricRow]:
    """Return the figures of every task's chosen candidate, and those on test rows."""
    logged = [row for task, run in chosen.items() for row in run.read_metrics() if row.task == task]
    last = max((row.step for row in logged), default=0)
    return [*logged, *result_rows(epochs, last, "test", test)]


def _rule(*, own_rows: bool) -> str:
    rows = f"validation rows that {'stopped no training' if own_rows else 'selected the epochs too'}"
    return (
        f"{rows}: per task, the simplest candidate within one standard error of the best, and no worse than the best "
        "dense one"
    )


def _cost_note(result: AutoResult, *, own_rows: bool) -> str:
    rows = "that stopped none of these trainings" if own_rows else "that selected the epochs too"
    return (
        f"{len(result.epochs)} candidates were trained for {result.trainings:.1f} times the epochs of one training; "
        f"the network of each task was chosen by validation rows {rows}"
    )


def _no_optimizer(groups: Any) -> Any:
    raise AssertionError("assembled networks are not trained")


class _ChosenSharing(Sharing):
    """Networks that were chosen, which the run's record describes.

    Args:
        result: the choice.
        gains: gains on test data.
    """

    def __init__(self, result: AutoResult, gains: Mapping[str, MetricGain]) -> None:
        self._result = result
        self._gains = gains

    def start(self, model: MultiTaskModel) -> TaskNetworks:
        """Return the chosen networks."""
        return self._result.networks

    def summary(self, model: MultiTaskModel, networks: TaskNetworks) -> dict[str, Any]:
        """Return what was chosen, with its gains, and the cost."""
        tasks = {}
        for task, choice in self._result.choices.items():
            low, high = self._gains[task].interval()
            tasks[task] = {
                "candidate": choice.candidate,
                "baseline": choice.baseline,
                "metric": choice.gain.metric,
                "gain": {"validation": choice.gain.value, "test": self._gains[task].value, "low": low, "high": high},
            }
        return {"tasks": tasks, "epochs": dict(self._result.epochs), "trainings": self._result.trainings}

    def tables(self, model: MultiTaskModel, networks: TaskNetworks) -> Any:
        """Return the choice, who shares with whom, and the cost."""
        return self._result.tables(self._gains)
