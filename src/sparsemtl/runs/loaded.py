"""Load a run: its model, tasks and networks from the run folder alone, in another process and without the data."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from sparsemtl.architectures.assembled import AssembledModel
from sparsemtl.compaction import Bundle, ServingPlan, compact, plan, save_bundle
from sparsemtl.compaction.pipeline import CompactedModule
from sparsemtl.compaction.plans.plan import Cost
from sparsemtl.data import TaskData
from sparsemtl.errors import CheckpointError, SparseMTLError
from sparsemtl.networks.mask_description import left_out_of
from sparsemtl.networks.masks import TaskMasks
from sparsemtl.networks.model import MultiTaskModel, placement
from sparsemtl.networks.modes import eval_mode
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.runs.auto_options import AUTO, GROUPS
from sparsemtl.runs.config import candidate_configs, check, groups_base, with_groups
from sparsemtl.runs.model_inputs import ModelInputs, read_inputs
from sparsemtl.runs.models import make_model
from sparsemtl.storage.files import read_tensors, read_tree
from sparsemtl.storage.metrics import metrics_frame
from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.storage.text_files import read_json
from sparsemtl.tasks import Task
from sparsemtl.tasks.batches import Group, Loaders, check_loaders
from sparsemtl.training.evaluation.evaluate import evaluate
from sparsemtl.training.evaluation.results import Results
from sparsemtl.training.evaluation.trained import Trained

if TYPE_CHECKING:
    from sparsemtl.storage.history import History


@dataclass(frozen=True)
class LoadedRun:
    """A finished or trained run.

    Attributes:
        folder: the run folder.
        config: its complete configuration; a description of the objects for a run that was made in Python.
        model: the model with the weights of the selected epoch, in eval mode.
        networks: the networks of its tasks.
    """

    folder: RunFolder
    config: Mapping[str, Any]
    model: MultiTaskModel
    networks: TaskNetworks

    def __repr__(self) -> str:
        return f"LoadedRun({str(self.folder.path)!r}; {type(self.model).__name__} of {', '.join(self.tasks)})"

    @property
    def tasks(self) -> dict[str, Task]:
        """Tasks by name."""
        return self.model.tasks

    @property
    def masks(self) -> TaskMasks | None:
        """Shared weights that each task uses, with the reason why others are left out; None if all tasks use all."""
        masks = self.networks.kept(self.model.shared_parameters())
        if masks is not None and masks.left_out is None:  # soft masks, and files of earlier versions
            masks.left_out = dict(left_out_of(self.model, masks.shapes()))
        return masks

    @property
    def history(self) -> History:
        """Figures that the run logged, one per row: epoch, step, split, task, metric, value; `plot()` draws them.

        Raises:
            MissingExtraError: if pandas is not installed.
        """
        return metrics_frame(self.folder.read_metrics())

    @property
    def metrics(self) -> Results:
        """Metrics per task on the test data, NaN where undefined; empty before the test."""
        tasks = self.folder.read_summary()["tasks"] if self.folder.ended else {}
        return Results(
            {
                task: {name: nan if value is None else value for name, value in entry["test"].items()}
                for task, entry in tasks.items()
                if entry.get("test")
            }
        )

    def evaluate(self, loaders: Loaders) -> Results:
        """Return loss and metrics per task on other data, each task by its own network.

        Args:
            loaders: one loader for all tasks, or task -> loader.

        Raises:
            LabelError: if the loaders give no batch, or labels do not fit their task.
        """
        check_loaders(loaders, self.tasks)
        return evaluate(self._trained, loaders, placement(self.model)[0])

    @torch.no_grad()
    def predict(self, x: Any, tasks: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Return task -> outputs for one input, each by the task's own network.

        Args:
            x: a batch, as the data loaders of the run yield it.
            tasks: names of the tasks, all by default.
        """
        with eval_mode(self.model):
            return self._trained.outputs(Group(x, {}, self.model.chosen(tasks)))

    @property
    def _trained(self) -> Trained:
        return Trained(self.model, self.networks, self.model)

    def network(self, task: str) -> MultiTaskModel:
        """Return a model, in eval mode, that is the network of the task."""
        self.model.check_task(task)
        return cast("MultiTaskModel", self.networks.network(self.model, task))

    def compact(self, task: str, example_inputs: Any = None, *, multiple_of: int | str = 1) -> CompactedModule:
        """Return the network of the task, physically small; see `sm.compact`.

        Args:
            task: name of the task.
            example_inputs: a batch that the model reads; by default the samples of the test data that the run keeps.
            multiple_of: number of which the channels of images become a multiple where they can, or a runtime.
        """
        self.model.check_task(task)
        example = self.samples(task) if example_inputs is None else example_inputs
        return compact(self.model, self.networks, task=task, example_inputs=example, multiple_of=multiple_of)

    def save_bundle(
        self,
        path: str | Path,
        tasks: Iterable[str] | None = None,
        *,
        axes: Collection[int] = (0,),
        multiple_of: int | str = 1,
    ) -> Bundle:
        """Write the small networks of all tasks to one file that stores what they share once; see `sm.save_bundle`.

        Args:
            path: the file.
            tasks: names of the tasks, all by default.
            axes: axes of the inputs whose length may differ from the samples', as for `sm.export`.
            multiple_of: see `compact`.
        """
        small = {task: self.compact(task, multiple_of=multiple_of) for task in self.model.chosen(tasks)}
        return save_bundle(small, path, model=self.model, axes=axes)

    def plan(
        self,
        tasks: Iterable[str] | None = None,
        *,
        by: Cost = "macs",
        example_inputs: Any = None,
        multiple_of: int | str = 1,
    ) -> ServingPlan:
        """Return the ways to compute all tasks, and the cheapest one; see `sm.plan`.

        Args:
            tasks: names of the tasks, all by default.
            by: `macs`, `bytes` or `milliseconds`.
            example_inputs: a batch that the model reads; by default the samples of the test data that the run keeps.
            multiple_of: see `compact`.
        """
        chosen = tuple(self.model.chosen(tasks))
        example = self.samples(chosen[0]) if example_inputs is None else example_inputs
        return plan(self.model, self.networks, tasks=chosen, example_inputs=example, by=by, multiple_of=multiple_of)

    def samples(self, task: str | None = None) -> Tensor | None:
        """Return inputs from the test data, of one task or by default of any; None if the run keeps none."""
        kept = read_tree(self.folder.samples) if self.folder.samples.is_file() else {}
        found = kept.get(task or next(iter(kept), ""), kept.get("all"))
        return None if found is None or not len(found["x"]) else found["x"]


