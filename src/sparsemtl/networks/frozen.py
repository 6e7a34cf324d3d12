"""Networks that nothing trains any more."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from torch import nn

from sparsemtl.backbones.stages import stages_of
from sparsemtl.backbones.stemmed import DESCRIPTIONS


class Frozen(nn.Module):
    """A network as it is: its weights get no gradient, and dropout and norms stay in eval mode.

    Args:
        network: any module; it is not copied. What it tells of its features (`out_features`, `stride`) and its stages
            is told on.

    Example:
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
        """The stages of the network, each as frozen as the whole, also if it is put into another module.

        Raises:
            ParameterError: if the network does not tell where it can be cut.
        """
        return {name: Frozen(stage) for name, stage in stages_of(self.network).items()}

    def forward(self, x: Any) -> Any:
        """What the network gives."""
        return self.network(x)


def without_parameters(network: nn.Module) -> nn.Module:
    """A copy whose weights are buffers: saved and moved with a model, but no parameters of it."""
    copied = deepcopy(network)
    for module in copied.modules():
        for name, parameter in list(module._parameters.items()):
            del module._parameters[name]
            module.register_buffer(name, None if parameter is None else parameter.detach())
    return copied
