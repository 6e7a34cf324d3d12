"""The trainer: a loop on Lightning Fabric over public pieces that work without it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.optim import Optimizer

from sparsemtl.balancing import Balancer, as_balancer
from sparsemtl.batches import Group, Loaders, check_loaders, per_task, to_device
from sparsemtl.errors import CheckpointError, ParameterError
from sparsemtl.files import write_json, write_tensors
from sparsemtl.masks import TaskMasks
from sparsemtl.models import MultiTaskModel
from sparsemtl.modes import evaluating
from sparsemtl.optim import OPTIMIZERS
from sparsemtl.parameters import Count, Natural, Positive, validated
from sparsemtl.randomness import preserved, seed_everything
from sparsemtl.sharing import DenseSharing, Sharing
from sparsemtl.training.checkpoint import Randomness, restore, snapshot
from sparsemtl.training.engine import Backend, Engine, StepResult
from sparsemtl.training.evaluation import Results, evaluate, group_outputs, sample_predictions
from sparsemtl.training.folder import RunFolder
from sparsemtl.training.history import History
from sparsemtl.training.loggers import CSVLogger, Logger, Row, TensorBoardLogger
from sparsemtl.training.mixing import Mix, epoch_batches, loader_generators, steps_in_epoch
from sparsemtl.training.progress import Progress
from sparsemtl.training.selection import Monitor, Selection, primary_of
from sparsemtl.training.snapshots import Snapshots
from sparsemtl.training.summary import summarize
