"""Compaction: a network with zeros in whole channels becomes a smaller one with the same outputs.

The network runs on an example and every call is recorded as a graph of torch.fx (`recording`; without an example
torch.fx traces it, `trace`). The graph is brought into a canonical form (`canonicalize`). A rule per operation
(`rules`) defines how channels pass through it. Four passes follow (`passes`): batch norms are folded into the layers
before them, constants into the layers behind them, needed channels are traced back from the output, and the others are
removed. `verification` compares the outputs before the network is returned, and `report` describes the result.
"""

from sparsemtl.compaction.bundle import Bundle, save_bundle
from sparsemtl.compaction.compact import compact
from sparsemtl.compaction.cost import ActivationMemory, activation_memory, latency, macs, parameter_count
from sparsemtl.compaction.exporting import Exported, export
from sparsemtl.compaction.loading import load_network
from sparsemtl.compaction.pipeline import CompactedModule
from sparsemtl.compaction.plan import Branch, PlanOption, ServingPlan, plan
from sparsemtl.compaction.report import CompactionReport, LayerReport
from sparsemtl.compaction.slices import TaskSlices
from sparsemtl.compaction.timing import Speedup, Timing, speedups
from sparsemtl.compaction.verification import Verification
from sparsemtl.compaction.verify import verify

__all__ = [
    "ActivationMemory",
    "Branch",
    "Bundle",
    "CompactedModule",
    "CompactionReport",
    "Exported",
    "LayerReport",
    "PlanOption",
    "ServingPlan",
    "Speedup",
    "TaskSlices",
    "Timing",
    "Verification",
    "activation_memory",
    "compact",
    "export",
    "latency",
    "load_network",
    "macs",
    "parameter_count",
    "plan",
    "save_bundle",
    "speedups",
    "verify",
]
