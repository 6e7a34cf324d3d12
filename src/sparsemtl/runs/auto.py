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

from sparsemtl.balancing import as_balancer
from sparsemtl.data import TaskData
from sparsemtl.data.base import Loaders, Part
from sparsemtl.networks.model import MultiTaskModel, placement
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.runs.auto_options import AUTO, adds_groups, training_rows
from sparsemtl.runs.build import make_sharing, make_trainer
from sparsemtl.runs.config import candidate_configs, groups_base, with_groups
from sparsemtl.runs.loaded import write_inputs
from sparsemtl.runs.pretraining import PretrainedNetwork
from sparsemtl.runs.spec import RunSpec
from sparsemtl.sharing import Sharing
from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.storage.text_files import read_json, write_json
from sparsemtl.training.callbacks import Callback
from sparsemtl.training.callbacks.callback import FitInfo
from sparsemtl.training.callbacks.csv_file import CSVCallback
from sparsemtl.training.checkpoints.run_files import RunFiles
from sparsemtl.training.choosing.affinity import task_affinity
from sparsemtl.training.choosing.auto_result import AutoResult
from sparsemtl.training.choosing.auto_share import auto_share
from sparsemtl.training.choosing.candidates import Candidate, CandidateTraining, slug
from sparsemtl.training.choosing.choice import BLOCKS, MetricGain
from sparsemtl.training.choosing.halving import largest_cost
from sparsemtl.training.costs import measure_costs
from sparsemtl.training.evaluation.epoch_averages import result_rows
from sparsemtl.training.evaluation.evaluate import Trained, sample_predictions
from sparsemtl.training.evaluation.results import Results
from sparsemtl.training.evaluation.selection import Selection
from sparsemtl.training.setup import RunParts
from sparsemtl.training.summary import RunResults, summarize
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
    note = ""
    if base is not None:
        own = partial(_trainer, RunSpec(configs[base], spec.built), pretrain, progress)
        groups = _groups(folder.candidates, base, own, (options["rungs"] or [1.0])[0], (train, stopping))
        note = _groups_note(groups, base)
        if 1 < len(groups) < len(data.tasks):
            configs = with_groups(configs, base, groups)
    result = auto_share(
        {name: partial(_trainer, RunSpec(own, spec.built), pretrain, progress) for name, own in configs.items()},
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
    _write(spec, folder, result, _Figures(result.evaluate(validation), results, gains, test, note))
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


class _Figures:
    """Figures of the chosen networks.

    Args:
        validation: metrics on all validation rows.
        test: metrics on test rows.
        gains: gains on test rows.
        loaders: the test rows.
        groups: note on groups of tasks; "" without the candidate `groups`.
    """

    def __init__(
        self, validation: Results, test: Results, gains: Mapping[str, MetricGain], loaders: Loaders, groups: str
    ) -> None:
        self.validation = validation
        self.test = test
        self.gains = gains
        self.loaders = loaders
        self.groups = groups


class _ChosenSharing(Sharing):
    """Networks that were chosen, which the run's record describes.

    Args:
        result: the choice.
        gains: gains on test data.
    """

    def __init__(self, result: AutoResult, gains: Mapping[str, MetricGain]) -> None:
        self._result = result
        self._gains = gains

    def start(self, model: MultiTaskModel) -> TaskNetworks:
        """Return the chosen networks."""
        return self._result.networks

    def summary(self, model: MultiTaskModel, networks: TaskNetworks) -> dict[str, Any]:
        """Return what was chosen, with its gains, and the cost."""
        tasks = {}
        for task, choice in self._result.choices.items():
            low, high = self._gains[task].interval()
            tasks[task] = {
                "candidate": choice.candidate,
                "baseline": choice.baseline,
                "metric": choice.gain.metric,
                "gain": {"validation": choice.gain.value, "test": self._gains[task].value, "low": low, "high": high},
            }
        return {"tasks": tasks, "epochs": dict(self._result.epochs), "trainings": self._result.trainings}

    def tables(self, model: MultiTaskModel, networks: TaskNetworks) -> Any:
        """Return the choice, who shares with whom, and the cost."""
        return self._result.tables(self._gains)


def _write(spec: RunSpec, folder: RunFolder, result: AutoResult, figures: _Figures) -> None:
    """Write the files of a run."""
    model, networks, config = result.model, result.networks, spec.config
    device = placement(model)[0]
    trained, files = Trained(model, networks, model), RunFiles(folder)
    files.write_begin(config, device, config["seed"])
    write_json(folder.choice, {task: choice.candidate for task, choice in result.choices.items()})
    files.write_networks(model, networks)
    files.write_samples(sample_predictions(trained, figures.loaders, device))
    sharing = _ChosenSharing(result, figures.gains)
    measured = measure_costs(model, networks, figures.loaders) if config["training"]["measure_cost"] else None
    chosen = {task: RunFolder(folder.candidates / slug(choice.candidate)) for task, choice in result.choices.items()}
    every = [RunFolder(folder.candidates / slug(name)).read_summary() for name in result.epochs]
    record = summarize(
        RunResults(
            name=config["name"] or folder.path.name,
            status="finished",
            epochs=max(result.epochs.values()),
            seconds=sum(summary["seconds"] for summary in every),
            validation=figures.validation,
            test=figures.test,
            notes=(
                *spec.data.notes,
                _cost_note(result, own_rows=config[AUTO]["choose"] is not None),
                *([figures.groups] if figures.groups else []),
            ),
            cost=measured,
        ),
        RunParts(model, sharing, as_balancer("mean"), _no_optimizer, None),
        config=config,
        networks=networks,
        selection=Selection(model),
    )
    record["axes"]["sharing"], record["axes"]["architecture"] = AUTO, "assembled"
    record["method"] = config["label"] or AUTO
    own_rows = config[AUTO]["choose"] is not None
    rows = f"validation rows that {'stopped no training' if own_rows else 'selected the epochs too'}"
    record["selection"]["rule"] = (
        f"{rows}: per task, the simplest candidate within one standard error of the best, and no worse than the best "
        "dense one"
    )
    for task, run in chosen.items():
        record["tasks"][task]["best_epoch"] = run.read_summary()["tasks"][task]["best_epoch"]
    logged = [row for task, run in chosen.items() for row in run.read_metrics() if row.task == task]
    last = max((row.step for row in logged), default=0)
    CSVCallback(folder.metrics).on_test_end([*logged, *result_rows(record["epochs"], last, "test", figures.test)])
    files.write_summary(record)


def _cost_note(result: AutoResult, *, own_rows: bool) -> str:
    rows = "that stopped none of these trainings" if own_rows else "that selected the epochs too"
    return (
        f"{len(result.epochs)} candidates were trained for {result.trainings:.1f} times the epochs of one training; "
        f"the network of each task was chosen by validation rows {rows}"
    )


def _no_optimizer(groups: Any) -> Any:
    raise AssertionError("assembled networks are not trained")
