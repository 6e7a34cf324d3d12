"""Architectures: which modules are there, and which of them tasks share."""

from sparsemtl.architectures.shared_bottom import SharedBottom
from sparsemtl.architectures.single_task import SingleTask
from sparsemtl.models import MultiTaskModel
from sparsemtl.registry import Registry

ARCHITECTURES: Registry[MultiTaskModel] = Registry(
    "architecture",
    {
        "shared-bottom": SharedBottom,
        "single-task": SingleTask,
    },
)

__all__ = ["ARCHITECTURES", "SharedBottom", "SingleTask"]
