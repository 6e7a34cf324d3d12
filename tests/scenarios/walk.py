"""What every scenario is put through: methods in the Trainer and in a plain loop, Fisher by hand, compaction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import sparsemtl as sm

Batch = tuple[Any, dict[str, Tensor]]
Make = Callable[[], sm.MultiTaskModel]

Kind = Literal["channel", "head", "neuron"]
METHODS: dict[str, Callable[[], sm.Sharing]] = {
    "fisher": lambda: sm.FisherSharing(keep=0.5, estimator="sample", samples=16),
    "random": lambda: sm.RandomSharing(keep=0.5, seed=0),
    "group-lasso": lambda: sm.GroupLassoSharing(lambda_=1e-5, target_sparsity=0.3, reach_at=1, keep_min=1, linear=True),
    "soft-masks": lambda: sm.SoftMaskSharing(lambda_=1e-2, linear=True),
}
WHOLE: dict[str, Callable[[Kind], sm.Sharing]] = {
    "fisher": lambda kind: sm.FisherSharing(keep=0.5, granularity=kind, estimator="sample", samples=8),
    "random": lambda kind: sm.RandomSharing(keep=0.5, granularity=kind, seed=0),
    "group-lasso": lambda kind: sm.GroupLassoSharing(
        granularity="input-channel" if kind == "channel" else kind,
        target_sparsity=0.5,
        reach_at=1,
        keep_min=1,
        linear=True,
    ),
}
"""Methods by which whole channels, heads or neurons go."""


def train(make: Make, method: str, loader: Any, folder: Path | None = None, **options: Any) -> sm.Trainer:
    """Train two epochs, test, and check that every task's figures are there and its own network gives them."""
    trainer = sm.Trainer(make(), sharing=METHODS[method](), epochs=2, seed=0, progress=False, folder=folder, **options)
    trainer.fit(loader, copies(loader))
    results = trainer.test(copies(loader))
    assert set(results) == set(trainer.model.tasks)
    for task, figures in results.items():
        assert figures["loss"] == figures["loss"], f"{task}: the loss is NaN"
    return trainer


def copies(loader: Any) -> Any:
    """Return another loader over the same batches."""
    return {task: list(own) for task, own in loader.items()} if isinstance(loader, Mapping) else list(loader)


def plain_loop(
    model: sm.MultiTaskModel, method: str | sm.Sharing, batches: Sequence[Batch], epochs: int = 2
) -> sm.TaskNetworks:
    """Train in a loop of the user's own; a weight that no task keeps does not move. Return the tasks' networks."""
    sharing = METHODS[method]() if isinstance(method, str) else method
    networks = sharing.start(model)
    optimizer = torch.optim.Adam([*model.parameters(), *networks.parameters()], lr=1e-2)
    step = sm.TrainingStep(model, optimizer, networks, sharing=sharing)
    for epoch in range(epochs):
        step.networks = sharing.begin_epoch(epoch, model, step.networks, batches) or step.networks
        for x, targets in batches:
            before = {name: p.detach().clone() for name, p in model.shared_parameters().items()}
            result = step(x, targets)
            assert all(loss == loss for loss in result.losses.values())
            masks = step.networks.masks
            if masks is not None:
                for name, kept in masks.union().items():
                    moved = model.shared_parameters()[name].detach() != before[name]
                    assert not bool((moved & ~kept).any()), name
    return step.networks


def check_fisher(
    model: sm.MultiTaskModel,
    batch: Batch,
    one: Callable[[Any, int], Any],
    tasks: Sequence[str] | None = None,
    **options: Any,
) -> None:
    """Compare scores at the true labels with a loop over samples, each run alone.

    Args:
        model: the model.
        batch: a batch.
        one: cuts sample i out of the input, as a batch of one.
        tasks: names of the tasks that have labels, all by default.
        options: of `fisher_information`.
    """
    model = model.double().eval()
    x, targets = double(batch[0]), batch[1]
    for name in model.chosen(tasks):
        task = model.tasks[name]
        label = task.labels(targets)
        counted = [i for i, is_labelled in enumerate(task.labelled(label).tolist()) if is_labelled]
        scores = sm.fisher_information(model, [(x, targets)], name, "true", **options)
        total = {parameter: torch.zeros_like(score) for parameter, score in scores.items()}
        for i in counted:
            output = model(one(x, i), tasks=[name])[name]
            log_prob = task.likelihood.log_prob(output, label[i : i + 1]).sum()
            weights = [model.get_parameter(parameter) for parameter in total]
            gradients = torch.autograd.grad(log_prob, weights, allow_unused=True)
            for parameter, gradient in zip(total, gradients, strict=True):
                if gradient is not None:
                    total[parameter] += gradient.square() / len(counted)
        for parameter, score in scores.items():
            torch.testing.assert_close(
                score.double(), total[parameter], rtol=1e-6, atol=1e-12, msg=f"{name} {parameter}"
            )
        assert any(bool(score.any()) for score in total.values())


def check_whole(make: Make, method: str, kind: Kind, loader: Any, task: str, x: Any) -> nn.Module:
    """Train by a method that drops whole units; check that a task's network becomes smaller and computes the same."""
    trainer = sm.Trainer(make(), sharing=WHOLE[method](kind), epochs=2, seed=0, progress=False)
    trainer.fit(loader, copies(loader))
    small = trainer.compact(task, x)
    with torch.no_grad():
        torch.testing.assert_close(small(x), trainer.predict(x, [task])[task], rtol=1e-4, atol=1e-5)
    if (make, task) not in _WHOLE_SIZES:
        _WHOLE_SIZES[make, task] = sm.parameter_count(sm.compact(make(), task=task, example_inputs=x))
    assert sm.parameter_count(small) < _WHOLE_SIZES[make, task]
    return small


def check_soft(make: Make, loader: Any, task: str, x: Any) -> None:
    """Train soft masks with a number per unit; check that units at zero leave the network of a task."""
    sharing = sm.SoftMaskSharing(lambda_=1e-2, granularity="channel", linear=True)
    trainer = sm.Trainer(make(), sharing=sharing, epochs=1, seed=0, progress=False, measure_cost=False)
    trainer.fit(loader, copies(loader))
    whole = sm.parameter_count(trainer.compact(task, x))
    with torch.no_grad():
        for factor in trainer.networks[task].weight_factors.values():
            factor[::2] = 0  # as proximal steps leave it
        small = trainer.compact(task, x)
        torch.testing.assert_close(small(x), trainer.predict(x, [task])[task], rtol=1e-4, atol=1e-5)
    assert sm.parameter_count(small) < whole


_WHOLE_SIZES: dict[tuple[Make, str], int] = {}
"""Parameters that a task needs of an untrained model, all of whose units are there."""


def double(x: Any) -> Any:
    """Return an input with its floating-point tensors in double precision."""
    from sparsemtl.tasks.nests import to_dtype

    return to_dtype(x, torch.float64)


def rows(x: Any, i: int) -> Any:
    """Return sample i of an input whose tensors hold samples along their first axis."""
    from sparsemtl.tasks.nests import map_tensors

    return map_tensors(lambda tensor: tensor[i : i + 1], x)


def batches_of(x: Any, targets: Mapping[str, Tensor], size: int = 8) -> list[Batch]:
    """Return batches of tensors, mappings and tuples of them."""
    from sparsemtl.tasks.nests import map_tensors

    count = len(next(iter(targets.values())))
    parts: Iterable[slice] = [slice(i, i + size) for i in range(0, count, size)]
    return [
        (map_tensors(lambda t, part=part: t[part], x), {name: y[part] for name, y in targets.items()}) for part in parts
    ]
