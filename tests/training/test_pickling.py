"""Values that a user sends to another process arrive there whole and work."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from loops import each
from members import is_installed, made_balancer
from torch import nn
from training_toys import WIDTH, loader, own_loaders, quiet, table, tasks

import sparsemtl as sm
from sparsemtl.balancing import BALANCERS

SHARING: dict[str, Any] = {
    "dense": sm.DenseSharing,
    "fisher": lambda: sm.FisherSharing(keep=0.5, warmup=0, estimator="true", samples=8),
    "group-lasso": lambda: sm.GroupLassoSharing(lambda_=0.0, linear=True),
    "soft-masks": lambda: sm.SoftMaskSharing(lambda_=1e-2, linear=True),
}


def lazy(names: str = "ab") -> sm.SharedBottom:
    """A model whose heads have no width yet."""
    torch.manual_seed(0)
    return sm.SharedBottom(nn.Sequential(nn.Linear(WIDTH, 8), nn.BatchNorm1d(8), nn.ReLU()), tasks(names))


def sent(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


@pytest.mark.parametrize("method", SHARING)
def test_a_trainer_arrives_whole_before_and_after_training(method: str) -> None:
    trainer = sent(quiet(lazy(), sharing=SHARING[method](), epochs=1))
    plain = quiet(lazy(), sharing=SHARING[method](), epochs=1).fit(loader(), loader(8))
    arrived = sent(trainer.fit(loader(), loader(8)))
    x, _ = table(4)
    for other in (arrived, sent(arrived.networks), sent(arrived.model)):
        assert type(other) is type(sent(other))
    for task, output in plain.predict(x).items():
        assert torch.equal(arrived.predict(x)[task], output)
        assert torch.equal(sent(arrived.network(task))(x, tasks=[task])[task], output)
        small = sent(arrived.compact(task, x))
        torch.testing.assert_close(small(x), output, rtol=1e-4, atol=1e-5)
        assert str(small.report) == str(arrived.compact(task, x).report)
    assert sent(plain.masks) == plain.masks
    assert arrived.history.equals(plain.history.assign(value=arrived.history["value"]))
    arrived.fit(loader(), loader(8))


@each("name", [name for name in BALANCERS if is_installed(name)])
def test_balancers_arrive_attached_and_not(name: str) -> None:
    balancer = sent(made_balancer(name, 3))
    balancer.attach(3, torch.device("cpu"))
    again = sent(balancer)
    assert list(again.state_dict()) == list(balancer.state_dict())


def test_weighted_balancers_arrive() -> None:
    for name in ("constant", "stch", "cosmos", "pbi"):
        balancer = sent(BALANCERS.build(name, weights=[1.0, 3.0]))
        balancer.attach(2, torch.device("cpu"))
        assert balancer.weights(torch.tensor([1.0, 2.0])).shape == (2,)


def test_a_check_leaves_a_scalarizer_of_the_users_alone() -> None:
    from torchjd.scalarization import UW

    scalarizer = UW(2)
    before = [p.detach().clone() for p in scalarizer.parameters()]
    trainer = quiet(lazy(), balancing=scalarizer)
    trainer.check(loader())
    assert all(torch.equal(a, b) for a, b in zip(before, scalarizer.parameters(), strict=True))
    assert sent(trainer).fit(loader(), loader(8)).position.epoch == 10


def test_a_trainer_with_its_own_callbacks_arrives(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    trainer = sm.Trainer(lazy(), epochs=1, folder=tmp_path, tensorboard=True, accelerator="cpu", progress=True)
    trainer.fit(loader(), loader(8)).test(loader(16))
    assert sent(trainer).history.equals(trainer.history)


def test_loaders_of_tensors_arrive() -> None:
    arrived = sent(own_loaders({"a": 8, "b": 8}))
    assert len(list(arrived["a"])) == 2


OUTPUTS = """
import pickle, sys, torch
with open(sys.argv[1], "rb") as file:
    model, networks, masks, small, loaded, x = pickle.load(file)
with torch.no_grad():
    with networks.swapped(model, "a"):
        outputs = [model(x, tasks=["a"])["a"]]
    with masks.applied(model, "a"):
        outputs.append(model(x, tasks=["a"])["a"])
outputs += [small(x), loaded.predict(x)["a"]]
print(*(output.double().sum().item() for output in outputs))
"""


@pytest.mark.slow
def test_another_process_computes_the_same(tmp_path: Path) -> None:
    trainer = quiet(lazy(), sharing=sm.RandomSharing(keep=0.5, bn="shared"), epochs=1, folder=tmp_path)
    trainer.fit(loader(), loader(8))
    x, _ = table(4)
    small, loaded = trainer.compact("a", x), sm.load_run(tmp_path, model=sent(trainer.model))
    (tmp_path / "parts").write_bytes(pickle.dumps((trainer.model, trainer.networks, trainer.masks, small, loaded, x)))
    found = subprocess.run(
        [sys.executable, "-c", OUTPUTS, str(tmp_path / "parts")], capture_output=True, text=True, check=True
    )
    expected = trainer.predict(x)["a"].double().sum().item()
    assert [float(text) for text in found.stdout.split()] == pytest.approx([expected] * 4, rel=1e-5)
