"""A network a task, whose similar kernels are made one: a reconstruction."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from itertools import combinations
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from sparsemtl.architectures.experts import Maker, copies
from sparsemtl.architectures.single_task import SingleTask
from sparsemtl.errors import ParameterError
from sparsemtl.networks.declarations import SummaryTable
from sparsemtl.networks.model import MultiTaskModel, check_owned, heads_for
from sparsemtl.networks.swap import swap_tensors
from sparsemtl.registry.parameters import Fraction, Natural, validated
from sparsemtl.tasks.task import Task

KINDS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
"""Layers that have kernels: what computes one output channel, or one row of a linear layer."""


class MTAL(MultiTaskModel):
    """Similar kernels of the tasks' networks made one: our reconstruction of MTAL (Feng & Chen 2021).

    Of the paper only the abstract could be read, which says that in every layer each pair of convolution kernels whose
    similarity exceeds a threshold is aggregated with weights. Everything else here is a reading of ours, and figures
    of it are no measure of the paper's method.

    The tasks' networks are equal in structure. In every layer, kernels of two tasks are alike if the cosine of the
    flattened kernels exceeds `rho`; the most alike are paired first, each kernel with at most one of every other
    task. Both kernels of a pair are then read as a W_a[i] + (1 - a) W_b[j], with a learned a = sigmoid(alpha) that
    starts at 1/2, so that they stay equal whatever the steps. Pairs are found anew by `begin_epoch`, among the kernels
    as they are before they are mixed; a pair that lasts keeps its a. A kernel's bias is mixed with it; norms are
    every task's own.

    Networks that begin as equals would be one network for ever if all their kernels were paired at once. They are
    trained apart for `warmup` epochs therefore, and those kernels are paired that are still alike. Networks drawn
    apart (`fresh`) have hardly any kernels alike; networks trained for one task each from a common start may.

    Args:
        encoder: a module, of which every task gets a copy; a function that makes one; or task name -> module, equal
            in structure, such as networks that were trained for one task each.
        tasks: the tasks.
        heads: task name -> head, as in `SharedBottom`.
        rho: cosine above which kernels are alike, in (0, 1]; with 1 none are, and the networks are separate.
        warmup: epochs before kernels are paired for the first time.
        fresh: draw the weights of every copy of a module but the first anew; without, the copies begin as equals, as
            in `SingleTask`.

    Raises:
        ParameterError: if the encoders differ in structure, have parameters in common, or have no kernels.

    Differences from the paper:
        - All but the sentence above is reconstructed: the measure of similarity, the pairing, when it is done, what
          is learned, and the warm-up. The paper's results are not to be expected of it.
        - Rows of linear layers count as kernels.
        - Of more than two tasks, kernels that are all alike in pairs make one group, of at most one kernel a task, that
          is mixed by the softmax of an alpha each; for two that is the sigmoid above, of their difference.
        - Similar kernels within one network are left alone.

    Example:
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
        rho: Fraction = 0.9,
        warmup: Natural = 1,
        fresh: bool = False,
    ) -> None:
        super().__init__(tasks)
        encoders = self._each(encoder, fresh=fresh)
        check_owned("encoders", encoders, self.tasks)
        self.encoders = nn.ModuleDict({task: encoders[task] for task in self.tasks})
        self.rho = rho
        self.warmup = warmup
        self.layers = _layers_in_common(self.encoders)
        self.mixers = nn.ModuleList([Ties(self._stacked(name, "weight")) for name in self.layers])
        self.heads = heads_for(self.tasks, heads, encoders)

    def _each(self, encoder: Maker | Mapping[str, nn.Module], *, fresh: bool) -> dict[str, nn.Module]:
        if not isinstance(encoder, (Mapping, nn.ModuleDict)):
            return dict(zip(self.tasks, copies(encoder, fresh=fresh), strict=False))
        for task in self.tasks:
            if task not in encoder:
                raise ParameterError(f"encoders: task {task!r} has no encoder; found {sorted(encoder)}.")
        return dict(encoder.items())

    @torch.no_grad()
    def begin_epoch(self, epoch: int) -> None:
        """Find the kernels that are alike, once the warm-up is over.

        Args:
            epoch: the epoch that begins, counted from 0.
        """
        if epoch >= self.warmup:
            for name, ties in self._ties():
                ties.tie(similar_groups(self._stacked(name, "weight"), self.rho))

    @property
    def tied(self) -> dict[str, float]:
        """Layer -> fraction of the tasks' kernels that are one with another task's."""
        return {name: float(ties.tied.float().mean()) for name, ties in self._ties()}

    def summary(self) -> dict[str, Any]:
        """The fraction of kernels tied, layer by layer."""
        return {"tied": self.tied}

    def tables(self) -> tuple[SummaryTable, ...]:
        """Return the fraction of tied kernels per layer."""
        fraction = "tied kernels"
        caption = "Fraction of the tasks' kernels that are replaced by a mean over similar kernels of several tasks."
        rows = tuple(self.tied.items())
        return (SummaryTable("Similar kernels", ("layer", fraction), rows, caption, fractions=(fraction,)),)

    def forward(self, x: Any, tasks: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Run the named tasks' networks with the kernels mixed.

        Args:
            x: what all encoders read; or task name -> what its encoder reads.
            tasks: names of the tasks, all by default.
        """
        chosen = self.chosen(tasks)
        own = x if isinstance(x, Mapping) and x.keys() == self.tasks.keys() else dict.fromkeys(self.tasks, x)
        with swap_tensors(self, dict(self._mixed())):
            return {task: self.heads[task](self.encoders[task](own[task])) for task in chosen}

    def _ties(self) -> Iterator[tuple[str, Ties]]:
        return zip(self.layers, cast("Iterable[Ties]", self.mixers), strict=True)

    def _mixed(self) -> Iterator[tuple[str, Tensor]]:
        """Name -> tensor in the place of every kernel and its bias."""
        for name, ties in self._ties():
            for kind in ("weight", "bias"):
                stacked = self._stacked(name, kind)
                if fx._symbolic_trace.is_fx_symbolic_tracing():
                    raise ParameterError("MTAL mixes kernels out of a graph's sight; take `separated()` in its place")
                if stacked is not None:
                    for task, tensor in zip(self.tasks, ties(stacked).unbind(), strict=True):
                        yield f"{_path(task, name)}.{kind}", tensor

    def _stacked(self, layer: str, kind: str) -> Any:
        """A tensor of the layer in all tasks, (T, kernels, ...); None if it has none of this kind."""
        tensors = [getattr(encoder.get_submodule(layer), kind) for encoder in self.encoders.values()]
        return None if tensors[0] is None else torch.stack(tensors)

    @torch.no_grad()
    def separated(self) -> SingleTask:
        """A copy of the networks that computes the same without ties: each has the mixed kernels as its own."""
        own = deepcopy(self)
        for name, tensor in list(own._mixed()):
            own.get_parameter(name).copy_(tensor)
        return SingleTask(own.encoders, list(own.tasks.values()), own.heads).train(self.training)  # type: ignore[arg-type]

    def parameter_tasks(self) -> dict[str, frozenset[str]]:
        """Kernels and their weights serve all tasks, as any two may be paired; norms and heads serve one."""
        everyone = frozenset(self.tasks)
        common = {*self.shared_parameters(), *self.unmasked_parameters()}
        return {n: everyone if n in common else frozenset({n.split(".")[1]}) for n, _ in self.named_parameters()}

    def shared_modules(self) -> dict[str, nn.Module]:
        """The layers with kernels of all encoders."""
        return {_path(t, name): self.encoders[t].get_submodule(name) for t in self.tasks for name in self.layers}

    def unmasked_modules(self) -> dict[str, nn.Module]:
        """What kernels are mixed with."""
        return {f"mixers.{index}": ties for index, ties in enumerate(self.mixers)}

    def task_modules(self, task: str) -> dict[str, nn.Module]:
        """The head, and what of the task's encoder has no kernels, such as norms."""
        self.check_task(task)
        _, others = _divided(self.encoders[task])
        return {**{_path(task, name): module for name, module in others.items()}, f"heads.{task}": self.heads[task]}


class Ties(nn.Module):
    """Which kernels of a layer are one, and what each of them weighs in it.

    Args:
        kernels: those of all tasks, (T, kernels, ...).

    Attributes:
        alpha: logits (T, kernels) of what each weighs in its group.
        group: (T, kernels); kernels with the same number are one. It is the place of the first of them, counted over
            all tasks, so that the shape never changes.
    """

    group: Tensor

    def __init__(self, kernels: Tensor) -> None:
        super().__init__()
        streams, count = kernels.shape[:2]
        self.alpha = nn.Parameter(torch.zeros(streams, count, device=kernels.device))
        self.register_buffer("group", torch.arange(streams * count, device=kernels.device).view(streams, count))

    @property
    def tied(self) -> Tensor:
        """Whether a kernel is one with another, bool (T, kernels)."""
        return self.group.flatten().bincount(minlength=self.group.numel())[self.group] > 1

    @torch.no_grad()
    def tie(self, group: Tensor) -> None:
        """Take new groups; those that a kernel joined begin with equal weights.

        Args:
            group: as the attribute.
        """
        joined = torch.zeros_like(self.group, dtype=torch.bool).flatten()
        joined[group[group != self.group]] = True
        self.alpha.masked_fill_(joined[group], 0.0)
        self.group.copy_(group)

    def forward(self, tensors: Tensor) -> Tensor:
        """Kernels, or their biases, (T, kernels, ...) with every group's mixture in the place of its members.

        What is alone stays as it is, bit for bit.
        """
        group, flat = self.group.flatten(), tensors.flatten(0, 1)
        alpha = torch.where(self.tied, self.alpha, 0.0).flatten()
        highest = torch.full_like(alpha, -torch.inf).scatter_reduce(0, group, alpha.detach(), "amax")
        weight = (alpha - highest[group]).exp()
        share = weight / torch.zeros_like(weight).index_add(0, group, weight)[group]
        weighted = share.to(flat.dtype).view(-1, *(1,) * (flat.ndim - 1)) * flat
        return torch.zeros_like(flat).index_add(0, group, weighted)[group].view_as(tensors)


def similar_groups(kernels: Tensor, rho: float) -> Tensor:
    """Which kernels of different tasks are alike, each with at most one of every other task.

    Pairs are taken greedily, the most alike first; with more than two tasks, pairs grow to groups in which any two
    kernels are alike.

    Args:
        kernels: those of all tasks, (T, kernels, ...).
        rho: cosine above which two are alike.

    Returns:
        (T, kernels): the place, counted over all tasks, of the first kernel of each one's group.
    """
    streams, count = kernels.shape[:2]
    pairs = _similar_pairs(kernels, rho)
    alike = set(pairs)
    groups = [[place] for place in range(streams * count)]
    for one, other in pairs:
        if all((min(p, q), max(p, q)) in alike for p in groups[one] for q in groups[other]):
            joined = sorted(groups[one] + groups[other])
            for place in joined:
                groups[place] = joined
    return torch.tensor([group[0] for group in groups], device=kernels.device).view(streams, count)


def _similar_pairs(kernels: Tensor, rho: float) -> list[tuple[int, int]]:
    """Places of kernels of two tasks whose cosine exceeds rho, the most alike first, then by place."""
    exact = torch.promote_types(kernels.dtype, torch.float32)
    unit = F.normalize(kernels.flatten(2).to(exact), dim=2)
    streams, count = unit.shape[:2]
    values, places = [], []
    for a, b in combinations(range(streams), 2):
        cosine = (unit[a] @ unit[b].T).clamp(max=1.0)
        found = (cosine > rho).nonzero()
        values.append(cosine[found[:, 0], found[:, 1]])
        places.append(found + found.new_tensor([a * count, b * count]))
    if not values:
        return []
    order = torch.cat(values).argsort(descending=True, stable=True)
    return [(i, j) for i, j in torch.cat(places)[order].tolist()]


def _layers_in_common(encoders: nn.ModuleDict) -> tuple[str, ...]:
    """Names of the layers with kernels, the same in all encoders.

    Raises:
        ParameterError: if they differ between tasks, or there are none.
    """
    shapes = {task: {n: _shapes(layer) for n, layer in _divided(own)[0].items()} for task, own in encoders.items()}
    first, expected = next(iter(shapes.items()))
    if not expected:
        raise ParameterError(
            f"encoders: that of task {first!r}, {type(encoders[first]).__name__}, has no kernels to be compared: "
            "neither convolutions nor linear layers outside of modules that hold other parameters."
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
    """Kind and shapes of a layer in words."""
    shapes = " and ".join(str(tuple(p.shape)) for p in layer._parameters.values() if p is not None)
    return f"{type(layer).__name__} of {shapes}"


def _divided(encoder: nn.Module) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    """By name, the layers with kernels, and the other modules that hold tensors, with all that is inside of them."""
    layers: dict[str, nn.Module] = {}
    others: dict[str, nn.Module] = {}
    for name, module in encoder.named_modules():
        if any(not other or name.startswith(f"{other}.") for other in others):
            continue
        if type(module) in KINDS and isinstance(module._parameters.get("weight"), nn.Parameter):
            layers[name] = module
        elif module._parameters or module._buffers:
            others[name] = module
    return layers, others


def _path(task: str, name: str) -> str:
    """Name in the model of a module of a task's encoder."""
    return f"encoders.{task}.{name}" if name else f"encoders.{task}"
