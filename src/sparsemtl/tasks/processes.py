"""Processes that train one model together: what they add up, gather and agree on. One process alone does nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from sparsemtl.errors import ParameterError, ProcessError
from sparsemtl.tasks.signs import Signs

T = TypeVar("T")


class Processes:
    """Processes of a run, each with the whole model and a part of the data. All call the same methods in one order.

    Args:
        group: group of `torch.distributed`; None is this process alone, for which no method communicates.
        signs: signs of life of all processes, by which errors name the one that ended.

    Raises:
        ParameterError: if this process is not in the group.
    """

    def __init__(self, group: Any = None, signs: Signs | None = None) -> None:
        self._group = group
        self._signs = signs
        self.rank = 0 if group is None else dist.get_rank(group)
        self.count = 1 if group is None else dist.get_world_size(group)
        if self.rank < 0:
            raise ParameterError("process_group: this process is not in the group. Pass a group of all that call this.")

    def __reduce__(self) -> tuple[type[Processes], tuple[()]]:
        """Return what makes a copy: a copied or pickled trainer is one process alone."""
        return Processes, ()

    @property
    def several(self) -> bool:
        """True if there is more than one process."""
        return self.count > 1

    @property
    def is_first(self) -> bool:
        """True for the process that writes files."""
        return self.rank == 0

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors, of the same shapes in all processes, by their sums; one communication per dtype."""
        self._reduce(tensors, dist.ReduceOp.SUM if self.several else None)

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by their means over the processes; of whole numbers, by the largest."""
        found = list(tensors)
        self._reduce([t for t in found if not t.is_floating_point()], dist.ReduceOp.MAX if self.several else None)
        means = [t for t in found if t.is_floating_point()]
        self.add_up(means)
        if self.several:
            for tensor in means:
                tensor.div_(self.count)

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by those of the first process."""
        if self.several:
            with torch.no_grad(), self._communicating():
                for tensor in tensors:
                    whole = tensor.detach().contiguous()
                    dist.broadcast(whole, self._first, group=self._group)
                    tensor.detach().copy_(whole)

    def numbers(self, own: Sequence[float]) -> Tensor:
        """Return the numbers of all processes, float64 (processes, numbers), on the CPU."""
        rows = torch.zeros(self.count, len(own), dtype=torch.float64, device=self._device)
        rows[self.rank] = torch.tensor(own, dtype=torch.float64)
        self.add_up([rows])
        return rows.cpu()

    def limited(self, own: Sequence[int], limits: Sequence[int | None]) -> tuple[list[int], list[int]]:
        """Return how many of this process's items count, and of all processes' items, if they count by rank.

        Args:
            own: numbers of items of this process.
            limits: how many of each count in all; None for all.
        """
        rows = self.numbers(own).long() if self.several else torch.tensor([list(own)])
        before, totals = rows[: self.rank].sum(0).tolist(), rows.sum(0).tolist()
        counted = [
            n if limit is None else min(n, max(limit - b, 0)) for n, b, limit in zip(own, before, limits, strict=True)
        ]
        return counted, [n if limit is None else min(n, limit) for n, limit in zip(totals, limits, strict=True)]

    def from_first(self, function: Callable[[], T]) -> T:
        """Return the result of a function that the first process alone calls; its error is raised in all processes."""
        if not self.several:
            return function()
        found: list[Any] = [None, None]
        if self.is_first:
            try:
                found[0] = function()
            except Exception as error:
                found[1] = error
        with self._communicating():
            dist.broadcast_object_list(found, self._first, group=self._group)
        if found[1] is not None:
            raise found[1]
        result: T = found[0]
        return result

    def wait(self) -> None:
        """Wait until all processes are here."""
        self.numbers([0.0])

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes in the first process, an empty list in the others."""
        if not self.several:
            return [value]
        found: list[Any] = [None] * self.count if self.is_first else []
        with self._communicating():
            dist.gather_object(value, found or None, self._first, group=self._group)
        return found

    def gather_rows(self, rows: Tensor) -> Tensor:
        """Return the columns of all processes side by side, (T, sum of P), with columns of zeros where one has fewer.

        Args:
            rows: (T, P); T is the same in all processes.
        """
        if not self.several:
            return rows
        widest = int(self.numbers([rows.shape[1]]).max())
        padded = rows.new_zeros(len(rows), widest)
        padded[:, : rows.shape[1]] = rows
        found = [torch.empty_like(padded) for _ in range(self.count)]
        with self._communicating():
            dist.all_gather(found, padded, group=self._group)
        return torch.cat(found, 1)

    def _reduce(self, tensors: Iterable[Tensor], operation: Any) -> None:
        if operation is None:
            return
        buckets: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for tensor in tensors:
            buckets.setdefault((tensor.dtype, tensor.device), []).append(tensor.detach())
        with torch.no_grad(), self._communicating():
            for bucket in buckets.values():
                flat = torch.cat([tensor.flatten() for tensor in bucket])
                dist.all_reduce(flat, operation, group=self._group)
                for tensor, part in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
                    tensor.copy_(part.view_as(tensor))

    @property
    def _first(self) -> int:
        return dist.get_global_rank(self._group, 0)

    @property
    def _device(self) -> torch.device:
        """Device of small tensors: NCCL communicates between GPUs alone."""
        on_gpu = self.several and dist.get_backend(self._group) == "nccl"
        return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")

    @contextmanager
    def _communicating(self) -> Iterator[None]:
        """Raise a ProcessError if another process has ended or does not answer."""
        if self._signs is not None:
            self._signs.exchanges += 1  # before it waits: a process that hangs elsewhere has begun fewer
        try:
            yield
        except RuntimeError as error:
            diagnosis = self._signs.diagnosis() if self._signs is not None else ""
            unknown = "Its own message, before this one, says why; a process that was killed has none"
            raise ProcessError(
                f"process {self.rank} of {self.count} (from 0) lost the others: one of them has ended, or did not "
                f"answer in time. {diagnosis[:1].upper()}{diagnosis[1:]}{'' if diagnosis else unknown}. The last "
                f"checkpoint stays. torch: {str(error).strip().splitlines()[0]}"
            ) from error

    @contextmanager
    def announced_end(self) -> Iterator[None]:
        """If an error or an interruption ends the work inside the context, leave its cause for the other processes.

        The processes that this one has started are interrupted with it.
        """
        try:
            yield
        except ProcessError:
            raise
        except BaseException as error:
            if self._signs is not None:
                interrupted = isinstance(error, KeyboardInterrupt)
                cause = f"was interrupted by {error}" if interrupted else f"failed: {type(error).__name__}: {error}"
                self._signs.announce_end(cause, stop_children=interrupted)
            raise


ALONE = Processes()
"""This process alone."""
