"""Compilation of training passes, tried on the first batch, so that what torch cannot compile is refused at once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sparsemtl.balancing.targets import Representation
from sparsemtl.errors import ForwardError, ParameterError
from sparsemtl.networks.compiled import CompiledModel, has_hooks
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.networks.modes import train_mode
from sparsemtl.networks.outputs import masks_outputs
from sparsemtl.networks.randomness import fork_rng
from sparsemtl.networks.swap import current_tensors, swap_tensors
from sparsemtl.tasks.batches import Loaders, first_groups, preserve_loader_state
from sparsemtl.tasks.nests import tensors_in, to_device
from sparsemtl.training.options import TrainingOptions
from sparsemtl.training.steps.step import TrainingStep


def compiled(model: MultiTaskModel, options: TrainingOptions) -> nn.Module:
    """Return the model whose training passes are compiled, if the options ask for it; else the model.

    Raises:
        ParameterError: if the model or another option cannot be compiled.
    """
    if not options["compile"]:
        return model
    if options["execution"] == "sliced":
        raise ParameterError(
            "compile=True compiles whole networks, and execution='sliced' runs parts of them that change with the "
            "masks. Use one of the two."
        )
    return CompiledModel(model)


def try_compiled(step: TrainingStep, train: Loaders) -> None:
    """Compile the passes of the first batch, forward and backward, on copies of all weights.

    Args:
        step: the training step, whose backend runs a `CompiledModel`.
        train: training data.

    Raises:
        ParameterError: with torch's reason if it cannot compile them, or if the balancer reads features.
    """
    model = step.model
    target = step.balancer.gradient_target(model)
    if isinstance(target, Representation):
        raise ParameterError(
            f"compile=True: the balancer reads the output of {target.module!r} in every forward "
            "pass, which compiled code does not show. Use compile=False, or another balancer."
        )
    with fork_rng(), preserve_loader_state(train), train_mode(model):
        for x, tasks in _passes(step, train):
            with step.networks.swapped(model, tasks[0]):
                if has_hooks(model) and not masks_outputs(model):
                    raise ParameterError(
                        f"compile=True: modules of {type(model).__name__} have hooks, which compiled code would leave "
                        "out. Remove them, or use compile=False."
                    )
                copies = {name: None if t is None else _copied(t) for name, t in current_tensors(model).items()}
                with swap_tensors(model, copies):
                    _run(step, x, tasks)


def _run(step: TrainingStep, x: object, tasks: tuple[str, ...]) -> None:
    try:
        outputs = tensors_in(step.backend.module(x, tasks=tasks))
        step.backend.backward(torch.stack([output.float().sum() for output in outputs if output.requires_grad]).sum())
    except ForwardError:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = " ".join(lines[:2]) or type(error).__name__
        raise ParameterError(
            f"compile=True: torch.compile cannot compile {type(step.model).__name__}: {reason} Use compile=False, or "
            "change the model; https://docs.pytorch.org/docs/stable/torch.compiler_troubleshooting.html"
        ) from error


def _passes(step: TrainingStep, train: Loaders) -> Iterator[tuple[object, tuple[str, ...]]]:
    """Yield the input and the tasks of the forward passes of a step."""
    for group in first_groups(train, step.tasks):
        x = to_device(group.x, step.backend.device)
        for tasks in [group.tasks] if step.update == "joint" else [(task,) for task in group.tasks]:
            yield x, tasks


def _copied(tensor: Tensor) -> Tensor:
    copy = tensor.detach().clone()
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(copy, requires_grad=tensor.requires_grad)
    return copy.requires_grad_(tensor.requires_grad)
