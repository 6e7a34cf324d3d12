"""Sparse multi-task learning: what several tasks should share inside one network, and what they should not."""

from sparsemtl._version import __version__
from sparsemtl.architectures import SharedBottom, SingleTask
from sparsemtl.masks import TaskMasks
from sparsemtl.models import MultiTaskModel
from sparsemtl.tasks import Classification, MultiLabel, Regression, Task

__all__ = [
    "Classification",
    "MultiLabel",
    "MultiTaskModel",
    "Regression",
    "SharedBottom",
    "SingleTask",
    "Task",
    "TaskMasks",
    "__version__",
]
