"""Milliseconds of a network and of the small one in its place, measured in turns."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsemtl.compaction.copies import copied
from sparsemtl.compaction.cost import macs
from sparsemtl.compaction.exporting import export
from sparsemtl.compaction.inputs import Inputs
from sparsemtl.errors import CompactionError, MissingExtraError, ParameterError

_WARMUP = 5


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
        runtime: `eager` is torch, each network in the faster of the contiguous and the channels-last layout;
            `onnxruntime` is its CPU provider.
        batch: number of samples.
        threads: number of threads.
        before: time of the network.
        after: time of the small network.
        macs: multiply-adds of the batch before and after.
    """

    runtime: str
    batch: int
    threads: int
    before: Timing
    after: Timing
    macs: tuple[int, int]

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
    before: nn.Module, after: nn.Module, x: Any, *, task: str | None = None, repeats: int = 30
) -> Iterator[Speedup]:
    """Time a network and the small one in its place, in turns, with torch's present number of threads.

    Args:
        before: the network.
        after: the small network.
        x: a batch that both read: a tensor, or a dict of tensors.
        task: the task that `before` computes, if it is a multi-task model.
        repeats: number of passes of each that are timed, at least 1.

    Yields:
        eager passes, then passes in onnxruntime if its libraries are installed and both networks can be exported.

    Examples:
        >>> layers = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2))
        >>> _ = layers[2].weight.data[:, :60].zero_()
        >>> found = [each.runtime for each in sm.speedups(layers, sm.compact(layers), torch.rand(8, 4), repeats=3)]
        >>> found[0]
        'eager'
    """
    if repeats < 1:
        raise ParameterError(f"`repeats` must be at least 1, got {repeats}.")
    own = copied(before) if task is None else _OneTask(copied(before), task)
    networks = {"before": own.eval(), "after": copied(after).eval()}
    counts = macs(networks["before"], x), macs(networks["after"], x)
    batch = len(x) if isinstance(x, Tensor) else len(next(iter(x.values())))
    for runtime, times in timings(networks, x, repeats=repeats):
        yield Speedup(runtime, batch, torch.get_num_threads(), times["before"], times["after"], counts)


def timings(networks: Mapping[str, nn.Module], x: Any, *, repeats: int) -> Iterator[tuple[str, dict[str, Timing]]]:
    """Yield a runtime and name -> time of every network, which take turns, if its libraries can run them.

    Args:
        networks: name -> network, in eval mode.
        x: a batch that all read: a tensor, or a dict of tensors.
        repeats: number of passes of each that are timed.
    """
    for runtime in RUNTIMES:
        try:
            yield runtime, times_of(networks, Inputs((x,)), runtime, repeats=repeats)
        except (ImportError, MissingExtraError, CompactionError):
            continue


Key = tuple[str, str]
"""Network and layout."""
Runs = dict[Key, Callable[[], object]]


def times_of(networks: Mapping[str, nn.Module], inputs: Inputs, runtime: str, *, repeats: int) -> dict[str, Timing]:
    """Return the time of each network, in its fastest layout; the networks take turns.

    Args:
        networks: networks in eval mode, by name.
        inputs: what all of them read.
        runtime: one of `RUNTIMES`.
        repeats: number of passes of each that are timed, at least 1.

    Raises:
        MissingExtraError, ImportError: if a library is missing.
        CompactionError: if a network cannot be exported.
    """
    times = _in_turns(RUNTIMES[runtime](networks, inputs), repeats)
    return {kind: min(_of(kind, times), key=lambda timing: timing.median) for kind in networks}


def _of(kind: str, times: Mapping[Key, Timing]) -> Iterator[Timing]:
    return (timing for (network, _), timing in times.items() if network == kind)


def _eager(networks: Mapping[str, nn.Module], inputs: Inputs) -> Runs:
    runs = {(kind, ""): _call(run, inputs) for kind, run in networks.items()}
    if all(tensor.ndim == 4 for tensor in inputs.tensors()):
        pixels = inputs.mapped(lambda tensor: tensor.to(memory_format=torch.channels_last))
        runs |= {(kind, "channels last"): _call(_channels_last(run), pixels) for kind, run in networks.items()}
    return runs


def _call(network: nn.Module, inputs: Inputs) -> Callable[[], object]:
    return partial(network, *inputs.args, **inputs.kwargs)


def _channels_last(network: nn.Module) -> nn.Module:
    return copied(network).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _in_onnxruntime(networks: Mapping[str, nn.Module], inputs: Inputs) -> Runs:
    import onnxruntime

    with tempfile.TemporaryDirectory() as name:
        contents = {kind: _onnx(network, Path(name) / f"{kind}.onnx", inputs) for kind, network in networks.items()}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    fed = [tensor.cpu().numpy() for tensor in inputs.tensors()]
    runs: Runs = {}
    for kind, content in contents.items():
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        feed = {each.name: value for each, value in zip(session.get_inputs(), fed, strict=True)}
        runs[kind, ""] = partial(session.run, None, feed)
    return runs


def _onnx(network: nn.Module, path: Path, inputs: Inputs) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return export(network, path, example_inputs=inputs).path.read_bytes()


RUNTIMES: dict[str, Callable[[Mapping[str, nn.Module], Inputs], Runs]] = {
    "eager": _eager,
    "onnxruntime": _in_onnxruntime,
}
"""Runtime -> function that returns the runs of networks in it; `eager` is torch."""


def _in_turns(runs: Mapping[Key, Callable[[], object]], repeats: int) -> dict[Key, Timing]:
    times: dict[Key, list[float]] = {key: [] for key in runs}
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
