"""DiSparse: one sparse network for all tasks; a weight is removed only if every task agrees."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor
from typing_extensions import Doc, Unpack

from sparsemtl.criteria.batch_norm import for_dense_network, with_recomputed_batch_norm
from sparsemtl.criteria.criterion import Scores
from sparsemtl.criteria.finite import check_scores
from sparsemtl.criteria.gradient import Gradient
from sparsemtl.criteria.top_k import budget, top_k
from sparsemtl.errors import MaskError, MaskWarning
from sparsemtl.networks.coverage import coverage_options
from sparsemtl.networks.declarations import Figure
from sparsemtl.networks.masks import Mask
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.networks.norms import own_statistics
from sparsemtl.networks.randomness import fork_rng
from sparsemtl.networks.shared_coverage import maskable_parameters
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.registry.parameters import Count, Fraction, Natural, validated
from sparsemtl.sharing.masking import (
    CommonMaskOptions,
    full_masks,
    mask_summary,
    masks_of,
    warn_of_dead_layers,
    with_common_mask,
)
from sparsemtl.sharing.schedules import Ramp
from sparsemtl.sharing.sharing import Sharing
from sparsemtl.tasks.batches import Loaders

_SEED_STEP = 1_000_003
"""Difference between the seed of a run and that of its first random mask."""
_ERK_POWER = 0.9


class DiSparseSharing(Sharing):
    """DiSparse: a shared weight is removed only if all tasks agree (Sun et al., CVPR 2022).

    Every task ranks the shared weights by the gradient of its own loss alone, and asks to keep as many of its best as
    any other task. The network of all tasks has the union of what they ask for: exactly `keep` of the weights.

    - `static` ranks by |g w| before training (after `warmup` dense epochs), and trains the sparse network.
    - `pretrained` ranks trained weights by |g| w^2. The weights come from the section `pretraining` of a configuration,
      from `warmup` dense epochs, or with the model; the epochs after it fine-tune.
    - `dynamic` begins with random masks (Erdos-Renyi kernel densities) and exchanges connections between epochs, as
      RigL does: of each layer, the smallest weights are dropped, and the same number grows back, those of largest |g|
      of each task in turn. The exchanged fraction falls from `drop` by a cosine to 0 at epoch `reach_at`.

    Differences from the paper:
        - In its code (SHI-Labs/DiSparse-Multitask-Model-Compression) each task keeps a fraction of the weights, and the
          union is larger: fractions were tuned by hand to reach a sparsity (0.08 for 90 % on NYUv2). Here the number
          that each task keeps follows from the size of the union.
        - Heads are not pruned; `keep` counts the shared weights.
        - |g| is that of the mean loss over `samples`, not a mean of |g| over batches, and that of the weights at hand:
          the code draws new weights to compute static saliencies.
        - `dynamic` keeps the density exact between exchanges. A weight that grows back has the value that it had.
    """

    figures = (
        Figure("density", "Density", "fraction of the maskable weights that the network keeps"),
        Figure("changed", "Changed by the last exchange", "fraction of the weights kept before", per_task=False),
    )

    @validated
    def __init__(
        self,
        *,
        variant: Annotated[
            Literal["static", "pretrained", "dynamic"],
            Doc("Masks before training (`static`), of trained weights (`pretrained`), or exchanged (`dynamic`)."),
        ] = "static",
        keep: Annotated[
            Fraction,
            Doc("Fraction of the maskable weights that the network of all tasks keeps. The paper: 0.1, 0.3, 0.5, 0.7."),
        ] = 0.3,
        samples: Annotated[
            Count | None, Doc("Training samples per estimate of a task's gradient; None is all. The code: 50 batches.")
        ] = 1024,
        warmup: Annotated[Natural, Doc("Dense epochs before the masks are chosen.")] = 0,
        drop: Annotated[
            Fraction, Doc("Fraction of a layer's weights that the first exchange of `dynamic` replaces. The code: 0.5.")
        ] = 0.5,
        update_every: Annotated[Count, Doc("Epochs from one exchange of `dynamic` to the next.")] = 1,
        reach_at: Annotated[Count, Doc("Epoch from which the masks of `dynamic` stay as they are.")] = 10,
        **options: Unpack[CommonMaskOptions],
    ) -> None:
        self._ramp = Ramp(warmup, reach_at if variant == "dynamic" else None)
        self.variant = variant
        self.keep = keep
        self.samples = samples
        self.warmup = warmup
        self.drop = drop
        self.update_every = update_every
        self.reach_at = reach_at
        self.update = options["update"]
        self.bn = options["bn"]
        self._options = options
        self._patterns = coverage_options(options)
        self._changed: dict[str, float] = {}

    def start(self, model: MultiTaskModel) -> TaskNetworks:
        """Return networks whose masks keep everything."""
        self._changed = {}
        return TaskNetworks.of_masks(
            full_masks(model, type(self).__name__, self._options),
            own_statistics(model, self.bn),
            strict=self._options["strict"],
            common=True,
        )

    def begin_epoch(
        self, epoch: int, model: MultiTaskModel, networks: TaskNetworks, loaders: Loaders
    ) -> TaskNetworks | None:
        """Choose the mask after the warm-up; if it is dynamic, exchange connections until `reach_at`."""
        self._changed = {}
        since = epoch - self.warmup
        before = masks_of(networks)
        if since == 0:
            mask = self._random(model) if self.variant == "dynamic" else self._chosen(model, loaders)
        elif self.variant == "dynamic" and since > 0 and since % self.update_every == 0 and epoch < self.reach_at:
            mask = self._exchanged(model, next(iter(before.values())), self._exchange_at(epoch), loaders)
        else:
            return None
        changed = with_common_mask(networks, mask)
        after = masks_of(changed)
        warn_of_dead_layers(after, before, common=True)
        if since:
            self._changed = {"": next(iter(after.changed(before).values()))}
        return changed

    def is_selectable(self, epoch: int) -> bool:
        """Return True after the warm-up."""
        return epoch >= self.warmup

    def _chosen(self, model: MultiTaskModel, loaders: Loaders) -> dict[str, Tensor]:
        """Return the union of what the tasks keep by their saliencies."""
        scores = self._scores(model, loaders, times_weight=True)
        if self.variant == "pretrained":
            scores = {
                task: {name: score * model.get_parameter(name).detach().abs() for name, score in found.items()}
                for task, found in scores.items()
            }
        size = sum(score.numel() for score in next(iter(scores.values())).values())
        return union_of_best(scores, budget(size, self.keep))

    def _random(self, model: MultiTaskModel) -> dict[str, Tensor]:
        """Return a random mask whose layers have the densities of Erdos-Renyi kernels."""
        shapes = {n: p.shape for n, p in maskable_parameters(model, **self._patterns).items()}
        counts = erdos_renyi_counts(shapes, budget(sum(map(math.prod, shapes.values())), self.keep))
        generator = torch.Generator().manual_seed((torch.initial_seed() + _SEED_STEP) % 2**31)
        drawn = {name: torch.rand(math.prod(shape), generator=generator) for name, shape in shapes.items()}
        return {
            name: top_k(drawn[name], counts[name]).view(shape).to(model.get_parameter(name).device)
            for name, shape in shapes.items()
        }

    def _exchange_at(self, epoch: int) -> float:
        """Return the fraction of a layer's weights that is exchanged before an epoch."""
        return self.drop / 2 * (1 + math.cos(math.pi * self._ramp.progress(epoch)))

    def _exchanged(self, model: MultiTaskModel, mask: Mask, fraction: float, loaders: Loaders) -> dict[str, Tensor]:
        """Drop the smallest weights of each layer, and grow as many by the tasks' gradients."""
        scores = self._scores(model, loaders, times_weight=False)
        exchanged = {}
        for name, kept in mask.items():
            count = int(kept.sum())
            left = count - round(fraction * count)
            magnitudes = model.get_parameter(name).detach().abs().flatten()
            stays = top_k(magnitudes.masked_fill(~kept.flatten(), -torch.inf), left).view_as(kept)
            layer = {task: {name: found[name]} for task, found in scores.items()}
            exchanged[name] = stays | union_of_best(layer, count - left, among={name: ~stays})[name]
        return exchanged

    def _scores(self, model: MultiTaskModel, loaders: Loaders, *, times_weight: bool) -> Scores:
        """Return the gradients per task on the dense network, by absolute value."""
        criterion = Gradient(samples=self.samples, times_weight=times_weight, **self._patterns)
        runs_sparse = self.variant == "dynamic"  # the model's statistics are then those of a sparse network
        dense = with_recomputed_batch_norm(criterion) if runs_sparse else for_dense_network(criterion, model, self.bn)
        with fork_rng():
            scores = dense.scores(model, loaders, list(model.tasks.values()))
        _check(scores)
        return scores

    def metrics(self, model: MultiTaskModel, networks: TaskNetworks) -> Iterator[tuple[str, str, float]]:
        """Yield the density, the same for every task, and the fraction that the last exchange changed."""
        for task, density in self.summary(model, networks)["density"].items():
            yield task, "density", density
        for task, changed in self._changed.items():
            yield task, "changed", changed

    def summary(self, model: MultiTaskModel, networks: TaskNetworks) -> dict[str, Any]:
        """Return the density per task."""
        return mask_summary(networks)

    def state_dict(self) -> dict[str, Any]:
        """Return what an epoch that is resumed half-way still logs."""
        return {"changed": dict(self._changed)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state of `state_dict`."""
        self._changed = dict(state["changed"])


def union_of_best(scores: Scores, count: int, *, among: Mask | None = None) -> dict[str, Tensor]:
    """Return the mask of exactly `count` weights: the union of the k best of every task, k as large as fits.

    If the union of the k best is too small and that of the k + 1 best too large, the lowest indices of the difference
    are taken. A task has no say about weights with a score of 0, on which its loss does not depend.

    Args:
        scores: task -> parameter name -> score per weight.
        count: number of weights in the mask.
        among: parameter name -> bool tensor, the weights to choose from; all by default.
    """
    shapes = {name: score.shape for name, score in next(iter(scores.values())).items()}
    outside = None if among is None else torch.cat([~mask.flatten() for mask in among.values()])
    best: Tensor | None = None
    for found in scores.values():
        ranks = _ranks(torch.cat([score.flatten() for score in found.values()]), outside)
        best = ranks if best is None else torch.minimum(best, ranks)
    assert best is not None
    # among equals the first is taken; float64 holds ranks exactly
    chosen = top_k(-best.double(), count).split([math.prod(shape) for shape in shapes.values()])
    return {name: part.view(shape) for part, (name, shape) in zip(chosen, shapes.items(), strict=True)}


def _ranks(scores: Tensor, outside: Tensor | None) -> Tensor:
    """Return the place of every score, the largest first; zeros come after all, and what lies outside after them."""
    inside = scores if outside is None else scores.masked_fill(outside, -torch.inf)
    ranks = torch.empty(len(scores), dtype=torch.int64, device=scores.device)
    ranks[inside.sort(descending=True, stable=True).indices] = torch.arange(len(scores), device=scores.device)
    ranks.masked_fill_(scores == 0, len(scores))
    return ranks if outside is None else ranks.masked_fill_(outside, len(scores) + 1)


def erdos_renyi_counts(shapes: Mapping[str, Sequence[int]], count: int) -> dict[str, int]:
    """Return the number of weights per layer by Erdos-Renyi kernels (RigL, Evci et al. 2020), exactly `count` in all.

    A layer's density is proportional to (sum of its axes / their product) ** 0.9, as in DiSparse's code, and at most 1.

    Args:
        shapes: parameter name -> shape.
        count: number of weights in all layers together.
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    dense: set[str] = set()
    while True:
        sparse = {n: (sum(shapes[n]) / sizes[n]) ** _ERK_POWER * sizes[n] for n in shapes if n not in dense}
        left = count - sum(sizes[name] for name in dense)
        scale = left / sum(sparse.values()) if sparse else 0.0
        full = {name for name, weight in sparse.items() if scale * weight > sizes[name]}
        if not full:
            break
        dense |= full
    wanted = {name: float(sizes[name]) if name in dense else scale * sparse[name] for name in shapes}
    counts = {name: math.floor(value) for name, value in wanted.items()}
    by_remainder = sorted(shapes, key=lambda name: counts[name] - wanted[name])
    for name in by_remainder[: count - sum(counts.values())]:
        counts[name] += 1
    return counts


def _check(scores: Scores) -> None:
    """Raise for NaN and if all scores are zero, and warn of tasks whose scores are."""
    if not any(bool(score.any()) for found in scores.values() for score in found.values()):
        raise MaskError(
            "every gradient of the shared weights is zero, so that they cannot be ranked. Are heads trained?"
        )
    for task, found in scores.items():
        check_scores(found, task)
        if not any(bool(score.any()) for score in found.values()):
            warnings.warn(
                f"task {task!r}: every gradient of the shared weights is zero, so that it has no say in the masks. Is "
                "its head trained?",
                MaskWarning,
                stacklevel=3,
            )
