"""Stages of encoders, at whose ends an encoder can be cut.

An encoder declares its stages by one of two members. A member counts only in the class that defines `forward`, so that
a subclass with another `forward` is not cut in the wrong places:

- `sequence`: the `nn.Sequential` that the encoder consists of;
- `stages()`: name -> module, the modules that the encoder applies one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from sparsemtl.backbones.activations import PLAIN_ACTIVATIONS
from sparsemtl.backbones.stemmed import Stemmed
from sparsemtl.errors import ParameterError, unknown_name

ACTIVATIONS = (*PLAIN_ACTIVATIONS, nn.PReLU)
"""Activations behind which a stack of layers may be cut."""


class Cut(nn.Sequential):
    """Consecutive parts of an encoder that are not one module of it.

    A call runs the parts directly, so that hooks and graphs have the modules of the encoder and no others.
    """

    def __call__(self, x: Any) -> Any:
        """Apply the parts one after the other."""
        for part in self:
            x = part(x)
        return x


def stages_of(encoder: nn.Module, after: Sequence[str] | None = None) -> dict[str, nn.Module]:
    """Return the stages of an encoder in order, each under the name of its last part.

    Args:
        encoder: a stack of layers, or an encoder that declares its stages.
        after: names of the parts behind which to cut. By default a stack is cut behind every activation, another
            encoder behind every declared stage.

    Raises:
        ParameterError: if the encoder declares no stages, or has no part of such a name.

    Examples:
        >>> encoder = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 8), nn.ReLU())
        >>> list(stages_of(encoder)), list(stages_of(encoder, after=["2"]))
        (['1', '4'], ['2', '4'])
    """
    parts = _parts(encoder)
    cuts = _default_cuts(encoder, parts) if after is None else set(after)
    for name in cuts:
        if name not in parts:
            raise ParameterError(f"{type(encoder).__name__}: {unknown_name('part', name, parts)}")
    stages: dict[str, nn.Module] = {}
    stage: list[nn.Module] = []
    last = next(reversed(parts))
    for name, part in parts.items():
        stage.append(part)
        if name in cuts or name == last:
            stages[name] = stage[0] if len(stage) == 1 else Cut(*stage)
            stage = []
    return stages


def _default_cuts(encoder: nn.Module, parts: Mapping[str, nn.Module]) -> set[str]:
    body = encoder.body if isinstance(encoder, Stemmed) else encoder
    stacked = sequence_of(body) is not None
    return {name for name, part in parts.items() if not stacked or type(part) in ACTIVATIONS}


def _parts(encoder: nn.Module) -> dict[str, nn.Module]:
    """Return the smallest modules that the encoder applies one after the other, by name, the first with the stem."""
    if isinstance(encoder, Stemmed):
        (name, first), *others = _parts(encoder.body).items()
        return {name: Cut(encoder.stem, first), **dict(others)}
    sequence = sequence_of(encoder)
    if sequence is not None and len(sequence):
        return dict(_named_layers(sequence))
    if _beside_forward(type(encoder), "stages"):
        stages: dict[str, nn.Module] = encoder.stages()  # type: ignore[operator]
        return stages
    raise ParameterError(
        f"{type(encoder).__name__} declares no stages. Make it an nn.Sequential, or give it a method "
        "`stages()` that returns name -> module, the modules that its `forward` applies one after the other."
    )


def _named_layers(sequence: nn.Sequential, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    for name, child in zip(sequence._modules, sequence, strict=True):
        inner = sequence_of(child)
        if inner is not None and len(inner):
            yield from _named_layers(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child


def sequence_of(module: nn.Module) -> nn.Sequential | None:
    """Return the `nn.Sequential` that a module consists of, or None."""
    if isinstance(module, nn.Sequential):
        return module if type(module).forward is nn.Sequential.forward else None
    return getattr(module, "sequence", None) if _beside_forward(type(module), "sequence") else None


def _beside_forward(kind: type[nn.Module], member: str) -> bool:
    """Return whether the class that defines `forward` also defines this member."""
    return member in next((vars(owner) for owner in kind.__mro__ if "forward" in vars(owner)), {})
