"""The run before a run, from which the encoder starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from sparsemtl.architectures import Source
from sparsemtl.data import TaskData
from sparsemtl.errors import CheckpointError
from sparsemtl.files import read_tensors
from sparsemtl.tasks import Classification


@dataclass(frozen=True)
class Pretrained:
    """A network that was trained before a run.

    Attributes:
        file: its weights.
        config: the complete configuration that it was trained by.
        data: what it was trained on.
    """

    file: Path
    config: Mapping[str, Any]
    data: TaskData

    def start(self, encoder: nn.Module) -> None:
        """Give an encoder the network's weights.

        Raises:
            CheckpointError: if the network's encoder is another one.
        """
        self._load(encoder, "encoder.", "the encoder")

    def source(self, heads: Mapping[str, nn.Module]) -> Source | None:
        """What the network was trained for, if that is one classification.

        Args:
            heads: task -> a head such as the network has; its weights are loaded.

        Raises:
            CheckpointError: if the file has no such head.
        """
        (task, *others) = self.data.tasks
        if others or not isinstance(task, Classification):
            return None
        head = heads[task.name]
        self._load(head, f"heads.{task.name}.", f"the head of task {task.name!r}")
        train = self.data.train[task.name] if isinstance(self.data.train, Mapping) else self.data.train
        return Source(task, head, train.loader(2 * self.config["training"]["batch_size"]))

    def _load(self, module: nn.Module, prefix: str, what: str) -> None:
        """Give a module the weights whose names begin so."""
        tensors, _ = read_tensors(self.file)
        own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        if not own:
            raise CheckpointError(
                f"{self.file} has no weights {prefix}*, from which {what} starts. "
                "The run before needs an architecture with one encoder for all its tasks, such as shared-bottom."
            )
        try:
            module.load_state_dict(own)
        except RuntimeError as error:
            raise CheckpointError(f"{self.file}: {what} does not fit this run's: {error}") from None
