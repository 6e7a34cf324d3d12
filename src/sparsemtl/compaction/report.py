"""Report of a compaction: the channels of every layer before and after, and the reasons why no more were removed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from sparsemtl.compaction.cost import ActivationMemory, parameter_count
from sparsemtl.compaction.graph.channels import Need
from sparsemtl.compaction.graph.network import Network, Select, WeightCut
from sparsemtl.compaction.graph.operations import CONVOLUTIONS, NORMS, operation, torch_class
from sparsemtl.compaction.inputs import Inputs, Like, leaves
from sparsemtl.compaction.rules import ChannelRule, Regrouping, UnknownRule
from sparsemtl.compaction.rules.dense import Dense
from sparsemtl.compaction.verification.comparison import Verification
from sparsemtl.views.tables import Table

FOLDED = "part of the layer before it"
"""Reason of layers, such as batch norms, whose weights another layer took over."""


@dataclass(frozen=True)
class LayerReport:
    """Channels of one layer before and after.

    Attributes:
        name: its name in the model, or that of the function that it is.
        kind: its class.
        inputs: input channels before and after; (n, 0) if it was removed, (0, 0) if they are unknown.
        outputs: output channels before and after.
        why: reason why no more channels were removed; "" if every channel that is left changes the output.
        removed: True if the compacted network has no such layer.
        heads: attention heads that the layer makes or reads before and after; (0, 0) if it is no part of attention.
        parameters: number of parameters before and after.
        macs: multiply-adds of a convolution or linear layer before and after, on the inputs of the report's `macs`;
            (0, 0) for other layers, and without an example.
        activations: numbers that the layer returns before and after, on the same inputs; (0, 0) without an example.
    """

    name: str
    kind: str
    inputs: tuple[int, int]
    outputs: tuple[int, int]
    why: str = ""
    removed: bool = False
    heads: tuple[int, int] = (0, 0)
    parameters: tuple[int, int] = (0, 0)
    macs: tuple[int, int] = (0, 0)
    activations: tuple[int, int] = (0, 0)

    @property
    def change(self) -> str:
        """One of `removed`, `smaller` and `unchanged`."""
        if self.removed:
            return "removed"
        return "unchanged" if self.inputs[0] == self.inputs[1] and self.outputs[0] == self.outputs[1] else "smaller"


@dataclass(frozen=True)
class CompactionReport:
    """Result of a compaction.

    `print` shows it as a table, a notebook as HTML; `to_dict` is for programs, and `sm.report.write_compaction_report`
    writes a page.

    Attributes:
        layers: all layers with channels, in the order in which they run, and all parts that were not changed.
        parameters: number of parameters before and after.
        macs: multiply-adds of convolutions, linear and recurrent layers before and after, of one forward pass on one
            sample of the example (on the whole example if no sample can be run alone); None without an example.
        memory: memory of the activations before and after, on the same inputs in the model's precision; None without
            an example. Before, it is that of the model, whose operations in place make no tensors.
        verification: the comparison of outputs before and after.
        example: inputs of the run, with a `Like` in the place of every tensor; None without an example.
        cuts: name of a layer -> what its weight is cut from.
        rounding: what was measured for `multiple_of`: the multiple of the numbers of channels, layers without their
            zeros; "" if a number was given.
    """

    layers: tuple[LayerReport, ...]
    parameters: tuple[int, int]
    macs: tuple[int, int] | None
    verification: Verification
    example: Inputs | None = None
    memory: tuple[ActivationMemory, ActivationMemory] | None = None
    cuts: Mapping[str, WeightCut] = field(default_factory=dict, repr=False, compare=False)
    rounding: str = ""

    def layer(self, name: str) -> LayerReport:
        """Return the report of one layer, by its name; raise KeyError if there is none."""
        found = {layer.name: layer for layer in self.layers}
        return found[name]

    def __str__(self) -> str:
        return self._table().text()

    def _repr_html_(self) -> str:
        """Return the report as a table, for notebooks."""
        return self._table().html()

    def example_shapes(self) -> str:
        """Return the shapes of the example's tensors in words, "" without an example."""
        return ", ".join(str(each.shape) for each in self._example_tensors())

    def _example_tensors(self) -> list[Like]:
        values = () if self.example is None else (self.example.args, dict(self.example.kwargs))
        return [each for each in leaves(values) if isinstance(each, Like)]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as mappings, lists, strings and numbers, for JSON.

        Pairs are lists, before and after. `version` grows when a key changes its meaning.
        """
        memory = self.memory and {name: [getattr(each, name) for each in self.memory] for name in ("peak", "total")}
        return {
            "format": "sparsemtl.compaction",
            "version": 1,
            "parameters": list(self.parameters),
            "macs": self.macs and list(self.macs),
            "activation_bytes": memory,
            "verification": self.verification.to_dict(),
            "example": [{"shape": list(each.shape), "dtype": str(each.dtype)} for each in self._example_tensors()],
            "layers": [{**_plain(vars(each)), "change": each.change} for each in self.layers],
        }

    def _table(self) -> Table:
        heads = any(any(each.heads) for each in self.layers)  # a column for networks with attention alone
        head = (
            "layer",
            "kind",
            "in",
            "out",
            *(["heads"] if heads else []),
            "parameters",
            "multiply-adds",
            "",
            "why not more",
        )
        rows = [
            (
                each.name,
                each.kind,
                *map(_change, (each.inputs, each.outputs, *([each.heads] if heads else []))),
                *map(_share, (each.parameters, each.macs)),
                each.change,
                each.why,
            )
            for each in self.layers
        ]
        notes = (
            f"parameters: {_total(self.parameters)}",
            f"multiply-adds: {'not counted without an example' if self.macs is None else _total(self.macs)}",
            f"activations: {'not measured without an example' if self.memory is None else _bytes_of(self.memory)}",
            str(self.verification),
            *([self.rounding] if self.rounding else []),
        )
        return Table(head, rows, notes=notes)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _share(numbers: tuple[int, int]) -> str:
    before, after = numbers
    return f"{after / before:.0%}" if before else "100%" if after else ""


def _bytes_of(memory: tuple[ActivationMemory, ActivationMemory]) -> str:
    before, after = memory
    return f"bytes at the peak {_total((before.peak, after.peak))}, in sum {_total((before.total, after.total))}"


def _change(channels: tuple[int, int]) -> str:
    before, after = channels
    if before == after == 0:
        return ""
    return str(before) if before == after else f"{before} -> {after}"


def _total(numbers: tuple[int, int]) -> str:
    before, after = numbers
    share = f" ({after / before:.1%})" if before else ""
    return f"{before:,} -> {after:,}{share}"


def _reason_for(
    node: fx.Node, network: Network, rules: Mapping[fx.Node, ChannelRule], free: Collection[nn.Module]
) -> str:
    """Return the reason why no more channels of a layer are removed, "" if there is none."""
    own = _own_reason(node, network, rules[node], free)
    blocking = [] if own else _opaque_readers(node, rules)
    if not blocking:
        return own
    names = ", ".join(dict.fromkeys(described(reader, network) for reader in blocking))
    return f"all its channels are read by {names}, not followed through"


def _own_reason(node: fx.Node, network: Network, rule: ChannelRule, free: Collection[nn.Module]) -> str:
    """Return the reason why a layer itself cannot be changed."""
    module = network.module(node)
    if module is None:
        return ""
    if node.target in network.leaf_modules:
        return "named in `leaf_modules`"
    if module._forward_hooks or module._forward_pre_hooks:
        return "has hooks"
    if module not in free:
        return "its weights are read more than once"
    groups = getattr(module, "groups", 1)
    if not isinstance(rule, UnknownRule):
        return ""
    if rule.why:
        return rule.why
    if torch_class(module) in CONVOLUTIONS and groups > 1:
        return f"a convolution of {groups} groups"
    kinds = (*CONVOLUTIONS, *NORMS, nn.Linear)
    if torch_class(module) in kinds:
        return "its input has its channels on another axis, or they are not known"
    return f"{type(module).__name__} is not followed through"


def _opaque_readers(node: fx.Node, rules: Mapping[fx.Node, ChannelRule]) -> list[fx.Node]:
    """Return the nodes of unknown rules that a layer's channels reach before the next layer."""
    found, waiting, seen = [], list(node.users), set(node.users)
    while waiting:
        user = waiting.pop(0)
        rule = rules.get(user)
        if rule is None or user.op == "output":
            continue
        if isinstance(rule, UnknownRule):
            found.append(user)
        elif rule.passes_on:
            new = [each for each in user.users if each not in seen]
            seen.update(new)
            waiting += new
    return found


