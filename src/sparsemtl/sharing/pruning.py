"""Pruning to a budget: whole channels, heads and neurons go, those first that every task can spare for their cost."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import Doc, Unpack

from sparsemtl.compaction.units import Cost, LayerUnits, Units, removable_units
from sparsemtl.errors import MaskWarning
from sparsemtl.networks.declarations import Figure, SummaryTable
from sparsemtl.networks.model import MultiTaskModel, first_group
from sparsemtl.networks.norms import own_statistics
from sparsemtl.networks.randomness import fork_rng
from sparsemtl.networks.task_networks import TaskNetworks, dense_networks
from sparsemtl.optim.penalties import GroupLasso
from sparsemtl.optim.proximal_step import ProximalStep
from sparsemtl.registry.parameters import Count, Fraction, Natural, NonNegative, validated
from sparsemtl.sharing.schedules import Ramp, cubic
from sparsemtl.sharing.sharing import DenseOptions, Sharing, StepWeights
from sparsemtl.sharing.taylor import taylor_importance
from sparsemtl.tasks.batches import Loaders, check_readable


class PruningSharing(Sharing):
    """Pruning of channels, heads and neurons to a budget of multiply-adds (Molchanov et al. 2019; Liu et al. 2021).

    Encoder and heads are pruned together. A unit is what compaction can remove: a channel of a tensor with all channels
    that it is added to or multiplied with (a residual stream's is one unit), an attention head, a hidden neuron.

    Before an epoch, every task's importance of every unit is estimated (Molchanov et al., CVPR 2019, Eq. 8), divided by
    its sum over the units, and combined over the tasks. Units of the smallest importance per multiply-add that they
    cost (Liu et al., Group Fisher Pruning, ICML 2021) are removed until the network has what the budget's schedule
    allows: 1 - (1 - macs) (1 - (1 - t)^3) of the dense network's, t going from 0 to 1 between `warmup` and `reach_at`.
    A unit whose weights are zero at the start, as in a network that was pruned before, is removed already.

    The weights that read a removed unit are zero after every step, so that `compact` gives the small network. All tasks
    compute with all weights that are left. Every layer keeps at least one unit.

    With `lambda`, the weights by which a layer reads a channel are shrunk after every step by the proximal map of group
    lasso, as in `group-lasso`, but in encoder and heads, and with steps of the size of Adam's own (`prox_lr: step`): a
    new optimizer, whose second moments are small, would else remove most channels of a trained network at once.

    Training from random weights did best on rendered rooms with `warmup` a fifth and `reach_at` three fifths of the
    epochs, `per_reader: true` and `lambda: 5.0e-5` (Adam): `examples/rooms-study.yaml`, `benchmarks/results/shrink.md`.

    Differences from the papers:
        - Importance is taken per task, in eval mode, on the data of the training loader before an epoch; the papers
          have one loss, and prune between steps.
        - Batches, not single samples, are squared, as in Molchanov et al.; Liu et al. square samples.
        - `lambda` is neither paper's; it is the penalty of Less is More (Upadhyay et al. 2023).
    """

    figures = (Figure("macs", "Multiply-adds left", "fraction of the dense network's", per_task=False),)

    @validated
    def __init__(
        self,
        *,
        macs: Annotated[Fraction, Doc("Multiply-adds of the pruned network, as a fraction of the dense one's.")] = 0.3,
        weights: Annotated[
            Fraction | None,
            Doc("Weights of convolutions and linear layers, as a fraction of the dense ones, in place of `macs`."),
        ] = None,
        warmup: Annotated[Natural, Doc("Dense epochs at the beginning.")] = 0,
        reach_at: Annotated[
            Count | None,
            Doc("Epochs by which the budget is reached, in a round per epoch; by default in one round after `warmup`."),
        ] = None,
        combine: Annotated[
            Literal["mean", "max"],
            Doc("Importance for all tasks: the mean, or that of the task that needs the unit most."),
        ] = "mean",
        samples: Annotated[Count, Doc("Labelled samples per task that importance is estimated on.")] = 512,
        per_reader: Annotated[
            bool,
            Doc(
                "Remove a channel of a residual stream, or of features that several heads read, from one layer that "
                "reads it at a time; by default from all of them at once."
            ),
        ] = False,
        lambda_: Annotated[
            NonNegative,
            Doc(
                "Strength of a group lasso on the input channels of the linear layers and 2D convolutions that read "
                "units; 0 for none."
            ),
        ] = 0.0,
        **options: Unpack[DenseOptions],
    ) -> None:
        self.macs = macs
        self.weights = weights
        self.warmup = warmup
        self.reach_at = reach_at
        self.combine = combine
        self.samples = samples
        self.per_reader = per_reader
        self.lambda_ = lambda_
        self.update = options["update"]
        self.bn = options["bn"]
        self._ramp = Ramp(warmup, reach_at)
        self._units: Units | None = None
        self._left = torch.zeros(0, dtype=torch.bool)
        self._began = 1.0
        self._removed: list[tuple[LayerUnits, Tensor]] = []
        self._shrink = ProximalStep(GroupLasso(strength=lambda_, linear=True, keep_min=1), prox_lr="step")

    def start(self, model: MultiTaskModel) -> TaskNetworks:
        """Return networks without masks."""
        return dense_networks(model, model.tasks, own_statistics(model, self.bn))

    def begin_epoch(
        self, epoch: int, model: MultiTaskModel, networks: TaskNetworks, loaders: Loaders
    ) -> TaskNetworks | None:
        """Choose the units of the epoch; the networks stay, and the next step sets weights to zero.

        Raises:
            CompactionError: if the units of the model cannot be found.
        """
        if epoch < self.warmup:
            return None
        check_readable(loaders)
        with fork_rng():
            if self._units is None:
                self._find_units(model, loaders)
            allowed = self._allowed(epoch)
            if len(self._left) and self._fraction(self._of) > allowed:
                self._prune(allowed, self._importance(model, networks, loaders))
        return None

    def _allowed(self, epoch: int) -> float:
        """Return what is allowed in an epoch, as a fraction of the dense network."""
        return self._began - (self._began - self._target) * cubic(self._ramp.progress(epoch))

    @property
    def _of(self) -> Cost:
        """Kind of the budget."""
        return "macs" if self.weights is None else "weights"

    @property
    def _target(self) -> float:
        """Fraction to keep at the end."""
        return self.macs if self.weights is None else self.weights

    def _find_units(self, model: MultiTaskModel, loaders: Loaders) -> None:
        """Find the units, and warn if the budget cannot be reached with one left per layer."""
        self._units = units = removable_units(model, first_group(model, loaders).x, per_reader=self.per_reader)
        self._set_left(_with_weights(units, model))
        self._began = max(self._fraction(self._of), self._target)
        least = _best_of_layers(units, self._left, torch.zeros(units.count))
        of = self._of
        if (reachable := units.cost(least, of) / units.cost(of=of)) > self._target:
            what = "multiply-adds" if of == "macs" else "weights"
            warnings.warn(
                f"{type(self).__name__}: {units.count} channels, heads and neurons of {type(model).__name__} can be "
                f"removed, which leaves at least {reachable:.2g} of its {what}; `{of}` asks for {self._target:g}. "
                "The rest is in layers that are frozen, called several times, or read by an operation without a rule: "
                "`sm.compact(model).report` names them.",
                MaskWarning,
                stacklevel=2,
            )

    def _importance(self, model: MultiTaskModel, networks: TaskNetworks, loaders: Loaders) -> Tensor:
        """Return the importance of every unit for all tasks, (units,)."""
        assert self._units is not None
        found = []
        for name, task in model.tasks.items():
            with networks.swapped(model, name):
                own = taylor_importance(model, self._units, loaders, task, self.samples)
            found.append(own / own.sum().clamp_min(torch.finfo(own.dtype).tiny))
        stacked = torch.stack(found)
        return stacked.mean(0) if self.combine == "mean" else stacked.amax(0)

    def _prune(self, allowed: float, importance: Tensor) -> None:
        """Remove units until no more is left than allowed."""
        units, of = self._units, self._of
        assert units is not None
        keep = ~self._left | _best_of_layers(units, self._left, importance)
        worth = importance / units.savings(self._left, of).clamp_min(1e-12)
        order = worth.masked_fill(keep, torch.inf).argsort(stable=True)[: int((~keep).sum())]
        first, last = 0, len(order)
        while first < last:  # the fewest that suffice
            middle = (first + last) // 2
            if units.cost(_without(self._left, order[:middle]), of) > allowed * units.cost(of=of):
                first = middle + 1
            else:
                last = middle
        self._set_left(_without(self._left, order[:last]))

    def _set_left(self, left: Tensor) -> None:
        assert self._units is not None
        gone = torch.cat([~left, left.new_zeros(1)])  # the last entry stands for channels that cannot be removed
        self._left = left
        self._removed = [
            (layer, dead) for layer in self._units.readers() if len(dead := gone[layer.reads].nonzero().flatten())
        ]

    def _fraction(self, of: Cost = "macs") -> float:
        """Return the multiply-adds or weights that are left, as a fraction of the dense network's."""
        return 1.0 if self._units is None else self._units.cost(self._left, of) / self._units.cost(of=of)

    @torch.no_grad()
    def after_step(
        self, model: MultiTaskModel, networks: TaskNetworks, optimizer: Optimizer, weights: StepWeights
    ) -> TaskNetworks | None:
        """Set the weights that read removed units to zero, and shrink the others that read units."""
        for layer, dead in self._removed:
            weight = model.get_parameter(layer.weight)
            layer.columns(weight).index_fill_(0, dead.to(weight.device), 0.0)
        if self.lambda_ and self._units is not None:
            names = [layer.weight for layer in self._units.readers() if not layer.transposed]
            self._shrink(optimizer, {name: model.get_parameter(name) for name in names}, weights.regularizer)
        return None

    def is_selectable(self, epoch: int) -> bool:
        """Return True once the budget is reached."""
        return self._ramp.is_reached(epoch)

    def metrics(self, model: MultiTaskModel, networks: TaskNetworks) -> Iterator[tuple[str, str, float]]:
        """Yield the fraction of the multiply-adds that is left."""
        yield "", "macs", self._fraction()

    def summary(self, model: MultiTaskModel, networks: TaskNetworks) -> dict[str, Any]:
        """Return the fractions of the multiply-adds and weights that are left, and the number of units per layer."""
        layers = {name: {"all": every, "left": left} for name, every, left, _ in self._rows()}
        return {"macs": self._fraction(), "weights": self._fraction("weights"), "units": layers}

    def tables(self, model: MultiTaskModel, networks: TaskNetworks) -> tuple[SummaryTable, ...]:
        """Return the units left per layer that reads them."""
        title = "Channels, heads and neurons left per layer that reads them"
        rows = list(self._rows())
        return (SummaryTable(title, ("layer", "units", "left", "fraction left"), rows, fractions=("fraction left",)),)

    def _rows(self) -> Iterator[tuple[str, int, int, float]]:
        """Yield (layer, number of units, number left, fraction left)."""
        for layer in self._units.readers() if self._units is not None else ():
            read = layer.reads[layer.reads >= 0].unique()
            left = int(self._left[read].sum())
            yield layer.weight.rpartition(".")[0], len(read), left, left / len(read)

    def state_dict(self) -> dict[str, Any]:
        """Return the units and which of them are left."""
        return {"units": None if self._units is None else self._units.state(), "left": self._left, "began": self._began}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state of `state_dict`."""
        self._units = None if state["units"] is None else Units.of_state(state["units"])
        if self._units is not None:
            self._set_left(state["left"])
        self._began = state["began"]


def _best_of_layers(units: Units, left: Tensor, importance: Tensor) -> Tensor:
    """Return the most important unit of every layer that reads units and makes, (units,), bool."""
    best = torch.zeros_like(left)
    for ids in (ids[ids >= 0] for layer in units.layers for ids in (layer.reads, layer.makes.flatten())):
        alive = ids[left[ids]]
        if len(alive):
            best[alive[importance[alive].argmax()]] = True
    return best


def fraction_left(model: MultiTaskModel, example_inputs: Any, of: Cost = "macs", *, per_reader: bool = False) -> float:
    """Return what zero weights leave of a model's multiply-adds or weights, as a fraction, as `PruningSharing` counts.

    Raises:
        CompactionError: if the units of the model cannot be found.
    """
    units = removable_units(model, example_inputs, per_reader=per_reader)
    return units.cost(_with_weights(units, model), of) / units.cost(of=of)


@torch.no_grad()
def _with_weights(units: Units, model: MultiTaskModel) -> Tensor:
    """Return the units that a layer has a weight other than zero on, (units,), bool; others are removed already."""
    found = torch.zeros(units.count + 1, dtype=torch.bool)
    for layer in units.readers():
        alive = layer.columns(model.get_parameter(layer.weight)).flatten(1).ne(0).any(1).cpu()
        found[layer.reads[alive]] = True
    return found[:-1]


def _without(left: Tensor, removed: Sequence[int] | Tensor) -> Tensor:
    left = left.clone()
    left[removed] = False
    return left
