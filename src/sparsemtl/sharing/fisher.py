"""Fisher sparse sharing (FSMTL): every task trains the sub-network that its own predictions are most sensitive to."""

from __future__ import annotations

from sparsemtl.criteria.criterion import Criterion
from sparsemtl.criteria.fisher import Estimator, Fisher
from sparsemtl.criteria.gradient_powers import Power
from sparsemtl.criteria.select import Granularity, Scope
from sparsemtl.registry.parameters import Count, Fraction, Natural, validated
from sparsemtl.sharing.masked import MaskedSharing
from sparsemtl.sharing.sharing import Statistics, Update
from sparsemtl.sharing.subnetwork import Semantics


class FisherSharing(MaskedSharing):
    """FS and EFS: masks by diagonal Fisher information, renewed while training (Zhang et al., FSMTL, AAAI 2024).

    Training begins dense. From epoch `warmup` on, every `update_every` epochs, each task estimates the Fisher
    information of the dense shared weights (Eq. 9 or 10) and keeps the largest (Eq. 11); in between it trains its
    sub-network (Eq. 3 and 4).

    Args:
        keep: fraction of the maskable weights that every task keeps, in (0, 1]. The paper: 0.9 on DKL, 0.1 on
            CelebA, 0.3 on Cityscapes.
        estimator: `fs` predicted label (Eq. 10), `efs` exact (Eq. 9), `true` the data's label, `sample` a label
            drawn from the model, `batch` squared gradient of a batch's mean (Algorithm 2).
        power: `square` or `abs` of the gradient.
        samples: training samples an estimate uses, all if None.
        warmup: dense epochs at the start.
        update_every: epochs between renewals; 0 chooses once.
        target_density, reach_at, mask_applies_to, update, strict, bn, scope, granularity, min_per_layer, mask_all: see
            `MaskedSharing`.

    Attributes:
        information: the criterion. For inputs whose samples are not on the first axis of tensors (graphs, sequences
            time first), its `select` may be set to a function that cuts a sample out, as in `Fisher`; the
            scores are the same without it, but slower to compute.

    Differences from the paper:
        - Warm-up length, sample number and renewal interval are in an appendix that is not public; the defaults are
          one epoch, 1024 samples and every epoch.
        - The paper's Algorithm 2 squares a batch gradient with true labels, its Eq. 10 averages squared per-sample
          gradients with predicted labels. The equation is the default, `batch` is the algorithm.
        - For regression the predicted label makes Eq. 10 identically zero; such tasks use Eq. 9 for a Gaussian.
        - Norm statistics are per task, and those of the dense network are estimated afresh for every renewal.
        - Weights outside of the masks are held still against momentum and weight decay (`strict`).
    """

    @validated
    def __init__(
        self,
        *,
        keep: Fraction = 0.3,
        target_density: Fraction | None = None,
        reach_at: Count | None = None,
        estimator: Estimator = "fs",
        power: Power = "square",
        samples: Count | None = 1024,
        warmup: Natural = 1,
        update_every: Natural = 1,
        mask_applies_to: Semantics = "forward",
        update: Update | None = None,
        strict: bool = True,
        bn: Statistics | None = None,
        scope: Scope = "global",
        granularity: Granularity = "weight",
        min_per_layer: Count = 1,
        mask_all: bool = False,
    ) -> None:
        self.start = warmup
        super().__init__(
            keep=keep,
            target_density=target_density,
            reach_at=reach_at,
            mask_applies_to=mask_applies_to,
            update=update,
            strict=strict,
            bn=bn,
            scope=scope,
            granularity=granularity,
            min_per_layer=min_per_layer,
            mask_all=mask_all,
        )
        self.estimator = estimator
        self.power = power
        self.samples = samples
        self.information = Fisher(estimator=estimator, power=power, samples=samples, mask_all=self.mask_all)
        self.update_every = update_every

    def criterion_for(self, epoch: int) -> Criterion | None:
        """Fisher information after the warm-up, at every interval."""
        since = epoch - self.start
        due = since == 0 or (since > 0 and self.update_every > 0 and since % self.update_every == 0)
        return self.information.reseeded(epoch) if due or self.falling(epoch) else None
