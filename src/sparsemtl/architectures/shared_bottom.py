"""Hard parameter sharing: one encoder for all tasks, and one head per task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from sparsemtl.architectures.heads import heads_for
from sparsemtl.networks.model import MultiTaskModel

if TYPE_CHECKING:
    from sparsemtl.tasks.task import Task


class SharedBottom(MultiTaskModel):
    """One encoder that all tasks share, and one head per task (Caruana 1997).

    Args:
        encoder: any module; its output is the input of every head.
        tasks: the tasks.
        heads: task name -> head, for tasks that need another head than the default one. A default head is linear and
            reads features (B, width) or maps (B, channels, height, width), whose mean over positions it takes. If the
            encoder has no attribute `out_features` or `num_features`, default heads infer their width from the first
            batch: run one before an optimizer is made, as with torch's lazy modules.

    Examples:
        >>> encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU())
        >>> model = SharedBottom(encoder, [Classification("digit", 10), Regression("ink")])
        >>> {task: tuple(output.shape) for task, output in model(torch.rand(5, 64)).items()}
        {'digit': (5, 10), 'ink': (5, 1)}
    """

    def __init__(self, encoder: nn.Module, tasks: Sequence[Task], heads: Mapping[str, nn.Module] | None = None) -> None:
        super().__init__(tasks)
        self.encoder = encoder
        self.heads = heads_for(self.tasks, heads, dict.fromkeys(self.tasks, encoder))

    def forward(self, x: Any, tasks: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Run the encoder once, then the head of each named task."""
        chosen = self.chosen(tasks)
        features, heads = self.encoder(x), self.heads
        return {task: heads[task](features) for task in chosen}

    def parameter_tasks(self) -> dict[str, frozenset[str]]:
        """Return the tasks that use each parameter: all tasks for the encoder, one for a head."""
        everyone = frozenset(self.tasks)
        users = {f"encoder.{name}": everyone for name, _ in self.encoder.named_parameters()}
        for task in self.tasks:
            users.update(dict.fromkeys(self.task_parameters(task), frozenset({task})))
        return users

    def shared_modules(self) -> dict[str, nn.Module]:
        """Return the encoder."""
        return {"encoder": self.encoder}

    def common_representation(self) -> str:
        """Return the name of the encoder."""
        return "encoder"

    def encoder_modules(self) -> dict[str, nn.Module]:
        """Return the encoder."""
        return self.shared_modules()

    def task_modules(self, task: str) -> dict[str, nn.Module]:
        """Return the task's head."""
        self.check_task(task)
        return {f"heads.{task}": self.heads[task], **self.loss_modules(task)}
