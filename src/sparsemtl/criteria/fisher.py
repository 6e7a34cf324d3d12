"""Fisher information: the weights to which a task's predictive distribution is most sensitive."""

from __future__ import annotations

import copy
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor, nn
from typing_extensions import Doc, Unpack

from sparsemtl.criteria.criterion import Criterion, ScoredOptions, Scores, scored_options
from sparsemtl.criteria.estimators import TERMS, Estimator, TermOptions, estimator_for
from sparsemtl.criteria.fisher_mean import FisherMean, take_batch
from sparsemtl.criteria.gradient_powers import BatchPowers, GradientPowers
from sparsemtl.criteria.per_sample import PerSampleOptions, per_sample
from sparsemtl.criteria.power_sum import Power, PowerSum, wide
from sparsemtl.errors import LabelError, LikelihoodWarning, ParameterError
from sparsemtl.networks.model import MultiTaskModel, check_shapes, placement
from sparsemtl.networks.model_state import preserve_model_state
from sparsemtl.networks.shared_coverage import maskable_parameters
from sparsemtl.networks.swap import unwrapped
from sparsemtl.registry.parameters import Count, Natural, validated
from sparsemtl.tasks.batches import Loader, Loaders, check_loaders, evaluation_groups, per_task
from sparsemtl.tasks.nests import map_tensors
from sparsemtl.tasks.shards import owned, processes_of, sharded

if TYPE_CHECKING:
    from sparsemtl.tasks.task import Task


class FisherOptions(ScoredOptions, PerSampleOptions, total=False):
    """Options of the scored parameters, and of the computation of per-sample gradients."""


