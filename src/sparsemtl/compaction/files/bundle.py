"""Bundles: the networks of several tasks in one file that stores what they share once.

A bundle is a safetensors file without code. Equal tensors stand in it once. A weight that compaction cut from a weight
of the model is a recipe: channels that are left and zeros as bits, and factors of folded norms. Only recipes that give
the weight exactly are written; any other weight is stored whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsemtl.compaction.copies import copied
from sparsemtl.compaction.files.exporting import compared, example_of, program_of
from sparsemtl.compaction.files.fixed_axes import warn_of_fixed_axes
from sparsemtl.compaction.files.graph_file import described, tensors_of
from sparsemtl.compaction.files.loading import BUNDLE, BUNDLE_VERSION, load_network
from sparsemtl.compaction.files.recipes import Recipe, recipe_for
from sparsemtl.compaction.graph.network import WeightCut
from sparsemtl.errors import CompactionError, ParameterError
from sparsemtl.networks.modes import eval_mode
from sparsemtl.networks.swap import unwrapped
from sparsemtl.storage.bits import pack
from sparsemtl.storage.files import write_tensors
from sparsemtl.storage.text_files import replacing


@dataclass(frozen=True)
class Bundle:
    """File with the networks of several tasks.

    Attributes:
        path: the file.
        tasks: names of the tasks.
        bytes: size of the file.
        separate: bytes of the networks' tensors in files of their own.
        difference: largest difference of the outputs of the networks in the file, as a fraction of their spread.
    """

    path: Path
    tasks: tuple[str, ...]
    bytes: int
    separate: int
    difference: float


def save_bundle(
    networks: Mapping[str, nn.Module],
    path: str | Path,
    *,
    model: nn.Module | None = None,
    example_inputs: Any = None,
    axes: Collection[int] = (0,),
) -> Bundle:
    """Write the networks of several tasks to one file that stores what they share once, and compare their outputs.

    `sm.load_network(path, task=...)` returns the network of a task, with the very weights of the given one. The file
    is safetensors without code, as `sm.export(network, "name.safetensors")` writes it for one network.

    Args:
        networks: task -> its network, such as `trainer.compact(task)`. They are not changed.
        path: the file, by custom `NAME.safetensors`; an old one is replaced once the new one is complete.
        model: the model that the networks were compacted from, whose weights they share; without it only tensors that
            are equal are stored once.
        example_inputs: a batch that the networks read, as for `sm.export`.
        axes: axes of the inputs whose length may differ from the example's, as for `sm.export`.

    Raises:
        ParameterError: if there is no network, or one does not run on the example.
        CompactionError: if a network cannot be exported.

    Examples:
        >>> model = sm.SharedBottom(nn.Linear(4, 8), [sm.Regression("a"), sm.Regression("b")])
        >>> networks = {task: sm.compact(model, task=task) for task in model.tasks}
        >>> sm.save_bundle(networks, "both.safetensors", model=model).tasks
        ('a', 'b')
        >>> sm.load_network("both.safetensors", task="b")(torch.ones(3, 4)).shape
        torch.Size([3, 1])
    """
    if not networks:
        raise ParameterError("`networks` is empty: a bundle needs the network of at least one task.")
    path = Path(path)
    own = {str(task): copied(network).to("cpu").eval() for task, network in networks.items()}
    inputs = {task: example_of(network, example_inputs) for task, network in own.items()}
    packing = _Packing(_tensors(model))
    programs = {}
    for task, network in own.items():
        with eval_mode(network), torch.no_grad():
            programs[task] = program_of(network, inputs[task], axes)
            warn_of_fixed_axes(programs[task], network, inputs[task], axes, path)
        report = getattr(network, "report", None)
        cuts = getattr(report, "cuts", {})  # reports that older versions pickled have none
        for name, tensor in tensors_of(programs[task]).items():
            packing.add(task, name, tensor.detach(), cuts)
    with replacing(path) as aside:
        content = packing.packed()
        for task, program in programs.items():
            names = list(inputs[task].named(own[task]))
            content["tasks"][task]["network"] = described(program, names)
        header = {"kind": BUNDLE, "version": str(BUNDLE_VERSION), "bundle": json.dumps(content, allow_nan=False)}
        write_tensors(aside, packing.stored, header)
        errors = [_difference(task, own[task], inputs[task], aside, path) for task in own]
    separate = sum(tensor.nbytes for program in programs.values() for tensor in tensors_of(program).values())
    return Bundle(path, tuple(own), path.stat().st_size, separate, max(errors))


def _tensors(model: nn.Module | None) -> dict[str, Tensor]:
    """Return parameters and buffers of a model by every name."""
    if model is None:
        return {}
    owner = unwrapped(model)
    owned = (*owner.named_parameters(remove_duplicate=False), *owner.named_buffers(remove_duplicate=False))
    return {name: tensor.detach().cpu() for name, tensor in owned}


def _difference(task: str, network: nn.Module, inputs: Any, aside: Path, path: Path) -> float:
    """Return the difference of the outputs of a task's network in a file, after a comparison of its tensors."""
    module = load_network(aside, task=task)
    found = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    expected = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    for name, tensor in expected.items():
        if name in found and not torch.equal(found[name], tensor):
            raise CompactionError(f"{path} was not written: task {task!r}, {name!r} would differ from the network's.")
    with eval_mode(network), torch.no_grad():
        return compared(network, lambda given: given.call(module), inputs, path)[0]


