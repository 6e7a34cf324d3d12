"""Assembled networks: each task runs the one of several trained models that was chosen for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from sparsemtl.errors import ParameterError
from sparsemtl.networks.masks import TaskMasks
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.networks.shared_coverage import shared_coverage
from sparsemtl.networks.task_networks import TaskNetwork, TaskNetworks


class AssembledModel(MultiTaskModel):
    """Several multi-task models, of which each task runs the one that was chosen for it.

    Tasks that chose the same model share what they share there, and compute it once. Models that no task chose are left
    out, and so are heads and encoders of other tasks: modules of `task_modules` in a `ModuleDict`. They are removed
    from the models that are given.

    Args:
        models: name -> model.
        choice: task -> name of its model, in the order of the tasks.

    Attributes:
        names: names of the models in use, in the order of `models`.
        choice: task -> name of its model.

    Raises:
        ParameterError: if a model is unknown, or lacks a task that chose it.
    """

    def __init__(self, models: Mapping[str, MultiTaskModel], choice: Mapping[str, str]) -> None:
        for task, name in choice.items():
            if name not in models:
                raise ParameterError(f"task {task!r}: there is no model {name!r}. Known: {', '.join(models)}.")
            models[name].check_task(task)
        super().__init__([models[name].tasks[task] for task, name in choice.items()])
        if "task_losses" in self._modules:
            del self.task_losses  # they belong to the models
        self.choice = dict(choice)
        self.names = tuple(name for name in models if name in choice.values())
        self._own_tasks = tuple(tuple(t for t in choice if choice[t] == name) for name in self.names)
        users = [models[name].parameter_tasks() for name in self.names]
        for name, tasks in zip(self.names, self._own_tasks, strict=True):
            _remove_others(models[name], tasks)
        self.models = nn.ModuleList(models[name] for name in self.names)
        self._users = {
            f"models.{number}.{parameter}": users[number][parameter] & frozenset(self._own_tasks[number])
            for number, model in enumerate(self.models)
            for parameter, _ in model.named_parameters()
        }

    def forward(self, x: Any, tasks: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Run each model that a named task chose, once."""
        chosen = self.chosen(tasks)
        outputs: dict[str, Tensor] = {}
        for model, own in zip(self.models, self._own_tasks, strict=True):
            asked = tuple(task for task in chosen if task in own)
            if asked:
                outputs.update(model(x, tasks=asked))
        return {task: outputs[task] for task in chosen}

    def parameter_tasks(self) -> dict[str, frozenset[str]]:
        """Return the tasks that use each parameter."""
        return dict(self._users)

    def shared_modules(self) -> dict[str, nn.Module]:
        """Return the shared modules of all models."""
        return self._of_all(lambda model: model.shared_modules())

    def unmasked_modules(self) -> dict[str, nn.Module]:
        """Return the modules of all models that several tasks use beside the shared ones."""
        return self._of_all(lambda model: model.unmasked_modules())

    def replicated_modules(self) -> dict[str, nn.Module]:
        """Return the modules of all models of which every task has a copy."""
        return self._of_all(lambda model: model.replicated_modules())

    def encoder_modules(self) -> dict[str, nn.Module]:
        """Return an empty mapping: the models are trained."""
        return {}

    def _of_all(self, modules: Callable[[Any], Mapping[str, nn.Module]]) -> dict[str, nn.Module]:
        return {
            f"models.{number}.{name}": module
            for number, model in enumerate(self.models)
            for name, module in modules(model).items()
        }

    def task_modules(self, task: str) -> dict[str, nn.Module]:
        """Return the modules of the task's model that only this task uses."""
        self.check_task(task)
        number = self.names.index(self.choice[task])
        model: Any = self.models[number]
        return {f"models.{number}.{name}": module for name, module in model.task_modules(task).items()}

    def summary(self) -> dict[str, Any]:
        """Return the model of each task."""
        return {"choice": dict(self.choice)}


def assembled_networks(model: AssembledModel, networks: Mapping[str, TaskNetworks]) -> TaskNetworks:
    """Return the networks of an assembled model: each task has that of the model that it chose.

    The masks cover the maskable weights of all models, and the encoders' weights of models that share none; a task
    keeps none of those of the other models.

    Args:
        model: the assembled model.
        networks: name of a model -> networks of its tasks.
    """
    covered = {
        name: _covered(cast("MultiTaskModel", model.models[number]), networks[name].masks)
        for number, name in enumerate(model.names)
    }
    made = {task: _assembled(model, networks, task, covered) for task in model.tasks}
    return TaskNetworks(made, model=type(model).__name__, method="auto")


def _covered(model: MultiTaskModel, masks: TaskMasks | None) -> dict[str, Tensor]:
    """Return the weights of a model that masks cover, all ones: shared ones, else those of the tasks' encoders."""
    parameters = dict(model.named_parameters())
    if masks is not None:
        names = list(masks.shapes())
    elif not (names := list(shared_coverage(model).covered)):
        prefixes = tuple(f"{name}." for name in model.encoder_modules())
        names = [name for name, p in parameters.items() if p.ndim > 1 and name.startswith(prefixes)]
    return {name: torch.ones_like(parameters[name], dtype=torch.bool) for name in names}


def _assembled(
    model: AssembledModel,
    networks: Mapping[str, TaskNetworks],
    task: str,
    covered: Mapping[str, Mapping[str, Tensor]],
) -> TaskNetwork:
    """Return the network of one task."""
    chosen, users = model.choice[task], model.parameter_tasks()
    network, masks = networks[chosen].detached()[task], networks[chosen].masks
    prefix = f"models.{model.names.index(chosen)}."
    kept: dict[str, Tensor] = {}
    for number, name in enumerate(model.names):
        for parameter, ones in covered[name].items():
            full = f"models.{number}.{parameter}"
            own = ones if masks is None or name != chosen else masks[task][parameter]
            kept[full] = own if task in users[full] else torch.zeros_like(ones)

    def prefixed(tensors: Mapping[str, Any]) -> dict[str, Any]:
        return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}

    return TaskNetwork(
        weight_factors=prefixed(network.weight_factors),
        output_factors=prefixed(network.output_factors),
        own_tensors=prefixed(network.own_tensors),
        kept_weights=kept,
    )


def _remove_others(model: MultiTaskModel, tasks: Iterable[str]) -> None:
    """Remove modules of other tasks from the dictionaries of modules that hold them."""
    modules = dict(model.named_modules())
    for task in set(model.tasks) - set(tasks):
        for name in model.task_modules(task):
            parent, _, own = name.rpartition(".")
            if isinstance(holder := modules.get(parent), nn.ModuleDict) and own in holder:
                del holder[own]