class Fisher(Criterion):
    """Diagonal of the Fisher information (FSMTL, AAAI 2024), exact for every sample.

    With g(y) = d log p(y | x) / d weight, a weight's score is the mean over labelled samples of one of the terms below.
    log p(y | x) is the sum over those labels of the sample (pixels, columns) that are known in the data: an unknown one
    adds exactly nothing, whatever the estimator, and a sample of which any label is known counts as one.

    - `fs`: g(y)^2 at the predicted label y = argmax p (Eq. 10);
    - `efs`: sum_y p(y | x) g(y)^2 over all labels (Eq. 9), as costly as there are classes or label columns;
    - `true`: g(y)^2 at the label in the data, the empirical Fisher information;
    - `sample`: g(y)^2 at labels drawn from p(y | x), an unbiased estimate of `efs` at any number of classes;
    - `batch`: the square of the mean of g over a batch of labels in the data (Algorithm 2 read literally). It
      depends on the loader's batch size and is none of the above.

    All tasks of a shared loader are scored together: one forward pass per batch, one backward pass per task and
    label. The model runs in eval mode and in its parameters' own precision, autocast or not; floating-point inputs are
    cast to that precision.

    Differences from the paper:
        - A task with `likelihood="loss"`, or a `CustomTask` without a likelihood, has no distribution of labels: g is
          minus the gradient of the sample's loss at its label, and the other estimators are replaced by `true`. A loss
          of pairs or of the whole batch takes `true` or `batch` only, by name.
        - A Gaussian's predicted label is its mean, where g is zero: for regression `fs` is replaced by `efs`, with
          one warning. For depth and normals it is replaced by `sample`, as is `efs` for every map.
        - `efs` of independent labels (yes/no answers, real values) sums p(1 - p) (dz / d weight)^2, or
          (dz / d weight)^2, over the outputs z, which equals the sum over all 2^A combinations, or the integral. No
          such identity holds for `abs`: it sums p(1 - p) |dz / d weight|, or |dz / d weight|, as if every column were
          an observation of its own.
    """

    @validated
    def __init__(
        self,
        *,
        estimator: Annotated[
            Estimator,
            Doc(
                "Labels of the gradients: `fs` predicted, `efs` all by their probability, `true` in the data, `sample` "
                "drawn, `batch` in the data with the gradients averaged first."
            ),
        ] = "fs",
        power: Annotated[Power, Doc("`square`, or `abs` for |g| in place of g^2.")] = "square",
        samples: Annotated[
            Count | None,
            Doc("Labelled samples per task that the mean is taken over; all if None or if there are fewer."),
        ] = 1024,
        draws: Annotated[Count, Doc("Labels that `sample` draws per sample.")] = 1,
        seed: Annotated[Natural, Doc("Seed of the drawn labels.")] = 0,
        **options: Unpack[FisherOptions],
    ) -> None:
        self.estimator = estimator
        self.power = power
        self.samples = samples
        self.draws = draws
        self.seed = seed
        self.chunk_mb = options["chunk_mb"]
        self.path = options["path"]
        self.select = options["select"]
        self.scored = scored_options(options)
        self._replaced: set[Task] = set()

    def reseeded(self, seed: int) -> Fisher:
        """Return a copy that draws other labels, and does not repeat the warnings of this criterion."""
        other = copy.copy(self)
        other.seed = seed
        return other

    def scores(self, model: nn.Module, loaders: Loaders, tasks: Sequence[Task]) -> Scores:
        """Average over the samples; the model, its gradients and the random generators are left as they are.

        Raises:
            LabelError: if a task has no labelled sample, or a batch lacks its target.
            ParameterError: if a loader is empty, or batch statistics tie the samples together.
        """
        model = unwrapped(model)
        check_shapes(model)
        parameters = maskable_parameters(model, **self.scored)
        means = [FisherMean(task, self.samples, _generator(self.seed, task, model)) for task in tasks]
        with preserve_model_state(model):
            for together in [[mean] for mean in means] if per_task(loaders) else [means]:
                self._estimate(model, parameters, _loaders_of(together, loaders), together)
        self._warn_of_replaced(means)
        return {mean.task.name: mean.scores() for mean in means}

    def _estimate(
        self, model: nn.Module, parameters: Mapping[str, Tensor], loaders: Loaders, means: Sequence[FisherMean]
    ) -> None:
        """Compute the means of tasks that read the same data; each of several processes reads a part of it."""
        processes = processes_of(loaders)
        powers = self._powers(model, parameters, [mean.task.name for mean in means])
        device, dtype = placement(model)
        batches = 0
        for group in evaluation_groups(sharded(loaders), {mean.task.name: mean.task for mean in means}):
            batches += 1
            group = group.to(device, dtype)
            if active := take_batch(means, group, processes):
                self._add(powers, map_tensors(Tensor.detach, group.x), active)
            if all(mean.done for mean in means):
                break
        powers.sums.flush()
        if processes.several:
            for mean in means:
                mean.totals = mean.totals or powers.zeros()
                for total in mean.totals.values():  # one by one: all of them are larger than the model
                    processes.add_up([total])
        if not batches:
            raise ParameterError("the loader gave no batch. A generator that was read before is empty; pass a list.")

    def _add(self, powers: GradientPowers, x: Any, means: Sequence[FisherMean]) -> None:
        """Run a forward pass, and add every task's powers of gradients to its mean."""
        outputs = powers.forward(x, tuple(mean.task.name for mean in means))
        for mean in means:
            output = outputs[mean.task.name]
            if not mean.totals:  # not before the first pass, whose check would add to the peak of memory
                mean.totals = powers.zeros()
            if not mean.decided:
                mean.estimator, mean.replaced = estimator_for(self.estimator, mean, output)
                mean.decided = int(mean.counts.sum()) > 1  # one sample shows no tie to others
            for cotangent in self._cotangents(mean, output):
                powers.add({mean.task.name: cotangent}, mean.totals)

    def _powers(self, model: nn.Module, parameters: Mapping[str, Tensor], tasks: Sequence[str]) -> GradientPowers:
        sums = PowerSum(self.power, int(self.chunk_mb * 2**20))
        if self.estimator == "batch":
            return BatchPowers(model, parameters, sums)
        return per_sample(model, parameters, tasks, sums, self.path, self.select)

    def _warn_of_replaced(self, means: Sequence[FisherMean]) -> None:
        """Warn of each task whose estimator was replaced, once per task, of all with one reason together."""
        names: dict[str, list[str]] = {}
        for mean in means:
            if mean.replaced and mean.task not in self._replaced:
                self._replaced.add(mean.task)
                names.setdefault(mean.replaced, []).append(repr(mean.task.name))
        for reason, tasks in names.items():
            who = f"task{'s' if len(tasks) > 1 else ''} {', '.join(tasks)}"
            warnings.warn(f"{who}: {reason}", LikelihoodWarning, stacklevel=3)

    def _cotangents(self, mean: FisherMean, output: Tensor) -> Iterator[Tensor]:
        """Yield gradients at a task's output whose powers at the weights add up to the batch's estimate."""
        if len(output) != len(mean.counts):
            raise LabelError(f"task {mean.task.name!r}: {len(output)} outputs but {len(mean.counts)} labels.")
        known = mean.known(output)
        alone = torch.where(known, output, 0.0).to(wide(output.dtype))  # labels cannot be drawn from NaN
        for weight, direction in TERMS[mean.estimator](mean, alone, TermOptions(self.power, self.draws)):
            factor = weight.sqrt() if self.power == "square" else weight
            cotangent = direction * factor.view(-1, *[1] * (output.ndim - 1))
            yield torch.where(known, cotangent, 0.0).to(output.dtype)


