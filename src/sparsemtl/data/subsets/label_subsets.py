"""Tasks with few samples and label sets of their own, cut out of data sets that have one class per sample.

DAMTL (Feng and Chen) draws ten classes per task; two tasks then have three classes in common, or none. Beside them
stands a big auxiliary task that has all classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, TypedDict

import torch
from typing_extensions import Doc, Unpack

from sparsemtl.data.base import Samples, TaskData
from sparsemtl.data.images.classified.image_folders import AUXILIARY
from sparsemtl.data.images.classified.loader import check_every_class
from sparsemtl.data.options import Download, Root, checked
from sparsemtl.data.requirements import requires_files
from sparsemtl.data.subsets.class_sampling import ClassSampling, drawn_classes, named_classes
from sparsemtl.data.subsets.pool import classes_of, join
from sparsemtl.errors import ParameterError
from sparsemtl.registry.parameters import Count, Default, Natural
from sparsemtl.tasks import Classification


class _SamplingOptions(TypedDict, total=False):
    """Options of the samples and classes that are drawn."""

    classes: Annotated[Count, Default(10), Doc("Number of classes per drawn task, at least 2.")]
    overlap: Annotated[
        Natural, Default(3), Doc("Number of these that all drawn tasks have in common; no two have another in common.")
    ]
    samples_per_class: Annotated[Count, Default(20), Doc("Training samples per class of a small task.")]
    validation_per_class: Annotated[
        Count | None, Default(20), Doc("Validation samples likewise; None takes all that the sources have.")
    ]
    test_per_class: Annotated[Count | None, Default(None), Doc("Test samples likewise.")]
    seed: Annotated[
        Natural | None,
        Default(0),
        Doc(
            "Seed of the classes and samples that are drawn, in a configuration null for the run's; a source is split "
            "by the seed among its own parameters."
        ),
    ]


@requires_files(remark="it is cut out of other data sets, which declare their own files.")
@checked
def label_subsets(
    *,
    root: Root = None,
    download: Download = False,
    source: Annotated[
        str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]],
        Doc(
            "A data set, or several whose inputs have one shape: each its name, or a mapping of its `name`, its `task` "
            "(the classification to cut, if it has several) and its parameters. Classes of several sources are called "
            "`mnist/3`."
        ),
    ] = ("mnist", "fashion-mnist"),
    tasks: Annotated[
        Count | Mapping[str, Sequence[str | int]],
        Doc("Number of tasks, whose classes are drawn; or task -> its classes, by name or index."),
    ] = 2,
    auxiliary: Annotated[
        Literal["rest", "all", "none"],
        Doc(
            "The task `auxiliary` of all classes learns from the training samples from which no small task learns "
            "(rest), or from all (all); or there is none (none). It is evaluated on all the sources' samples."
        ),
    ] = "rest",
    **sampling: Unpack[_SamplingOptions],
) -> TaskData:
    """Label subsets: small tasks with classes of their own cut out of data sets, and one big task of all classes.

    Training samples come from the sources' training samples, validation and test samples from theirs: no task is tested
    on a sample from which the auxiliary task learns. No two small tasks learn from the same sample, whatever classes
    they have in common; where they have one in common, they are tested on the same samples of it. Fewer samples
    per class are a part of more.

    Raises:
        DataError: if a class has too few samples, or the sources' inputs differ in shape.
        ParameterError: if there is no such class, or there are too few for the tasks.
    """
    from sparsemtl.data import DATASETS

    seed, per_class = sampling["seed"], sampling["samples_per_class"]
    if seed is None:
        raise ParameterError("seed: None stands for a run's seed, and this is no run. Give a number.")
    joined = join(DATASETS, source, root, download=download)
    if isinstance(tasks, Mapping):
        chosen = named_classes(tasks, joined.names)
    else:
        chosen = drawn_classes(len(joined.names), tasks, sampling["classes"], sampling["overlap"], seed=seed)
    if auxiliary != "none" and AUXILIARY in chosen:
        raise ParameterError(
            f"tasks: {AUXILIARY!r} is what the task of all classes is called. Name this one otherwise."
        )
    train, validation, test = (
        ClassSampling(pool.classes, joined.names, split, seed=seed)
        for pool, split in zip(joined.pools, ("training", "validation", "test"), strict=True)
    )
    rows = (
        train.disjoint(chosen, per_class),
        validation.common(chosen, sampling["validation_per_class"]),
        test.common(chosen, sampling["test_per_class"]),
    )
    if auxiliary != "none":
        chosen[AUXILIARY] = list(range(len(joined.names)))
        taken = list(rows[0].values()) if auxiliary == "rest" else []
        for drawn, split, excluded in zip(rows, (train, validation, test), (taken, (), ()), strict=True):
            drawn[AUXILIARY] = split.others(excluded)
    made = tuple(Classification(task, [joined.names[index] for index in of]) for task, of in chosen.items())
    to_train, to_validate, to_test = (
        {task: pool.samples(drawn[task], task, of) for task, of in chosen.items()}
        for pool, drawn in zip(joined.pools, rows, strict=True)
    )
    for task in made:
        counts = torch.bincount(classes_of(to_train[task.name], task), minlength=task.classes)
        check_every_class(f"task {task.name!r}", task.class_names, counts)
    drawing = f"{per_class} training samples per class of every small task, drawn with seed {seed}"
    notes = (drawing, *_about(made, to_train, auxiliary), *joined.notes)
    return TaskData("label-subsets", made, to_train, to_validate, to_test, notes, stem=joined.stem)


def _about(tasks: Sequence[Classification], train: Mapping[str, Samples], auxiliary: str) -> Iterator[str]:
    """Yield the notes on the classes of the tasks, and on the training samples of the auxiliary task."""
    for task in tasks:
        if task.name != AUXILIARY or auxiliary == "none":
            yield f"{task.name}: {', '.join(task.class_names)}"
        else:
            others = "no other task learns from them" if auxiliary == "rest" else "those of the other tasks among them"
            yield f"{AUXILIARY}: all {task.classes} classes, {len(train[AUXILIARY]):,} training samples, {others}"
