"""The pretraining run: its configuration, its folder, and the encoder that the run itself starts from.

The key `pretraining` of a configuration holds changes of the configuration itself. With these changes it is the
configuration of another run, which is trained first, in a folder of its own, exactly like any other run; it may have a
pretraining run as well. The run then starts from the weights of that run's encoder. All that is particular to
pretraining is in this file; `runs.run` trains the pretraining run, and a study trains those of all its runs first.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from sparsemtl.architectures import Source
from sparsemtl.architectures.heads import stride_of, width_of
from sparsemtl.data.images.classified.image_folders import AUXILIARY
from sparsemtl.errors import CheckpointError, ConfigError, SparseMTLError
from sparsemtl.runs.auto_options import AUTO
from sparsemtl.runs.changes import PRETRAINING, merge
from sparsemtl.runs.teacher_options import TEACHER
from sparsemtl.runs.validation import data_section, differences, validate
from sparsemtl.storage.files import read_tensors
from sparsemtl.storage.locks import locked
from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.storage.study_folder import StudyFolder
from sparsemtl.storage.tensor_checks import check_tensor
from sparsemtl.tasks import Classification
from sparsemtl.tasks.batches import Loader
from sparsemtl.training.processes.launch import start_processes

if TYPE_CHECKING:
    from sparsemtl.runs.spec import RunSpec
    from sparsemtl.training import Trainer

_NOT_INHERITED = (
    "name",
    "label",
    "architecture",
    "sharing",
    "balancing",
    "freeze",
    "start_from",
    TEACHER,
    AUTO,
    PRETRAINING,
)
"""Keys of a run that its pretraining run does not take over."""
_NOT_INHERITED_IN_TRAINING = ("choose_after", "choose_per_task")
"""Likewise in `training`: they depend on the sharing method."""
_IDENTITY_OF_DATA = ("name", "root", "path", "source")
"""Keys of the section `data` that identify the data set; the others select and transform its samples."""


def pretraining_config(
    complete: Mapping[str, Any], *, where: str = "the configuration", origins: Mapping[str, str] | None = None
) -> dict[str, Any] | None:
    """Return the complete configuration of a run's pretraining run; None if it has no `pretraining`.

    Args:
        complete: the run's own.
        where: name of that configuration in messages.
        origins: as for `config.check`.

    Raises:
        ConfigError: as `config.check`.
    """
    changes = complete[PRETRAINING]
    if changes is None:
        return None
    where = f"`{PRETRAINING}` in {where}"
    base = {key: value for key, value in complete.items() if key not in _NOT_INHERITED}
    training = {key: value for key, value in complete["training"].items() if key not in _NOT_INHERITED_IN_TRAINING}
    base |= {"data": data_section(complete), "training": training}
    prefix = f"{PRETRAINING}."
    inner = {key.removeprefix(prefix): origin for key, origin in (origins or {}).items() if key.startswith(prefix)}
    config = validate(merge(base, {"tasks": [AUXILIARY], **changes}), where=where, origins=inner)
    pretraining_config(config, where=where, origins=inner)
    if config[AUTO] is not None:
        raise ConfigError(
            f"{where}: sharing: expected one method, got 'auto'. A run starts from the encoder of one network."
        )
    if config["freeze"]:
        raise ConfigError(
            f"{where}: freeze: expected false, as the pretraining run trains the encoder. To keep the encoder as "
            f"pretraining leaves it, put `freeze: true` beside `{PRETRAINING}`."
        )
    return config


def _pretraining_folder(run: RunFolder, config: Mapping[str, Any]) -> RunFolder:
    """Return the folder of a run's pretraining run.

    Runs of a study with the same pretraining configuration and seed share one folder,
    `<study>/pretraining/seed-<seed>-<hash>`; otherwise it is `<run>/pretraining`. An earlier version hashed a
    configuration with fewer keys: its folder is found by what it holds.

    Args:
        run: folder of the run.
        config: complete configuration of the pretraining run.
    """
    study = StudyFolder.of_run(run)
    if study is None:
        return RunFolder(run.pretraining)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:10]
    own = RunFolder(study.pretraining / f"seed-{config['seed']}-{digest}")
    if own.path.exists():
        return own
    others = map(RunFolder, sorted(study.pretraining.glob(f"seed-{config['seed']}-*")))
    begun = (other for other in others if other.config.exists())  # under a version that had not all keys of today
    return next((other for other in begun if not any(differences(other.read_config(), config))), own)


def pretrained_tasks(spec: RunSpec) -> Collection[str]:
    """Return the tasks that the pretraining run names and trains on the same data set; a run leaves them out."""
    if spec.pretraining is None:
        return ()
    here, there = spec.config["data"], spec.pretraining.config["data"]
    same = all(here.get(key) == there.get(key) for key in _IDENTITY_OF_DATA)
    return spec.pretraining.config["tasks"] or () if same else ()


def unfinished_pretraining(runs: Iterable[tuple[RunFolder, Mapping[str, Any]]]) -> dict[Path, dict[str, Any]]:
    """Return folder -> configuration of the pretraining runs that are not finished; runs may share one.

    Args:
        runs: folder and complete configuration of every run.
    """
    waiting = {}
    for folder, complete in runs:
        config = pretraining_config(complete)
        if config is not None and not (own := _pretraining_folder(folder, config)).finished:
            waiting[own.path] = config
    return waiting


def pretrain(
    spec: RunSpec,
    folder: RunFolder,
    *,
    train: Callable[[RunSpec, RunFolder], object],
    dry_run: Callable[[RunSpec, RunFolder], object],
) -> PretrainedNetwork | None:
    """Return the network of a run's pretraining run, trained or resumed first if it is not finished; None without.

    Several processes train it together; the first one holds the locks and writes.

    Args:
        spec: the run.
        folder: its folder.
        train: trains a run in a folder, or resumes it.
        dry_run: sets up a run, to raise its mistakes before pretraining.

    Raises:
        CheckpointError: if the folder of the pretraining run holds a run of another configuration.
        SparseMTLError: errors of `dry_run` and `train`; those of the pretraining run begin with "pretraining: ".
    """
    if spec.pretraining is None:
        return None
    processes, own = start_processes(spec.config["training"]), _pretraining_folder(folder, spec.pretraining.config)
    if not processes.from_first(partial(_is_finished, own, spec.pretraining.config)):
        dry_run(spec, folder)
        with locked(folder.path) if processes.is_first else nullcontext(), _named_errors():
            if processes.is_first:
                folder.write_config(spec.config)  # so that a run killed in its pretraining can be resumed
            train(spec.pretraining, own)
        processes.wait()  # until the first one has written the weights
    return PretrainedNetwork(spec.pretraining, own.model)


def _is_finished(run: RunFolder, config: Mapping[str, Any]) -> bool:
    """Return True if the folder holds the finished run of a configuration.

    Raises:
        CheckpointError: if it holds a run of another configuration.
    """
    if run.config.exists() and (wrong := next(differences(run.read_config(), config), None)):
        raise CheckpointError(
            f"{run.path} holds a run of another configuration: {wrong}. Use another --out, or delete that folder."
        )
    return run.finished


def stand_in(
    spec: RunSpec, folder: RunFolder, dry_run: Callable[[RunSpec, RunFolder], Trainer]
) -> PretrainedNetwork | None:
    """Return what stands in for the pretrained network in a dry run: the same network, untrained.

    Raises:
        SparseMTLError: errors of the pretraining run's own `dry_run`; they begin with "pretraining: ".
    """
    if spec.pretraining is None:
        return None
    own = _pretraining_folder(folder, spec.pretraining.config)
    with _named_errors():
        return PretrainedNetwork(spec.pretraining, own.model, dry_run(spec.pretraining, own).model)


@dataclass(frozen=True)
class PretrainedNetwork:
    """Network of a pretraining run.

    Attributes:
        spec: the pretraining run.
        file: file of the trained weights.
        untrained: in a dry run, the network whose weights stand in for those of the file.
    """

    spec: RunSpec
    file: Path
    untrained: nn.Module | None = None

    def load_encoder(self, encoder: nn.Module) -> None:
        """Load the network's weights into an encoder.

        Raises:
            CheckpointError: if the network's encoder is another one.
        """
        self._load(encoder, "encoder.", "the encoder")

    def source(self, encoder: nn.Module, make_heads: Callable[..., Mapping[str, nn.Module]]) -> Source | None:
        """Return the classification that the network was trained for, with its head and samples; None for other tasks.

        Args:
            encoder: the encoder that the head reads.
            make_heads: makes the heads of a section `heads`, given the section, the data and the encoder.

        Raises:
            CheckpointError: if the network has no such head.
        """
        data = self.spec.data
        heads = {task.name: task.head(width_of(encoder), stride_of(encoder)) for task in data.tasks}
        heads |= make_heads(self.spec.config["heads"], data, encoder)
        (task, *others) = data.tasks
        if others or not isinstance(task, Classification):
            return None
        head = heads[task.name]
        self._load(head, f"heads.{task.name}.", f"the head of task {task.name!r}")
        return Source(task, head, self.samples(task))

    def samples(self, task: Classification) -> Loader:
        """Return the training samples of a task; in a dry run, the first batch with a sample that has a class."""
        train = self.spec.data.train
        split = train[task.name] if isinstance(train, Mapping) else train
        batches = split.loader(2 * self.spec.config["training"]["batch_size"])
        if self.untrained is None:
            return batches
        return list(islice((batch for batch in batches if task.labelled(task.labels(batch[1])).any()), 1))

    def _load(self, module: nn.Module, prefix: str, what: str) -> None:
        """Load the weights whose names begin with `prefix` into a module."""
        own = {name.removeprefix(prefix): w for name, w in self._weights().items() if name.startswith(prefix)}
        if not own:
            raise CheckpointError(
                f"{self.file} has no weights {prefix}*, from which {what} starts. "
                "Pretraining needs an architecture with one encoder for all its tasks, such as shared-bottom."
            )
        for name, tensor in module.state_dict().items():
            if name in own and own[name].shape == tensor.shape:
                check_tensor(own[name], tensor, f"{self.file}: {prefix}{name}")
        try:
            module.load_state_dict(own)
        except RuntimeError as error:
            raise CheckpointError(f"{self.file}: {what} does not fit this run's: {error}") from None

    def _weights(self) -> Mapping[str, Tensor]:
        return read_tensors(self.file, own=True)[0] if self.untrained is None else self.untrained.state_dict()


@contextmanager
def _named_errors() -> Iterator[None]:
    """Begin the message of an error of ours with "pretraining: "."""
    try:
        yield
    except SparseMTLError as error:
        error.args = (f"{PRETRAINING}: {error}",)
        raise
