"""Operations that treat every channel for itself, and all alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from sparsemtl.compaction.calls import operand, operation
from sparsemtl.compaction.channels import Constants, Layout, Need
from sparsemtl.compaction.rules.rule import Editor, Rule, Site, kept

Passing = Callable[..., Constants]
"""Which channels of the output are constant, from those of the inputs."""


class Channelwise(Rule):
    """Every channel of the output is made of the same channel of all inputs.

    Args:
        node: see `Rule`.
        inputs: see `Rule`; those of several have one layout.
        layout: see `Rule`.
        passing: what becomes of constants.
    """

    passes_on = True

    def __init__(self, node: fx.Node, inputs: Sequence[fx.Node], layout: Layout, passing: Passing) -> None:
        super().__init__(node, inputs, layout)
        self.passing = passing

    def constants(self, *inputs: Constants | None) -> Constants | None:
        """Constants of all inputs may make one of the output."""
        return None if any(constants is None for constants in inputs) else self.passing(*inputs)

    def needs(self, out: Need | None, *inputs: Layout) -> list[Need | None]:
        """Every input needs what the output does."""
        return [out for _ in inputs]

    def rewrite(self, out: Need | None, present: Sequence[Tensor | None], editor: Editor) -> Tensor | None:
        """Bring inputs with different channels to those that are needed; the output has what they have."""
        if out is None or self.layout.channels is None:
            return None
        masks = [kept(mask, self.layout.channels) for mask in present]
        if all(torch.equal(mask, masks[0]) for mask in masks):
            return masks[0]
        for source, mask in zip(self.inputs, masks, strict=True):
            if not torch.equal(mask, out.carried):
                chosen = editor.select(source, out.carried[mask], self.layout.axis, editor.device())
                self.node.replace_input_with(source, chosen)
        return out.carried


class Product(Channelwise):
    """Two tensors multiplied, of which a gate may be one: where either is zero so is the product.

    The other factor is taken to be finite there, as a gate's is.
    """

    def constants(self, *inputs: Constants | None) -> Constants | None:
        """Constants of both, and zeros of one."""
        assert self.layout.channels is not None
        found = [each or Constants.none(self.layout.channels) for each in inputs]
        computed = self.passing(*found)
        zero = torch.stack([each.known & (each.value == 0) for each in found]).any(0)
        return Constants(computed.known | zero, torch.where(zero, 0, computed.value))


def preserved(constants: Constants) -> Constants:
    """Every constant stays what it is."""
    return constants


def zeros(*inputs: Constants) -> Constants:
    """Only zero stays zero; the first input tells."""
    return inputs[0].where(inputs[0].value == 0)


def lost(*inputs: Constants) -> Constants:
    """No constant stays one."""
    return Constants.none(len(inputs[0].known))


def elementwise(site: Site) -> Rule | None:
    """A function of the numbers at one place of one or more tensors."""
    scalars = {n: t for n in site.node.all_input_nodes if (t := site.network.tensor(n)) is not None and t.numel() == 1}
    inputs = [node for node in site.node.all_input_nodes if node not in scalars]
    layouts = {site.layouts[node] for node in inputs}
    if len(layouts) != 1 or any(scalar.ndim > 1 for scalar in scalars.values()):
        return None
    (layout,) = layouts
    if len(inputs) > 1 and not layout.whole:
        return None
    copies = operation(site.node) in ("clone", "contiguous", "detach")
    kind = Product if operation(site.node) == "mul" and len(inputs) == 2 else Channelwise
    return kind(site.node, inputs, layout, preserved if copies else partial(_computed, site, inputs, scalars))


def _computed(site: Site, inputs: Sequence[fx.Node], scalars: dict[fx.Node, Tensor], *found: Constants) -> Constants:
    """What the operation makes of constants."""
    values = {node: constants.value for node, constants in zip(inputs, found, strict=True)}
    values |= {node: scalar.detach().double().cpu() for node, scalar in scalars.items()}
    args: Any = map_arg(site.node.args, lambda node: values[node])
    kwargs: Any = map_arg(site.node.kwargs, lambda node: values[node])
    module = site.module
    if module is not None:
        value = module(*args, **kwargs)
    elif site.node.op == "call_method":
        value = getattr(args[0], str(site.node.target))(*args[1:], **kwargs)
    else:
        value = site.node.target(*args, **kwargs)  # type: ignore[operator]
    known = torch.stack([constants.known for constants in found]).all(0)
    return Constants(known & value.isfinite(), value)


def alike(site: Site, passing: Passing) -> Rule | None:
    """An operation on one tensor that leaves its axes where they are."""
    source = operand(site.node)
    return None if source is None else Channelwise(site.node, [source], site.layouts[source], passing)
