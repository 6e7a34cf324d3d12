"""The trainer: a loop on Lightning Fabric over public pieces that all work without it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from typing_extensions import Doc

from sparsemtl.balancing import Balancer, as_balancer
from sparsemtl.errors import LabelWarning, ParameterError
from sparsemtl.networks.masks import TaskMasks
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.networks.modes import eval_mode
from sparsemtl.networks.randomness import seed_everything
from sparsemtl.networks.recomputed_norms import BATCHES, recompute_norms
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.optim import OPTIMIZERS
from sparsemtl.registry.parameters import Count, Natural, Positive, validated
from sparsemtl.sharing import DenseSharing, Sharing
from sparsemtl.storage.files import write_json, write_tensors
from sparsemtl.storage.locks import locked, refuse_foreign
from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.tasks.batches import (
    Group,
    Loader,
    Loaders,
    check_loaders,
    loader_generators,
    per_task,
    preserve_loader_state,
)
from sparsemtl.training.arguments import check_maker, check_model, check_sharing
from sparsemtl.training.callbacks import Callback, CSVCallback, FitInfo, ProgressBar, StepInfo, TensorBoardCallback
from sparsemtl.training.callbacks.callback import fitting, notify
from sparsemtl.training.checkpoint import Randomness, Stateful
from sparsemtl.training.costs import RunCost, measure_costs
from sparsemtl.training.epoch_averages import EpochAverages, figure_rows, result_rows, run_rows
from sparsemtl.training.evaluation import Results, Trained, evaluate, sample_predictions
from sparsemtl.training.finite import check_weights
from sparsemtl.training.groups import make_optimizer
from sparsemtl.training.heads import materialize_heads
from sparsemtl.training.last_batch import check_last_batches
from sparsemtl.training.loss_scales import LossScaleWarning, unlike_scales
from sparsemtl.training.machine import machine, with_own_threads
from sparsemtl.training.mixing import Mix, remaining_batches, steps_in_epoch
from sparsemtl.training.monitors import Monitor, primary_of
from sparsemtl.training.plateau import Plateau
from sparsemtl.training.processes import refuse_distributed
from sparsemtl.training.resuming import Checkpoints, Position
from sparsemtl.training.selection import Selection
from sparsemtl.training.settings import run_settings
from sparsemtl.training.snapshots import Snapshots
from sparsemtl.training.step import Backend, TrainingStep, choose_update
from sparsemtl.training.summary import RunResults, described, summarize

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Precision = Literal["32-true", "64-true", "bf16-mixed", "16-mixed", "bf16-true"]
Scheduler = LRScheduler | ReduceLROnPlateau
RECORDED = (
    "seed",
    "accumulate",
    "clip_norm",
    "mix",
    "restart_every",
    "precision",
    "norm_batches",
    "_monitor",
    "_choose_after",
)
"""Settings of a trainer that the numbers of a run depend on: they may not change when it is resumed."""


class Trainer:
    """Trains a multi-task model with a sharing method and a balancer, and keeps what validation finds best.

    Args:
        model: the architecture.
        sharing: what every task reads and trains; everything by default.
        balancing: a balancer's name, a `Balancer`, or a scalarizer or aggregator of TorchJD.
        optimizer: makes an optimizer from parameter groups; a name takes its defaults.
        scheduler: makes a learning-rate scheduler from an optimizer; it steps once an epoch.
        epochs: epochs at most.
        seed: seeds all generators before training; None leaves them as they are.
        accumulate: batches whose gradients make one step.
        clip_norm: largest norm of a step's gradient.
        mix: how loaders of single tasks make an epoch, see `training.mixing`.
        monitor: what chooses the model, on validation data: `score` (the mean relative change of the tasks' primary
            metrics), `loss`, or a function of the results that returns a number, larger is better.
        choose_after: epochs at the start of which none is chosen, for a penalty that takes time to make weights zero.
        patience: stop after so many epochs without a better model.
        restart_every: forget the optimizer's moments every so many epochs, as codes do that make a new optimizer.
        norm_batches: training batches per task over which batch-norm statistics are recomputed with the present
            weights, before every validation; 0 keeps running averages. By default 100 where every task has statistics
            of its own, and 0 where they are shared.
        accelerator: as Lightning Fabric names it: `auto`, `cpu`, `cuda`, `mps`.
        precision: as Lightning Fabric names it.
        threads: threads within an operation on the CPU; figures are the same bit for bit only with the same number.
            None leaves torch's as it is; a resumed run then takes that of the run before it stopped.
        folder: run folder; nothing is written if None.
        checkpoint_every: also write a checkpoint every so many batches, for long epochs.
        tensorboard: log for TensorBoard as well.
        measure_cost: compact every task's network after the test, and measure what it costs.
        progress: show a live bar, or lines where there is no terminal.
        name: the run's name in reports.
        config: the configuration to record in the run folder; described from the objects by default.
        notes: what must be said beside the figures.

    Example:
        >>> trainer = Trainer(model, sharing=FisherSharing(keep=0.3), epochs=10)   # doctest: +SKIP
        >>> trainer.fit(train, validation)                                         # doctest: +SKIP
        >>> trainer.test(test)["digit"]["accuracy"]                                # doctest: +SKIP
    """

    @validated
    def __init__(
        self,
        model: MultiTaskModel,
        *,
        sharing: Sharing | None = None,
        balancing: Balancer | str | Any = "mean",
        optimizer: str | Callable[[Any], Optimizer] = "adam",
        scheduler: Callable[[Optimizer], Scheduler] | None = None,
        epochs: Count = 10,
        seed: Natural | None = 0,
        accumulate: Count = 1,
        clip_norm: Positive | None = None,
        mix: Mix = "longest",
        monitor: Monitor = "score",
        choose_after: Natural = 0,
        patience: Count | None = None,
        restart_every: Count | None = None,
        norm_batches: Natural | None = None,
        accelerator: str = "auto",
        precision: Precision = "32-true",
        threads: Count | None = None,
        folder: str | Path | None = None,
        checkpoint_every: Count | None = None,
        tensorboard: bool = False,
        measure_cost: bool = True,
        progress: bool = True,
        callbacks: Annotated[
            Sequence[Callback], Doc("Called at the events of a run, after those for its files and the progress bar.")
        ] = (),
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        check_model(model)
        check_maker("optimizer", optimizer, Optimizer)
        check_maker("scheduler", scheduler, (LRScheduler, ReduceLROnPlateau))
        check_sharing(sharing)
        self.model = model
        self.sharing = DenseSharing() if sharing is None else sharing
        self.balancer = as_balancer(balancing)
        self._make_optimizer = OPTIMIZERS[optimizer] if isinstance(optimizer, str) else optimizer
        self._make_scheduler = scheduler
        self.epochs = epochs
        self.seed = seed
        self.accumulate = accumulate
        self.clip_norm = clip_norm
        self.mix: Mix = mix
        self.patience = patience
        self.restart_every = restart_every
        self.norm_batches = norm_batches
        self.accelerator = accelerator
        self.precision = precision
        self.threads: int | None = threads
        self.folder = RunFolder(folder) if folder is not None else None
        self.checkpoint_every = checkpoint_every
        self.measure_cost = measure_cost
        self.name = name or (self.folder.path.name if self.folder else type(model).__name__)
        training = {"epochs": epochs, "accumulate": accumulate, "precision": precision}
        self.config = dict(config or described(model, self.sharing, self.balancer, seed=seed, training=training))
        self.notes = tuple(notes)
        files: list[Callback] = [CSVCallback(self.folder.metrics)] if self.folder is not None else []
        if tensorboard and self.folder is not None:
            files.append(TensorBoardCallback())
        self.callbacks: tuple[Callback, ...] = (*files, *([ProgressBar()] if progress else []), *callbacks)
        self._monitor: Monitor = monitor
        self._choose_after = choose_after
        self.selection = self._select_anew()
        self.snapshots = Snapshots(self.folder)
        self.position = Position()
        self.validation: Results = {}
        self._chose: list[Loader] = []
        self._ready = False
        if choose_after >= epochs:
            raise ParameterError(
                f"`choose_after` must leave an epoch to choose, got {choose_after} of {epochs} epochs."
            )
        if not self.sharing.is_selectable(epochs - 1):
            raise ParameterError(
                f"{type(self.sharing).__name__} would still be warming up when the {epochs} epochs end. "
                "Raise `epochs` or shorten the warm-up."
            )

    @property
    def networks(self) -> TaskNetworks:
        """What each task computes with: the current networks while training, afterwards those of the best epoch."""
        self._check_ready()
        return self.step.networks

    @property
    def masks(self) -> TaskMasks | None:
        """Which shared weights each task uses; None if all tasks use all."""
        return self.networks.kept(self.model.shared_parameters()) if self._ready else None

    # ---- public ----------------------------------------------------------------------------------------------

    @with_own_threads
    def fit(self, train: Loaders, validation: Loaders, *, resume: bool = False) -> Trainer:
        """Train; afterwards the model, masks and norms are those of the best validation epoch.

        A second call begins a new run, from the weights as they are.

        Args:
            train: yields (x, {task: labels}), or task -> loader of (x, labels).
            validation: the same; it chooses the model.
            resume: go on from the folder's last checkpoint; the end is bit for bit that of an uninterrupted run.

        Raises:
            NonFiniteError: if a loss, a gradient or a weight becomes NaN or infinite; the last checkpoint stays.
            SelectionError: if nothing that chooses the model is defined on the validation data.
            CheckpointError: if there is nothing to resume, or it was made by another run, or with other settings; if
                the folder holds files of others, or another process writes there.
            LabelError: if a loader gives no batch, or labels do not fit their task.
            ParameterError: if the environment announces several processes.
            StorageError: if a file cannot be written.
        """
        refuse_distributed()
        check_loaders(train, self.model.tasks)
        check_loaders(validation, self.model.tasks)
        with self._writing(anew=not resume):
            self._fit(train, validation, resume=resume)
        return self

    def _fit(self, train: Loaders, validation: Loaders, *, resume: bool) -> None:
        self._chose = [*_each(train), *_each(validation)]
        self.position = Position()
        self.selection = self._select_anew()
        from sparsemtl.training.precision import default_dtype

        self.set_up(train)
        randomness = Randomness(loader_generators(train) + loader_generators(validation))
        meter = EpochAverages()
        checkpoints = self._checkpoints(randomness, meter)
        if resume:
            self.position, self.threads = checkpoints.resume(self.threads)
            self._record()  # once it is known to be the same run's
        else:
            self._record()
            self._save(checkpoints)  # so that a run killed in its first epoch can be resumed
            if self.folder is not None:
                self.folder.summary.unlink(missing_ok=True)  # that of an earlier run, which this one replaces
        with fitting(self.callbacks, self._fit_info(self.position.logged_until if resume else None)):
            while self.position.epoch < self.epochs and not self._stale():
                epoch = self.position.epoch
                if not self.position.batch:
                    checkpoints.parts["meter"] = meter = EpochAverages()
                    if self.restart_every is not None and epoch % self.restart_every == 0:
                        self.optimizer.state.clear()
                    with default_dtype(self.fabric.strategy.precision):
                        with preserve_loader_state(train):
                            self._begin_epoch(epoch, train)
                        self.model.begin_epoch(epoch)
                    checkpoints.start = randomness.state_dict()
                self._train_epoch(train, checkpoints, meter)
                self._check_weights()
                self._recompute_norms(train)
                self._close_epoch(validation, checkpoints, meter)
        self._put_best_back(validation)

    def _begin_epoch(self, epoch: int, train: Loaders) -> None:
        """Let the sharing method change the networks before an epoch."""
        changed = self.sharing.begin_epoch(epoch, self.model, self.networks, train)
        self.step.networks = self.networks if changed is None else changed

    def _writing(self, *, anew: bool = False) -> AbstractContextManager[None]:
        """Hold the lock of the run folder inside the context.

        Args:
            anew: a run begins; the folder must be empty or ours.
        """
        if self.folder is None:
            return nullcontext()
        if anew:
            refuse_foreign(self.folder.path)
        return locked(self.folder.path)

    def _record(self) -> None:
        """Write what the run is made with, and what it runs on."""
        if self.folder is not None:
            self.folder.write_config(self.config)
            self.folder.write_environment(machine(self.device) | {"device": str(self.device)}, seed=self.seed)

    @with_own_threads
    def test(self, loaders: Loaders) -> Results:
        """Evaluate the chosen model on test data, which only reports.

        Raises:
            ParameterError: if these are the loaders that trained or chose the model, or nothing was trained.
        """
        self._check_ready()
        if any(loader is used for loader in _each(loaders) for used in self._chose):
            raise ParameterError("this loader trained or chose the model; test on data that did neither.")
        check_loaders(loaders, self.model.tasks)
        results = self._evaluate(loaders)
        rows = list(result_rows(self.position.epoch, self.position.step, "test", results))
        with self._writing():
            notify(self.callbacks, "on_test_end", rows)
            if self.folder is not None:
                self.folder.save(self.folder.samples, sample_predictions(self._trained, loaders, self.device))
                self._write_summary("finished", results, self._measured(loaders))
            notify(self.callbacks, "on_run_end")
        return results

    @with_own_threads
    @torch.no_grad()
    def predict(self, x: Any, tasks: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Outputs of the tasks (all by default) for one input, each by its own network, in eval mode."""
        names = tuple(self.model.tasks if tasks is None else tasks)
        for name in names:
            self.model.check_task(name)
        self._check_ready()
        with eval_mode(self.model):
            return self._trained.outputs(Group(x, {}, names).to(self.device))

    def network(self, task: str) -> MultiTaskModel:
        """A model that is the task's own network: its weights, masks and norm statistics as validation chose them.

        The other tasks' heads are in it, but only this task's output means anything. `sm.compact(trainer.network(task),
        task=task)` makes it small.
        """
        self.model.check_task(task)
        self._check_ready()
        return cast("MultiTaskModel", self.networks.network(self.model, task))

    # ---- set-up ----------------------------------------------------------------------------------------------

    @with_own_threads
    def set_up(self, train: Loaders) -> None:
        """Seed, and make all that training needs: `fit` begins so, and mistakes come up without it as well.

        Args:
            train: as for `fit`.

        Raises:
            ParameterError: if the accelerator, the optimizer or anything else cannot be had so.
        """
        from lightning_fabric import Fabric

        from sparsemtl.training.precision import fabric_options

        if self.seed is not None:
            seed_everything(self.seed)
        try:
            self.fabric: Fabric = Fabric(accelerator=self.accelerator, devices=1, **fabric_options(self.precision))
        except (ValueError, RuntimeError) as error:
            raise ParameterError(
                f"accelerator={self.accelerator!r} with precision={self.precision!r} cannot be had here: {error}"
            ) from error
        self.device = self.fabric.device
        materialize_heads(self.model, train)
        check_last_batches(self.model, train)
        self.module = self.fabric.setup_module(self.model)
        networks = self.sharing.start(self.model)
        self.balancer.attach(len(self.model.tasks), self.device)
        extra = ((networks.parameters(), self.sharing.lr), (self.balancer.parameters(), None))
        self.optimizer = make_optimizer(self._make_optimizer, self.model, extra)
        self.scheduler = self._make_scheduler(self.optimizer) if self._make_scheduler else None
        stepped: Any = self.fabric.setup_optimizers(self.optimizer)
        self._plateau: Plateau | None = None
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self._plateau = Plateau(self.scheduler, self._monitor, self.model.tasks)
        scaled = getattr(self.fabric.strategy.precision, "scaler", None) is not None
        backend = Backend(self.module, self.fabric.backward, self._clip(stepped), self.device, scaled)
        update = choose_update(self.model, networks, self.balancer, asked=self.sharing.update, own_data=per_task(train))
        self.step = TrainingStep(
            self.model,
            stepped,
            networks,
            sharing=self.sharing,
            balancing=self.balancer,
            update=update,
            backend=backend,
        )
        self._settings = run_settings(
            self.config, self.optimizer, {name.lstrip("_"): getattr(self, name) for name in RECORDED}
        )
        self._ready = True

    def _clip(self, optimizer: Any) -> Callable[[], Any] | None:
        if self.clip_norm is None:
            return None
        clip = partial(self.fabric.clip_gradients, self.module, optimizer, max_norm=self.clip_norm)
        return partial(clip, error_if_nonfinite=False)  # the engine, or the gradient scaler, has looked before

    # ---- one epoch -------------------------------------------------------------------------------------------

    def _train_epoch(self, train: Loaders, checkpoints: Checkpoints, meter: EpochAverages) -> None:
        self.model.train()
        in_epoch = steps_in_epoch(train, self.mix)
        random, start = checkpoints.randomness, checkpoints.start
        batches = remaining_batches(train, self.model.tasks, self.mix, self.position.batch, random, start)
        began = time.perf_counter()
        seen = meter.samples
        while window := list(islice(batches, self.accumulate)):
            where = f"epoch {self.position.epoch + 1}, batch {self.position.batch + 1}, step {self.position.step + 1}"
            result = self.step.step(window, where)
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

    def _select_anew(self) -> Selection:
        return Selection(self.model, self._monitor, apart=self.sharing.selects_per_task, after=self._choose_after)

    def _checkpoint_due(self, before: int) -> bool:
        every = self.checkpoint_every
        return self.folder is not None and every is not None and before // every < self.position.batch // every

    def _close_epoch(self, validation: Loaders, checkpoints: Checkpoints, meter: EpochAverages) -> None:
        """Validate, choose, schedule, log, save."""
        epoch, step = self.position.epoch, self.position.step
        self.sharing.end_epoch(epoch, self.networks)
        self.balancer.end_epoch()
        for task in self.model.tasks:
            if task not in meter.losses:
                warnings.warn(f"task {task!r} had no labelled sample in epoch {epoch + 1}.", LabelWarning, stacklevel=3)
        if epoch == 0:
            self._compare_scales(meter)
        results = self._evaluate(validation)
        improved = self.selection.update(epoch, results) if self.sharing.is_selectable(epoch) else []
        for part in improved:
            self.snapshots.keep(part, self.model, self.networks, self.sharing)
        figures = {"lr": float(self.optimizer.param_groups[0]["lr"]), "seconds": self.position.seconds}
        shown = epoch + 1  # people count from one
        tasks = tuple(self.model.tasks)
        balancing = (("" if row is None else tasks[row], name, value) for row, name, value in self.balancer.metrics())
        rows = [
            *meter.rows(shown, step),
            *result_rows(shown, step, "validation", results),
            *figure_rows(shown, step, "sharing", self.sharing.metrics(self.model, self.networks)),
            *figure_rows(shown, step, "architecture", self.model.metrics()),
            *figure_rows(shown, step, "balancing", balancing),
            *run_rows(shown, step, figures),
        ]
        notify(self.callbacks, "on_epoch_end", rows, bool(improved))
        if self._plateau is not None:
            self._plateau.step(epoch, results)
        elif self.scheduler is not None:
            self.scheduler.step()
        self.position.epoch += 1
        self.position.batch = 0
        self.position.logged_until = step
        self._save(checkpoints)

    def _fit_info(self, resume_at: int | None) -> FitInfo:
        folder = self.folder.path if self.folder is not None else None
        primary = {name: primary_of(task)[0] for name, task in self.model.tasks.items()}
        return FitInfo(self.name, folder, self.config, self.epochs, primary, resume_at)

    def _check_weights(self) -> None:
        """Raise before a model with weights that are not finite is validated, chosen or saved."""
        kept = f"; {self.folder.last} holds the run before that" if self.folder is not None else ""
        check_weights(self.step.trained, f"after step {self.position.step}{kept}")

    def _recompute_norms(self, train: Loaders) -> None:
        """Give the networks that are validated, chosen and saved the batch-norm statistics of their weights."""
        default = BATCHES if self.sharing.bn == "per_task" else 0
        if batches := default if self.norm_batches is None else self.norm_batches:
            recompute_norms(self.model, train, networks=self.networks, batches=batches, module=self.module)

    def _compare_scales(self, meter: EpochAverages) -> None:
        """Warn once, and note beside the figures, if one loss is so large that it trains the shared weights alone."""
        if not (self.balancer.constant and self.step.update != "alternate" and self.model.shared_parameters()):
            return
        self.position.scales = unlike_scales(meter.losses, meter.weights, self.model.tasks)
        if self.position.scales:
            warnings.warn(self.position.scales, LossScaleWarning, stacklevel=4)

    def _evaluate(self, loaders: Loaders) -> Results:
        return evaluate(self._trained, loaders, self.device)

    def _stale(self) -> bool:
        return self.patience is not None and self.selection.stale(self.position.epoch - 1) >= self.patience

    # ---- checkpoints -----------------------------------------------------------------------------------------

    def _checkpoints(self, randomness: Randomness, meter: EpochAverages) -> Checkpoints:
        parts: dict[str, Stateful] = {
            "optimizer": self.optimizer,
            "sharing": self.sharing,
            "balancer": self.balancer,
            "step": self.step,
            "selection": self.selection,
            "meter": meter,
            "randomness": randomness,
            "precision": self.fabric.strategy.precision,  # in half precision it scales the losses
        }
        if self.scheduler is not None:
            parts["scheduler"] = self.scheduler
        if self._plateau is not None:
            parts["plateau"] = self._plateau
        return Checkpoints(self.folder, self.model, parts, randomness, self._settings, self.device)

    def _save(self, checkpoints: Checkpoints) -> None:
        if self.folder is not None:
            self._check_weights()
            checkpoints.save(self.position)

    def _put_best_back(self, validation: Loaders) -> None:
        self.selection.check()
        parts = list(self.selection.parts)
        self.step.networks = self.snapshots.restore(parts, self.model, self.networks, self.sharing)
        self.sharing.end_training(self.model, self.networks)
        self.model.eval()
        self.validation = self._evaluate(validation)
        if self.folder is not None:
            write_tensors(self.folder.model, self.model.state_dict(), {"model": type(self.model).__name__})
            self.networks.save(self.folder.networks)
            self._write_summary("trained", {})

    @property
    def _trained(self) -> Trained:
        return Trained(self.model, self.networks, self.module)

    def _check_ready(self) -> None:
        if not self._ready:
            raise ParameterError("nothing was trained yet; call fit(train, validation) first.")

    def _measured(self, loaders: Loaders) -> RunCost | None:
        if not self.measure_cost:
            return None
        from sparsemtl.training.precision import default_dtype

        with default_dtype(self.fabric.strategy.precision):
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
            notes=(*self.notes, *filter(None, [self.position.scales])),
            cost=cost,
        )
        summary = summarize(
            results,
            config=self.config,
            model=self.model,
            sharing=self.sharing,
            networks=self.networks,
            balancer=self.balancer,
            selection=self.selection,
        )
        write_json(self.folder.summary, summary)


def _each(loaders: Loaders) -> list[Loader]:
    return list(loaders.values()) if isinstance(loaders, Mapping) else [loaders]
