"""Slices of a model: compacted networks of tasks, whose weights are entries of the model's.

Compaction chooses the entries. The model is traced once, with a number in place of every weight. For a task, the
numbers of weights that its mask leaves out become zero, and the passes of compaction remove channels, heads and neurons
as they do from trained weights. A number that is left says which entry of which parameter stands there. Each forward
pass gathers these entries, and autograd adds the gradients of the slice to the entries that they came from.

Two rules differ from those of compaction, since a slice is trained. A weight is zero only if its mask says so. A
channel that is constant but not zero stays, and so do batch norms, whose statistics are those of the batch.
"""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase

from sparsemtl.compaction.copies import copied
from sparsemtl.compaction.graph.canonicalize import drop_unread
from sparsemtl.compaction.graph.channels import Constants
from sparsemtl.compaction.graph.network import Network
from sparsemtl.compaction.graph.operations import IDENTITIES
from sparsemtl.compaction.graph.sizes import forget
from sparsemtl.compaction.inputs import MAX_SAMPLES, Inputs, leaves, tensors
from sparsemtl.compaction.passes import needed_channels, remove_channels
from sparsemtl.compaction.pipeline import built, canonical_network, measure_shapes, resolve_sizes
from sparsemtl.compaction.rules import ChannelRule, rules_for
from sparsemtl.compaction.tracing.trace import root_of
from sparsemtl.errors import CompactionError
from sparsemtl.networks.masked_product import ProductMemory, masked_product
from sparsemtl.networks.model import MultiTaskModel, placement
from sparsemtl.networks.modes import eval_mode
from sparsemtl.networks.outputs import folded_weights
from sparsemtl.networks.randomness import fork_rng, random_state
from sparsemtl.networks.swap import own_tensors
from sparsemtl.networks.task_networks import TaskNetwork, TaskNetworks

