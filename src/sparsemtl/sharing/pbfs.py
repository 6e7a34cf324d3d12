"""PBFS: every task prunes sub-networks of its own out of what tasks share, a little more every hundred steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import torch
from annotated_types import Interval
from torch import Tensor
from torch.optim import Optimizer

from sparsemtl.criteria import CRITERIA
from sparsemtl.criteria.batch_norm import with_recomputed_batch_norm
from sparsemtl.criteria.criterion import Scores
from sparsemtl.criteria.select import top_k
from sparsemtl.errors import NonFiniteScoreError, ParameterError, unknown_name
from sparsemtl.networks.masks import TaskMasks
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.networks.randomness import fork_rng
from sparsemtl.registry.parameters import Count, Natural, validated
from sparsemtl.sharing.schedule import Ramp, cubic
from sparsemtl.sharing.sharing import Statistics, Update
from sparsemtl.sharing.subnetwork import Semantics, SubnetworkSharing
from sparsemtl.tasks.batches import Loaders

Sparsity = Annotated[float, Interval(ge=0, le=1)]
Sparsities = Sparsity | Mapping[str, Sparsity]
"""One for all, or by task, or by task and shared module: `{income: 0.7, married/levels.0.pools.pool1: 0.5}`."""


class PBFSSharing(SubnetworkSharing):
    """PBFS: pruning on a schedule, of every shared module for every task (S1: Pruning-Based Feature Sharing, 2022).

    After dense epochs every task keeps, of each kernel that it shares, the weights of largest magnitude. The sparsity
    rises from the initial to the target one by s0 + (s - s0) (1 - (1 - t)^3), t going from 0 to 1 between `warmup` and
    `reach_at`. A weight that a task has dropped does not come back to it. Every task keeps the epoch that is best for
    it on validation data, from the warm-up on (Algorithm 2). With the architecture `pbfs` the shared modules are its
    pools; it works on any other that shares weights.

    Args:
        target_sparsity: fraction of every kernel that a task drops in the end, in [0, 1]; one for all, or by task, or
            by task and shared module, `{income: 0.7, married/levels.0.pools.pool1: 0.5}`.
        initial_sparsity: fraction dropped at the end of the warm-up, likewise; 0.1 less than the target by default,
            the window that the paper sweeps with.
        warmup: dense epochs at the start.
        reach_at: epochs by which the target is reached.
        every: steps between two prunings; there is one before every epoch, too.
        criterion: what ranks the weights: `magnitude` as in the paper; `fisher` and `gradient` are computed before
            every epoch.
        allow_empty: a sparsity of 1 drops whole kernels; otherwise every kernel keeps a weight.
        mask_applies_to, update, strict, bn: see `SubnetworkSharing`.

    Differences from the paper:
        - How long the dense epochs last is not said; the default is one epoch.
        - Masks act on one set of weights a pool, which all its tasks train, as Eq. 10 has it; a task's network is
          restored from its best epoch, masks and weights together.
    """

    chosen_apart = True

    @validated
    def __init__(
        self,
        *,
        target_sparsity: Sparsities = 0.7,
        initial_sparsity: Sparsities | None = None,
        warmup: Natural = 1,
        reach_at: Count = 10,
        every: Count = 100,
        criterion: Literal["magnitude", "fisher", "gradient"] = "magnitude",
        allow_empty: bool = False,
        mask_applies_to: Semantics = "forward",
        update: Update | None = "average",
        strict: bool = True,
        bn: Statistics | None = None,
    ) -> None:
        super().__init__(mask_applies_to=mask_applies_to, update=update, strict=strict, bn=bn, mask_all=False)
        if reach_at <= warmup:
            raise ParameterError(f"`reach_at` must come after the warm-up of {warmup} epochs, got {reach_at}.")
        self.target_sparsity = _checked("target_sparsity", target_sparsity)
        self.initial_sparsity = None if initial_sparsity is None else _checked("initial_sparsity", initial_sparsity)
        self.warmup = warmup
        self.every = every
        self.allow_empty = allow_empty
        self.criterion = CRITERIA.build(criterion)
        self._ramp = Ramp(warmup, reach_at)
        self._since = 0
        self._scores: Scores = {}

    def attach(self, model: MultiTaskModel) -> None:
        """Start with masks that keep all of what a task uses.

        Raises:
            MaskError: if the model shares no weights.
            ParameterError: if a sparsity is asked for of a task or module that is not there, or the initial one is
                above the target.
        """
        super().attach(model)
        users = model.parameter_tasks()
        header = {"model": type(model).__name__, "method": type(self).__name__}
        parameters = {name: model.get_parameter(name) for name in self.masks.shapes()}
        self.masks = TaskMasks(
            {
                task: {n: torch.full_like(p, task in users[n], dtype=torch.bool) for n, p in parameters.items()}
                for task in model.tasks
            },
            **header,
        )
        self._plan = {
            (task, name): self._ends(task, _module_of(name, model))
            for task in model.tasks
            for name in parameters
            if task in users[name]
        }
        for key in [*_keys(self.target_sparsity), *_keys(self.initial_sparsity)]:
            _check_key(key, model)

    def _ends(self, task: str, module: str) -> tuple[float, float]:
        """Initial and target sparsity of a task's kernels in a shared module."""
        target = _of(self.target_sparsity, task, module, default=0.0)
        usual = max(target - 0.1, 0.0)
        initial = usual if self.initial_sparsity is None else _of(self.initial_sparsity, task, module, default=usual)
        if initial > target:
            raise ParameterError(
                f"task {task!r}, {module!r}: `initial_sparsity` {initial} is above `target_sparsity` {target}; what a "
                "task has dropped does not come back."
            )
        return initial, target

    def begin_epoch(self, epoch: int, loaders: Loaders) -> None:
        """Score, if data are needed for it, and prune to what is due: short epochs would miss the target otherwise."""
        self._ramp.begin_epoch(epoch, loaders)
        if not self._ramp.begun:
            return
        if self.criterion.reads_data:
            self._scores = self._score(loaders)
        self._prune()

    def is_selectable(self, epoch: int) -> bool:
        """After the warm-up."""
        return epoch >= self.warmup

    def after_step(self, optimizer: Optimizer) -> None:
        """Prune every so many steps of the whole training."""
        self._ramp.step()
        if not self._ramp.begun:
            return
        self._since += 1
        if self._since % self.every == 0:
            self._prune()

    def _prune(self) -> None:
        """Bring every task's kernels to the sparsity that is due now."""
        scores = self._scores if self.criterion.reads_data else self._score(())
        masks = {task: dict(mask) for task, mask in self.masks.items()}
        due = cubic(self._ramp.way)
        for (task, name), (initial, target) in self._plan.items():
            alive = masks[task][name]
            _check_scores(scores[task][name], task, name)
            kept = self._count(alive.numel(), initial + (target - initial) * due)
            masks[task][name] = _best(scores[task][name], alive, kept)
        self.masks = TaskMasks(masks, model=self.masks.model, method=self.masks.method)

    def _score(self, loaders: Loaders) -> Scores:
        """What ranks the weights now, on the dense network."""
        criterion = self.criterion if self.bn == "shared" else with_recomputed_batch_norm(self.criterion)
        with fork_rng():
            return criterion.scores(self.model, loaders, list(self.model.tasks.values()))

    def _count(self, size: int, sparsity: float) -> int:
        """Weights that a kernel keeps."""
        return max(round(size * (1 - sparsity)), 0 if self.allow_empty else 1)

    def sparsities(self) -> dict[str, dict[str, float]]:
        """Task -> shared module that it uses -> fraction of its kernels' weights that the task has dropped."""
        sizes: dict[tuple[str, str], list[Tensor]] = {}
        for task, name in self._plan:
            key = (task, _module_of(name, self.model))
            sizes.setdefault(key, []).append(self.masks[task][name].flatten())
        found: dict[str, dict[str, float]] = {task: {} for task in self.model.tasks}
        for (task, module), masks in sizes.items():
            found[task][module] = 1 - float(torch.cat(masks).double().mean())
        return found

    def metrics(self) -> Iterator[tuple[str, str, float]]:
        """The tasks' densities and overlap, and the sparsity of everything that a task shares."""
        yield from super().metrics()
        for task in self.model.tasks:
            used = torch.cat([self.masks[task][name].flatten() for owner, name in self._plan if owner == task])
            yield task, "sparsity", 1 - float(used.double().mean())

    def summary(self) -> dict[str, Any]:
        """Every task's density, and the sparsity of each module that it shares."""
        return {**super().summary(), "sparsity": self.sparsities()}

    def state_dict(self) -> dict[str, Any]:
        """With how far training has come, and the scores in use."""
        progress = {**self._ramp.state_dict(), "since": self._since}
        return {**super().state_dict(), "progress": progress, "scores": self._scores}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put it back."""
        super().load_state_dict(state)
        self._ramp.load_state_dict(state["progress"])
        self._since = int(state["progress"]["since"])
        self._scores = {task: dict(scores) for task, scores in state["scores"].items()}


def _check_scores(scores: Tensor, task: str, name: str) -> None:
    if bool(scores.isnan().any()):
        raise NonFiniteScoreError(
            f"task {task!r}, parameter {name!r}: {int(scores.isnan().sum())} scores are NaN. Did training diverge?"
        )


def _best(scores: Tensor, alive: Tensor, count: int) -> Tensor:
    """The weights of largest score among those still alive."""
    flat = alive.flatten()
    if count >= int(flat.sum()):
        return alive
    return top_k(scores.flatten().masked_fill(~flat, -torch.inf), count).view(alive.shape)


def _module_of(name: str, model: MultiTaskModel) -> str:
    """The shared module that a parameter belongs to."""
    return next(prefix for prefix in model.shared_modules() if name.startswith(f"{prefix}."))


def _checked(parameter: str, value: Sparsities) -> Sparsities:
    for key, sparsity in value.items() if isinstance(value, Mapping) else ():
        if not (isinstance(sparsity, (int, float)) and 0 <= sparsity <= 1):
            raise ParameterError(f"`{parameter}` of {key!r} must be a number in [0, 1], got {sparsity!r}.")
    return value


def _keys(value: Sparsities | None) -> list[str]:
    return list(value) if isinstance(value, Mapping) else []


def _of(value: Sparsities, task: str, module: str, *, default: float) -> float:
    """The most exact thing that was said of a task and a module."""
    if not isinstance(value, Mapping):
        return value
    return value.get(f"{task}/{module}", value.get(task, default))


def _check_key(key: str, model: MultiTaskModel) -> None:
    task, _, module = key.partition("/")
    model.check_task(task)
    if module and module not in model.shared_modules():
        raise ParameterError(unknown_name("shared module", module, model.shared_modules()))
