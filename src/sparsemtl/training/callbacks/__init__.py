"""Callbacks of the trainer: what is logged, shown or drawn while a run trains."""

from __future__ import annotations

from sparsemtl.registry.registry import Registry
from sparsemtl.training.callbacks.callback import Callback, FitInfo, StepInfo
from sparsemtl.training.callbacks.csv_file import CSVCallback
from sparsemtl.training.callbacks.mlflow import MLflowCallback
from sparsemtl.training.callbacks.progress import ProgressBar
from sparsemtl.training.callbacks.tensorboard import TensorBoardCallback
from sparsemtl.training.callbacks.wandb import WandbCallback

CALLBACKS: Registry[Callback] = Registry(
    "callback", {"tensorboard": TensorBoardCallback, "wandb": WandbCallback, "mlflow": MLflowCallback}
)
"""Callbacks that a configuration may name."""

__all__ = [
    "CALLBACKS",
    "CSVCallback",
    "Callback",
    "FitInfo",
    "MLflowCallback",
    "ProgressBar",
    "StepInfo",
    "TensorBoardCallback",
    "WandbCallback",
]
