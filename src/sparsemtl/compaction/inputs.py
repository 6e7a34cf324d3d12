"""Inputs of a network: tensors in nested structures, a user's example, and random inputs of the same kind."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import operator
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from sparsemtl.errors import ParameterError


def parts(value: Any) -> Iterator[tuple[Callable[[Any, Any], Any], Any, Any]]:
    """Yield (function, key, part) per part of a container or object, where `function(value, key)` returns the part."""
    if isinstance(value, (tuple, list)):
        yield from ((operator.getitem, index, part) for index, part in enumerate(value))
    elif isinstance(value, Mapping):
        yield from ((operator.getitem, key, value[key]) for key in value)
    elif dataclasses.is_dataclass(value) and not _is_ours(value) and not isinstance(value, type):
        yield from ((getattr, field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
    elif _is_record(value):
        yield from ((getattr, name, part) for name, part in vars(value).items() if isinstance(part, Tensor))


def _is_ours(value: Any) -> bool:
    return type(value).__module__.startswith("sparsemtl.compaction.")


def _is_record(value: Any) -> bool:
    """Return whether a value is an object of a user's class that holds tensors as attributes."""
    home = type(value).__module__
    library = home == "builtins" or home.split(".")[0] in ("torch", "sparsemtl", "numpy")
    return (
        hasattr(value, "__dict__") and not library and not isinstance(value, (type, nn.Module)) and not callable(value)
    )


def leaves(value: Any) -> Iterator[Any]:
    """Yield everything in a value that is no container itself."""
    if isinstance(value, slice):
        yield from (value.start, value.stop, value.step)
        return
    inside = [] if isinstance(value, Tensor) else list(parts(value))
    if not inside:
        yield value
    for _, _, part in inside:
        yield from leaves(part)


def tensors(value: Any) -> list[Tensor]:
    """Return all tensors in a value, in order."""
    return [leaf for leaf in leaves(value) if isinstance(leaf, Tensor)]


def mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """Return the same structure with a function applied to every leaf; unchanged parts are the same objects."""
    if isinstance(value, slice):
        return slice(*(mapped(function, each) for each in (value.start, value.stop, value.step)))
    inside = [] if isinstance(value, Tensor) else list(parts(value))
    if not inside:
        return function(value)
    changed = {key: mapped(function, part) for _, key, part in inside}
    if all(changed[key] is part for _, key, part in inside):
        return value
    return _rebuilt(value, changed)


def _rebuilt(value: Any, changed: dict[Any, Any]) -> Any:
    if isinstance(value, (tuple, list)):
        values = list(changed.values())
        return type(value)(*values) if hasattr(value, "_fields") else type(value)(values)
    if isinstance(value, dict):
        made = value.copy()
        for key, part in changed.items():  # transformers' outputs refuse `update`
            made[key] = part
        return made
    if isinstance(value, Mapping):
        return type(value)(changed)  # type: ignore[call-arg]
    made = copy.copy(value)
    for name, part in changed.items():
        object.__setattr__(made, name, part)
    return made