@dataclass
class _Weight:
    """Tensor of a task's network, and the recipe for it."""

    task: str
    name: str
    tensor: Tensor
    base: str
    recipe: Recipe | None


@dataclass
class _Packing:
    """Tensors of all tasks on their way into a file.

    Attributes:
        model: tensors of the model by name.
        stored: key -> tensor in the file.
    """

    model: Mapping[str, Tensor]
    stored: dict[str, Tensor] = field(default_factory=dict)
    _keys: dict[tuple[Any, ...], str] = field(default_factory=dict)
    _weights: list[_Weight] = field(default_factory=list)

    def add(self, task: str, name: str, tensor: Tensor, cuts: Mapping[str, WeightCut]) -> None:
        """Add a tensor of a task's network."""
        layer, _, own = name.rpartition(".")
        cut = cuts.get(layer, WeightCut()) if own == "weight" else WeightCut()
        base = cut.source or name
        recipe = recipe_for(tensor, self.model[base], cut) if base in self.model else None
        self._weights.append(_Weight(task, name, tensor, base, recipe))

    def packed(self) -> dict[str, Any]:
        """Store all tensors, and return where each of them is."""
        tasks: dict[str, Any] = {each.task: {"tensors": {}} for each in self._weights}
        groups: dict[tuple[Any, ...], list[_Weight]] = {}
        for weight in self._weights:
            turned = weight.recipe is not None and weight.recipe.base.shape != self.model[weight.base].shape
            groups.setdefault((weight.base, turned, weight.recipe is None), []).append(weight)
        for weights in groups.values():
            for weight, place in zip(weights, self._places(weights), strict=True):
                tasks[weight.task]["tensors"][weight.name] = place
        return {"tasks": tasks}

    def _places(self, weights: list[_Weight]) -> Iterable[Any]:
        """Store weights of one base, by recipes if that takes fewer bytes, and return their places."""
        whole = {_content(each.tensor): each.tensor.nbytes for each in weights}
        recipes = [each.recipe for each in weights if each.recipe is not None]
        if len(recipes) == len(weights):
            smaller = _on_common_base(recipes)
            extra = {id(t): t.nbytes for recipe in smaller for t in _parts(recipe)}
            if smaller[0].base.nbytes + sum(extra.values()) < sum(whole.values()):
                return [self._recipe(recipe) for recipe in smaller]
        return [self._put(each.tensor) for each in weights]

    def _recipe(self, recipe: Recipe) -> dict[str, Any]:
        masks = [
            None if index is None else torch.zeros(size, dtype=torch.bool).index_fill(0, index, True)
            for size, index in zip(recipe.base.shape, recipe.left, strict=False)
        ]
        return {
            "base": self._put(recipe.base),
            "left": [mask if mask is None else self._put(pack(mask)) for mask in masks],
            "axis": recipe.axis,
            "factor": self._put(recipe.factor),
            "dtype": str(recipe.dtype).removeprefix("torch."),
            "kept": self._put(recipe.kept),
            "positions": self._put(recipe.positions),
            "values": self._put(recipe.values),
        }

    def _put(self, tensor: Tensor | None) -> str | None:
        """Store a tensor once, and return its key; None for no tensor."""
        if tensor is None:
            return None
        content = _content(tensor)
        if content not in self._keys:
            self._keys[content] = str(len(self.stored))
            self.stored[self._keys[content]] = tensor
        return self._keys[content]


def _content(tensor: Tensor) -> tuple[Any, ...]:
    """Return what is equal for tensors that are equal bit for bit."""
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return tensor.dtype, tuple(tensor.shape), hashlib.sha256(raw.numpy().data).digest()


def _parts(recipe: Recipe) -> list[Tensor]:
    parts = (recipe.factor, recipe.kept, recipe.positions, recipe.values)
    return [tensor for tensor in parts if tensor is not None]


def _on_common_base(recipes: list[Recipe]) -> list[Recipe]:
    """Return recipes on the part of their base that any of them reads."""
    base = recipes[0].base
    lefts: list[list[Tensor | None]] = []
    for axis in (0, 1):
        given = [recipe.left[axis] for recipe in recipes]
        indices = [index for index in given if index is not None]
        if len(indices) < len(given):
            lefts.append(given)
            continue
        read = torch.cat(indices).unique()
        base = base.index_select(axis, read)
        lefts.append([None if len(index) == len(read) else torch.searchsorted(read, index) for index in indices])
    return [recipe.on(base, (rows, columns)) for recipe, rows, columns in zip(recipes, *lefts, strict=True)]
