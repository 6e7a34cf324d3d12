"""Number of tasks that use each shared weight, and gradients that depend on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.networks.task_networks import TaskNetwork, TaskNetworks


class WeightUsers:
    """Counts the tasks that use each entry of the shared weights.

    A task uses a weight that its architecture gives it, unless its mask leaves the weight out, its soft mask is zero
    there, the output channel that the weight computes is left out, or the task has a tensor of its own in its place.
    Whether the task has a label in a batch does not matter.

    Args:
        model: the model.
        shared: name -> shared weight that is trained.
    """

    def __init__(self, model: MultiTaskModel, shared: Mapping[str, nn.Parameter]) -> None:
        self._model = model
        self._shared = dict(shared)
        self._networks: TaskNetworks | None = None
        self._counts: dict[str, Tensor] = {}

    def counts(self, networks: TaskNetworks) -> dict[str, Tensor]:
        """Return name -> number of tasks that use each entry, int64 of the weight's shape."""
        soft = any(True for _ in networks.parameters())  # trained masks change in place
        if soft or networks is not self._networks:
            tasks = self._model.parameter_tasks()
            counts = {name: torch.zeros(p.shape, dtype=torch.long, device=p.device) for name, p in self._shared.items()}
            for task, network in networks.items():
                for name, count in counts.items():
                    if task in tasks[name]:
                        count += self._used(name, network)
            self._networks, self._counts = networks, counts
        return self._counts

    def average_over_users(self, networks: TaskNetworks) -> None:
        """Change gradients that are averages over all T tasks into averages over the tasks that use each weight."""
        total = len(networks)
        for name, count in self.counts(networks).items():
            gradient = self._shared[name].grad
            if gradient is not None:
                gradient *= (total / count.clamp(min=1)).to(gradient.dtype)

    def combine_overlap(self, rows: Tensor, networks: TaskNetworks, combine: Callable[[Tensor], Tensor]) -> Tensor:
        """Combine gradients (T, P) of weights that several tasks use; others get the gradient of their task.

        Args:
            rows: gradients, zero where a task does not use a weight; changed.
            networks: the tasks' networks.
            combine: function from (T, P) to (P,), which reads zeros for weights outside of the overlap.
        """
        own = torch.cat([count.flatten() < 2 for count in self.counts(networks).values()])
        plain = rows[:, own].sum(0)
        rows[:, own] = 0.0
        combined = combine(rows).clone()
        combined[own] = plain
        return combined

    def _used(self, name: str, network: TaskNetwork) -> Tensor | bool:
        """Return which entries of a weight a task's network uses, bool, broadcast to the weight's shape."""
        if network.own_tensors.get(name) is not None:
            return False
        used: Tensor | bool = True
        for factors in (network.gradient_mask, network.weight_factors):
            if name in factors:
                used = used & (factors[name].detach() != 0)
        owner = name.rpartition(".")[0]
        if owner in network.output_factors:
            used = used & self._of_channels(network.output_factors[owner] != 0, owner, self._shared[name])
        return used

    def _of_channels(self, channels: Tensor, owner: str, weight: Tensor) -> Tensor:
        """Return which entries of a module's weight compute some of the module's output channels."""
        transposed = isinstance(self._model.get_submodule(owner), _ConvTransposeNd) and weight.ndim > 1
        axis = 1 if transposed else 0
        if weight.ndim <= axis or weight.shape[axis] != len(channels):
            return torch.ones((), dtype=torch.bool, device=weight.device)
        return channels.view([-1 if i == axis else 1 for i in range(weight.ndim)])
