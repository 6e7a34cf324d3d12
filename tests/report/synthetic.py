"""Run and study folders as training leaves them, made up: figures that look real, from a seed."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from sparsemtl.networks.declarations import Figure, to_record
from sparsemtl.networks.masks import TaskMasks
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.storage.files import write_tree
from sparsemtl.storage.text_files import write_json
from sparsemtl.study.costs import SPLIT, cost_rows

KINDS = {
    "digit": ("Classification", "accuracy", True),
    "even": ("Classification", "accuracy", True),
    "loops": ("MultiLabel", "f1_macro", True),
    "ink": ("Regression", "mse", False),
}
CLASSES = {"digit": [str(d) for d in range(10)], "even": ["odd", "even"], "loops": ["top", "bottom"]}
FIGURES = (
    Figure("changed", "Weights replaced", "fraction of a renewed mask"),
    Figure("density", "Density", "fraction of the weights in use"),
    Figure("overlap", "Overlap", "mean Jaccard index of two tasks", per_task=False),
)
LAYERS = {
    "encoder.0.weight": (16, 1, 3, 3),
    "encoder.3.weight": (32, 16, 3, 3),
    "encoder.7.weight": (64, 512),
}


def score(task: str, progress: float, skill: float, noise: float) -> float:
    """A primary metric after a part of the training."""
    if KINDS[task][2]:
        return min(0.35 + (0.6 + skill) * (1 - np.exp(-4 * progress)) + noise, 1.0)
    return max(0.12 * np.exp(-3 * progress) + 0.02 - skill / 3 + noise / 3, 0.001)


def make_masks(tasks: Sequence[str], keep: float, layers: Mapping[str, tuple[int, ...]], seed: int) -> TaskMasks:
    """Masks that overlap more than by chance, less so in deep layers."""
    generator = torch.Generator().manual_seed(seed)
    masks: dict[str, dict[str, torch.Tensor]] = {task: {} for task in tasks}
    for depth, (name, shape) in enumerate(layers.items()):
        common = torch.rand(shape, generator=generator)
        share = 0.75 - 0.5 * depth / max(len(layers) - 1, 1)
        density = min(keep * (1.6 - depth / len(layers)), 1.0)
        for task in tasks:
            own = torch.rand(shape, generator=generator)
            wanted = share * common + (1 - share) * own
            masks[task][name] = wanted >= wanted.quantile(1 - density) if wanted.numel() < 10**6 else own < density
    return TaskMasks(masks, model="SharedBottom", method="fisher")


def make_samples(tasks: Sequence[str], count: int, seed: int) -> dict[str, object]:
    """Blurry blobs with labels and mostly right answers."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:8, 0:8]
    centres = rng.uniform(2, 6, (count, 2, 1, 1))
    x = np.exp(-((rows - centres[:, 0]) ** 2 + (columns - centres[:, 1]) ** 2) / 4) + 0.1 * rng.random((count, 8, 8))
    answers = {}
    for task in tasks:
        wrong = torch.from_numpy(rng.random(count) < 0.15)
        if KINDS[task][0] == "Classification":
            target = torch.from_numpy(rng.integers(0, len(CLASSES[task]), count))
            prediction = torch.where(wrong, (target + 1) % len(CLASSES[task]), target)
        elif KINDS[task][0] == "MultiLabel":
            target = torch.from_numpy(rng.integers(0, 2, (count, 2))).float()
            prediction = torch.where(wrong[:, None], 1 - target, target).long()
        else:
            target = torch.from_numpy(rng.random(count)).float()
            prediction = target + 0.05 * torch.randn(count, generator=torch.Generator().manual_seed(seed))
        answers[task] = {"target": target, "prediction": prediction}
    return {"all": {"x": torch.from_numpy(x).float()[:, None], "tasks": answers}}


def make_run(
    path: Path,
    *,
    tasks: Sequence[str] = ("digit", "even", "loops", "ink"),
    method: str = "fisher",
    keep: float | None = 0.3,
    seed: int = 0,
    epochs: int = 12,
    skill: float = 0.0,
    layers: Mapping[str, tuple[int, ...]] = LAYERS,
    notes: Sequence[str] = (),
) -> Path:
    """Write a run folder with every file that training writes; without `keep` it is dense, no masks."""
    rng = np.random.default_rng(seed)
    path.mkdir(parents=True, exist_ok=True)
    rows = list(_metric_rows(tasks, epochs, skill, rng, keep is not None))
    pd.DataFrame(rows, columns=["epoch", "step", "split", "task", "metric", "value"]).to_csv(
        path / "metrics.csv", index=False
    )
    masks = make_masks(tasks, keep, layers, seed) if keep is not None else None
    if masks is not None:
        TaskNetworks.of_masks(masks).save(path / "networks.safetensors")
    write_tree(path / "samples.safetensors", make_samples(tasks, 18, seed))
    (path / "config.yaml").write_text(f"seed: {seed}\ndata:\n  name: digits\nsharing:\n  name: {method}\n")
    versions = {"python": "3.11.2", "torch": "2.13.0", "sparsemtl": "0.1.0"}
    write_json(
        path / "environment.json",
        {"versions": versions, "device": "cpu", "threads": 2, "seed": seed, "platform": "Linux"},
    )
    write_json(path / "summary.json", _summary(path.name, tasks, method, keep, seed, epochs, skill, masks, notes, rng))
    return path


