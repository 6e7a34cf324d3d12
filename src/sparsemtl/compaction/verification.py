"""The outputs of a network before and after it was compacted, compared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsemtl.compaction.examples import Inputs, random_like
from sparsemtl.compaction.plain import copied
from sparsemtl.compaction.structures import leaves, mapped
from sparsemtl.errors import CompactionError, ParameterError

LIMITS = {torch.float64: 1e-8, torch.float32: 1e-3}
"""Precision -> largest difference, as a fraction of the outputs' spread."""
ROUNDING = 20
"""In single precision, the difference may also be as many times that of the model from itself in double precision."""
BATCHES = (1, 3)
"""Numbers of samples that are run beside the example's."""


@dataclass(frozen=True)
class Verification:
    """How far the outputs of a compacted network are from the model's.

    Attributes:
        float64: largest difference in double precision, as a fraction of the spread of the output (its standard
            deviation, or its largest absolute value if that is more); None if it was not measured.
        float32: the same in single precision.
        inputs: what was run: the example's shapes and how many inputs of its kind.
        reason: why nothing was verified, "" if it was.
        only: inputs that the compacted network is right for or takes, where they are fewer than the model takes.
    """

    float64: float | None = None
    float32: float | None = None
    inputs: str = ""
    reason: str = ""
    only: str = ""

    @property
    def verified(self) -> bool:
        """Whether outputs were compared."""
        return not self.reason

    def __str__(self) -> str:
        if self.reason:
            return f"not verified: {self.reason}"
        found = [f"{error:.1e} in {name}" for name, error in vars(self).items() if isinstance(error, float)]
        only = f"; {self.only}" if self.only else ""
        return f"outputs differ by at most {' and '.join(found)} of their spread, on {self.inputs}{only}"


@dataclass(frozen=True)
class _Case:
    """Inputs to run.

    Attributes:
        inputs: the inputs.
        stretched: the axis that is longer than the example's, None if none is.
    """

    inputs: Inputs
    stretched: int | None = None


class DifferentOutputsError(CompactionError):
    """The compacted network does not give the model's outputs."""


class Comparison:
    """Outputs of a model and of networks that take its place, compared in one precision after the other.

    Args:
        model: the model, in eval mode.
        inputs: an example that the model runs on.

    Attributes:
        fixed: axes of the inputs on which the networks are right for the example's size alone.
    """

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        self.model, self.inputs = model, inputs
        self.fixed: dict[int, None] = {}
        self._errors: dict[torch.dtype, float] = {}
        self._refused: dict[str, None] = {}
        self._ran = 0
        self._exact: Any = None
        self._random = False

    def run(self, small: nn.Module, dtype: torch.dtype) -> None:
        """Compare in one precision, double precision first.

        Raises:
            DifferentOutputsError: if outputs differ.
        """
        model, small = _cast(self.model, dtype), _cast(small, dtype)
        example = self.inputs.to(dtype=dtype, device=device_of(model))
        expected = _outputs(model, example)
        if isinstance(expected, Exception):
            return
        again = _outputs(model, example, seed=1)
        self._random |= isinstance(again, Exception) or difference(expected, again) != 0
        if self._random:
            return
        limit = max(LIMITS[dtype], ROUNDING * self._rounding(expected))
        self._exact = expected
        for case in _cases(example, few=dtype is torch.float32):
            self._compare(model, small, case, dtype, limit)

    def _rounding(self, outputs: Any) -> float:
        """How far the model is from itself in double precision."""
        error = 0.0 if self._exact is None else difference(self._exact, outputs)
        return error if error < 1 else 0.0

    def _compare(self, model: nn.Module, small: nn.Module, case: _Case, dtype: torch.dtype, limit: float) -> None:
        error = _error(model, small, case)
        if error is None:
            return
        if isinstance(error, ParameterError):
            self._refused[case.inputs.shapes()] = None
        elif error <= limit:
            self._errors[dtype] = max(error, self._errors.get(dtype, 0.0))
            self._ran += 1
        elif case.stretched is not None:
            self.fixed[case.stretched] = None
        else:
            raise _differs(error, dtype, case.inputs)

    def result(self) -> Verification:
        """What was found."""
        if self._random:
            return Verification(reason="the model's outputs are not the same from one run to the next")
        if not self._errors:
            return Verification(reason="the model runs neither in double nor in single precision")
        notes = [f"only inputs of the example's size on axis {axis}" for axis in self.fixed]
        notes += [f"inputs of shape {shapes} are refused, which the model takes" for shapes in self._refused]
        kinds = self._ran - len(self._errors)
        return Verification(
            self._errors.get(torch.float64),
            self._errors.get(torch.float32),
            f"an input of shape {self.inputs.shapes()} and {kinds} of its kind",
            only="; ".join(notes),
        )


