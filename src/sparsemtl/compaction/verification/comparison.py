"""Comparison of the outputs of a network before and after it was compacted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from sparsemtl.compaction.copies import copied
from sparsemtl.compaction.inputs import Inputs, dtype_in, leaves, mapped, parts, random_like
from sparsemtl.errors import CompactionError, ParameterError

LIMITS = {torch.float64: 1e-8, torch.float32: 1e-3}
"""Precision -> largest difference of equal networks, as a fraction of the outputs' spread."""
ROUNDING = 20
"""In single precision, the difference may also be as many times that of the model from itself in double precision."""
OUTPUT = "output"
"""Name of an output that has none."""
_BATCHES = (1, 3)
"""Numbers of samples that are run beside the example's."""


@dataclass(frozen=True)
class Verification:
    """Difference of the outputs of two networks, such as a compacted one and its model.

    A difference is the largest absolute one, as a fraction of the spread of the output: its standard deviation, or its
    largest absolute value if that is more.

    Attributes:
        float64: largest difference in double precision; None if it was not measured. A model that runs neither in
            double nor in single precision is compared in its own, which `outputs` names.
        float32: largest difference in single precision; None if it was not measured.
        inputs: description of the inputs: the example's shapes and the number of inputs like it.
        reason: reason why nothing was verified, "" if outputs were compared.
        only: restriction of the comparison, or of the inputs that the compacted network takes.
        outputs: name of an output (of a multi-task model, a task) -> `float64` and `float32`, or the coarsest precision
            of the model's weights -> its difference.
        equal: True if outputs were compared and are equal up to rounding: they differ by at most 1e-8 in double
            precision and 1e-3 in single precision, by 20 times what the model's outputs differ between the two, or (of
            `sm.verify`) by 100 times the spacing of the numbers that store the weights.
    """

    float64: float | None = None
    float32: float | None = None
    inputs: str = ""
    reason: str = ""
    only: str = ""
    outputs: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    equal: bool = False

    @classmethod
    def of(
        cls, errors: Mapping[torch.dtype, Mapping[str, float]], inputs: str, *, only: str = "", equal: bool = True
    ) -> Verification:
        """Return the result of a comparison.

        Args:
            errors: precision -> name of an output -> its difference.
            inputs: see the attributes, as `only` and `equal`.
        """
        largest = {precision: max(found.values(), default=0.0) for precision, found in errors.items()}
        names = dict.fromkeys(name for found in errors.values() for name in found)
        outputs = {
            name: {_name(precision): found[name] for precision, found in errors.items() if name in found}
            for name in names
        }
        return cls(
            largest.get(torch.float64), largest.get(torch.float32), inputs, only=only, outputs=outputs, equal=equal
        )

    @property
    def verified(self) -> bool:
        """True if outputs were compared."""
        return not self.reason

    def __str__(self) -> str:
        if self.reason:
            return f"not verified: {self.reason}"
        precisions = dict.fromkeys(precision for found in self.outputs.values() for precision in found)
        largest = {each: max(found[each] for found in self.outputs.values() if each in found) for each in precisions}
        only = f"; {self.only}" if self.only else ""
        unequal = "" if self.equal else ": NOT equal"
        lines = [f"outputs differ by at most {_errors(largest)} of their spread, on {self.inputs}{only}{unequal}"]
        if len(self.outputs) > 1:
            lines += [f"  {name}: {_errors(found)}" for name, found in self.outputs.items()]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes as mappings, strings and numbers, for JSON; a difference of other shapes is None."""
        finite = {
            name: {precision: _finite(error) for precision, error in found.items()}
            for name, found in self.outputs.items()
        }
        plain = {name: getattr(self, name) for name in ("inputs", "reason", "only", "equal")}
        return {"float64": _finite(self.float64), "float32": _finite(self.float32), **plain, "outputs": finite}


def _errors(found: Mapping[str, float | None]) -> str:
    texts = {precision: f"{error:.1e}" if error else "0" for precision, error in found.items() if error is not None}
    return " and ".join(f"{text} in {precision}" for precision, text in texts.items())


def _finite(error: float | None) -> float | None:
    return error if error is not None and isfinite(error) else None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class _Case:
    """Inputs to run.

    Attributes:
        inputs: the inputs.
        stretched: axes that are longer than the example's.
    """

    inputs: Inputs
    stretched: tuple[int, ...] = ()


class DifferentOutputsError(CompactionError):
    """The compacted network does not give the model's outputs.

    Args:
        message: the difference.
        inputs: inputs with that difference.
    """

    def __init__(self, message: str, inputs: Inputs) -> None:
        super().__init__(message)
        self.inputs = inputs


class Comparison:
    """Outputs of a model and of networks that take its place, compared in one precision after the other.

    Args:
        model: the model, in eval mode.
        inputs: an example that the model runs on.
        output: name of the output where there is only one.

    Attributes:
        fixed: axes of the inputs on which the networks are right for the example's size alone.
        without_gradients: True if the model returns these outputs under `torch.no_grad()` alone.
    """

    def __init__(self, model: nn.Module, inputs: Inputs, output: str = OUTPUT) -> None:
        self.model, self.inputs, self.output = model, inputs, output
        self.fixed: dict[int, None] = {}
        self._errors: dict[torch.dtype, dict[str, float]] = {}
        self._refused: dict[str, None] = {}
        self._ran = 0
        self._exact: Any = None
        self._random = False
        self.without_gradients = False

    def run(self, small: nn.Module, dtype: torch.dtype) -> None:
        """Compare in one precision, double precision first.

        Raises:
            DifferentOutputsError: if outputs differ.
        """
        model = _in_precision(self.model, dtype)
        self._run(model, _in_precision(small, dtype), self.inputs.to(dtype=dtype, device=device_of(model)), dtype)

    def run_as_they_are(self, small: nn.Module) -> None:
        """Compare in the precisions that the weights have: code may name them, so that the model runs in no others.

        Raises:
            DifferentOutputsError: if outputs differ.
        """
        self._run(self.model, small, self.inputs, _coarsest(self.model))

    def _run(self, model: nn.Module, small: nn.Module, example: Inputs, dtype: torch.dtype) -> None:
        expected = outputs_of(model, example)
        if isinstance(expected, Exception):
            return
        if self._exact is None:
            with torch.enable_grad():
                recorded = outputs_of(model, example)
            again = outputs_of(model, example, seed=1)
            self._random = isinstance(again, Exception) or difference(expected, again) != 0
            differs = isinstance(recorded, Exception) or difference(expected, recorded) > _limit(dtype)
            self.without_gradients = differs and not self._random
        if self._random:
            self._check_random(small, example)
            return
        limit = max(_limit(dtype), ROUNDING * self._rounding(expected))
        self._exact = expected
        self._compare(model, small, _Case(example), dtype, limit)
        if dtype is torch.float64 or not any(self._errors.get(torch.float64, {}).values()):
            for case in _cases(example):
                self._compare(model, small, case, dtype, limit)

    def _check_random(self, small: nn.Module, example: Inputs) -> None:
        """Raise if the model draws numbers and the network has none to draw."""
        outputs = [outputs_of(small, example, seed) for seed in range(4)]
        fixed = all(not isinstance(each, Exception) and difference(outputs[0], each) == 0 for each in outputs)
        if fixed:
            raise DifferentOutputsError(
                "the model's outputs are random and those of its graph are not: Python reads a number that was drawn, "
                "or it was drawn apart from the inputs, and the graph would hold the one of the example.",
                example,
            )

    def _rounding(self, outputs: Any) -> float:
        """Return the difference of the model from itself in double precision."""
        error = 0.0 if self._exact is None else difference(self._exact, outputs)
        return error if error < 1 else 0.0

    def _compare(self, model: nn.Module, small: nn.Module, case: _Case, dtype: torch.dtype, limit: float) -> None:
        found = _errors_of(model, small, case)
        if found is None:
            return
        if isinstance(found, ParameterError):
            self._refused[case.inputs.shapes()] = None
            return
        if isinstance(found, Exception):
            if not case.stretched:
                raise DifferentOutputsError(
                    f"the compacted network cannot be run on inputs of shape {case.inputs.shapes()}, which the model "
                    f"takes: {found}. A loop over the samples of a batch is right for their number alone.",
                    case.inputs,
                ) from found
            self.fixed |= dict.fromkeys(case.stretched)
            return
        error = max(found.values(), default=0.0)
        if error <= limit:
            before = self._errors.setdefault(dtype, {})
            before |= {name: max(each, before.get(name, 0.0)) for name, each in found.items()}
            self._ran += 1
        elif case.stretched:
            self.fixed |= dict.fromkeys(case.stretched)
        else:
            raise DifferentOutputsError(
                f"the compacted network does not give the model's outputs: they differ by {error:.2g} of their spread "
                f"in {str(dtype).removeprefix('torch.')} on inputs of shape {case.inputs.shapes()}. The model does "
                "something that its graph cannot hold.",
                case.inputs,
            )

    @property
    def is_done(self) -> bool:
        """True if outputs were compared, or cannot be."""
        return self._random or bool(self._errors)

    def result(self) -> Verification:
        """Return the result of all comparisons."""
        if self._random:
            return Verification(reason="the model's outputs are not the same from one run to the next")
        if not self._errors:
            return Verification(reason="the model does not run on its example a second time")
        notes = ["only under torch.no_grad()"] if self.without_gradients else []
        notes += [f"only inputs of the example's size on axis {axis}" for axis in self.fixed]
        notes += [f"inputs of shape {shapes} are refused, which the model takes" for shapes in self._refused]
        kinds = self._ran - len(self._errors)
        errors = {
            dtype: {self.output if name == OUTPUT else name: error for name, error in found.items()}
            for dtype, found in self._errors.items()
        }
        described = f"an input of shape {self.inputs.shapes()} and {kinds} of its kind"
        return Verification.of(errors, described, only="; ".join(notes))


def _limit(dtype: torch.dtype) -> float:
    """Return the largest difference of equal networks in a precision."""
    return LIMITS.get(dtype, ROUNDING * torch.finfo(dtype).eps)


def _cases(example: Inputs) -> Iterator[_Case]:
    """Yield random inputs like the example, with other numbers of samples and other sizes."""
    yield from (_Case(random_like(example, seed=1, samples=count)) for count in _BATCHES)
    axes = max((t.ndim for t in example.tensors()), default=0)
    together = [tuple(range(2, axes))] if axes > 3 else [(axis,) for axis in range(1, axes)]
    yield from (_Case(random_like(example, seed=2, samples=1, stretched=each), each) for each in together)


def _errors_of(model: nn.Module, small: nn.Module, case: _Case) -> dict[str, float] | Exception | None:
    """Return the difference of every output, or an error; None if the model does not take such inputs."""
    expected = outputs_of(model, case.inputs)
    if isinstance(expected, Exception):
        return None
    found = outputs_of(small, case.inputs)
    return found if isinstance(found, Exception) else differences(expected, found)


def differences(expected: Any, found: Any) -> dict[str, float]:
    """Return name -> `difference` of every output: keys of a dict, positions in a tuple, `output` for a single one."""
    ours, theirs = _named_parts(expected), _named_parts(found)
    if not ours or ours.keys() != theirs.keys():
        return {OUTPUT: difference(expected, found)}
    return {name: difference(part, theirs[name]) for name, part in ours.items()}


def _named_parts(output: Any) -> dict[str, Any]:
    return {} if isinstance(output, Tensor) else {str(key): part for _, key, part in parts(output)}


def difference(expected: Any, found: Any) -> float:
    """Return the largest difference of outputs, as a fraction of the spread of each; inf if structures differ."""
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


def cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a copy of a model in a precision."""
    device = torch.device("cpu") if device_of(model).type == "mps" else device_of(model)  # mps has no doubles
    own = copied(model)
    own._apply(lambda tensor: tensor.to(device, dtype_in(tensor, dtype)))  # `to` would make complex numbers real
    return own


def _in_precision(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a model whose numbers are all in a precision; a copy, unless those of the model are."""
    numbers = chain(model.parameters(), model.buffers())
    as_it_is = device_of(model).type != "mps" and all(each.dtype == dtype_in(each, dtype) for each in numbers)
    return model if as_it_is else cast(model, dtype)


def _coarsest(model: nn.Module) -> torch.dtype:
    """Return the coarsest precision of a model's weights."""
    types = {p.dtype for p in model.parameters() if p.is_floating_point()}
    return max(types, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float32)


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's first tensor."""
    return next((t.device for t in chain(model.parameters(), model.buffers())), torch.device("cpu"))


def outputs_of(model: nn.Module, inputs: Inputs, seed: int = 0) -> Any:
    """Return the output of a network, or the error that it raises; always with the same random numbers."""
    device = device_of(model)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed is slow where there is no GPU
        if device.type == "cuda":
            torch.cuda.manual_seed(seed)
        try:
            return snapshot(inputs.call(model))
        except Exception as error:  # the model does not take inputs of this size, or the network is wrong
            return error


def snapshot(output: Any) -> Any:
    """Return a copy of an output, which later writes do not change."""
    return mapped(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, output)