def _metric_rows(tasks, epochs, skill, rng, sparse):
    for epoch in range(1, epochs + 1):
        done = epoch / epochs
        for i, task in enumerate(tasks):
            noise = rng.normal(0, 0.008)
            loss = 2.2 * np.exp(-3 * done) + 0.1
            yield epoch, 20 * epoch, "train", task, "loss", loss
            yield epoch, 20 * epoch, "validation", task, "loss", loss * 1.15 + abs(noise)
            yield epoch, 20 * epoch, "validation", task, KINDS[task][1], score(task, done, skill, noise)
            yield epoch, 20 * epoch, "balancing", task, "weight", 1 + 0.2 * i * np.sin(done)
            if sparse and epoch > 2:
                yield epoch, 20 * epoch, "sharing", task, "changed", 0.4 * np.exp(-4 * done) + 0.01 * i
                yield epoch, 20 * epoch, "sharing", task, "density", 0.3
        if sparse and epoch > 2:
            yield epoch, 20 * epoch, "sharing", "", "overlap", 0.5 - 0.2 * done
        yield epoch, 20 * epoch, "run", "", "seconds", 1.5 * epoch
        yield epoch, 20 * epoch, "run", "", "samples_per_second", 8000 + 100 * rng.normal()


def _summary(name, tasks, method, keep, seed, epochs, skill, masks, notes, rng):
    figures = {}
    for task in tasks:
        kind, primary, higher = KINDS[task]
        shown = {primary: score(task, 1.0, skill, rng.normal(0, 0.008)), "loss": 0.2}
        figures[task] = {
            "kind": kind,
            "classes": CLASSES.get(task),
            "primary": primary,
            "best_epoch": epochs - 1,
            "directions": {primary: higher, "loss": False},
            "validation": shown,
            "test": {**shown, primary: score(task, 1.0, skill, rng.normal(0, 0.008))},
        }
    cost = _cost(tasks, method, keep)
    return {
        "name": name,
        "status": "finished",
        "method": method,
        "seed": seed,
        "epochs": epochs,
        "monitor": "mean primary metric",
        "seconds": 1.5 * epochs,
        "notes": list(notes),
        "axes": {
            "data": "digits",
            "encoder": "cnn",
            "architecture": "single-task" if method == "stl" else "shared-bottom",
            "sharing": method,
            "balancing": "mean",
        },
        "parameters": {
            "total": 54321,
            "shared": 50000,
            "maskable": masks.size() if masks is not None else 0,
            "kept": {task: masks.count(task) for task in tasks} if masks is not None else {},
        },
        "independent_tasks": method == "stl",
        "declarations": {
            "sharing": to_record(FIGURES if masks is not None else (), ()),
            "balancing": to_record([Figure("weight", "Loss weights", "factor of each task's loss")], ()),
        },
        "tasks": figures,
        "cost": cost,
    }


def _cost(tasks, method, keep):
    """Cost of a network per task, or of one for all where there are no masks; compaction leaves the part `keep`."""

    def figures(part):
        return {"macs": round(1e7 * part), "encoder_macs": round(9e6 * part), "weights": round(5e4 * part)}

    groups = [[task] for task in tasks] if keep is not None or method == "stl" else [list(tasks)]
    whole, small = {**figures(1.0), "milliseconds": 4.0}, {**figures(keep or 1.0), "milliseconds": 2.5}
    networks = [{"tasks": group, "uncompacted": whole, "compacted": small, "failure": ""} for group in groups]
    total = {
        part: {key: sum(network[part][key] for network in networks) for key in whole}
        for part in ("uncompacted", "compacted")
    }
    return {"batch_size": 16, "threads": 1, "device": "cpu", "networks": networks, **total}


def make_study(
    path: Path,
    *,
    tasks: Sequence[str] = ("digit", "even", "loops", "ink"),
    keeps: Sequence[float] = (0.1, 0.3, 0.5),
    seeds: int = 3,
    epochs: int = 8,
) -> Path:
    """Write a study folder: stl and mtl without keep, random and fisher over `keeps`."""
    path.mkdir(parents=True, exist_ok=True)
    skills = {"stl": 0.0, "mtl": -0.02, "random": -0.03, "fisher": 0.015}
    records = []
    for method, skill in skills.items():
        for keep in keeps if method in ("random", "fisher") else [None]:
            for seed in range(seeds):
                bump = 0.0 if keep is None else 0.02 - 0.15 * (keep - 0.4) ** 2
                name = f"{method}-{keep or 'none'}-{seed}"
                make_run(
                    path / "runs" / name,
                    tasks=tasks,
                    method=method,
                    keep=keep,
                    seed=hash_of(name),
                    epochs=epochs,
                    skill=skill + bump,
                )
                records += _result_rows(path / "runs" / name, name, method, keep, seed)
    pd.DataFrame(records).to_csv(path / "results.csv", index=False)
    about = {"name": path.name, "baseline": "stl", "methods": list(skills), "grid": ["sharing.keep"]}
    write_json(path / "study.json", {**about, "notes": ["Figures are made up."]})
    (path / "study.yaml").write_text(f"name: {path.name}\nmethods: [{', '.join(skills)}]\n")
    return path


def hash_of(name: str) -> int:
    """A seed that a name always gives; `hash` changes from process to process."""
    return zlib.crc32(name.encode())


def _result_rows(run: Path, name: str, method: str, keep: float | None, seed: int):
    summary = json.loads((run / "summary.json").read_text())
    head = {"run": name, "method": method, "seed": seed, "sharing.keep": keep}
    for task, about in summary["tasks"].items():
        for split in ("validation", "test"):
            for metric, value in about[split].items():
                what = {"split": split, "task": task, "metric": metric}
                yield {**head, **what, "higher_is_better": about["directions"][metric], "value": value}
    yield {**head, "split": "run", "metric": "seconds", "value": summary["seconds"]}
    for metric, value in cost_rows(summary):
        yield {**head, "split": SPLIT, "metric": metric, "value": value}
