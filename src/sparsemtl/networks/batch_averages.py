"""Averages of the statistics of batches in batch norms, in place of running averages of past weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from sparsemtl.networks.modes import eval_mode
from sparsemtl.networks.norms import STATISTICS
from sparsemtl.networks.swap import swap_tensors
from sparsemtl.tasks.processes import Processes


class BatchAverages:
    """Averages of the mean and the unbiased variance of batches, every batch counting the same.

    They are what one pass with `momentum=None` leaves, but summed in float64, and also for instance norms.

    Args:
        norms: name -> norm that keeps running statistics.
    """

    def __init__(self, norms: Mapping[str, _NormBase]) -> None:
        self._norms = dict(norms)
        self._means: dict[str, Tensor] = {}
        self._variances: dict[str, Tensor] = {}
        self._counts: Counter[str] = Counter()

    def add(self, model: nn.Module, run: Callable[[], Any]) -> bool:
        """Add one batch.

        Args:
            model: the module that the norms are in. Its own statistics are neither read nor changed; all of it but
                the norms is in eval mode.
            run: makes a forward pass of it.

        Returns:
            False if a norm saw a single value per channel, which has no variance: the batch is left out.
        """
        seen: list[tuple[str, Tensor, Tensor]] = []
        try:
            with self._watched(model, seen):
                run()
        except _SingleValueError:
            return False
        for name, mean, variance in seen:
            self._means[name] = self._means.get(name, 0) + mean
            self._variances[name] = self._variances.get(name, 0) + variance
            self._counts[name] += 1
        return True

    def add_up(self, processes: Processes) -> None:
        """Average over the batches of all processes."""
        if not processes.several:
            return
        for name, norm in self._norms.items():
            mean, variance = norm.running_mean, norm.running_var
            assert mean is not None
            assert variance is not None
            self._means.setdefault(name, torch.zeros_like(mean, dtype=torch.float64))
            self._variances.setdefault(name, torch.zeros_like(variance, dtype=torch.float64))
        processes.add_up(
            [*(self._means[name] for name in self._norms), *(self._variances[name] for name in self._norms)]
        )
        counts = processes.numbers([self._counts[name] for name in self._norms]).sum(0).tolist()
        self._counts = Counter({name: int(n) for name, n in zip(self._norms, counts, strict=True) if n})

    def tensors(self) -> dict[str, Tensor]:
        """Return buffer name -> average, for the norms that a batch has passed through."""
        found: dict[str, Tensor] = {}
        for name, count in self._counts.items():
            averages = (self._means[name] / count, self._variances[name] / count, torch.tensor(count))
            for kind, own in _statistics(self._norms[name]):
                found[f"{name}.{kind}"] = averages[STATISTICS.index(kind)].to(own)
        return found

    @contextmanager
    def _watched(self, model: nn.Module, seen: list[tuple[str, Tensor, Tensor]]) -> Iterator[None]:
        """Inside the context, a pass through a norm appends its name and the batch's mean and variance to `seen`."""
        fresh = {
            f"{name}.{kind}": torch.zeros_like(t) for name, norm in self._norms.items() for kind, t in _statistics(norm)
        }
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(swap_tensors(model, fresh))
            stack.enter_context(eval_mode(model))
            for name, norm in self._norms.items():
                stack.callback(setattr, norm, "momentum", norm.momentum)
                norm.momentum = 1.0  # a batch's statistics replace those before
                norm.train()
                stack.callback(norm.register_forward_pre_hook(_refuse_single_values).remove)
                stack.callback(norm.register_forward_hook(partial(_read, name, seen)).remove)
            yield


def _statistics(norm: _NormBase) -> Iterator[tuple[str, Tensor]]:
    return ((kind, tensor) for kind in STATISTICS if (tensor := norm._buffers[kind]) is not None)


def _read(name: str, seen: list[tuple[str, Tensor, Tensor]], norm: nn.Module, *_: Any) -> None:
    mean, variance = norm.running_mean, norm.running_var
    assert isinstance(mean, Tensor)
    assert isinstance(variance, Tensor)
    seen.append((name, mean.to(torch.float64, copy=True), variance.to(torch.float64, copy=True)))
    mean.zero_()
    variance.zero_()


class _SingleValueError(Exception):
    """A norm saw a single value per channel."""


def _refuse_single_values(norm: nn.Module, inputs: tuple[Any, ...]) -> None:
    if isinstance(norm, _BatchNorm) and inputs[0].numel() <= norm.num_features:
        raise _SingleValueError