_FIRST = 2**40
"""Number of the first entry; float64 holds all numbers exactly, and no constant of a model is as large."""
_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Dtype -> largest difference of the outputs in eval mode, in units of their largest entry; 0.03 in half precision."""


class NumberedModel:
    """Graph of a model with a number in place of every entry of its parameters and buffers.

    Args:
        model: the model; training modes are its present ones.
        x: an input.

    Raises:
        CompactionError: if the model cannot be traced, or draws random numbers outside of dropout layers, or writes to
            buffers.
    """

    def __init__(self, model: MultiTaskModel, x: Any) -> None:
        self.model = model
        self.fitting: dict[Hashable, bool] = {}
        root = root_of(copied(model), tuple(model.tasks), alone=False, leaf_modules=())
        modules = dict(root.module.get_submodule("network").named_modules())
        for name, module in model.named_modules():
            modules[name].training = module.training and not isinstance(module, _NormBase)
        ran = copied(root.module).double()
        root.module.double()
        self.first: dict[str, tuple[int, torch.Size]] = {}
        self.size = 0
        for name, tensor in _floating(root.module.get_submodule("network")):
            numbers = torch.arange(tensor.numel(), dtype=torch.float64, device=tensor.device) + (_FIRST + self.size)
            tensor.data.copy_(numbers.view(tensor.shape))
            self.first[name] = self.size, tensor.shape
            self.size += tensor.numel()
        filled = {name: first for name, (first, shape) in self.first.items() if prod(shape)}
        self._names, self._firsts = list(filled), list(filled.values())
        inputs = Inputs((x,)).mapped(Tensor.detach).first(MAX_SAMPLES)
        with fork_rng(), torch.no_grad(), torch.inference_mode(False), _unchanged(ran):
            self.network = canonical_network(root, ran, inputs)
        measure_shapes(self.network, root.module, inputs)
        resolve_sizes(self.network)

    def kept(self, network: TaskNetwork) -> Tensor:
        """Return which of the numbers stand for weights that a task keeps, bool (size,)."""
        rows, left = folded_weights(self.model, network.masked_outputs)
        if left:
            raise CompactionError(f"its factor on the outputs of {next(iter(left))!r} is in no weight of that module")
        keep = torch.ones(self.size, dtype=torch.bool, device=placement(self.model)[0])
        names = _canonical_names(self.model)
        for name, factor in chain(network.weight_factors.items(), rows.items()):
            first, shape = self.first[names[name]]
            keep[first : first + prod(shape)] &= factor.to(keep.device).expand(shape).reshape(-1)
        return keep

    def small(self, tasks: Sequence[str], keep: Tensor) -> tuple[fx.GraphModule, list[str]]:
        """Return the network of some tasks without the channels that no kept weight serves.

        Args:
            tasks: the tasks whose outputs it returns.
            keep: as `kept` returns it.

        Returns:
            the network, in eval mode; names of the parameters and buffers that the tasks' whole network reads.
        """
        whole = self.network
        parts = copy.deepcopy({"modules": whole.modules, "tensors": whole.tensors})
        network = Network(copy.deepcopy(whole.graph), parts["modules"], parts["tensors"], whole.name)
        output = next(reversed(network.graph.nodes))
        if not isinstance(output.args[0], dict) or not set(tasks) <= set(output.args[0]):
            raise CompactionError(f"{type(self.model).__name__} returns no output per task")
        output.args = ({task: output.args[0][task] for task in tasks},)
        drop_unread(network)
        read = set()
        for _, tensor in _floating(built(network, copy.deepcopy(network.graph))):
            numbers = tensor.data >= _FIRST
            if bool(numbers.any()):
                entries = (tensor.data - _FIRST).clamp_(0, self.size - 1).long()
                read.add(self.source(int(entries[numbers][0])))
                tensor.data.masked_fill_(numbers & ~keep[entries], 0)
        rules = rules_for(network)
        _fold_zeros(rules)
        remove_channels(network, rules, needed_channels(rules))
        forget(network)
        return built(network, network.graph), sorted(read)

    def source(self, entry: int) -> str:
        """Return the name of the parameter or buffer that a number stands for an entry of."""
        return self._names[bisect_right(self._firsts, entry) - 1]

    def part(self, name: str, tensor: Tensor) -> WeightEntries | None:
        """Return what a tensor of numbers stands for, None if it has none.

        Raises:
            CompactionError: if a number is none of the model's, or they are of several sources.
        """
        numbers = tensor.abs() >= _FIRST
        if not bool(numbers.any()):
            return None
        index = torch.where(numbers, tensor - _FIRST, 0)
        first = int(index[numbers][0])
        source = self.source(first) if 0 <= first < self.size else ""
        start, shape = self.first.get(source, (0, torch.Size()))
        index = torch.where(numbers, index - start, 0)
        strange = (index != index.floor()) | (index < 0) | (index >= prod(shape)) | (~numbers & (tensor != 0))
        if not source or bool(strange.any()):
            raise CompactionError(f"{name!r} is computed from several weights")
        index = index.long().flatten()
        mask = None if bool(numbers.all()) else numbers
        places = torch.arange(len(index), device=index.device)
        same = tensor.shape == shape and bool(((index == places) | ~numbers.flatten()).all())
        return WeightEntries(name, source, None if same else index, mask, tensor.shape)


def _fold_zeros(rules: Mapping[fx.Node, ChannelRule]) -> None:
    """Remove the weights on channels that are zero; other constants are trained and stay."""
    found: dict[fx.Node, Constants | None] = {}
    for node, rule in rules.items():
        constants = rule.constants(*(found[source] for source in rule.inputs))
        found[node] = None if constants is None else constants.where(constants.value == 0)


def _floating(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in chain(module.named_parameters(), module.named_buffers()):
        if tensor.is_floating_point():
            yield name, tensor


def _canonical_names(model: nn.Module) -> dict[str, str]:
    """Return name of each parameter and buffer -> its first name: tied weights have several."""
    first: dict[int, str] = {}
    owned = chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    return {name: first.setdefault(id(tensor), name) for name, tensor in owned}


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Raise if a forward pass inside draws random numbers outside of dropout layers, or writes to a buffer.

    A graph would hold the outcome of a draw that Python makes, and would not write.
    """
    for module in model.modules():
        module.training = module.training and not isinstance(module, IDENTITIES)
    written = [
        (f"{prefix}.{name}".removeprefix("network."), module, name, buffer.clone())
        for prefix, module in model.named_modules()
        if not isinstance(module, _NormBase)
        for name, buffer in module.named_buffers(recurse=False)
    ]
    before = _draws()
    yield
    if _draws() != before:
        raise CompactionError("its forward pass draws random numbers outside of dropout layers")
    for path, module, name, earlier in written:
        if not torch.equal(getattr(module, name), earlier):
            raise CompactionError(f"its forward pass writes to the buffer {path!r}")


