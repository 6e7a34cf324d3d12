"""A teacher's outputs are soft targets beside the labels, whatever the method, and the teacher never changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sparsemtl as sm
from sparsemtl.errors import ConfigError, ParameterError
from sparsemtl.runs.config import check
from sparsemtl.runs.run import run as run_config
from sparsemtl.sharing import SHARING
from sparsemtl.tasks.soft_targets import soft_loss
from sparsemtl.training.steps.step import TrainingStep

X = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
LABELS = {"kind": (X[:, 0] > 0).long(), "size": X[:, 1] + X[:, 2]}
LOADER = [(X[:16], {n: y[:16] for n, y in LABELS.items()}), (X[16:], {n: y[16:] for n, y in LABELS.items()})]


def model(seed: int = 0, width: int = 6) -> sm.SharedBottom:
    torch.manual_seed(seed)
    tasks = [sm.Classification("kind", 2), sm.Regression("size", weight=0.5)]
    encoder = nn.Sequential(nn.Linear(4, width), nn.ReLU())
    return sm.SharedBottom(encoder, tasks, {task.name: nn.Linear(width, task.outputs) for task in tasks})


def state(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def test_a_step_follows_the_gradient_of_the_labels_loss_plus_the_distance_from_the_teacher() -> None:
    own, by_hand = model(), model()
    teacher = sm.Teacher(model(1, width=9), weight=0.7, temperature=3.0)
    step = TrainingStep(own, torch.optim.SGD(own.parameters(), 0.1), sm.DenseSharing().start(own))
    step.teacher = teacher
    result = step(*LOADER[0])
    x, labels = LOADER[0]
    outputs, soft = by_hand(x), model(1, width=9).eval()(x)
    total = torch.zeros(())
    for name, task in by_hand.tasks.items():
        label = task.labels(labels)
        distance = 0.7 * soft_loss(task, outputs[name], soft[name].detach(), label, 3.0)
        assert result.terms[name]["loss_teacher"] == pytest.approx(distance.item())
        total = total + task.weight * (task.loss(outputs[name], label) + distance) / 2
    total.backward()
    torch.optim.SGD(by_hand.parameters(), 0.1).step()
    for name, tensor in by_hand.state_dict().items():
        torch.testing.assert_close(own.state_dict()[name], tensor)


@pytest.mark.filterwarnings("ignore")  # of masks this small, and of Fisher information of values
def test_every_sharing_method_learns_from_a_teacher_that_is_the_model_itself_and_stays_as_it_was() -> None:
    for method in SHARING:
        network = model()
        teacher = sm.Teacher(network)
        before = teacher.outputs(X, ["kind", "size"])
        short = {"linear": True, "iterations": 1, "iteration": 1, "epochs_per_iteration": 1}
        known = SHARING.parameters(method)
        sharing = SHARING.build(method, **{name: value for name, value in short.items() if name in known})
        epochs = sharing.first_selectable() + 1
        trainer = sm.Trainer(network, sharing=sharing, teacher=teacher, epochs=epochs, progress=False)
        trainer.fit(LOADER, LOADER)
        after = teacher.outputs(X, ["kind", "size"])
        assert all(torch.equal(after[name], before[name]) for name in before), method
        assert set(trainer.history.query("metric == 'loss_teacher'")["task"]) == {"kind", "size"}, method


def test_a_teacher_with_masks_answers_by_each_tasks_own_network_and_for_its_own_tasks_only() -> None:
    trainer = sm.Trainer(model(), sharing=sm.RandomSharing(keep=0.5), epochs=1, progress=False).fit(LOADER, LOADER)
    found = sm.Teacher(trainer).outputs(X, ["size", "kind", "other"])
    expected = trainer.predict(X)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert sorted(found) == sorted(expected)
    alone = sm.Regression("size")
    other = sm.SharedBottom(nn.Linear(4, 3), [alone], {"size": nn.Linear(3, 1)})
    sm.Trainer(other, teacher=sm.Teacher(trainer), epochs=1, progress=False).fit(LOADER, LOADER)
    stranger = sm.SharedBottom(nn.Linear(4, 3), [sm.Regression("other")], {"other": nn.Linear(3, 1)})
    taught = sm.Trainer(stranger, teacher=sm.Teacher(trainer), progress=False)
    with pytest.raises(ParameterError, match="the teacher has the tasks kind, size, none of other"):
        taught.set_up([(X, {"other": X[:, 0]})])


CONFIG = {
    "data": "digits",
    "encoder": {"name": "mlp", "hidden": [6]},
    "sharing": "random",
    "training": {"epochs": 2, "batch_size": 512, "measure_cost": False},
}


def test_a_run_learns_from_another_run_and_resumes_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_config(check({**CONFIG, "training": {**CONFIG["training"], "epochs": 1}}), tmp_path / "teacher", progress=False)
    config = check({**CONFIG, "teacher": str(tmp_path / "teacher"), "seed": 1})
    assert config["teacher"] == {"run": str(tmp_path / "teacher"), "weight": 1.0, "temperature": 2.0}
    run_config(config, tmp_path / "whole", progress=False)
    monkeypatch.setattr(sm.Teacher, "outputs", _twice_then_stop(sm.Teacher.outputs))
    with pytest.raises(KeyboardInterrupt):
        run_config(config, tmp_path / "part", progress=False)
    monkeypatch.undo()
    run_config(config, tmp_path / "part", resume=True, progress=False)
    whole, part = (sm.load_run(tmp_path / name) for name in ("whole", "part"))
    assert all(torch.equal(tensor, part.model.state_dict()[name]) for name, tensor in whole.model.state_dict().items())
    assert "loss_teacher" in set(whole.history["metric"])


def _twice_then_stop(outputs):  # type: ignore[no-untyped-def]
    calls = []

    def stopping(*args):  # type: ignore[no-untyped-def]
        calls.append(args)
        if len(calls) > 4:
            raise KeyboardInterrupt
        return outputs(*args)

    return stopping


def test_a_teacher_that_is_none_is_named() -> None:
    with pytest.raises(ConfigError, match=r"teacher.wight: unknown teacher parameter 'wight'|wight"):
        check({**CONFIG, "teacher": {"run": "a", "wight": 1}})
    with pytest.raises(ConfigError, match=r"teacher.weight: expected a float in \(0, inf\)"):
        check({**CONFIG, "teacher": {"run": "a", "weight": -1}})
    with pytest.raises(ConfigError, match=r"teacher.run: this key is required"):
        check({**CONFIG, "teacher": {"weight": 1}})
