"""Operations on several tensors that have the channels on one axis, such as the heads of queries, keys and values.

The channels of one tensor may be groups of those of another: of 8 query heads and 2 heads of keys and values, each of
the latter belongs to 4 of the former. Tensors without channels are broadcast along the axis.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx

from sparsemtl.compaction.graph.channels import Constants, Layout, Need
from sparsemtl.compaction.graph.operations import argument, operand, operation
from sparsemtl.compaction.graph.sizes import shape_of
from sparsemtl.compaction.rules.channelwise import Channelwise, lost, zeros
from sparsemtl.compaction.rules.rule import ChannelRule, Editor, Maker, Site, UnknownRule, kept

Zeros = Callable[[Sequence[Tensor]], Tensor]
"""Returns the channels of the output that are zero, given those of every tensor with channels."""


class Aligned(ChannelRule):
    """Rule of nodes that compute every channel of the output from that channel, or its group, of all tensors.

    Args:
        node: see `ChannelRule`.
        own: layouts of the tensors with channels, by their nodes.
        others: tensors that are the same for all channels.
        layout: see `ChannelRule`.
        zeros: which channels of the output are zero.
    """

    passes_on = True

    def __init__(
        self, node: fx.Node, own: Mapping[fx.Node, Layout], others: Sequence[fx.Node], layout: Layout, zeros: Zeros
    ) -> None:
        super().__init__(node, [*own, *others], layout)
        self.own = own
        self.zeros = zeros
        assert layout.channels is not None
        self.channels = layout.channels
        self.counts = [each.channels or 1 for each in own.values()]

    def constants(self, *inputs: Constants | None) -> Constants:
        """Return the channels that are zero."""
        found = [
            torch.zeros(count, dtype=torch.bool) if read is None else read.known & (read.value == 0)
            for read, count in zip(inputs, self.counts, strict=False)
        ]
        zero = self.zeros([self._spread(each) for each in found])
        return Constants(zero, torch.zeros(self.channels, dtype=torch.float64))

    def _spread(self, channels: Tensor) -> Tensor:
        """Return the output's channels that belong to some of a tensor's."""
        return channels.repeat_interleave(self.channels // len(channels))

    def needs(self, out: Need | None, *inputs: Layout) -> list[Need | None]:
        """Return the need of the output, in whole groups; all channels of the tensors that are broadcast."""
        assert out is not None
        carried = self._closed(out.carried)
        needs: list[Need | None] = [Need(_any(out.live, count), _any(carried, count)) for count in self.counts]
        others = inputs[len(needs) :]
        return needs + [None if each.channels is None else Need.all(each.channels) for each in others]

    def _closed(self, channels: Tensor) -> Tensor:
        """Return all channels of the groups that contain some."""
        return self._spread(_any(channels, min(self.counts)))

    def rewrite(self, out: Need | None, present: Sequence[Tensor | None], editor: Editor) -> Tensor | None:
        """Reduce tensors with different channels to the needed ones."""
        assert out is not None
        masks = [kept(mask, count) for mask, count in zip(present, self.counts, strict=False)]
        spread = [self._spread(mask) for mask in masks]
        if all(torch.equal(mask, spread[0]) for mask in spread):
            return spread[0]
        left = self._closed(out.carried)
        for (source, layout), mask, whole in zip(self.own.items(), masks, spread, strict=True):
            if not torch.equal(whole, left):
                entries = _any(left, len(mask))[mask].repeat_interleave(layout.spread or 1)
                chosen = editor.select(source, entries, layout.axis, editor.device())
                self.node.replace_input_with(source, chosen)
        return left


def _any(channels: Tensor, count: int) -> Tensor:
    return channels.view(count, -1).any(1)


def _aligned(
    site: Site, sources: Sequence[fx.Node], zeros: Zeros, *, groups: bool = False, aside: fx.Node | None = None
) -> Aligned | None:
    """Return the rule of a node that reads tensors with channels on one axis, counted from the last.

    Args:
        site: the node.
        sources: the tensors; those without channels are broadcast.
        zeros: see `Aligned`.
        groups: the tensors may have fewer entries on the axis than the output, each of which serves several.
        aside: a tensor that is read whole and has other axes.
    """
    shape = shape_of(site.node)
    own = {source: site.layouts[source] for source in sources if site.layouts[source].channels is not None}
    if shape is None or not own or any(layout.rank is None or layout.spread is None for layout in own.values()):
        return None
    places = {layout.axis - len(shape_of(source) or ()) for source, layout in own.items()}
    place = max(places)
    entries = {(layout.channels or 0) * (layout.spread or 0) for layout in own.values()}
    entries = {max(entries)} if groups else entries
    others = [source for source in dict.fromkeys(site.node.all_input_nodes) if source not in own]
    known = all(shape_of(source) is not None for source in own)
    fits = all(each is aside or _is_broadcast(each, place) for each in others)
    if len(places) != 1 or len(entries) != 1 or not known or not fits:
        return None
    counts = [layout.channels or 1 for layout in own.values()]
    layout = next(each for each in own.values() if each.channels == max(counts))
    if any(max(counts) % count or count % min(counts) for count in counts) or shape[place] != entries.pop():
        return None
    made = replace(layout, rank=len(shape), axis=len(shape) + place)
    return Aligned(site.node, own, others, made, zeros)


def _is_broadcast(node: fx.Node, place: int) -> bool:
    """Return whether a tensor has no axis at a place, or one of length one; numbers have none."""
    shape = shape_of(node)
    return shape is None or len(shape) < -place or shape[place] == 1


def _any_zero(found: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(found)).any(0)


def _no_zero(found: Sequence[Tensor]) -> Tensor:
    return torch.zeros_like(found[0])


def _last(found: Sequence[Tensor]) -> Tensor:
    return found[-1]


def _all_zero(found: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(found)).all(0)


def broadcast(site: Site) -> ChannelRule | None:
    """Return the rule of an operation on elements of tensors, some of which are the same for all channels."""
    product = operation(site.node) == "mul"
    return _aligned(site, site.node.all_input_nodes, _any_zero if product else _no_zero)


def product(site: Site) -> ChannelRule | None:
    """Return the rule of a product of matrices, of which there is one for every channel."""
    rule, shape = _aligned(site, site.node.all_input_nodes, _any_zero), shape_of(site.node)
    return rule if rule is not None and shape is not None and rule.layout.axis < len(shape) - 2 else None


def mixture(site: Site) -> ChannelRule | None:
    """Return the rule of `sparsemtl.architectures.gates.mixed`: experts' features, weighted by a gate."""
    stacks, logits = argument(site.node, 0, "stacks", ()), argument(site.node, 1, "logits", None)
    if not isinstance(stacks, (tuple, list)) or not isinstance(logits, fx.Node) or logits in stacks:
        return None
    rule = _aligned(site, stacks, _all_zero, aside=logits)
    return rule if rule is not None and len(rule.own) == len(set(stacks)) and rule.layout.axis > 0 else None


