"""Set-up of a training run: everything between the arguments of a trainer and its first step."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from sparsemtl.balancing import Balancer
from sparsemtl.compaction.slices.task_slices import TaskSlices
from sparsemtl.errors import ParameterError
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.networks.randomness import seed_everything
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.optim import fused
from sparsemtl.optim.schedules import Schedule, Scheduler
from sparsemtl.sharing import Sharing
from sparsemtl.tasks.batches import Loaders, per_task
from sparsemtl.tasks.processes import ALONE, Processes
from sparsemtl.tasks.shards import sharded
from sparsemtl.training.checks.last_batch import check_last_batches
from sparsemtl.training.compiling import compiled, try_compiled
from sparsemtl.training.groups import add_copies, make_optimizer
from sparsemtl.training.heads import materialize_heads
from sparsemtl.training.mixing import steps_in_epoch
from sparsemtl.training.options import TrainingOptions, group_options
from sparsemtl.training.plateau import Plateau
from sparsemtl.training.processes.agreement import agree_on_randomness
from sparsemtl.training.processes.launch import own_device
from sparsemtl.training.restart import FreshStart
from sparsemtl.training.steps.backend import Backend
from sparsemtl.training.steps.step import TrainingStep
from sparsemtl.training.steps.update import choose_update

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass(frozen=True)
class RunParts:
    """Arguments of a trainer that the set-up puts together.

    Attributes:
        model: the model.
        sharing: the sharing method.
        balancer: the balancer.
        make_optimizer: makes an optimizer from parameter groups.
        scheduler: schedule by name, or function of an optimizer that returns one; None for a constant learning rate.
        scheduler_every: when the scheduler steps, after every epoch or every training step.
    """

    model: MultiTaskModel
    sharing: Sharing
    balancer: Balancer
    make_optimizer: Callable[[Any], Optimizer]
    scheduler: Schedule | Callable[[Optimizer], Scheduler] | None
    scheduler_every: Literal["epoch", "step"] = "epoch"


@dataclass(frozen=True)
class Setup:
    """A run that is ready for its first step.

    Attributes:
        fabric: Lightning Fabric, which owns device and precision.
        device: device of the model.
        module: callable in place of the model: Fabric's wrapper, or the model itself where the wrapper adds nothing.
        optimizer: the optimizer.
        scheduler: the scheduler, if there is one.
        scheduler_every: when the scheduler steps.
        plateau: stepper of a `ReduceLROnPlateau`, if the scheduler is one.
        step: the training step.
        restart: puts optimizer and scheduler back to their first state.
    """

    fabric: Fabric
    device: torch.device
    module: nn.Module
    optimizer: Optimizer
    scheduler: Scheduler | None
    scheduler_every: Literal["epoch", "step"]
    plateau: Plateau | None
    step: TrainingStep
    restart: FreshStart

    def step_scheduler(self, after: Literal["epoch", "step"]) -> None:
        """Step the scheduler if it steps then; `plateau` steps one that reads validation results."""
        if self.scheduler is not None and self.plateau is None and self.scheduler_every == after:
            self.scheduler.step()

    def default_dtype(self) -> AbstractContextManager[Any]:
        """Set the dtype of tensors that the plain model makes to that of training; see `precision.default_dtype`."""
        from sparsemtl.training.precision import default_dtype  # imports Lightning Fabric, which takes seconds

        return default_dtype(self.fabric.strategy.precision)

    def stateful(self) -> dict[str, Any]:
        """Return the parts beside optimizer and step that have a state, by name."""
        parts = {
            "precision": self.fabric.strategy.precision,  # in half precision it scales the losses
            "scheduler": self.scheduler,
            "plateau": self.plateau,
        }
        return {name: part for name, part in parts.items() if part is not None}


def set_up(parts: RunParts, options: TrainingOptions, train: Loaders, processes: Processes = ALONE) -> Setup:
    """Seed the generators, and make all that training needs.

    Args:
        parts: the parts of the run.
        options: the options of the run.
        train: training data.
        processes: processes that train together, all of which call this.

    Raises:
        ParameterError: if the accelerator, the optimizer or another part cannot be made.
    """
    model = parts.model
    if options["seed"] is not None:
        seed_everything(options["seed"])
    fabric = _fabric(options["accelerator"], options["precision"])
    agree_on_randomness(processes, train)
    materialize_heads(model, train)
    processes.copy_from_first(model.state_dict().values())
    check_last_batches(model, train)
    plain = _adds_nothing(fabric)
    called = compiled(model, options)
    module: nn.Module = fabric.to_device(called) if plain else fabric.setup_module(called)
    model.norms_per_task = type(model).norms_per_task or per_task(train)
    parts.sharing.begin_training(options["epochs"])
    networks = parts.sharing.start(model)
    parts.balancer.attach(len(model.tasks), fabric.device)
    optimizer = _optimizer(parts, networks, options)
    scheduler = _scheduler(parts, optimizer, options, train)
    plateau = _plateau(parts, scheduler, options)
    stepped: Any = optimizer if plain else fabric.setup_optimizers(optimizer)
    step = TrainingStep(
        model,
        stepped,
        networks,
        sharing=parts.sharing,
        balancing=parts.balancer,
        update=choose_update(model, networks, parts.balancer, asked=parts.sharing.update, own_data=per_task(train)),
        backend=_backend(fabric, module, _clip(fabric, module, stepped, options["clip_norm"]), processes),
        slices=TaskSlices(model) if options["execution"] == "sliced" else None,
    )
    step.teacher = options["teacher"]
    if options["compile"]:
        try_compiled(step, train)
    restart = FreshStart(optimizer, scheduler, plateau)
    return Setup(fabric, fabric.device, module, optimizer, scheduler, parts.scheduler_every, plateau, step, restart)


def _optimizer(parts: RunParts, networks: TaskNetworks, options: TrainingOptions) -> Optimizer:
    """Return the optimizer of all that is trained: the model, soft masks, the balancer, and the tasks' copies."""
    extra = ((networks.soft_masks(), parts.sharing.lr), (parts.balancer.parameters(), None))
    optimizer = make_optimizer(parts.make_optimizer, parts.model, extra, options=group_options(options))
    add_copies(optimizer, parts.model, networks)
    fused.guard(optimizer)
    return optimizer


