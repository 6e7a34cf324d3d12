"""Maximum roaming: sub-networks of units that move until every unit has served every task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import ceil, floor
from typing import Annotated, Any

import torch
from torch import Tensor
from typing_extensions import Doc, Unpack

from sparsemtl.errors import ParameterError
from sparsemtl.networks.declarations import Figure
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.networks.randomness import fork_rng, run_seed
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.registry.parameters import Fraction, Positive, validated
from sparsemtl.sharing.masking import MASK_FIGURES, mask_metrics, mask_summary
from sparsemtl.sharing.schedules import EpochClock
from sparsemtl.sharing.sharing import Sharing
from sparsemtl.sharing.units import (
    RoutingOptions,
    UnitLayer,
    deal,
    find_units,
    networks_of_all_units,
    routed,
    units_kept,
)
from sparsemtl.tasks.batches import Loaders

UPDATE_STEP, LAYER_STEP = 1_000_003, 15_485_863
"""Differences of the seeds of two updates, and of two layers in one update."""
_TOLERANCE = 1e-9
"""Epochs by which a sum of fractions of epochs may miss the position of an update."""


class MaximumRoamingSharing(Sharing):
    """MR: a random subset of units per task, changed at a controlled pace (Pascal et al., AAAI 2021).

    Units are those of `task-routing`. At first every unit has a task, and every task ceil(keep * C) of the C units of a
    layer. At every update, in each layer, each task gives up one of its units for one that it never had, both drawn
    uniformly; so it uses as many as before. After C - ceil(keep * C) updates every unit has served every task, and the
    layer stays as it is.

    Differences from the paper:
        - Where T * ceil(keep * C) < C, tasks use more units than `keep` says, so that every unit has a task.
        - An update that is due at the end of an epoch is made at the beginning of the next one, so that the units that
          are validated have been trained.
        - The authors' code tests the number of units in floating point: at keep = 0.9 of 10 channels it keeps 10.

    Examples:
        >>> tasks = [Classification("shape", 2), Classification("colour", 3)]
        >>> model = SharedBottom(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), tasks)
        >>> data = [(torch.rand(6, 4), {"shape": torch.tensor([0, 1] * 3), "colour": torch.tensor([0, 1, 2] * 2)})]
        >>> _ = model(data[0][0])  # heads learn their widths
        >>> sharing = MaximumRoamingSharing(keep=0.5, update_every=1, seed=0)
        >>> step = TrainingStep(model, torch.optim.Adam(model.parameters()), sharing.start(model), sharing=sharing)
        >>> for epoch in range(5):
        ...     step.begin_epoch(epoch, data)
        ...     for x, labels in data:
        ...         _ = step(x, labels)
        >>> [value for task, name, value in sharing.metrics(model, step.networks) if name == "served"]
        [1.0, 1.0]
    """

    figures = (*MASK_FIGURES, Figure("served", "Units that have served the task", "fraction of all units"))

    @validated
    def __init__(
        self,
        *,
        keep: Annotated[
            Fraction, Doc("Fraction of the units of each layer that a task uses, in (0, 1]; at least one unit.")
        ] = 0.8,
        update_every: Annotated[
            Positive | None,
            Doc("Epochs from one update to the next, also a fraction. By default 0.1, as in the paper, or `reach_at`."),
        ] = None,
        reach_at: Annotated[
            Positive | None,
            Doc(
                "Epochs by which every unit has served every task: each layer then has a pace of its own, so that all "
                "finish together. In place of `update_every`."
            ),
        ] = None,
        **options: Unpack[RoutingOptions],
    ) -> None:
        if update_every is not None and reach_at is not None:
            raise ParameterError("give `update_every` or `reach_at`: one pace for all layers, or a pace per layer.")
        self.keep = keep
        self.update_every = 0.1 if update_every is None and reach_at is None else update_every
        self.reach_at = reach_at
        self.seed = options["seed"]
        self.update = options["update"]
        self.bn = options["bn"]
        self._options = options
        self._forget()

    def _forget(self) -> None:
        self._drawn_by: int | None = None
        self._layers: list[UnitLayer] = []
        self._history: dict[str, dict[str, Tensor]] = {}
        self._updates: dict[str, int] = {}
        self._clock = EpochClock()

    def start(self, model: MultiTaskModel) -> TaskNetworks:
        """Return networks in which every task uses all units.

        Raises:
            MaskError: if tasks share no layer with units.
            ParameterError: if `only` or `exclude` names nothing.
        """
        self._forget()
        return networks_of_all_units(model, type(self).__name__, self._options)

    def begin_epoch(
        self, epoch: int, model: MultiTaskModel, networks: TaskNetworks, loaders: Loaders
    ) -> TaskNetworks | None:
        """Draw the units before the first epoch; later make the updates that are due."""
        self._clock.begin_epoch(epoch, loaders)
        if epoch == 0:
            return self._draw(model, networks, loaders)
        return self._roam(model, networks, {layer.name: self._due(layer, epoch) for layer in self._layers})

    def after_batch(self, model: MultiTaskModel, networks: TaskNetworks, batches: int) -> TaskNetworks | None:
        """Make the updates that are due before the end of the epoch."""
        self._clock.step(batches)
        if not self._clock.is_known:
            return None
        ended = self._clock.epoch + 1
        due = {
            layer.name: min(self._due(layer, self._clock.position), self._due_before(layer, ended))
            for layer in self._layers
        }
        return self._roam(model, networks, due)

    def _draw(self, model: MultiTaskModel, networks: TaskNetworks, loaders: Loaders) -> TaskNetworks:
        with fork_rng():
            self._layers = find_units(model, loaders, self._options)
        self._drawn_by = run_seed(self.seed)
        draw = torch.Generator().manual_seed(self._drawn_by)
        dealt = {layer.name: deal(layer, list(networks), self.keep, draw, cover=True) for layer in self._layers}
        self._history = {layer: dict(masks) for layer, masks in dealt.items()}
        self._updates = dict.fromkeys(dealt, 0)
        return routed(model, networks, self._layers, dealt)

    def _pace(self, layer: UnitLayer) -> float:
        """Return the epochs from one update of a layer to the next."""
        if self.reach_at is None:
            assert self.update_every is not None
            return self.update_every
        return self.reach_at / max(layer.channels - units_kept(self.keep, layer.channels), 1)

    def _due(self, layer: UnitLayer, position: float) -> int:
        """Return the number of updates of a layer up to a position in epochs."""
        return floor(position / self._pace(layer) + _TOLERANCE)

    def _due_before(self, layer: UnitLayer, position: float) -> int:
        return ceil(position / self._pace(layer) - _TOLERANCE) - 1

    def _roam(self, model: MultiTaskModel, networks: TaskNetworks, due: Mapping[str, int]) -> TaskNetworks | None:
        """Make the updates of each layer, up to a number in all; None if there are none to make."""
        assert self._drawn_by is not None or not due
        changed: dict[str, dict[str, Tensor]] = {}
        for index, layer in enumerate(self._layers):
            history = self._history[layer.name]
            while self._updates[layer.name] < due[layer.name]:
                self._updates[layer.name] += 1
                if all(bool(served.all()) for served in history.values()):
                    continue
                seed = (self._drawn_by or 0) + UPDATE_STEP * self._updates[layer.name] + LAYER_STEP * index
                used = changed.get(layer.name) or _units(networks, layer)
                changed[layer.name] = _moved(used, history, torch.Generator().manual_seed(seed))
        chosen = [layer for layer in self._layers if layer.name in changed]
        return routed(model, networks, chosen, changed) if chosen else None

    def metrics(self, model: MultiTaskModel, networks: TaskNetworks) -> Iterator[tuple[str, str, float]]:
        """Yield density per task, the tasks' overlap, and the fraction of the units that have served each task."""
        yield from mask_metrics(networks)
        total = sum(layer.channels for layer in self._layers)
        for task in networks if total else ():
            yield task, "served", sum(int(served[task].sum()) for served in self._history.values()) / total

    def summary(self, model: MultiTaskModel, networks: TaskNetworks) -> dict[str, Any]:
        """Return the density per task."""
        return mask_summary(networks)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs beside the networks."""
        return {
            "seed": self._drawn_by,
            "layers": [layer.state() for layer in self._layers],
            "history": {layer: dict(served) for layer, served in self._history.items()},
            "updates": dict(self._updates),
            "clock": self._clock.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state of `state_dict`."""
        self._drawn_by = state["seed"]
        self._layers = [UnitLayer.of_state(layer) for layer in state["layers"]]
        self._history = {layer: dict(served) for layer, served in state["history"].items()}
        self._updates = dict(state["updates"])
        self._clock.load_state_dict(state["clock"])


def _units(networks: TaskNetworks, layer: UnitLayer) -> dict[str, Tensor]:
    """Return task -> the units of a layer that it uses."""
    return {task: network.output_factors[layer.outputs[0]].cpu() for task, network in networks.items()}


def _moved(used: Mapping[str, Tensor], history: dict[str, Tensor], draw: torch.Generator) -> dict[str, Tensor]:
    """Return the units of a layer after each task gave up one for one that never served it; note it in the history."""
    moved = {}
    for task, mask in used.items():
        moved[task] = mask
        untried = (~history[task]).nonzero().squeeze(1)
        if not len(untried):
            continue
        new = _one(untried, draw)
        old = _one(mask.nonzero().squeeze(1), draw)
        moved[task] = mask.clone()
        moved[task][new], moved[task][old] = True, False
        history[task] = history[task].clone()
        history[task][new] = True
    return moved


def _one(choices: Tensor, draw: torch.Generator) -> Tensor:
    return choices[torch.randint(len(choices), (), generator=draw)]
