"""Squeeze-and-excitation per task: one encoder, whose channels every task scales by factors of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from copy import deepcopy
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from typing_extensions import Doc

from sparsemtl.architectures.heads import heads_for
from sparsemtl.backbones.stages import sequence_of
from sparsemtl.backbones.stemmed import Stemmed
from sparsemtl.errors import ParameterError
from sparsemtl.networks.frozen import Frozen
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.networks.patterns import Pattern, Patterns, no_match
from sparsemtl.registry.parameters import Count, validated

if TYPE_CHECKING:
    from sparsemtl.tasks.task import Task


class SqueezeExcitation(MultiTaskModel):
    """One encoder whose channels every task scales in its own way (ASTMT; Maninis et al. 2019).

    Behind every block of the encoder, task t replaces the block's output z by z * s(V ReLU(U m(z) + b) + b'), where
    m(z) is the mean of every channel over its positions, s the sigmoid, and U (C / r, C), V (C, C / r), b and b' belong
    to the task. A block is a convolution with the norm behind it, those of shortcuts included; its activation comes
    after the excitation. In a stack of layers without convolutions, linear layers take their place. All tasks share the
    encoder, and masks may be put on it; the excitations are never masked. Every task runs the encoder on its own.

    Args:
        encoder: any module; the model holds a copy of it, in which a module `module` stands where the block stood.
        tasks: the tasks.
        heads: task name -> head, as in `SharedBottom`.

    Attributes:
        sites: names in the encoder of the modules whose outputs are scaled.

    Raises:
        ParameterError: if no block is found, `after` names no module, or a named module has no layer that tells its
            number of channels.

    Differences from the paper:
        - The excitation stands before the activation, as in the code of Pascal et al. (2021), with which FSMTL
          compares; ASTMT's own code has it behind.
        - Batch-norm statistics are per task unless `bn` of the sharing method says otherwise, for tasks run different
          networks; ASTMT's norms of each task have scales and shifts of their own as well.
        - ASTMT's adapters beside the layers and its adversarial loss are left out.

    Examples:
        >>> encoder = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.ReLU())
        >>> model = SqueezeExcitation(encoder, [Classification("a", 3), Regression("b")], reduction=4)
        >>> model.sites
        ('1', '3')
        >>> SqueezeExcitation(encoder, [Regression("b")], after="ReLU").sites
        Traceback (most recent call last):
        sparsemtl.errors.ParameterError: `after`: '2' (ReLU) has no layer that tells its number of channels. Name the \
layer in front of it.
    """

    norms_per_task = True

    @validated
    def __init__(
        self,
        encoder: nn.Module,
        tasks: Sequence[Task],
        heads: Mapping[str, nn.Module] | None = None,
        *,
        reduction: Annotated[Count, Doc("Factor r by which U reduces the channels, to max(1, C // r).")] = 16,
        after: Annotated[
            Patterns | None,
            Doc(
                "Modules of the encoder behind which channels are scaled: names, globs or classes of modules, such as "
                "`[layer1, 'layer2.*', BasicBlock]`; of modules inside each other, the outermost that a pattern "
                "matches. By default every convolution, or the norm behind it."
            ),
        ] = None,
    ) -> None:
        super().__init__(tasks)
        encoder = deepcopy(encoder)
        body = _body(encoder)
        found = _blocks(body) if after is None else _named(body, after)
        self.sites = tuple(found)
        self.excitations = nn.ModuleDict(
            {
                task: nn.ModuleList([_Excitation(_channels(n, m), reduction) for n, m in found.items()])
                for task in self.tasks
            }
        )
        own: dict[str, Any] = dict(self.excitations.items())
        scaled = {m: _Scaled(m, {t: own[t][i] for t in own}) for i, m in enumerate(found.values())}
        self.encoder = _with_scaled(encoder, scaled)
        self.heads = heads_for(self.tasks, heads, dict.fromkeys(self.tasks, encoder))

    def forward(self, x: Any, tasks: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Run the encoder and the head of each named task, with the task's excitations."""
        outputs = {}
        for task in dict.fromkeys(self.chosen(tasks)):
            with _running(task):
                features = self.encoder(x)
            outputs[task] = self.heads[task](features)
        return outputs

    def parameter_tasks(self) -> dict[str, frozenset[str]]:
        """Return the tasks that use each parameter: all tasks for the encoder, one for an excitation and a head."""
        users = dict.fromkeys((name for name, _ in self.named_parameters()), frozenset(self.tasks))
        for task in self.tasks:
            users.update(dict.fromkeys(self.task_parameters(task), frozenset({task})))
        return users

    def shared_modules(self) -> dict[str, nn.Module]:
        """Return the encoder."""
        return {"encoder": self.encoder}

    def encoder_modules(self) -> dict[str, nn.Module]:
        """Return the encoder."""
        return self.shared_modules()

    def task_modules(self, task: str) -> dict[str, nn.Module]:
        """Return the task's excitations and head."""
        self.check_task(task)
        own = {f"excitations.{task}": self.excitations[task], f"heads.{task}": self.heads[task]}
        return {**own, **self.loss_modules(task)}


