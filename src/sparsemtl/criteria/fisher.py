"""Fisher information: the weights to which a task's predictive distribution is most sensitive."""

from __future__ import annotations

import copy
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import Doc, Unpack

from sparsemtl.criteria.criterion import Criterion, ScoredOptions, Scores, scored_options
from sparsemtl.criteria.gradient_powers import BatchPowers, GradientPowers, Power, PowerSum, wide
from sparsemtl.criteria.per_sample import PerSampleOptions, per_sample
from sparsemtl.errors import LabelError, LikelihoodWarning, NonFiniteScoreError, ParameterError
from sparsemtl.networks.model import MultiTaskModel, check_shapes, placement
from sparsemtl.networks.model_state import preserve_model_state
from sparsemtl.networks.shared_coverage import maskable_parameters
from sparsemtl.networks.swap import unwrapped
from sparsemtl.registry.parameters import Count, Natural, validated
from sparsemtl.tasks.batches import Group, Loader, Loaders, check_loaders, evaluation_groups, per_task
from sparsemtl.tasks.nests import map_tensors
from sparsemtl.tasks.own_likelihoods import LossLikelihood
from sparsemtl.tasks.processes import Processes
from sparsemtl.tasks.shards import owned, processes_of, sharded

if TYPE_CHECKING:
    from sparsemtl.tasks.task import Task

