"""Trained model with the networks of its tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.tasks.batches import Group
from sparsemtl.tasks.task import Task


@dataclass(frozen=True)
class Trained:
    """Trained model with the networks of its tasks.

    Attributes:
        model: the model.
        networks: the tasks' networks.
        module: callable in place of the model, such as Lightning Fabric's wrapper of it.
    """

    model: MultiTaskModel
    networks: TaskNetworks
    module: nn.Module

    @property
    def tasks(self) -> Mapping[str, Task]:
        """Tasks of the model."""
        return self.model.tasks

    def outputs(self, group: Group) -> dict[str, Tensor]:
        """Return task -> output for one group, in one forward pass where one network serves all tasks."""
        together = [group.tasks] if self.networks.one_network else [(task,) for task in group.tasks]
        outputs: dict[str, Tensor] = {}
        for names in together:
            with self.networks.swapped(self.model, names[0]):
                outputs.update(self.module(group.x, tasks=names))
        return outputs
