"""TaskNetworks: what each task computes with, and what it may train, inside one set of tensors.

Sharing methods make this value. Training, evaluation, files, compaction and the report read it and know no method.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from sparsemtl.errors import MaskError, unknown_name
from sparsemtl.networks.masked_product import MaskedProducts
from sparsemtl.networks.masks import Mask, TaskMasks
from sparsemtl.networks.outputs import fold_outputs, folded_weights, masked_outputs, modules_of
from sparsemtl.networks.shapes import broadcasts, check_fit
from sparsemtl.networks.swap import current_tensors, materialize, own_tensors, swap_tensors, unwrapped

if TYPE_CHECKING:
    from sparsemtl.networks.mask_description import LeftOut

MaskTarget = Literal["weights", "gradients"]
"""`weights`: a task computes with mask * weight, in training and inference. `gradients`: all tasks compute with the
dense weights, and only the gradient of the task is masked."""

Tensors = Mapping[str, Tensor]
LATER_PARTS = ("kept_weights",)
"""Parts of a network that states and files have only where they are not empty: those of earlier versions lack them."""


@dataclass(frozen=True)
class TaskNetwork:
    """Network of one task inside a model; what is not named is the model's.

    Tensors of statistics and soft masks are trained in place.

    Attributes:
        weight_factors: parameter name -> bool (a mask) or float (a soft mask), broadcast to the parameter's shape; the
            task computes with factor * weight.
        output_factors: module name -> bool, (channels,); the task computes with factor * output. Channels lie on axis
            1, of linear layers and layer norms on the last.
        own_tensors: parameter or buffer name -> the task's own tensor in place of the model's; None where a batch norm
            uses the statistics of the batch. A parameter that requires a gradient is trained.
        gradient_mask: parameter name -> bool, True where the gradient of the task counts.
        kept_weights: parameter name -> bool, the weights that belong to the task where output factors say so: rows of
            the channels that it computes. They are its mask in `TaskNetworks.masks`; the forward pass ignores them.
    """

    weight_factors: Tensors = field(default_factory=dict)
    output_factors: Tensors = field(default_factory=dict)
    own_tensors: Mapping[str, Tensor | None] = field(default_factory=dict)
    gradient_mask: Tensors = field(default_factory=dict)
    kept_weights: Tensors = field(default_factory=dict)

    def __repr__(self) -> str:
        counts = {part.name: len(getattr(self, part.name)) for part in fields(self)}
        shown = (f"{name}: {count} tensors" for name, count in counts.items() if count)
        return f"TaskNetwork({', '.join(shown)})"

    @property
    def is_shared(self) -> bool:
        """True if the task computes with the model's own weights and, unless of the batch, its statistics."""
        return not (self.weight_factors or self.output_factors or self.has_own_tensors)

    @property
    def has_own_tensors(self) -> bool:
        """True if the task has tensors of its own; batch norms that use the statistics of the batch have none."""
        return any(tensor is not None for tensor in self.own_tensors.values())

    def mapped(self, change: Any) -> TaskNetwork:
        """Return the network with every tensor changed by a function."""
        parts: dict[str, Any] = {
            part.name: {name: None if t is None else change(t) for name, t in getattr(self, part.name).items()}
            for part in fields(self)
        }
        return TaskNetwork(**parts)

    @cached_property
    def masked_outputs(self) -> Tensors:
        """Output factors that switch off at least one channel."""
        return {name: factor for name, factor in self.output_factors.items() if not bool(factor.all())}

    @property
    def mask(self) -> Tensors:
        """Mask of the task over weights; empty without one."""
        return self.kept_weights or self.gradient_mask or self.weight_factors