def contraction(site: Site) -> ChannelRule | None:
    """Return the rule of `torch.tensordot(weight, x, dims=1)`, which mixes along the first axis of `x`."""
    weight, source = (argument(site.node, place, name, None) for place, name in enumerate("ab"))
    own = site.network.tensor(weight)
    layout = site.layouts.get(source, Layout())
    if own is None or own.ndim != 2 or layout.channels is None or layout.rank is None or layout.axis == 0:
        return None
    return Channelwise(site.node, [source], layout, zeros) if argument(site.node, 2, "dims", 2) == 1 else None


def attention(site: Site) -> ChannelRule | None:
    """Return the rule of `scaled_dot_product_attention`, which is zero where the values are."""
    node = site.node
    query, key, value = (argument(node, place, name, None) for place, name in enumerate(("query", "key", "value")))
    mask, drawn = argument(node, 3, "attn_mask", None), argument(node, 4, "dropout_p", 0.0)
    sources = [query, key, value]
    if drawn != 0 or not all(isinstance(each, fx.Node) for each in sources):
        return None
    if len(set(sources)) < 3 or mask in sources:
        return None
    rule = _aligned(site, sources, _last, groups=argument(node, 7, "enable_gqa", False) is True)
    shape = shape_of(node) or ()
    return rule if rule is not None and len(rule.own) == 3 and rule.layout.axis < len(shape) - 2 else None


def softmax(site: Site) -> ChannelRule | None:
    """Return the rule of a softmax along another axis than the channels'."""
    source = operand(site.node)
    axis = getattr(site.module, "dim", None) if site.module is not None else argument(site.node, 1, "dim", None)
    layout = site.layouts[source] if source is not None else Layout()
    if source is None or layout.channels is None or layout.rank is None or not isinstance(axis, int):
        return None
    return None if axis % layout.rank == layout.axis else Channelwise(site.node, [source], layout, lost)


def norm(site: Site) -> ChannelRule | None:
    """Return the rule of a norm over axes behind the channels'."""
    source, module = operand(site.node), site.module
    layout = site.layouts[source] if source is not None else Layout()
    if source is None or module is None or layout.rank is None:
        return None
    if layout.channels is None:
        return UnknownRule(site.node, [source], Layout(layout.rank))
    behind = layout.axis < layout.rank - len(module.normalized_shape)  # type: ignore[arg-type]
    if behind:
        return Channelwise(site.node, [source], layout, lost)
    return UnknownRule(site.node, [source], Layout(layout.rank))


def joined(site: Site) -> ChannelRule | None:
    """Return the rule of `torch.cat` along another axis than the channels'."""
    listed, axis, shape = argument(site.node, 0, "tensors", ()), argument(site.node, 1, "dim", 0), shape_of(site.node)
    nodes = isinstance(listed, (tuple, list)) and bool(listed) and all(isinstance(each, fx.Node) for each in listed)
    if not nodes or shape is None or not isinstance(axis, int):
        return None
    rule = _aligned(site, list(listed), _all_zero)
    if rule is None or len(rule.own) < len(set(listed)):
        return None
    return None if axis % len(shape) == rule.layout.axis else rule


OPERATIONS: dict[str, Maker] = {
    **dict.fromkeys(("masked_fill", "where"), broadcast),
    **dict.fromkeys(("matmul", "bmm"), product),
    "scaled_dot_product_attention": attention,
    "softmax": softmax,
    "tensordot": contraction,
}
"""Operation of torch -> rule."""