def _draws() -> tuple[Any, ...]:
    """Return the state of all global generators, to be compared."""
    state = random_state()
    arrays = (state["torch"], state["numpy"]["keys"], *state["cuda"])
    return repr(state["python"]), state["numpy"]["position"], *(tuple(array.tolist()) for array in arrays)


@dataclass(frozen=True)
class WeightEntries:
    """Tensor of a slice.

    Attributes:
        name: its name in the slice.
        source: name of the model's parameter or buffer whose entries it has.
        index: (entries,), int64, entries of the flattened source; None for the whole source.
        mask: bool in the tensor's shape, False for entries that are zero; None if there are none.
        shape: its shape.
    """

    name: str
    source: str
    index: Tensor | None
    mask: Tensor | None
    shape: torch.Size


class TaskSlice:
    """Compacted network of a task, which computes with the model's present weights.

    Args:
        numbered: the model.
        tasks: tasks whose outputs it returns.
        keep: the weights that the task keeps.
        absent: names of statistics that the task does not have, since it uses those of the batch.

    Raises:
        CompactionError: if nothing can be removed.

    Attributes:
        share: fraction of the weights that the slice has.
    """

    def __init__(self, numbered: NumberedModel, tasks: tuple[str, ...], keep: Tensor, absent: frozenset[str]) -> None:
        self.numbered, self.tasks, self.keep, self.absent = numbered, tasks, keep, absent
        model = numbered.model
        self.module, read = numbered.small(tasks, keep)
        modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
        for name, module in self.module.named_modules():
            module.training = name not in modules or modules[name].training
            for own in [own for own in module._buffers if f"{name}.{own}" in absent]:
                module._buffers[own] = None
        parts = self._parts_of(placement(model)[1] or torch.get_default_dtype())
        self._whole = [part for part in parts if part.index is None]
        self._gathered = [part for part in parts if part.index is not None and part.source in parameters]
        self._statistics = [part for part in parts if part.index is not None and part.source not in parameters]
        self._written = [part for part in self._statistics if self._is_updated(part.name)]
        others = {part.source for part in self._whole} - {part.source for part in self._gathered}
        self._sources = [name for name in read if name in parameters and name not in others]
        self._places = [self._sources.index(part.source) for part in self._gathered]
        if not (self._sources or self._statistics):
            raise CompactionError("its mask drops no whole channel, head or neuron")
        self._counters = [n for n, _ in self.module.named_buffers() if n.endswith(".num_batches_tracked")]
        self._names = _canonical_names(model)
        self._memory = ProductMemory()
        self._verified = False
        weights = sum(parameters[name].numel() for name in read if name in parameters)
        self.share = sum(prod(part.shape) for part in parts if part.source in parameters) / weights

    def _parts_of(self, dtype: torch.dtype) -> list[WeightEntries]:
        """Return what the tensors of the small network stand for; constants get the model's dtype."""
        parts = []
        for name, tensor in list(_floating(self.module)):
            part = self.numbered.part(name, tensor.detach())
            if part is None:
                tensor.data = tensor.data.to(dtype)
            else:
                parts.append(part)
                tensor.data = tensor.data.new_empty(0)
        return parts

    def _is_updated(self, name: str) -> bool:
        """Return whether a forward pass writes to a buffer: one of a batch norm in training."""
        owner = self.module.get_submodule(name.rpartition(".")[0])
        return isinstance(owner, _NormBase) and owner.training

    def __call__(self, network: TaskNetwork, x: Any) -> dict[str, Tensor]:
        """Return task -> output, with a graph to the model's weights, and to copies that the task has of its own."""
        read = {*self._sources, *self._counters, *(part.source for part in (*self._whole, *self._statistics))}
        sources = own_tensors(self.numbered.model, read)
        sources |= {
            first: tensor
            for name, tensor in network.own_tensors.items()
            if tensor is not None and (first := self._names[name]) in sources
        }
        values = {name: sources[name] for name in self._counters}
        for part in self._whole:
            weight = sources[part.source]
            values[part.name] = (
                weight if part.mask is None else masked_product(weight, part.mask, self._memory, part.name)
            )
        for part in self._statistics:
            values[part.name] = sources[part.source][part.index]
        weights = [sources[name] for name in self._sources]
        gathered = _Gather.apply(self._gathered, self._places, *weights)  # type: ignore[no-untyped-call]
        values |= {part.name: tensor for part, tensor in zip(self._gathered, gathered, strict=True)}
        outputs: dict[str, Tensor] = functional_call(self.module, values, (x,))
        if self.module.training:
            with torch.no_grad():
                for part in self._written:
                    sources[part.source][part.index] = values[part.name]
        return outputs

    def fits(self, networks: TaskNetworks, task: str, x: Any) -> bool:
        """Return whether the slice gives the outputs of the masked network, as far as is not known yet.

        It runs once for every slice, and once for every shape of the inputs of the model.
        """
        leaf = ((tuple(v.shape), v.dtype) if isinstance(v, Tensor) else repr(v) for v in leaves(x))
        key = self.tasks, tuple(leaf)
        known = self.numbered.fitting.get(key)
        if known is None or (known and not self._verified):
            try:
                known = self._agrees(networks, task, x)
            except Exception:  # a check in the graph, or a shape that does not fit
                known = False
            self.numbered.fitting[key] = known
            self._verified = self._verified or known
        return known

    def _agrees(self, networks: TaskNetworks, task: str, x: Any) -> bool:
        """Return whether outputs in eval mode agree."""
        model = self.numbered.model
        device, dtype = placement(model)
        (x,) = Inputs((x,)).to(dtype=dtype, device=device).args  # mixed precision casts inputs, and weights in autocast
        with torch.no_grad(), fork_rng(), eval_mode(model), eval_mode(self.module):
            found = tensors(self(networks[task], x))
            with networks.swapped(model, task):
                expected = tensors(type(model).forward(model, x, self.tasks))
        return all(
            bool((a - b).abs().max() <= _TOLERANCES.get(b.dtype, 0.03) * b.abs().max())
            for a, b in zip(found, expected, strict=True)
        )


