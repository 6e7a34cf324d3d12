"""Training on slices: each task runs on its compacted network; see `slicing` for how a slice is made.

A slice takes the place of the model's forward pass inside a context, as masked weights take that of the model's.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from sparsemtl.compaction.inputs import Inputs
from sparsemtl.compaction.slices.slicing import NumberedModel, TaskSlice
from sparsemtl.errors import CompactionError, CompactionWarning
from sparsemtl.networks.model import MultiTaskModel, placement
from sparsemtl.networks.swap_guards import lock_of
from sparsemtl.networks.task_networks import TaskNetwork, TaskNetworks


class TaskSlices:
    """Execution of each task on its slice of a model: the channels, heads and neurons that its mask keeps.

    Losses and gradients are those of masked execution (`TaskNetworks.swapped`) up to rounding. Parameters keep their
    shapes and get whole gradients, so that optimizers, strict updates, files and evaluation do not change. Where a
    network cannot be sliced, the task runs masked, and a `CompactionWarning` gives the reason once: soft masks, masks
    on gradients, masks that drop no whole unit, forward hooks, and whatever compaction cannot trace.

    A slice is made in the first forward pass after a mask has changed, and compared with the masked network in eval
    mode. Two things differ from masked execution: dropout draws other random numbers, since it draws fewer; and running
    statistics of channels that the task does not compute stay as they are, which no output depends on.

    Args:
        model: the model. Slices hold no copy of its weights; their graph holds eight bytes per weight, and each slice
            eight per weight that it has.

    Examples:
        >>> tasks = [Classification("shape", 2), Classification("colour", 3)]
        >>> encoder = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())
        >>> model = SharedBottom(encoder, tasks)
        >>> x, labels = torch.rand(6, 4), torch.tensor([0, 1] * 3)
        >>> loader = [(x, {"shape": labels, "colour": labels})]
        >>> _ = model(x)  # heads learn their widths
        >>> masks = fisher_masks(model, loader, keep=0.25, granularity="channel")
        >>> slices, networks = TaskSlices(model), TaskNetworks.of_masks(masks)
        >>> with slices.swapped(networks, "shape"):
        ...     tasks[0].loss(model(x, tasks=["shape"])["shape"], labels).backward()
        >>> model.get_parameter("encoder.0.weight").grad.shape, slices.share("shape") < 0.4
        (torch.Size([16, 4]), True)
    """

    def __init__(self, model: MultiTaskModel) -> None:
        self.model = model
        self._modes: tuple[bool, ...] = ()
        self._numbered: NumberedModel | None = None
        self._made: dict[tuple[str, ...], tuple[TaskNetwork, TaskSlice | None]] = {}
        self._masked: set[str] = set()
        self._reasons: set[str] = set()

    def __reduce__(self) -> Any:
        return TaskSlices, (self.model,)

    def share(self, task: str) -> float | None:
        """Return the fraction of the weights that the slice of a task has; None if the task ran masked last."""
        found = next((part for tasks, (_, part) in self._made.items() if task in tasks), None)
        return None if found is None or task in self._masked else found.share

    @contextmanager
    def swapped(self, networks: TaskNetworks, task: str) -> Iterator[None]:
        """Inside the context, the model computes as the network of the task, on its slice where it has one.

        `model(x, tasks=...)` computes the tasks that it is asked for, all with this network. A backward pass may run
        outside; one that runs in a later context of its own runs in `again`.

        Args:
            networks: networks of the tasks.
            task: name of the task.

        Raises:
            MaskError: if the networks do not fit the model.
        """
        model, own = self.model, vars(self.model)
        with lock_of(model), ExitStack() as stack:

            def forward(x: Any, tasks: Any = None) -> Any:
                found = self._slice_for(networks, task, model.chosen(tasks), x)
                if found is not None:
                    self._masked.discard(task)
                    return found(networks[task], x)
                self._masked.add(task)
                _remove(own, hidden)
                stack.enter_context(networks.swapped(model, task))
                return model.forward(x, tasks)

            hidden: dict[str, Any] = {"forward": forward}
            hidden["__reduce_ex__"] = lambda protocol: _reduced(model, protocol, hidden)
            if "forward" in own:
                self._explain(task, f"{type(model).__name__} has a forward of its own beside its class's")
                self._masked.add(task)
                stack.enter_context(networks.swapped(model, task))
            else:
                own.update(hidden)
            try:
                yield
            finally:
                _remove(own, hidden)

    @contextmanager
    def again(self, networks: TaskNetworks, task: str) -> Iterator[None]:
        """Inside the context, the backward pass of the task's last forward pass may run."""
        with ExitStack() as stack:
            if task in self._masked:
                stack.enter_context(networks.swapped(self.model, task))
            yield

    def _slice_for(self, networks: TaskNetworks, task: str, tasks: tuple[str, ...], x: Any) -> TaskSlice | None:
        """Return the slice for an input, None if the task is to run masked."""
        network = networks[task]
        reason = _obstacle(self.model, network)
        if reason is not None:
            self._explain(task, reason)
            return None
        modes = tuple(module.training for module in self.model.modules())
        if modes != self._modes:
            self._modes, self._numbered = modes, None
            self._made.clear()
        known, found = self._made.get(tasks, (None, None))
        try:
            with torch.autocast(placement(self.model)[0].type, enabled=False):
                if known is not network:
                    found = self._renewed(network, tasks, x, found)
                    self._made[tasks] = network, found
                fits = found is None or found.fits(networks, task, x)
            if not fits:
                raise CompactionError(f"its slice gives other outputs for inputs of shape {Inputs((x,)).shapes()}")
        except Exception as error:  # whatever cannot be sliced runs masked
            self._made.setdefault(tasks, (network, None))
            self._explain(task, str(error).strip().rstrip(".") or type(error).__name__)
            return None
        return found

    def _renewed(
        self, network: TaskNetwork, tasks: tuple[str, ...], x: Any, before: TaskSlice | None
    ) -> TaskSlice | None:
        """Return the slice of a network, the one before if its mask is the same; None if the mask keeps everything."""
        self._made[tasks] = network, None  # also if the slice cannot be made
        if not (network.weight_factors or network.masked_outputs):
            return None
        if self._numbered is None:
            self._numbered = NumberedModel(self.model, x)
        keep = self._numbered.kept(network)
        absent = frozenset(name for name, tensor in network.own_tensors.items() if tensor is None)
        if bool(keep.all()):
            return None
        if before is not None and before.absent == absent and torch.equal(before.keep, keep):
            return before
        return TaskSlice(self._numbered, tasks, keep, absent)

    def _explain(self, task: str, reason: str) -> None:
        if reason not in self._reasons:
            self._reasons.add(reason)
            warnings.warn(
                f"execution='sliced': task {task!r} computes with its whole masked network, since {reason}.",
                CompactionWarning,
                stacklevel=2,
            )


def _obstacle(model: MultiTaskModel, network: TaskNetwork) -> str | None:
    """Return why a network has no slice, as far as that can be seen without tracing."""
    if network.gradient_mask:
        return "its mask acts on gradients, and its forward pass is dense"
    if any(factor.dtype != torch.bool for factor in network.weight_factors.values()):
        return "its masks are soft"
    if type(model).penalty is not MultiTaskModel.penalty:
        return f"{type(model).__name__} has a loss term that reads the forward pass"
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
            return f"{name or 'the model'!r} has hooks, which a slice would miss"
    return None


def _remove(entries: dict[str, Any], hidden: Mapping[str, Any]) -> None:
    for name, value in hidden.items():
        if entries.get(name) is value:
            del entries[name]


def _reduced(model: nn.Module, protocol: int, hidden: Mapping[str, Any]) -> Any:
    """Reduce a model, for copies and pickles, without its entries of a context."""
    entries = vars(model)
    _remove(entries, hidden)
    try:
        reduced: Any = type(model).__reduce_ex__(model, protocol)
        make, arguments, state, *rest = reduced
        return (make, arguments, dict(state) if isinstance(state, dict) else state, *rest)
    finally:
        entries.update(hidden)
