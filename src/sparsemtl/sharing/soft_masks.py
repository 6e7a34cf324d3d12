"""Soft masks: every task scales each shared weight by a number of its own, trained with it, that may become zero."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import Doc, Unpack

from sparsemtl.errors import EmptyMaskError, ParameterError
from sparsemtl.networks.coverage import CoverageOptions, CoveredParameters, coverage, coverage_options
from sparsemtl.networks.declarations import Figure
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.networks.norms import Statistics, own_statistics
from sparsemtl.networks.task_networks import TaskNetwork, TaskNetworks
from sparsemtl.registry.parameters import NonNegative, Positive, Share, validated
from sparsemtl.sharing.sharing import Sharing, StepWeights, Update


class SoftMaskSharing(Sharing):
    """Trained non-negative masks over the shared convolutions, with l1 (DAMTL, arXiv 2201.02305, Eq. 1 and 4).

    Task t computes with psi_t * W, element by element, where W is what all tasks train and psi_t >= 0 is its own. The
    objective is sum_t c_t w_t (L_t + lambda |psi_t|_1), w_t being the task's own weight and c_t that of the balancer:
    Eq. 5 with `balancing: sum`, where c_t = 1, and 1 / T of it with `mean`. After every step that a task took part in,
    its masks take the proximal step of their term: psi = max(0, psi - lr * c_t * w_t * lambda). A weight whose mask is
    zero is not read by the task. Compaction multiplies the masks into the weights, and removes the units all of whose
    entries are zero; `granularity: channel` has one entry per unit.

    Differences from the paper:
        - There the weights under the masks are each task's own copy of an auxiliary network's, which is what
          `architecture: auxiliary` gives; on any other architecture all tasks share them.
        - Masks are trained by the run's optimizer, without weight decay.

    Examples:
        >>> tasks = [Classification("shape", 2), Classification("colour", 3)]
        >>> model = SharedBottom(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 8)), tasks)
        >>> sharing, x, labels = SoftMaskSharing(lambda_=0.1), torch.rand(6, 1, 4, 4), torch.tensor([0, 1] * 3)
        >>> _ = model(x)  # heads learn their widths
        >>> networks = sharing.start(model)
        >>> optimizer = torch.optim.Adam([*model.parameters(), *networks.parameters()])
        >>> for name, task in model.tasks.items():
        ...     optimizer.zero_grad()
        ...     with networks.swapped(model, name):
        ...         task.loss(model(x, [name])[name], labels).backward()
        ...     _ = optimizer.step()
        ...     _ = sharing.after_step(model, networks, optimizer, StepWeights())
        >>> networks["shape"].weight_factors["encoder.0.weight"].shape
        torch.Size([4, 1, 3, 3])
    """

    figures = (
        Figure("density", "Density", "fraction of the entries of the soft masks above zero"),
        Figure("mean_mask", "Mean of the soft masks", "mean entry, at least 0"),
    )

    @validated
    def __init__(
        self,
        *,
        lambda_: Annotated[
            NonNegative, Doc("Strength of l1. The paper: 0.9, with a learning rate of 0.01 and a task weight of 0.01.")
        ] = 1e-3,
        granularity: Annotated[
            Literal["weight", "channel"], Doc("One number per `weight`, as in Eq. 1, or per output `channel`.")
        ] = "weight",
        init: Annotated[
            Literal["uniform", "ones"],
            Doc("Initial masks: `uniform` in [`low`, 1), as in the paper, or `ones`, the network as it is."),
        ] = "ones",
        low: Annotated[Share, Doc("Lower end of the initial masks of `uniform`.")] = 0.0,
        linear: Annotated[bool, Doc("Mask linear layers as well.")] = False,
        mask_lr: Annotated[
            Positive | None,
            Doc("Learning rate of the masks, which a scheduler changes like the other; None is the optimizer's."),
        ] = None,
        update: Annotated[
            Update | None,
            Doc(
                "How a batch becomes optimizer steps: `average`, `alternate` or `random_one`; see `dense`. By default "
                "`alternate`, or `average` where each task has its own data or the balancer combines the tasks."
            ),
        ] = None,
        bn: Annotated[
            Statistics,
            Doc("Batch-norm statistics: one set for all tasks, one set per task, or those of the batch itself."),
        ] = "per_task",
        **patterns: Unpack[CoverageOptions],
    ) -> None:
        self.strength = lambda_
        self.granularity = granularity
        self.init = init
        self.low = low
        self.linear = linear
        self.lr = mask_lr
        self.update = update
        self.bn = bn
        self._patterns = coverage_options(patterns)

    def start(self, model: MultiTaskModel) -> TaskNetworks:
        """Return networks with initial soft masks.

        Raises:
            ParameterError: if the model shares nothing to mask, `only` or `exclude` names nothing, or a layer computes
                its weight from other parameters.
        """
        found = self.coverage(model).refuse_computed()
        covered, coverable = found.covered, [*found.covered, *found.reasons]
        if not covered:
            layers = "convolution or linear layer" if self.linear else "convolution"
            hint = "" if self.linear else " `linear=True` takes linear layers as well."
            raise ParameterError(
                f"{type(self).__name__} finds nothing to mask: of what tasks of {type(model).__name__} share, or have "
                f"copies of, no weight is that of a {layers} ({len(coverable)} parameters).{hint}"
            )
        users, own = model.parameter_tasks(), own_statistics(model, self.bn)
        networks = {
            task: TaskNetwork(
                weight_factors={name: self._initial(p) for name, p in covered.items() if task in users[name]},
                own_tensors=own[task],
            )
            for task in model.tasks
        }
        return TaskNetworks(networks, model=type(model).__name__, method=type(self).__name__)

    def coverage(self, model: MultiTaskModel) -> CoveredParameters:
        """Return the weights that are masked, and why not the others.

        Raises:
            ParameterError: if `only` or `exclude` names nothing.
        """
        modules = {**model.shared_modules(), **model.replicated_modules()}
        names = [name for name, _ in model.named_parameters()]
        return coverage(modules, **self._patterns, refusal=self._refusal, others=names)

    def _refusal(self, weight: Tensor) -> str:
        if weight.ndim in ((2, 4) if self.linear else (4,)):
            return ""
        advice = "; `linear` covers weights of two" if weight.ndim == 2 else ""
        return f"a weight of {weight.ndim} axes, not four{advice}"

    def _initial(self, weight: Tensor) -> nn.Parameter:
        like = weight.detach()
        if self.granularity == "channel":
            like = like[(slice(None), *[slice(1)] * (weight.ndim - 1))]
        if self.init == "ones":
            return nn.Parameter(torch.ones_like(like))
        return nn.Parameter(self.low + (1 - self.low) * torch.rand_like(like))

    def end_epoch(self, epoch: int, networks: TaskNetworks) -> None:
        """Check that every task still reads something of every layer.

        Raises:
            EmptyMaskError: if a task's mask of a layer is zero everywhere, so that the task cannot tell inputs apart.
        """
        for task, network in networks.items():
            for name, psi in network.weight_factors.items():
                if not bool((psi > 0).any()):
                    raise EmptyMaskError(
                        f"the soft mask of task {task!r} over {name!r} has nothing left after epoch {epoch + 1}: "
                        f"every entry is zero. Lower `lambda` ({self.strength:g}), the learning rate or the epochs."
                    )

    @torch.no_grad()
    def after_step(
        self, model: MultiTaskModel, networks: TaskNetworks, optimizer: Optimizer, weights: StepWeights
    ) -> TaskNetworks | None:
        """Take the proximal step of the tasks that took part."""
        rates = {p: float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}
        for task, network in networks.items():
            scale = weights.of(task) * model.tasks[task].weight * self.strength
            for psi in network.weight_factors.values():
                if psi.grad is not None:
                    psi.sub_(rates[psi] * scale).clamp_(min=0)
        return None

    def metrics(self, model: MultiTaskModel, networks: TaskNetworks) -> Iterator[tuple[str, str, float]]:
        """Yield the fraction of mask entries above zero per task, and their mean."""
        for task, network in networks.items():
            flat = torch.cat([psi.detach().flatten() for psi in network.weight_factors.values()])
            yield task, "density", float((flat > 0).double().mean())
            yield task, "mean_mask", float(flat.double().mean())

    def summary(self, model: MultiTaskModel, networks: TaskNetworks) -> dict[str, Any]:
        """Return the density per task."""
        return {"density": {task: value for task, name, value in self.metrics(model, networks) if name == "density"}}
