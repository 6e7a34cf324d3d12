"""Soft masks: every task scales each shared weight by a number of its own, learned with it, that may become zero."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparsemtl.errors import EmptyMaskError, ParameterError
from sparsemtl.networks.masks import TaskMasks
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.networks.roles import refuse_computed, weight_ids
from sparsemtl.networks.swap import swap_tensors
from sparsemtl.registry.parameters import NonNegative, Positive, validated
from sparsemtl.sharing.sharing import Sharing, Statistics, Update


class SoftMaskSharing(Sharing):
    """Learned non-negative masks over the shared convolutions, with l1 (DAMTL, arXiv 2201.02305, Eq. 1 and 4).

    Task t computes with psi_t * W, element by element, where W is what all tasks train and psi_t >= 0 is its own. The
    objective is sum_t c_t w_t (L_t + lambda |psi_t|_1), w_t being the task's own weight and c_t that of the balancer:
    Eq. 5 with `balancing: sum`, where c_t = 1, and 1 / T of it with `mean`. After every step that a task took part in,
    its masks take the proximal step of their term: psi = max(0, psi - lr * c_t * w_t * lambda). What becomes zero is
    not read by the task.

    Args:
        lambda_: strength of l1, in a configuration `lambda`. The paper: 0.9, with a step of 0.01 and a weight of 0.01.
        granularity: a number for every `weight`, as in Eq. 1, or for every output `channel`.
        init: masks to start from: `uniform` in [0, 1), as in the paper, or `ones`, the network as it is.
        linear: mask linear layers as well.
        mask_lr: learning rate of the masks, which a scheduler changes like the other; None is the optimizer's.
        update: how a batch becomes updates; see `Update`.
        bn: batch norm statistics; one set a task by default.

    Differences from the paper:
        - There the weights under the masks are each task's own copy of an auxiliary network's, which is what
          `architecture: auxiliary` gives; on any other architecture all tasks share them.
        - Masks are trained by the run's optimizer, without weight decay.

    Example:
        >>> tasks = [Classification("shape", 2), Classification("colour", 3)]
        >>> model = SharedBottom(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 8)), tasks)
        >>> sharing, x, labels = SoftMaskSharing(lambda_=0.1), torch.rand(6, 1, 4, 4), torch.tensor([0, 1] * 3)
        >>> _ = model(x)  # heads learn their widths
        >>> sharing.attach(model)
        >>> optimizer = torch.optim.Adam([*model.parameters(), *sharing.parameters()])
        >>> for name, task in model.tasks.items():
        ...     with sharing.view(name):
        ...         loss = task.loss(model(x, [name])[name], labels)
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     _ = optimizer.step()
        ...     sharing.after_step(optimizer)
        >>> sharing.soft["shape"]["encoder.0.weight"].shape
        torch.Size([4, 1, 3, 3])
    """

    by_task = ("norms", "soft")
    scales = True

    @validated
    def __init__(
        self,
        *,
        lambda_: NonNegative = 1e-3,
        granularity: Literal["weight", "channel"] = "weight",
        init: Literal["uniform", "ones"] = "ones",
        linear: bool = False,
        mask_lr: Positive | None = None,
        update: Update | None = None,
        bn: Statistics = "per_task",
    ) -> None:
        super().__init__(update=update, bn=bn)
        self.strength = lambda_
        self.granularity = granularity
        self.init = init
        self.linear = linear
        self.lr = mask_lr
        self.soft: dict[str, dict[str, nn.Parameter]] = {}

    def attach(self, model: MultiTaskModel) -> None:
        """Make every task's masks.

        Raises:
            ParameterError: if the model shares nothing to mask, or a layer computes its weight from other parameters.
        """
        super().attach(model)
        dimensions = (2, 4) if self.linear else (4,)
        coverable = {**model.shared_parameters(), **model.replicated_parameters()}
        modules = {**model.shared_modules(), **model.replicated_modules()}
        refuse_computed(modules, lambda weight: weight.ndim in dimensions)
        weights = weight_ids(model)
        covered = {name: p for name, p in coverable.items() if id(p) in weights and p.ndim in dimensions}
        if not covered:
            layers = "convolution or linear layer" if self.linear else "convolution"
            hint = "" if self.linear else " `linear=True` takes linear layers as well."
            raise ParameterError(
                f"{type(self).__name__} finds nothing to mask: of what tasks of {type(model).__name__} share, or have "
                f"copies of, no weight is that of a {layers} ({len(coverable)} parameters).{hint}"
            )
        users = model.parameter_tasks()
        self.soft = {
            task: {name: self._start(p) for name, p in covered.items() if task in users[name]} for task in model.tasks
        }

    def _start(self, weight: Tensor) -> nn.Parameter:
        like = weight.detach()
        if self.granularity == "channel":
            like = like[(slice(None), *[slice(1)] * (weight.ndim - 1))]
        return nn.Parameter(torch.rand_like(like) if self.init == "uniform" else torch.ones_like(like))

    def parameters(self) -> Iterator[nn.Parameter]:
        """All tasks' masks."""
        for masks in self.soft.values():
            yield from masks.values()

    def end_epoch(self, epoch: int) -> None:
        """See that every task still reads something of every layer.

        Raises:
            EmptyMaskError: if a task's mask of a layer is zero everywhere: the task cannot tell inputs apart.
        """
        for task, masks in self.soft.items():
            for name, psi in masks.items():
                if not bool((psi > 0).any()):
                    raise EmptyMaskError(
                        f"the soft mask of task {task!r} over {name!r} has nothing left after epoch {epoch + 1}: "
                        f"every entry is zero. Lower `lambda` ({self.strength:g}), the learning rate or the epochs."
                    )

    @property
    def one_network(self) -> bool:
        """False: every task has masks of its own."""
        return False

    @contextmanager
    def view(self, task: str) -> Iterator[None]:
        """The model computes with the task's masks times the weights."""
        with ExitStack() as stack:
            stack.enter_context(super().view(task))
            weights = {name: psi * self.model.get_parameter(name) for name, psi in self.soft[task].items()}
            stack.enter_context(swap_tensors(self.model, weights))
            yield

    @torch.no_grad()
    def after_step(self, optimizer: Optimizer) -> None:
        """The proximal step of the tasks that took part."""
        rates = {p: float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}
        for task, masks in self.soft.items():
            scale = self.step_weights.of(task) * self.model.tasks[task].weight * self.strength
            for psi in masks.values():
                if psi.grad is not None:
                    psi.sub_(rates[psi] * scale).clamp_(min=0)

    @property
    def masks(self) -> TaskMasks | None:  # type: ignore[override]
        """Which of the shared weights every task reads: those whose soft mask is above zero; None if none is shared."""
        shared = self.model.shared_parameters() if self.soft else {}
        shapes = {name: shared[name] for masks in self.soft.values() for name in masks if name in shared}
        if not shapes:
            return None
        kept = {
            task: {name: self._kept(masks.get(name), like) for name, like in shapes.items()}
            for task, masks in self.soft.items()
        }
        return TaskMasks(kept, model=type(self.model).__name__, method=type(self).__name__)

    @staticmethod
    def _kept(psi: Tensor | None, like: Tensor) -> Tensor:
        if psi is None:
            return torch.zeros_like(like, dtype=torch.bool)
        return (psi.detach() > 0).expand_as(like).clone()

    def metrics(self) -> Iterator[tuple[str, str, float]]:
        """Every task's share of masks above zero, and their mean."""
        for task, masks in self.soft.items():
            flat = torch.cat([psi.detach().flatten() for psi in masks.values()])
            yield task, "density", float((flat > 0).double().mean())
            yield task, "mean_mask", float(flat.double().mean())

    def summary(self) -> dict[str, Any]:
        """Every task's density."""
        return {"density": {task: value for task, name, value in self.metrics() if name == "density"}}

    def state_dict(self) -> dict[str, Any]:
        """With the soft masks."""
        soft = {task: {name: psi.detach().clone() for name, psi in masks.items()} for task, masks in self.soft.items()}
        return {"norms": self.norms.state_dict() if self.norms else None, "masks": None, "soft": soft}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put them back."""
        super().load_state_dict(state)
        for task, masks in state["soft"].items():
            for name, psi in masks.items():
                self.soft[task][name].copy_(psi)
