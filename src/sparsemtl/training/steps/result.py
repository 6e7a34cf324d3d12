"""Result of a training step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class StepResult:
    """Result of a step.

    Attributes:
        losses: task with a label -> its loss, the mean over the batches in which it had one.
        terms: task with several losses and a label -> `loss_<name>` -> its mean, likewise, not weighted.
        weights: task -> the balancer's weight.
        samples: number of samples.
        batches: task -> number of batches in which it had a label.
    """

    losses: dict[str, float] = field(default_factory=dict)
    terms: dict[str, dict[str, float]] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    samples: int = 0
    batches: dict[str, int] = field(default_factory=dict)

    def add(self, task: str, loss: float, terms: Mapping[str, float]) -> None:
        """Add a task's loss on a batch, and the terms of which it is made; `average` makes means of the sums."""
        self.losses[task] = self.losses.get(task, 0.0) + loss
        self.batches[task] = self.batches.get(task, 0) + 1
        if terms:
            totals = self.terms.setdefault(task, dict.fromkeys(terms, 0.0))
            totals.update({name: totals[name] + term for name, term in terms.items()})

    def average(self) -> None:
        """Divide the sums by the number of batches."""
        self.losses = {task: total / self.batches[task] for task, total in self.losses.items()}
        for task, terms in self.terms.items():
            self.terms[task] = {name: total / self.batches[task] for name, total in terms.items()}
