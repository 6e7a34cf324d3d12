"""Exchange between processes in a training step, so that it is the step of one process with all their samples.

The mean loss of a task over all samples is the sum of the processes' means times their shares of its known labels. So
every process multiplies its losses by its shares, and gradients and losses are added up.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.networks.norms import STATISTICS
from sparsemtl.networks.randomness import fork_rng, random_state, restore_random_state, seed_everything
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.tasks.processes import Processes
from sparsemtl.tasks.soft_targets import soft_weight
from sparsemtl.tasks.task import Task
from sparsemtl.training.steps.batch_losses import LOSS_TEACHER, ReadyBatch, values_of
from sparsemtl.training.steps.result import StepResult

_LEAST = 1e-300
"""Weight of a batch whose labels all have weight 0."""


class StepExchange:
    """Tasks with a label in any process, for every batch of a step; shares are set in the batches.

    Args:
        processes: the processes.
        tasks: the tasks.
        ready: batches of this process that make a step, as many in all processes, each a list of groups.
        taught: tasks that a teacher has.
    """

    def __init__(
        self,
        processes: Processes,
        tasks: Mapping[str, Task],
        ready: Sequence[Sequence[ReadyBatch]],
        taught: Sequence[str] = (),
    ) -> None:
        self._processes = processes
        self._taught = taught
        self.samples = sum(batch.count for groups in ready for batch in groups)
        self.present = [[task for batch in groups for task in batch.labelled] for groups in ready]
        if processes.several:
            self._set_shares(tasks, ready)

    def _set_shares(self, tasks: Mapping[str, Task], ready: Sequence[Sequence[ReadyBatch]]) -> None:
        keys = [*((task, False) for task in tasks), *((task, True) for task in self._taught)]
        weights = [[_weights(tasks, batch) for batch in groups] for groups in ready]
        own = [sum(found.get(key, 0.0) for found in groups) for groups in weights for key in keys]
        *totals, samples = self._processes.numbers([*own, self.samples]).sum(0).tolist()
        self.samples = int(samples)
        for number, groups in enumerate(ready):
            start = number * len(keys)
            total = dict(zip(keys, totals[start : start + len(keys)], strict=True))
            self.present[number] = [task for task in tasks if total[task, False]]
            for batch, found in zip(groups, weights[number], strict=True):
                for (task, soft), weight in found.items():
                    shares = batch.soft_shares if soft else batch.shares
                    shares[task] = weight / total[task, soft]

    def values(self, losses: Mapping[str, Tensor], present: Sequence[str]) -> dict[str, float]:
        """Return the losses of the present tasks, over the samples of all processes.

        Args:
            losses: this process's losses, times its shares.
            present: tasks with a loss in any process.
        """
        own = dict(zip(losses, values_of(losses.values()), strict=True)) if losses else {}
        if not self._processes.several:
            return own
        sums = self._processes.numbers([own.get(task, 0.0) for task in present]).sum(0).tolist()
        return dict(zip(present, sums, strict=True))

    def complete(self, result: StepResult, tasks: Mapping[str, Task]) -> None:
        """Replace this process's figures of a step by those of all processes."""
        result.samples = self.samples
        if not self._processes.several:
            return
        result.batches = {task: n for task in tasks if (n := sum(task in names for names in self.present))}
        names = [(task, name) for task in result.batches for name in self._loss_names(tasks[task])]
        own = [
            result.losses.get(task, 0.0) if name == "loss" else result.terms.get(task, {}).get(name, 0.0)
            for task, name in names
        ]
        sums = dict(zip(names, self._processes.numbers(own).sum(0).tolist(), strict=True))
        result.losses = {task: sums[task, "loss"] for task in result.batches}
        result.terms = {
            task: {name: sums[task, name] for name in found if name != "loss"}
            for task in result.batches
            if len(found := self._loss_names(tasks[task])) > 1
        }

    def _loss_names(self, task: Task) -> tuple[str, ...]:
        """Return the names of a task's losses, with its distance from the teacher's outputs."""
        return (*task.loss_names, *((LOSS_TEACHER,) if task.name in self._taught else ()))


def _weights(tasks: Mapping[str, Task], batch: ReadyBatch) -> dict[tuple[str, bool], float]:
    """Return (task, False) -> weight of its known labels, and (task, True) -> that of its soft targets."""
    weights = {(t, False): max(tasks[t].label_weight(batch.labels[t]), _LEAST) for t in batch.labelled}
    for task, soft in batch.soft.items():
        label = batch.labels[task]
        weights[task, True] = soft_weight(tasks[task], soft.to(label.device), label)
    return weights


def add_up_gradients(processes: Processes, parameters: Iterable[nn.Parameter]) -> None:
    """Replace the `.grad` of parameters by the sums over the processes; None stays where no process has a gradient."""
    if not processes.several:
        return
    found = list(parameters)
    anywhere = processes.numbers([p.grad is not None for p in found]).any(0).tolist()
    reached = [p for p, has_gradient in zip(found, anywhere, strict=True) if has_gradient]
    for p in reached:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
        elif p.grad.is_sparse:
            p.grad = p.grad.to_dense()
    processes.add_up(p.grad for p in reached if p.grad is not None)


def average_statistics(processes: Processes, model: MultiTaskModel, networks: TaskNetworks) -> None:
    """Replace running statistics of norms, the model's and the tasks' own, by their means over the processes."""
    if not processes.several:
        return
    found: dict[int, Tensor] = {}
    for norm in model.modules():
        if isinstance(norm, _NormBase):
            found.update((id(t), t) for kind in STATISTICS if (t := norm._buffers.get(kind)) is not None)
    for network in networks.values():
        own = network.own_tensors.items()
        found.update((id(t), t) for name, t in own if t is not None and name.rpartition(".")[2] in STATISTICS)
    processes.average(found.values())


class OwnRandomness:
    """Random numbers of this process in its forward passes; elsewhere, all processes draw the same numbers.

    Args:
        processes: the processes.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._state = random_state() if processes.several else {}

    def begin_step(self, where: str) -> None:
        """Seed the forward passes of a step by the run's seed, the place in the run, and the rank of this process."""
        if self._processes.several:
            seed = zlib.crc32(f"{torch.initial_seed()} {where} {self._processes.rank}".encode())
            with fork_rng():
                seed_everything(seed)
                self._state = random_state()

    def forward(self) -> AbstractContextManager[None]:
        """Draw this process's own numbers inside the context."""
        return self._forked() if self._processes.several else nullcontext()

    @contextmanager
    def _forked(self) -> Iterator[None]:
        with fork_rng():
            restore_random_state(self._state)
            yield
            self._state = random_state()
