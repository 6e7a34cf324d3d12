"""Sparse multi-task learning: what several tasks should share inside one network, and what they should not."""

from sparsemtl._version import __version__
from sparsemtl.architectures import (
    CGC,
    MTAL,
    NDDR,
    PBFS,
    PLE,
    Auxiliary,
    CrossStitch,
    EncoderAdapter,
    MMoE,
    SharedBottom,
    SingleTask,
    Source,
    TransformerEncoder,
    WrappedModel,
    from_model,
)
from sparsemtl.compaction import compact, latency, macs, parameter_count
from sparsemtl.criteria import choose_masks, fisher_information, fisher_masks
from sparsemtl.networks.masks import TaskMasks
from sparsemtl.networks.model import MultiTaskModel, left_out_parameters, maskable_parameters
from sparsemtl.networks.norms import TaskNorms
from sparsemtl.networks.recomputed_norms import recompute_norms
from sparsemtl.networks.task_networks import TaskNetwork, TaskNetworks
from sparsemtl.optim import MaskedOptimizer
from sparsemtl.runs.loaded import LoadedRun, load_run
from sparsemtl.sharing import (
    DenseSharing,
    FisherSharing,
    GroupLassoSharing,
    GroupMCPSharing,
    L1Sharing,
    PBFSSharing,
    RandomSharing,
    Sharing,
    SoftMaskSharing,
)
from sparsemtl.tasks import (
    Classification,
    ColumnLoader,
    Depth,
    MultiLabel,
    Normals,
    Regression,
    Segmentation,
    Task,
    TokenClassification,
)
from sparsemtl.training import Callback, Trainer, TrainingStep

__all__ = [
    "CGC",
    "MTAL",
    "NDDR",
    "PBFS",
    "PLE",
    "Auxiliary",
    "Callback",
    "Classification",
    "ColumnLoader",
    "CrossStitch",
    "DenseSharing",
    "Depth",
    "EncoderAdapter",
    "FisherSharing",
    "GroupLassoSharing",
    "GroupMCPSharing",
    "L1Sharing",
    "LoadedRun",
    "MMoE",
    "MaskedOptimizer",
    "MultiLabel",
    "MultiTaskModel",
    "Normals",
    "PBFSSharing",
    "RandomSharing",
    "Regression",
    "Segmentation",
    "SharedBottom",
    "Sharing",
    "SingleTask",
    "SoftMaskSharing",
    "Source",
    "Task",
    "TaskMasks",
    "TaskNetwork",
    "TaskNetworks",
    "TaskNorms",
    "TokenClassification",
    "Trainer",
    "TrainingStep",
    "TransformerEncoder",
    "WrappedModel",
    "__version__",
    "choose_masks",
    "compact",
    "fisher_information",
    "fisher_masks",
    "from_model",
    "latency",
    "left_out_parameters",
    "load_run",
    "macs",
    "maskable_parameters",
    "parameter_count",
    "recompute_norms",
]

_PACKAGES = (
    "architectures",
    "backbones",
    "balancing",
    "compaction",
    "criteria",
    "data",
    "errors",
    "heads",
    "optim",
    "report",
    "sharing",
    "study",
    "tasks",
    "training",
)


def __dir__() -> list[str]:
    """List the library: what is exported, and the packages for users."""
    return sorted([*__all__, *_PACKAGES])