class _Excitation(nn.Module):
    """Factors of the channels of a tensor, computed from the means of all its channels.

    Args:
        channels: number of channels C.
        reduction: factor r; the layer between has max(1, C // r) units.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, max(1, channels // reduction))
        self.excite = nn.Linear(self.squeeze.out_features, channels)

    def forward(self, means: Tensor) -> Tensor:
        """Map means (B, C) to factors (B, C) in (0, 1)."""
        factors: Tensor = self.excite(F.relu(self.squeeze(means))).sigmoid()
        return factors


class _Scaled(nn.Module):
    """Module of the encoder, whose output the excitation of the running task scales.

    Args:
        module: the module.
        excitations: task -> its excitation; the model owns them.
    """

    def __init__(self, module: nn.Module, excitations: Mapping[str, _Excitation]) -> None:
        super().__init__()
        self.module = module
        self.excitations = dict(excitations)  # a plain dict, so that the encoder has no parameter of a task

    @property
    def stands_for(self) -> nn.Module:
        """Module in whose place this one stands."""
        return self.module

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the output, (B, C, ...) or (B, ..., C), times the factors of its channels.

        Raises:
            ParameterError: if no task is running, or the output has no axis of C channels.
        """
        task = _task.get()
        if task is None:
            raise ParameterError(_RECOMPUTED if torch._C._current_graph_task_id() != -1 else _OUTSIDE)
        z: Tensor = self.module(*args, **kwargs)
        excitation = self.excitations[task]
        axis = self._axis(z, excitation.squeeze.in_features)
        more = (None,) * (z.ndim - 2)
        means = z if z.ndim == 2 else z.flatten(2).mean(2) if axis == 1 else z.flatten(1, -2).mean(1)
        factors: Tensor = excitation(means)
        if z.ndim > 2:
            factors = factors[(slice(None), slice(None), *more) if axis == 1 else (slice(None), *more)]
        return z * factors

    def _axis(self, z: object, channels: int) -> int:
        """Return the axis of the channels, 1 or -1."""
        kind = type(self.module)
        expected = (1,) if isinstance(self.module, (_ConvNd, *_NORMS)) else (1, -1)
        expected = (-1,) if kind in (nn.Linear, nn.LayerNorm) else expected
        shape = tuple(z.shape) if isinstance(z, Tensor) else ()
        found = [axis for axis in expected if len(shape) > 1 and shape[axis] == channels]
        if len(found) == 1 or (found and len(shape) == 2):
            return found[0]
        where = "axis 1 or the last axis, and on one of them only" if len(expected) > 1 else f"axis {expected[0]}"
        raise ParameterError(
            f"`after`: {kind.__name__} gives {shape or type(z).__name__}; expected a tensor with {channels} channels "
            f"on {where}. Name another module."
        )


_task: ContextVar[str | None] = ContextVar("task", default=None)
"""Task whose forward pass is running in this thread."""
_OUTSIDE = (
    "the encoder of a SqueezeExcitation runs for one task at a time. Call the model, model(x, tasks=['name']), not its "
    "encoder."
)
_RECOMPUTED = (
    "activation checkpointing runs the encoder of a SqueezeExcitation again in the backward pass, where its task is "
    "not known. Switch it off in the modules that hold excitations, or name modules outside of them in `after`."
)


@contextmanager
def _running(task: str) -> Iterator[None]:
    token = _task.set(task)
    try:
        yield
    finally:
        _task.reset(token)


_NORMS = (_NormBase, nn.GroupNorm)
_Entry = tuple[str, nn.Module]
"""Name of a module, and the module."""