class TaskNetworks(Mapping[str, TaskNetwork]):
    """Networks of all tasks inside one model.

    Args:
        networks: task -> its network.
        strict: a step for some tasks moves no weight that none of their masks keeps.
        model: name of the model class, kept in the file.
        method: name of what made the networks, kept in the file.
        left_out: parameters that the masks do not cover, with shape and reason, kept in the file; None where unknown.
        common: all tasks have the same factors and masks, so that one forward pass can serve them.

    Examples:
        >>> masks = TaskMasks({"a": {"w": torch.tensor([True, False])}, "b": {"w": torch.tensor([True, True])}})
        >>> networks = TaskNetworks.of_masks(masks)
        >>> networks.one_network, networks.trainable(["a"])["w"].tolist()
        (False, [True, False])
    """

    def __init__(
        self,
        networks: Mapping[str, TaskNetwork],
        *,
        strict: bool = True,
        model: str = "",
        method: str = "",
        left_out: Mapping[str, LeftOut] | None = None,
        common: bool = False,
    ) -> None:
        if not networks:
            raise MaskError("task networks need at least one task.")
        self._networks = dict(networks)
        self.strict = strict
        self.common = common
        self.model = model
        self.method = method
        self.left_out = left_out
        self._token = object()  # identifies the value as long as anything refers to it, which an id does not
        self._regions: dict[tuple[str, ...], Mask | None] = {}
        self._products = MaskedProducts()

    @classmethod
    def of_masks(
        cls,
        masks: TaskMasks,
        own_tensors: Mapping[str, Mapping[str, Tensor | None]] | None = None,
        *,
        applies_to: MaskTarget = "weights",
        strict: bool = True,
        common: bool = False,
    ) -> TaskNetworks:
        """Return the networks that masks make.

        Args:
            masks: what each task keeps.
            own_tensors: task -> its own tensors, such as the statistics of batch norms.
            applies_to: what the masks act on.
            strict: see the class.
            common: see the class.
        """
        part = "weight_factors" if applies_to == "weights" else "gradient_mask"
        own = own_tensors or {}
        networks = {task: TaskNetwork(own_tensors=own.get(task, {}), **{part: masks[task]}) for task in masks}
        made = cls(
            networks,
            strict=strict,
            model=masks.model,
            method=masks.method,
            left_out=masks.left_out,
            common=common,
        )
        made.masks = masks
        return made

    def __getitem__(self, task: str) -> TaskNetwork:
        if task not in self._networks:
            raise MaskError(unknown_name("task", task, self._networks))
        return self._networks[task]

    def __iter__(self) -> Iterator[str]:
        return iter(self._networks)

    def __len__(self) -> int:
        return len(self._networks)

    def __repr__(self) -> str:
        return f"TaskNetworks({self._networks!r}, strict={self.strict})"

    @property
    def one_network(self) -> bool:
        """True if one forward pass serves all tasks."""
        first, *rest = self.values()
        if any(network.has_own_tensors or not (self.common or network.is_shared) for network in self.values()):
            return False
        return all(set(network.own_tensors) == set(first.own_tensors) for network in rest)

    @property
    def same_weights(self) -> bool:
        """True if all tasks compute with the model's own weights; their statistics may differ."""
        return not any(network.weight_factors or network.output_factors for network in self.values()) and not any(
            isinstance(tensor, nn.Parameter) for network in self.values() for tensor in network.own_tensors.values()
        )

    @property
    def have_own_tensors(self) -> bool:
        """True if tasks have tensors of their own, such as the statistics of batch norms."""
        return any(network.has_own_tensors for network in self.values())

    @cached_property
    def apart(self) -> bool:
        """True if tasks train copies of their own: none trains what another does, and no balancer weighs them."""
        return any(True for _ in self.copies())

    @cached_property
    def masks(self) -> TaskMasks | None:
        """The masks, on weights, outputs or gradients; None where the tasks have none, or have soft masks."""
        found = {task: network.mask for task, network in self.items()}
        if not all(found.values()) or any(m.dtype != torch.bool for mask in found.values() for m in mask.values()):
            return None
        return TaskMasks(found, model=self.model, method=self.method, left_out=self.left_out)

    def kept(self, parameters: Tensors) -> TaskMasks | None:
        """Return the masks, or the entries of soft masks that are not zero; None without either.

        Args:
            parameters: name -> parameter that tasks share, read for soft masks only. A task without a factor for a
                parameter that another task has a factor for does not use the parameter.
        """
        if self.masks is not None:
            return self.masks
        named = {name for network in self.values() for name in network.weight_factors}
        covered = {name: p for name, p in parameters.items() if name in named}
        if not covered:
            return None
        kept = {
            task: {name: _is_kept(network.weight_factors.get(name), p) for name, p in covered.items()}
            for task, network in self.items()
        }
        return TaskMasks(kept, model=self.model, method=self.method)

    def trainable(self, tasks: Sequence[str]) -> Mask | None:
        """Return which entries a step for some tasks may move, by parameter name; None is everything."""
        if not self.strict or self.masks is None or self.apart:
            return None
        key = tuple(tasks)
        if key not in self._regions:
            union = self.masks[key[0]] if len(key) == 1 else self.masks.union(key)
            self._regions[key] = None if all(bool(mask.all()) for mask in union.values()) else union
        return self._regions[key]

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield what an optimizer trains beside the model: soft masks, without weight decay, and the tasks' copies."""
        yield from self.soft_masks()
        yield from (copy for _, _, copy in self.copies())

    def soft_masks(self) -> Iterator[nn.Parameter]:
        """Yield the soft masks that are trained."""
        for network in self.values():
            yield from (cast("nn.Parameter", f) for f in network.weight_factors.values() if f.requires_grad)

    def copies(self) -> Iterator[tuple[str, str, nn.Parameter]]:
        """Yield (task, name, copy) of the parameters of which a task trains a copy of its own."""
        for task, network in self.items():
            for name, tensor in network.own_tensors.items():
                if tensor is not None and tensor.requires_grad:
                    yield task, name, cast("nn.Parameter", tensor)

    def swapped(self, model: nn.Module, task: str) -> AbstractContextManager[None]:
        """Inside the context, `model` is the network of the task, for training and for inference.

        Run the backward pass inside the context too, the same one or entered again: autograd may run modules again.
        Weights are those at the moment of entering; enter the context anew after every optimizer step.

        Raises:
            MaskError: if the networks do not fit the model, or the model is compiled; see `swap_tensors`.
        """
        network = self[task]
        changes = network.weight_factors or network.masked_outputs or network.own_tensors
        return self._swapped(unwrapped(model), task, network) if changes else nullcontext()

    @contextmanager
    def _swapped(self, model: nn.Module, task: str, network: TaskNetwork) -> Iterator[None]:
        tensors = {**network.own_tensors, **self.weights(model, task)}
        masked = modules_of(model, network.masked_outputs)
        outputs = {module: network.masked_outputs[name] for name, module in masked.items()}
        with swap_tensors(model, tensors, (self._token, task), also=outputs), masked_outputs(outputs):
            yield

    def weights(self, model: nn.Module, task: str) -> dict[str, Tensor]:
        """Return parameter name -> factor * weight, with a graph to both, for the parameters that have a factor."""
        factors, own = self[task].weight_factors, self[task].own_tensors
        weights = {}
        for name, found in own_tensors(model, factors).items():
            weight, factor = own.get(name, found), factors[name]
            assert weight is not None
            if factor.shape != weight.shape and not broadcasts(factor.shape, weight.shape):
                raise MaskError(
                    f"task {task!r}, {name!r}: the mask has shape {tuple(factor.shape)}, the parameter "
                    f"{tuple(weight.shape)}. Was the mask made for another model?"
                )
            if factor.dtype == torch.bool:
                weights[name] = self._products(weight, factor, task, name)
            else:
                weights[name] = weight * factor
        return weights

    def network(self, model: nn.Module, task: str) -> nn.Module:
        """Return a copy of the model, in eval mode, that is the network of the task."""
        network = self[task]
        with self._swapped(unwrapped(model), task, replace(network, output_factors={})):
            made = materialize(unwrapped(model)).eval()
        fold_outputs(made, network.masked_outputs)
        return made

    def tensors(self, model: nn.Module, task: str) -> dict[str, Tensor | None]:
        """Return every parameter and buffer by name as the task computes with it, copied.

        Raises:
            MaskError: if the task switches off outputs that no weight makes, such as those of a norm without scale.
        """
        rows, left = folded_weights(unwrapped(model), self[task].masked_outputs)
        if left:
            raise MaskError(
                f"task {task!r}: the factor on the outputs of {next(iter(left))!r} is in no weight of that module. "
                "`network(model, task)` is a model that computes with it."
            )
        with self.swapped(model, task):
            found = {n: None if t is None else t.detach().clone() for n, t in current_tensors(unwrapped(model)).items()}
        for name, factor in rows.items():
            if (tensor := found[name]) is not None:
                tensor.mul_(factor.to(tensor.device))
        return found

    def with_masks(self, masks: TaskMasks) -> TaskNetworks:
        """Return the networks with other masks in the place of theirs."""
        part = "gradient_mask" if any(network.gradient_mask for network in self.values()) else "weight_factors"
        networks = {task: replace(network, **{part: masks[task]}) for task, network in self.items()}
        return self._with(networks, masks)

    def with_outputs(self, factors: Mapping[str, Tensors], masks: TaskMasks) -> TaskNetworks:
        """Return the networks with further output factors.

        Args:
            factors: task -> module name -> factor, in the place of those of the same modules.
            masks: the weights that belong to each task by all of its factors.
        """
        networks = {
            task: replace(n, output_factors={**n.output_factors, **factors[task]}, kept_weights=masks[task])
            for task, n in self.items()
        }
        return self._with(networks, masks)

    def with_own_tensors(self, tensors: Mapping[str, Mapping[str, Tensor | None]]) -> TaskNetworks:
        """Return the networks with further tensors of a task's own, task -> name -> tensor."""
        return self._with({t: replace(n, own_tensors={**n.own_tensors, **tensors.get(t, {})}) for t, n in self.items()})

    def without_copies(self) -> TaskNetworks:
        """Return the networks without the parameters of which tasks train copies."""
        named = {(task, name) for task, name, _ in self.copies()}
        return self._with(
            {
                task: replace(n, own_tensors={k: t for k, t in n.own_tensors.items() if (task, k) not in named})
                for task, n in self.items()
            }
        )

    def to(self, device: torch.device | str) -> TaskNetworks:
        """Return the networks on another device."""
        return self._with({task: network.mapped(lambda t: t.to(device)) for task, network in self.items()})

    def detached(self) -> TaskNetworks:
        """Return a copy that no later step changes."""
        return self._with({task: network.mapped(lambda t: t.detach().clone()) for task, network in self.items()})

    def _with(self, networks: Mapping[str, TaskNetwork], masks: TaskMasks | None = None) -> TaskNetworks:
        """Return other networks, which reuse the memory of products; with masks, networks of these."""
        about = self if masks is None else masks
        made = TaskNetworks(
            networks,
            strict=self.strict,
            model=about.model,
            method=about.method,
            left_out=about.left_out,
            common=self.common,
        )
        made._products = MaskedProducts(self._products.memory)
        if masks is not None:
            made.masks = masks
        return made

    def state_dict(self) -> dict[str, Any]:
        """Return task -> part -> name -> tensor; copies, except of bool tensors, which nothing changes in place."""
        networks = {task: network.mapped(_state_of) for task, network in self.items()}
        return {
            task: {
                part.name: dict(getattr(network, part.name))
                for part in fields(network)
                if part.name not in LATER_PARTS or getattr(network, part.name)
            }
            for task, network in networks.items()
        }

    def restored(self, state: Mapping[str, Any]) -> TaskNetworks:
        """Return the networks of a state; soft masks and copies stay the parameters that they are, with its values."""
        made = {}
        for task, network in self.items():
            parts: dict[str, Any] = {
                part.name: {n: _placed(t, self._device) for n, t in state[task].get(part.name, {}).items()}
                for part in fields(network)
            }
            for kind in ("weight_factors", "own_tensors"):
                for name, tensor in getattr(network, kind).items():
                    if tensor is not None and tensor.requires_grad and name in parts[kind]:
                        with torch.no_grad():
                            parts[kind][name] = tensor.copy_(parts[kind][name])
            made[task] = TaskNetwork(**parts)
        return self._with(made)

    @property
    def _device(self) -> torch.device | None:
        parts = (getattr(network, part.name) for network in self.values() for part in fields(network))
        return next((t.device for part in parts for t in part.values() if t is not None), None)

    def save(self, path: str | Path) -> None:
        """Write the networks to one safetensors file: one bit per entry of a mask, floats for the rest."""
        from sparsemtl.networks.files import save_networks

        save_networks(self, path)

    @classmethod
    def load(cls, path: str | Path, model: nn.Module | None = None) -> TaskNetworks:
        """Read networks from a file.

        Args:
            path: the file.
            model: a model to check them against.

        Raises:
            CheckpointError: if the file is missing, damaged or of another kind.
            MaskError: if the networks do not fit the model.
        """
        from sparsemtl.networks.files import load_networks

        return load_networks(path, model)

    def check(self, model: nn.Module) -> None:
        """Raise unless every name is one of the model's, and every tensor fits the model's tensor or module.

        Raises:
            MaskError: naming the task and the first tensor that does not fit.
        """
        check_fit(self, unwrapped(model))


def dense_networks(
    model: nn.Module, tasks: Iterable[str], own_tensors: Mapping[str, Any] | None = None
) -> TaskNetworks:
    """Return networks without masks: every task computes with the model, but for its own tensors."""
    own = own_tensors or {}
    return TaskNetworks(
        {task: TaskNetwork(own_tensors=own.get(task, {})) for task in tasks}, model=type(model).__name__
    )


def _is_kept(factor: Tensor | None, parameter: Tensor) -> Tensor:
    if factor is None:
        return torch.zeros_like(parameter, dtype=torch.bool)
    return (factor.detach() != 0).expand_as(parameter).clone()


def _state_of(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.bool else tensor.detach().clone()


def _placed(tensor: Tensor | None, device: torch.device | None) -> Tensor | None:
    return None if tensor is None else tensor.to(device, copy=True) if device is not None else tensor.clone()
