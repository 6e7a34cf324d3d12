"""Inputs of a model besides its configuration, kept in the run folder: tasks, shape of an input, and stem."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from sparsemtl.data import TaskData
from sparsemtl.data.tables.embedding import ColumnEmbedding
from sparsemtl.errors import CheckpointError
from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.storage.text_files import read_json, write_json
from sparsemtl.tasks import TASKS, Task
from sparsemtl.tasks.options import CODE, with_code


@dataclass(frozen=True)
class ModelInputs:
    """Stand-in for a data set, of which a model is built.

    Attributes:
        tasks: the tasks.
        input_shape: shape of one sample.
        stem: function that returns a new stem of the encoder; None without one.
    """

    tasks: tuple[Task, ...]
    input_shape: tuple[int, ...]
    stem: Callable[[], nn.Module] | None

    def labels(self) -> Any:
        """Raise: labels are in the data only."""
        raise CheckpointError("the architecture is built from the labels of the training data.")


def write_inputs(folder: RunFolder, data: TaskData, task_options: Mapping[str, Any]) -> None:
    """Write what a model is built from beside the configuration: the tasks, the shape of an input, and the stem."""
    tasks = [_record(task, task_options.get(task.name, {})) for task in data.tasks]
    if None not in tasks:
        write_json(folder.inputs, {"tasks": tasks, "shape": list(data.input_shape), "stem": _stem_record(data.stem)})


def read_inputs(folder: RunFolder) -> ModelInputs:
    """Read what `write_inputs` wrote.

    Raises:
        CheckpointError: if the file is damaged.
    """
    record = read_json(folder.inputs)
    try:
        return ModelInputs(
            tuple(map(_task, record["tasks"])),
            tuple(record["shape"]),
            None if record["stem"] is None else partial(ColumnEmbedding, **record["stem"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder.inputs} is damaged: {error!r}.") from None


def _record(task: Task, options: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the arguments of a task as JSON; None if they are none, such as a loss of a user's own data set.

    Args:
        task: the task.
        options: its options in the configuration, by whose names code is recorded.
    """
    kind = next((name for name, kind in TASKS.items() if kind is type(task)), None)
    args, kwargs = task._arguments
    named = {name: options[name] for name in CODE if name in options}
    kwargs = {**kwargs, **named}
    record = {"kind": kind, "args": list(args), "kwargs": kwargs, "weight": task.weight, "primary": task.primary}
    try:
        return None if kind is None else json.loads(json.dumps(record))
    except TypeError:
        return None


def _task(record: Mapping[str, Any]) -> Task:
    kwargs = with_code(record["kwargs"], f"task {record['args'][0]!r}" if record["args"] else "a task")
    task: Task = TASKS[record["kind"]](*record["args"], **kwargs)
    task.weight = record["weight"]
    task.primary = record["primary"]
    return task


def _stem_record(stem: Any) -> dict[str, Any] | None:
    if stem is None:
        return None
    cardinalities, numeric = stem.args
    return {"cardinalities": list(cardinalities), "numeric": numeric, **stem.keywords}
