"""Two processes train as one with the doubled batch: weights, masks, figures, evaluation, resume, and a death."""

from __future__ import annotations

import json
import math
import os
import re
import socket
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from members import is_installed, made_balancer
from together import together
from torch import Tensor, nn

import sparsemtl as sm
from sparsemtl.balancing import BALANCERS
from sparsemtl.data import TensorLoader
from sparsemtl.errors import CheckpointError, ConfigError, LabelError, ParameterError, ProcessError, SparseMTLWarning
from sparsemtl.registry.parameters import parameters_of
from sparsemtl.runs.run import run
from sparsemtl.sharing import SHARING, Sharing
from sparsemtl.storage.files import read_tensors
from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.tasks import signs
from sparsemtl.tasks.processes import Processes
from sparsemtl.tasks.shards import shared
from sparsemtl.tasks.signs import Signs
from sparsemtl.training.evaluation.evaluate import evaluate
from sparsemtl.training.evaluation.trained import Trained

Case = tuple[str, str, dict[str, Any]]
"""Sharing method, balancer, and options of the trainer; with `mix`, every task has data of its own."""
QUICK: list[Case] = [
    ("dense", "mean", {"accumulate": 2, "clip_norm": 0.1}),
    ("fisher", "uncertainty", {}),
    ("dense", "upgrad", {}),
    ("soft-masks", "mean", {}),
    ("dense", "gradnorm", {}),
    ("dense", "mgda-ub", {}),
    ("random", "mean", {"mix": "longest"}),
    ("random", "mean", {"mix": "proportional"}),
    ("random of neurons", "mean", {"execution": "sliced"}),
    ("random", "uncertainty", {"teacher": True, "accumulate": 2}),
]
"""Those that communicate in a way of their own."""
NAMES = ("kind", "marks", "sum")


def model(seed: int = 0) -> sm.SharedBottom:
    """A new one, with the same weights for a seed."""
    torch.manual_seed(seed)
    encoder = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.Tanh())
    tasks = [
        sm.Classification("kind", 3, class_weights=[1, 2, 3]),
        sm.MultiLabel("marks", 2),
        sm.Classification("sum", 2),
    ]
    return sm.SharedBottom(encoder, tasks, heads={task.name: nn.Linear(5, task.outputs) for task in tasks}).double()


def build(method: str) -> Sharing:
    """A method of the registry, which is at its end after as few epochs as others."""
    if method == "random of neurons":
        return sm.RandomSharing(keep=0.5, granularity="neuron", seed=0)
    given = {"keep": 0.5, "iterations": 1, "iteration": 1, "epochs_per_iteration": 1, "linear": True}
    return SHARING.build(method, **{name: given[name] for name in given if name in parameters_of(SHARING[method])})


def data() -> tuple[Tensor, dict[str, Tensor]]:
    """Five batches of 8: the last round of two processes has one. Some labels are missing, of a whole batch too."""
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    labels = {"kind": x[:, :3].argmax(1), "marks": (x[:, 2:4] > 0).double(), "sum": (x.sum(1) > 0).long()}
    labels["marks"][5:9] = math.nan
    labels["sum"][:3] = -100
    labels["kind"][16:24] = -100
    return x, labels


def trainer_of(case: tuple[str, str], *, epochs: int = 2, folder: Path | None = None, **options: Any) -> sm.Trainer:
    sharing, balancing = case
    return sm.Trainer(
        model(),
        sharing=build(sharing),
        balancing=made_balancer(balancing, 3),
        optimizer="sgd",
        epochs=epochs,
        precision="64-true",
        accelerator="cpu",
        folder=folder,
        seed=3,
        progress=False,
        **options,
    )


def loaders(size: int, *, shuffle: bool = True) -> tuple[TensorLoader, TensorLoader]:
    return TensorLoader(*data(), batch_size=size, shuffle=shuffle), TensorLoader(*data(), batch_size=8)


def own_loaders(size: int) -> dict[str, TensorLoader]:
    """Data of each task, of different lengths."""
    x, labels = data()
    lengths = dict(zip(NAMES, (40, 24, 16), strict=True))
    return {task: TensorLoader(x[:n], labels[task][:n], batch_size=size, shuffle=True) for task, n in lengths.items()}