Estimator = Literal["fs", "efs", "true", "sample", "batch"]


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
        means = []
        for task in tasks:
            means.append(_Mean(task, self.samples, _generator(self.seed, task, model)))
        with preserve_model_state(model):
            for together in [[mean] for mean in means] if per_task(loaders) else [means]:
                self._estimate(model, parameters, _loaders_of(together, loaders), together)
        self._warn_of_replaced(means)
        return {mean.task.name: mean.scores() for mean in means}

    def _estimate(
        self, model: nn.Module, parameters: Mapping[str, Tensor], loaders: Loaders, means: Sequence[_Mean]
    ) -> None:
        """Compute the means of tasks that read the same data; each of several processes reads a part of it."""
        processes = processes_of(loaders)
        powers = self._powers(model, parameters, [mean.task.name for mean in means])
        device, dtype = placement(model)
        batches = 0
        for group in evaluation_groups(sharded(loaders), {mean.task.name: mean.task for mean in means}):
            batches += 1
            group = group.to(device, dtype)
            if active := _take(means, group, processes):
                x = map_tensors(Tensor.detach, group.x)
                outputs = powers.forward(x, tuple(mean.task.name for mean in active))
                for mean in active:
                    if not mean.totals:  # not before the first pass, whose check would add to the peak of memory
                        mean.totals = powers.zeros()
                    if not mean.decided:
                        mean.estimator = self._estimator_for(mean, outputs[mean.task.name])
                        mean.decided = int(mean.counts.sum()) > 1  # one sample shows no tie to others
                    for cotangent in self._cotangents(mean, outputs[mean.task.name]):
                        powers.add({mean.task.name: cotangent}, mean.totals)
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

    def _powers(self, model: nn.Module, parameters: Mapping[str, Tensor], tasks: Sequence[str]) -> GradientPowers:
        sums = PowerSum(self.power, int(self.chunk_mb * 2**20))
        if self.estimator == "batch":
            return BatchPowers(model, parameters, sums)
        return per_sample(model, parameters, tasks, sums, self.path, self.select)

    def _estimator_for(self, mean: _Mean, output: Tensor) -> Estimator:
        """Return the estimator to use for a task.

        Falls back to `efs` (or `sample`, where `efs` would need one backward pass per pixel and label) if `fs` is
        identically zero for the task's likelihood, and to `true` if a loss takes the place of a likelihood; the reason
        is then in `mean.replaced`.

        Raises:
            ParameterError: if outputs do not fit the kind's own likelihood, or a loss ties the samples of a batch
                together and the estimator needs them apart.
        """
        task = mean.task
        if not task.has_own_likelihood:
            _check_form(task, output, mean.label)
        likelihood = task.likelihood
        likelihood = likelihood.at(output) or likelihood
        if isinstance(likelihood, LossLikelihood):
            return self._estimator_for_loss(mean, output, likelihood)
        kind = type(likelihood).__name__
        exact: Estimator = "efs" if likelihood.tractable else "sample"
        if self.estimator == "fs" and not likelihood.informative_mode:
            why = f"a {kind} has no slope at its own prediction, so estimator='fs' would score every weight zero"
        elif self.estimator == "efs" and not likelihood.tractable:
            why = f"estimator='efs' takes a backward for every label of every pixel of a {kind}"
        else:
            return self.estimator
        mean.replaced = f"{why}; using {exact!r}."
        return exact

    def _estimator_for_loss(self, mean: _Mean, output: Tensor, likelihood: LossLikelihood) -> Estimator:
        if self.estimator in ("true", "batch"):
            return self.estimator
        task, rows = mean.task, mean.counts
        if likelihood.couples_samples(output[rows].to(wide(output.dtype)), mean.label[rows]):
            raise ParameterError(
                f"task {task.name!r}: its loss depends on pairs of samples or on the whole batch, so that a sample has "
                f"no loss of its own, and estimator={self.estimator!r} no meaning. estimator='true' takes each "
                "sample's part in the gradient of its batch's loss, 'batch' the squared gradient of the batch's loss; "
                "both depend on the batch size. Or pass `likelihood` to the task."
            )
        mean.replaced = (
            "the loss is no distribution that labels could be drawn from; using estimator='true', the squared gradient "
            "of each sample's loss at its label (empirical Fisher information). Or pass `likelihood` to the task."
        )
        return "true"

    def _warn_of_replaced(self, means: Sequence[_Mean]) -> None:
        """Warn of each task whose estimator was replaced, once per task, of all with one reason together."""
        names: dict[str, list[str]] = {}
        for mean in means:
            if mean.replaced and mean.task not in self._replaced:
                self._replaced.add(mean.task)
                names.setdefault(mean.replaced, []).append(repr(mean.task.name))
        for reason, tasks in names.items():
            who = f"task{'s' if len(tasks) > 1 else ''} {', '.join(tasks)}"
            warnings.warn(f"{who}: {reason}", LikelihoodWarning, stacklevel=3)

    def _cotangents(self, mean: _Mean, output: Tensor) -> Iterator[Tensor]:
        """Yield gradients at a task's output whose powers at the weights add up to the batch's estimate."""
        if len(output) != len(mean.counts):
            raise LabelError(f"task {mean.task.name!r}: {len(output)} outputs but {len(mean.counts)} labels.")
        known = mean.known(output)
        alone = torch.where(known, output, 0.0).to(wide(output.dtype))  # labels cannot be drawn from NaN
        for weight, direction in self._terms(mean, alone):
            factor = weight.sqrt() if self.power == "square" else weight
            cotangent = direction * factor.view(-1, *[1] * (output.ndim - 1))
            yield torch.where(known, cotangent, 0.0).to(output.dtype)

    def _terms(self, mean: _Mean, output: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (weights (B,) of powers, the gradients at the output (B, ...) that they weigh)."""
        likelihood = mean.task.likelihood
        one = output.new_ones(len(output))
        if mean.estimator == "fs":
            yield one, likelihood.score(output, likelihood.mode(output))
        elif mean.estimator == "efs":
            yield from likelihood.expected(output)
        elif mean.estimator == "sample":
            _check_outputs(mean.task, output)
            for _ in range(self.draws):
                yield one / self.draws, likelihood.sampled_score(output, mean.generator)
        elif mean.estimator == "true":
            yield one, mean.score(output)
        else:  # n times the power of the mean over n samples
            n = mean.counts.sum() if self.power == "square" else 1
            yield one / n, mean.score(output)


def _check_form(task: Task, output: Tensor, label: Tensor) -> None:
    """Raise unless outputs have the form that the kind's own likelihood reads."""
    try:
        task.check_output(output, label)
    except ParameterError as error:
        raise ParameterError(
            f"{error} For outputs of another form, Fisher information needs the task's `likelihood`: a function of the "
            "outputs that returns a torch.distributions.Distribution, or 'loss'."
        ) from error


def _check_outputs(task: Task, output: Tensor) -> None:
    """Raise unless labels can be drawn; scores of the other estimators show by themselves that training diverged."""
    wrong = int((output.isnan() | (output == torch.inf)).sum())
    if wrong:
        raise NonFiniteScoreError(
            f"task {task.name!r}: {wrong} of {output.numel()} outputs are NaN or infinite, so that no label can be "
            "drawn. Did training diverge?"
        )


@dataclass
class _Mean:
    """Mean of one task while it is computed.

    Attributes:
        task: the task.
        limit: labelled samples to take, all if None.
        generator: generator of drawn labels.
        estimator: labels of the gradients, chosen at the first outputs.
        replaced: reason why the estimator is not the one that was asked for; "" if it is.
        decided: the estimator is final.
        totals: parameter name -> sum so far.
        seen: samples so far.
        label: labels (B, ...) of the present batch.
        counts: samples of the batch that count, bool (B,).
    """

    task: Task
    limit: int | None
    generator: torch.Generator
    estimator: Estimator = "true"
    replaced: str = ""
    decided: bool = False
    totals: dict[str, Tensor] = field(default_factory=dict)
    seen: int = 0
    label: Tensor = field(default_factory=lambda: torch.empty(0))
    counts: Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def done(self) -> bool:
        return self.limit is not None and self.seen >= self.limit

    @property
    def left(self) -> int | None:
        """Samples still to take; None without a limit."""
        return None if self.limit is None else self.limit - self.seen

    def read(self, targets: Mapping[str, Tensor]) -> int:
        """Read a batch's labels; return the number of samples that are labelled."""
        self.label = self.task.labels(targets)
        self.counts = self.task.labelled(self.label)
        return int(self.counts.sum())

    def take(self, count: int) -> bool:
        """Let the first labelled samples count alone; return False if there is none."""
        self.counts = self.counts & (self.counts.cumsum(0) <= count)
        return count > 0

    def known(self, output: Tensor) -> Tensor:
        """Return a mask that broadcasts to the outputs (B, ...): those of known labels, of samples that count."""
        counts = self.counts.view(-1, *[1] * (output.ndim - 1))
        return counts & self.task.known_outputs(self.label, output)

    def score(self, output: Tensor) -> Tensor:
        """Return the score at the labels of the data, shape of `output`; of a loss, among the samples that count."""
        likelihood, rows = self.task.likelihood, self.counts
        if not isinstance(likelihood, LossLikelihood) or bool(rows.all()):
            return likelihood.score(output, self.label)
        scores = torch.zeros_like(output)
        scores[rows] = likelihood.score(output[rows], self.label[rows])
        return scores

    def scores(self) -> dict[str, Tensor]:
        """Return parameter name -> mean."""
        if not self.seen:
            raise LabelError(
                f"task {self.task.name!r} has no labelled sample to take its Fisher information on. "
                "Leave the task out, or use data with labels of it."
            )
        scores = {}
        for name in list(self.totals):  # one by one, for all tasks' totals are larger than the model
            mean = self.totals.pop(name).div_(self.seen)
            scores[name] = mean.clamp_(min=0).contiguous()  # pairs of positions may round below zero
        return scores


def _take(means: Sequence[_Mean], group: Group, processes: Processes) -> list[_Mean]:
    """Read a batch's labels; return the means for which some of them count, among those of all processes."""
    open_means = [mean for mean in means if not mean.done]
    own = [mean.read(group.targets) if group.tasks else 0 for mean in open_means]
    counted, totals = processes.limited(own, [mean.left for mean in open_means])
    for mean, total in zip(open_means, totals, strict=True):
        mean.seen += total
    return [mean for mean, count in zip(open_means, counted, strict=True) if count and mean.take(count)]


def _generator(seed: int, task: Task, model: nn.Module) -> torch.Generator:
    """Return the generator of a task's drawn labels, which do not depend on the tasks that are scored with it."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    mixed = zlib.crc32(f"{seed} {task.name}".encode())  # 32 bits: torch's generator on CPU ignores all higher ones
    return torch.Generator(device).manual_seed(mixed)


def _loaders_of(means: Sequence[_Mean], loaders: Loaders) -> Loaders:
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
