"""Time of compiled passes over that of the same passes as they are (`compile: true`, `torch.compile`).

    python benchmarks/compile_speed.py [--quick] [--threads 2] [--json FILE]

A step of two tasks with Adam, on one dense network and on random masks (keep 0.3), and the inference of a network
compacted from such masks of neurons or channels. What compilation costs before the first step is a row of its own.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from common import Measure, Ratio, batch, main, network, paired, seconds

import sparsemtl as sm
from sparsemtl.training.steps.backend import Backend


def step_of(name: str, *, masked: bool, compiled: bool) -> sm.TrainingStep:
    """The training step of a network with two tasks."""
    model, data = network(name, 2), batch(name, 2)
    model(data[0])
    sharing = sm.RandomSharing(keep=0.3, seed=0) if masked else sm.DenseSharing()
    networks = sharing.begin_epoch(0, model, sharing.start(model), [data]) or sharing.start(model)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    called = sm.CompiledModel(model) if compiled else model
    backend = Backend(called, torch.Tensor.backward, None, torch.device("cpu"))
    return sm.TrainingStep(model, optimizer, networks, sharing=sharing, backend=backend)


def compacted(name: str) -> tuple[torch.nn.Module, torch.Tensor]:
    """The network of a task without its masked units, and a batch."""
    model, data = network(name, 2), batch(name, 2)
    model(data[0])
    granularity = "neuron" if name == "mlp" else "channel"
    sharing = sm.RandomSharing(keep=0.3, granularity=granularity, seed=0)
    networks = sharing.begin_epoch(0, model, sharing.start(model), [data])
    return sm.compact(model.eval(), networks, task="task0", example_inputs=data[0]), data[0]


def steps(name: str, repeats: int, *, masked: bool) -> Iterator[Measure]:
    """Yield the rows of training steps."""
    x, targets = batch(name, 2)
    what = "masked" if masked else "dense"
    plain, ours = (step_of(name, masked=masked, compiled=compiled) for compiled in (False, True))
    first = seconds(lambda: ours(x, targets))
    yield Measure(f"{name}: first compiled {what} step", Ratio(first, first, first), unit="s")
    ratio = paired(lambda: plain(x, targets), lambda: ours(x, targets), repeats)
    yield Measure(f"{name}: compiled {what} step / {what} step", ratio)


def inference(name: str, repeats: int) -> Measure:
    """The row of a compacted network."""
    small, x = compacted(name)
    run = torch.compile(small, dynamic=False)
    with torch.inference_mode():
        ratio = paired(lambda: small(x), lambda: run(x), repeats)
    return Measure(f"{name}: compiled inference of a compacted network / as it is", ratio)


def measures(quick: bool) -> Iterator[Measure]:
    """Yield the rows."""
    repeats = 3 if quick else 9
    yield from steps("mlp", repeats, masked=False)
    yield from steps("mlp", repeats, masked=True)
    yield inference("mlp", repeats)
    if not quick:
        yield from steps("resnet18", repeats, masked=True)


if __name__ == "__main__":
    main(measures, __doc__)
