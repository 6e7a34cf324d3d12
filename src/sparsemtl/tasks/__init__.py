"""Tasks: one target each, with its loss, likelihood, labels and metrics. One file per kind.

A sample without a label for a task (NaN, the ignore index; a map without a known pixel) adds exactly nothing to the
loss, the gradient and the metrics of that task.
"""

from sparsemtl.registry.registry import Registry
from sparsemtl.tasks.classes import balanced_class_weights
from sparsemtl.tasks.classification import Classification
from sparsemtl.tasks.columns import ColumnLoader
from sparsemtl.tasks.custom import CustomTask
from sparsemtl.tasks.dense import DenseTask
from sparsemtl.tasks.depth import Depth
from sparsemtl.tasks.metrics.given_metrics import METRICS, function_metric
from sparsemtl.tasks.multilabel import MultiLabel
from sparsemtl.tasks.normals import Normals
from sparsemtl.tasks.own_losses import Loss
from sparsemtl.tasks.regression import Regression
from sparsemtl.tasks.segmentation import Segmentation
from sparsemtl.tasks.task import Task, TaskOptions
from sparsemtl.tasks.tokens import TokenClassification

TASKS: Registry[Task] = Registry(
    "task",
    {
        "classification": Classification,
        "multi-label": MultiLabel,
        "regression": Regression,
        "segmentation": Segmentation,
        "token-classification": TokenClassification,
        "depth": Depth,
        "normals": Normals,
    },
)

__all__ = [
    "METRICS",
    "TASKS",
    "Classification",
    "ColumnLoader",
    "CustomTask",
    "DenseTask",
    "Depth",
    "Loss",
    "MultiLabel",
    "Normals",
    "Regression",
    "Segmentation",
    "Task",
    "TaskOptions",
    "TokenClassification",
    "balanced_class_weights",
    "function_metric",
]
