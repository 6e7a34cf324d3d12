"""Task routing: a fixed random sub-network of units per task."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import torch
from typing_extensions import Doc, Unpack

from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.networks.randomness import fork_rng, run_seed
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.registry.parameters import Fraction, validated
from sparsemtl.sharing.masking import MASK_FIGURES, mask_metrics, mask_summary
from sparsemtl.sharing.sharing import Sharing
from sparsemtl.sharing.units import RoutingOptions, deal, find_units, networks_of_all_units, routed
from sparsemtl.tasks.batches import Loaders


class TaskRoutingSharing(Sharing):
    """TR: every task uses a fixed random subset of the units of each layer (Strezoski et al., ICCV 2019).

    A unit is an output channel of a convolution, or of a linear layer outside of attention. Behind the layer and its
    norm, before the activation, task t computes with M_t * z, where M_t has ceil(keep * C) ones of C; its gradient
    reaches no other unit. Masks are drawn once, for every task on its own, and are not trained.

    Differences from the paper:
        - The paper trains on one task per batch, drawn at random: `update: random_one`. By default every batch trains
          all tasks, as in Pascal et al. (AAAI 2021), who compare with it.
        - The authors' code names the fraction of units that are *dropped*, by default 0.5.
        - The paper masks convolutions. Here linear layers have units too, but for those inside attention, whose units
          are heads: `only` names other layers. Layers of heads are never masked.
        - Inputs that a residual connection passes by are not masked, as in the published codes.

    Examples:
        >>> tasks = [Classification("shape", 2), Classification("colour", 3)]
        >>> layers = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        >>> model, x = SharedBottom(nn.Sequential(*layers), tasks), torch.rand(6, 1, 6, 6)
        >>> labels = {"shape": torch.tensor([0, 1] * 3), "colour": torch.tensor([0, 1, 2] * 2)}
        >>> _ = model(x)  # heads learn their widths
        >>> sharing = TaskRoutingSharing(keep=0.5, seed=0)
        >>> networks = sharing.begin_epoch(0, model, sharing.start(model), [(x, labels)])
        >>> networks["shape"].output_factors["encoder.1"].sum()
        tensor(4)
        >>> compact(model, networks, task="shape", example_inputs=x).report.layer("encoder.0").outputs
        (8, 4)
    """

    figures = MASK_FIGURES

    @validated
    def __init__(
        self,
        *,
        keep: Annotated[
            Fraction, Doc("Fraction of the units of each layer that a task uses, in (0, 1]; at least one unit.")
        ] = 0.5,
        cover: Annotated[
            bool,
            Doc("Give every unit to at least one task, as `maximum-roaming` does."),
        ] = False,
        **options: Unpack[RoutingOptions],
    ) -> None:
        self.keep = keep
        self.cover = cover
        self.seed = options["seed"]
        self.update = options["update"]
        self.bn = options["bn"]
        self._options = options

    def start(self, model: MultiTaskModel) -> TaskNetworks:
        """Return networks in which every task uses all units.

        Raises:
            MaskError: if tasks share no layer with units.
            ParameterError: if `only` or `exclude` names nothing.
        """
        return networks_of_all_units(model, type(self).__name__, self._options)

    def begin_epoch(
        self, epoch: int, model: MultiTaskModel, networks: TaskNetworks, loaders: Loaders
    ) -> TaskNetworks | None:
        """Draw the units before the first epoch."""
        if epoch > 0:
            return None
        with fork_rng():
            layers = find_units(model, loaders, self._options)
        draw = torch.Generator().manual_seed(run_seed(self.seed))
        dealt = {layer.name: deal(layer, list(networks), self.keep, draw, cover=self.cover) for layer in layers}
        return routed(model, networks, layers, dealt)

    def metrics(self, model: MultiTaskModel, networks: TaskNetworks) -> Iterator[tuple[str, str, float]]:
        """Yield density per task and the tasks' overlap."""
        return mask_metrics(networks)

    def summary(self, model: MultiTaskModel, networks: TaskNetworks) -> dict[str, Any]:
        """Return the density per task."""
        return mask_summary(networks)
