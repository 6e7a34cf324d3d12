"""Time and memory of masks from scores: selection of the top K, and Fisher masks of growing networks.

    python benchmarks/select_speed.py [--quick] [--threads 2] [--json FILE]

Scores are those of 50 layers, independent and positive, in single precision. Peak memory is that of a fresh process,
over what it had with the scores. Fisher masks are those of 8 tasks on a multi-layer perceptron: their scores take 32
bytes per weight, and their masks 8; `growth.py` has larger networks.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from common import Measure, Ratio, main, seconds, spread
from torch import Tensor, nn

from sparsemtl import Classification, SharedBottom, fisher_masks
from sparsemtl.criteria import select

MILLION = 10**6
LAYERS = 50
TASKS = 8


def scores(size: int) -> dict[str, Tensor]:
    """Scores of 50 layers with `size` weights together."""
    torch.manual_seed(0)
    return {f"layer{n}": torch.rand(size // LAYERS) ** 8 for n in range(LAYERS)}


def starved(size: int) -> dict[str, Tensor]:
    """Scores of which one layer's are so small that it lives by `min_per_layer`."""
    return {name: score * 1e-20 if name == "layer7" else score for name, score in scores(size).items()}


def tied(size: int) -> dict[str, Tensor]:
    """Scores of which nine tenths are zero."""
    return {name: score * (torch.rand(score.shape) < 0.1) for name, score in scores(size).items()}


KINDS: dict[str, Callable[[int], dict[str, Tensor]]] = {"": scores, "one layer starved": starved, "tied at 0": tied}


def mlp(size: int) -> SharedBottom:
    """A network of four square layers with `size` shared weights together, and 8 tasks."""
    torch.manual_seed(0)
    width = int((size / 4) ** 0.5)
    tasks = [Classification(f"task{index}", 2) for index in range(TASKS)]
    encoder = nn.Sequential(*(part for _ in range(4) for part in (nn.Linear(width, width), nn.ReLU())))
    return SharedBottom(encoder, tasks, {task.name: nn.Linear(width, 2) for task in tasks})


def masks_of(model: SharedBottom) -> None:
    """Fisher masks of 64 samples."""
    width = model.encoder[0].in_features
    batch = torch.randn(64, width), {task: torch.randint(2, (64,)) for task in model.tasks}
    fisher_masks(model, [batch], keep=0.3)


def peak(run: str, size: int) -> float:
    """Peak memory in GB of a fresh process that runs one of the functions below."""
    command = [sys.executable, __file__, "--peak", run, str(size)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_peak(run: str, size: int) -> float:
    """Peak memory in GB of this process, over what it had with the scores or the network."""
    select({"warm": torch.rand(1000)}, 0.3)
    if run == "masks":
        model = mlp(size)
        before = _reset_peak()
        masks_of(model)
    else:
        given = KINDS[run](size)
        before = _reset_peak()
        select(given, 0.3)
    return _status("VmHWM") - before


def _reset_peak() -> float:
    """Return freed memory to the system, and let the peak begin at what this process has now, in GB."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(field: str) -> float:
    with open("/proc/self/status") as lines:
        return next(float(line.split()[1]) / 2**20 for line in lines if line.startswith(field))


def once(value: float) -> Ratio:
    """A value that does not vary."""
    return Ratio(value, value, value)


def measures(quick: bool) -> Iterator[Measure]:
    """Yield selection of 25 M scores, then growth with the number of weights."""
    size = 25 * MILLION
    given = {kind: make(size) for kind, make in KINDS.items() if not kind or not quick}
    repeats = 3 if quick else 7
    for keep in (0.3,) if quick else (0.1, 0.3, 0.9):
        time = spread(lambda keep=keep: seconds(lambda: select(given[""], keep)), repeats)
        yield Measure(f"top {keep:.0%} of 25 M scores", time, goal=0.2, unit="s")
    yield Measure("peak memory over 95 MB of scores", once(peak("", size)), goal=0.3, unit="GB")
    if quick:
        return
    for kind in ("one layer starved", "tied at 0"):
        time = spread(lambda kind=kind: seconds(lambda: select(given[kind], 0.3)), repeats)
        yield Measure(f"top 30% of 25 M scores, {kind}", time, unit="s")
        yield Measure(f"peak memory, {kind}", once(peak(kind, size)), unit="GB")
    time = spread(lambda: seconds(lambda: select(given[""], 0.3, scope="layer")), repeats)
    yield Measure("top 30% of each layer, 25 M scores", time, unit="s")
    given.clear()
    for millions in (1, 10, 25, 100):
        made = scores(millions * MILLION)
        time = spread(lambda made=made: seconds(lambda: select(made, 0.3)), 3)
        yield Measure(f"growth: top 30% of {millions} M scores", time, unit="s")
    del made
    for millions in (1, 10):
        model = mlp(millions * MILLION)
        masks_of(model)
        time = spread(lambda model=model: seconds(lambda: masks_of(model)), 1)
        yield Measure(f"growth: Fisher masks of 8 tasks, {millions} M weights, one batch of 64", time, unit="s")
        del model
        memory = once(peak("masks", millions * MILLION))
        yield Measure(f"growth: peak memory over the network, {millions} M weights", memory, unit="GB")


if __name__ == "__main__":
    if "--peak" in sys.argv:
        print(measure_peak(sys.argv[2], int(sys.argv[3])))
    else:
        main(measures, __doc__)
