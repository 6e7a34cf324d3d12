"""Compaction of a network with zeros in whole channels into a smaller one with the same outputs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from sparsemtl.compaction.copies import copied
from sparsemtl.compaction.pipeline import CompactedModule, compact_root
from sparsemtl.compaction.timing.rounding import check_multiple, fastest
from sparsemtl.compaction.tracing.trace import refuse_lazy, root_of
from sparsemtl.errors import MaskError, ParameterError
from sparsemtl.networks.masks import TaskMasks
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.networks.norms import TaskNorms
from sparsemtl.networks.swap import unwrapped
from sparsemtl.networks.swap_guards import is_swapped
from sparsemtl.networks.task_networks import TaskNetworks


@runtime_checkable
class Separable(Protocol):
    """Model that computes the weights of its layers from others, such as MTAL."""

    def separated(self) -> MultiTaskModel:
        """Return a model that computes the same, whose layers own their weights."""
        ...


@torch.inference_mode(False)
@torch.no_grad()
@torch.random.fork_rng(devices=[])
def compact(
    model: nn.Module,
    masks: TaskMasks | TaskNetworks | None = None,
    *,
    example_inputs: Any = None,
    task: str | None = None,
    tasks: Iterable[str] | None = None,
    norms: TaskNorms | None = None,
    leaf_modules: Collection[str] = (),
    multiple_of: int | str = 1,
) -> CompactedModule:
    """Return a smaller network without the channels that are zero, constant or that no later layer reads.

    Outputs are those of the model in eval mode, up to rounding. Batch norms become part of the layers before them.
    A channel is removed if no weight other than zero reads it: input channels at zero by group lasso, by masks that
    keep whole channels, by pruning elsewhere. Residual streams become narrower behind the last layer that reads a
    channel. Attention heads whose values or output columns are zero are removed; heads that share keys and values go
    together. Hidden units of recurrent layers and columns of embeddings that are zero, or that nothing reads, are
    removed. Convolutions of several groups and group norms lose whole groups. Operations without a rule (a layer norm
    over the channels, transposed convolutions of groups, a user's own functions) are not changed, and keep all
    channels that they read.

    The model runs on an example, so that branches on the class or shape of a tensor are those of the example. Outputs
    before and after are compared in double and single precision: on the example, on random inputs in its range, with
    other numbers of samples and other sizes where the model takes them.

    Args:
        model: a `MultiTaskModel`, or any module that torch.fx can trace. It is not changed. Inputs are taken for
            batches: (B, channels, H, W) if the first layer is a convolution on images.
        masks: the weights that each task keeps, or the tasks' networks; the result is the network of `task`.
        example_inputs: a batch that the model reads: the only argument, a tuple of all, or a dict from their names;
            of a `MultiTaskModel` its only argument. If it is None, one is made from the widths of the first layers
            where that can be; otherwise a `CompactionWarning` is raised, since nothing was verified.
        task: the only task that the result computes; of a module without heads, the task whose masks to put on it.
        tasks: the tasks that it computes, all by default. Only without masks: each has a network of its own under them.
        norms: batch norm statistics for each task; those of `task` are taken. Statistics of the batch itself
            (`bn="batch"`) belong to no network that stands alone.
        leaf_modules: names of modules to keep as they are, for those that torch.fx cannot trace.
        multiple_of: number of which the channels of images become a multiple where they can, at least 1: channels that
            change nothing stay where they fill up a block of the runtime. `"eager"` or `"onnxruntime"`: the fastest of
            1, 4, 8 and 16 in this runtime, measured on the whole example with torch's number of threads; this takes
            as long as four compactions. `"sparse"`: as `"eager"`, and linear layers are multiplied without their zeros
            (in CSR) where that is faster on the example; such a network runs in torch alone, and is not exported.

    Returns:
        a plain module in eval mode. It maps a batch to the outputs of `task`, or of a model of one network to what
            that gives; for several tasks to a dict, task -> outputs. Its attribute `report`, a `CompactionReport`,
            says for every layer what was removed and why not more, and how far the outputs are from the model's.
            `torch.save` writes the module, and `torch.load(..., weights_only=False)` reads it where sparsemtl is
            installed.

    Raises:
        CompactionError: if no graph can hold what the model does, naming the part; if the outputs are not the model's.
        MaskError: if the masks do not fit the model.
        ParameterError: if the arguments do not go together.

    Examples:
        >>> layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> _ = layers[2].weight.data[:, :6].zero_()
        >>> small = sm.compact(layers)
        >>> sm.parameter_count(layers), sm.parameter_count(small)
        (58, 16)
        >>> small.report.layer("0").outputs
        (8, 2)
    """
    model, masks = network_of(unwrapped(model), masks, norms, task, caller="compact")
    tasks = tasks if tasks is None or isinstance(tasks, str) else tuple(tasks)
    _check_arguments(model, masks, task, tasks, norms)
    check_multiple(multiple_of)
    own = with_weights(model, masks, norms, task)
    chosen = None
    if isinstance(own, MultiTaskModel):
        chosen = (task,) if task is not None else own.chosen(tasks)
    single, alone = chosen is not None, task is not None

    def build(multiple: int, network: nn.Module) -> CompactedModule:
        root = root_of(network, chosen, alone=alone, leaf_modules=leaf_modules)
        return compact_root(root, example_inputs, single=single, multiple_of=multiple)

    if isinstance(multiple_of, str):
        return fastest(lambda multiple: build(multiple, copied(own)), example_inputs, multiple_of, single=single)
    return build(multiple_of, own)


def network_of(
    model: nn.Module, masks: TaskMasks | TaskNetworks | None, norms: TaskNorms | None, task: str | None, *, caller: str
) -> tuple[nn.Module, TaskMasks | None]:
    """Return a task's network in place of the model if `masks` are the tasks' networks, and the masks that are left.

    Raises:
        CompactionError: if tensors of the model have no shape yet.
        MaskError: if the model is inside a task's network; `caller` is the function to name.
        ParameterError: if task networks are given without a task, or beside `norms`.
    """
    if is_swapped(model):
        raise MaskError(
            f"{caller} was called inside a task's network (masks.applied or networks.swapped). Call it outside, with "
            "`masks` and `task`."
        )
    if not isinstance(masks, TaskNetworks):
        return model, masks
    if task is None or norms is not None:
        raise ParameterError(f"task networks: name the task to {caller} for (task=...), without `norms`.")
    refuse_lazy(model)
    return masks.network(model, task), None


def with_weights(model: nn.Module, masks: TaskMasks | None, norms: TaskNorms | None, task: str | None) -> nn.Module:
    """Return a copy of a model whose layers own the weights and statistics of the task's network."""
    own = copied(model)
    if task is not None:
        _put(own, _task_tensors(own, masks, norms, task))
    return own.separated() if isinstance(own, Separable) else own


def _check_arguments(
    model: nn.Module,
    masks: TaskMasks | None,
    task: str | None,
    tasks: Iterable[str] | None,
    norms: TaskNorms | None,
) -> None:
    if isinstance(tasks, str):
        raise ParameterError(
            f"`tasks` is a list of names, got {tasks!r}. For the network of one task, say task={tasks!r}."
        )
    if task is not None and tasks is not None:
        raise ParameterError("give `task` for the network of one task, or `tasks` for one of several, not both.")
    if tasks == ():
        raise ParameterError("`tasks` is empty; leave it out for a network of all tasks.")
    if task is None and (masks is not None or norms is not None):
        raise ParameterError("masks and norms are different for each task: name the one to compact for (task=...).")
    chosen = tasks is not None or (task is not None and masks is None and norms is None)
    if chosen and not isinstance(model, MultiTaskModel):
        raise ParameterError(f"{type(model).__name__} has no tasks; `task` and `tasks` are for a MultiTaskModel.")
    if task is not None and isinstance(model, MultiTaskModel):
        model.check_task(task)


def _task_tensors(model: nn.Module, masks: TaskMasks | None, norms: TaskNorms | None, task: str) -> dict[str, Tensor]:
    """Return the weights and statistics that the task's network has in place of the model's."""
    weights = {} if masks is None else masks.weights(model, task)
    statistics: Mapping[str, Tensor] = {} if norms is None else norms[task]
    return {**weights, **statistics}


def _put(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors over a model's own."""
    own = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}
    for name, tensor in tensors.items():
        own[name].copy_(tensor)
