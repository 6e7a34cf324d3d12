"""Check of a run folder: every file is read and compared with the others; nothing is written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from sparsemtl.compaction.files.loading import check_networks
from sparsemtl.errors import CheckpointError, SparseMTLError
from sparsemtl.networks.randomness import fork_rng
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.runs.config import check
from sparsemtl.runs.loaded import load_run
from sparsemtl.storage.files import read_tensors, read_tree
from sparsemtl.storage.findings import Finding
from sparsemtl.storage.metrics import MetricRow, parse_metrics, read_metrics
from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.storage.study_folder import StudyFolder
from sparsemtl.storage.text_files import read_json
from sparsemtl.storage.wrong_folder import wrong_folder
from sparsemtl.training.checkpoints.checkpoint import check_form, check_progress
from sparsemtl.views.tables import Table


@dataclass(frozen=True)
class RunCheck:
    """Result of `check_run`; `str(check)` and a notebook show it as a table.

    Attributes:
        path: the folder.
        findings: one per file, in the order in which a run writes them.
    """

    path: Path
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """True if nothing is broken."""
        return all(finding.state != "broken" for finding in self.findings)

    def _table(self) -> Table:
        rows = [[each.what, each.state, each.found, each.remedy] for each in self.findings]
        return Table(["file", "", "found", "what to do"], rows, str(self.path))

    def __str__(self) -> str:
        return self._table().text()

    def _repr_html_(self) -> str:
        """Return the findings as a table, for notebooks."""
        return self._table().html()

    def record(self) -> dict[str, Any]:
        """Return the check as plain mappings and lists, for JSON."""
        return {"path": str(self.path), "ok": self.ok, "findings": [asdict(finding) for finding in self.findings]}


def check_run(folder: str | Path) -> RunCheck:
    """Read and compare all files of a run, or of all runs of a study; nothing is written.

    Args:
        folder: a run folder, or the folder of a study.

    Raises:
        CheckpointError: if the folder is neither.

    Examples:
        >>> print(check_run("runs/digits"))         # doctest: +SKIP
        >>> check_run("runs/digits").ok             # doctest: +SKIP
        True
    """
    path, study = Path(folder), StudyFolder(folder)
    if study.exists:
        own = _look("study.json", lambda: f"study {study.read_about()['name']!r}", "use another copy of it")
        pretraining = (RunFolder(each) for each in sorted(study.pretraining.glob("*")) if each.is_dir())
        runs = [*study.run_folders(), *pretraining]
        return RunCheck(path, (own, *(each for run in runs for each in _inside(run, path))))
    if not RunFolder(path).config.exists():
        raise wrong_folder(path, "a run or a study")
    return RunCheck(path, tuple(_Run(RunFolder(path)).findings()))


def _inside(run: RunFolder, root: Path) -> Iterator[Finding]:
    """Yield the findings of a run below a folder, by paths from that folder."""
    for each in _Run(run).findings():
        yield Finding(f"{run.path.relative_to(root)}/{each.what}", each.found, each.state, each.remedy)


def _look(what: str, read: Callable[[], str], remedy: str) -> Finding:
    """Return what a file holds, or why it cannot be read."""
    try:
        return Finding(what, read())
    except SparseMTLError as error:
        return Finding(what, str(error), "broken", remedy)
    except Exception as error:  # damaged content may lead any reader to raise anything
        return Finding(what, f"not as sparsemtl wrote it: {type(error).__name__}: {error}", "broken", remedy)


class _Run:
    """Files of one run, read once each.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.summary: Mapping[str, Any] = {}
        self.last: Mapping[str, Any] = {}
        self.model: Mapping[str, Tensor] = {}
        self.broken: set[Path] = set()
        with suppress(CheckpointError):  # its own finding names it
            self.summary = folder.read_summary() if folder.ended else {}
        self.finished = self.summary.get("status") == "finished"
        self.from_config = folder.inputs.is_file()

    @property
    def again(self) -> str:
        """Way to write the files of the run's end anew."""
        if not self.folder.last.is_file():
            return "use another copy of the folder"
        if self.from_config:
            return f"delete summary.json; `sparsemtl resume {self.folder.path}` then writes the end of the run anew"
        return "`trainer.fit(..., resume=True)` and `trainer.test(...)` write the end of the run anew"

    def findings(self) -> Iterator[Finding]:
        """Yield one finding per file."""
        run, ended = self.folder, self.folder.ended
        checkpoints = list(self._checkpoints())
        yield self._look(run.config, self._config, "use another copy of it")
        yield self._optional(run.environment, self._environment, "versions and machine are not known")
        yield from checkpoints
        if ended or run.metrics.is_file():
            yield self._look(
                run.metrics, self._metrics, "use another copy of it; figures of the end are in summary.json"
            )
        if not ended:
            text = f"the run {run.stop}" if run.stop else "the run has not ended"
            yield Finding(run.summary.name, text, "missing", self._go_on())
        for path, read in (
            *([(run.summary, self._summary)] if ended else []),
            (run.model, self._model),
            (run.networks, self._networks),
        ):
            if ended or path.is_file():
                yield self._look(path, read, self.again)
        yield self._optional(
            run.inputs, self._inputs, "the run was made in Python; load it with load_run(folder, model=model)"
        )
        if self.finished or run.samples.is_file():
            yield self._look(run.samples, self._samples, self.again)
        if self.finished or run.report.is_file():
            draw = f"`sparsemtl report {run.path}`"
            yield self._optional(run.report, self._report, "no report was drawn", draw)
        if run.pretraining.is_dir():
            yield from _inside(RunFolder(run.pretraining), run.path)
        yield from self._exported()
        yield from self._others()

    def _look(self, path: Path, read: Callable[[], str], remedy: str) -> Finding:
        finding = _look(self._name(path), read, remedy)
        if finding.state == "broken":
            self.broken.add(path)
        return finding

    def _optional(self, path: Path, read: Callable[[], str], absent: str, remedy: str = "") -> Finding:
        """Return the finding of a file that a run need not have."""
        if not path.is_file():
            return Finding(self._name(path), absent, "missing", remedy)
        return self._look(path, read, remedy or self.again)

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self.folder.path))

    def _go_on(self) -> str:
        if self.folder.begun:
            return f"`sparsemtl resume {self.folder.path}`" if self.from_config else "`trainer.fit(..., resume=True)`"
        return "start the run anew: it has no checkpoint yet"

    def _config(self) -> str:
        config = self.folder.read_config()
        begun = self.last.get("settings", {}).get("config", {})
        if absent := sorted(set(begun) - set(config)):
            raise CheckpointError(f"{self.folder.config} lacks {', '.join(absent)}, which the run began with.")
        if "data" not in config:
            return "description of a run that was made in Python"
        check(config, where=str(self.folder.config))
        return "complete configuration"

    def _environment(self) -> str:
        read_json(self.folder.environment)
        versions = self.folder.read_environment()["versions"]
        return ", ".join(f"{name} {versions[name]}" for name in ("sparsemtl", "torch", "python"))

    def _checkpoints(self) -> Iterator[Finding]:
        last, needed = self.folder.last, not self.finished
        remedy = "the run cannot be resumed: start it anew in another folder" if needed else "delete it"
        if last.is_file() or (needed and not self.folder.pretraining.is_dir()):
            yield self._look(last, self._last, remedy)
        else:
            state = "a finished run does not need it" if self.finished else "pretraining has not ended"
            yield Finding(self._name(last), state, "missing")
        there = set(last.parent.glob("best*.safetensors"))
        for path in sorted(there | (set(self._expected_best()) if needed else set())):
            yield self._look(path, lambda path=path: self._best(path), remedy)  # type: ignore[misc]

    def _last(self) -> str:
        where = str(self.folder.last)
        state = read_tree(self.folder.last)
        check_form(state, where)
        progress = state["progress"]
        check_progress(progress, where)
        for name, shape in state["fingerprint"].items():
            if name not in state["model"] or list(state["model"][name].shape) != list(shape):
                raise CheckpointError(f"{where}: weight {name!r} is missing or has another shape than {shape}.")
        _refuse_nan(state["model"], where)
        if self.finished and progress["epoch"] != self.summary["epochs"]:
            raise CheckpointError(
                f"{where} is of epoch {progress['epoch']}, the summary of epoch {self.summary['epochs']}."
            )
        self.last = state
        within = f", batch {progress['batch']} of the next" if progress["batch"] else ""
        return f"epoch {progress['epoch']}{within}, step {progress['step']}"

    def _expected_best(self) -> Iterable[Path]:
        """Return the best models that the last checkpoint refers to."""
        try:
            parts = self.last["parts"]["selection"]["best"] if self.last else {}
            return [self.folder.best(str(part)) for part in parts]
        except (LookupError, TypeError):
            return []

    def _best(self, path: Path) -> str:
        state = read_tree(path)
        for part in ("model", "networks", "sharing"):
            if not isinstance(state.get(part), Mapping):
                raise CheckpointError(f"{path} is not a best model that sparsemtl wrote: {part!r} is missing.")
        _refuse_nan(state["model"], str(path))
        if self.last and set(state["model"]) != set(self.last["model"]):
            raise CheckpointError(f"{path} is of another model than {self.folder.last.name}.")
        return f"best model{path.stem.removeprefix('best').replace('-', ' of ', 1)}, {_numbers(state['model'])}"

    def _metrics(self) -> str:
        path, content = self.folder.metrics, b""
        read_metrics(path)  # raises if it is missing or has another header
        content = path.read_bytes()
        rows, damaged = parse_metrics(content)
        cut = not content.endswith(b"\n")
        if damaged or (cut and self.finished):
            raise CheckpointError(f"{path}: {damaged + cut} lines are damaged, the other {len(rows):,} can be read.")
        epochs = {row.epoch for row in rows if row.split == "train"}
        if self.summary:
            self._compare(rows, epochs)
        return f"{len(rows):,} figures of {len(epochs)} epochs"

    def _compare(self, rows: Iterable[MetricRow], epochs: set[int]) -> None:
        """Raise if the figures are not those of the summary."""
        path, tasks = self.folder.metrics, self.summary["tasks"]
        if absent := sorted(set(range(1, self.summary["epochs"] + 1)) - epochs):
            raise CheckpointError(f"{path} has no figures of epoch {', '.join(map(str, absent[:5]))}.")
        logged = {(row.task, row.name): row.value for row in rows if row.split == "test"}
        test = {(task, name): value for task, entry in tasks.items() for name, value in entry["test"].items()}
        for key in {**logged, **test} if self.finished else ():
            value, other = (_or_none(found.get(key)) for found in (logged, test))
            if value != other:
                raise CheckpointError(
                    f"{path}: {key[1]!r} of task {key[0]!r} on test data is {value} there and {other} in summary.json."
                )

    def _summary(self) -> str:
        summary = self.folder.read_summary()
        for task, entry in summary["tasks"].items():
            if entry["primary"] not in entry["validation"]:
                raise CheckpointError(
                    f"{self.folder.summary}: task {task!r} has no {entry['primary']!r} on validation data."
                )
        return (
            f"{self.folder.stop or summary['status']} after {summary['epochs']} epochs, {len(summary['tasks'])} tasks"
        )

    def _model(self) -> str:
        self.model, _ = read_tensors(self.folder.model, own=True)
        _refuse_nan(self.model, str(self.folder.model))
        return _numbers(self.model)

    def _networks(self) -> str:
        path = self.folder.networks
        networks = TaskNetworks.load(path)
        for task, network in networks.items():
            for name, tensor in {
                **network.own_tensors,
                **network.weight_factors,
                **network.gradient_mask,
                **network.kept_weights,
            }.items():
                if self.model and name not in self.model:
                    raise CheckpointError(f"{path}: task {task!r} has {name!r}, which the model does not have.")
                if tensor is not None and tensor.is_floating_point():
                    _refuse_nan({name: tensor}, str(path))
        if self.summary and set(networks) != set(self.summary["tasks"]):
            raise CheckpointError(
                f"{path} has the tasks {sorted(networks)}, summary.json {sorted(self.summary['tasks'])}."
            )
        if networks.masks is None:
            return f"networks of {len(networks)} tasks"
        kept = {task: networks.masks.count(task) for task in networks.masks}
        stated = self.summary.get("parameters", {}).get("kept", {})
        for task, count in kept.items():
            if stated and stated.get(task) != count:
                raise CheckpointError(
                    f"{path}: task {task!r} keeps {count} weights, in summary.json {stated.get(task)}."
                )
        return ", ".join(f"{task} keeps {networks.masks.density(task):.1%}" for task in kept)

    def _inputs(self) -> str:
        record = read_json(self.folder.inputs)
        text = f"{len(record['tasks'])} tasks, inputs of shape {tuple(record['shape'])}"
        files = {self.folder.model, self.folder.networks, self.folder.config}
        if files & self.broken or not all(path.is_file() for path in files):
            return text
        with fork_rng():
            load_run(self.folder.path)
        return f"{text}; the model is built from it, and takes its weights and networks"

    def _samples(self) -> str:
        if not self.folder.samples.is_file():
            raise CheckpointError(f"{self.folder.samples} does not exist.")
        groups = self.folder.read_samples()
        for group in groups.values():
            for task, sample in group["tasks"].items():
                if len(sample["target"]) != len(sample["prediction"]):
                    raise CheckpointError(f"{self.folder.samples}: task {task!r} has fewer predictions than targets.")
        return f"samples of {sum(len(group['tasks']) for group in groups.values())} tasks"

    def _report(self) -> str:
        text = self.folder.report.read_text(encoding="utf-8")
        if "<html" not in text or not text.rstrip().endswith("</html>"):
            raise CheckpointError(f"{self.folder.report} is not a whole page.")
        return f"page of {len(text) / 2**10:,.0f} KiB"

    def _exported(self) -> Iterator[Finding]:
        """Yield the findings of networks that the commands compact and export wrote."""
        for folder, again in (("compact", "`sparsemtl compact`"), ("export", "`sparsemtl export`")):
            for path in sorted((self.folder.path / folder).glob("*.safetensors")):
                yield self._look(path, partial(describe_networks, path), f"write it again: {again}")

    def _others(self) -> Iterator[Finding]:
        """Yield files that are none of the above."""
        run = self.folder
        known = {getattr(run, name) for name in vars(run)}
        for path in sorted(each for folder in run.folders if folder.is_dir() for each in folder.iterdir()):
            name = self._name(path)
            if path in known or path.is_dir() or path.match("checkpoints/best*.safetensors"):
                continue
            if path.name.endswith(".part"):
                yield Finding(name, "half-written by a process that was killed; the next one removes it")
            elif not path.name.startswith("."):
                yield Finding(name, "not a file of the run; it was not read")


def describe_networks(path: Path) -> str:
    """Return what a file of networks holds, after all of them were built.

    Raises:
        CheckpointError: as `sm.load_network`.
    """
    tasks = check_networks(path)
    size = f"{path.stat().st_size / 2**20:,.2f} MiB"
    return f"bundle of {', '.join(tasks)}, {size}" if tasks else f"a network, {size}"


def _refuse_nan(tensors: Mapping[str, Any], where: str) -> None:
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and bool(tensor.isnan().any()):
            raise CheckpointError(f"{where}: {name!r} holds NaN.")


def _numbers(tensors: Mapping[str, Tensor]) -> str:
    return f"{len(tensors)} tensors, {sum(tensor.numel() for tensor in tensors.values()):,} numbers"


def _or_none(value: float | None) -> float | None:
    """Return a figure as JSON has it: None if it is not finite."""
    return None if value is None or not math.isfinite(value) else value
