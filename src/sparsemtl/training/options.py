"""Options of a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict

from typing_extensions import Doc

from sparsemtl.optim.parameter_groups import ParameterGroupOptions, ParameterGroups
from sparsemtl.registry.parameters import Count, Default, Fraction, Natural, Positive
from sparsemtl.training.evaluation.monitors import Monitor
from sparsemtl.training.mixing import Mix
from sparsemtl.training.steps.teacher import Teacher

if TYPE_CHECKING:
    from sparsemtl.sharing.sharing import Sharing

Execution = Literal["masked", "sliced"]
"""Computation of a task's masked network in training: whole weights times masks, or the slice that the mask keeps."""
Strategy = Literal["ddp", "fsdp"]
"""How several processes train one model; `fsdp` is refused with the reason."""
Precision = Literal["32-true", "64-true", "bf16-mixed", "16-mixed", "bf16-true"]


class EpochOptions(TypedDict, total=False):
    """Options on which the weights of a run depend."""

    epochs: Annotated[Count, Default(10), Doc("Largest number of epochs.")]
    seed: Annotated[
        Natural | None, Default(0), Doc("Seed of all generators before training; None leaves them as they are.")
    ]
    accumulate: Annotated[Count, Default(1), Doc("Batches whose gradients make one step.")]
    clip_norm: Annotated[Positive | None, Default(None), Doc("Largest norm of the gradient of a step.")]
    mix: Annotated[
        Mix,
        Default("longest"),
        Doc(
            "How loaders of single tasks make an epoch: `longest` and `shortest` take one batch of every task per "
            "step, `proportional` one batch of one task."
        ),
    ]
    monitor: Annotated[
        Monitor,
        Default("score"),
        Doc(
            "Value that selects the model on validation data: `score` (the mean relative change of the tasks' primary "
            "metrics), `loss`, or a function of the results that returns a number, larger is better."
        ),
    ]
    choose_after: Annotated[
        Natural,
        Default(0),
        Doc("Epochs at the beginning that are never selected, for a penalty that needs time to make weights zero."),
    ]
    choose_per_task: Annotated[
        bool | None,
        Default(None),
        Doc(
            "Keep the best epoch of each task (true), or one epoch for all (false). Weights of several epochs are "
            "stored once per task. None: as the sharing method does; `pbfs` keeps one per task. Tasks that share no "
            "weights always have their own."
        ),
    ]
    patience: Annotated[Count | None, Default(None), Doc("Epochs without a better model after which training stops.")]
    parameter_groups: Annotated[
        ParameterGroups,
        Default([]),
        Doc(
            "Learning rates and weight decay by names: `parameters` (names, globs, classes of modules), `lr`, "
            "`weight_decay`; see `sm.optim.parameter_groups`."
        ),
    ]
    layer_decay: Annotated[
        Fraction | None,
        Default(None),
        Doc("Factor of the learning rate from one block of an encoder to the block below it."),
    ]
    restart_every: Annotated[
        Count | None,
        Default(None),
        Doc("Epochs after which the moments of the optimizer are cleared, as codes do that make a new optimizer."),
    ]
    norm_batches: Annotated[
        Natural | None,
        Default(None),
        Doc(
            "Training batches per task over which batch-norm statistics are recomputed with the present weights before "
            "every validation; 0 keeps running averages. By default 100 where every task has its own statistics, and 0 "
            "where they are shared."
        ),
    ]
    teacher: Annotated[
        Teacher | None,
        Default(None),
        Doc("Trained network whose outputs are soft targets beside the labels (distillation)."),
    ]
    execution: Annotated[
        Execution,
        Default("masked"),
        Doc(
            "How a task trains on its masked network: `masked` computes with whole weights times masks, `sliced` with "
            "the channels, heads and neurons alone that its mask keeps, which is faster and equal up to rounding. A "
            "network that cannot be sliced runs masked, with a warning."
        ),
    ]
    compile: Annotated[
        bool,
        Default(False),
        Doc(
            "Compile the forward and backward passes of training by `torch.compile`, which needs a C++ compiler. It "
            "takes seconds per task and shape of the inputs, and changes results by rounding. A model that torch "
            "cannot compile as a whole is refused at the start."
        ),
    ]
    precision: Annotated[
        Precision, Default("32-true"), Doc("Precision of weights and computation, by the name in Lightning Fabric.")
    ]


class TrainingOptions(EpochOptions, total=False):
    """Options of `Trainer`."""

    accelerator: Annotated[
        str, Default("auto"), Doc("Accelerator by its name in Lightning Fabric: `auto`, `cpu`, `cuda` or `mps`.")
    ]
    devices: Annotated[
        Count,
        Default(1),
        Doc(
            "Processes per machine that train together, on a GPU or, on the CPU, a core each: every one takes a batch "
            "of its own, so that a step is that of `devices` times the batch size. Under torchrun, its number."
        ),
    ]
    strategy: Annotated[
        Strategy,
        Default("ddp"),
        Doc("How several processes train: `ddp`, each with the whole model, whose gradients are added up."),
    ]
    num_nodes: Annotated[Count, Default(1), Doc("Machines, on each of which the run is started; see `devices`.")]
    process_timeout: Annotated[
        Positive,
        Default(600.0),
        Doc("Seconds that a process waits for others which do not answer. One that has ended is noticed at once."),
    ]
    threads: Annotated[
        Count | None,
        Default(None),
        Doc(
            "Threads within one operation on the CPU; figures are equal bit for bit only with an equal number. None "
            "keeps PyTorch's number; a resumed run then takes that of its checkpoint."
        ),
    ]
    folder: Annotated[str | Path | None, Default(None), Doc("Run folder; None writes nothing.")]
    checkpoint_every: Annotated[
        Count | None, Default(None), Doc("Batches after which a checkpoint is written within an epoch.")
    ]
    tensorboard: Annotated[bool, Default(False), Doc("Log for TensorBoard as well.")]
    measure_cost: Annotated[
        bool, Default(True), Doc("Compact the network of every task after the test, and measure its cost.")
    ]
    progress: Annotated[bool, Default(True), Doc("Show a progress bar, or lines where there is no terminal.")]
    name: Annotated[str | None, Default(None), Doc("Name of the run in reports; by default that of its folder.")]
    config: Annotated[
        Mapping[str, Any] | None,
        Default(None),
        Doc("Configuration to record in the run folder; by default a description of the objects."),
    ]
    notes: Annotated[Sequence[str], Default(()), Doc("Notes beside the figures in reports.")]


def group_options(options: TrainingOptions) -> ParameterGroupOptions:
    """Return those options that are about parameter groups."""
    return {"parameter_groups": options["parameter_groups"], "layer_decay": options["layer_decay"]}


def chooses_per_task(options: TrainingOptions, sharing: Sharing) -> bool:
    """Return whether each task keeps its own best epoch: as asked, or as the sharing method does."""
    asked = options["choose_per_task"]
    return sharing.selects_per_task if asked is None else asked
