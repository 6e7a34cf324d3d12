"""Peak memory of Fisher sharing with a large encoder and many tasks, in the Trainer, beside model and optimizer.

    python benchmarks/memory_large.py                      # 100 million weights, 8 tasks; needs about 8 GiB
    python benchmarks/memory_large.py --width 1024         # a small one

The encoder is an MLP on 1,024 inputs. Two epochs of two steps train with masks that the criterion chooses before each,
with validation and, in a temporary run folder, checkpoints and the best model. Memory is that of the process on Linux,
less that before the Trainer was made (modules, weights, data), and less two tensors per weight, which are Adam's
moments. Gradients count as memory beyond model and optimizer.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from pathlib import Path

import torch
from torch import nn

import sparsemtl as sm
from sparsemtl.data import TensorLoader
from sparsemtl.training.callbacks import StepInfo

GIB = 2**30


def resident() -> int:
    """Return the resident memory of this process in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


class Peak(sm.Callback):
    """Largest resident memory between marks, looked at every 20 ms."""

    def __init__(self) -> None:
        self.phase, self.most = "start, with masks", {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.is_set():
            self.most[self.phase] = max(self.most.get(self.phase, 0), resident())
            time.sleep(0.02)

    def on_step(self, step: StepInfo) -> None:
        """Name the phase that follows a step."""
        after = {1: f"step 2 of epoch {step.epoch}", 2: f"end of epoch {step.epoch}, checkpoint, next masks"}
        self.phase = after[step.batch]

    def stop(self) -> None:
        """Stop looking."""
        self._done.set()
        self._thread.join()


def encoder(width: int) -> nn.Sequential:
    """Return an MLP of 1,024 inputs: 100.7 million weights for a width of 8,192."""
    last = width * 3 // 8
    layers = nn.Sequential(
        nn.Linear(1024, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, last), nn.ReLU()
    )
    layers.out_features = last  # type: ignore[assignment]
    return layers


def loader(samples: int, tasks: int) -> TensorLoader:
    """Return random inputs and classes, in batches of eight."""
    x = torch.randn(samples, 1024)
    return TensorLoader(x, {f"t{i}": (x[:, i] > 0).long() for i in range(tasks)}, batch_size=8)


def main() -> None:
    """Train, and print the peaks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=8192)
    parser.add_argument("--tasks", type=int, default=8)
    options = parser.parse_args()
    torch.manual_seed(0)
    tasks = [sm.Classification(f"t{i}", 2) for i in range(options.tasks)]
    model = sm.SharedBottom(encoder(options.width), tasks)
    train, validation = loader(16, options.tasks), loader(8, options.tasks)
    weights = sum(p.numel() for p in model.parameters())
    before = resident()
    peak = Peak()
    with tempfile.TemporaryDirectory() as folder:
        sharing = sm.FisherSharing(keep=0.3, estimator="true", samples=16)
        trainer = sm.Trainer(
            model, sharing=sharing, epochs=2, folder=Path(folder) / "run", progress=False, callbacks=[peak]
        )
        trainer.fit(train, validation)
    peak.stop()
    print(f"{weights:,} weights, {options.tasks} tasks; {before / GIB:.2f} GiB before training", flush=True)
    for phase, most in peak.most.items():
        beyond = most - before - 2 * 4 * weights
        print(f"{phase}: {beyond / GIB:.2f} GiB beyond model and Adam, {beyond / weights:.1f} bytes per weight")


if __name__ == "__main__":
    main()
