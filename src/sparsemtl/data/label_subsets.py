"""Tasks with few samples and label sets of their own, cut out of data sets that have one class a sample.

DAMTL (Feng and Chen) draws ten classes a task; two tasks then have three classes in common, or none. Beside them
stands a big auxiliary task that knows all classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from sparsemtl.data.base import Samples, TaskData
from sparsemtl.data.image_folders import AUXILIARY
from sparsemtl.data.objects.parts import check_every_class
from sparsemtl.data.options import checked
from sparsemtl.data.requirements import requires_files
from sparsemtl.data.subsets.draws import Draws, drawn_classes, named_classes
from sparsemtl.data.subsets.pool import classes_of
from sparsemtl.data.subsets.sources import join
from sparsemtl.errors import ParameterError
from sparsemtl.registry.parameters import Count, Natural
from sparsemtl.tasks import Classification


@requires_files(remark="it is cut out of other data sets, which say themselves what they need.")
@checked
def label_subsets(
    *,
    root: str | Path | None = None,
    download: bool = False,
    source: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] = ("mnist", "fashion-mnist"),
    tasks: Count | Mapping[str, Sequence[str | int]] = 2,
    classes: Count = 10,
    overlap: Natural = 3,
    samples_per_class: Count = 20,
    validation_per_class: Count | None = 20,
    test_per_class: Count | None = None,
    auxiliary: Literal["rest", "all", "none"] = "rest",
    seed: Natural | None = 0,
) -> TaskData:
    """Label subsets: small tasks with classes of their own cut out of data sets, and one big task of all classes.

    Training samples come from the sources' training samples, validation and test samples from theirs: on what the
    auxiliary task learns, no task is tested. No two small tasks learn from the same sample, whatever classes they have
    in common; where they have one in common, they are tested on the same samples of it. Where fewer samples a class are
    asked for, they are among those that more would be.

    Args:
        root: folder under which data sets lie; SPARSEMTL_DATA, or ./data, by default.
        download: get absent files, where a source can.
        source: a data set, or several whose inputs have one shape: each its name, or a mapping of its `name`, its
            `task` (which classification, if it has several) and its parameters. Classes of several sources are called
            `mnist/3`.
        tasks: number of tasks, whose classes are drawn; or task -> its classes, by name or index.
        classes: number of classes of a task that is drawn, at least 2.
        overlap: how many of them all drawn tasks have in common; no two have one of the others.
        samples_per_class: training samples of every class of a small task.
        validation_per_class: validation samples likewise; None takes all that the sources have.
        test_per_class: test samples likewise.
        auxiliary: the task `auxiliary` of all classes learns from the training samples from which no small task learns
            (rest), or from all (all); or there is none (none). It is validated and tested on all the sources' samples.
        seed: of the classes and samples that are drawn, in a configuration null for the run's; a source is split by
            the seed among its own parameters.

    Raises:
        DataError: if a class has fewer samples than are asked for, or the sources' inputs differ in shape.
        ParameterError: if there is no such class, or there are too few for the tasks.
    """
    if seed is None:
        raise ParameterError("seed: None stands for a run's seed, and this is no run. Give a number.")
    sources = join(source, root, download=download)
    if isinstance(tasks, Mapping):
        chosen = named_classes(tasks, sources.names)
    else:
        chosen = drawn_classes(len(sources.names), tasks, classes, overlap, seed=seed)
    if auxiliary != "none" and AUXILIARY in chosen:
        raise ParameterError(
            f"tasks: {AUXILIARY!r} is what the task of all classes is called. Name this one otherwise."
        )
    train, validation, test = (
        Draws(pool.classes, sources.names, part, seed=seed)
        for pool, part in zip(sources.pools, ("training", "validation", "test"), strict=True)
    )
    learnt = train.apart(chosen, samples_per_class)
    validated, tested = validation.alike(chosen, validation_per_class), test.alike(chosen, test_per_class)
    if auxiliary != "none":
        chosen[AUXILIARY] = list(range(len(sources.names)))
        learnt[AUXILIARY] = train.others(learnt.values() if auxiliary == "rest" else ())
        validated[AUXILIARY], tested[AUXILIARY] = validation.others(()), test.others(())
    made = tuple(Classification(task, [sources.names[index] for index in of]) for task, of in chosen.items())
    parts = (
        {task: pool.samples(rows[task], task, of) for task, of in chosen.items()}
        for pool, rows in zip(sources.pools, (learnt, validated, tested), strict=True)
    )
    to_train, to_validate, to_test = parts
    _check_learnt(made, to_train)
    drawing = f"{samples_per_class} training samples a class of every small task, drawn with seed {seed}"
    notes = (drawing, *_about(made, to_train, auxiliary), *sources.notes)
    return TaskData("label-subsets", made, to_train, to_validate, to_test, notes, stem=sources.stem)


def _check_learnt(tasks: Sequence[Classification], train: Mapping[str, Samples]) -> None:
    for task in tasks:
        counts = torch.bincount(classes_of(train[task.name], task), minlength=task.classes)
        check_every_class(f"task {task.name!r}", task.class_names, counts)


def _about(tasks: Sequence[Classification], train: Mapping[str, Samples], auxiliary: str) -> Iterator[str]:
    """Say which classes tasks have, and what the auxiliary task learns from."""
    for task in tasks:
        if task.name != AUXILIARY or auxiliary == "none":
            yield f"{task.name}: {', '.join(task.class_names)}"
        else:
            others = "no other task learns from them" if auxiliary == "rest" else "those of the other tasks among them"
            yield f"{AUXILIARY}: all {task.classes} classes, {len(train[AUXILIARY]):,} training samples, {others}"