def described(node: fx.Node, network: Network) -> str:
    """Return a node in words."""
    module = network.module(node)
    if module is not None:
        return f"{node.target!r} ({type(module).__name__})"
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return f"`{name}`"


def _is_reported(module: nn.Module) -> bool:
    """Return whether a layer has channels of its own, or weights that a report should mention."""
    return not isinstance(module, Select) and next(module.parameters(), None) is not None


_PRODUCTS = ("scaled_dot_product_attention", "matmul", "bmm")

Channels = tuple[int, int]
"""Channels that a layer reads and gives."""


@dataclass(frozen=True)
class LayerCosts:
    """Costs of the layers of a network in one forward pass, by name.

    Attributes:
        macs: multiply-adds of convolutions and linear layers.
        activations: numbers that each layer returns.
    """

    macs: Mapping[str, int] = field(default_factory=dict)
    activations: Mapping[str, int] = field(default_factory=dict)


class LayerWidths:
    """Channels of every layer before a compaction, and the reasons why some stay.

    Args:
        network: network before any channels are removed.
    """

    def __init__(self, network: Network) -> None:
        self.before: dict[str, tuple[str, Channels, int]] = {}
        for name, module in _layers(network):
            self.before.setdefault(name, (type(module).__name__, _channels_of(module), parameter_count(module)))
        self.why: dict[str, str] = {}
        self._heads: list[tuple[Regrouping, list[str]]] = []

    def explain(self, network: Network, rules: Mapping[fx.Node, ChannelRule]) -> None:
        """Record the reasons why channels stay, by the rules for a network whose norms were folded."""
        free = network.free()
        for node in network.graph.nodes:
            if node.op == "call_module" and node.target in self.before:
                self.why[node.target] = _reason_for(node, network, rules, free)
        for node, rule in rules.items():
            if (
                isinstance(rule, Regrouping)
                and rule.channels < len(rule.units)
                and (readers := _readers_of(node, rules))
            ):
                makers = _makers_of(node, rules)
                around = [*makers, *readers]
                self.why |= {str(each.target): why for each in makers if (why := _constant_heads(each, rule, rules))}
                self._heads.append((rule, [str(each.target) for each in around]))
        left = {node.target for node in network.graph.nodes}
        self.why |= dict.fromkeys((name for name in self.before if name not in left), FOLDED)

    def explain_fillers(self, needed: Mapping[fx.Node, Need | None], multiple_of: int) -> None:
        """Record where channels that change nothing stay, so that their number is a multiple of a number."""
        for node, need in needed.items():
            if need is not None and node.target in self.before and not self.why.get(str(node.target)):
                count = int((need.carried & ~need.live).sum())
                self.why |= {str(node.target): f"{count} fill up a multiple of {multiple_of}"} if count else {}

    def explain_rest(
        self, notes: Mapping[str, Sequence[str]], network: Network, rules: Mapping[fx.Node, ChannelRule]
    ) -> None:
        """Record why layers keep channels that could be removed.

        Args:
            notes: name of a layer -> reasons.
            network: the network whose channels were removed.
            rules: rules of its nodes before.
        """
        left = set(network.graph.nodes)
        noted = {node: "; ".join(notes[str(node.target)]) for node in rules if str(node.target) in notes}
        for node, reasons in noted.items():
            for maker in _makers_of(node, rules) if rules[node].binds and node in left else []:
                self._add(maker, f"{described(node, network)}: {reasons}")
        for node, reasons in noted.items():
            self._add(node, reasons)

    def _add(self, node: fx.Node, why: str) -> None:
        if node.target in self.before and not self.why.get(str(node.target)):
            self.why[str(node.target)] = why

    def _count_heads(self, network: Network) -> dict[str, tuple[int, int]]:
        """Return the attention heads before and after of every layer that makes or reads them."""
        left = set(network.graph.nodes)
        found: dict[str, tuple[int, int]] = {}
        for rule, names in self._heads:
            heads = rule.channels, rule.left if rule.node in left else 0
            found |= {name: max(heads, found.get(name, (0, 0))) for name in names}
        return found

    def layers(self, network: Network, before: LayerCosts, after: LayerCosts) -> tuple[LayerReport, ...]:
        """Return the reports of the layers of a network whose channels were removed.

        Args:
            network: the network.
            before, after: costs of the layers before and after the removal.
        """
        left = {name: (_channels_of(module), parameter_count(module)) for name, module in _layers(network)}
        heads = self._count_heads(network)
        reports = []
        for name, (kind, channels, parameters) in self.before.items():
            now, count = left.get(name, ((0, 0), 0))
            inputs, outputs = zip(channels, now, strict=True)
            reports.append(
                LayerReport(
                    name,
                    kind,
                    inputs,
                    outputs,
                    self.why[name],
                    removed=name not in left,
                    heads=heads.get(name, (0, 0)),
                    parameters=(parameters, count),
                    macs=(before.macs.get(name, 0), after.macs.get(name, 0)),
                    activations=(before.activations.get(name, 0), after.activations.get(name, 0)),
                )
            )
        return tuple(reports)


