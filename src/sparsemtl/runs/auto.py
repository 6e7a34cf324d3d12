"""`sharing: auto` of a configuration: the run folder of the candidates and of the networks that were chosen."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import torch

from sparsemtl.data import TaskData
from sparsemtl.data.base import Loaders, Part
from sparsemtl.runs.auto_files import ChosenFigures, write_choice
from sparsemtl.runs.auto_options import AUTO, adds_groups, training_rows
from sparsemtl.runs.build import make_sharing, make_trainer
from sparsemtl.runs.config import candidate_configs, groups_base, with_groups
from sparsemtl.runs.model_inputs import write_inputs
from sparsemtl.runs.pretraining import PretrainedNetwork
from sparsemtl.runs.spec import RunSpec
from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.storage.text_files import read_json, write_json
from sparsemtl.training.callbacks import Callback
from sparsemtl.training.callbacks.callback import FitInfo
from sparsemtl.training.choosing.affinity import task_affinity
from sparsemtl.training.choosing.auto_share import auto_share
from sparsemtl.training.choosing.candidates import Candidate, CandidateTraining, slug
from sparsemtl.training.choosing.choice import BLOCKS
from sparsemtl.training.choosing.halving import largest_cost
from sparsemtl.training.evaluation.results import Results
from sparsemtl.training.trainer import Trainer

Pretrain = Callable[[RunSpec, RunFolder], PretrainedNetwork | None]


def run_auto(spec: RunSpec, folder: RunFolder, *, pretrain: Pretrain, progress: bool) -> Results:
    """Train the candidates, choose the network of each task, test, and write the files of the run.

    What the folder holds of an earlier call is resumed.

    Args:
        spec: the run; its configuration has the key `auto`.
        folder: its folder.
        pretrain: returns the network of a run's pretraining run.
        progress: show live bars.

    Returns:
        Test metrics per task.
    """
    config, data = spec.config, spec.data
    options = config[AUTO]
    folder.write_config(config)
    write_inputs(folder, data, config["task_options"])
    stop = choose = data.validation
    if options["choose"] is not None:
        stop, choose = _split(data.validation, options["choose"], config["seed"])
    size = config["training"]["batch_size"]
    train, validation, test = spec.loaders()
    stopping = replace(data, validation=stop).loaders(size)[1]
    configs = candidate_configs(config, rows=training_rows(data))
    base = groups_base(configs) if adds_groups(config) and len(data.tasks) > 2 else None
    if progress:
        print(_cost_text(config, [*configs.values(), *([configs[base]] if base is not None else [])]), file=sys.stderr)

    def candidate(own: Mapping[str, Any]) -> Candidate:
        return partial(_trainer, RunSpec(own, spec.built), pretrain, progress)

    note = ""
    if base is not None:
        rung = (options["rungs"] or [1.0])[0]
        groups = _groups(folder.candidates, base, candidate(configs[base]), rung, (train, stopping))
        note = _groups_note(groups, base)
        if 1 < len(groups) < len(data.tasks):
            configs = with_groups(configs, base, groups)
    result = auto_share(
        {name: candidate(own) for name, own in configs.items()},
        train,
        stopping,
        _in_blocks(replace(data, validation=choose), choose),
        rungs=options["rungs"],
        survivors=options["survivors"],
        folder=folder.candidates,
    )
    for name in result.epochs:
        write_inputs(RunFolder(folder.candidates / slug(name)), data, config["task_options"])
    results = result.evaluate(test)
    gains = result.gains(_in_blocks(replace(data, validation=data.test), data.test))
    write_choice(spec, folder, result, ChosenFigures(result.evaluate(validation), results, gains, test, note))
    return results


def _cost_text(config: Mapping[str, Any], candidates: Sequence[Mapping[str, Any]]) -> str:
    """Return what the run will cost at most."""
    epochs = config["training"]["epochs"]
    selectable = [make_sharing(own).first_selectable() + 1 for own in candidates]
    cost = largest_cost(selectable, config[AUTO]["rungs"], config[AUTO]["survivors"], epochs)
    return f"sharing auto: {len(candidates)} candidates, at most {cost:.1f} trainings of {epochs} epochs."


def _groups(folder: Path, base: str, make: Candidate, rung: float, loaders: tuple[Loaders, Loaders]) -> list[list[str]]:
    """Train a candidate up to the first rung, and return groups of tasks by overlap, which a file keeps."""
    path = folder / "groups.json"
    if not path.exists():
        training = CandidateTraining(make, folder / slug(base))
        training.train(rung, *loaders)
        write_json(path, task_affinity(training.trainer.model, loaders[0]).groups())
    return list(read_json(path))


def _groups_note(groups: Sequence[Sequence[str]], base: str) -> str:
    found = "; ".join(" + ".join(group) for group in groups)
    return f"groups of tasks by the overlap of masks at keep 0.1 in {base!r} after the first rung: {found}"


def _trainer(spec: RunSpec, pretrain: Pretrain, progress: bool, folder: Path) -> Trainer:
    """Return a new trainer of a candidate; its pretraining run is run first."""
    run = RunFolder(folder)
    trainer = make_trainer(spec.config, spec.data, folder, pretrained=pretrain(spec, run), progress=progress)
    if progress:
        trainer.callbacks = (_Announcement(spec.config["label"]), *trainer.callbacks)
    return trainer


class _Announcement(Callback):
    """Line above the progress of a candidate.

    Args:
        name: name of the candidate.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def on_fit_start(self, run: FitInfo) -> None:
        """Print the name of the candidate."""
        print(f"candidate {self._name}, up to epoch {run.epochs}", file=sys.stderr)


def _split(part: Part, share: float, seed: int) -> tuple[Part, Part]:
    """Return the rows that stop trainings, and a share of all rows that choose among them."""
    if isinstance(part, Mapping):
        halves = {task: _split(rows, share, seed) for task, rows in part.items()}
        return {t: half[0] for t, half in halves.items()}, {t: half[1] for t, half in halves.items()}  # type: ignore[misc]
    order = torch.randperm(len(part), generator=torch.Generator().manual_seed(seed))
    count = min(max(round(share * len(part)), 1), len(part) - 1)
    return part.select(order[count:].sort().values), part.select(order[:count].sort().values)


def _in_blocks(data: TaskData, part: Part) -> Loaders:
    """Return the validation loaders in about as many batches as there are blocks."""
    count = min(map(len, part.values())) if isinstance(part, Mapping) else len(part)
    return data.loaders(1, evaluation_batch_size=max(ceil(count / BLOCKS), 1))[1]
