"""Per-sample gradients from one forward and one backward pass per batch, by hooks on every layer.

Hooks are right where the first axis of what a layer reads and returns is the batch. What all samples share is spread
over the batch (`per_sample_shared`), and attention's in-projections are computed one by one (`per_sample_attention`).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemtl.criteria.gradient_powers import GradientPowers, Totals
from sparsemtl.criteria.per_sample_attention import attend, is_attention
from sparsemtl.criteria.per_sample_layers import RULES, GradientRule, rule_for
from sparsemtl.criteria.per_sample_shared import Expansion
from sparsemtl.criteria.power_sum import PowerSum, wide
from sparsemtl.networks.swap import swap_tensors


@dataclass
class _Call:
    """Call of a layer.

    Attributes:
        layer: the layer.
        names: the rule's name of a parameter -> the model's name.
        rule: rule that adds the gradients.
        x: what the layer read, detached.
        leads: what it read depends on no other layer.
        rows: rows of the parameters that were used, None for all.
    """

    layer: nn.Module
    names: Mapping[str, str]
    rule: GradientRule
    x: Tensor
    leads: bool = False
    rows: slice | None = None

    def __post_init__(self) -> None:
        self.version = self.x._version


@dataclass
class _Backward:
    """State of the hooks on the outputs of layers during a backward pass.

    The state must not hold the outputs of the model: a hook whose state holds its own graph is in a cycle through
    autograd, which the garbage collector cannot see, and would never be freed.

    Attributes:
        sums: sum to add.
        broken: parameters for which hooks are wrong on this batch.
        totals: totals to add to.
        alone: sample outside of which all cotangents are zero, None if there is no such sample.
    """

    sums: PowerSum
    broken: set[str] = field(default_factory=set)
    totals: Totals = field(default_factory=dict)
    alone: int | None = None

    def add(self, call: _Call, dy: Tensor) -> None:
        """Add the gradients of a call."""
        if self._keeps_apart(call.names.values(), dy):
            totals = {own: self.totals[name] for own, name in call.names.items() if name in self.totals}
            if call.rows is not None:
                totals = {own: total[call.rows] for own, total in totals.items()}
            if totals:
                call.rule.add(call.layer, call.x, dy.detach(), totals, self.sums)

    def add_spread(self, name: str, dy: Tensor) -> None:
        """Add the gradients of a parameter that was spread."""
        if self._keeps_apart([name], dy) and name in self.totals:
            total = self.totals[name]
            self.sums.gradients(total, dy.detach().reshape(len(dy), *total.shape))

    def _keeps_apart(self, names: Iterable[str], dy: Tensor) -> bool:
        """Return whether hooks are right for parameters; they are `broken` by a gradient in another sample's row."""
        if not self.broken.isdisjoint(names):
            return False
        if self.alone is not None and dy.count_nonzero() != dy[self.alone].count_nonzero():
            self.broken.update(names)
            return False
        return True


