"""Result of a training step."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class StepResult:
    """Result of a step.

    Attributes:
        losses: task with a label -> its loss, the mean over the batches in which it had one.
        terms: task with several losses and a label -> `loss_<name>` -> its mean, likewise, not weighted.
        weights: task -> the balancer's weight.
        samples: number of samples.
    """

    losses: dict[str, float] = field(default_factory=dict)
    terms: dict[str, dict[str, float]] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    samples: int = 0
