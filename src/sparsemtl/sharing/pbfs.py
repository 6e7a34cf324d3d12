"""PBFS: every task prunes sub-networks of its own out of what tasks share, a little more every hundred steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import torch
from annotated_types import Interval
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import Doc, Unpack

from sparsemtl.criteria import as_criterion
from sparsemtl.criteria.batch_norm import for_dense_network
from sparsemtl.criteria.criterion import Scores
from sparsemtl.criteria.finite import check_scores
from sparsemtl.criteria.top_k import top_k
from sparsemtl.errors import ParameterError, unknown_name
from sparsemtl.networks.coverage import coverage_options
from sparsemtl.networks.declarations import Figure, SummaryTable
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.networks.randomness import fork_rng
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.registry.parameters import Count, Default, Natural, validated
from sparsemtl.sharing.masking import (
    MASK_FIGURES,
    MaskOptions,
    full_networks,
    mask_metrics,
    mask_summary,
    masks_of,
    statistics_kind,
    used_masks,
)
from sparsemtl.sharing.schedules import Ramp, StepRamp, cubic
from sparsemtl.sharing.sharing import Sharing, StepWeights, Update
from sparsemtl.tasks.batches import Loaders

KernelSparsity = Annotated[float, Interval(ge=0, le=1)]
KernelSparsities = KernelSparsity | Mapping[str, KernelSparsity]
"""One for all, or by task, or by task and shared module: `{income: 0.7, married/levels.0.pools.pool1: 0.5}`."""


class PBFSOptions(MaskOptions, total=False):
    """Options of masks, with the update of the paper as default."""

    update: Annotated[  # another default than in `MaskOptions`
        Update | None,
        Default("average"),
        Doc(
            "How a batch becomes optimizer steps: `joint` (masked gradients), `average`, `alternate` or `random_one`; "
            "see `dense`."
        ),
    ]


class PBFSSharing(Sharing):
    """PBFS: pruning on a schedule, of every shared module for every task (S1: Pruning-Based Feature Sharing, 2022).

    After dense epochs every task keeps, of each kernel that it shares, the weights of largest magnitude. The sparsity
    rises from the initial to the target one by s0 + (s - s0) (1 - (1 - t)^3), t going from 0 to 1 between `warmup` and
    `reach_at`. A weight that a task has dropped does not come back to it. The best epoch after the warm-up is selected
    for each task on validation data (Algorithm 2). With the architecture `pbfs` the shared modules are its pools; the
    method works on any other that shares weights.

    Differences from the paper:
        - The length of the dense epochs is not given; the default is one epoch.
        - Masks act on one set of weights per pool, which all its tasks train, as Eq. 10 has it; a task's network is
          restored from its best epoch, masks and weights together.
    """

    figures = (*MASK_FIGURES, Figure("sparsity", "Sparsity", "fraction of the shared weights that the task dropped"))
    selects_per_task = True

    @validated
    def __init__(
        self,
        *,
        target_sparsity: Annotated[
            KernelSparsities,
            Doc(
                "Fraction of every kernel that a task drops in the end, in [0, 1]; one for all, or by task, or by task "
                "and shared module, `{income: 0.7, married/levels.0.pools.pool1: 0.5}`."
            ),
        ] = 0.7,
        initial_sparsity: Annotated[
            KernelSparsities | None,
            Doc(
                "Fraction dropped at the end of the warm-up, likewise; by default 0.1 less than the target, the window "
                "that the paper sweeps with."
            ),
        ] = None,
        warmup: Annotated[Natural, Doc("Dense epochs at the beginning.")] = 1,
        reach_at: Annotated[Count, Doc("Epochs by which the target is reached.")] = 10,
        update_every_steps: Annotated[
            Count, Doc("Steps from one pruning to the next; there is one before every epoch, too.")
        ] = 100,
        criterion: Annotated[
            Literal["magnitude", "fisher", "gradient", "specific"] | Mapping[str, Any],
            Doc(
                "Criterion: `magnitude` as in the paper; `fisher`, `gradient` and `specific` are computed before every "
                "epoch. A mapping of `name` and parameters, such as `{name: specific, of: gradient}`."
            ),
        ] = "magnitude",
        allow_empty: Annotated[
            bool, Doc("Let a sparsity of 1 drop whole kernels; otherwise every kernel keeps a weight.")
        ] = False,
        **options: Unpack[PBFSOptions],
    ) -> None:
        self.target_sparsity = target_sparsity
        self.initial_sparsity = initial_sparsity
        self.warmup = warmup
        self.update_every_steps = update_every_steps
        self.allow_empty = allow_empty
        self.criterion = as_criterion(criterion, **coverage_options(options))
        self.update = options["update"]
        self.bn = statistics_kind(options)
        self._options = options
        self._ends: dict[tuple[str, str], tuple[float, float]] = {}
        self._ramp = StepRamp(Ramp(warmup, reach_at))
        self._since = 0
        self._scores: Scores = {}

    def start(self, model: MultiTaskModel) -> TaskNetworks:
        """Return networks whose masks keep all that a task uses.

        Raises:
            MaskError: if the model shares no weights.
            ParameterError: if a sparsity names an unknown task or module, or the initial one is above the target.
        """
        networks = full_networks(model, type(self).__name__, self._options)
        users, masks = model.parameter_tasks(), used_masks(model, masks_of(networks))
        self._ends = {
            (task, name): self._ends_of(task, _module_of(name, model))
            for task in model.tasks
            for name in masks.shapes()
            if task in users[name]
        }
        for key in [*_keys(self.target_sparsity), *_keys(self.initial_sparsity)]:
            _check_key(key, model)
        return networks.with_masks(masks)

    def _ends_of(self, task: str, module: str) -> tuple[float, float]:
        """Return the initial and the target sparsity of a task's kernels in a shared module."""
        target = _of(self.target_sparsity, task, module, default=0.0)
        usual = max(target - 0.1, 0.0)
        initial = usual if self.initial_sparsity is None else _of(self.initial_sparsity, task, module, default=usual)
        if initial > target:
            raise ParameterError(
                f"task {task!r}, {module!r}: `initial_sparsity` {initial} is above `target_sparsity` {target}; what a "
                "task has dropped does not come back."
            )
        return initial, target

    def begin_epoch(
        self, epoch: int, model: MultiTaskModel, networks: TaskNetworks, loaders: Loaders
    ) -> TaskNetworks | None:
        """Score where the criterion reads data, and prune to what is due: short epochs would miss the target."""
        self._ramp.begin_epoch(epoch, loaders)
        if not self._ramp.begun:
            return None
        if self.criterion.reads_data:
            self._scores = self._score(model, loaders)
        return self._pruned(model, networks)

    def is_selectable(self, epoch: int) -> bool:
        """Return True after the warm-up."""
        return epoch >= self.warmup

    def after_step(
        self, model: MultiTaskModel, networks: TaskNetworks, optimizer: Optimizer, weights: StepWeights
    ) -> TaskNetworks | None:
        """Prune every so many steps of the whole training."""
        self._ramp.step()
        if not self._ramp.begun:
            return None
        self._since += 1
        return self._pruned(model, networks) if self._since % self.update_every_steps == 0 else None

    def _pruned(self, model: MultiTaskModel, networks: TaskNetworks) -> TaskNetworks:
        """Return networks in which every task's kernels have the sparsity that is due now."""
        scores = self._scores if self.criterion.reads_data else self._score(model, ())
        before, due = masks_of(networks), cubic(self._ramp.progress)
        masks = {task: dict(mask) for task, mask in before.items()}
        for (task, name), (initial, target) in self._ends.items():
            mask = masks[task][name]
            check_scores({name: scores[task][name]}, task)
            kept = self._count(mask.numel(), initial + (target - initial) * due)
            masks[task][name] = _best(scores[task][name], mask, kept)
        return networks.with_masks(before.replaced(masks))

    def _score(self, model: MultiTaskModel, loaders: Loaders) -> Scores:
        """Return the scores of the weights, on the dense network."""
        criterion = for_dense_network(self.criterion, model, self.bn)
        with fork_rng():
            return criterion.scores(model, loaders, list(model.tasks.values()))

    def _count(self, size: int, sparsity: float) -> int:
        """Return the number of weights that a kernel keeps."""
        return max(round(size * (1 - sparsity)), 0 if self.allow_empty else 1)

    def sparsities(self, model: MultiTaskModel, networks: TaskNetworks) -> dict[str, dict[str, float]]:
        """Return task -> shared module that it uses -> fraction of the weights of its kernels that the task dropped."""
        kept = masks_of(networks)
        sizes: dict[tuple[str, str], list[Tensor]] = {}
        for task, name in self._ends:
            sizes.setdefault((task, _module_of(name, model)), []).append(kept[task][name].flatten())
        found: dict[str, dict[str, float]] = {task: {} for task in model.tasks}
        for (task, module), masks in sizes.items():
            found[task][module] = 1 - float(torch.cat(masks).double().mean())
        return found

    def metrics(self, model: MultiTaskModel, networks: TaskNetworks) -> Iterator[tuple[str, str, float]]:
        """Yield density, overlap, and the sparsity of everything that a task shares."""
        yield from mask_metrics(networks)
        kept = masks_of(networks)
        for task in model.tasks:
            used = torch.cat([kept[task][name].flatten() for owner, name in self._ends if owner == task])
            yield task, "sparsity", 1 - float(used.double().mean())

    def summary(self, model: MultiTaskModel, networks: TaskNetworks) -> dict[str, Any]:
        """Return the density per task, and the sparsity per task and shared module."""
        return {**mask_summary(networks), "sparsity": self.sparsities(model, networks)}

    def tables(self, model: MultiTaskModel, networks: TaskNetworks) -> tuple[SummaryTable, ...]:
        """Return the sparsity per shared module and task."""
        found, names = self.sparsities(model, networks), tuple(model.tasks)
        modules = dict.fromkeys(module for task in names for module in found[task])
        rows = [(module, *(found[task].get(module) for task in names)) for module in modules]
        caption = "Fraction of the kernels' weights that a task dropped; – for modules that it does not use."
        columns = ("module", *names)
        return (SummaryTable("Sparsity per shared module", columns, rows, caption, fractions=names, shaded=names),)

    def state_dict(self) -> dict[str, Any]:
        """Return the progress of the schedule, and the scores in use."""
        return {"progress": {**self._ramp.state_dict(), "since": self._since}, "scores": self._scores}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state of `state_dict`."""
        self._ramp.load_state_dict(state["progress"])
        self._since = int(state["progress"]["since"])
        self._scores = {task: dict(scores) for task, scores in state["scores"].items()}


def _best(scores: Tensor, mask: Tensor, count: int) -> Tensor:
    """Return the mask of the weights of largest score among those still kept."""
    flat = mask.flatten()
    if count >= int(flat.sum()):
        return mask
    return top_k(scores.flatten().masked_fill(~flat, -torch.inf), count).view(mask.shape)


def _module_of(name: str, model: MultiTaskModel) -> str:
    """Return the shared module that a parameter belongs to."""
    return next(prefix for prefix in model.shared_modules() if name.startswith(f"{prefix}."))


def _keys(value: KernelSparsities | None) -> list[str]:
    return list(value) if isinstance(value, Mapping) else []


def _of(value: KernelSparsities, task: str, module: str, *, default: float) -> float:
    """Return the value for a task and a module; a key with the module goes before one of the task alone."""
    if not isinstance(value, Mapping):
        return value
    return value.get(f"{task}/{module}", value.get(task, default))


def _check_key(key: str, model: MultiTaskModel) -> None:
    task, _, module = key.partition("/")
    model.check_task(task)
    if module and module not in model.shared_modules():
        raise ParameterError(unknown_name("shared module", module, model.shared_modules()))
