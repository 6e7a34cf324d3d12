"""The result of `auto_share`: the model of the chosen networks, and tables of choice, sharing and cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from sparsemtl.architectures.assembled import AssembledModel
from sparsemtl.compaction import compact
from sparsemtl.compaction.pipeline import CompactedModule
from sparsemtl.networks.declarations import SummaryTable
from sparsemtl.networks.model import MultiTaskModel, placement
from sparsemtl.networks.modes import eval_mode
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.tasks.batches import Group, Loaders
from sparsemtl.training.choosing.choice import Choice, ChoiceRows, MetricGain, gain_of
from sparsemtl.training.evaluation.evaluate import evaluate
from sparsemtl.training.evaluation.results import Results
from sparsemtl.training.evaluation.trained import Trained


@dataclass(frozen=True)
class AutoResult:
    """Result of `auto_share`.

    Attributes:
        model: the chosen models; each task runs its own.
        networks: the networks of the tasks in it.
        choices: task -> what was chosen.
        epochs: candidate -> epochs that it was trained for.
        trainings: cost in trainings of all epochs.
        finished: candidate that was trained to the end -> its model and networks.
    """

    model: AssembledModel
    networks: TaskNetworks
    choices: Mapping[str, Choice]
    epochs: Mapping[str, int]
    trainings: float
    finished: Mapping[str, Trained] = field(repr=False)

    def evaluate(self, loaders: Loaders) -> Results:
        """Return loss and metrics per task, each by its chosen network."""
        return evaluate(Trained(self.model, self.networks, self.model), loaders, placement(self.model)[0])

    def gains(self, loaders: Loaders) -> dict[str, MetricGain]:
        """Return task -> gain of the chosen network over the best dense candidate; use data that chose nothing."""
        rows = ChoiceRows(loaders, self.model.tasks)
        needed = {name for choice in self.choices.values() for name in (choice.candidate, choice.baseline)}
        scores = {name: rows.scores(self.finished[name]) for name in needed}
        return {
            task: gain_of(self.model, task, scores[choice.candidate][task], scores[choice.baseline][task])
            for task, choice in self.choices.items()
        }

    @torch.no_grad()
    def predict(self, x: Any, tasks: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Return task -> outputs for one input, each by the task's own network, in eval mode."""
        names, device = self.model.chosen(tasks), placement(self.model)[0]
        with eval_mode(self.model):
            return Trained(self.model, self.networks, self.model).outputs(Group(x, {}, names).to(device))

    def network(self, task: str) -> MultiTaskModel:
        """Return a model, in eval mode, that is the network of the task."""
        self.model.check_task(task)
        return cast("MultiTaskModel", self.networks.network(self.model, task))

    def compact(self, task: str, example_inputs: Any = None, *, multiple_of: int = 1) -> CompactedModule:
        """Return the network of the task, physically small; see `sm.compact`."""
        self.model.check_task(task)
        return compact(self.model, self.networks, task=task, example_inputs=example_inputs, multiple_of=multiple_of)

    def tables(self, test: Mapping[str, MetricGain] | None = None) -> tuple[SummaryTable, ...]:
        """Return tables of the choice, of who shares with whom, and of the cost.

        Args:
            test: gains on test data.
        """
        return (*_choice_tables(self, test or {}), _sharing_table(self), _cost_table(self))


def _choice_tables(result: AutoResult, test: Mapping[str, MetricGain]) -> Iterable[SummaryTable]:
    rows = []
    for task, choice in result.choices.items():
        found = test.get(task)
        low, high = found.interval() if found else (None, None)
        test_gain = found.value if found else None
        gains = (choice.gain.value, test_gain, low, high)
        rows.append((task, choice.candidate, choice.baseline, choice.gain.metric, *gains))
    yield SummaryTable(
        "Network of each task",
        ("task", "chosen", "best dense candidate", "metric", "gain, validation", "gain, test", "from", "to"),
        rows,
        "Gains over the best dense candidate; positive is better. Test rows took part in no choice; the 95 % interval "
        "is over blocks of them.",
    )


def _sharing_table(result: AutoResult) -> SummaryTable:
    tasks = list(result.choices)
    masks = result.networks.masks
    overlap = masks.overlap().jaccard.tolist() if masks is not None else None
    index = {task: number for number, task in enumerate(masks)} if masks is not None else {}
    rows = [
        (one, *(float(one == other) if overlap is None else overlap[index[one]][index[other]] for other in tasks))
        for one in tasks
    ]
    caption = "Jaccard index of the shared weights that two tasks use; 0 for networks of different candidates."
    return SummaryTable("Who shares with whom", ("task", *tasks), rows, caption, shaded=tasks)


def _cost_table(result: AutoResult) -> SummaryTable:
    head = ("candidate", "epochs", *(f"{task}: {choice.gain.metric}" for task, choice in result.choices.items()))
    rows = [
        (name, epochs, *(choice.values.get(name) for choice in result.choices.values()))
        for name, epochs in result.epochs.items()
    ]
    caption = (
        f"{result.trainings:.1f} trainings in all. Figures of the validation rows that made the choice; candidates "
        "without them were dropped."
    )
    return SummaryTable("Candidates", head, rows, caption)
