"""Regressions in clusters: tasks of one cluster read the same features of the inputs, other tasks read other ones."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch
from torch import Tensor
from typing_extensions import Doc, Unpack

from sparsemtl.data.base import Split, TaskData
from sparsemtl.data.options import GeneratedOptions, checked
from sparsemtl.data.requirements import requires_files
from sparsemtl.errors import ParameterError
from sparsemtl.registry.parameters import Count, NonNegative
from sparsemtl.tasks import Regression

_DIRECTIONS = 2
"""Directions of the inputs that each cluster reads."""
_FEATURES = 8
"""Features of each cluster."""
_SHIFT = 0.5
"""Standard deviation of the features' shifts."""
_REFERENCE = 4096
"""Samples by which labels are standardised."""


@requires_files(remark="generated when it is asked for.")
@checked
def clustered_regressions(
    *,
    tasks: Annotated[Count, Doc("Number of tasks, named `task0`, `task1`, ...")] = 4,
    clusters: Annotated[
        Count, Doc("Number of clusters; task t is in cluster t mod clusters. 1 relates all tasks, `tasks` none.")
    ] = 2,
    train_size: Annotated[Count, Doc("Number of training samples.")] = 400,
    validation_size: Annotated[Count, Doc("Number of validation samples.")] = 300,
    test_size: Annotated[Count, Doc("Number of test samples, whose labels have no noise.")] = 1000,
    dimension: Annotated[Count, Doc("Width of the inputs, at least twice the number of clusters.")] = 20,
    noise: Annotated[
        NonNegative, Doc("Standard deviation of the noise on labels for training and validation; labels have 1.")
    ] = 0.3,
    **options: Unpack[GeneratedOptions],
) -> TaskData:
    """Clustered regressions: tasks in one or more clusters that share features within a cluster only.

    Inputs x are standard normal. Cluster c has two orthonormal directions Q_c, orthogonal to those of the others, and
    the features tanh(x Q_c A_c + b_c), with A_c (2, 8) standard normal and b_c (8) normal with standard deviation 0.5.
    A task is a linear combination of its cluster's features with standard normal weights, standardised. A constant
    prediction has a mean squared error of about 1 on test data.

    Raises:
        ParameterError: if there are more clusters than tasks, or than pairs of orthogonal directions.
    """
    if clusters > tasks:
        raise ParameterError(f"`clusters` must be at most the number of tasks, {tasks}. Got {clusters}.")
    if _DIRECTIONS * clusters > dimension:
        raise ParameterError(
            f"`dimension` must be at least {_DIRECTIONS * clusters} for {clusters} clusters. Got {dimension}."
        )
    seed = options["seed"]
    generator = torch.Generator().manual_seed(seed)
    functions = draw_functions(tasks, clusters, dimension, generator)
    train, validation, test = (
        _samples(functions, size, deviation, generator)
        for size, deviation in ((train_size, noise), (validation_size, noise), (test_size, 0.0))
    )
    note = f"generated (seed {seed}), {tasks} tasks in {clusters} clusters, noise {noise:g} on training labels"
    names = map(Regression, functions.names)
    return TaskData("clustered-regressions", tuple(names), train, validation, test, notes=(note,))


class ClusteredFunctions(NamedTuple):
    """The functions of the tasks, float64.

    Attributes:
        directions: Q, shape (clusters, d, 2), orthonormal columns.
        mixtures: A, shape (clusters, 2, 8).
        shifts: b, shape (clusters, 8).
        weights: of the features, shape (tasks, 8).
        mean: of the values before standardisation, shape (tasks,).
        deviation: their standard deviation, shape (tasks,).
    """

    directions: Tensor
    mixtures: Tensor
    shifts: Tensor
    weights: Tensor
    mean: Tensor
    deviation: Tensor

    @property
    def names(self) -> list[str]:
        """Names of the tasks."""
        return [f"task{number}" for number in range(len(self.weights))]

    def __call__(self, x: Tensor) -> Tensor:
        """Return standardised values (N, tasks) of inputs (N, d)."""
        return (self.raw(x) - self.mean) / self.deviation

    def raw(self, x: Tensor) -> Tensor:
        """Return values (N, tasks) before standardisation."""
        features = torch.tanh(x @ self.directions @ self.mixtures + self.shifts[:, None])  # (clusters, N, 8)
        columns = [features[task % len(features)] @ weights for task, weights in enumerate(self.weights)]
        return torch.stack(columns, dim=1)


def draw_functions(tasks: int, clusters: int, dimension: int, generator: torch.Generator) -> ClusteredFunctions:
    """Draw the functions."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    orthogonal = torch.linalg.qr(normal(dimension, dimension)).Q[:, : _DIRECTIONS * clusters]
    functions = ClusteredFunctions(
        torch.stack(orthogonal.split(_DIRECTIONS, dim=1)),
        normal(clusters, _DIRECTIONS, _FEATURES),
        _SHIFT * normal(clusters, _FEATURES),
        normal(tasks, _FEATURES),
        torch.zeros(tasks, dtype=torch.float64),
        torch.ones(tasks, dtype=torch.float64),
    )
    deviation, mean = torch.std_mean(functions.raw(normal(_REFERENCE, dimension)), dim=0)
    return functions._replace(mean=mean, deviation=deviation)


def _samples(functions: ClusteredFunctions, count: int, noise: float, generator: torch.Generator) -> Split:
    x = torch.randn(count, functions.directions.shape[1], generator=generator)
    values = functions(x.double())
    values += noise * torch.randn(values.shape, generator=generator, dtype=torch.float64)
    return Split(x, dict(zip(functions.names, values.float().unbind(1), strict=True)))
