"""Sharing methods: policies over task networks, one file per method."""

from sparsemtl.registry.registry import Registry
from sparsemtl.sharing.criterion_masks import CriterionMasks, SelectionOptions
from sparsemtl.sharing.dense import DenseSharing
from sparsemtl.sharing.disparse import DiSparseSharing
from sparsemtl.sharing.fisher import FisherSharing
from sparsemtl.sharing.group_lasso import GroupLassoSharing
from sparsemtl.sharing.group_mcp import GroupMCPSharing
from sparsemtl.sharing.l1 import L1Sharing
from sparsemtl.sharing.lottery import LotterySharing
from sparsemtl.sharing.maximum_roaming import MaximumRoamingSharing
from sparsemtl.sharing.pbfs import PBFSSharing
from sparsemtl.sharing.proximal import ProximalSharing
from sparsemtl.sharing.pruning import PruningSharing
from sparsemtl.sharing.random import RandomSharing
from sparsemtl.sharing.sharing import (
    AfterBatch,
    AfterStep,
    ObservesValidation,
    Regularizer,
    Sharing,
    StepWeights,
    TaskPenalty,
)
from sparsemtl.sharing.soft_masks import SoftMaskSharing
from sparsemtl.sharing.sparse_training import SparseTrainingSharing
from sparsemtl.sharing.task_routing import TaskRoutingSharing

SHARING: Registry[Sharing] = Registry(
    "sharing method",
    {
        "dense": DenseSharing,
        "random": RandomSharing,
        "fisher": FisherSharing,
        "group-lasso": GroupLassoSharing,
        "l1": L1Sharing,
        "group-mcp": GroupMCPSharing,
        "pbfs": PBFSSharing,
        "soft-masks": SoftMaskSharing,
        "lottery": LotterySharing,
        "task-routing": TaskRoutingSharing,
        "maximum-roaming": MaximumRoamingSharing,
        "disparse": DiSparseSharing,
        "sparse-training": SparseTrainingSharing,
        "pruning": PruningSharing,
    },
)

__all__ = [
    "SHARING",
    "AfterBatch",
    "AfterStep",
    "CriterionMasks",
    "DenseSharing",
    "DiSparseSharing",
    "FisherSharing",
    "GroupLassoSharing",
    "GroupMCPSharing",
    "L1Sharing",
    "LotterySharing",
    "MaximumRoamingSharing",
    "ObservesValidation",
    "PBFSSharing",
    "ProximalSharing",
    "PruningSharing",
    "RandomSharing",
    "Regularizer",
    "SelectionOptions",
    "Sharing",
    "SoftMaskSharing",
    "SparseTrainingSharing",
    "StepWeights",
    "TaskPenalty",
    "TaskRoutingSharing",
]
