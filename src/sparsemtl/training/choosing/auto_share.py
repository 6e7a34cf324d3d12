"""The network that is best for each task, out of a small set of candidates.

1. A candidate is a function that returns a trainer. Candidates are trained side by side; after a share of the epochs,
   only those go on that together leave the tasks the best networks.
2. Validation rows select the epochs and make the choice; other rows make the choice where they are given.
3. Each task takes the simplest candidate that is within one standard error of the best one, and no worse than the best
   dense one.
4. Rows of a test took part in neither: the gain over the best dense candidate there is not the selection's optimism.
5. The result is one model, `AssembledModel`, with the networks of its tasks: saved, loaded and compacted as any other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, field
from math import ceil, floor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from torch import Tensor

from sparsemtl.architectures.assembled import AssembledModel, assembled_networks
from sparsemtl.compaction import compact
from sparsemtl.compaction.pipeline import CompactedModule
from sparsemtl.errors import CheckpointError, ParameterError
from sparsemtl.networks.declarations import SummaryTable
from sparsemtl.networks.model import MultiTaskModel, placement
from sparsemtl.networks.modes import eval_mode
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.sharing import DenseSharing
from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.storage.text_files import read_json, write_json
from sparsemtl.tasks.batches import Group, Loaders
from sparsemtl.training.choosing.choice import Choice, ChoiceRows, MetricGain, choose_networks, gain_of, signed_value
from sparsemtl.training.evaluation.evaluate import Trained, evaluate
from sparsemtl.training.evaluation.results import Results
from sparsemtl.training.processes.launch import refuse_several
from sparsemtl.training.trainer import Trainer

Candidate = Callable[[Path], Trainer]
"""Function of a run folder that returns a new trainer which writes there."""
RUNGS = (0.5,)
"""Shares of the epochs after which candidates are dropped. Earlier ones drop masks, which are chosen late."""
SURVIVORS = 0.6
"""Fraction of the candidates that go on: five candidates, of which three go on after half, cost four trainings."""


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


def auto_share(
    candidates: Mapping[str, Candidate],
    train: Loaders,
    stop: Loaders,
    choose: Loaders | None = None,
    *,
    rungs: Sequence[float] = RUNGS,
    survivors: float = SURVIVORS,
    folder: str | Path | None = None,
) -> AutoResult:
    """Train candidates, and choose the network of each task among them.

    Args:
        candidates: name -> function of a run folder that returns a new trainer, from the simplest network to the most
            complex one. All have the same tasks; at least one is dense (`DenseSharing`).
        train: training data, as for `Trainer.fit`.
        stop: validation data that select the epoch of every candidate, and drop candidates.
        choose: validation data, in at least two batches, that choose the candidate of every task; None is `stop`.
        rungs: shares of the epochs, rising in (0, 1), after which candidates are dropped.
        survivors: fraction of the candidates that each rung leaves, in (0, 1], rounded up, but two at least: the dense
            one of best mean rank, and in turn the one that most improves the best rank that the tasks are left.
        folder: folder with a run folder per candidate. What it holds of an earlier call is resumed; None is a temporary
            one.

    Raises:
        ParameterError: if there is no dense candidate, tasks differ, or a rung is out of range.
        SelectionError: if the metric that judges a task is undefined for every dense candidate.
    """
    if not 0 < survivors <= 1 or list(rungs) != sorted(set(rungs)) or not all(0 < rung < 1 for rung in rungs):
        raise ParameterError(
            f"`rungs` must rise in (0, 1) and `survivors` lie in (0, 1], got {list(rungs)} and {survivors}."
        )
    with ExitStack() as stack:
        root = Path(stack.enter_context(TemporaryDirectory()) if folder is None else folder)
        trainings = {name: CandidateTraining(make, root / slug(name)) for name, make in candidates.items()}
        for each in trainings.values():
            refuse_several(each.trainer.options, "sm.auto_share")
        dense = {name for name, each in trainings.items() if isinstance(each.trainer.sharing, DenseSharing)}
        _check(trainings, dense)
        record, left = _Record(root), list(trainings)
        for share in rungs:
            if (kept := record.read(share, list(trainings))) is None:
                for name in left:
                    trainings[name].train(share, train, stop)
                kept = _survivors({name: trainings[name] for name in left}, dense, survivors)
                record.write(share, kept, {name: each.trained_epochs for name, each in trainings.items()})
            left = kept
        epochs = record.epochs
        for name in left:
            trainings[name].train(1.0, train, stop)
            epochs[name] = trainings[name].trained_epochs
        finished = {name: trainings[name].trained for name in left}
        rows = ChoiceRows(stop if choose is None else choose, trainings[left[0]].trainer.model.tasks)
        choices = choose_networks({name: rows.scores(trained) for name, trained in finished.items()}, finished, dense)
    choice = {task: chosen.candidate for task, chosen in choices.items()}
    model = AssembledModel({name: deepcopy(finished[name].model) for name in finished}, choice).eval()
    networks = assembled_networks(model, {name: trained.networks for name, trained in finished.items()})
    cost = sum(epochs[name] / each.epochs for name, each in trainings.items())
    return AutoResult(model, networks, choices, {name: epochs[name] for name in trainings}, cost, finished)


def largest_cost(selectable: Sequence[int], rungs: Sequence[float], survivors: float, epochs: int) -> float:
    """Return the largest cost of `auto_share` in trainings of all epochs.

    Args:
        selectable: per candidate, the number of epochs until one can be selected.
        rungs: as in `auto_share`.
        survivors: as in `auto_share`.
        epochs: epochs of one training.
    """
    count, before = len(selectable), 0
    first = _whole_epochs((*rungs, 1.0)[0], epochs)
    cost = sum(max(own - first, 0) for own in selectable)
    for share in (*rungs, 1.0):
        until = _whole_epochs(share, epochs)
        cost += count * (until - before)
        count, before = _left(count, survivors), until
    return cost / epochs


def slug(name: str) -> str:
    """Return the name of a candidate's folder."""
    return "".join(letter if letter.isalnum() or letter in "._-+" else "-" for letter in name)


