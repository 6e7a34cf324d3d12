"""Milliseconds of a network and of the small one in its place, measured in turns."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from sparsemtl.compaction.copies import copied
from sparsemtl.compaction.cost import macs
from sparsemtl.compaction.graph.network import Select
from sparsemtl.compaction.inputs import Inputs, tensors
from sparsemtl.compaction.timing.runtimes import RUNTIMES, Networks, Runs
from sparsemtl.compaction.verification.comparison import device_of, difference
from sparsemtl.errors import CompactionError, CompactionWarning, MissingExtraError, ParameterError, unknown_name
from sparsemtl.kernels.processor import processor_name

_WARMUP = 5
_DEFAULT = ("eager", "onnxruntime")
_CALL = 20.0
"""Microseconds of an operation below which the call itself is a good part of it."""


@dataclass(frozen=True)
class Timing:
    """Time of one forward pass, in milliseconds.

    Attributes:
        median: median of the passes.
        p95: time that 95 % of the passes keep to.
    """

    median: float
    p95: float


@dataclass(frozen=True)
class Speedup:
    """Time of a network and of the small one in its place, on one runtime and batch.

    Attributes:
        runtime: `eager` is torch, each network in the faster of the contiguous and the channels-last layout; `compile`
            is `torch.compile`; `onnxruntime` is ONNX; `half` is `eager` in bfloat16 (CPU) or float16 (GPU); `int8` is
            `onnxruntime` with dynamic quantization; `sparse` is `eager` with linear layers in CSR where that is faster.
            Both networks run in the same precision and form.
        batch: number of samples.
        threads: number of threads on the CPU.
        processor: name of the processor or GPU.
        before: time of the network.
        after: time of the small network.
        macs: multiply-adds of the batch before and after.
        difference: largest difference of the small network's outputs from those in its own precision in torch, as a
            fraction of their spread.
        reason: why less than half of the saved multiply-adds became time, "" if more did.
    """

    runtime: str
    batch: int
    threads: int
    before: Timing
    after: Timing
    macs: tuple[int, int]
    processor: str = ""
    difference: float | None = None
    reason: str = ""

    @property
    def ratio(self) -> float:
        """Times that the small network is faster."""
        return self.before.median / self.after.median

    @property
    def yielded(self) -> float | None:
        """Share of the saved multiply-adds that became saved time; None if none were saved."""
        saved = 1 - self.macs[1] / self.macs[0] if self.macs[0] else 0.0
        return (1 - self.after.median / self.before.median) / saved if saved > 0 else None


class _OneTask(nn.Module):
    """Multi-task model that computes one task."""

    def __init__(self, model: nn.Module, task: str) -> None:
        super().__init__()
        self.model, self.task = model, task

    def forward(self, x: Any) -> Tensor:
        """Return the outputs of the task."""
        outputs: Tensor = self.model(x, tasks=(self.task,))[self.task]
        return outputs


def speedups(
    before: nn.Module,
    after: nn.Module,
    x: Any,
    *,
    task: str | None = None,
    repeats: int = 30,
    runtimes: Sequence[str] | None = None,
) -> Iterator[Speedup]:
    """Time a network and the small one in its place, in turns, with torch's present number of threads.

    Args:
        before: the network.
        after: the small network.
        x: a batch that both read: a tensor, or a dict of tensors, on the device of the networks.
        task: the task that `before` computes, if it is a multi-task model.
        repeats: number of passes of each that are timed, at least 1, after five that are not.
        runtimes: names of runtimes, see `Speedup`; by default `eager`, and `onnxruntime` if its libraries are installed
            and both networks can be exported. `compile` takes up to minutes before the first pass.

    Yields:
        the times in each runtime. A named runtime that cannot run a network is left out with a `CompactionWarning`.

    Raises:
        ParameterError: if a runtime is unknown, or `repeats` less than 1.
        MissingExtraError: if the libraries of a named runtime are missing.

    Examples:
        >>> layers = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2))
        >>> _ = layers[2].weight.data[:, :60].zero_()
        >>> (found,) = sm.speedups(layers, sm.compact(layers), torch.rand(8, 4), repeats=3, runtimes=["eager"])
        >>> found.macs, found.ratio > 0, found.difference
        ((3072, 192), True, 0.0)
    """
    if repeats < 1:
        raise ParameterError(f"`repeats` must be at least 1, got {repeats}.")
    for name in runtimes or ():
        if name not in RUNTIMES:
            raise ParameterError(unknown_name("runtime", name, RUNTIMES))
    own = copied(before) if task is None else _OneTask(copied(before), task)
    networks = {"before": own.eval(), "after": copied(after).eval()}
    counts = macs(networks["before"], x), macs(networks["after"], x)
    with torch.inference_mode():
        expected = tensors(networks["after"](x))
    device = device_of(networks["after"])
    for name, times, runs in _timed(networks, Inputs((x,)), repeats, runtimes):
        with torch.inference_mode():
            found = [torch.as_tensor(each).to(expected[0]) for each in _outputs(runs["after"]())]
        made = Speedup(
            runtime=name,
            batch=len(tensors(x)[0]),
            threads=torch.get_num_threads(),
            before=times["before"],
            after=times["after"],
            macs=counts,
            processor=torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name(),
            difference=difference(expected, found),
        )
        yield replace(made, reason=_reason(made, networks["after"]))


def timings(
    networks: Networks, inputs: Inputs, *, repeats: int, runtimes: Sequence[str] | None = None
) -> Iterator[tuple[str, dict[str, Timing]]]:
    """Yield a runtime and name -> time of every network, which take turns, if its libraries can run them.

    Args:
        networks: name -> network, in eval mode.
        inputs: what all of them read.
        repeats: number of passes of each that are timed.
        runtimes: as for `speedups`.
    """
    for runtime, times, _ in _timed(networks, inputs, repeats, runtimes):
        yield runtime, times


def times_of(networks: Networks, inputs: Inputs, runtime: str, *, repeats: int) -> dict[str, Timing]:
    """Return the time of each network, in its fastest layout; the networks take turns.

    Args:
        networks: networks in eval mode, by name.
        inputs: what all of them read.
        runtime: one of `RUNTIMES`.
        repeats: number of passes of each that are timed, at least 1.

    Raises:
        MissingExtraError: if a library is missing.
        CompactionError: if a network cannot be exported or compiled.
    """
    return _best(RUNTIMES[runtime](networks, inputs), networks, repeats)[0]


def _best(runs: Runs, networks: Networks, repeats: int) -> tuple[dict[str, Timing], dict[str, Callable[[], Any]]]:
    """Return name -> time and name -> pass of each network in its fastest layout."""
    times = _in_turns(runs, repeats)
    keys = {kind: [key for key in runs if key[0] == kind] for kind in networks}
    best = {kind: min(own, key=lambda key: times[key].median) for kind, own in keys.items()}
    return {kind: times[key] for kind, key in best.items()}, {kind: runs[key] for kind, key in best.items()}


def _timed(
    networks: Networks, inputs: Inputs, repeats: int, runtimes: Sequence[str] | None
) -> Iterator[tuple[str, dict[str, Timing], dict[str, Callable[[], Any]]]]:
    """Yield (runtime, name -> time, name -> its pass), each network in its best layout."""
    for runtime in runtimes or _DEFAULT:
        try:
            runs = RUNTIMES[runtime](networks, inputs)
        except MissingExtraError:
            if runtimes is not None:
                raise
            continue
        except CompactionError as error:
            if runtimes is not None:
                warnings.warn(f"runtime {runtime!r} was left out: {error}", CompactionWarning, stacklevel=3)
            continue
        yield runtime, *_best(runs, networks, repeats)


def _outputs(found: Any) -> Sequence[Any]:
    return tensors(found) or found


def _reason(found: Speedup, small: nn.Module) -> str:
    """Return why a small network is not faster by as much as it computes less, "" if it is by half of that."""
    yielded = found.yielded
    if yielded is None:
        return "no multiply-add is saved"
    if yielded >= 0.5:
        return ""
    reasons = []
    left = found.macs[1] / found.macs[0]
    if left > 0.9:
        reasons.append(f"{left:.0%} of the multiply-adds are left")
    calls = _calls(small)
    call = 1000 * found.after.median / max(calls, 1)
    if call < _CALL:
        reasons.append(f"a pass is {calls} calls of {call:.0f} µs, mostly what a call costs; larger batches gain more")
    copies = sum(isinstance(module, Select) for module in small.modules())
    if copies:
        reasons.append(f"channels are copied {copies} times between layers")
    layers = [module for module in small.modules() if isinstance(module, _ConvNd) and module.groups == 1]
    odd = sum(bool(layer.in_channels % 8 or layer.out_channels % 8) for layer in layers)
    if odd:
        widths = f"{odd} of {len(layers)} convolutions have a number of channels that is no multiple of 8"
        reasons.append(f"{widths}; try `multiple_of` 8 or 16")
    rate = left * found.ratio
    reasons.append(f"it computes {rate:.0%} of the multiply-adds per second of the network before")
    return "; ".join(reasons)


def _calls(module: nn.Module) -> int:
    """Return the number of operations of a pass: calls of a graph, else layers."""
    if isinstance(module, fx.GraphModule):
        return sum(node.op.startswith("call") for node in module.graph.nodes)
    return sum(not list(each.children()) for each in module.modules())


def _in_turns(runs: Runs, repeats: int) -> dict[tuple[str, str], Timing]:
    times: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    with torch.inference_mode():
        for count in range(_WARMUP + repeats):
            for key, run in runs.items():
                start = time.perf_counter()
                run()
                if torch.cuda.is_available():
                    torch.cuda.synchronize()  # a pass on a GPU ends later than its call
                if count >= _WARMUP:
                    times[key].append(1000 * (time.perf_counter() - start))
    return {key: Timing(*np.percentile(found, (50, 95)).tolist()) for key, found in times.items()}
