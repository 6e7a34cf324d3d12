"""TorchJD module of a balancer: its device and its state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsemtl.balancing.nash import init_problem
from sparsemtl.errors import ParameterError
from sparsemtl.tasks.nests import to_device


class Always:
    """Function from any number of tasks to `make(*arguments)`; unlike a lambda, it can be pickled and copied."""

    def __init__(self, make: Callable[..., Any], *arguments: Any) -> None:
        self._make = make
        self._arguments = arguments

    def __call__(self, tasks: int) -> Any:
        """Return a new module."""
        return self._make(*self._arguments)


class Given:
    """Function from any number of tasks to one module of the user's; a copy of the function copies the module."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __call__(self, tasks: int) -> Any:
        """Return the module."""
        return self._module


def check_tasks(make: Callable[[int], nn.Module], tasks: int) -> None:
    """Call a new aggregator once, to refuse one that cannot combine this number of tasks before training.

    Args:
        make: function from the number of tasks to the aggregator; a module of the user's is not called.
        tasks: number of tasks.

    Raises:
        ParameterError: with the aggregator's own message.
    """
    if isinstance(make, Given):
        return
    module = make(tasks)
    with torch.random.fork_rng(devices=[]):
        try:
            module(torch.eye(tasks))
        except (ValueError, RuntimeError, IndexError) as error:
            name = getattr(make, "name", type(module).__name__)
            raise ParameterError(f"balancer {name!r} cannot combine the gradients of {tasks} tasks: {error}") from error


def check_reads_inner_products(module: nn.Module, option: str) -> None:
    """Raise a ParameterError unless an aggregator adds the gradients with weights of their inner products.

    Args:
        module: the aggregator.
        option: value of `gradients` that needs it, for the message.
    """
    from torchjd.aggregation import GramianWeightedAggregator

    if not isinstance(module, GramianWeightedAggregator):
        raise ParameterError(
            f"`gradients: {option}` chooses weights by the gradients' inner products, and {type(module).__name__} "
            "combines gradients by more than these, or by none. Use `gradients: weights`."
        )


class TorchJDModule:
    """Module of TorchJD that is made once the number of tasks is known.

    Args:
        make: function from the number of tasks to the module.
    """

    def __init__(self, make: Callable[[int], nn.Module]) -> None:
        self.make = make
        self._module: Any = None
        self._device = torch.device("cpu")

    @property
    def module(self) -> Any:
        """TorchJD module; it exists once the number of tasks is known.

        Raises:
            RuntimeError: if the balancer is not attached yet.
        """
        if self._module is None:
            raise RuntimeError("the balancer is not attached yet; call attach(tasks, device).")
        return self._module

    def attach(self, tasks: int, device: torch.device) -> None:
        """Make the module on the device, with the preference vectors that it holds in plain attributes."""
        self._module = self.make(tasks).to(device)
        self._device = device
        for part in self._module.modules():
            for name, value in _state_of(part).items():
                setattr(part, name, to_device(value, device))

    @contextmanager
    def vectors_in(self, dtype: torch.dtype) -> Iterator[None]:
        """Convert the vectors that the module was made with, such as a preference, to the type of the gradients."""
        found = [
            (part, name, value)
            for part in self.module.modules()
            for name, value in vars(part).items()
            if name.removeprefix("_") in _VECTORS and isinstance(value, Tensor) and value.dtype != dtype
        ]
        for part, name, value in found:
            setattr(part, name, value.to(dtype))
        try:
            yield
        finally:
            for part, name, value in found:
                setattr(part, name, value)

    def state_dict(self) -> dict[str, Any]:
        """Return the module's parameters, and the buffers and plain attributes of its parts."""
        return {
            "parameters": {name: p.detach().clone() for name, p in self.module.named_parameters()},
            "state": {path: self._packed(_state_of(part)) for path, part in self.module.named_modules()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        with torch.no_grad():
            for name, parameter in self.module.named_parameters():
                parameter.copy_(state["parameters"][name])
        for path, values in state["state"].items():
            part = self.module.get_submodule(path)
            for name, value in values.items():
                setattr(part, name, self._unpacked(value))
        init_problem(self.module)

    def _packed(self, value: Any) -> Any:
        """Return a value in the form in which checkpoints hold it."""
        if isinstance(value, Tensor):
            on_cpu = value.device.type == "cpu" != self._device.type  # some aggregators keep their state on the CPU
            return {"tensor": value.detach().clone(), "on_cpu": on_cpu}
        if isinstance(value, np.ndarray):
            return {"array": torch.tensor(value)}
        if isinstance(value, torch.dtype):
            return {"dtype": str(value)}
        if isinstance(value, torch.device):
            return {"device": str(value)}
        if isinstance(value, Mapping):
            return {name: self._packed(item) for name, item in value.items()}
        return type(value)(map(self._packed, value)) if isinstance(value, (list, tuple)) else value

    def _unpacked(self, value: Any) -> Any:
        match value:
            case {"tensor": tensor, "on_cpu": on_cpu}:
                return tensor.clone() if on_cpu else tensor.clone().to(self._device)
            case {"array": tensor}:
                return tensor.cpu().numpy().copy()
            case {"dtype": name}:
                return _DTYPES[name]
            case {"device": _}:
                return self._device
            case list() | tuple():
                return type(value)(map(self._unpacked, value))
        return value


_VECTORS = ("pref_vector", "weights", "leak", "tau", "initial_weights")
"""Attributes of TorchJD's aggregators that hold a vector of the user's."""
_DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16)}
_PLAIN = (Tensor, np.ndarray, list, tuple, int, float, str, bool, type(None), torch.dtype, torch.device)


def _state_of(part: nn.Module) -> dict[str, Any]:
    """Return a module's buffers, and its plain attributes, in which TorchJD keeps averages."""
    internal = vars(nn.Module())
    plain = {name: v for name, v in vars(part).items() if name not in internal and isinstance(v, _PLAIN)}
    return {**plain, **part._buffers}
