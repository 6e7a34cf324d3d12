"""Lottery tickets: each task finds a sub-network by iterative magnitude pruning, then all train them together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch import Tensor, nn
from typing_extensions import Doc, Unpack

from sparsemtl.criteria.top_k import top_k
from sparsemtl.errors import MaskError, NonFiniteScoreError, ParameterError
from sparsemtl.networks.coverage import coverage_options
from sparsemtl.networks.declarations import Figure, SummaryTable
from sparsemtl.networks.masks import TaskMasks
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.networks.norms import STATISTICS, norms_in, own_statistics
from sparsemtl.networks.task_networks import TaskNetwork, TaskNetworks
from sparsemtl.registry.parameters import Count, Natural, validated
from sparsemtl.sharing.masking import (
    MASK_FIGURES,
    TaskMaskOptions,
    full_masks,
    mask_metrics,
    mask_summary,
    used_masks,
    warn_of_dead_layers,
)
from sparsemtl.sharing.sharing import Sharing
from sparsemtl.tasks.batches import Loaders

_Row = tuple[str | float | None, ...]
_NEVER = 255
"""Iteration at which a weight that is still there was dropped."""


class LotterySharing(Sharing):
    """Sparse sharing: lottery tickets by iterative magnitude pruning (Sun et al., AAAI 2020).

    After `warmup` dense epochs, which give theta_0, a run has two phases:

    A. Every task trains a copy of the whole network alone, under its mask, which keeps everything at first. After
       `epochs_per_iteration` epochs it drops the fraction 1 - (1 - target_sparsity) ** (1 / iterations) of the weights
       that are left, the smallest of all layers together, and begins again from theta_0 with a fresh optimizer. The
       copies of all tasks train side by side, each by the loss of its task alone.
    B. All tasks train the one set of weights from theta_0, with a fresh optimizer, each under the mask of its best
       iteration by validation score. Of equal scores, the sparser mask is taken.

    Phase A takes `(iterations + 1) * epochs_per_iteration` epochs, of which none is selected. `epochs` of the run
    counts both phases and the warm-up. The schedule of learning rates begins again with every iteration and with B.
    While A lasts, weights and optimizer state have the memory of one network per task.

    Attributes:
        scores: task -> iteration, as a text -> best validation score of its epochs, larger is better.
        chosen: task -> iteration whose mask it trains in phase B; empty before.

    Differences from the paper:
        - The dense network of iteration 0 is trained and scored, but a task does not choose it: it is the baseline.
          `iteration: 0` trains it.
        - Scores are those of validation data; the paper's code selects epochs on test data.
        - Heads begin again from theta_0 as well. Batch-norm statistics are per task in phase A, whatever `bn`.
        - Masked weights do not move by momentum and weight decay in phase B either (`strict`).
    """

    figures = (
        *MASK_FIGURES,
        Figure("iteration", "Iteration", "pruning iteration whose mask the task trains, 0 before the first pruning"),
    )

    @validated
    def __init__(
        self,
        *,
        target_sparsity: Annotated[
            float,
            Interval(gt=0, lt=1),
            Doc("Fraction of the weights that a task has dropped after the last iteration, in (0, 1)."),
        ] = 0.9,
        iterations: Annotated[
            int, Interval(ge=1, le=200), Doc("Prunings, in [1, 200]. The code: 10, or 20 in the script for CoNLL.")
        ] = 10,
        epochs_per_iteration: Annotated[Count, Doc("Epochs from one rewinding to the next. The code: 100.")] = 2,
        iteration: Annotated[
            Natural | None,
            Doc(
                "Iteration whose masks all tasks take, as in the script of the code (10 of 20); later ones are not "
                "trained. None chooses by validation, for each task."
            ),
        ] = None,
        warmup: Annotated[Natural, Doc("Dense epochs of all tasks at the beginning, which give theta_0.")] = 0,
        **options: Unpack[TaskMaskOptions],
    ) -> None:
        if iteration is not None and iteration > iterations:
            raise ParameterError(f"`iteration` is {iteration}, of {iterations} iterations.")
        self.target_sparsity = target_sparsity
        self.iterations = iterations
        self.epochs_per_iteration = epochs_per_iteration
        self.iteration = iteration
        self.warmup = warmup
        self.update = options["update"]
        self.bn = options["bn"] or "per_task"
        self.scores: dict[str, dict[str, float]] = {}
        self.chosen: dict[str, int] = {}
        self._options = options
        coverage_options(options)  # refuses patterns of a wrong kind
        self._trainings = iterations + 1 if iteration is None else iteration
        self._full: TaskMasks | None = None
        self._dropped_at: dict[str, dict[str, Tensor]] = {}
        self._copies: dict[str, dict[str, nn.Parameter]] = {}
        self._iteration = 0

    def start(self, model: MultiTaskModel) -> TaskNetworks:
        """Return networks in which every task has copies of all weights that it uses.

        Raises:
            MaskError: if the model shares no weights.
            ParameterError: if an iteration would drop no weight, or leave none.
        """
        self.scores, self.chosen, self._iteration = {task: {} for task in model.tasks}, {}, 0
        self._full = used_masks(model, full_masks(model, type(self).__name__, self._options))
        for task in model.tasks:
            self._check_schedule(task, self._full.count(task))
        self._dropped_at = {
            task: {name: mask.to(torch.uint8) * _NEVER for name, mask in self._full[task].items()}
            for task in self._full
        }
        users = model.parameter_tasks()
        self._copies = {
            task: {
                name: nn.Parameter(p.detach().clone())
                for name, p in model.named_parameters()
                if self._trainings and p.requires_grad and task in users.get(name, model.tasks)
            }
            for task in model.tasks
        }
        return self._alone(model) if self._trainings else self._together(model)

    def _check_schedule(self, task: str, size: int) -> None:
        left = size
        for number in range(1, self._prunings + 1):
            drops = self._dropped_of(left)
            if drops in (0, left):
                raise ParameterError(
                    f"{type(self).__name__}: task {task!r} has {left} of {size} weights left in iteration {number}, of "
                    f"which it would drop {'none' if drops == 0 else 'all'}. Use fewer `iterations` (now "
                    f"{self.iterations}), or {'a higher' if drops == 0 else 'a lower'} `target_sparsity`."
                )
            left -= drops

    @property
    def _prunings(self) -> int:
        return self.iterations if self.iteration is None else self.iteration

    def _dropped_of(self, left: int) -> int:
        """Return the number of weights that an iteration drops of those that are left."""
        kept: float = (1 - self.target_sparsity) ** (1 / self.iterations)
        return round((1 - kept) * left)

    def restarts_at(self, epoch: int) -> bool:
        """Return True at every rewinding, and at the beginning of phase B."""
        training, within = divmod(epoch - self.warmup, self.epochs_per_iteration)
        return within == 0 and 0 <= training <= self._trainings

    def begin_epoch(
        self, epoch: int, model: MultiTaskModel, networks: TaskNetworks, loaders: Loaders
    ) -> TaskNetworks | None:
        """Train dense in the warm-up; then prune and rewind after every iteration, and at last train together."""
        if not self.restarts_at(epoch):
            return self._together(model) if epoch == 0 and self.warmup else None
        self._iteration = (epoch - self.warmup) // self.epochs_per_iteration
        if 0 < self._iteration <= self._prunings:
            self._prune(self._iteration)
        if self._iteration < self._trainings:
            return self._alone(model)
        self.chosen = {task: self._best(task) for task in model.tasks}
        return self._together(model)

    def is_selectable(self, epoch: int) -> bool:
        """Return True in phase B."""
        return epoch >= self.warmup + self._trainings * self.epochs_per_iteration

    @torch.no_grad()
    def _alone(self, model: MultiTaskModel) -> TaskNetworks:
        """Return networks of copies, rewound to the model's weights, under the masks of the iteration."""
        own = own_statistics(model, "batch" if self.bn == "batch" else "per_task")
        masks = self.masks(self._iteration)
        norms = {
            f"{name}.{kind}": tensor
            for name, norm in norms_in(dict(model.named_children())).items()
            for kind in STATISTICS
            if (tensor := norm._buffers[kind]) is not None
        }
        networks = {}
        for task, copies in self._copies.items():
            for name, copy in copies.items():
                copy.copy_(model.get_parameter(name))
            statistics = {name: tensor.clone() for name, tensor in norms.items()}
            networks[task] = TaskNetwork(masks[task], own_tensors={**copies, **statistics, **own[task]})
        return TaskNetworks(networks, strict=self._options["strict"], model=masks.model, method=masks.method)

    def _together(self, model: MultiTaskModel) -> TaskNetworks:
        """Return networks of the model's weights, under the chosen masks."""
        every = {iteration: self.masks(iteration) for iteration in {0, *self.chosen.values()}}
        masks = {task: every[self.chosen.get(task, 0)][task] for task in model.tasks}
        return TaskNetworks.of_masks(
            every[0].replaced(masks),
            own_statistics(model, self.bn),
            strict=self._options["strict"],
        )

    def masks(self, iteration: int) -> TaskMasks:
        """Return the masks after some prunings.

        Args:
            iteration: 0 for those that keep everything.

        Raises:
            ParameterError: before `start`, or if the iteration is not reached yet.
        """
        if self._full is None or not 0 <= iteration <= self._iteration:
            raise ParameterError(f"there are masks of iterations 0 to {self._iteration} so far, not of {iteration}.")
        masks = {
            task: {name: dropped > iteration for name, dropped in found.items()}
            for task, found in self._dropped_at.items()
        }
        return self._full.replaced(masks)

    def _prune(self, number: int) -> None:
        """Drop the smallest of the weights that each task has left, all layers together."""
        before = self.masks(number - 1)
        for task, dropped in self._dropped_at.items():
            copies = self._copies[task]
            used = {name: tensor for name, tensor in dropped.items() if name in copies}
            kept = torch.cat([before[task][name].flatten() for name in used])
            magnitudes = torch.cat([copies[name].detach().abs().flatten() for name in used])
            _check_finite(magnitudes, task, number)
            left = int(kept.sum())
            stays = top_k(magnitudes.masked_fill(~kept, -torch.inf), left - self._dropped_of(left))
            parts = (kept & ~stays).split([tensor.numel() for tensor in used.values()])
            for tensor, drops in zip(used.values(), parts, strict=True):
                tensor.masked_fill_(drops.view_as(tensor), number)
        warn_of_dead_layers(self.masks(number), before)

    def observe_validation(self, epoch: int, scores: Mapping[str, float]) -> None:
        """Keep the best score of every iteration of phase A."""
        if self.is_selectable(epoch) or epoch < self.warmup:
            return
        for task, score in scores.items():
            best = self.scores[task].get(str(self._iteration), -math.inf)
            self.scores[task][str(self._iteration)] = max(best, score)

    def _best(self, task: str) -> int:
        """Return the iteration of the best score, the last of equals."""
        if self.iteration is not None:
            return self.iteration
        scored = [(score, int(number)) for number, score in self.scores[task].items() if number != "0"]
        if not scored:
            raise MaskError(
                f"task {task!r}: no iteration after the first pruning has a validation score, by which it is chosen. "
                "Check the task's validation labels; in a loop of your own, call `observe_validation` after every "
                "epoch; or set `iteration`."
            )
        return max(scored)[1]

    def metrics(self, model: MultiTaskModel, networks: TaskNetworks) -> Iterator[tuple[str, str, float]]:
        """Yield density, overlap, and the iteration."""
        yield from mask_metrics(networks)
        for task in model.tasks:
            yield task, "iteration", float(self.chosen.get(task, self._iteration))

    def summary(self, model: MultiTaskModel, networks: TaskNetworks) -> dict[str, Any]:
        """Return the density, the iteration and the scores per task."""
        return {**mask_summary(networks), "iteration": dict(self.chosen), "scores": self.scores}

    def tables(self, model: MultiTaskModel, networks: TaskNetworks) -> tuple[SummaryTable, ...]:
        """Return the density and the validation score of every iteration, per task."""
        names, numbers = tuple(model.tasks), range(self._prunings + 1)
        every = [self.masks(number) for number in numbers]
        density: list[_Row] = [(str(number), *(every[number].density(task) for task in names)) for number in numbers]
        scores: list[_Row] = [
            (str(number), *(self.scores[task].get(str(number)) for task in names)) for number in numbers
        ]
        taken = ", ".join(f"{task}: {number}" for task, number in self.chosen.items())
        columns = ("iteration", *names)
        return (
            SummaryTable(
                "Density per pruning iteration",
                columns,
                density,
                f"Fraction of the maskable weights that a task keeps. Trained together: {taken}.",
                fractions=names,
                shaded=names,
            ),
            SummaryTable(
                "Validation score per pruning iteration",
                columns,
                scores,
                "Best epoch of the iteration by the metric or loss that selects the model, larger is better; – if not "
                "trained alone.",
            ),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the iteration at which each weight was dropped, and the scores of the iterations."""
        return {
            "iteration": self._iteration,
            "dropped_at": {task: dict(dropped) for task, dropped in self._dropped_at.items()},
            "scores": {task: dict(scores) for task, scores in self.scores.items()},
            "chosen": dict(self.chosen),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state of `state_dict`."""
        self._iteration = int(state["iteration"])
        self._dropped_at = {
            task: {name: state["dropped_at"][task][name].to(own.device) for name, own in dropped.items()}
            for task, dropped in self._dropped_at.items()
        }
        self.scores = {task: dict(scores) for task, scores in state["scores"].items()}
        self.chosen = {task: int(number) for task, number in state["chosen"].items()}


def _check_finite(magnitudes: Tensor, task: str, number: int) -> None:
    if not bool(magnitudes.isfinite().all()):
        raise NonFiniteScoreError(
            f"task {task!r}: weights are NaN or infinite before pruning {number}. Did training diverge?"
        )
