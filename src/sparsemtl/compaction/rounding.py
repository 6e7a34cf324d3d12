"""Choice of the multiple to which numbers of channels are filled up, by the time of the networks that it makes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from sparsemtl.compaction.copies import copied
from sparsemtl.compaction.inputs import Inputs
from sparsemtl.compaction.pipeline import CompactedModule, attach
from sparsemtl.compaction.runtimes import RUNTIMES
from sparsemtl.compaction.timing import times_of
from sparsemtl.compaction.verification import device_of
from sparsemtl.errors import ParameterError, unknown_name

MULTIPLES = (1, 4, 8, 16)
"""Multiples that are tried; onnxruntime computes channels in blocks of 8 or 16, and reads them in blocks of 4."""
_REPEATS = 15
_MARGIN = 0.97
"""Part of the time of a smaller multiple that a larger one must stay below: differences of less are noise."""


def check_multiple(multiple_of: int | str) -> None:
    """Raise a ParameterError unless a multiple is at least 1 or names a runtime."""
    if isinstance(multiple_of, str):
        if multiple_of not in RUNTIMES:
            raise ParameterError(f"`multiple_of`: {unknown_name('runtime', multiple_of, RUNTIMES)}")
    elif multiple_of < 1:
        raise ParameterError(f"`multiple_of` must be at least 1, got {multiple_of}.")


def fastest(build: Callable[[int], CompactedModule], example: Any, runtime: str, *, single: bool) -> CompactedModule:
    """Return the fastest of the networks with some multiples, measured in turns on an example.

    Args:
        build: returns the network of a multiple.
        example: `example_inputs` of `compact`; all its samples are run.
        runtime: name of the runtime.
        single: True if the networks have one argument, whatever the example is.
    """
    if example is None:
        raise ParameterError(f"multiple_of={runtime!r} measures on an example: give a batch (`example_inputs=...`).")
    networks: dict[int, CompactedModule] = {}
    for multiple in MULTIPLES:
        made = build(multiple)
        if all(_widths(made) != _widths(other) for other in networks.values()):
            networks[multiple] = made
    if len(networks) == 1:
        return networks[1]
    first = networks[1]
    like = next(first.parameters())
    inputs = Inputs.of(example, first, single=single).to(dtype=like.dtype, device=device_of(first))
    copies: dict[str, nn.Module] = {str(multiple): copied(network) for multiple, network in networks.items()}
    times = {int(name): each.median for name, each in times_of(copies, inputs, runtime, repeats=_REPEATS).items()}
    chosen = 1
    for multiple, time in times.items():
        chosen = multiple if time < _MARGIN * times[chosen] else chosen
    listed = ", ".join(f"{time:.3g} ms of {multiple}" for multiple, time in times.items())
    note = f"channels are multiples of {chosen}, chosen by the time in {runtime}: {listed}"
    small = networks[chosen]
    return attach(small, replace(small.report, rounding=note))


def _widths(network: CompactedModule) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(tensor.shape)) for name, tensor in network.named_parameters()]