def _plateau(parts: RunParts, scheduler: Scheduler | None, options: TrainingOptions) -> Plateau | None:
    """Return the stepper of a scheduler that reads validation results, None for others."""
    if not isinstance(scheduler, ReduceLROnPlateau):
        return None
    if parts.scheduler_every == "step":
        raise ParameterError(
            "ReduceLROnPlateau (`plateau`) reads validation results, which exist once per epoch: leave `per_step` out, "
            "or use scheduler_every='epoch'."
        )
    return Plateau(scheduler, options["monitor"], parts.model.tasks)


def _backend(fabric: Fabric, module: nn.Module, clip: Callable[[], Any] | None, processes: Processes) -> Backend:
    scaler = getattr(fabric.strategy.precision, "scaler", None)
    return Backend(
        module,
        Tensor.backward if _adds_nothing(fabric) else fabric.backward,
        clip,
        fabric.device,
        scaled=scaler is not None,
        loss_scale=None if scaler is None else scaler.get_scale,
        processes=processes,
    )


def _scheduler(parts: RunParts, optimizer: Optimizer, options: TrainingOptions, train: Loaders) -> Scheduler | None:
    """Return the scheduler of an optimizer, over all epochs or steps of the training."""
    if not isinstance(parts.scheduler, Schedule):
        return None if parts.scheduler is None else parts.scheduler(optimizer)
    if not parts.scheduler.per_step:
        return parts.scheduler(optimizer, options["epochs"])
    batches = steps_in_epoch(sharded(train), options["mix"])
    if batches is None:
        raise ParameterError(
            f"the schedule {parts.scheduler.name!r} steps with every training step, and the training loader has no "
            "length, so that their number is unknown. Give it a length, or let the schedule step per epoch."
        )
    return parts.scheduler(optimizer, options["epochs"] * ceil(batches / options["accumulate"]))


def _fabric(accelerator: str, precision: Any) -> Fabric:
    from lightning_fabric import Fabric

    from sparsemtl.training.precision import fabric_options

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*precision='16-mixed'.*")  # refused below
            fabric = Fabric(accelerator=accelerator, devices=own_device(accelerator), **fabric_options(precision))
    except (ValueError, RuntimeError) as error:
        raise ParameterError(
            f"accelerator={accelerator!r} with precision={precision!r} cannot be had here: {error}"
        ) from error
    if precision == "16-mixed" and fabric.device.type == "cpu":
        raise ParameterError(
            "precision='16-mixed' needs a GPU: on a CPU, Lightning Fabric would take bfloat16 in its place. Use "
            "precision='bf16-mixed'."
        )
    return fabric


def _adds_nothing(fabric: Fabric) -> bool:
    """Return True for one device in single precision: no part of Fabric changes a forward, a backward or a step."""
    from lightning_fabric.plugins.precision import Precision
    from lightning_fabric.strategies.single_device import SingleDeviceStrategy

    return type(fabric.strategy) is SingleDeviceStrategy and type(fabric.strategy.precision) is Precision


def _clip(fabric: Fabric, module: Any, optimizer: Any, norm: float | None) -> Callable[[], Any] | None:
    if norm is None:
        return None
    # the training step, or the gradient scaler, has checked for NaN and infinity before
    return partial(fabric.clip_gradients, module, optimizer, max_norm=norm, error_if_nonfinite=False)
