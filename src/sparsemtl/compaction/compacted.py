"""The module that compaction gives."""

from __future__ import annotations

from torch import fx
from torch.fx.graph_module import _USER_PRESERVED_ATTRIBUTES_KEY

from sparsemtl.compaction.network import Network
from sparsemtl.compaction.report import CompactionReport


class CompactedModule(fx.GraphModule):
    """A compacted network.

    Attributes:
        report: what became of every layer, and how far the outputs are from the model's.
    """

    report: CompactionReport


def built(network: Network, graph: fx.Graph) -> CompactedModule:
    """A graph on the modules of a network, as a module in eval mode."""
    graph.lint()
    named = {node.target for node in graph.nodes if node.op in ("call_module", "get_attr")}
    parts = {name: part for name, part in {**network.modules, **network.tensors}.items() if name in named}
    module = CompactedModule(parts, graph, f"Compact{network.name}")
    module.eval()
    return module


def attach(module: CompactedModule, report: CompactionReport) -> CompactedModule:
    """Give a module its report, which copies of it have as well."""
    module.report = report
    module.meta[_USER_PRESERVED_ATTRIBUTES_KEY] = {"report": report}
    return module
