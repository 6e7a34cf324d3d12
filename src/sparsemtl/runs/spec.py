"""What a run begins with: its configuration, its data, and the same of the run before it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from copy import copy
from dataclasses import replace
from functools import cached_property
from typing import Any

from sparsemtl.data import DATASETS, TaskData
from sparsemtl.errors import ConfigError, unknown_name
from sparsemtl.runs.config import data_of, pretraining_config
from sparsemtl.tasks import Task
from sparsemtl.tasks.options import with_options

WHICH_DATA = ("name", "root", "path", "source")
"""What in the section `data` says which data set it is; all else says how much of it, and in which form."""


class RunSpec:
    """A complete configuration with its data and the plan of the run before it, each made once, when it is asked for.

    Args:
        config: the complete configuration.
        built: whole data sets that are built already, by their sections. Those that this plan builds are added, so
            that each is built once for all plans that have this in common, as those of a run and the run before do.
    """

    def __init__(self, config: Mapping[str, Any], built: dict[str, TaskData] | None = None) -> None:
        self.config = config
        self._built = {} if built is None else built

    @cached_property
    def before(self) -> RunSpec | None:
        """The plan of the run before the run, if there is one."""
        config = pretraining_config(self.config)
        return None if config is None else RunSpec(config, self._built)

    @cached_property
    def data(self) -> TaskData:
        """The data set, with its tasks chosen, weighted and given their primary metrics.

        What the configuration says of tasks that it does not train is left alone: methods of a study may train fewer.
        Tasks that the run before trains on the same data set are not chosen by default.

        Raises:
            ConfigError: if the configuration names a task that the data set lacks, or an option that a task lacks.
        """
        whole = self._whole()
        for key in ("tasks", "weights", "task_options", "primary", "heads"):
            _check_tasks(key, self.config[key] or (), whole)
        chosen = self._chosen(whole)
        data = whole if chosen is None else whole.only(chosen)
        return replace(data, tasks=tuple(map(self._judged, data.tasks)))

    def _whole(self) -> TaskData:
        """The data set with all its tasks."""
        section = data_of(self.config)
        key = json.dumps(section, sort_keys=True)
        if key not in self._built:
            self._built[key] = DATASETS.build(section.pop("name"), **section)
        return self._built[key]

    def _chosen(self, whole: TaskData) -> list[str] | None:
        """The tasks that are named, or that the run before leaves, if it trains some and leaves any; None: all."""
        if self.config["tasks"] is not None:
            return list(self.config["tasks"])
        trained = self._trained_before()
        return [task.name for task in whole.tasks if trained and task.name not in trained] or None

    def _trained_before(self) -> Collection[str]:
        """The tasks that the run before trains on the same data set, as far as it names them."""
        if self.before is None:
            return ()
        here, there = self.config["data"], self.before.config["data"]
        same = all(here.get(key) == there.get(key) for key in WHICH_DATA)
        return self.before.config["tasks"] or () if same else ()

    def _judged(self, task: Task) -> Task:
        """The task with the configuration's options, weight and primary metric."""
        own = copy(with_options(task, self.config["task_options"].get(task.name, {})))
        own.weight = float(self.config["weights"].get(task.name, task.weight))
        own.primary = self.config["primary"].get(task.name)
        return own


def _check_tasks(key: str, names: Iterable[str], data: TaskData) -> None:
    known = [task.name for task in data.tasks]
    for name in names:
        if name not in known:
            raise ConfigError(f"{key}: {unknown_name('task', name, known)}")