def dtype_in(tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """Return the dtype of a tensor in a precision: that of complex numbers for these, its own for whole numbers."""
    if dtype is None or not (tensor.is_floating_point() or tensor.is_complex()):
        return tensor.dtype
    return dtype.to_complex() if tensor.is_complex() else dtype


MAX_SAMPLES = 8
"""Largest number of samples of a user's example that are run."""


@dataclass(frozen=True)
class Inputs:
    """Arguments of one call of a module.

    Attributes:
        args: positional arguments.
        kwargs: keyword arguments.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, example: Any, module: nn.Module, *, single: bool) -> Inputs:
        """Read `example_inputs`.

        Args:
            example: a tuple of all arguments, a mapping from their names, or the only argument.
            module: the module that will be called.
            single: True if the module has one argument, whatever the example is.

        Raises:
            ParameterError: if the module cannot be called so.
        """
        if isinstance(example, Inputs):
            return example
        if isinstance(example, tuple) and (not single or len(example) == 1) and not hasattr(example, "_fields"):
            inputs = cls(example)
        elif isinstance(example, Mapping) and not single and _names_arguments(example, module):
            inputs = cls((), dict(example))
        else:
            inputs = cls((example,))
        inputs.named(module)
        return inputs

    def named(self, module: nn.Module) -> dict[str, Any]:
        """Return name -> value of the arguments, in the order of the module's forward."""
        signature = inspect.signature(type(module).forward)
        try:
            bound = signature.bind(module, *self.args, **self.kwargs).arguments
        except TypeError as error:
            raise ParameterError(
                f"`example_inputs` does not fit {type(module).__name__}.forward: {error}. Give the only argument, a "
                "tuple of all, or a dict from their names."
            ) from None
        named: dict[str, Any] = {}
        for name, value in list(bound.items())[1:]:
            kind = signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_POSITIONAL:
                named |= {f"{name}_{index}": each for index, each in enumerate(value)}
            elif kind is inspect.Parameter.VAR_KEYWORD:
                named |= value
            else:
                named[name] = value
        return named

    def mapped(self, function: Any) -> Inputs:
        """Return the same inputs with a function applied to every tensor and every description of one."""

        def each(value: Any) -> Any:
            return function(value) if isinstance(value, (Tensor, Like)) else value

        return Inputs(mapped(each, self.args), mapped(each, dict(self.kwargs)))

    def call(self, module: nn.Module) -> Any:
        """Call a module with copies of the tensors, which it may change, and return its output."""
        own = self.mapped(Tensor.clone)
        run = module.forward if isinstance(module, fx.GraphModule) else module  # which prints the errors of its calls
        return run(*own.args, **own.kwargs)

    def to(self, *, dtype: torch.dtype | None, device: torch.device) -> Inputs:
        """Return the same inputs on another device, floating-point and complex numbers in another precision."""
        return self.mapped(lambda t: t.detach().to(device, dtype_in(t, dtype)))

    def tensors(self) -> list[Tensor]:
        """Return all tensors in the arguments."""
        return tensors((self.args, dict(self.kwargs)))

    def samples(self) -> int | None:
        """Return the length of the first axis if all tensors with axes share it, else None."""
        lengths = {t.shape[0] for t in self.tensors() if t.ndim}
        return lengths.pop() if len(lengths) == 1 else None

    def first(self, samples: int) -> Inputs:
        """Return only the first samples, if all tensors have the batch on the first axis."""
        own = self.samples()
        return self if own is None or own <= samples else self.mapped(lambda t: t[:samples] if t.ndim else t)

    def shapes(self) -> str:
        """Return the shapes in words."""
        return ", ".join(str(tuple(t.shape)) for t in self.tensors())


def _names_arguments(example: Mapping[Any, Any], module: nn.Module) -> bool:
    parameters = inspect.signature(type(module).forward).parameters
    return bool(example) and all(name in parameters for name in example)


def random_like(inputs: Inputs, seed: int, *, samples: int | None = None, stretched: Collection[int] = ()) -> Inputs:
    """Return random inputs with an example's shapes and dtypes, and numbers in its range.

    Args:
        inputs: the example.
        seed: seed of the numbers.
        samples: length of the first axis, if all tensors have it in common; the example's by default.
        stretched: axes that become twice as long, in every tensor that has them.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor: Tensor) -> Tensor:
        shape = list(tensor.shape)
        if samples is not None and shape and inputs.samples() is not None:
            shape[0] = samples
        for axis in stretched:
            if axis < len(shape):
                shape[axis] *= 2
        return tensor if tensor.is_complex() else Like.of(tensor).drawn(generator, shape).to(tensor.device)

    return inputs.mapped(draw)


@dataclass(frozen=True)
class Like:
    """Description of a tensor of an example: shape, dtype, range, and whether it is a list of ascending integers.

    Ascending integers are places where parts of another tensor begin; in another order they have no meaning.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    low: float
    high: float
    ascending: bool = False

    @classmethod
    def of(cls, tensor: Tensor) -> Like:
        """Return the description of a tensor."""
        numbers = tensor[tensor.isfinite()].double() if tensor.numel() and not tensor.is_complex() else torch.zeros(1)
        low, high = (float(numbers.min()), float(numbers.max())) if len(numbers) else (0.0, 0.0)
        whole = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
        ascending = whole and tensor.ndim == 1 and len(tensor) > 1 and bool((tensor[1:] >= tensor[:-1]).all())
        return cls(tuple(tensor.shape), tensor.dtype, low, high, ascending)

    def drawn(self, generator: torch.Generator, shape: Sequence[int] | None = None) -> Tensor:
        """Return a random tensor of this description, of this or another shape."""
        size = self.shape if shape is None else tuple(shape)
        if self.dtype == torch.bool:
            return torch.rand(size, generator=generator) < (1 if self.low else 0.5 * self.high)
        if not self.dtype.is_floating_point:
            drawn = torch.randint(int(self.low), int(self.high) + 1, size, generator=generator).to(self.dtype)
            if self.ascending and drawn.numel():
                drawn, _ = drawn.sort()
                drawn[0] = int(self.low)
            return drawn
        if self.low == self.high:  # zeros or ones stand for any numbers
            return torch.randn(size, generator=generator, dtype=torch.float64).to(self.dtype)
        numbers = torch.rand(size, generator=generator, dtype=torch.float64)
        return (self.low + (self.high - self.low) * numbers).to(self.dtype)
