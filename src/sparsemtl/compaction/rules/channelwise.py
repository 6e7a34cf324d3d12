"""Operations that treat every channel separately, and all in the same way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from sparsemtl.compaction.graph.channels import Constants, Layout, Need
from sparsemtl.compaction.graph.operations import operand, operation
from sparsemtl.compaction.rules.rule import ChannelRule, Editor, Site, kept

Passing = Callable[..., Constants]
"""Returns the constant channels of the output, given those of all inputs."""


class Channelwise(ChannelRule):
    """Rule of nodes that compute every channel of the output from the same channel of all inputs.

    Args:
        node: see `ChannelRule`.
        inputs: see `ChannelRule`; several inputs have one layout.
        layout: see `ChannelRule`.
        passing: returns the constants of the output.
        product: True for a product of two tensors, one of which may be a gate: where either is zero so is the product.
            The other factor is assumed to be finite there, as a gate's is.
        on_removal: called with the node and the mask of the channels that are left.
    """

    passes_on = True

    def __init__(
        self,
        node: fx.Node,
        inputs: Sequence[fx.Node],
        layout: Layout,
        passing: Passing,
        *,
        product: bool = False,
        on_removal: Callable[[fx.Node, Tensor], None] | None = None,
    ) -> None:
        super().__init__(node, inputs, layout)
        self.passing = passing
        self.product = product
        self.on_removal = on_removal

    def constants(self, *inputs: Constants | None) -> Constants | None:
        """Return constants computed from those of all inputs; zeros of one suffice for a product."""
        if self.product:
            return self._of_product(*inputs)
        return None if any(constants is None for constants in inputs) else self.passing(*inputs)

    def _of_product(self, *inputs: Constants | None) -> Constants:
        assert self.layout.channels is not None
        found = [each or Constants.none(self.layout.channels) for each in inputs]
        computed = self.passing(*found)
        zero = torch.stack([each.known & (each.value == 0) for each in found]).any(0)
        return Constants(computed.known | zero, torch.where(zero, 0, computed.value))

    def needs(self, out: Need | None, *inputs: Layout) -> list[Need | None]:
        """Return the need of the output for every input."""
        return [out for _ in inputs]

    def rewrite(self, out: Need | None, present: Sequence[Tensor | None], editor: Editor) -> Tensor | None:
        """Reduce inputs with different channels to the needed ones; the output has the channels of the inputs."""
        left = self._left(out, present, editor)
        if left is not None and self.on_removal is not None:
            self.on_removal(self.node, left)
        return left

    def _left(self, out: Need | None, present: Sequence[Tensor | None], editor: Editor) -> Tensor | None:
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


def preserved(constants: Constants) -> Constants:
    """Return every constant unchanged."""
    return constants


def zeros(*inputs: Constants) -> Constants:
    """Return the zeros among the constants of the first input."""
    return inputs[0].where(inputs[0].value == 0)


def lost(*inputs: Constants) -> Constants:
    """Return no constants."""
    return Constants.none(len(inputs[0].known))


def elementwise(site: Site) -> ChannelRule | None:
    """Return the rule of a function of the numbers at one position of one or more tensors."""
    scalars = {n: t for n in site.node.all_input_nodes if (t := site.network.tensor(n)) is not None and t.numel() == 1}
    inputs = [node for node in site.node.all_input_nodes if node not in scalars]
    layouts = {site.layouts[node] for node in inputs}
    if len(layouts) != 1 or any(scalar.ndim > 1 for scalar in scalars.values()):
        return None
    (layout,) = layouts
    if len(inputs) > 1 and not layout.whole:
        return None
    copies = operation(site.node) in ("clone", "contiguous", "detach")
    passing = preserved if copies else partial(_computed, site, inputs, scalars)
    product = operation(site.node) == "mul" and len(inputs) == 2
    return Channelwise(site.node, inputs, layout, passing, product=product)


def _computed(site: Site, inputs: Sequence[fx.Node], scalars: dict[fx.Node, Tensor], *found: Constants) -> Constants:
    """Return the constants that the operation computes from those of its inputs."""
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


def alike(site: Site, passing: Passing) -> ChannelRule | None:
    """Return the rule of an operation on one tensor that does not move the axes."""
    source = operand(site.node)
    return None if source is None else Channelwise(site.node, [source], site.layouts[source], passing)


def cast(site: Site) -> ChannelRule | None:
    """Return the rule of a cast to a dtype, a device or a layout in memory, named or read from a tensor's attribute.

    Zeros stay zeros in every dtype; other constants may be rounded.
    """
    named = all(node is operand(site.node) or node.target is getattr for node in site.node.all_input_nodes)
    return alike(site, zeros) if named else None


CASTS = ("bfloat16", "double", "float", "half", "to", "type")
"""Operations that are casts."""