def _cases(example: Inputs, *, few: bool) -> Iterator[_Case]:
    """The example, random inputs of its kind, and those of other sizes."""
    yield _Case(example)
    yield _Case(random_like(example, seed=1))
    if few:
        return
    if example.samples() is not None:
        yield from (_Case(random_like(example, seed=2, samples=count)) for count in BATCHES)
    for axis in range(1, max((t.ndim for t in example.tensors()), default=0)):
        yield _Case(random_like(example, seed=3, samples=1, stretched=axis), axis)


def _error(model: nn.Module, small: nn.Module, case: _Case) -> float | ParameterError | None:
    """How far outputs are apart; None if the model does not take such inputs."""
    expected = _outputs(model, case.inputs)
    if isinstance(expected, Exception):
        return None
    found = _outputs(small, case.inputs)
    if isinstance(found, ParameterError):
        return found
    return float("inf") if isinstance(found, Exception) else difference(expected, found)


def difference(expected: Any, found: Any) -> float:
    """The largest difference of outputs of one structure, as a fraction of the spread of each; inf if they do not fit."""
    pairs = list(leaves(expected)), list(leaves(found))
    if len(pairs[0]) != len(pairs[1]):
        return float("inf")
    return max((_difference(one, other) for one, other in zip(*pairs, strict=True)), default=0.0)


def _difference(expected: Any, found: Any) -> float:
    if not isinstance(expected, Tensor) or not isinstance(found, Tensor):
        return 0.0 if type(expected) is type(found) and expected == found else float("inf")
    if expected.shape != found.shape:
        return float("inf")
    one, other = expected.detach().cpu(), found.detach().cpu()
    wide = torch.complex128 if one.is_complex() or other.is_complex() else torch.float64
    one, other = one.to(wide), other.to(wide)
    finite = one.isfinite() & other.isfinite()
    if not torch.equal(one[~finite].nan_to_num(7.0), other[~finite].nan_to_num(7.0)):
        return float("inf")
    one, other = one[finite], other[finite]
    if torch.equal(one, other):
        return 0.0
    spread = max(float(one.abs().max()), float(one.std()) if len(one) > 1 else 0.0)
    return float((one - other).abs().max()) / (spread or 1.0)


def _cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    device = device_of(model)
    return copied(model).to(device="cpu" if device.type == "mps" else device, dtype=dtype)  # mps has no doubles


def device_of(model: nn.Module) -> torch.device:
    """Where a model's first tensor is."""
    return next((t.device for t in [*model.parameters(), *model.buffers()]), torch.device("cpu"))


def _outputs(model: nn.Module, inputs: Inputs, seed: int = 0) -> Any:
    """What a network gives, or the error that it raises; always with the same random numbers."""
    device = device_of(model)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        try:
            return snapshot(inputs.call(model))
        except Exception as error:  # the model does not take inputs of this size, or the network is wrong
            return error


def _differs(error: float, dtype: torch.dtype, inputs: Inputs) -> DifferentOutputsError:
    return DifferentOutputsError(
        f"the compacted network does not give the model's outputs: they differ by {error:.2g} of their spread in "
        f"{str(dtype).removeprefix('torch.')} on inputs of shape {inputs.shapes()}. The model does something that "
        "its graph cannot hold."
    )


def snapshot(output: Any) -> Any:
    """An output whose tensors nobody can change any more."""
    return mapped(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, output)