def state_of(trainer: sm.Trainer) -> tuple[dict[str, Any], Any, dict[str, Any], list[float]]:
    """Weights, networks, validation results and logged figures."""
    figures = [row.value for row in trainer._figures.rows if row.name != "seconds"]
    results = {task: dict(values) for task, values in trainer.validation.items()}
    return trainer.model.state_dict(), trainer.networks.state_dict(), results, figures


def train(cases: list[Case], size: int) -> list[Any]:
    warnings.simplefilter("ignore", SparseMTLWarning)  # two epochs are too few for some methods
    states = []
    for sharing, balancing, options in cases:
        training, validation = loaders(size)
        if "teacher" in options:
            options = {**options, "teacher": sm.Teacher(model(seed=1))}
        trainer = trainer_of((sharing, balancing), **options)
        states.append(state_of(trainer.fit(own_loaders(size) if "mix" in options else training, validation)))
        slices = trainer.step.slices
        assert slices is None or all(slices.share(task) for task in NAMES)
    return states


def assert_same(one: Any, two: Any, where: str) -> None:
    """Equal up to the order of sums; masks, numbers of figures and keys exactly."""
    if isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for key in one:
            assert_same(one[key], two[key], f"{where}/{key}")
    elif isinstance(one, list):
        torch.testing.assert_close(torch.tensor(one), torch.tensor(two), rtol=1e-6, atol=1e-8, equal_nan=True)
    elif isinstance(one, torch.Tensor) and one.dtype == torch.bool:
        assert torch.equal(one, two), where
    elif isinstance(one, (torch.Tensor, float)):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-8, equal_nan=True, msg=f"{where}: {one} and {two}")


def check_cases(cases: list[Case]) -> None:
    first, second = together(train, cases, 8)
    assert isinstance(first, list), first
    assert isinstance(second, list), second
    with warnings.catch_warnings():
        alone = train(cases, 16)
    for case, one, zero, other in zip(cases, alone, first, second, strict=True):
        for part, values, mine in zip(("weights", "networks", "validation", "figures"), one, zero, strict=True):
            assert_same(values, mine, f"{case}: {part}")
        for name, weight in zero[0].items():
            assert torch.equal(weight, other[0][name]), f"{case}: {name} differs between the processes"
        assert_same(zero[1], other[1], f"{case}: networks of the processes")


def test_two_processes_are_one_with_the_doubled_batch() -> None:
    check_cases(QUICK)


@pytest.mark.slow
def test_every_sharing_method_does_too() -> None:
    check_cases([(method, "mean", {}) for method in SHARING])


@pytest.mark.slow
def test_every_balancer_does_too() -> None:
    check_cases([("dense", name, {}) for name in BALANCERS if is_installed(name)])


@pytest.mark.slow
def test_compiled_passes_do_too() -> None:
    check_cases([("fisher", "mean", {"compile": True}), ("dense", "upgrad", {"compile": True, "accumulate": 2})])


# ---- parts ---------------------------------------------------------------------------------------------------


def parts(folder: Path) -> dict[str, Any]:
    """Parts that need two processes, in one start of them."""
    found: dict[str, Any] = {}
    whole = trainer_of(("random", "mean"), folder=folder / "whole").fit(*loaders(8))
    half = trainer_of(("random", "mean"), epochs=1, folder=folder / "half").fit(*loaders(8))
    rest = trainer_of(("random", "mean"), folder=folder / "half").fit(*loaders(8), resume=True)
    found["resumed"] = state_of(rest)[:2], state_of(whole)[:2]
    torch.manual_seed(dist.get_rank())  # other weights and choices in each process, before they agree
    network = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 5))
    tasks = list(model().tasks.values())
    heads = {task.name: nn.Linear(5, task.outputs) for task in tasks}
    normed = sm.Trainer(
        sm.SharedBottom(network, tasks, heads=heads),
        sharing=build("fisher"),
        epochs=3,
        precision="64-true",
        accelerator="cpu",
        seed=None,
        progress=False,
    )
    found["norms and dropout"] = state_of(normed.fit(*loaders(8)))[:2]
    found["writes"] = half.folder is not None
    split = loaders(7)[1]
    trained = Trained(rest.model, rest.networks, rest.model)
    device = torch.device("cpu")
    found["sharded"] = dict(evaluate(trained, shared(split, rest.processes), device))
    found["unsharded"] = dict(evaluate(trained, split, device))
    x, labels = data()
    own = [(x[i::2], {task: label[i::2] for task, label in labels.items()}) for i in range(2)]
    mine = [own[dist.get_rank()]] if dist.get_rank() == 0 else [_part(own[1], 0, 12), _part(own[1], 12, 20)]
    network = model()
    group = dist.group.WORLD
    found["masks"] = {
        "fisher": sm.fisher_masks(network, mine, keep=0.3, samples=None, process_group=group),
        "gradient": sm.choose_masks(sm.criteria.Gradient(samples=None), network, mine, keep=0.3, process_group=group),
    }
    scores = sm.fisher_information(network, mine, "kind", samples=None, process_group=group)
    found["scores"] = scores
    wrapped = nn.parallel.DistributedDataParallel(network, find_unused_parameters=True)
    found["wrapped"] = _gradient(network, wrapped, own[dist.get_rank()], found["masks"]["fisher"])
    found["pretrained"] = run(pretrained(8), folder / "pretrained", progress=False)
    found["errors"] = [
        _error(lambda: run(pretrained(4), folder / "pretrained", resume=True, progress=False)),
        _error(lambda: trainer_of(("dense", "mean"), devices=3).fit(*loaders(8))),
        _error(lambda: trainer_of(("dense", "mean")).fit(_distributed(), loaders(8)[1])),
    ]
    return found


