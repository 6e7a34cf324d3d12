"""Plain hard sharing: every task computes with and trains all shared weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import Unpack

from sparsemtl.networks.norms import own_statistics
from sparsemtl.networks.task_networks import TaskNetworks, dense_networks
from sparsemtl.registry.parameters import validated
from sparsemtl.sharing.sharing import DenseOptions, Sharing

if TYPE_CHECKING:
    from sparsemtl.networks.model import MultiTaskModel


class DenseSharing(Sharing):
    """Every task uses every shared weight: plain multi-task learning, or single-task learning with `single-task`."""

    @validated
    def __init__(self, **options: Unpack[DenseOptions]) -> None:
        self.update = options["update"]
        self.bn = options["bn"]

    def start(self, model: MultiTaskModel) -> TaskNetworks:
        """Return networks without masks."""
        return dense_networks(model, model.tasks, own_statistics(model, self.bn))
