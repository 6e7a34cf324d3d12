"""summary.json: what came out of a run, task by task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sparsemtl.balancing import Balancer
from sparsemtl.networks.declarations import to_record
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.sharing.sharing import Sharing
from sparsemtl.tasks.task import Task
from sparsemtl.training.costs import RunCost
from sparsemtl.training.evaluation import Results
from sparsemtl.training.selection import Selection


def summarize(
    *,
    name: str,
    status: str,
    config: Mapping[str, Any],
    model: MultiTaskModel,
    sharing: Sharing,
    networks: TaskNetworks,
    selection: Selection,
    epochs: int,
    seconds: float,
    validation: Results,
    test: Results,
    notes: Sequence[str] = (),
    cost: RunCost | None = None,
) -> dict[str, Any]:
    """Put a run's outcome together; see the keys."""
    axes = ("data", "encoder", "architecture", "sharing", "balancing")
    masks = networks.kept(model.shared_parameters())
    return {
        "name": name,
        "status": status,
        "method": config.get("label") or method_label(config),
        "seed": config.get("seed"),
        "epochs": epochs,
        "monitor": selection.monitor,
        "selection": selection.summary(),
        "seconds": seconds,
        "notes": list(notes),
        "axes": {axis: _name(config.get(axis)) for axis in axes},
        "parameters": {
            "total": sum(p.numel() for p in model.parameters()),
            "shared": sum(p.numel() for p in model.shared_parameters().values()),
            "maskable": masks.size() if masks else 0,
            "kept": {task: masks.count(task) for task in masks} if masks else {},
        },
        "independent_tasks": model.independent,
        "tasks": {
            task: _task(model.tasks[task], selection, validation.get(task, {}), test.get(task, {}))
            for task in model.tasks
        },
        "cost": None if cost is None else cost.record(),
        "architecture": model.summary(),
        "sharing": sharing.summary(model, networks),
        "declarations": {
            "architecture": to_record(model.figures, model.tables()),
            "sharing": to_record(sharing.figures, sharing.tables(model, networks)),
        },
    }


def _task(
    task: Task, selection: Selection, validation: Mapping[str, float], test: Mapping[str, float]
) -> dict[str, Any]:
    metrics = task.metrics()
    return {
        "kind": type(task).__name__,
        "classes": getattr(task, "class_names", None) or getattr(task, "label_names", None),
        "primary": next(iter(metrics)),
        "best_epoch": selection.best_epoch(task.name),
        "directions": {
            "loss": False,
            **{name: bool(metric.higher_is_better) for name, metric in metrics.items()},
        },
        "validation": dict(validation),
        "test": dict(test),
    }


def method_label(config: Mapping[str, Any]) -> str:
    """A run's place in the grid of methods, in short: "shared-bottom, fisher keep 0.3, uncertainty"."""
    architecture, sharing, balancing = (_name(config.get(k)) for k in ("architecture", "sharing", "balancing"))
    keep = config.get("sharing", {}).get("keep") if isinstance(config.get("sharing"), Mapping) else None
    parts = [architecture, f"{sharing} keep {keep}" if keep is not None else sharing, balancing]
    return ", ".join(part for part in parts if part and part not in ("dense", "mean"))


def _name(section: Any) -> str | None:
    return section.get("name") if isinstance(section, Mapping) else section


def described(
    model: MultiTaskModel, sharing: Sharing, balancer: Balancer, *, seed: int | None, training: Mapping[str, Any]
) -> dict[str, Any]:
    """A record of the objects of a run that was not made from a configuration."""
    plain = (str, int, float, bool, type(None))
    options = {n: v for n, v in vars(sharing).items() if not n.startswith("_") and isinstance(v, plain)}
    return {
        "seed": seed,
        "architecture": {"name": type(model).__name__},
        "sharing": {"name": type(sharing).__name__, **options},
        "balancing": {"name": type(balancer).__name__},
        "training": dict(training),
    }