def _generator(seed: int, task: Task, model: nn.Module) -> torch.Generator:
    """Return the generator of a task's drawn labels, which do not depend on the tasks that are scored with it."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    mixed = zlib.crc32(f"{seed} {task.name}".encode())  # 32 bits: torch's generator on CPU ignores all higher ones
    return torch.Generator(device).manual_seed(mixed)


def _loaders_of(means: Sequence[FisherMean], loaders: Loaders) -> Loaders:
    """Return the loaders of some tasks, checked."""
    if not isinstance(loaders, Mapping):
        return loaders
    tasks = {mean.task.name: mean.task for mean in means}
    own = {name: loader for name, loader in loaders.items() if name in tasks}
    check_loaders(own, tasks)
    return own


def fisher_information(
    model: MultiTaskModel,
    loader: Loader,
    task: str | None = None,
    estimator: Estimator = "fs",
    samples: int | None = None,
    process_group: Any = None,
    **options: Any,
) -> dict[str, Tensor]:
    """Return the diagonal Fisher information of a task's shared weights.

    Args:
        model: the model; it is not changed.
        loader: yields (x, {target: labels}), or (x, labels) if the labels are this task's.
        task: name of the task; may be omitted if the model has one task.
        estimator: labels of the gradients, see `Fisher`.
        samples: labelled samples to use, all by default.
        process_group: group of `torch.distributed` whose processes call this, each with a loader of its own data: the
            samples are those of all of them, and so are the scores.
        options: other parameters of `Fisher`.

    Returns:
        parameter name -> score of every weight, of the parameter's shape; at least 0.

    Raises:
        ParameterError: if the task is unknown or not named, or the loader is empty.
        LabelError: if no sample is labelled.

    Examples:
        >>> scores = fisher_information(model, loader, "digit", samples=256)  # doctest: +SKIP
    """
    inner = unwrapped(model)
    if not isinstance(inner, MultiTaskModel):
        raise ParameterError(
            f"fisher_information needs a MultiTaskModel, got {type(inner).__name__}. "
            "SharedBottom(encoder, [task], heads={name: head}) makes one."
        )
    if task is None:
        if len(inner.tasks) > 1:
            raise ParameterError(f"name a task, the model has {len(inner.tasks)}: {', '.join(inner.tasks)}.")
        task = next(iter(inner.tasks))
    inner.check_task(task)
    criterion = Fisher(estimator=estimator, samples=samples, **options)
    own = owned({task: loader}, process_group)  # a loader of the task's own may give bare labels as well
    return criterion.scores(inner, own, [inner.tasks[task]])[task]