class _Gather(torch.autograd.Function):
    """Entries of parameters, whose gradients go back to the places that the entries came from.

    Every parameter gets a gradient, zero where no entry was taken, as from a product with a mask.
    """

    @staticmethod
    def forward(
        ctx: Any, parts: Sequence[WeightEntries], places: Sequence[int], *sources: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.parts, ctx.places = parts, places
        ctx.like = [(source.shape, source.dtype, source.device) for source in sources]
        ctx.set_materialize_grads(False)
        found = []
        for part, place in zip(parts, places, strict=True):
            assert part.index is not None
            entries = sources[place].reshape(-1).index_select(0, part.index).view(part.shape)
            found.append(entries if part.mask is None else entries.mul_(part.mask))
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        whole: list[Tensor | None] = [
            torch.zeros(shape, dtype=dtype, device=device) if needed else None
            for needed, (shape, dtype, device) in zip(ctx.needs_input_grad[2:], ctx.like, strict=True)
        ]
        for part, place, gradient in zip(ctx.parts, ctx.places, gradients, strict=True):
            target = whole[place]
            if target is not None and gradient is not None:
                entries = gradient if part.mask is None else gradient * part.mask
                target.view(-1).index_add_(0, part.index, entries.reshape(-1))
        return None, None, *whole
