"""Sparse multi-task learning: what several tasks should share inside one network, and what they should not."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sparsemtl._version import __version__

if TYPE_CHECKING:
    from sparsemtl.architectures import (
        CGC,
        MTAL,
        NDDR,
        PBFS,
        PLE,
        AssembledModel,
        Auxiliary,
        CrossStitch,
        EncoderAdapter,
        MMoE,
        SharedBottom,
        SingleTask,
        Source,
        SqueezeExcitation,
        TaskGroups,
        TransformerEncoder,
        WrappedModel,
        from_model,
    )
    from sparsemtl.compaction import (
        TaskSlices,
        activation_memory,
        compact,
        export,
        latency,
        load_network,
        macs,
        parameter_count,
        plan,
        save_bundle,
        speedups,
        verify,
    )
    from sparsemtl.criteria import choose_masks, fisher_information, fisher_masks
    from sparsemtl.networks.compiled import CompiledModel
    from sparsemtl.networks.masks import TaskMasks
    from sparsemtl.networks.model import MultiTaskModel
    from sparsemtl.networks.norms import TaskNorms, own_statistics
    from sparsemtl.networks.recomputed_norms import recompute_norms
    from sparsemtl.networks.shared_coverage import left_out_parameters, maskable_parameters
    from sparsemtl.networks.structures import find_structures
    from sparsemtl.networks.task_networks import TaskNetwork, TaskNetworks
    from sparsemtl.optim import MaskedOptimizer
    from sparsemtl.runs.advice import Advice
    from sparsemtl.runs.advise import advise
    from sparsemtl.runs.check_run import check_run
    from sparsemtl.runs.loaded import LoadedRun, load_run
    from sparsemtl.sharing import (
        DenseSharing,
        DiSparseSharing,
        FisherSharing,
        GroupLassoSharing,
        GroupMCPSharing,
        L1Sharing,
        LotterySharing,
        MaximumRoamingSharing,
        PBFSSharing,
        PruningSharing,
        RandomSharing,
        Sharing,
        SoftMaskSharing,
        SparseTrainingSharing,
        TaskRoutingSharing,
    )
    from sparsemtl.study.results import StudyResults
    from sparsemtl.tasks import (
        Classification,
        ColumnLoader,
        CustomTask,
        Depth,
        MultiLabel,
        Normals,
        Regression,
        Segmentation,
        Task,
        TokenClassification,
        balanced_class_weights,
    )
    from sparsemtl.training import Callback, Trainer, TrainingStep
    from sparsemtl.training.choosing.affinity import TaskAffinity, task_affinity
    from sparsemtl.training.choosing.auto_result import AutoResult
    from sparsemtl.training.choosing.auto_share import auto_share
    from sparsemtl.training.lottery_masks import lottery_masks
    from sparsemtl.training.shrinking.result import ShrinkResult, ShrunkNetwork
    from sparsemtl.training.shrinking.shrink import shrink
    from sparsemtl.training.steps.teacher import Teacher

__all__ = [
    "CGC",
    "MTAL",
    "NDDR",
    "PBFS",
    "PLE",
    "Advice",
    "AssembledModel",
    "AutoResult",
    "Auxiliary",
    "Callback",
    "Classification",
    "ColumnLoader",
    "CompiledModel",
    "CrossStitch",
    "CustomTask",
    "DenseSharing",
    "Depth",
    "DiSparseSharing",
    "EncoderAdapter",
    "FisherSharing",
    "GroupLassoSharing",
    "GroupMCPSharing",
    "L1Sharing",
    "LoadedRun",
    "LotterySharing",
    "MMoE",
    "MaskedOptimizer",
    "MaximumRoamingSharing",
    "MultiLabel",
    "MultiTaskModel",
    "Normals",
    "PBFSSharing",
    "PruningSharing",
    "RandomSharing",
    "Regression",
    "Segmentation",
    "SharedBottom",
    "Sharing",
    "ShrinkResult",
    "ShrunkNetwork",
    "SingleTask",
    "SoftMaskSharing",
    "Source",
    "SparseTrainingSharing",
    "SqueezeExcitation",
    "StudyResults",
    "Task",
    "TaskAffinity",
    "TaskGroups",
    "TaskMasks",
    "TaskNetwork",
    "TaskNetworks",
    "TaskNorms",
    "TaskRoutingSharing",
    "TaskSlices",
    "Teacher",
    "TokenClassification",
    "Trainer",
    "TrainingStep",
    "TransformerEncoder",
    "WrappedModel",
    "__version__",
    "activation_memory",
    "advise",
    "auto_share",
    "balanced_class_weights",
    "check_run",
    "choose_masks",
    "compact",
    "export",
    "find_structures",
    "fisher_information",
    "fisher_masks",
    "from_model",
    "latency",
    "left_out_parameters",
    "load_network",
    "load_run",
    "lottery_masks",
    "macs",
    "maskable_parameters",
    "own_statistics",
    "parameter_count",
    "plan",
    "recompute_norms",
    "save_bundle",
    "shrink",
    "speedups",
    "task_affinity",
    "verify",
]

_EXPORTS = {
    "sparsemtl.architectures": (
        "CGC",
        "MTAL",
        "NDDR",
        "PBFS",
        "PLE",
        "AssembledModel",
        "Auxiliary",
        "CrossStitch",
        "EncoderAdapter",
        "MMoE",
        "SharedBottom",
        "SingleTask",
        "Source",
        "SqueezeExcitation",
        "TaskGroups",
        "TransformerEncoder",
        "WrappedModel",
        "from_model",
    ),
    "sparsemtl.compaction": (
        "activation_memory",
        "TaskSlices",
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
    ),
    "sparsemtl.criteria": (
        "choose_masks",
        "fisher_information",
        "fisher_masks",
    ),
    "sparsemtl.networks.compiled": ("CompiledModel",),
    "sparsemtl.networks.masks": ("TaskMasks",),
    "sparsemtl.networks.model": ("MultiTaskModel",),
    "sparsemtl.networks.norms": ("TaskNorms", "own_statistics"),
    "sparsemtl.networks.recomputed_norms": ("recompute_norms",),
    "sparsemtl.networks.shared_coverage": ("left_out_parameters", "maskable_parameters"),
    "sparsemtl.networks.structures": ("find_structures",),
    "sparsemtl.networks.task_networks": (
        "TaskNetwork",
        "TaskNetworks",
    ),
    "sparsemtl.optim": ("MaskedOptimizer",),
    "sparsemtl.runs.advice": ("Advice",),
    "sparsemtl.runs.advise": ("advise",),
    "sparsemtl.runs.check_run": ("check_run",),
    "sparsemtl.runs.loaded": (
        "LoadedRun",
        "load_run",
    ),
    "sparsemtl.sharing": (
        "DenseSharing",
        "DiSparseSharing",
        "FisherSharing",
        "GroupLassoSharing",
        "GroupMCPSharing",
        "L1Sharing",
        "LotterySharing",
        "MaximumRoamingSharing",
        "PBFSSharing",
        "PruningSharing",
        "RandomSharing",
        "Sharing",
        "SoftMaskSharing",
        "TaskRoutingSharing",
        "SparseTrainingSharing",
    ),
    "sparsemtl.study.results": ("StudyResults",),
    "sparsemtl.tasks": (
        "Classification",
        "ColumnLoader",
        "CustomTask",
        "Depth",
        "MultiLabel",
        "Normals",
        "Regression",
        "Segmentation",
        "Task",
        "TokenClassification",
        "balanced_class_weights",
    ),
    "sparsemtl.training": (
        "Callback",
        "Trainer",
        "TrainingStep",
    ),
    "sparsemtl.training.choosing.affinity": ("TaskAffinity", "task_affinity"),
    "sparsemtl.training.choosing.auto_result": ("AutoResult",),
    "sparsemtl.training.choosing.auto_share": ("auto_share",),
    "sparsemtl.training.lottery_masks": ("lottery_masks",),
    "sparsemtl.training.shrinking.result": ("ShrinkResult", "ShrunkNetwork"),
    "sparsemtl.training.shrinking.shrink": ("shrink",),
    "sparsemtl.training.steps.teacher": ("Teacher",),
}
"""Module -> names that are imported from it on first use (PEP 562): the command line starts without torch."""
_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names}
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
"""Packages for users."""
_INNER_PACKAGES = ("networks", "registry", "runs", "storage")
"""Packages that are attributes of this one as well, but not listed."""


def __dir__() -> list[str]:
    """List the library: what is exported, and the packages for users."""
    return sorted([*__all__, *_PACKAGES])


if not TYPE_CHECKING:  # type checkers would take any name for one of the library

    def __getattr__(name: str) -> Any:
        """Import an exported name, or a package, on first use."""
        if name in _PACKAGES or name in _INNER_PACKAGES:
            return import_module(f"{__name__}.{name}")
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
        found = globals()[name] = getattr(import_module(_MODULE_OF[name]), name)
        return found
