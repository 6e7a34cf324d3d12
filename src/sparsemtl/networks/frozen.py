"""Frozen networks."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from torch import nn

from sparsemtl.backbones.stages import stages_of
from sparsemtl.backbones.stemmed import DESCRIPTIONS


class Frozen(nn.Module):
    """Network whose weights get no gradient, and whose dropout and norms stay in eval mode.

    Args:
        network: any module; it is not copied. Its `out_features`, `stride` and stages are those of the frozen network.

    Examples:
        >>> frozen = Frozen(nn.Linear(3, 2)).train()
        >>> frozen.network.training, any(p.requires_grad for p in frozen.parameters())
        (False, False)
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        for name in DESCRIPTIONS:
            if hasattr(network, name):
                setattr(self, name, getattr(network, name))
        self.train(False)

    def train(self, mode: bool = True) -> Frozen:
        """Stay in eval mode."""
        super().train(False)
        return self

    def stages(self) -> dict[str, nn.Module]:
        """Return the stages of the network, each frozen, also when it is put into another module.

        Raises:
            ParameterError: if the network declares no stages.
        """
        return {name: Frozen(stage) for name, stage in stages_of(self.network).items()}

    def forward(self, x: Any) -> Any:
        """Return the outputs of the network."""
        return self.network(x)


def without_parameters(network: nn.Module) -> nn.Module:
    """Return a copy whose weights are buffers: saved and moved with a model, but not trained."""
    copied = deepcopy(network)
    for module in copied.modules():
        for name, parameter in list(module._parameters.items()):
            del module._parameters[name]
            module.register_buffer(name, None if parameter is None else parameter.detach())
    return copied