def pretrained(size: int) -> dict[str, Any]:
    """Configuration of a run with a pretraining run, with batches of this size."""
    data = {"name": "two-regressions", "train_size": 40, "validation_size": 16, "test_size": 16, "dimension": 4}
    training = {"epochs": 1, "batch_size": size, "precision": "64-true", "measure_cost": False, "accelerator": "cpu"}
    first = {"tasks": ["first"], "training": {"epochs": 2}}
    optimizer = {"name": "sgd", "lr": 0.1}
    return {"data": data, "encoder": "mlp", "optimizer": optimizer, "training": training, "pretraining": first}


def _gradient(network: sm.SharedBottom, called: nn.Module, batch: Any, masks: sm.TaskMasks) -> dict[str, Tensor]:
    """Gradient of a task's loss in its network, of a plain loop with PyTorch's wrapper."""
    x, labels = batch
    with masks.applied(network, "sum"):
        network.tasks["sum"].loss(called(x, tasks=["sum"])["sum"], labels).backward()
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def _part(pair: Any, start: int, stop: int) -> Any:
    x, labels = pair
    return x[start:stop], {task: label[start:stop] for task, label in labels.items()}


def _error(call: Any) -> str:
    with pytest.raises((CheckpointError, ParameterError, LabelError)) as caught:
        call()
    return str(caught.value)


def _distributed() -> Any:
    from torch.utils.data import DataLoader
    from torch.utils.data.distributed import DistributedSampler

    x, _ = data()
    return DataLoader(x, sampler=DistributedSampler(x), batch_size=8)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("together")
    first, second = together(parts, folder)
    assert isinstance(first, dict), first
    assert isinstance(second, dict), second
    return first, second, folder


def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(found: Any) -> None:
    for process in found[:2]:
        resumed, whole = process["resumed"]
        for one, two in zip(resumed, whole, strict=True):
            assert_bits(one, two)


def assert_bits(one: Any, two: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_bits(one[key], two[key])
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, two)


def test_networks_with_norms_and_dropout_agree(found: Any) -> None:
    for one, two in zip(*(process["norms and dropout"] for process in found[:2]), strict=True):
        assert_bits(one, two)


def test_the_first_process_alone_writes(found: Any) -> None:
    first, second, folder = found
    assert first["writes"]
    assert not second["writes"]
    assert json.loads((folder / "whole" / "summary.json").read_text())["status"] == "trained"


def test_another_number_of_processes_cannot_resume(found: Any) -> None:
    with pytest.raises(CheckpointError, match="processes is 2 there and missing here"):
        trainer_of(("random", "mean"), epochs=3, folder=found[2] / "half").fit(*loaders(8), resume=True)


def test_pretraining_is_that_of_one_process_with_the_doubled_batch(found: Any, tmp_path: Path) -> None:
    alone = run(pretrained(16), tmp_path / "run", progress=False)
    for process in found[:2]:
        assert_same(dict(alone), dict(process["pretrained"]), "results")
    for name in ("model.safetensors", "pretraining/model.safetensors"):
        one, two = (read_tensors(folder / name)[0] for folder in (tmp_path / "run", found[2] / "pretrained"))
        assert_same(dict(one), dict(two), name)


