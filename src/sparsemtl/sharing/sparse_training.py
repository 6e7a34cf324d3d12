"""Sparse training: of every neuron a fixed part of the weights is trained, the same for all tasks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from torch import Tensor
from typing_extensions import Doc, Unpack

from sparsemtl.criteria.neurons import largest_per_neuron, owners_of
from sparsemtl.criteria.random import Random
from sparsemtl.criteria.select import select
from sparsemtl.networks.coverage import coverage_options
from sparsemtl.networks.declarations import Figure
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.networks.norms import own_statistics
from sparsemtl.networks.randomness import run_seed
from sparsemtl.networks.shared_coverage import maskable_parameters
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.registry.parameters import Fraction, validated
from sparsemtl.sharing.masking import CommonMaskOptions, full_masks, mask_summary, with_common_mask
from sparsemtl.sharing.sharing import Sharing
from sparsemtl.tasks.batches import Loaders


class SparseTrainingSharing(Sharing):
    """ST: a fixed part of every neuron's weights is trained (Zhang et al. 2024, arXiv 2411.18615, Section 3.4).

    Before the first epoch, the weights of largest magnitude among the incoming weights of each neuron are selected, and
    with them all biases, norms and heads. The rest keep their initial or pretrained values (Eq. 8). All tasks compute
    with the dense network, whose gradients then conflict in fewer directions. Any balancer combines the tasks, with the
    gradient rows masked (Eq. 9). Nothing is removed: the networks are as large as before.

    Differences from the paper:
        - The paper does not say what becomes of biases and norms; here they are trained. `only`, `exclude` and frozen
          parameters change what is covered: what is not covered is trained as usual.
        - A neuron is an output channel of a convolution, an output of a linear layer, or a gate of a recurrent one. It
          trains K = round(keep * n) of its n incoming weights, and at least one; ties go to the lowest index.
        - `random` draws from all layers together; the paper's figure draws an equal part of each block.
        - Weights that are not selected do not move by momentum and weight decay either (`strict`).
    """

    figures = (Figure("density", "Trained", "fraction of the maskable weights that is trained"),)

    @validated
    def __init__(
        self,
        *,
        keep: Annotated[
            Fraction,
            Doc("Fraction of a neuron's incoming weights that is trained. The paper: 0.3 if pretrained, 0.6 if new."),
        ] = 0.3,
        select_by: Annotated[
            Literal["neuron", "global", "random", "lowest"],
            Doc(
                "Weights that are trained: the largest of each `neuron`, as in the paper; and its ablations: the "
                "largest of all layers together (`global`), as many at `random`, or the `lowest` of each neuron."
            ),
        ] = "neuron",
        **options: Unpack[CommonMaskOptions],
    ) -> None:
        self.keep = keep
        self.select_by = select_by
        self.update = options["update"]
        self.bn = options["bn"]
        self._options = options
        self._patterns = coverage_options(options)

    def start(self, model: MultiTaskModel) -> TaskNetworks:
        """Return networks that train everything."""
        return TaskNetworks.of_masks(
            full_masks(model, type(self).__name__, self._options),
            own_statistics(model, self.bn),
            applies_to="gradients",
            strict=self._options["strict"],
            common=True,
        )

    def begin_epoch(
        self, epoch: int, model: MultiTaskModel, networks: TaskNetworks, loaders: Loaders
    ) -> TaskNetworks | None:
        """Select the trained weights before the first epoch."""
        return with_common_mask(networks, self._selected(model)) if epoch == 0 else None

    def _selected(self, model: MultiTaskModel) -> dict[str, Tensor]:
        patterns = self._patterns
        magnitudes = {name: p.detach().abs() for name, p in maskable_parameters(model, **patterns).items()}
        if self.select_by == "global":
            return select(magnitudes, self.keep)
        if self.select_by == "random":
            first = next(iter(model.tasks.values()))
            drawn = Random(seed=run_seed(), **patterns).scores(model, (), [first])
            return select(drawn[first.name], self.keep)
        owners = owners_of(model)
        sign = -1 if self.select_by == "lowest" else 1
        return {
            name: largest_per_neuron(sign * magnitude, owners[id(model.get_parameter(name))], self.keep)
            for name, magnitude in magnitudes.items()
        }

    def metrics(self, model: MultiTaskModel, networks: TaskNetworks) -> Iterator[tuple[str, str, float]]:
        """Yield the fraction of the weights that is trained, the same for every task."""
        for task, density in self.summary(model, networks)["density"].items():
            yield task, "density", density

    def summary(self, model: MultiTaskModel, networks: TaskNetworks) -> dict[str, Any]:
        """Return the fraction of the weights that is trained, per task."""
        return mask_summary(networks)
