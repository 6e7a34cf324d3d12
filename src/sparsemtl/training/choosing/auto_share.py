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

from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory

from sparsemtl.architectures.assembled import AssembledModel, assembled_networks
from sparsemtl.errors import ParameterError
from sparsemtl.sharing import DenseSharing
from sparsemtl.tasks.batches import Loaders
from sparsemtl.training.choosing.auto_result import AutoResult
from sparsemtl.training.choosing.candidates import Candidate, CandidateTraining, slug
from sparsemtl.training.choosing.choice import ChoiceRows, choose_networks
from sparsemtl.training.choosing.halving import RUNGS, SURVIVORS, HalvingRecord, surviving
from sparsemtl.training.processes.launch import refuse_several


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
        dense = _dense(trainings)
        left, epochs = _halved(trainings, dense, (train, stop), rungs, survivors, HalvingRecord(root))
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


def _dense(trainings: Mapping[str, CandidateTraining]) -> set[str]:
    """Return the names of the dense candidates, of which there must be one; all candidates must have the same tasks."""
    for each in trainings.values():
        refuse_several(each.trainer.options, "sm.auto_share")
    dense = {name for name, each in trainings.items() if isinstance(each.trainer.sharing, DenseSharing)}
    if not dense:
        raise ParameterError("expected a candidate with DenseSharing, which the others are compared with; found none.")
    first = list(next(iter(trainings.values())).trainer.model.tasks)
    for name, each in trainings.items():
        if (tasks := list(each.trainer.model.tasks)) != first:
            raise ParameterError(f"candidate {name!r}: expected the tasks {first}, found {tasks}.")
    return dense


def _halved(
    trainings: Mapping[str, CandidateTraining],
    dense: Collection[str],
    loaders: tuple[Loaders, Loaders],
    rungs: Sequence[float],
    survivors: float,
    record: HalvingRecord,
) -> tuple[list[str], dict[str, int]]:
    """Train candidates rung by rung; return those that the last rung leaves, and the epochs of all."""
    left = list(trainings)
    for share in rungs:
        if (kept := record.read(share, list(trainings))) is None:
            for name in left:
                trainings[name].train(share, *loaders)
            kept = surviving({name: trainings[name] for name in left}, dense, survivors)
            record.write(share, kept, {name: each.trained_epochs for name, each in trainings.items()})
        left = kept
    return left, record.epochs
