"""Which layers and operations of torch are of one kind."""

from __future__ import annotations

from torch import fx, nn

from sparsemtl.backbones.activations import PLAIN_ACTIVATIONS
from sparsemtl.compaction.calls import operation

ACTIVATIONS: tuple[type[nn.Module], ...] = (*PLAIN_ACTIVATIONS, nn.Threshold)
"""Layers without parameters that map every number for itself."""

_ACTIVATIONS = (
    "celu elu gelu hardshrink hardsigmoid hardswish hardtanh leaky_relu logsigmoid mish relu relu6 selu silu sigmoid "
    "softplus softshrink softsign tanh tanhshrink threshold"
)
_UNARY = (
    "abs ceil clamp clamp_max clamp_min clone contiguous cos detach erf exp expm1 floor log log1p neg "
    "reciprocal round rsqrt sign sin sqrt square"
)
_BINARY = "add sub rsub mul div pow maximum minimum"

ELEMENTWISE = frozenset(f"{_ACTIVATIONS} {_UNARY} {_BINARY}".split())
"""Operations that map numbers at one place to a number at that place."""

IDENTITIES: tuple[type[nn.Module], ...] = (
    nn.AlphaDropout,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.FeatureAlphaDropout,
    nn.Identity,
)
"""Layers that give back what they read in eval mode."""

UNCHANGED = frozenset(["positive", "requires_grad"])
"""Operations that return what they read, where no gradient is recorded."""

DROPOUTS = frozenset(["alpha_dropout", "dropout", "dropout1d", "dropout2d", "dropout3d", "feature_alpha_dropout"])
"""Operations that do if they are called with `training=False`."""

CONVOLUTIONS: dict[type[nn.Module], int] = {
    nn.Conv1d: 3,
    nn.Conv2d: 4,
    nn.Conv3d: 5,
    nn.ConvTranspose1d: 3,
    nn.ConvTranspose2d: 4,
    nn.ConvTranspose3d: 5,
}
"""Class -> axes of the batches that it reads."""

NORMS: dict[type[nn.Module], int | None] = {
    nn.BatchNorm1d: None,
    nn.BatchNorm2d: 4,
    nn.BatchNorm3d: 5,
    nn.SyncBatchNorm: None,
}
"""Class -> axes of the batches that it reads; None if it reads batches of several kinds."""


def torch_class(module: nn.Module | None) -> type[nn.Module]:
    """The class of torch's whose forward a module runs; its own, if there is none."""
    own = type(module) if module is not None else nn.Module
    kinds = (kind for kind in own.__mro__ if kind.__module__.startswith("torch.") and issubclass(kind, nn.Module))
    return next((kind for kind in kinds if kind.forward is own.forward), own)


def is_elementwise(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether a node maps numbers at one place to a number at that place."""
    return torch_class(module) in ACTIVATIONS if node.op == "call_module" else operation(node) in ELEMENTWISE
