"""Files of masks and task networks: one bit per entry of a mask, floats for the rest."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsemtl.errors import CheckpointError, MaskError
from sparsemtl.networks.mask_description import LeftOut
from sparsemtl.networks.masks import TaskMasks
from sparsemtl.networks.task_networks import LATER_PARTS, TaskNetwork, TaskNetworks
from sparsemtl.storage.bits import pack, unpack
from sparsemtl.storage.files import read_tensors, read_tree, write_tensors, write_tree

MASKS = "sparsemtl-masks-1"
NETWORKS = "sparsemtl-networks-1"
"""Formats, by the name that stands in the files."""


def save_masks(masks: TaskMasks, path: str | Path) -> None:
    """Write masks; see `TaskMasks.save`."""
    packed = {f"{task}/{name}": pack(m) for task, mask in masks.items() for name, m in mask.items()}
    header = {
        "format": MASKS,
        "model": masks.model,
        "method": masks.method,
        "tasks": json.dumps(masks.tasks),
        "shapes": json.dumps({name: list(shape) for name, shape in masks.shapes().items()}),
    }
    if masks.left_out is not None:
        header["left_out"] = json.dumps(_listed(masks.left_out))
    write_tensors(path, packed, header)


def load_masks(path: str | Path, model: nn.Module | None = None) -> TaskMasks:
    """Read masks; see `TaskMasks.load`."""
    packed, header = read_tensors(path, own=True)
    if header.get("format") != MASKS:
        raise MaskError(f"{path} is not a mask file: expected format {MASKS!r}, found {header.get('format')!r}.")
    tasks, shapes = _layout(path, header)
    masks = TaskMasks(
        {t: {n: _unpacked(path, packed, t, n, shape) for n, shape in shapes.items()} for t in tasks},
        model=header.get("model", ""),
        method=header.get("method", ""),
        left_out=_left_out(path, json.loads, header["left_out"]) if "left_out" in header else None,
    )
    if model is not None:
        masks.check(model)
    return masks


def _layout(path: str | Path, header: Mapping[str, str]) -> tuple[list[str], dict[str, torch.Size]]:
    """Return the tasks and the shapes of the parameters that the header of a file names."""
    try:
        tasks = [str(task) for task in json.loads(header["tasks"])]
        shapes = {str(name): torch.Size(shape) for name, shape in json.loads(header["shapes"]).items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise MaskError(f"{path} is damaged: its header does not list tasks and shapes ({error!r}).") from None
    return tasks, shapes


def _listed(left_out: Mapping[str, LeftOut]) -> dict[str, list[Any]]:
    return {name: [list(shape), why] for name, (shape, why) in left_out.items()}


def _left_out(path: str | Path, read: Callable[[Any], Any], listed: Any) -> dict[str, LeftOut]:
    """Return the parameters that the masks of a file leave out.

    Args:
        path: the file.
        read: function of what the file holds that returns the list.
        listed: what the file holds.
    """
    try:
        return {str(name): LeftOut(torch.Size(shape), str(why)) for name, (shape, why) in read(listed).items()}
    except (TypeError, ValueError, AttributeError) as error:
        raise MaskError(f"{path} is damaged: its header does not list what is left out ({error!r}).") from None


def _unpacked(path: str | Path, packed: Mapping[str, Tensor], task: str, name: str, shape: torch.Size) -> Tensor:
    """Return one mask of a file."""
    where = f"{path} is damaged: task {task!r}, parameter {name!r}"
    if f"{task}/{name}" not in packed:
        raise MaskError(f"{where} is missing.")
    try:
        return unpack(packed[f"{task}/{name}"], shape)
    except MaskError as error:
        raise MaskError(f"{where}: {error}") from None


def save_networks(networks: TaskNetworks, path: str | Path) -> None:
    """Write task networks; see `TaskNetworks.save`."""
    header: dict[str, Any] = {"format": NETWORKS, "model": networks.model, "method": networks.method}
    if networks.left_out is not None:
        header["left_out"] = _listed(networks.left_out)
    if networks.common:
        header["common"] = True
    write_tree(Path(path), {**header, "strict": networks.strict, "tasks": networks.state_dict()})


def load_networks(path: str | Path, model: nn.Module | None = None) -> TaskNetworks:
    """Read task networks; see `TaskNetworks.load`."""
    tree = read_tree(Path(path))
    if not isinstance(tree, Mapping) or tree.get("format") != NETWORKS:
        raise CheckpointError(f"{path} is not a file of task networks: expected format {NETWORKS!r}.")
    if not isinstance(tree.get("tasks"), Mapping) or not tree["tasks"]:
        raise CheckpointError(f"{path} is damaged: it names no task.")
    networks = {task: _read_network(parts, f"{path}: task {task!r}") for task, parts in tree["tasks"].items()}
    made = TaskNetworks(
        networks,
        strict=bool(tree.get("strict", True)),
        model=str(tree.get("model", "")),
        method=str(tree.get("method", "")),
        left_out=_left_out(path, dict, tree["left_out"]) if "left_out" in tree else None,
        common=tree.get("common") is True,
    )
    if model is not None:
        made.check(model)
    return made


def _read_network(parts: Any, where: str) -> TaskNetwork:
    names = {part.name for part in fields(TaskNetwork)}
    if not isinstance(parts, Mapping) or set(parts) | set(LATER_PARTS) != names:
        raise CheckpointError(f"{where} is damaged: expected the parts {sorted(names)}, found {parts!r:.80}.")
    for part in parts:
        for name, tensor in parts[part].items():
            if not isinstance(tensor, Tensor) and not (tensor is None and part == "own_tensors"):
                raise CheckpointError(f"{where}, {part}.{name} is damaged: expected a tensor, found {tensor!r}.")
    return TaskNetwork(**parts)
