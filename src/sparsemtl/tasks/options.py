"""Options of a data set's tasks in a configuration: `task_options: {depth: {criterion: mse}}`.

They are the keyword parameters of the kind of task, without those that the data set decides. Losses, likelihoods and
metrics of the user's own are named: `task_options: {depth: {loss: losses.py:berhu}}`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from sparsemtl.errors import ConfigError, SparseMTLError, unknown_name
from sparsemtl.registry.checking import fits
from sparsemtl.registry.named_code import load_code, names_code
from sparsemtl.registry.parameters import Parameter, parameters_of
from sparsemtl.tasks import TASKS, Task
from sparsemtl.tasks.classes import balanced_class_weights

_NO_OPTIONS = ("weight", "target", "ignore_index", "background", "predict")
"""Parameters that are no options: `weights` is a key of a run, `predict` is code, the others depend on the labels."""
CODE = ("loss", "likelihood", "metrics")
"""Options whose values may name code."""


def options_of(kind: Callable[..., Task]) -> dict[str, Parameter]:
    """Return the options of a kind of task by name."""
    return {name: parameter for name, parameter in parameters_of(kind).items() if name not in _NO_OPTIONS}


def check_options(options: Mapping[str, Any]) -> str | None:
    """Return an error message if no kind of task has an option of such a name, else None.

    Args:
        options: options of one task.
    """
    known = {name for kind in TASKS.values() for name in options_of(kind)}
    wrong = next((name for name in options if name not in known), None)
    return None if wrong is None else unknown_name("task option", wrong, known)


def with_options(task: Task, options: Mapping[str, Any], labels: Callable[[], Tensor] | None = None) -> Task:
    """Return a copy of a task with options changed, the task itself without options.

    Args:
        task: the task.
        options: its options.
        labels: returns the training labels, for `class_weights: balanced`.

    Raises:
        ConfigError: if the kind of task has no such option, or the option refuses the value.
    """
    if not options:
        return task
    known, kind, place = options_of(type(task)), type(task).__name__, f"task_options.{task.name}"
    options = with_code(options, place)
    for name, value in options.items():
        if name not in known:
            raise ConfigError(f"{place}: {unknown_name(f'option of {kind}', name, known)}")
        if not fits(value, known[name].hint):
            raise ConfigError(f"{place}.{name}: expected {known[name].kind}, got {value!r}.")
    try:
        if labels is not None and options.get("class_weights") == "balanced":
            options = {**options, "class_weights": _balanced(task, labels())}
        changed = task.with_parameters(**options)
        changed.metrics()
    except SparseMTLError as error:
        raise ConfigError(f"{place}: {error}") from None
    return changed


def with_code(options: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return options of a task with the functions and objects that their values name.

    Args:
        options: options as a configuration has them.
        place: place in the configuration, for messages.

    Raises:
        ConfigError: if code cannot be loaded, see `load_code`.
    """
    loaded = dict(options)
    for name in [name for name in CODE if name in options]:
        try:
            loaded[name] = _metrics(options[name]) if name == "metrics" else _loaded(options[name], name)
        except ConfigError as error:
            raise ConfigError(f"{place}.{name}: {error}") from error
    return loaded


def _loaded(value: Any, option: str) -> Any:
    """Return the function or object of a name, or those of several names."""
    if names_code(value):
        return load_code(value)
    if isinstance(value, Mapping) and "name" not in value:
        return {name: _loaded(each, option) for name, each in value.items()}
    if (isinstance(value, str) and value != "loss") or isinstance(value, Mapping):
        found = value.get("name") if isinstance(value, Mapping) else value
        raise ConfigError(f"expected `file.py:name` or `package.module:name` for a {option}, got {found!r}.")
    return value


def _metrics(metrics: Any) -> Any:
    """Return metrics with the functions and objects of their names; of a list, under their own names."""
    if isinstance(metrics, list) and any(names_code(each) for each in metrics):
        metrics = {each.rpartition(":")[2] if names_code(each) else each: each for each in metrics}
    if isinstance(metrics, Mapping):
        return {name: load_code(each) if names_code(each) else each for name, each in metrics.items()}
    return metrics


def _balanced(task: Task, labels: Tensor) -> list[float]:
    """Return the weights of the classes of a task whose kind has classes."""
    ignore_index: int = task.ignore_index  # type: ignore[attr-defined]
    return balanced_class_weights(labels, task.outputs, ignore_index)
