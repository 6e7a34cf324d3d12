"""Time of the `Trainer`'s step and of evaluation, over the same by hand.

    python benchmarks/step_speed.py [--quick] [--threads 2] [--json FILE]

Three classification tasks of ten classes, batches of 64; `small` is an MLP of two layers of 128 on 64 inputs, `mlp` of
three layers of 1024, `resnet18` reads 3x64x64.

- *Trainer step / plain loop*: a step in `Trainer.fit`, over one of a loop by hand: zero_grad, forward, mean of the
  three losses, backward, step. Both have the optimizer that the row names. Blocks of steps alternate within one run.
- *Trainer step / checked loop*: over the same loop with the trainer's guarantees, written by hand: the labels are
  classes, the losses are finite before the backward pass, and so is the gradient before the step. These checks alone
  take about 8 % of a step of `small`, and 5 % of `mlp`, most of it one read of the gradient: more than the goal of
  `mlp` over the plain loop allows.
- *evaluation*: `evaluate`, with the loss and the five metrics of each task, over mean loss and accuracy by hand.
- *masked evaluation*: the same of tasks with masks that keep 0.3, over masks that are put on once per task.

A loop by hand for `small` that checks labels and outputs too, and computes the same five metrics by torchmetrics, takes
1.46 times as long as mean loss and accuracy, and 1.23 times with masks: the goal of masked evaluation is below that.
These are medians of 150, of processor time on one thread, beside other work on the machine.

Shares of the processor time of `small` on one thread, by a profile of the trainer's step and of `evaluate`; those in
italics are what a plain loop by hand has not:

| step | % | evaluation of 32 batches | % |
| :--- | ---: | :--- | ---: |
| forward pass and losses | 25 | forward pass | 25 |
| backward pass | 23 | loss per batch, for its mean | 12 |
| fused Adam, zero_grad | 25 | *labels: read and checked* | 14 |
| *labels: read and checked* | 6 | *five metrics per task: counts of joined batches* | 12 |
| *layout of gradients, which fused kernels need* | 6 | *five metrics per task: values* | 13 |
| *sum of the gradient, checked to be finite* | 5 | *five metrics per task: reset* | 6 |
| *batches, groups, losses of the epoch, callbacks* | 10 | *copies, finite outputs, results* | 18 |

Values and resets of metrics do not grow with the split.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping

import torch
import torch.nn.functional as F
from common import BATCH, CLASSES, Batch, Measure, Ratio, batch, main, network, paired, seconds, spread
from torch import Tensor, nn

import sparsemtl as sm
from sparsemtl.networks.task_networks import TaskNetworks, dense_networks
from sparsemtl.training.callbacks import Callback, StepInfo
from sparsemtl.training.evaluation.evaluate import evaluate
from sparsemtl.training.evaluation.trained import Trained

TASKS = 3
STEP_GOALS = {"small": 1.15, "mlp": 1.03, "resnet18": 1.02}
STEPS = {"small": 50, "mlp": 5, "resnet18": 1}
"""Steps per block."""
EVALUATION_GOALS = {"small": 1.5, "mlp": 1.1}
BATCHES = 32


def model_and_batch(name: str) -> tuple[sm.SharedBottom, Batch]:
    """A network with three tasks, and a random batch for it."""
    if name != "small":
        return network(name, TASKS), batch(name, TASKS)
    torch.manual_seed(0)
    tasks = [sm.Classification(f"task{t}", CLASSES) for t in range(TASKS)]
    encoder = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU())
    model = sm.SharedBottom(encoder, tasks, {task.name: nn.Linear(128, CLASSES) for task in tasks})
    targets = {task.name: torch.randint(CLASSES, (BATCH,)) for task in tasks}
    return model, (torch.randn(BATCH, 64), targets)


class Alternation(Callback):
    """Runs a block of each loop by hand after each block of the trainer's, and keeps the ratios of their times."""

    def __init__(self, loops: Mapping[str, Callable[[], None]], steps: int) -> None:
        self.loops = loops
        self.steps = steps
        self.done = 0
        self.began = 0.0
        self.ratios: dict[str, list[float]] = {name: [] for name in loops}

    def on_step(self, step: StepInfo) -> None:
        """Time the blocks when one of the trainer's is complete; the first two warm up."""
        self.done += 1
        if self.done % self.steps:
            return
        ours = time.perf_counter() - self.began
        for name, loop in self.loops.items():
            time_of_loop = seconds(lambda loop=loop: [loop() for _ in range(self.steps)])  # type: ignore[misc]
            if self.done > 2 * self.steps:
                self.ratios[name].append(ours / time_of_loop)
        self.began = time.perf_counter()


