"""Compaction: a network with zeros in whole channels becomes a smaller one with the same outputs.

The network runs on an example and every call is recorded as a graph of torch.fx (`recording`; without an example
torch.fx traces it, `trace`). The graph is tidied until every node makes a new tensor (`in_place`). A rule for every
operation (`rules`) defines how channels pass through it, whichever way the operation is written (`calls`). Four passes
follow: batch norms go into the layers before them (`folding`), constants into the layers behind them (`constants`),
what later layers read is traced back to its producers (`liveness`), and unneeded channels are cut (`rewrite`).
`verification` compares the outputs before the network is returned, and `report` holds what was found.
"""

from sparsemtl.compaction.compact import compact
from sparsemtl.compaction.cost import latency, macs, parameter_count
from sparsemtl.compaction.pipeline import CompactedModule
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
