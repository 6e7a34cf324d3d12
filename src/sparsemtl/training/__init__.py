"""Training on Lightning Fabric: the trainer, and the pieces of its loop."""

from sparsemtl.training.callbacks import Callback
from sparsemtl.training.step import TrainingStep
from sparsemtl.training.trainer import Trainer

__all__ = ["Callback", "Trainer", "TrainingStep"]
