"""Fisher sparse sharing (FSMTL): every task trains the sub-network that its own predictions are most sensitive to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from typing_extensions import Doc, Unpack

from sparsemtl.criteria import as_criterion
from sparsemtl.criteria.criterion import Criterion, Reseedable, map_innermost
from sparsemtl.criteria.estimators import Estimator
from sparsemtl.criteria.fisher import Fisher
from sparsemtl.criteria.power_sum import Power
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.registry.parameters import Count, Natural, validated
from sparsemtl.sharing.criterion_masks import FIGURES, CriterionMasks, KeepOption, SelectionOptions
from sparsemtl.sharing.masking import statistics_kind
from sparsemtl.sharing.sharing import Sharing
from sparsemtl.tasks.batches import Loaders


class FisherSharing(Sharing):
    """FS and EFS: masks by diagonal Fisher information, renewed while training (Zhang et al., FSMTL, AAAI 2024).

    Training begins dense, unless `warmup` is 0. From epoch `warmup` on, every `update_every` epochs, each task
    estimates the Fisher information of the dense shared weights (Eq. 9 or 10) and keeps the largest (Eq. 11); in
    between it trains its sub-network (Eq. 3 and 4).

    Attributes:
        criterion: the criterion that ranks the weights.
        information: the Fisher information by the parameters above. For inputs whose samples are not on the first axis
            of tensors (graphs, sequences time first), its `select` may be set to a function that cuts a sample out, as
            in `Fisher`; the scores are the same without it, but slower to compute.

    Differences from the paper:
        - Warm-up length, sample number and renewal interval are in an appendix that is not public; the defaults are
          one epoch, 1024 samples and every epoch.
        - The paper's Algorithm 2 squares a batch gradient with true labels, its Eq. 10 averages squared per-sample
          gradients with predicted labels. The equation is the default, `batch` is the algorithm.
        - For regression the predicted label makes Eq. 10 identically zero; such tasks use Eq. 9 for a Gaussian.
        - Norm statistics are per task by default (`bn`), and those of the dense network are estimated afresh for every
          renewal.
        - Weights outside of the masks do not move by momentum and weight decay either (`strict`).
    """

    figures = FIGURES

    @validated
    def __init__(
        self,
        *,
        keep: Annotated[
            KeepOption,
            Doc(
                "Fraction of the maskable weights that each task keeps, in (0, 1]; or task -> its fraction, where "
                "tasks that are not named keep everything. The paper: 0.9 on DKL, 0.1 on CelebA, 0.3 on Cityscapes."
            ),
        ] = 0.3,
        estimator: Annotated[
            Estimator,
            Doc(
                "`fs` predicted label (Eq. 10), `efs` exact (Eq. 9), `true` the label of the data, `sample` a label "
                "drawn from the model, `batch` squared gradient of the mean over a batch (Algorithm 2)."
            ),
        ] = "fs",
        power: Annotated[Power, Doc("Power of the gradient that is averaged: `square` or `abs`.")] = "square",
        samples: Annotated[Count | None, Doc("Training samples per estimate; None is all.")] = 1024,
        criterion: Annotated[
            str | Mapping[str, Any] | Criterion,
            Doc(
                "What ranks the weights: `fisher`, as in the paper; `specific`, task-specific Fisher information, for "
                "tasks that are not related; or any other criterion, such as `{name: specific, of: gradient}`. "
                "`estimator`, `power` and `samples` are those of `fisher`."
            ),
        ] = "fisher",
        warmup: Annotated[Natural, Doc("Dense epochs at the beginning.")] = 1,
        update_every: Annotated[
            Natural,
            Doc(
                "Epochs from one choice of masks to the next; 0 chooses once. With `target_sparsity`, masks are also "
                "chosen before every epoch until `reach_at`."
            ),
        ] = 1,
        **options: Unpack[SelectionOptions],
    ) -> None:
        self.keep = keep
        self.estimator = estimator
        self.update = options["update"]
        self.bn = statistics_kind(options)
        self.update_every = update_every
        self._masks = CriterionMasks(type(self).__name__, keep, options, warmup=warmup)
        self.information = Fisher(estimator=estimator, power=power, samples=samples, **self._masks.scored)
        self.criterion = as_criterion(criterion, {"fisher": self.information}, **self._masks.scored)

    def begin_training(self, epochs: int) -> None:
        """Note the number of epochs, of which `freeze_masks` may be a share."""
        self._masks.begin_training(epochs)

    def start(self, model: MultiTaskModel) -> TaskNetworks:
        """Return networks whose masks keep everything."""
        return self._masks.start(model)

    def begin_epoch(
        self, epoch: int, model: MultiTaskModel, networks: TaskNetworks, loaders: Loaders
    ) -> TaskNetworks | None:
        """Return networks with new masks where a choice is due after the warm-up, otherwise None."""
        since = epoch - self._masks.schedule.ramp.warmup
        due = since == 0 or (since > 0 and self.update_every > 0 and since % self.update_every == 0)
        chooses = due or self._masks.schedule.falls_at(epoch)

        def reseeded(criterion: Criterion) -> Criterion:
            return criterion.reseeded(epoch) if isinstance(criterion, Reseedable) else criterion

        criterion = map_innermost(self.criterion, reseeded) if chooses else None
        return self._masks.choose(criterion, epoch, model, networks, loaders)

    def is_selectable(self, epoch: int) -> bool:
        """Return True after the warm-up; with a target, once it is reached."""
        return self._masks.schedule.is_reached(epoch)

    def metrics(self, model: MultiTaskModel, networks: TaskNetworks) -> Iterator[tuple[str, str, float]]:
        """Yield density, overlap and the fraction that changed."""
        return self._masks.metrics(networks)

    def summary(self, model: MultiTaskModel, networks: TaskNetworks) -> dict[str, Any]:
        """Return the density per task."""
        return self._masks.summary(networks)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs beside the networks."""
        return self._masks.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state of `state_dict`."""
        self._masks.load_state_dict(state)