def test_metrics_are_exactly_those_of_one_process(found: Any) -> None:
    for process in found[:2]:
        assert process["sharded"] == process["unsharded"]
        assert set(process["sharded"]) == set(NAMES)


def test_criteria_in_a_loop_of_ones_own_are_those_of_all_data(found: Any) -> None:
    x, labels = data()
    network = model()
    masks = sm.fisher_masks(network, [(x, labels)], keep=0.3, samples=None)
    scores = sm.fisher_information(network, [(x, labels)], "kind", samples=None)
    gradient = sm.choose_masks(sm.criteria.Gradient(samples=None), network, [(x, labels)], keep=0.3)
    for process in found[:2]:
        for task in NAMES:
            for name in masks[task]:
                assert torch.equal(process["masks"]["fisher"][task][name], masks[task][name])
                assert torch.equal(process["masks"]["gradient"][task][name], gradient[task][name])
        for name in scores:
            torch.testing.assert_close(process["scores"][name], scores[name], rtol=1e-12, atol=0)


def test_the_wrapper_of_pytorch_averages_gradients_of_masked_networks(found: Any) -> None:
    x, labels = data()
    halves = []
    for i in range(2):
        network = model()
        half = (x[i::2], {task: label[i::2] for task, label in labels.items()})
        halves.append(_gradient(network, network, half, found[0]["masks"]["fisher"]))
    for process in found[:2]:
        for name, gradient in halves[0].items():
            mean = (gradient + halves[1][name]) / 2
            torch.testing.assert_close(process["wrapped"][name], mean, rtol=1e-12, atol=1e-15)


def test_what_several_processes_cannot_do_is_refused(found: Any) -> None:
    other, devices, sampler = found[0]["errors"]
    assert found[1]["errors"][0] == other
    assert "pretraining holds a run of another configuration: training.batch_size is 8 there and 4 here" in other
    assert "are 3 processes, but 2 run" in devices
    assert "DistributedSampler" in sampler
    with pytest.raises(ParameterError, match="Use strategy='ddp'"):
        trainer_of(("dense", "mean"), devices=2, strategy="fsdp").fit(*loaders(8))
    with pytest.raises(ConfigError, match="sharing: expected one method with several processes, got 'auto'"):
        run({"training": {"devices": 2}, "sharing": "auto"}, "nowhere")


# ---- a death -------------------------------------------------------------------------------------------------


class Deadly:
    """Batches of a list; reading the third ends process 1."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        for number, batch in enumerate(self.batches):
            if number == 2 and dist.get_rank() == 1:
                sys.stdout.flush()
                os.kill(os.getpid(), 9)
            yield batch


def die(folder: Path) -> None:
    batches = list(loaders(4)[0])
    trainer_of(("dense", "mean"), folder=folder).fit(Deadly(batches), loaders(8)[1])


def test_the_other_process_ends_when_one_is_killed(tmp_path: Path) -> None:
    first, second = together(die, tmp_path / "run")
    assert second == -9
    assert isinstance(first, ProcessError)
    assert "one of them has ended" in str(first)
    assert re.search(r"Process 1 \(pid \d+\) has ended without a word", str(first))
    assert RunFolder(tmp_path / "run").last.exists()


def test_a_process_that_hangs_before_an_exchange_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signs, "_MOMENT", 0.0)
    store = dist.HashStore()
    store.set("sparsemtl/sign/1", json.dumps([os.getpid(), socket.gethostname(), 4]))
    here = Signs(store, 0, 2, {})
    here.exchanges = 4
    with Processes(signs=here)._communicating():
        assert re.search(r"process 1 .* does not answer: it is at exchange 4, this one at 5", here.diagnosis())
    here.exchanges = 4
    assert here.diagnosis() == ""


class Broken(Deadly):
    """Batches of a list; reading the third fails in process 1."""

    def __iter__(self) -> Iterator[Any]:
        for number, batch in enumerate(self.batches):
            if number == 2 and dist.get_rank() == 1:
                raise OSError("row 7 cannot be read")
            yield batch


def fail() -> None:
    trainer_of(("dense", "mean")).fit(Broken(list(loaders(4)[0])), loaders(8)[1])


def test_the_other_process_names_the_error_of_one() -> None:
    first, second = together(fail)
    assert str(second) == "row 7 cannot be read"
    assert isinstance(first, ProcessError)
    assert "Process 1 failed: OSError: row 7 cannot be read. The last checkpoint stays." in str(first)