def _body(encoder: nn.Module) -> nn.Module:
    """Return the user's own encoder, behind a stem and inside a frozen network."""
    while isinstance(encoder, (Stemmed, Frozen)):
        encoder = encoder.body if isinstance(encoder, Stemmed) else encoder.network
    return encoder


def _blocks(body: nn.Module) -> dict[str, nn.Module]:
    """Return the modules at the ends of blocks by name: norms behind convolutions, and convolutions without one.

    Raises:
        ParameterError: if there are none.
    """
    convolves = any(isinstance(module, _ConvNd) for module in body.modules())
    kind = _ConvNd if convolves else nn.Linear
    found: dict[str, nn.Module] = {}
    if convolves or sequence_of(body) is not None or isinstance(body, kind):
        for prefix, parent in body.named_modules():
            row = [(name, child) for name, child in parent.named_children() if isinstance(child, (kind, *_NORMS))]
            found.update((f"{prefix}.{name}".lstrip("."), module) for name, module in _paired(row, kind))
        if isinstance(body, kind):
            found[""] = body
    if not found:
        raise ParameterError(
            f"{type(body).__name__} has no convolution behind which channels could be scaled. Name modules in `after`."
        )
    return {name: found[name] for name, _ in body.named_modules() if name in found}


def _paired(row: Sequence[_Entry], kind: type[nn.Module]) -> Iterator[_Entry]:
    """Yield the norm behind every layer of a row, or the layer itself.

    The norm is the next module of the row; where all layers are registered before all norms, that of the same place.
    """
    layers = [entry for entry in row if isinstance(entry[1], kind)]
    norms = [entry for entry in row if entry not in layers]
    apart = len(layers) == len(norms) > 1 and list(row) == [*layers, *norms]
    following = dict(zip(layers, norms, strict=True) if apart else pairwise(row))
    for layer in layers:
        norm = following.get(layer, layer)
        yield norm if isinstance(norm[1], _NORMS) and _width(norm[1]) == _width(layer[1]) else layer


def _named(body: nn.Module, after: Patterns) -> dict[str, nn.Module]:
    """Return the outermost modules that each pattern matches, by name, in the order of the encoder.

    Raises:
        ParameterError: if a pattern matches nothing.
    """
    modules = {name: module for name, module in body.named_modules() if name}
    patterns = [after] if isinstance(after, (str, type)) else list(after)
    if not patterns:
        raise ParameterError("`after` names no module. Leave it out to scale the channels behind every convolution.")
    found: set[str] = set()
    for pattern in patterns:
        matching = [name for name, module in modules.items() if _matches(pattern, name, module)]
        if not matching:
            known = f"{type(body).__name__} holds {', '.join(dict(body.named_children()))}."
            raise no_match("after", pattern, {name: [module] for name, module in modules.items()}, known)
        found.update(n for n in matching if not any(n.startswith(f"{other}.") for other in matching))
    return {name: module for name, module in modules.items() if name in found}


def _matches(pattern: Pattern, name: str, module: nn.Module) -> bool:
    if isinstance(pattern, type):
        return isinstance(module, pattern)
    return fnmatchcase(name, pattern) or any(kind.__name__ == pattern for kind in type(module).__mro__)


def _width(layer: nn.Module) -> int | None:
    """Return the number of channels of a layer's output, None for modules that do not determine it."""
    if isinstance(layer, nn.LayerNorm):
        return int(layer.normalized_shape[-1])
    widths = (getattr(layer, name, None) for name in ("out_channels", "out_features", "num_features", "num_channels"))
    return next((width for width in widths if isinstance(width, int)), None)


def _channels(name: str, module: nn.Module) -> int:
    """Return the number of channels of a module's output, which its last layer determines.

    Raises:
        ParameterError: if there is no such layer.
    """
    for layer in reversed(list(module.modules())):
        if not isinstance(layer, nn.Sequential) and (width := _width(layer)) is not None:
            return width
    raise ParameterError(
        f"`after`: {name!r} ({type(module).__name__}) has no layer that tells its number of channels. Name the layer "
        "in front of it."
    )


def _with_scaled(module: nn.Module, scaled: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Return a module with others in the place of some modules inside it, or of itself."""
    for name, child in list(module.named_children()):
        setattr(module, name, _with_scaled(child, scaled))
    return scaled.get(module, module)
