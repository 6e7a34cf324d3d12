"""The run before a run, from which the encoder starts."""

from __future__ import annotations

import abc
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sparsemtl.architectures import Source
from sparsemtl.errors import CheckpointError, SparseMTLError
from sparsemtl.runs.spec import RunSpec
from sparsemtl.storage.files import read_tensors
from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.storage.study_folder import StudyFolder
from sparsemtl.storage.tensor_checks import check_tensor
from sparsemtl.tasks import Classification
from sparsemtl.tasks.batches import Loader


def pretraining_folder(run: RunFolder, config: Mapping[str, Any]) -> RunFolder:
    """Return the folder of a run's pretraining run.

    Runs of a study with the same pretraining configuration and seed share one folder,
    `<study>/pretraining/seed-<seed>-<hash>`; otherwise it is `<run>/pretraining`.

    Args:
        run: folder of the run.
        config: complete configuration of the pretraining run.
    """
    study = StudyFolder.of_run(run)
    if study is None:
        return RunFolder(run.pretraining)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:10]
    return RunFolder(study.pretraining / f"seed-{config['seed']}-{digest}")


@dataclass(frozen=True)
class Earlier(abc.ABC):
    """The network of the run before a run.

    Attributes:
        file: where its weights lie once it is trained.
        plan: what it is trained by.
    """

    file: Path
    plan: RunSpec

    @abc.abstractmethod
    def weights(self) -> Mapping[str, Tensor]:
        """Its weights and buffers by name."""

    @abc.abstractmethod
    def samples(self, task: Classification) -> Loader:
        """Samples that it is trained on, if that is the task that it is trained for."""

    def start(self, encoder: nn.Module) -> None:
        """Give an encoder the network's weights.

        Raises:
            CheckpointError: if the network's encoder is another one.
        """
        self._load(encoder, "encoder.", "the encoder")

    def source(self, heads: Mapping[str, nn.Module]) -> Source | None:
        """What the network is trained for, if that is one classification.

        Args:
            heads: task -> a head such as the network has; its weights are loaded.

        Raises:
            CheckpointError: if the network has no such head.
        """
        (task, *others) = self.plan.data.tasks
        if others or not isinstance(task, Classification):
            return None
        head = heads[task.name]
        self._load(head, f"heads.{task.name}.", f"the head of task {task.name!r}")
        return Source(task, head, self.samples(task))

    def _load(self, module: nn.Module, prefix: str, what: str) -> None:
        """Give a module the weights whose names begin so."""
        weights = self.weights()
        own = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
        if not own:
            raise CheckpointError(
                f"{self.file} has no weights {prefix}*, from which {what} starts. "
                "The run before needs an architecture with one encoder for all its tasks, such as shared-bottom."
            )
        for name, tensor in module.state_dict().items():
            if name in own and own[name].shape == tensor.shape:
                check_tensor(own[name], tensor, f"{self.file}: {prefix}{name}")
        try:
            module.load_state_dict(own)
        except RuntimeError as error:
            raise CheckpointError(f"{self.file}: {what} does not fit this run's: {error}") from None


@dataclass(frozen=True)
class Pretrained(Earlier):
    """The network, trained."""

    def weights(self) -> Mapping[str, Tensor]:
        """Those in the file."""
        return read_tensors(self.file, own=True)[0]

    def samples(self, task: Classification) -> Loader:
        """All of them."""
        return _samples(self.plan, task)


@dataclass(frozen=True)
class Untrained(Earlier):
    """What stands in for the network until it is trained, to see what would go wrong with it.

    Attributes:
        network: one such as it will be, with weights that nothing trained.
    """

    network: nn.Module

    def weights(self) -> Mapping[str, Tensor]:
        """Those of the network as it is."""
        return self.network.state_dict()

    def samples(self, task: Classification) -> Loader:
        """The first batch with a sample that has a class."""
        batches = _samples(self.plan, task)
        labelled = (batch for batch in batches if task.labelled(task.labels(batch[1])).any())
        return list(islice(labelled, 1))


def _samples(plan: RunSpec, task: Classification) -> Loader:
    """A plan's training samples of a task, in order."""
    train = plan.data.train
    split = train[task.name] if isinstance(train, Mapping) else train
    return split.loader(2 * plan.config["training"]["batch_size"])


@contextmanager
def named_pretraining() -> Iterator[None]:
    """Say of an error that it was made in the run before."""
    try:
        yield
    except SparseMTLError as error:
        error.args = (f"pretraining: {error}",)
        raise
