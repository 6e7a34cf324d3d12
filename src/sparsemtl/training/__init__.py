"""Training on Lightning Fabric: the trainer, and the pieces of its loop."""

from sparsemtl.training.callbacks import Callback
from sparsemtl.training.checks.check import TrainingCheck
from sparsemtl.training.evaluation.results import Results
from sparsemtl.training.steps.step import TrainingStep
from sparsemtl.training.trainer import Trainer

__all__ = ["Callback", "Results", "Trainer", "TrainingCheck", "TrainingStep"]
