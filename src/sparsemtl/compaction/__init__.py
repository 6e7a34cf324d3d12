"""Compaction: a network with zeros in whole channels becomes a smaller one with the same outputs.

The network is traced to a graph of torch.fx (`trace`) and tidied until every node makes a new tensor (`in_place`).
A rule for every node (`rules`) says how channels pass through it. Four passes follow: batch norms go into the layers
before them (`folding`), constants into the layers behind them (`constants`), what later layers read is traced back
to its producers (`liveness`), and nobody's channels are cut (`rewrite`).
"""

from sparsemtl.compaction.compact import compact
from sparsemtl.compaction.compacted import CompactedModule
from sparsemtl.compaction.cost import latency, macs, parameter_count
from sparsemtl.compaction.report import CompactionReport, LayerReport
from sparsemtl.compaction.verification import Verification

__all__ = [
    "CompactedModule",
    "CompactionReport",
    "LayerReport",
    "Verification",
    "compact",
    "latency",
    "macs",
    "parameter_count",
]
