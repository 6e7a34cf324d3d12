"""Choice of the form of a network that is fastest in a runtime: multiples of channels, layers without zeros."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from sparsemtl.compaction.copies import copied
from sparsemtl.compaction.inputs import Inputs
from sparsemtl.compaction.pipeline import CompactedModule, attach
from sparsemtl.compaction.timing.measure import times_of
from sparsemtl.compaction.timing.runtimes import RUNTIMES
from sparsemtl.compaction.timing.sparse_layers import sparsify
from sparsemtl.compaction.verification.comparison import LIMITS, device_of, difference, outputs_of
from sparsemtl.errors import CompactionError, ParameterError, unknown_name

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
        runtime: name of the runtime; `sparse` is `eager`, with the linear layers in CSR that are then faster.
        single: True if the networks have one argument, whatever the example is.
    """
    if example is None:
        raise ParameterError(f"multiple_of={runtime!r} measures on an example: give a batch (`example_inputs=...`).")
    if runtime in _FINISHED:
        base, finish = _FINISHED[runtime]
        return finish(fastest(build, example, base, single=single), example, single)
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


def _without_zeros(small: CompactedModule, example: Any, single: bool) -> CompactedModule:
    """Put the linear layers of a network into CSR that are faster so on an example, and compare its outputs.

    Args:
        small: the network, which is changed.
        example: `example_inputs` of `compact`.
        single: True if the network has one argument.

    Raises:
        CompactionError: if outputs differ by more than rounding.
    """
    like = next(small.parameters())
    inputs = Inputs.of(example, small, single=single).to(dtype=like.dtype, device=device_of(small))
    expected = outputs_of(small, inputs)
    replaced, timed = sparsify(small, inputs)
    error = difference(expected, outputs_of(small, inputs))
    if error > LIMITS[torch.float32]:
        raise CompactionError(f"linear layers in CSR give other outputs: they differ by {error:.2g} of their spread.")
    note = f"linear layers in CSR, where it is faster on the example: {replaced} of {timed} with zeros"
    report = small.report
    return attach(small, replace(report, rounding="; ".join(filter(None, (report.rounding, note)))))


_FINISHED: dict[str, tuple[str, Callable[[CompactedModule, Any, bool], CompactedModule]]] = {
    "sparse": ("eager", _without_zeros)
}
"""Runtime -> runtime in which the multiple is chosen, and what is done with the network afterwards."""


def _widths(network: CompactedModule) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(tensor.shape)) for name, tensor in network.named_parameters()]
