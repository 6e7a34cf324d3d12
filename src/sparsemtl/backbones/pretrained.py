"""Weights trained elsewhere, read from files without unpickling anything but tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor, nn

from sparsemtl.errors import CheckpointError, ParameterError
from sparsemtl.storage.files import read_tensors
from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.storage.tensor_checks import check_tensor

_PREFIXES = ("", "backbone.", "encoder.", "encoder.network.")
"""Prefixes of an encoder's weights: in a classifier, in a segmentation network, in the model of a run, and in that of a
run with a frozen encoder."""


def load_torchvision(
    model: nn.Module, source: str | Path | Mapping[str, Tensor], *, fresh: str | Sequence[str] = ()
) -> None:
    """Load a torchvision state dict into a backbone or a head.

    A backbone reads the weights of a classifier without its last layers (`fc.*`, `classifier.*`; a VGG reads as many of
    these as it has), or `backbone.*` of a segmentation network. A head (`DeepLabV3Head`, `FCNHead`) reads
    `classifier.*` of a segmentation network. An encoder also reads the encoder of a model that a run of sparsemtl
    wrote, frozen or not.

    Parts without a counterpart in torchvision keep their weights if the file lacks them: a `SegNet` reads its encoder
    from a `vgg16_bn` and keeps its own decoder, which is yet to be trained.

    Files from before PyTorch 0.4.1 lack the counts of batches (`num_batches_tracked`). The counts of the model stay.

    Args:
        model: module with torchvision's names of weights: `resnet18`, `resnet34`, `resnet50`, dilated or not; `vgg11`,
            `vgg13`, `vgg16`; `SegNet` (from `vgg16_bn`); `DeepLabV3Head`, `FCNHead`.
        source: state dict, or a file of one: `.safetensors`, or written by `torch.save`.
        fresh: names of modules or parameters that keep their weights: "classifier.4" is the last layer of the heads,
            whose shape depends on the number of classes.

    Raises:
        CheckpointError: if the file cannot be read, if names, shapes or dtypes differ from the model's, or if weights
            are not finite.
        ParameterError: if the model has no module or parameter of a name in `fresh`.

    Examples:
        >>> encoder = resnet18()
        >>> load_torchvision(encoder, {**resnet18().state_dict(), "fc.weight": torch.zeros(1000, 512)})
    """
    where = "the state dict" if isinstance(source, Mapping) else str(source)
    given = source if isinstance(source, Mapping) else _read(Path(source))
    if odd := [name for name in given if not isinstance(name, str)]:
        raise CheckpointError(f"{where}: expected names of parameters, found {odd[0]!r}. Is it a state dict?")
    wrong = [name for name, value in given.items() if not isinstance(value, Tensor)]
    if wrong:
        raise CheckpointError(
            f"{where}: {wrong[0]!r} is a {type(given[wrong[0]]).__name__}, not a tensor. Give the state dict "
            "itself: a mapping from parameter names to tensors, not a checkpoint that holds one under a key."
        )
    own = model.state_dict()
    part = _part(given, model, own)
    kept = _kept(model, own, part, fresh)
    state = {name: tensor for name, tensor in part.items() if name not in kept}
    counts = {n: t for n, t in own.items() if n.endswith("num_batches_tracked") and n not in state}
    state = {**kept, **counts, **state}
    _check(state, own, where)
    model.load_state_dict(state)


def _part(given: Mapping[str, Tensor], model: nn.Module, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the entries of the model, by the model's names."""
    parts = [{n.removeprefix(prefix): t for n, t in given.items() if n.startswith(prefix)} for prefix in _PREFIXES]
    part = max(parts, key=lambda part: len(own.keys() & part.keys()))
    others = {"backbone", "classifier", "aux_classifier", "fc"} - {name.partition(".")[0] for name in own}
    others.update(getattr(model, "left_out_of_torchvision", ()))
    return {name: tensor for name, tensor in part.items() if not any(_within(name, other) for other in others)}


def _kept(
    model: nn.Module, own: Mapping[str, Tensor], given: Mapping[str, Tensor], fresh: str | Sequence[str]
) -> dict[str, Tensor]:
    """Return the model's entries that stay: those in `fresh`, and those that neither torchvision nor the file has."""
    parts = [fresh] if isinstance(fresh, str) else list(fresh)
    for part in parts:
        if not any(_within(name, part) for name in own):
            raise ParameterError(f"fresh: {type(model).__name__} has no module or parameter {part!r}.")
    absent = getattr(model, "not_in_torchvision", ())
    parts += [part for part in absent if not any(_within(name, part) for name in given)]
    return {name: tensor for name, tensor in own.items() if any(_within(name, part) for part in parts)}


def _within(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")


def _read(path: Path) -> Mapping[str, Tensor]:
    if path.is_dir():
        _refuse_folder(path)
    if path.suffix == ".safetensors":
        tensors, header = read_tensors(path)
        if "tree" in header:
            _refuse_checkpoint(path)
        return tensors
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling other files may raise any exception
        raise CheckpointError(f"{path} is not a file of tensors that torch.save wrote: {_first_line(error)}") from None
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state dict.")
    return content


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0]


def _refuse_folder(path: Path) -> NoReturn:
    weights = RunFolder(path).model
    hint = (
        f"its weights are {weights}" if weights.is_file() else f"it has no {weights.name}, as the folder of a run has"
    )
    raise CheckpointError(f"{path} is a folder; {hint}.")


def _refuse_checkpoint(path: Path) -> NoReturn:
    model = RunFolder(path.parent.parent).model.name
    raise CheckpointError(
        f"{path} is a checkpoint, for resuming a run. Its model is in {model} in the run's folder, once the run has "
        "ended."
    )


def _check(state: Mapping[str, Tensor], own: Mapping[str, Tensor], where: str) -> None:
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    if missing or unexpected:
        raise CheckpointError(
            f"{where} does not fit the model: {_listed(missing)} missing, {_listed(unexpected)} unexpected. "
            "Is it the same architecture?"
        )
    for name, tensor in own.items():
        if state[name].shape != tensor.shape:
            raise CheckpointError(
                f"{where}: {name!r} has shape {tuple(state[name].shape)}, the model's {tuple(tensor.shape)}. "
                "torchvision's networks have stem='imagenet', width=64 and 3 input channels, VGG's fc=[4096, 4096] and "
                "positions=7, heads 21 classes; `fresh` names parts to leave out."
            )
        if tensor.is_floating_point():  # counts of batches may be any number
            check_tensor(state[name], tensor, f"{where}: {name!r}")


def _listed(names: list[str]) -> str:
    if not names:
        return "nothing"
    return ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
