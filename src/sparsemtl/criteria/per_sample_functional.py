"""Per-sample gradients of any architecture: one backward per sample, vectorised by torch.func where it can be.

A sample is cut out of the batch and run alone. Every cut is checked: the model must give the row of output that the
sample has inside the batch. Where it does not, the gradients are those of the batch's rows, one backward of the whole
batch per sample: slower, and right however the input holds its samples.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsemtl.criteria.gradient_powers import BatchPowers, GradientPowers, Totals, zeros_like
from sparsemtl.criteria.power_sum import PowerSum
from sparsemtl.errors import ParameterError
from sparsemtl.networks.swap import swap_tensors
from sparsemtl.tasks.nests import map_tensors, tensors_in

logger = logging.getLogger(__name__)

Select = Callable[[Any, int], Any]
"""Cuts sample i out of a batch: (x, i) -> an input for which the model's output has this one row."""

_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}
"""Difference of two outputs that counts as rounding, relative to the largest output of the batch, by dtype."""
_HALF = 2e-2
"""The same for half precision."""
_TENSOR_CORES = 2e-3
"""The same for single precision on a GPU, whose convolutions may round to TF32 and depend on the batch size."""

_Chunks = Iterator[tuple[slice, dict[str, Tensor]]]
"""Slice of samples, and parameter name -> their gradients (n, *shape)."""