def _makers_of(node: fx.Node, rules: Mapping[fx.Node, ChannelRule]) -> list[fx.Node]:
    """Return the layers whose channels a node's are."""
    found, waiting = [], list(rules[node].inputs)
    while waiting:
        source = waiting.pop()
        if rules[source].passes_on:
            waiting += rules[source].inputs
        elif source.op == "call_module":
            found.append(source)
    return found


def _constant_heads(maker: fx.Node, heads: Regrouping, rules: Mapping[fx.Node, ChannelRule]) -> str:
    """Return how many heads have constants other than zero for values, which would have to pass a softmax."""
    layer = rules[maker]
    if not isinstance(layer, Dense) or len(heads.units) != len(layer.bias()):
        return ""
    zero = (layer.matrix() == 0).all(2).all(1).cpu()
    count = sum(bool(zero[heads.units == unit].all()) for unit in range(heads.channels))
    constant = bool(layer.bias().cpu()[zero].any())
    return f"{count} heads are constant: their weights are zero and their biases are not" if count and constant else ""


def _readers_of(node: fx.Node, rules: Mapping[fx.Node, ChannelRule]) -> list[fx.Node]:
    """Return the layers that read a node's channels, none if no product of matrices is among the nodes before them."""
    found, waiting, seen = [], [node], {node}
    products = False
    while waiting:
        current = waiting.pop()
        products |= operation(current) in _PRODUCTS
        for user in current.users:
            if user in rules and rules[user].passes_on and user not in seen:
                seen.add(user)
                waiting.append(user)
            elif user.op == "call_module" and user in rules:
                found.append(user)
    return found if products else []


def _layers(network: Network) -> list[tuple[str, nn.Module]]:
    nodes = [node for node in network.graph.nodes if node.op == "call_module"]
    return [
        (str(node.target), network.modules[node.target]) for node in nodes if _is_reported(network.modules[node.target])
    ]


_WIDTHS = (
    ("in_channels", "out_channels"),
    ("in_features", "out_features"),
    ("input_size", "hidden_size"),
    ("num_embeddings", "embedding_dim"),
)
_WIDTH = ("num_features", "num_channels", "embed_dim", "num_parameters", "d_model")


def _channels_of(module: Any) -> Channels:
    """Return the numbers of channels that a layer reads and returns, (0, 0) if they are unknown."""
    for reads, gives in _WIDTHS:
        if isinstance(getattr(module, reads, None), int):
            return getattr(module, reads), int(getattr(module, gives, 0))
    width = next((getattr(module, name) for name in _WIDTH if isinstance(getattr(module, name, None), int)), 0)
    return width, width
