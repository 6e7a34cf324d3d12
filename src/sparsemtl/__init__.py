"""Sparse multi-task learning: what several tasks should share inside one network, and what they should not."""

from sparsemtl._version import __version__
from sparsemtl.architectures import SharedBottom, SingleTask
from sparsemtl.criteria import choose_masks, fisher_information, fisher_masks
from sparsemtl.masks import TaskMasks
from sparsemtl.models import MultiTaskModel
from sparsemtl.norms import TaskNorms
from sparsemtl.optim import MaskedOptimizer
from sparsemtl.sharing import (
    DenseSharing,
    FisherSharing,
    GroupLassoSharing,
    GroupMCPSharing,
    L1Sharing,
    RandomSharing,
    Sharing,
)
from sparsemtl.tasks import Classification, Depth, MultiLabel, Normals, Regression, Segmentation, Task
from sparsemtl.training import Trainer

__all__ = [
    "Classification",
    "DenseSharing",
    "Depth",
    "FisherSharing",
    "GroupLassoSharing",
    "GroupMCPSharing",
    "L1Sharing",
    "MaskedOptimizer",
    "MultiLabel",
    "MultiTaskModel",
    "Normals",
    "RandomSharing",
    "Regression",
    "Segmentation",
    "SharedBottom",
    "Sharing",
    "SingleTask",
    "Task",
    "TaskMasks",
    "TaskNorms",
    "Trainer",
    "__version__",
    "choose_masks",
    "fisher_information",
    "fisher_masks",
]