class CandidateTraining:
    """Training of one candidate, in steps.

    Args:
        make: returns its trainer.
        folder: its run folder.

    Attributes:
        trainer: the latest trainer; each step has a new one, which resumes the last.
        epochs: number of epochs of the whole training.
    """

    def __init__(self, make: Candidate, folder: Path) -> None:
        self._make = make
        self._folder = folder
        self.trainer = make(folder)
        self.epochs = self.trainer.epochs

    def train(self, share: float, train: Loaders, stop: Loaders) -> None:
        """Train up to a share of the epochs, or until an epoch can be selected."""
        until = max(_whole_epochs(share, self.epochs), self.trainer.sharing.first_selectable() + 1)
        self.trainer = self._make(self._folder)
        self.trainer.epochs = min(max(until, self.trainer.options["choose_after"] + 1), self.epochs)
        self.trainer.fit(train, stop, resume=RunFolder(self._folder).last.exists())

    @property
    def trained_epochs(self) -> int:
        """Number of epochs so far."""
        return self.trainer.position.epoch

    @property
    def trained(self) -> Trained:
        """Model and networks of the selected epoch."""
        return Trained(self.trainer.model, self.trainer.networks, self.trainer.model)

    def value(self, task: str) -> float:
        """Return the primary metric on the rows that stop the training, larger is better; -inf where undefined."""
        return signed_value(self.trainer.model, task, self.trainer.validation[task])


class _Record:
    """Record of the candidates that each rung left, so that a halving that was interrupted goes on as it began.

    Args:
        folder: folder of the candidates.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "halving.json"
        self._rungs: dict[str, Any] = read_json(self._path) if self._path.exists() else {}

    def read(self, share: float, candidates: Sequence[str]) -> list[str] | None:
        """Return the candidates that a rung left; None if it has not been reached.

        Raises:
            CheckpointError: if the record is of other candidates.
        """
        found = self._rungs.get(f"{share:g}")
        if found is not None and sorted(found["epochs"]) != sorted(candidates):
            raise CheckpointError(
                f"{self._path} is of the candidates {', '.join(found['epochs'])}, not {', '.join(candidates)}. Use "
                "another folder, or delete it."
            )
        return None if found is None else list(found["left"])

    def write(self, share: float, left: Sequence[str], epochs: Mapping[str, int]) -> None:
        """Write what a rung left, and the epochs of all candidates so far."""
        before = self.epochs
        known = {name: max(count, before.get(name, 0)) for name, count in epochs.items()}
        self._rungs[f"{share:g}"] = {"left": list(left), "epochs": known}
        write_json(self._path, self._rungs)

    @property
    def epochs(self) -> dict[str, int]:
        """Epochs of each candidate at the last rung."""
        found: dict[str, int] = {}
        for rung in self._rungs.values():
            found |= {name: max(count, found.get(name, 0)) for name, count in rung["epochs"].items()}
        return found


def _check(trainings: Mapping[str, CandidateTraining], dense: Collection[str]) -> None:
    if not dense:
        raise ParameterError("expected a candidate with DenseSharing, which the others are compared with; found none.")
    first = list(next(iter(trainings.values())).trainer.model.tasks)
    for name, each in trainings.items():
        if (tasks := list(each.trainer.model.tasks)) != first:
            raise ParameterError(f"candidate {name!r}: expected the tasks {first}, found {tasks}.")


def _survivors(trainings: Mapping[str, CandidateTraining], dense: Collection[str], share: float) -> list[str]:
    """Return the candidates that go on, as `survivors` of `auto_share` describes them; ties go to the simpler one."""
    names = list(trainings)
    ranks: dict[str, list[int]] = {name: [] for name in names}
    for task in trainings[names[0]].trainer.model.tasks:
        order = sorted(names, key=lambda name: -trainings[name].value(task))
        for rank, name in enumerate(order):
            ranks[name].append(rank)

    def remaining(name: str) -> tuple[int, int]:
        """Return the sum of the tasks' best ranks if a candidate stays as well, and the sum of its own ranks."""
        return sum(map(min, zip(*(ranks[one] for one in (*stay, name)), strict=True))), sum(ranks[name])

    stay = [min((name for name in names if name in dense), key=lambda name: sum(ranks[name]))]
    while len(stay) < _left(len(names), share):
        stay.append(min((name for name in names if name not in stay), key=remaining))
    return [name for name in names if name in stay]


def _whole_epochs(share: float, epochs: int) -> int:
    """Return a share of the epochs, rounded down, so that few epochs do not cost more; at least one."""
    return max(floor(share * epochs + 1e-9), 1)


def _left(count: int, share: float) -> int:
    """Return the number of candidates that a rung leaves."""
    return min(count, max(ceil(share * count), 2))


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
