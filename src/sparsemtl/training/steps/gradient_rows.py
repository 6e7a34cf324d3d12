"""Gradients of the shared weights, one row per task, in one matrix that is kept from step to step."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor, nn

from sparsemtl.errors import TrainingError, memory_used_up


def mask_gradients(parameters: Mapping[str, nn.Parameter], mask: Mapping[str, Tensor]) -> None:
    """Clear the entries of the parameters' `.grad` that a mask leaves out.

    Args:
        parameters: name -> parameter.
        mask: name -> entries that stay, bool of the parameter's shape; names without a parameter are skipped.
    """
    for name, masked in mask.items():
        gradient = parameters[name].grad if name in parameters else None
        if gradient is not None:
            gradient.masked_fill_(~masked, 0.0)


def chunks_of(sizes: Sequence[int], count: int) -> list[list[tuple[int, int, int]]]:
    """Split tensors, one after the other, into at most `count` chunks of the same number of entries.

    The last chunk may have fewer entries.

    Args:
        sizes: number of entries of each tensor.
        count: largest number of chunks.

    Returns:
        for each chunk, (index of a tensor, first entry, entry after the last) of every tensor in it.
    """
    width = max(1, -(-sum(sizes) // count))
    chunks: list[list[tuple[int, int, int]]] = [[]]
    room = width
    for index, size in enumerate(sizes):
        start = 0
        while start < size:
            if not room:
                chunks.append([])
                room = width
            stop = min(size, start + room)
            chunks[-1].append((index, start, stop))
            room -= stop - start
            start = stop
    return chunks


class GradientRows:
    """Rows (T, P) of the tasks' gradients with respect to the shared weights.

    A row is copied once, into memory of an earlier step: fresh memory of this size costs more than the copy.

    Args:
        parameters: the shared weights; P is the number of their entries.
        tasks: names of all tasks, in the order of the rows.

    Attributes:
        present: names of the tasks that have a row in this step.
    """

    def __init__(self, parameters: Collection[nn.Parameter], tasks: Sequence[str]) -> None:
        self._parameters = parameters
        self._tasks = list(tasks)
        self._memory = torch.empty(0)
        self.present: set[str] = set()

    def add(self, task: str) -> None:
        """Add the parameters' `.grad` to the row of a task."""
        gradients = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in self._parameters]
        if not self.present:
            self._fit(gradients)
        row = self._memory[self._tasks.index(task)]
        if task in self.present:
            row += torch.cat(gradients)
        else:
            torch.cat(gradients, out=row)
            self.present.add(task)

    def matrix(self) -> Tensor:
        """Return the rows (T, P), zero for tasks that are not present; in float32 or float64, as solvers need it."""
        if not self.present:
            self._fit([torch.zeros_like(p).flatten() for p in self._parameters])
        for task, row in zip(self._tasks, self._memory, strict=True):
            if task not in self.present:
                row.zero_()
        return self._memory.to(torch.promote_types(self._memory.dtype, torch.float32))

    def set_gradients(self, combined: Tensor) -> None:
        """Set the parameters' `.grad` to the parts of one vector (P,)."""
        parts = torch.split(combined, [p.numel() for p in self._parameters])
        for p, part in zip(self._parameters, parts, strict=True):
            p.grad = part.view_as(p).to(p.dtype)

    def _fit(self, gradients: Sequence[Tensor]) -> None:
        """Allocate the matrix, unless the one of the last step has the shape, type and device."""
        shape = (len(self._tasks), sum(map(len, gradients)))
        dtype = reduce(torch.promote_types, (gradient.dtype for gradient in gradients))
        device = gradients[0].device
        if (self._memory.shape, self._memory.dtype, self._memory.device) != (shape, dtype, device):
            self._memory = torch.empty(0)  # the former matrix need not be there beside the new one
            try:
                self._memory = torch.empty(shape, dtype=dtype, device=device)
            except RuntimeError as error:
                if not memory_used_up(error):
                    raise
                size = shape[0] * shape[1] * dtype.itemsize
                raise TrainingError(
                    f"memory is used up: the gradients of {shape[0]} tasks with respect to {shape[1]:,} shared weights "
                    f"take {size / 2**30:,.1f} GiB. The balancer's option `gradients: gramian` takes the memory of one "
                    "task's gradient for the same update, `gradients: representation` less still; or use a balancer "
                    "of losses."
                ) from error
