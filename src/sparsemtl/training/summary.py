"""Content of `summary.json`: results of a run per task, sizes, cost, and declarations for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparsemtl.networks.declarations import to_record
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.optim.schedules import Schedule
from sparsemtl.tasks.task import Task
from sparsemtl.training.costs import RunCost
from sparsemtl.training.evaluation.metric_facts import metric_facts
from sparsemtl.training.evaluation.results import Results
from sparsemtl.training.evaluation.selection import Selection
from sparsemtl.training.options import TrainingOptions
from sparsemtl.training.setup import RunParts


@dataclass(frozen=True)
class RunResults:
    """Results of a run.

    Attributes:
        name: name of the run.
        status: `trained`, or `finished` after the test.
        epochs: number of epochs trained.
        seconds: time spent in training steps.
        validation: task -> metric -> value on validation data, at the selected epoch.
        test: the same on test data; empty before the test.
        notes: remarks beside the figures.
        cost: cost of the networks; None if it was not measured.
    """

    name: str
    status: str
    epochs: int
    seconds: float
    validation: Results
    test: Results
    notes: Sequence[str] = ()
    cost: RunCost | None = None


def summarize(
    results: RunResults,
    parts: RunParts,
    *,
    config: Mapping[str, Any],
    networks: TaskNetworks,
    selection: Selection,
) -> dict[str, Any]:
    """Return the content of `summary.json`."""
    model, sharing, balancer = parts.model, parts.sharing, parts.balancer
    axes = ("data", "encoder", "architecture", "sharing", "balancing")
    masks = networks.kept(model.shared_parameters())
    return {
        "name": results.name,
        "status": results.status,
        "method": config.get("label") or _method_label(config),
        "seed": config.get("seed"),
        "epochs": results.epochs,
        "monitor": selection.monitor,
        "selection": selection.summary(),
        "seconds": results.seconds,
        "notes": list(results.notes),
        "axes": {axis: _name(config.get(axis)) for axis in axes},
        "parameters": {
            "total": sum(p.numel() for p in model.parameters()),
            "shared": sum(p.numel() for p in model.shared_parameters().values()),
            "maskable": masks.size() if masks else 0,
            "kept": {task: masks.count(task) for task in masks} if masks else {},
        },
        "independent_tasks": model.independent,
        "tasks": {
            name: _task_entry(task, selection, results.validation.get(name, {}), results.test.get(name, {}))
            for name, task in model.tasks.items()
        },
        "cost": None if results.cost is None else results.cost.record(),
        "architecture": model.summary(),
        "sharing": sharing.summary(model, networks),
        "declarations": {
            "architecture": to_record(model.figures, model.tables()),
            "sharing": to_record(sharing.figures, sharing.tables(model, networks)),
            "balancing": to_record(() if balancer.constant else balancer.figures, balancer.tables()),
        },
    }


def _task_entry(
    task: Task, selection: Selection, validation: Mapping[str, float], test: Mapping[str, float]
) -> dict[str, Any]:
    facts = metric_facts(task)
    return {
        "kind": type(task).__name__,
        "classes": getattr(task, "class_names", None) or getattr(task, "label_names", None),
        "primary": facts.primary,
        "best_epoch": selection.best_epoch(task.name),
        "directions": {**dict.fromkeys(task.loss_names, False), **facts.directions},
        "validation": dict(validation),
        "test": dict(test),
    }


def _method_label(config: Mapping[str, Any]) -> str:
    """Return a short name of the run's method: "shared-bottom, fisher keep 0.3, uncertainty"."""
    architecture, sharing, balancing = (_name(config.get(k)) for k in ("architecture", "sharing", "balancing"))
    keep = config.get("sharing", {}).get("keep") if isinstance(config.get("sharing"), Mapping) else None
    parts = [architecture, f"{sharing} keep {keep}" if keep is not None else sharing, balancing]
    return ", ".join(part for part in parts if part and part not in ("dense", "mean"))


def _name(section: Any) -> str | None:
    return section.get("name") if isinstance(section, Mapping) else section


def described(parts: RunParts, options: TrainingOptions) -> dict[str, Any]:
    """Return a configuration that describes the objects of a run, which was made without one."""
    model, sharing, balancer = parts.model, parts.sharing, parts.balancer
    plain = (str, int, float, bool, type(None))
    own = {n: v for n, v in vars(sharing).items() if not n.startswith("_") and isinstance(v, plain)}
    return {
        "seed": options["seed"],
        "architecture": {"name": type(model).__name__},
        "sharing": {"name": type(sharing).__name__, **own},
        "balancing": {"name": type(balancer).__name__},
        "training": {
            "epochs": options["epochs"],
            "accumulate": options["accumulate"],
            "precision": options["precision"],
        },
        **({"scheduler": parts.scheduler.described()} if isinstance(parts.scheduler, Schedule) else {}),
        **({} if options["teacher"] is None else {"teacher": repr(options["teacher"])}),
    }
