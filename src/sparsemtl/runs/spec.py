"""Specification of a run: its configuration, its data, and the specification of its pretraining run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sparsemtl.data import DATASETS, TaskData
from sparsemtl.data.base import Loaders
from sparsemtl.errors import ConfigError, unknown_name
from sparsemtl.networks.randomness import fork_rng, seed_everything
from sparsemtl.runs.pretraining import pretrained_tasks, pretraining_config
from sparsemtl.runs.validation import data_section
from sparsemtl.tasks import Task
from sparsemtl.tasks.batches import as_group
from sparsemtl.tasks.options import with_options


class RunSpec:
    """A complete configuration with its data and its pretraining run, each built once, on first use.

    Args:
        config: the complete configuration.
        built: cache of data sets with all their tasks, by section. A run and its pretraining run have one cache, so
            that a data set is built once for both.
    """

    def __init__(self, config: Mapping[str, Any], built: dict[str, TaskData] | None = None) -> None:
        self.config = config
        self.built = {} if built is None else built

    @cached_property
    def pretraining(self) -> RunSpec | None:
        """Specification of the pretraining run; None without `pretraining`."""
        config = pretraining_config(self.config)
        return None if config is None else RunSpec(config, self.built)

    @cached_property
    def data(self) -> TaskData:
        """Data set with the run's tasks, their weights, options and primary metrics.

        Weights and options of tasks that the run does not train have no effect: methods of a study may train fewer.
        Tasks that the pretraining run names and trains on the same data set are left out by default.

        Raises:
            ConfigError: if the configuration names a task that the data set lacks, or an option that a task lacks.
        """
        whole = self._whole()
        for key in ("tasks", "weights", "task_options", "primary", "heads"):
            _check_tasks(key, self.config[key] or (), whole)
        chosen = self._chosen(whole)
        data = whole if chosen is None else whole.only(chosen)
        return replace(data, tasks=tuple(self._judged(task, data) for task in data.tasks))

    def loaders(self) -> tuple[Loaders, Loaders, Loaders]:
        """Return the loaders of training, validation and test data."""
        training = self.config["training"]
        return self.data.loaders(training["batch_size"], drop_last=training["drop_last"])

    def _whole(self) -> TaskData:
        """Return the data set with all its tasks."""
        section = data_section(self.config)
        key = json.dumps(section, sort_keys=True)
        if key not in self.built:
            self.built[key] = DATASETS.build(section.pop("name"), **section)
        return self.built[key]

    def _chosen(self, whole: TaskData) -> list[str] | None:
        """Return the tasks that the configuration names, or those that pretraining leaves; None for all."""
        if self.config["tasks"] is not None:
            return list(self.config["tasks"])
        trained = pretrained_tasks(self)
        return [task.name for task in whole.tasks if trained and task.name not in trained] or None

    def _judged(self, task: Task, data: TaskData) -> Task:
        """Return the task with the configuration's options, weight and primary metric."""
        options = self.config["task_options"].get(task.name, {})
        with fork_rng():  # a loss of the user's own may be a module with random initial weights
            seed_everything(self.config["seed"])
            own = copy(with_options(task, options, lambda: _training_labels(task, data)))
        own.weight = float(self.config["weights"].get(task.name, task.weight))
        own.primary = self.config["primary"].get(task.name)
        return own


def _check_tasks(key: str, names: Iterable[str], data: TaskData) -> None:
    known = [task.name for task in data.tasks]
    for name in names:
        if name not in known:
            raise ConfigError(f"{key}: {unknown_name('task', name, known)}")


def _training_labels(task: Task, data: TaskData) -> Tensor:
    """Return the labels of a task's training samples, in order."""
    part = data.train[task.name] if isinstance(data.train, Mapping) else data.train
    groups = (as_group(batch, {task.name: task}, owner=task.name) for batch in part.loader(4096))
    return torch.cat([task.labels(group.targets) for group in groups])
