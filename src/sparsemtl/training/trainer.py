"""The trainer: a loop on Lightning Fabric over public pieces that all work without it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from typing_extensions import Doc, Unpack

from sparsemtl.balancing import Balancer, as_balancer
from sparsemtl.compaction import compact
from sparsemtl.compaction.pipeline import CompactedModule
from sparsemtl.errors import ParameterError
from sparsemtl.networks.masks import TaskMasks
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.networks.modes import eval_mode
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.optim.schedules import Schedule, Scheduler
from sparsemtl.registry.parameters import validated
from sparsemtl.sharing import DenseSharing, ObservesValidation, Sharing
from sparsemtl.storage.metrics import metrics_frame
from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.tasks.batches import (
    Group,
    Loader,
    Loaders,
    by_owner,
    check_loaders,
    loader_generators,
)
from sparsemtl.tasks.processes import ALONE, Processes
from sparsemtl.tasks.shards import sharded, shared
from sparsemtl.training.arguments import check_epochs, check_maker, check_model, check_sharing, schedule_every
from sparsemtl.training.callbacks import Callback, FitInfo, StepInfo
from sparsemtl.training.callbacks.callback import fitting, notify
from sparsemtl.training.callbacks.memory import MemoryCallback
from sparsemtl.training.callbacks.own import own_callbacks
from sparsemtl.training.checkpoints.checkpoint import Randomness, Stateful
from sparsemtl.training.checkpoints.resuming import Checkpoints, Position
from sparsemtl.training.checkpoints.run_files import RunFiles
from sparsemtl.training.checkpoints.snapshots import Snapshots
from sparsemtl.training.checks.check import TrainingCheck
from sparsemtl.training.checks.checking import check_training
from sparsemtl.training.checks.loss_scales import warn_of_unlike_scales
from sparsemtl.training.costs import RunCost, measure_costs
from sparsemtl.training.evaluation.epoch_averages import EpochAverages, epoch_rows, result_rows, warn_of_missing_labels
from sparsemtl.training.evaluation.evaluate import evaluate, sample_predictions
from sparsemtl.training.evaluation.metric_facts import metric_facts
from sparsemtl.training.evaluation.monitors import task_values
from sparsemtl.training.evaluation.results import Results
from sparsemtl.training.evaluation.selection import Selection
from sparsemtl.training.evaluation.trained import Trained
from sparsemtl.training.groups import optimizer_maker
from sparsemtl.training.mixing import remaining_batches, steps_in_epoch
from sparsemtl.training.norms import renew_norms
from sparsemtl.training.options import TrainingOptions, chooses_per_task, group_options
from sparsemtl.training.processes.agreement import check_equal
from sparsemtl.training.processes.launch import start_processes, taking_part
from sparsemtl.training.processes.machine import with_own_threads
from sparsemtl.training.processes.refusals import check_together
from sparsemtl.training.settings import RunSettings, recorded_options
from sparsemtl.training.setup import RunParts, Setup, set_up
from sparsemtl.training.steps.finite import check_weights
from sparsemtl.training.steps.step import TrainingStep
from sparsemtl.training.summary import RunResults, described, summarize

if TYPE_CHECKING:
    from sparsemtl.storage.history import History


class Trainer:
    """Trains a multi-task model with a sharing method and a balancer, and keeps the best epoch of validation data.

    Examples:
        >>> trainer = Trainer(model, sharing=FisherSharing(keep=0.3), epochs=10)   # doctest: +SKIP
        >>> trainer.fit(train, validation)                                         # doctest: +SKIP
        >>> trainer.test(test)["digit"]["accuracy"]                                # doctest: +SKIP
    """

    @validated
    def __init__(
        self,
        model: MultiTaskModel,
        *,
        sharing: Annotated[
            Sharing | None, Doc("Sharing method; by default every task uses all shared weights.")
        ] = None,
        balancing: Annotated[
            Balancer | str | Any, Doc("Name of a balancer, a `Balancer`, or a scalarizer or aggregator of TorchJD.")
        ] = "mean",
        optimizer: Annotated[
            str | Callable[[Any], Optimizer] | Optimizer,
            Doc(
                "Name of an optimizer, for its defaults; a function of parameter groups that returns one; or an "
                "optimizer of the model's parameters in groups of your own, whose state each `fit` clears."
            ),
        ] = "adam",
        scheduler: Annotated[
            str | Schedule | Callable[[Optimizer], Scheduler] | None,
            Doc(
                "Name of a learning-rate schedule, for its defaults; `sm.optim.Schedule(name, ...)`; or a function of "
                "an optimizer that returns a scheduler."
            ),
        ] = None,
        scheduler_every: Annotated[
            Literal["epoch", "step"],
            Doc(
                "Step the scheduler after every epoch, or after every training step. A `Schedule` has `per_step` for "
                "that."
            ),
        ] = "epoch",
        callbacks: Annotated[
            Sequence[Callback], Doc("Called at the events of a run, after those for its files and the progress bar.")
        ] = (),
        **options: Unpack[TrainingOptions],
    ) -> None:
        check_model(model)
        check_maker("optimizer", optimizer, Optimizer)
        check_maker("scheduler", scheduler, (LRScheduler, ReduceLROnPlateau))
        if isinstance(scheduler, str):
            scheduler = Schedule(scheduler, per_step=scheduler_every == "step")
        elif isinstance(scheduler, Schedule):
            scheduler_every = schedule_every(scheduler, scheduler_every)
        check_sharing(sharing)
        self.options = options
        self.model = model
        self.sharing = DenseSharing() if sharing is None else sharing
        self.balancer = as_balancer(balancing)
        make_optimizer = optimizer_maker(optimizer, model, group_options(options))
        self._parts = RunParts(model, self.sharing, self.balancer, make_optimizer, scheduler, scheduler_every)
        self.epochs = options["epochs"]
        self.threads = options["threads"]
        self.folder = RunFolder(options["folder"]) if options["folder"] is not None else None
        self._files = RunFiles(self.folder)
        self.name = options["name"] or (self.folder.path.name if self.folder else type(model).__name__)
        self.config = dict(options["config"] or described(self._parts, options))
        self.complete_config: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict
        self._figures = MemoryCallback()
        self.callbacks = (*own_callbacks(self.folder, options), self._figures, *callbacks)
        self.selection = self._new_selection()
        self.snapshots = Snapshots(self.folder)
        self.position = Position()
        self.validation = Results()
        self.processes = ALONE
        self._used: list[Loader] = []
        self._setup: Setup | None = None
        check_epochs(self.sharing, self.epochs, options["choose_after"])

    def __repr__(self) -> str:
        model = f"{type(self.model).__name__} of {', '.join(self.model.tasks)}"
        state = "not trained" if self._setup is None else f"epoch {self.position.epoch} of {self.epochs}"
        return f"Trainer({model}; {self.sharing!r}; {state})"

    @property
    def _ready(self) -> Setup:
        if self._setup is None:
            raise ParameterError("nothing was trained yet; call fit(train, validation) first.")
        return self._setup

    @property
    def step(self) -> TrainingStep:
        """The training step.

        Raises:
            ParameterError: if `fit` was not called yet.
        """
        return self._ready.step

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer.

        Raises:
            ParameterError: if `fit` was not called yet.
        """
        return self._ready.optimizer

    @property
    def networks(self) -> TaskNetworks:
        """Networks of the tasks: the current ones while training, afterwards those of the best epoch.

        Raises:
            ParameterError: if `fit` was not called yet.
        """
        return self._ready.step.networks

    @property
    def masks(self) -> TaskMasks | None:
        """Shared weights that each task uses; None if all tasks use all, or before training."""
        return None if self._setup is None else self.networks.kept(self.model.shared_parameters())

    @property
    def history(self) -> History:
        """Figures so far, one per row: epoch, step, split, task, metric, value; `plot()` draws them.

        Raises:
            MissingExtraError: if pandas is not installed.
        """
        return metrics_frame(self._figures.rows)

    @with_own_threads
    def fit(self, train: Loaders, validation: Loaders, *, resume: bool = False, overwrite: bool = False) -> Trainer:
        """Train; afterwards the model and the networks are those of the best validation epoch.

        A second call starts a new run from the present weights.

        Args:
            train: loader of (x, {task: labels}), or task -> loader of (x, labels).
            validation: loaders of the same form; they select the model.
            resume: resume from the folder's last checkpoint; the result is bit for bit that of an uninterrupted run.
            overwrite: replace a run that the folder holds.

        Raises:
            NonFiniteError: if a loss, a gradient or a weight becomes NaN or infinite; the last checkpoint stays.
            SelectionError: if nothing that chooses the model is defined on the validation data.
            CheckpointError: if there is nothing to resume, or it was made by another run, or with other settings; if
                the folder holds a run and neither `resume` nor `overwrite` is true, or files of others, or if another
                process writes there.
            LabelError: if a loader gives no batch, or labels do not fit their task.
            ParameterError: if processes of MPI are announced, or others than `devices` and `num_nodes` say; if what
                is trained cannot be trained by several processes; or both `resume` and `overwrite` are true.
            ProcessError: if another process of the run ends, or does not answer.
            StorageError: if a file cannot be written.
        """
        if resume and overwrite:
            raise ParameterError("`resume` goes on with the run in the folder, `overwrite` replaces it; choose one.")
        check_loaders(train, self.model.tasks, "training loader")
        check_loaders(validation, self.model.tasks, "validation loader")
        self._join(start_processes(self.options))
        with self._files.fitting(resume=resume, overwrite=overwrite), taking_part(self.processes):
            self._fit(train, validation, resume=resume)
        return self

    def _join(self, processes: Processes) -> None:
        """Train as one of these processes, of which the first writes files and calls callbacks."""
        self.processes = processes
        if processes.several:
            check_together(self.model)
        if not processes.is_first:
            self.folder, self._files, self.callbacks = None, RunFiles(None), (self._figures,)
        self.snapshots = Snapshots(self.folder, processes)

    def _fit(self, train: Loaders, validation: Loaders, *, resume: bool) -> None:
        self._used = [*by_owner(train).values(), *by_owner(validation).values()]
        self.position = Position()
        self.selection = self._new_selection()
        self.set_up(train)
        randomness = Randomness(loader_generators(train) + loader_generators(validation))
        train, validation = shared(train, self.processes), shared(validation, self.processes)
        meter = EpochAverages()
        checkpoints = self._checkpoints(randomness, meter)
        if resume:
            self.position, self.threads = checkpoints.resume(self.threads)
        self._files.write_begin(self.config, self._ready.device, self.options["seed"])
        if not resume:
            self._save(checkpoints)  # so that a run killed in its first epoch can be resumed
            self._files.remove_results()
        with fitting(self.callbacks, self._fit_info(self.position.logged_until if resume else None)):
            while self.position.epoch < self.epochs and not self._stale():
                if not self.position.batch:
                    checkpoints.parts["meter"] = meter = EpochAverages()
                    self._begin_epoch(train)
                    checkpoints.start = randomness.state_dict()
                self._train_epoch(train, checkpoints, meter)
                self._check_weights()
                renew_norms(self.step, train, self.options, self._ready.module)
                check_equal(self.processes, self.model, self.networks)
                self._close_epoch(validation, checkpoints, meter)
        self._put_best_back(validation)

    def _begin_epoch(self, train: Loaders) -> None:
        """Let the sharing method and the architecture change what they change before an epoch."""
        epoch, restart_every = self.position.epoch, self.options["restart_every"]
        if restart_every is not None and epoch % restart_every == 0:
            self.optimizer.state.clear()
        if self.sharing.restarts_at(epoch):
            self._ready.restart()
        with self._ready.default_dtype():
            self.step.begin_epoch(epoch, train)

    @with_own_threads
    def test(self, loaders: Loaders) -> Results:
        """Evaluate the selected model on test data, which only reports.

        Raises:
            ParameterError: if these are the loaders that trained or chose the model, or nothing was trained.
        """
        device = self._ready.device
        if any(loader is used for loader in by_owner(loaders).values() for used in self._used):
            raise ParameterError("this loader trained or chose the model; test on data that did neither.")
        check_loaders(loaders, self.model.tasks, "test loader")
        with taking_part(self.processes):
            results = self._evaluate(shared(loaders, self.processes))
        rows = list(result_rows(self.position.epoch, self.position.step, "test", results))
        with self._files.writing():
            notify(self.callbacks, "on_test_end", rows)
            if self.folder is not None:
                self._files.write_samples(sample_predictions(self._trained, loaders, device))
                self._write_summary("finished", results, self._measured(loaders))
            notify(self.callbacks, "on_run_end")
        return results

    @with_own_threads
    @torch.no_grad()
    def predict(self, x: Any, tasks: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Return task -> outputs for one input, each by the task's own network, in eval mode.

        Args:
            x: a batch, as the loaders yield it.
            tasks: names of the tasks, all by default.
        """
        names, device = self.model.chosen(tasks), self._ready.device
        with eval_mode(self.model):
            return self._trained.outputs(Group(x, {}, names).to(device))

    def network(self, task: str) -> MultiTaskModel:
        """Return a model that is the network of the task in its selected epoch.

        The heads of the other tasks are in it, but only the output of this task has a meaning.
        """
        self.model.check_task(task)
        return cast("MultiTaskModel", self.networks.network(self.model, task))

    def compact(self, task: str, example_inputs: Any = None, *, multiple_of: int | str = 1) -> CompactedModule:
        """Return the network of the task in its selected epoch, physically small; see `sm.compact`."""
        return compact(self.model, self.networks, task=task, example_inputs=example_inputs, multiple_of=multiple_of)

    @with_own_threads
    def check(self, train: Loaders, validation: Loaders | None = None) -> TrainingCheck:
        """Run one batch through everything that training runs, on copies: this trainer and its model do not change.

        Args:
            train: training data, as for `fit`.
            validation: validation data, as for `fit`; None leaves out the evaluation.

        Raises:
            SparseMTLError: any error that `fit` would raise at its start or in its first step.
        """
        return check_training(self._parts, self.options, train, validation)

    @with_own_threads
    def set_up(self, train: Loaders) -> None:
        """Seed the generators, and make all that training needs, as `fit` does at its beginning.

        Args:
            train: training data, as for `fit`.

        Raises:
            ParameterError: if the accelerator, the optimizer or another part cannot be made.
        """
        self._setup = set_up(self._parts, self.options, train, self.processes)
        recorded = recorded_options(self.options, self.processes, self._parts.scheduler_every)
        self._settings = RunSettings.of(self.config, self._setup.optimizer, recorded, self.complete_config)

    def _train_epoch(self, train: Loaders, checkpoints: Checkpoints, meter: EpochAverages) -> None:
        self.model.train()
        train = sharded(train)
        in_epoch = steps_in_epoch(train, self.options["mix"])
        random, start = checkpoints.randomness, checkpoints.start
        batches = remaining_batches(train, self.model.tasks, self.options["mix"], self.position.batch, random, start)
        began = time.perf_counter()
        seen = meter.samples
        while window := list(islice(batches, self.options["accumulate"])):
            where = f"epoch {self.position.epoch + 1}, batch {self.position.batch + 1}, step {self.position.step + 1}"
            result = self.step.step(window, where)
            self._ready.step_scheduler("step")
            meter.add(result)
            before = self.position.batch
            self.position.batch += len(window)
            self.position.step += 1
            speed = (meter.samples - seen) / max(time.perf_counter() - began, 1e-9)
            step = StepInfo(self.position.epoch + 1, self.position.batch, in_epoch, result.losses, speed)
            for callback in self.callbacks:
                callback.on_step(step)
            if self._checkpoint_due(before):
                self._save(checkpoints)
        self.position.seconds += time.perf_counter() - began

    def _new_selection(self) -> Selection:
        options = self.options
        apart = chooses_per_task(options, self.sharing)
        return Selection(self.model, options["monitor"], apart=apart, after=options["choose_after"])

    def _checkpoint_due(self, before: int) -> bool:
        every = self.options["checkpoint_every"]
        return self.folder is not None and every is not None and before // every < self.position.batch // every

    def _close_epoch(self, validation: Loaders, checkpoints: Checkpoints, meter: EpochAverages) -> None:
        """Validate, choose, schedule, log, save."""
        epoch, step = self.position.epoch, self.position.step
        self.sharing.end_epoch(epoch, self.networks)
        self.balancer.end_epoch()
        warn_of_missing_labels(self.step, meter, epoch)
        if epoch == 0:
            self.position.scales = warn_of_unlike_scales(self.step, meter)
        results = self._evaluate(validation)
        if isinstance(self.sharing, ObservesValidation):
            self.sharing.observe_validation(epoch, task_values(self.options["monitor"], results, self.model.tasks))
        improved = self.selection.update(epoch, results) if self.sharing.is_selectable(epoch) else []
        for part in improved:
            self.snapshots.keep(part, self.model, self.networks, self.sharing)
        figures = {"lr": float(self.optimizer.param_groups[0]["lr"]), "seconds": self.position.seconds}
        rows = epoch_rows(meter, results, self.step, (epoch + 1, step), figures)
        notify(self.callbacks, "on_epoch_end", rows, bool(improved))
        if self._ready.plateau is not None:
            self._ready.plateau.step(epoch, results)
        self._ready.step_scheduler("epoch")
        self.position.epoch += 1
        self.position.batch = 0
        self.position.logged_until = step
        self._save(checkpoints)

    def _fit_info(self, resume_at: int | None) -> FitInfo:
        folder = self.folder.path if self.folder is not None else None
        primary = {name: metric_facts(task).primary for name, task in self.model.tasks.items()}
        return FitInfo(self.name, folder, self.config, self.epochs, primary, resume_at)

    def _check_weights(self) -> None:
        """Raise before a model with weights that are not finite is validated, chosen or saved."""
        kept = f"; {self.folder.last} holds the run before that" if self.folder is not None else ""
        check_weights(self.step.trained, f"after step {self.position.step}{kept}")

    def _evaluate(self, loaders: Loaders) -> Results:
        return evaluate(self._trained, loaders, self._ready.device)

    def _stale(self) -> bool:
        patience = self.options["patience"]
        return patience is not None and self.selection.stale(self.position.epoch - 1) >= patience

    def _checkpoints(self, randomness: Randomness, meter: EpochAverages) -> Checkpoints:
        parts: dict[str, Stateful] = {
            "optimizer": self.optimizer,
            "sharing": self.sharing,
            "balancer": self.balancer,
            "step": self.step,
            "selection": self.selection,
            "meter": meter,
            "randomness": randomness,
            **self._ready.stateful(),
        }
        place = (self._settings, self._ready.device, self.processes)
        return Checkpoints(self.folder, self.model, parts, randomness, *place)

    def _save(self, checkpoints: Checkpoints) -> None:
        if self.folder is not None:
            self._check_weights()
            checkpoints.save(self.position)

    def _put_best_back(self, validation: Loaders) -> None:
        self.selection.check()
        self.step.networks = self.snapshots.restore(list(self.selection.parts), self.model, self.networks, self.sharing)
        self.sharing.end_training(self.model, self.networks)
        self.model.eval()
        best = self.selection.results  # of the epochs that were restored; a checkpoint of 0.2 may lack them
        self.validation = best if best.keys() == self.model.tasks.keys() else self._evaluate(validation)
        self._files.write_networks(self.model, self.networks)
        self._write_summary("trained", Results())

    @property
    def _trained(self) -> Trained:
        return Trained(self.model, self.networks, self._ready.module)

    def _measured(self, loaders: Loaders) -> RunCost | None:
        if not self.options["measure_cost"]:
            return None
        with self._ready.default_dtype():
            return measure_costs(self.model, self.networks, loaders)

    def _write_summary(self, status: str, test: Results, cost: RunCost | None = None) -> None:
        if self.folder is None:
            return
        results = RunResults(
            name=self.name,
            status=status,
            epochs=self.position.epoch,
            seconds=self.position.seconds,
            validation=self.validation,
            test=test,
            notes=(*self.options["notes"], *filter(None, [self.position.scales])),
            cost=cost,
        )
        self._files.write_summary(
            summarize(results, self._parts, config=self.config, networks=self.networks, selection=self.selection)
        )
