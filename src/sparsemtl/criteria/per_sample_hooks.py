"""Per-sample gradients from one forward and one backward pass per batch, by hooks on every layer."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sparsemtl.criteria.gradient_powers import GradientPowers, PowerSum, Totals, wide, zeros_like
from sparsemtl.criteria.per_sample_layers import GradientRule, rule_for
from sparsemtl.networks.swap import swap_tensors


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

    def add(self, names: dict[str, str], layer: nn.Module, rule: GradientRule, x: Tensor, dy: Tensor) -> None:
        """Add one layer's gradients, where its first axis is the batch."""
        if not self.broken.isdisjoint(names.values()):
            return
        if self.alone is not None and dy.count_nonzero() != dy[self.alone].count_nonzero():
            self.broken.update(names.values())
            return
        totals = {own: self.totals[name] for own, name in names.items() if name in self.totals}
        if totals:
            rule.add(layer, x, dy.detach(), totals, self.sums)


class HookedPowers(GradientPowers):
    """Powers by rules from each layer's input, kept in the forward pass, and the gradient of its output.

    Hooks see a parameter only through its own layer's call. Where hooks cannot be right (`broken`), the parameter must
    be summed by other means. What hooks cannot notice, such as a weight that other code reads, only a check against
    autograd finds.

    Args:
        model: as in `GradientPowers`.
        parameters: parameters that `hookable` returns.
        sums: as in `GradientPowers`.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, Tensor], sums: PowerSum) -> None:
        super().__init__(model, parameters, sums)
        self.called: set[str] = set()
        self._backward = _Backward(sums)
        self._anchor = torch.zeros((), requires_grad=True)
        self._outputs: dict[str, Tensor] = {}
        self._inputs: dict[nn.Module, Tensor] = {}
        self._versions: dict[nn.Module, int] = {}

    @property
    def broken(self) -> set[str]:
        """Parameters for which hooks are wrong on the present batch."""
        return self._backward.broken

    def drop(self, names: Iterable[str]) -> None:
        """Leave parameters to other means."""
        for name in names:
            self.parameters.pop(name, None)

    def zeros(self) -> dict[str, Tensor]:
        """Return totals of zeros in the rules' memory layout."""
        return zeros_for(self.model, self.parameters)

    def forward(self, x: Any, tasks: tuple[str, ...]) -> dict[str, Tensor]:
        """Run the model with hooks.

        Afterwards `broken` holds the parameters for which the hooks are wrong on this batch, and `called` those whose
        layer ran.
        """
        self._outputs, self._inputs, self._versions, self.called = {}, {}, {}, set()
        self._backward = _Backward(self.sums)
        layers = _layers(self.model, self.parameters)
        handles = [
            layer.register_forward_hook(functools.partial(self._keep, names), prepend=True, with_kwargs=True)
            for layer, names in layers.items()
        ]
        try:
            with swap_tensors(self.model, self.detached):
                self._outputs = self.model(x, tasks=tasks)
        finally:
            for handle in handles:
                handle.remove()
        batch = len(next(iter(self._outputs.values())))
        for layer, read in self._inputs.items():
            if len(read) != batch or read._version != self._versions[layer]:
                self.broken.update(layers[layer].values())
        self._inputs = {}
        return {task: output.detach() for task, output in self._outputs.items()}

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
        self.called.update(names.values())
        if any(getattr(layer, own) is not self.detached[name] for own, name in names.items()):
            self.broken.update(names.values())  # the model replaced the parameter by a tensor computed from it
            return None
        if layer in self._inputs or rule is None or not _matching(x, output) or not rule.handles(layer, x):
            self.broken.update(names.values())
            return None
        if not output.requires_grad:
            output = _Anchored.apply(output, self._anchor)  # type: ignore[no-untyped-call]
        x = x.detach()
        self._inputs[layer] = x
        self._versions[layer] = x._version
        output.register_hook(functools.partial(self._backward.add, names, layer, rule, x))
        result: Tensor = output
        return result

    def add(self, cotangents: Mapping[str, Tensor], totals: Totals) -> None:
        """Run one backward pass through the graph of activations."""
        reached = [task for task in cotangents if self._outputs[task].requires_grad]
        if reached:
            self._backward.totals = totals
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
    """Return the parameters that belong to a single layer, which has a rule."""
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    ruled = {
        name
        for layer, names in _layers(model, parameters).items()
        if rule_for(layer) is not None
        for name in names.values()
    }
    return {name: p for name, p in parameters.items() if name in ruled and owners[id(p)] == 1}


def zeros_for(model: nn.Module, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return totals of zeros in the memory layout of the layers' rules."""
    totals = zeros_like(parameters)
    for layer, names in _layers(model, parameters).items():
        rule = rule_for(layer)
        if rule is not None:
            totals.update({name: rule.zeros(parameters[name], wide(parameters[name].dtype)) for name in names.values()})
    return totals