class FunctionalPowers(GradientPowers):
    """Powers by a forward and a backward pass per sample, whose gradient is materialised.

    Args:
        model: as in `GradientPowers`.
        parameters: as in `GradientPowers`.
        sums: sum to add; its `chunk` bounds the bytes of the gradients that exist at a time.
        vectorised: run the samples of a chunk at once by `vmap`; otherwise, and once `vmap` has refused the model, one
            after the other.
        strict: raise where `vmap` refuses, or samples cannot be cut out of the batch.
        select: cuts a sample out of a batch; by default rows of all tensors whose first axis has the batch's length.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, Tensor],
        sums: PowerSum,
        *,
        vectorised: bool = True,
        strict: bool = False,
        select: Select | None = None,
    ) -> None:
        super().__init__(model, parameters, sums)
        self.vectorised = vectorised and select is None
        self.strict = strict
        self.select = select
        self._single = BatchPowers(model, parameters, sums)
        self._whole = BatchPowers(model, parameters, sums)
        self._cuts = True
        self._x: Any = None
        self._outputs: Mapping[str, Tensor] = {}

    def zeros(self) -> dict[str, Tensor]:
        """Return totals of zeros."""
        return zeros_like(self.parameters)

    def forward(self, x: Any, tasks: tuple[str, ...]) -> dict[str, Tensor]:
        """Run the model without a graph."""
        with torch.no_grad(), swap_tensors(self.model, self.detached):
            outputs: dict[str, Tensor] = self.model(x, tasks=tasks)
        self.read(x, outputs)
        return outputs

    def read(self, x: Any, outputs: Mapping[str, Tensor]) -> None:
        """Take a batch whose outputs are known."""
        self._x, self._outputs = x, outputs
        if not self._cuts:
            self._whole.forward(x, tuple(outputs))

    def add(self, cotangents: Mapping[str, Tensor], totals: Totals) -> None:
        """Add the samples' powers, chunk by chunk."""
        done = 0
        try:
            for part, gradients in self._chunks(cotangents) if self._cuts else ():
                for name, gradient in gradients.items():
                    self.sums.gradients(totals[name], gradient)
                done = part.stop
        except _CutError as error:
            self._refuse(error)
        if not self._cuts:
            self._add_rows(cotangents, totals, done)

    def _refuse(self, error: _CutError) -> None:
        """Stop cutting from the present batch on, or raise."""
        if self.select is not None:
            raise ParameterError(
                f"`select(x, i)` does not return sample i of the batch: the model's output differs from that in the "
                f"batch. {error} It must return an input of the model that holds this sample alone."
            ) from error
        if self.strict:
            raise ParameterError(
                f"samples cannot be cut out of the batch along the first axis of its tensors. {error} "
                "Pass `select`, a function (x, i) -> sample i as a batch of one, or use path='auto'."
            ) from error
        logger.warning(
            "%s: samples cannot be cut out of the batch along the first axis of its tensors (%s). Their gradients are "
            "taken inside the batch, which is slower; pass `select=` to cut them.",
            type(self.model).__name__,
            error,
        )
        self._cuts = False
        self._whole.forward(self._x, tuple(self._outputs))

    def _add_rows(self, cotangents: Mapping[str, Tensor], totals: Totals, start: int) -> None:
        """Add the powers of samples from `start` on, each by a backward of the whole batch."""
        for n in range(start, len(next(iter(cotangents.values())))):
            alone = {task: torch.zeros_like(cotangent) for task, cotangent in cotangents.items()}
            for task, cotangent in cotangents.items():
                alone[task][n] = cotangent[n]
            if any(bool(cotangent.any()) for cotangent in alone.values()):
                self._whole.add(alone, totals)

    def _chunks(self, cotangents: Mapping[str, Tensor]) -> _Chunks:
        """Yield the gradients of a batch, checked.

        Raises:
            _CutError: before the first samples that were cut out wrongly.
        """
        batch = len(next(iter(cotangents.values())))
        size = sum(p.numel() * p.element_size() for p in self.parameters.values())
        count = max(1, min(batch, self.sums.chunk // max(size, 1))) if self.vectorised else 1
        for start in range(0, batch, count):
            part = slice(start, min(start + count, batch))
            own = {task: cotangent[part] for task, cotangent in cotangents.items()}
            if self.vectorised:
                try:
                    gradients, outputs = self._vectorised(part, own, batch)
                except _CutError:
                    raise
                except Exception as refusal:  # vmap raises errors of many classes
                    if self.strict:
                        raise
                    logger.info("vmap refuses %s, sample by sample instead: %s", type(self.model).__name__, refusal)
                    self.vectorised = False
                else:
                    check_cut(outputs, self._outputs, part)
                    yield part, gradients
                    continue
            for n in range(part.start, part.stop):
                yield slice(n, n + 1), self._one(n, batch, cotangents)

    def _one(self, n: int, batch: int, cotangents: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the gradients (1, *shape) of a single sample."""
        part = slice(n, n + 1)
        try:
            x = cut(self._x, part, batch) if self.select is None else self.select(self._x, n)
            outputs = self._single.forward(x, tuple(cotangents))
        except Exception as error:
            if self.strict:
                raise
            raise _CutError(f"Sample {n} alone ends in {type(error).__name__}: {error}") from error
        check_cut(outputs, self._outputs, part)
        found = self._single.gradients({task: c[part] for task, c in cotangents.items()})
        return {name: found.get(name, torch.zeros_like(p))[None] for name, p in self._single.leaves.items()}

    def _vectorised(
        self, part: slice, cotangents: Mapping[str, Tensor], batch: int
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return gradients and outputs of samples, all at once."""
        axes = _leading_axes(self._x, batch)  # of the whole batch: a shared tensor may be as long as a part of it
        x = cut(self._x, part, batch)
        leaves = tensors_in(x)
        wanted = {name: self.detached[name] for name in self.parameters}

        def value(
            parameters: dict[str, Tensor], cotangents: dict[str, Tensor], *leaves: Tensor
        ) -> tuple[Tensor, dict[str, Tensor]]:
            rows = iter(leaf if axis is None else leaf.unsqueeze(0) for leaf, axis in zip(leaves, axes, strict=True))
            with swap_tensors(self.model, {**self.detached, **parameters}):
                outputs = self.model(map_tensors(lambda _: next(rows), x), tasks=tuple(cotangents))
            single = {task: _row(task, outputs[task]) for task in cotangents}
            return torch.stack([(single[task] * c).sum() for task, c in cotangents.items()]).sum(), single

        gradients = torch.func.vmap(torch.func.grad(value, has_aux=True), in_dims=(None, 0, *axes))
        result: tuple[dict[str, Tensor], dict[str, Tensor]] = gradients(wanted, dict(cotangents), *leaves)
        return result


def _row(task: str, output: Tensor) -> Tensor:
    if output.shape[:1] != (1,):
        raise _CutError(f"task {task!r}: shape {tuple(output.shape)} for one sample.")
    return output.squeeze(0)


class _CutError(ParameterError):
    """The model's output for a sample that was cut out differs from its output inside the batch."""


def _leading_axes(x: Any, batch: int) -> list[int | None]:
    """Return, for every tensor of an input, 0 if its first axis has the batch's length, and None if it is shared."""
    return [0 if _holds(tensor, batch) else None for tensor in tensors_in(x)]


def cut(x: Any, part: slice, batch: int) -> Any:
    """Cut samples out of an input: rows of the tensors whose first axis has the batch's length; the rest is shared."""
    return map_tensors(lambda tensor: tensor[part] if _holds(tensor, batch) else tensor, x)


def check_cut(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], part: slice) -> None:
    """Raise unless cut samples have the outputs of the batch.

    Args:
        found: task -> outputs (n, ...) of the cut samples.
        expected: task -> outputs (B, ...) of the batch.
        part: slice of the n samples among the B rows.

    Raises:
        _CutError: naming the task and the difference.
    """
    for task, output in found.items():
        rows = expected[task][part]
        if output.shape != rows.shape:
            raise _CutError(f"task {task!r}: shape {tuple(output.shape)} instead of {tuple(rows.shape)}.")
        largest = float(expected[task].detach().nan_to_num(0.0, 0.0, 0.0).abs().amax()) if rows.numel() else 0.0
        if not torch.isclose(output, rows, rtol=0.0, atol=_tolerance(rows) * largest, equal_nan=True).all():
            error = float((output - rows).abs().amax())
            raise _CutError(f"task {task!r}: the outputs differ by up to {error:.3g}.")


def _tolerance(output: Tensor) -> float:
    single = output.dtype == torch.float32
    return _TENSOR_CORES if single and output.is_cuda else _TOLERANCE.get(output.dtype, _HALF)


def _holds(tensor: Tensor, batch: int) -> bool:
    return tensor.ndim > 0 and len(tensor) == batch
