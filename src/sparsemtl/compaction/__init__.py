"""Compaction: a network with zeros in whole channels becomes a smaller one with the same outputs.

The network runs on an example and every call is recorded as a graph of torch.fx (`tracing`; without an example
torch.fx traces it). The graph is brought into a canonical form (`graph`). A rule per operation (`rules`) defines how
channels pass through it. Four passes follow (`passes`): batch norms are folded into the layers before them, constants
into the layers behind them, needed channels are traced back from the output, and the others are removed.
`verification` compares the outputs before the network is returned, and `report` describes the result. Networks go into
files by `files`, are timed by `timing`, computed together by `plans`, and trained on by `slices`.
"""

from sparsemtl.compaction.compact import compact
from sparsemtl.compaction.cost import ActivationMemory, activation_memory, latency, macs, parameter_count
from sparsemtl.compaction.files.bundle import Bundle, save_bundle
from sparsemtl.compaction.files.exporting import Exported, export
from sparsemtl.compaction.files.loading import load_network
from sparsemtl.compaction.pipeline import CompactedModule
from sparsemtl.compaction.plans.plan import Branch, PlanOption, ServingPlan, plan
from sparsemtl.compaction.report import CompactionReport, LayerReport
from sparsemtl.compaction.slices.task_slices import TaskSlices
from sparsemtl.compaction.timing.measure import Speedup, Timing, speedups
from sparsemtl.compaction.verification.comparison import Verification
from sparsemtl.compaction.verification.verify import verify

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
