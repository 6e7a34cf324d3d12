"""Base of methods that share all weights and let groups of them become zero by a proximal step."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any

from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import Doc

from sparsemtl.errors import MaskWarning, ParameterError
from sparsemtl.networks.coverage import CoverageOptions, CoveredParameters, coverage_options
from sparsemtl.networks.declarations import Figure, SummaryTable
from sparsemtl.networks.model import MultiTaskModel, first_group
from sparsemtl.networks.norms import own_statistics
from sparsemtl.networks.randomness import fork_rng
from sparsemtl.networks.shared_coverage import shared_coverage
from sparsemtl.networks.structures import (
    Kind,
    Structure,
    find_structures,
    restricted,
    structures_from_state,
    structures_to_state,
)
from sparsemtl.networks.task_networks import TaskNetworks, dense_networks
from sparsemtl.optim.metric_step import ProxLR
from sparsemtl.optim.penalties import Penalty
from sparsemtl.optim.proximal_step import ProximalStep
from sparsemtl.optim.sparsity import Sparsity, layer_sparsity
from sparsemtl.registry.parameters import Count, Default, Natural, Share
from sparsemtl.sharing.schedules import Ramp, StepRamp, check_target, cubic
from sparsemtl.sharing.sharing import DenseOptions, Sharing, StepWeights
from sparsemtl.tasks.batches import Loaders, check_readable


class ProximalOptions(DenseOptions, CoverageOptions, total=False):
    """Options of all methods with a proximal step."""

    adaptive: Annotated[
        bool,
        Default(True),
        Doc("Take the step in the metric of Adam's second moment (Deleu & Bengio 2021); otherwise the plain step."),
    ]
    prox_lr: Annotated[
        ProxLR,
        Default("lr"),
        Doc(
            "Size of an adaptive step: `lr` is the learning rate, as in the reference code, `step` that of Adam's step."
        ),
    ]
    warmup: Annotated[Natural, Default(0), Doc("Dense epochs at the beginning.")]
    target_sparsity: Annotated[
        Share | None,
        Default(None),
        Doc(
            "Fraction of the groups that become zero, in [0, 1), in place of `lambda`: at each step the strength is "
            "what the cubic schedule from `warmup` to `reach_at` needs."
        ),
    ]
    reach_at: Annotated[
        Count | None,
        Default(None),
        Doc("Epochs by which `target_sparsity` is reached; the model of an earlier epoch is never selected."),
    ]
    penalty_in_loss: Annotated[
        bool,
        Default(False),
        Doc(
            "Add the penalty to the loss as well, so that it acts twice, as the reference code of Less is More does; "
            "for comparison only."
        ),
    ]


class ProximalSharing(Sharing):
    """Policy in which every task uses all shared weights, and a penalty's proximal step zeroes groups of them.

    The objective is B(L_1, ..., L_T) + strength * penalty, where B is what the balancer makes of the losses: their mean
    with `mean`, their sum with `sum`. The proximal map is applied after each step of the optimizer.

    With `target_sparsity` the strength is found: at each step it is the one that zeroes as many groups as the schedule
    asks for, s (1 - (1 - t)^3) of all on the way to the target s, t going from 0 to 1 between `warmup` and `reach_at`
    (Zhu & Gupta 2017), and s from then on.

    Heads and neurons are found in the first batch, and are groups over all their parameters.

    Args:
        penalty: the penalty.
        options: options of the method.
        units: groups of the penalty that are found in the model, in place of the penalty's own.
    """

    figures = (
        Figure("group_sparsity", "Groups at zero", "fraction of the groups of shared weights", per_task=False),
        Figure("parameter_sparsity", "Weights in groups at zero", "fraction of the shared weights", per_task=False),
        Figure("lambda", "Strength of the penalty", per_task=False),
    )

    def __init__(self, penalty: Penalty, options: ProximalOptions, units: Kind | None = None) -> None:
        self.update = options["update"]
        self.bn = options["bn"]
        self.warmup = options["warmup"]
        self.target_sparsity = options["target_sparsity"]
        self.reach_at = options["reach_at"]
        self.penalty_in_loss = options["penalty_in_loss"]
        check_target(self.target_sparsity, self.reach_at)
        self.shrink = ProximalStep(penalty, adaptive=options["adaptive"], prox_lr=options["prox_lr"])
        if self.target_sparsity is not None:
            self.shrink.remedy = f"Lower `target_sparsity` ({self.target_sparsity:g})"
        self._ramp = StepRamp(Ramp(self.warmup, self.reach_at))
        self._patterns = coverage_options(options)
        self._names: tuple[str, ...] | None = None
        self._units = units
        if units is not None:
            self._set_units({})

    def start(self, model: MultiTaskModel) -> TaskNetworks:
        """Return networks without masks.

        Raises:
            ParameterError: if the penalty covers no weight, `only` or `exclude` names nothing, or a layer computes such
                a weight from other parameters.
        """
        found = self.coverage(model)
        if self._units is None:
            self._names = tuple(found.refuse_computed().covered)
        if not found.covered:
            raise ParameterError(
                f"{type(self).__name__} finds nothing to make sparse: {type(model).__name__} shares "
                f"{len(model.shared_parameters())} parameters, none of them of a convolution. `linear=True` takes "
                "linear layers as well; a single task alone trains as a 'shared-bottom' of one task."
            )
        return dense_networks(model, model.tasks, own_statistics(model, self.bn))

    def covered(self, model: MultiTaskModel) -> dict[str, nn.Parameter]:
        """Return the shared weights that the penalty covers, by name, those of `start`; of units their biases too."""
        if self._units is not None:
            trained = {name: p for name, p in model.shared_parameters().items() if p.requires_grad}
            layers = self.shrink.penalty.grouping.layers(trained)
            return {part.name: trained[part.name] for layer in layers for part in layer.parts}
        if self._names is None:
            return self.coverage(model).covered
        return {name: model.get_parameter(name) for name in self._names}

    def coverage(self, model: MultiTaskModel) -> CoveredParameters:
        """Return the shared weights that the penalty covers, and why not the others; units are of these weights.

        Raises:
            ParameterError: if `only` or `exclude` names nothing.
        """
        return shared_coverage(model, refusal=self.shrink.penalty.refusal, **self._patterns)

    def begin_epoch(
        self, epoch: int, model: MultiTaskModel, networks: TaskNetworks, loaders: Loaders
    ) -> TaskNetworks | None:
        """Note the progress of the schedule, and find the units; the networks stay.

        Raises:
            MaskError: if the model has no such units.
            ParameterError: if all of them are frozen.
        """
        self._ramp.begin_epoch(epoch, loaders)
        if self._units is not None and not self._found:
            check_readable(loaders)
            with fork_rng():
                group = first_group(model, loaders)
                found = find_structures(model, group.x, self._units, group.tasks)
            self._set_units(restricted(found, model, **self._patterns))
            if not self._found or not self.covered(model):
                raise ParameterError(
                    f"{type(self).__name__} finds no {self._units} to make sparse: the weights that read them, such as "
                    f"{next(iter(found))!r}, are frozen (requires_grad=False), or `only` and `exclude` leave them out."
                )
        return None

    def _set_units(self, structures: Mapping[str, Structure]) -> None:
        """Make units the penalty's groups."""
        self._found = dict(structures)
        groups: dict[str, Any] = {"granularity": self._found}
        self.shrink.penalty = replace(self.shrink.penalty, **groups)

    def is_selectable(self, epoch: int) -> bool:
        """Return True after the warm-up; with a target, once it is reached."""
        return self._ramp.ramp.is_reached(epoch)

    def regularizer(self, model: MultiTaskModel) -> Tensor | None:
        """Return the penalty, where it acts on the gradient as well."""
        if not self.penalty_in_loss or not self._ramp.begun:
            return None
        return self.shrink.penalty.value(self.covered(model))

    def after_step(
        self, model: MultiTaskModel, networks: TaskNetworks, optimizer: Optimizer, weights: StepWeights
    ) -> TaskNetworks | None:
        """Take the proximal step."""
        self._ramp.step()
        if self._ramp.begun:
            covered = self.covered(model)
            if self.target_sparsity is not None:
                self._find_strength(covered, optimizer, weights.regularizer)
            self.shrink(optimizer, covered, weights.regularizer)
        return None

    def _find_strength(self, covered: Mapping[str, nn.Parameter], optimizer: Optimizer, factor: float) -> None:
        """Set the strength that leaves as many groups at zero as the schedule asks for now."""
        critical = self.shrink.critical_strength(optimizer, covered)
        zero = round(self.scheduled_sparsity() * len(critical))
        prunable = int(critical.isfinite().sum())
        strength = float(critical.kthvalue(min(zero, prunable)).values) if zero and prunable else 0.0
        strength /= factor
        # groups whose critical strength is equal become zero too, after rounding as well
        self.shrink.penalty = replace(self.shrink.penalty, strength=strength * (1 + 1e-6))

    def end_training(self, model: MultiTaskModel, networks: TaskNetworks) -> None:
        """Warn if the penalty has left no group at zero."""
        strength = self.shrink.penalty.strength
        total = self._total(self._layers(model))
        if strength > 0 and not total.zero_groups:
            warnings.warn(
                f"{type(self).__name__}: of {total.groups} groups (granularity {total.granularity}), none is zero in "
                f"the selected model. `lambda` ({strength:g}) is too weak for these steps. Set `target_sparsity` and "
                "`reach_at`, which find the strength, or raise `lambda`; without Adam it must be larger by far.",
                MaskWarning,
                stacklevel=2,
            )

    def scheduled_sparsity(self) -> float:
        """Return the sparsity that is due at this step, in [0, target_sparsity]."""
        return (self.target_sparsity or 0.0) * cubic(self._ramp.progress)

    def metrics(self, model: MultiTaskModel, networks: TaskNetworks) -> Iterator[tuple[str, str, float]]:
        """Yield the fraction of the groups at zero, of the weights in them, and the strength."""
        total = self._total(self._layers(model))
        yield "", "group_sparsity", total.of_groups
        yield "", "parameter_sparsity", total.of_parameters
        yield "", "lambda", self.shrink.penalty.strength

    def summary(self, model: MultiTaskModel, networks: TaskNetworks) -> dict[str, Any]:
        """Return the sparsity, and the number of groups left per layer."""
        layers = self._layers(model)
        total = self._total(layers)
        return {
            "granularity": total.granularity,
            "group_sparsity": total.of_groups,
            "parameter_sparsity": total.of_parameters,
            "lambda": self.shrink.penalty.strength,
            "groups": {name: {"all": s.groups, "left": s.groups - s.zero_groups} for name, s in layers.items()},
        }

    def tables(self, model: MultiTaskModel, networks: TaskNetworks) -> tuple[SummaryTable, ...]:
        """Return the groups left per layer."""
        layers = self._layers(model)
        rows = [(name, s.groups, s.groups - s.zero_groups, 1 - s.of_groups) for name, s in layers.items()]
        title = f"Groups left per layer ({self._total(layers).granularity})"
        return (SummaryTable(title, ("layer", "groups", "left", "fraction left"), rows, fractions=("fraction left",)),)

    def _layers(self, model: MultiTaskModel) -> dict[str, Sparsity]:
        covered = self.covered(model)
        return layer_sparsity(covered, self.shrink.penalty.grouping) if covered else {}

    def _total(self, layers: Mapping[str, Sparsity]) -> Sparsity:
        return sum(layers.values(), start=Sparsity(self.shrink.penalty.grouping.name))

    def state_dict(self) -> dict[str, Any]:
        """Return the strength found so far, the progress of the schedule, and the units."""
        state = {"strength": self.shrink.penalty.strength, "progress": self._ramp.state_dict()}
        return state if self._units is None else {**state, "units": structures_to_state(self._found)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state of `state_dict`."""
        if self._units is not None:
            self._set_units(structures_from_state(state["units"]))
        self.shrink.penalty = replace(self.shrink.penalty, strength=state["strength"])
        self._ramp.load_state_dict(state["progress"])