class HookedPowers(GradientPowers):
    """Powers by rules from each layer's input, kept in the forward pass, and the gradient of its output.

    Hooks see a parameter only through its own layer's call. Where hooks cannot be right (`broken`), the parameter must
    be summed by other means. What hooks cannot notice, such as a weight that other code reads, only a check against
    autograd finds.

    Args:
        model: as in `GradientPowers`.
        parameters: parameters that `hookable` returns, and parameters that are spread.
        sums: as in `GradientPowers`.
        spreads: parameter name -> spread of the parameter; of what its layer reads and returns, if that has a rule.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, Tensor],
        sums: PowerSum,
        spreads: Mapping[str, Expansion] | None = None,
    ) -> None:
        super().__init__(model, parameters, sums)
        self.spreads = dict(spreads or {})
        self.called: set[str] = set()
        self.shared: dict[nn.Module, Mapping[str, str]] = {}
        self._backward = _Backward(sums)
        self._anchor = torch.zeros((), requires_grad=True)
        self._outputs: dict[str, Tensor] = {}
        self._calls: list[_Call] = []
        self._batch = 0

    @property
    def broken(self) -> set[str]:
        """Parameters for which hooks are wrong on the present batch."""
        return self._backward.broken

    def drop(self, names: Iterable[str]) -> None:
        """Leave parameters to other means, from the present batch on."""
        for name in names:
            self.parameters.pop(name, None)
            self.spreads.pop(name, None)

    def changed(self) -> set[str]:
        """Return the parameters for whose sake the model computes otherwise: spread ones, and those of attention."""
        attention = [own for layer, own in _layers(self.model, self.parameters).items() if is_attention(layer)]
        return {*self.spreads, *(name for own in attention for name in own.values())}

    def zeros(self) -> dict[str, Tensor]:
        """Return totals of zeros in the rules' memory layout."""
        return zeros_for(self.model, self.parameters)

    def forward(self, x: Any, tasks: tuple[str, ...], batch: int = 0) -> dict[str, Tensor]:
        """Run the model with hooks.

        Afterwards `broken` holds the parameters for which the hooks are wrong on this batch, `called` those whose
        layer ran, and `shared` the layers that seem to read the same for all samples.

        Args:
            x: input of the model.
            tasks: tasks to run.
            batch: number of samples in the input, needed where there are spreads.
        """
        self._outputs, self._calls, self.called, self.shared, self._batch = {}, [], set(), {}, batch
        self._backward = _Backward(self.sums)
        with swap_tensors(self.model, self.detached), self._hooks(), swap_tensors(self.model, self._spread()):
            self._outputs = self.model(x, tasks=tasks)
        found = len(next(iter(self._outputs.values())))
        for call in self._calls:
            if len(call.x) != found or call.x._version != call.version:
                self._fail(call)
        if found != batch:
            self.broken.update(self.spreads)
        self._calls = []
        return {task: output.detach() for task, output in self._outputs.items()}

    def _spread(self) -> dict[str, Tensor]:
        """Return the parameters that are spread themselves, and note the gradients that they will have."""
        tensors: dict[str, Tensor] = {}
        for name in self.spreads.keys() - _ruled(self.model, self.spreads):
            view = self.spreads[name](self.detached[name], self._batch)
            tensors[name] = _Anchored.apply(view, self._anchor)  # type: ignore[no-untyped-call]
            tensors[name].register_hook(functools.partial(self._backward.add_spread, name))
            self.called.add(name)
        return tensors

    @contextmanager
    def _hooks(self) -> Iterator[None]:
        """Watch the layers' calls inside the context."""
        handles, replaced = [], []
        for layer, names in _layers(self.model, self.parameters).items():
            if is_attention(layer):
                project = functools.partial(self._project, layer, names)
                vars(layer)["forward"] = functools.partial(attend, layer, project)
                replaced.append(layer)
            elif rule_for(layer) is not None:
                keep = functools.partial(self._keep, names)
                handles.append(layer.register_forward_hook(keep, prepend=True, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for layer in replaced:
                del vars(layer)["forward"]

    def _keep(
        self,
        names: dict[str, str],
        layer: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
    ) -> Tensor | None:
        x: Any = args[0] if args else kwargs.get("input")
        rule = rule_for(layer)
        if not self._begin(layer, names) or rule is None or not isinstance(x, Tensor):
            self.broken.update(names.values())
            return None
        spread = self.spreads.get(next(iter(names.values())))
        if spread is not None:
            x, output = spread(x, self._batch), spread(output, self._batch)
        call = _Call(layer, names, rule, x.detach(), leads=not x.requires_grad)
        if not _matching(x, output) or not rule.handles(layer, x):
            self._fail(call)
            return None
        return self._watch(call, output)

    def _project(self, layer: Any, names: dict[str, str], part: int, x: Tensor) -> Tensor:
        """Return the projection of a part (query, key, value) of attention."""
        if part == 0 and not self._begin(layer, names):
            self.broken.update(names.values())
        rows = slice(part * layer.embed_dim, (part + 1) * layer.embed_dim)
        bias = layer.in_proj_bias
        output = F.linear(x, layer.in_proj_weight[rows], None if bias is None else bias[rows])
        own = {name.removeprefix("in_proj_"): full for name, full in names.items()}
        return self._watch(_Call(layer, own, RULES[nn.Linear], x.detach(), rows=rows), output)

    def _begin(self, layer: nn.Module, names: dict[str, str]) -> bool:
        """Note a call; return False if it is the second, or the model replaced a parameter by a computed tensor."""
        first = self.called.isdisjoint(names.values())
        self.called.update(names.values())
        return first and all(getattr(layer, own) is self.detached[name] for own, name in names.items())

    def _watch(self, call: _Call, output: Tensor) -> Tensor:
        """Return the output of a call, whose gradient will be noted."""
        if not output.requires_grad:
            output = _Anchored.apply(output, self._anchor)  # type: ignore[no-untyped-call]
        self._calls.append(call)
        output.register_hook(functools.partial(self._backward.add, call))
        return output

    def _fail(self, call: _Call) -> None:
        self.broken.update(call.names.values())
        if call.leads:
            self.shared[call.layer] = call.names

    def add(self, cotangents: Mapping[str, Tensor], totals: Totals) -> None:
        """Run one backward pass through the graph of activations."""
        reached = [task for task in cotangents if self._outputs[task].requires_grad]
        if reached:
            self._backward.totals = {name: totals[name] for name in self.parameters if name in totals}
            torch.autograd.backward(
                [self._outputs[task] for task in reached],
                [cotangents[task] for task in reached],
                retain_graph=True,
                inputs=[self._anchor],
            )

    def add_alone(self, sample: int, cotangents: Mapping[str, Tensor], totals: Totals) -> None:
        """Add where only this sample's cotangents are not zero; layers with a gradient for another become `broken`.

        Args:
            sample: the sample.
            cotangents: as in `add`.
            totals: totals to add to; parameters that are missing are only checked.
        """
        self._backward.alone = sample
        try:
            self.add(cotangents, totals)
        finally:
            self._backward.alone = None


class _Anchored(torch.autograd.Function):
    """Function that starts the graph at a layer's output: neither inputs nor parameters need gradients.

    The output is neither a leaf nor a view, so that the model may go on to change it in place.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, anchor: Tensor) -> Tensor:
        return output.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None]:
        return None, None


def _matching(x: Any, output: Any) -> bool:
    return isinstance(x, Tensor) and isinstance(output, Tensor) and x.shape[:1] == output.shape[:1] != ()


def _layers(model: nn.Module, names: Iterable[str]) -> dict[nn.Module, dict[str, str]]:
    """Return layer -> its own name of a parameter -> the model's name of the parameter."""
    wanted = set(names)
    layers: dict[nn.Module, dict[str, str]] = {}
    for prefix, module in model.named_modules():
        own = {n: f"{prefix}.{n}" if prefix else n for n in module._parameters}
        own = {n: name for n, name in own.items() if name in wanted}
        if own:
            layers[module] = own
    return layers


def hookable(model: nn.Module, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the parameters that belong to a single layer, which has a rule or is attention."""
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    ruled = _ruled(model, parameters)
    return {name: p for name, p in parameters.items() if name in ruled and owners[id(p)] == 1}


def _ruled(model: nn.Module, names: Iterable[str]) -> set[str]:
    """Return the parameters of layers that have a rule or are attention."""
    return {
        name
        for layer, own in _layers(model, names).items()
        if rule_for(layer) is not None or is_attention(layer)
        for name in own.values()
    }


def zeros_for(model: nn.Module, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return totals of zeros in the memory layout of the layers' rules."""
    rules = {
        name: rule
        for layer, names in _layers(model, parameters).items()
        if (rule := rule_for(layer)) is not None
        for name in names.values()
    }
    return {
        name: rules[name].zeros(p, wide(p.dtype)) if name in rules else torch.zeros_like(p, dtype=wide(p.dtype))
        for name, p in parameters.items()
    }
