"""MTAL, a reconstruction: one network per task, whose similar kernels are tied."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from itertools import combinations
from typing import TYPE_CHECKING, Annotated, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Doc

from sparsemtl.architectures.copies import Maker, one_per_task
from sparsemtl.architectures.heads import check_owned, heads_for
from sparsemtl.architectures.single_task import SingleTask
from sparsemtl.errors import ParameterError
from sparsemtl.networks.declarations import SummaryTable
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.networks.swap import swap_tensors
from sparsemtl.networks.swap_guards import is_fx_tracing
from sparsemtl.registry.parameters import Fraction, Natural, validated

if TYPE_CHECKING:
    from sparsemtl.tasks.task import Task

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
"""Layers with kernels. A kernel computes one output channel of a convolution, or one output of a linear layer."""


class MTAL(MultiTaskModel):
    """Networks of the tasks whose similar kernels are tied: our reconstruction of MTAL (Feng & Chen 2021).

    Only the abstract of the paper was available. It says that in every layer each pair of convolution kernels whose
    similarity exceeds a threshold is aggregated with weights. Everything else here is our reconstruction, and its
    results do not measure the paper's method.

    All tasks' networks have the same structure. In every layer, two kernels of different tasks are similar if the
    cosine of the flattened kernels exceeds `rho`. Pairs are formed in order of similarity, the most similar first;
    each kernel is paired with at most one kernel of every other task. In the forward pass, both kernels of a pair are
    replaced by a W_a[i] + (1 - a) W_b[j]. The weight a = sigmoid(alpha) is learned and starts at 1/2, so both tasks
    compute with the same kernel after any number of steps. `begin_epoch` forms the pairs again, from the kernels before
    they are mixed; a pair that remains keeps its a. The bias of a kernel is mixed like the kernel. Norms are not tied.

    If all networks start equal and all kernels were paired at once, the networks would stay equal for ever. Therefore
    they first train for `warmup` epochs without pairs, and then those kernels are paired that are still similar.
    Networks with different random weights (`fresh`) have hardly any similar kernels; networks that were trained for
    one task each from a common start may have some.

    Args:
        encoder: a module to copy for every task; a function that returns a new module; or task name -> module, equal
            in structure, such as networks that were trained for one task each.
        tasks: the tasks.
        heads: task name -> head, as in `SharedBottom`.

    Raises:
        ParameterError: if the encoders differ in structure, have parameters in common, or have no kernels.

    Differences from the paper:
        - Everything except the sentence above is reconstructed: the measure of similarity, the pairing and its time,
          the learned weights, and the warm-up. Do not expect the paper's results.
        - Rows of linear layers count as kernels.
        - With more than two tasks, kernels form groups with at most one kernel per task, in which any two are
          similar. A group is mixed by the softmax of one alpha per kernel; for two kernels this is the sigmoid above,
          of the difference of both alphas.
        - Similar kernels within one network are not tied.

    Examples:
        >>> model = MTAL(nn.Sequential(nn.Linear(6, 4), nn.ReLU()), [Classification("a", 3), Regression("b")], warmup=0)
        >>> model.tied
        {'0': 0.0}
        >>> model.begin_epoch(0)
        >>> model.tied
        {'0': 1.0}
    """

    @validated
    def __init__(
        self,
        encoder: Maker | Mapping[str, nn.Module],
        tasks: Sequence[Task],
        heads: Mapping[str, nn.Module] | None = None,
        *,
        rho: Annotated[
            Fraction, Doc("Cosine above which kernels are similar; with 1, none are, and the networks are separate.")
        ] = 0.9,
        warmup: Annotated[Natural, Doc("Number of epochs before kernels are paired for the first time.")] = 1,
        fresh: Annotated[
            bool,
            Doc(
                "Initialize the weights of every copy of a module except the first anew; if false, all copies start "
                "equal."
            ),
        ] = False,
    ) -> None:
        super().__init__(tasks)
        encoders = one_per_task(encoder, self.tasks, fresh=fresh)
        check_owned("encoders", encoders, self.tasks)
        self.encoders = nn.ModuleDict({task: encoders[task] for task in self.tasks})
        self.rho = rho
        self.warmup = warmup
        self.layers = _layers_in_common(self.encoders)
        self.mixers = nn.ModuleList([_Ties(self._stacked(name, "weight")) for name in self.layers])
        self.heads = heads_for(self.tasks, heads, encoders)

    @torch.no_grad()
    def begin_epoch(self, epoch: int) -> None:
        """Pair the similar kernels, once the warm-up is over.

        Args:
            epoch: the epoch that begins, counted from 0.
        """
        if epoch >= self.warmup:
            for name, ties in self._ties():
                ties.tie(_similar_groups(self._stacked(name, "weight"), self.rho))

    @property
    def tied(self) -> dict[str, float]:
        """Fraction of the tasks' kernels that are tied, in [0, 1], per layer."""
        return {name: float(ties.tied.float().mean()) for name, ties in self._ties()}

    def summary(self) -> dict[str, Any]:
        """Return the fraction of tied kernels per layer."""
        return {"tied": self.tied}

    def tables(self) -> tuple[SummaryTable, ...]:
        """Return the fraction of tied kernels per layer."""
        fraction = "tied kernels"
        caption = "Fraction of the tasks' kernels that are replaced by a mean over similar kernels of several tasks."
        rows = tuple(self.tied.items())
        return (SummaryTable("Similar kernels", ("layer", fraction), rows, caption, fractions=(fraction,)),)

    def forward(self, x: Any, tasks: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Run the named tasks' networks with the mixed kernels.

        Args:
            x: input of all encoders; or task name -> input of its encoder.
            tasks: names of the tasks, all by default.
        """
        chosen = self.chosen(tasks)
        own = x if isinstance(x, Mapping) and x.keys() == self.tasks.keys() else dict.fromkeys(self.tasks, x)
        with swap_tensors(self, dict(self._mixed())):
            return {task: self.heads[task](self.encoders[task](own[task])) for task in chosen}

    def _ties(self) -> Iterator[tuple[str, _Ties]]:
        return zip(self.layers, cast("Iterable[_Ties]", self.mixers), strict=True)

    def _mixed(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the mixed weight and bias of every layer with kernels, by name."""
        for name, ties in self._ties():
            for kind in ("weight", "bias"):
                stacked = self._stacked(name, kind)
                if is_fx_tracing():
                    raise ParameterError("torch.fx cannot trace mixed kernels; trace `model.separated()` instead")
                if stacked is not None:
                    for task, tensor in zip(self.tasks, ties(stacked).unbind(), strict=True):
                        yield f"{_path(task, name)}.{kind}", tensor

    def _stacked(self, layer: str, kind: str) -> Any:
        """Return the weights or biases of a layer of all tasks, (T, kernels, ...); None if it has none."""
        tensors = [getattr(encoder.get_submodule(layer), kind) for encoder in self.encoders.values()]
        return None if tensors[0] is None else torch.stack(tensors)

    @torch.no_grad()
    def separated(self) -> SingleTask:
        """Return a copy that computes the same without ties: each network has its own copy of the mixed kernels."""
        own = deepcopy(self)
        for name, tensor in list(own._mixed()):
            own.get_parameter(name).copy_(tensor)
        return SingleTask(own.encoders, list(own.tasks.values()), own.heads).train(self.training)  # type: ignore[arg-type]

    def parameter_tasks(self) -> dict[str, frozenset[str]]:
        """Return the tasks that use each parameter.

        All tasks use the kernels and their mixing weights, because any two kernels may be paired. One task uses norms
        and heads.
        """
        everyone = frozenset(self.tasks)
        common = {*self.shared_parameters(), *self.unmasked_parameters()}
        return {n: everyone if n in common else frozenset({n.split(".")[1]}) for n, _ in self.named_parameters()}

    def shared_modules(self) -> dict[str, nn.Module]:
        """Return the layers with kernels of all encoders."""
        return {_path(t, name): self.encoders[t].get_submodule(name) for t in self.tasks for name in self.layers}

    def unmasked_modules(self) -> dict[str, nn.Module]:
        """Return the mixing weights."""
        return {f"mixers.{index}": ties for index, ties in enumerate(self.mixers)}

    def task_modules(self, task: str) -> dict[str, nn.Module]:
        """Return the task's head, and the modules of its encoder without kernels, such as norms."""
        self.check_task(task)
        _, others = _divided(self.encoders[task])
        own = {_path(task, name): module for name, module in others.items()}
        return {**own, f"heads.{task}": self.heads[task], **self.loss_modules(task)}


class _Ties(nn.Module):
    """Groups of tied kernels of a layer, and their mixing weights.

    Args:
        kernels: kernels of all tasks, (T, kernels, ...).

    Attributes:
        alpha: (T, kernels), logits of each kernel's weight in its group.
        group: int64 (T, kernels), number of each kernel's group. It is the index of the group's first kernel, counted
            over all tasks, so that the shape never changes.
    """

    group: Tensor

    def __init__(self, kernels: Tensor) -> None:
        super().__init__()
        streams, count = kernels.shape[:2]
        self.alpha = nn.Parameter(torch.zeros(streams, count, device=kernels.device))
        self.register_buffer("group", torch.arange(streams * count, device=kernels.device).view(streams, count))

    @property
    def tied(self) -> Tensor:
        """Kernels in groups of several, bool (T, kernels)."""
        return self.group.flatten().bincount(minlength=self.group.numel())[self.group] > 1

    @torch.no_grad()
    def tie(self, group: Tensor) -> None:
        """Set new groups. Groups with a kernel that was not among them before start with equal weights.

        Args:
            group: see the attribute.
        """
        joined = torch.zeros_like(self.group, dtype=torch.bool).flatten()
        joined[group[group != self.group]] = True
        self.alpha.masked_fill_(joined[group], 0.0)
        self.group.copy_(group)

    def forward(self, tensors: Tensor) -> Tensor:
        """Replace every kernel, or its bias, by the mixture of its group.

        Args:
            tensors: kernels or biases, (T, kernels, ...).

        Returns:
            (T, kernels, ...); kernels without a group are unchanged, bit for bit.
        """
        group, flat = self.group.flatten(), tensors.flatten(0, 1)
        alpha = torch.where(self.tied, self.alpha, 0.0).flatten()
        highest = torch.full_like(alpha, -torch.inf).scatter_reduce(0, group, alpha.detach(), "amax")
        weight = (alpha - highest[group]).exp()
        share = weight / torch.zeros_like(weight).index_add(0, group, weight)[group]
        weighted = share.to(flat.dtype).view(-1, *(1,) * (flat.ndim - 1)) * flat
        return torch.zeros_like(flat).index_add(0, group, weighted)[group].view_as(tensors)


def _similar_groups(kernels: Tensor, rho: float) -> Tensor:
    """Group similar kernels of different tasks, with at most one kernel per task in a group.

    Pairs are taken greedily, the most similar first. With more than two tasks, pairs grow to groups in which any two
    kernels are similar.

    Args:
        kernels: kernels of all tasks, (T, kernels, ...).
        rho: cosine above which two kernels are similar.

    Returns:
        int64 (T, kernels), index of the first kernel of each kernel's group, counted over all tasks.
    """
    streams, count = kernels.shape[:2]
    pairs = _similar_pairs(kernels, rho)
    similar = set(pairs)
    groups = [[index] for index in range(streams * count)]
    for one, other in pairs:
        if all((min(p, q), max(p, q)) in similar for p in groups[one] for q in groups[other]):
            joined = sorted(groups[one] + groups[other])
            for index in joined:
                groups[index] = joined
    return torch.tensor([group[0] for group in groups], device=kernels.device).view(streams, count)


def _similar_pairs(kernels: Tensor, rho: float) -> list[tuple[int, int]]:
    """Return the indices of kernels of two tasks whose cosine exceeds rho, ordered by cosine, then by index."""
    exact = torch.promote_types(kernels.dtype, torch.float32)
    unit = F.normalize(kernels.flatten(2).to(exact), dim=2)
    streams, count = unit.shape[:2]
    values, indices = [], []
    for a, b in combinations(range(streams), 2):
        cosine = (unit[a] @ unit[b].T).clamp(max=1.0)
        found = (cosine > rho).nonzero()
        values.append(cosine[found[:, 0], found[:, 1]])
        indices.append(found + found.new_tensor([a * count, b * count]))
    if not values:
        return []
    order = torch.cat(values).argsort(descending=True, stable=True)
    return [(i, j) for i, j in torch.cat(indices)[order].tolist()]


def _layers_in_common(encoders: nn.ModuleDict) -> tuple[str, ...]:
    """Return the names of the layers with kernels, which are the same in all encoders.

    Raises:
        ParameterError: if the layers differ between tasks, or there are none.
    """
    shapes = {task: {n: _shapes(layer) for n, layer in _divided(own)[0].items()} for task, own in encoders.items()}
    first, expected = next(iter(shapes.items()))
    if not expected:
        raise ParameterError(
            f"encoders: that of task {first!r}, {type(encoders[first]).__name__}, has no kernels to compare: expected "
            "convolutions or linear layers outside of modules with other parameters."
        )
    for task, found in shapes.items():
        for name in [*expected, *found]:
            if expected.get(name) != found.get(name):
                raise ParameterError(
                    f"encoders: layer {name!r} of task {task!r} is {found.get(name, 'absent')}, that of task {first!r} "
                    f"{expected.get(name, 'absent')}. Kernels are compared between networks of equal structure."
                )
    return tuple(expected)


def _shapes(layer: nn.Module) -> str:
    """Return the kind and the shapes of a layer in words."""
    shapes = " and ".join(str(tuple(p.shape)) for p in layer._parameters.values() if p is not None)
    return f"{type(layer).__name__} of {shapes}"


def _divided(encoder: nn.Module) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    """Return the layers with kernels, and the other modules with tensors and everything inside them, by name."""
    layers: dict[str, nn.Module] = {}
    others: dict[str, nn.Module] = {}
    for name, module in encoder.named_modules():
        if any(not other or name.startswith(f"{other}.") for other in others):
            continue
        if type(module) in _LAYERS and isinstance(module._parameters.get("weight"), nn.Parameter):
            layers[name] = module
        elif module._parameters or module._buffers:
            others[name] = module
    return layers, others


def _path(task: str, name: str) -> str:
    """Return the name in the model of a module of a task's encoder."""
    return f"encoders.{task}.{name}" if name else f"encoders.{task}"