def loop(name: str, adam: Callable[[object], torch.optim.Optimizer], *, checked: bool) -> Callable[[], None]:
    """A training step by hand; `checked` as the trainer checks."""
    model, (x, targets) = model_and_batch(name)
    parameters = list(model.parameters())
    optimizer = adam(parameters)

    def check_labels() -> None:
        for label in targets.values():
            least, largest = label.aminmax()
            if int(least) < 0 or int(largest) >= CLASSES:
                raise ValueError("a label is not one of the classes.")

    def check_finite(*values: float) -> None:
        if not all(map(math.isfinite, values)):
            raise ValueError("a loss or the gradient is not finite.")

    def step() -> None:
        if checked:
            check_labels()
        optimizer.zero_grad()
        features = model.encoder(x)
        losses = torch.stack([F.cross_entropy(head(features), targets[task]) for task, head in model.heads.items()])
        if checked:
            check_finite(*losses.tolist())
        (losses.sum() / TASKS).backward()
        if checked:
            check_finite(sum(float(p.grad.sum()) for p in parameters))  # type: ignore[union-attr]
        optimizer.step()

    return step


def trainer_step(name: str, *, fused: bool, repeats: int) -> dict[str, Ratio]:
    """Time of a step in `Trainer.fit` over that of loops by hand, plain and checked."""

    def adam(parameters: object) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=1e-4, fused=fused or None)  # type: ignore[arg-type]

    model, data = model_and_batch(name)
    kinds = ("plain",) if name == "resnet18" else ("plain", "checked")
    loops = {f"{kind} loop": loop(name, adam, checked=kind == "checked") for kind in kinds}
    blocks = Alternation(loops, STEPS[name])
    trainer = sm.Trainer(model, optimizer=adam, epochs=1, progress=False, accelerator="cpu", callbacks=[blocks])
    trainer.fit([data] * (STEPS[name] * (repeats + 2)), [data])
    return {kind: spread(iter(ratios).__next__, len(ratios)) for kind, ratios in blocks.ratios.items()}


def by_hand(outputs: Iterator[tuple[str, Tensor, Tensor]]) -> dict[str, tuple[float, float]]:
    """Mean loss and accuracy per task."""
    loss, right, count = ({f"task{t}": 0.0 for t in range(TASKS)} for _ in range(3))
    for task, output, label in outputs:
        loss[task] += float(F.cross_entropy(output, label, reduction="sum"))
        right[task] += int((output.argmax(1) == label).sum())
        count[task] += len(label)
    return {task: (loss[task] / count[task], right[task] / count[task]) for task in loss}


def evaluation(name: str, *, masked: bool, repeats: int) -> Ratio:
    """Time of `evaluate` over that of loss and accuracy by hand."""
    model, data = model_and_batch(name)
    model.eval()
    loader = [data] * BATCHES
    networks: TaskNetworks = dense_networks(model, model.tasks)
    if masked:
        sharing = sm.RandomSharing(keep=0.3, seed=0)
        networks = sharing.begin_epoch(0, model, sharing.start(model), loader) or networks

    def dense_outputs() -> Iterator[tuple[str, Tensor, Tensor]]:
        for x, targets in loader:
            features = model.encoder(x)
            for task, head in model.heads.items():
                yield task, head(features), targets[task]

    def masked_outputs() -> Iterator[tuple[str, Tensor, Tensor]]:
        for task in model.tasks:
            with networks.swapped(model, task):
                for x, targets in loader:
                    yield task, model.heads[task](model.encoder(x)), targets[task]

    @torch.no_grad()
    def plain() -> None:
        by_hand(masked_outputs() if masked else dense_outputs())

    def ours() -> None:
        evaluate(Trained(model, networks, model), loader, torch.device("cpu"))

    return paired(plain, ours, repeats)


def measures(quick: bool) -> Iterator[Measure]:
    """Yield the rows."""
    for name in ("small", "mlp") if quick else ("small", "mlp", "resnet18"):
        repeats = 7 if quick or name == "resnet18" else 21
        for fused in (True,) if quick else (True, False):
            kind = "fused Adam" if fused else "Adam in loops"
            for other, ratio in trainer_step(name, fused=fused, repeats=repeats).items():
                yield Measure(f"Trainer step / {other}, {name}, {kind}", ratio, STEP_GOALS[name])
    for name, goal in EVALUATION_GOALS.items():
        repeats = 5 if quick else 15
        yield Measure(f"evaluation / by hand, {name}", evaluation(name, masked=False, repeats=repeats), goal)
    for name in ("mlp",) if quick else ("small", "mlp"):
        repeats = 3 if quick else 7
        ratio = evaluation(name, masked=True, repeats=repeats)
        yield Measure(f"masked evaluation / masks put on once per task, {name}", ratio, 1.1)


if __name__ == "__main__":
    main(measures, __doc__)