def load_run(folder: str | Path, model: MultiTaskModel | None = None) -> LoadedRun:
    """Load the model of a run, its tasks and their networks.

    Args:
        folder: the run folder.
        model: the model to load the weights into, for a run that was made in Python or whose model cannot be built from
            the folder alone; its own weights are overwritten.

    Raises:
        CheckpointError: if the folder holds no trained run, a file is damaged, or the model cannot be built from it.

    Examples:
        >>> run = load_run("runs/digits")                   # doctest: +SKIP
        >>> run.predict(images)["digit"].argmax(1)          # doctest: +SKIP
    """
    run = RunFolder(folder)
    config = run.read_config()
    if not run.model.is_file() or not run.networks.is_file():
        raise CheckpointError(
            f"{run.path} holds no trained model yet: {run.model.name} or {run.networks.name} is missing."
        )
    own = _built(run, config) if model is None else model
    tensors, _ = read_tensors(run.model)
    try:
        own.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{run.model} does not fit {type(own).__name__}: {error}") from None
    return LoadedRun(run, config, own.eval(), TaskNetworks.load(run.networks, own))


def _built(run: RunFolder, config: Mapping[str, Any]) -> MultiTaskModel:
    by_hand = "Build the model as for training and pass it: load_run(folder, model=model)."
    if not run.inputs.is_file():
        raise CheckpointError(f"{run.path} does not describe how its model is built ({run.inputs.name}). {by_hand}")
    inputs = read_inputs(run)
    try:
        complete = check(config, where=str(run.config))
        if complete[AUTO] is None:
            return _fresh(complete, inputs)
        configs, choice = candidate_configs(complete), read_json(run.choice)
        if GROUPS in choice.values() and (base := groups_base(configs)) is not None:
            configs = with_groups(configs, base, read_json(run.candidates / "groups.json"))
        return AssembledModel({name: _fresh(candidate, inputs) for name, candidate in configs.items()}, choice)
    except SparseMTLError as error:
        raise CheckpointError(f"{run.path}: its model cannot be built without the data: {error} {by_hand}") from error


def _fresh(complete: Mapping[str, Any], inputs: ModelInputs) -> MultiTaskModel:
    return make_model({**complete, "pretrained": None, "pretraining": None}, cast("TaskData", inputs))
