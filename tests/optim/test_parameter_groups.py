"""Parameter groups by name and depth: rates, schedules, proximal steps, strict updates, resuming, configurations."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from loops import each
from torch import Tensor, nn

import sparsemtl as sm
from sparsemtl.backbones import MLP
from sparsemtl.errors import CheckpointError, ConfigError, ParameterError
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.optim import OPTIMIZERS, SCHEDULERS, GroupLasso, ProximalAdamW, ProximalSGD, parameter_groups
from sparsemtl.runs.build import make_trainer
from sparsemtl.runs.config import check
from sparsemtl.runs.spec import RunSpec

GROUPS: list[dict[str, Any]] = [
    {"parameters": "encoder", "lr": 1e-3},
    {"parameters": ["*.bias"], "weight_decay": 0.0},
]


def model(width: int = 6) -> sm.MultiTaskModel:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
    tasks = [sm.Classification("kind", 3), sm.Regression("size")]
    return sm.SharedBottom(encoder, tasks, {task.name: task.head(width) for task in tasks})


def loader() -> list[Any]:
    x = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
    rows = [slice(0, 8), slice(8, 16), slice(16, 24)]
    return [(x[part], {"kind": x[part, :3].argmax(1), "size": x[part].sum(1)}) for part in rows]


def options(optimizer: torch.optim.Optimizer, net: nn.Module) -> dict[str, tuple[float, float]]:
    """Return name -> (learning rate, weight decay)."""
    names = {id(p): name for name, p in net.named_parameters()}
    return {
        names[id(p)]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]
    }


def weights(net: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def test_a_parameter_takes_the_options_of_all_groups_that_match_later_ones_winning() -> None:
    net = model()
    later = [*GROUPS, {"parameters": "encoder.2.*", "lr": 5e-4}]
    optimizer = torch.optim.AdamW(parameter_groups(net, later, lr=1e-2), weight_decay=0.1)
    heads = {name: (1e-2, 0.0 if name.endswith("bias") else 0.1) for name in weights(net) if "heads" in name}
    assert options(optimizer, net) == {
        "encoder.0.weight": (1e-3, 0.1),
        "encoder.0.bias": (1e-3, 0.0),
        "encoder.2.weight": (5e-4, 0.1),
        "encoder.2.bias": (5e-4, 0.0),
        **heads,
    }
    made = parameter_groups(net, [{"parameters": nn.Linear, "lr": 1.0}], lr=2.0)
    assert [len(group["params"]) for group in made] == [0, 8]


def test_layer_decay_multiplies_the_rates_of_groups() -> None:
    net = model()
    made = parameter_groups(net, [{"parameters": "encoder.2.bias", "lr": 0.1}], lr=1.0, layer_decay=0.5)
    rates = {id(p): group["lr"] for group in made for p in group["params"]}
    assert [rates[id(net.get_parameter(f"encoder.{name}"))] for name in ("0.weight", "2.weight", "2.bias")] == [
        0.25,
        0.5,
        0.05,
    ]
    assert all(rates[id(p)] == 1.0 for p in net.heads.parameters())  # type: ignore[union-attr]


ARCHITECTURES = {
    "single-task": lambda encoder, tasks: sm.SingleTask(encoder, tasks),
    "cross-stitch": lambda encoder, tasks: sm.CrossStitch(encoder, tasks, lr_factor=100.0),
    "mmoe": lambda encoder, tasks: sm.MMoE(encoder, tasks, experts=2),
}


@each("name", ARCHITECTURES)
def test_every_copy_of_an_encoder_has_its_own_depth(name: str) -> None:
    net = ARCHITECTURES[name](MLP((4,), hidden=[5, 6]), [sm.Regression("a"), sm.Regression("b")])
    trainer = sm.Trainer(net, optimizer=partial(torch.optim.SGD, lr=1.0), layer_decay=0.5, progress=False)
    trainer.set_up([(torch.rand(4, 4), {"a": torch.rand(4), "b": torch.rand(4)})])
    rates = {p.shape[1]: set() for p in net.parameters() if p.ndim == 2}
    names = {id(p): own for own, p in net.named_parameters()}
    for group in trainer.optimizer.param_groups:
        for p in group["params"]:
            if "mixers" in names[id(p)]:
                assert group["lr"] == 100.0
            elif p.ndim == 2 and p.shape[0] in (5, 6) and not names[id(p)].startswith("heads"):
                rates[p.shape[1]].add(group["lr"])
    assert (rates[4], rates[5]) == ({0.25}, {0.5})


def test_an_architecture_whose_blocks_have_no_depth_says_so() -> None:
    tasks = [sm.Regression("a"), sm.Regression("b")]
    net = sm.PLE(MLP((4,), hidden=[5, 6]), tasks)
    with pytest.raises(ParameterError, match="blocks of PLE have no depth"):
        parameter_groups(net, lr=1.0, layer_decay=0.5)


def fit(net: sm.MultiTaskModel, **given: Any) -> sm.Trainer:
    given = {"epochs": 2, "progress": False, "accelerator": "cpu", "seed": 0, **given}
    return sm.Trainer(net, **given).fit(loader(), loader())


@each("how", ["groups", "own optimizer", "own function"])
def test_the_trainer_takes_the_steps_of_torch_s_groups(how: str) -> None:
    net, reference = model(), model()
    plain = partial(torch.optim.SGD, lr=1e-2, momentum=0.9, weight_decay=0.1)
    given: dict[str, dict[str, Any]] = {
        "groups": {"optimizer": plain, "parameter_groups": GROUPS[:1]},
        "own optimizer": {"optimizer": plain(parameter_groups(net, GROUPS[:1], lr=1e-2))},
        "own function": {
            "optimizer": lambda _: plain(
                [{"params": net.encoder.parameters(), "lr": 1e-3}, {"params": net.heads.parameters()}]
            )
        },
    }
    fit(net, epochs=1, **given[how])
    encoder = {"params": reference.encoder.parameters(), "lr": 1e-3}  # type: ignore[union-attr]
    optimizer = plain([encoder, {"params": reference.heads.parameters()}])  # type: ignore[union-attr]
    for x, targets in loader():
        optimizer.zero_grad()
        outputs = reference(x)
        losses = [task.loss(outputs[name], targets) for name, task in reference.tasks.items()]
        (sum(losses) / 2).backward()  # type: ignore[union-attr]
        optimizer.step()
    for name, weight in weights(reference).items():
        torch.testing.assert_close(net.get_parameter(name), weight, rtol=1e-6, atol=1e-7)


def test_a_second_fit_begins_with_the_options_of_an_optimizer_of_one_s_own() -> None:
    first, net = model(), model()
    optimizer = torch.optim.Adam(parameter_groups(net, GROUPS, lr=1e-2))
    halving = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    trainer = fit(net, optimizer=optimizer, scheduler=halving)
    assert trainer.optimizer is optimizer
    net.load_state_dict(first.state_dict())
    once = weights(
        fit(net, optimizer=torch.optim.Adam(parameter_groups(net, GROUPS, lr=1e-2)), scheduler=halving).model
    )
    net.load_state_dict(first.state_dict())
    again = weights(trainer.fit(loader(), loader()).model)
    assert all(torch.equal(once[name], again[name]) for name in once)


def test_soft_masks_are_trained_by_an_optimizer_of_one_s_own() -> None:
    net = model()
    trainer = fit(
        net, optimizer=torch.optim.Adam(net.parameters()), sharing=sm.SoftMaskSharing(linear=True, mask_lr=0.5)
    )
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in trainer.networks.parameters()} <= held
    assert trainer.optimizer.param_groups[-1]["lr"] == 0.5


SCHEDULES: dict[str, Any] = {
    "constant": {"warmup": 3},
    "cosine": {"floor": 1e-3},
    "step": {"every": 2},
    "plateau": {"patience": 0},
}


@each("name", SCHEDULES)
def test_a_schedule_scales_all_rates_together(name: str) -> None:
    optimizer = torch.optim.SGD(parameter_groups(model(), GROUPS, lr=1e-2, layer_decay=0.7))
    before = [group["lr"] for group in optimizer.param_groups]
    schedule = SCHEDULERS.build(name, optimizer, 5, **SCHEDULES[name])
    seen = set()
    for _ in range(5):
        shares = [group["lr"] / rate for group, rate in zip(optimizer.param_groups, before, strict=True)]
        assert shares == pytest.approx([shares[0]] * len(shares))
        seen.add(round(shares[0], 9))
        optimizer.step()
        schedule.step(*([0.0] if name == "plateau" else []))  # type: ignore[call-arg]
    assert len(seen) > 1


@each("adaptive", [False, True])
def test_a_proximal_step_shrinks_a_group_by_its_own_rate(adaptive: bool) -> None:
    """Training in groups is training each group alone, with its rate as the optimizer's."""
    penalty = GroupLasso(strength=0.5, linear=True, keep_min=1)
    make = partial(ProximalAdamW, penalty=penalty) if adaptive else partial(ProximalSGD, penalty=penalty)
    together, apart = model(), model()
    rates = {"encoder.0": 1e-3, "encoder.2": 0.3}
    groups = [{"parameters": name, "lr": lr} for name, lr in rates.items()]
    optimizers = [make(parameter_groups(together, groups, lr=1e-2))]
    alone = [make(apart.get_submodule(name).parameters(), lr=lr) for name, lr in rates.items()]
    for net, steps in ((together, optimizers), (apart, alone)):
        for x, _ in loader():
            net.zero_grad()
            net.encoder(x).square().sum().backward()  # type: ignore[operator]
            for optimizer in steps:
                optimizer.step()
    for name, weight in weights(together).items():
        assert torch.equal(weight, weights(apart)[name]), name
    assert bool((together.encoder[2].weight == 0).any())  # type: ignore[index, union-attr]


def test_a_penalty_of_a_sharing_method_follows_the_rates_of_groups() -> None:
    sharing = sm.GroupLassoSharing(lambda_=1e-3, target_sparsity=0.3, reach_at=1, keep_min=1, linear=True)
    trainer = fit(model(), sharing=sharing, optimizer="adamw", parameter_groups=GROUPS, layer_decay=0.5, epochs=3)
    metrics = {name: value for _, name, value in sharing.metrics(trainer.model, trainer.networks)}
    assert metrics["group_sparsity"] == pytest.approx(0.3, abs=0.05)


def test_masked_weights_do_not_move_whatever_their_group() -> None:
    net = model()
    generator = torch.Generator().manual_seed(2)
    keep = {name: torch.rand(p.shape, generator=generator) < 0.5 for name, p in sm.maskable_parameters(net).items()}
    masks = sm.TaskMasks({"kind": keep, "size": keep})
    before = weights(net)
    groups = parameter_groups(
        net, [{"parameters": "encoder.0", "lr": 1.0, "weight_decay": 0.9}], lr=0.1, layer_decay=0.5
    )
    step = sm.TrainingStep(net, torch.optim.AdamW(groups), TaskNetworks.of_masks(masks))
    for x, targets in loader():
        step(x, targets)
    for name, mask in keep.items():
        moved = net.get_parameter(name) != before[name]
        assert not bool((moved & ~mask).any())
        assert bool((moved & mask).any())


@each("own", [False, True])
def test_a_run_with_groups_resumes_bit_for_bit(own: bool) -> None:
    import tempfile

    def run(folder: Path, epochs: int, resume: bool = False, decay: float = 0.5) -> sm.Trainer:
        net = model()
        given: dict[str, Any] = {"optimizer": "adamw", "parameter_groups": GROUPS, "layer_decay": decay}
        if own:
            given = {"optimizer": torch.optim.AdamW(parameter_groups(net, GROUPS, lr=1e-3, layer_decay=decay))}
        given |= {"sharing": sm.RandomSharing(keep=0.5, seed=0), "folder": folder, "epochs": epochs}
        trainer = sm.Trainer(net, progress=False, accelerator="cpu", **given)
        return trainer.fit(loader(), loader(), resume=resume)

    with tempfile.TemporaryDirectory() as folder:
        whole = run(Path(folder) / "whole", 4)
        run(Path(folder) / "parts", 2)
        resumed = run(Path(folder) / "parts", 4, resume=True)
        assert all(torch.equal(p, q) for p, q in zip(whole.model.parameters(), resumed.model.parameters(), strict=True))
        run(Path(folder) / "other", 2)
        with pytest.raises(CheckpointError, match=r"layer_decay|lr"):
            run(Path(folder) / "other", 4, resume=True, decay=0.9)


def test_groups_stand_in_the_section_optimizer(tmp_path: Path) -> None:
    section = {
        "name": "adamw",
        "lr": 1e-2,
        "parameter_groups": [{"parameters": "encoder", "lr": 1e-4}],
        "layer_decay": 0.5,
    }
    config = check(
        {"encoder": {"name": "mlp", "hidden": [8, 8]}, "optimizer": section, "training": {"accelerator": "cpu"}}
    )
    spec = RunSpec(config)
    trainer = make_trainer(config, spec.data, None, progress=False)
    trainer.set_up(spec.data.loaders(64)[0])
    rates = {group["name"]: group["lr"] for group in trainer.optimizer.param_groups}
    assert rates == {"others": 1e-2, "encoder, 2 blocks below": 0.25e-4, "encoder, 1 block below": 0.5e-4}


WRONG: dict[str, tuple[Any, str]] = {
    "an unknown key": ([{"parameters": "encoder", "rate": 1}], "group 1: unknown key 'rate'"),
    "no names": ([{"lr": 1.0}], "group 1: `parameters` is required"),
    "no option": ([{"parameters": "encoder"}], "group 1: set `lr`, `weight_decay` or both"),
    "a negative rate": ([{"parameters": "encoder", "lr": -1.0}], r"group 1: `lr` must be a float in \(0, inf\)"),
    "no list": ("encoder", "expected a sequence of mappings"),
}


@each("name", WRONG)
def test_a_wrong_group_is_named(name: str) -> None:
    groups, message = WRONG[name]
    with pytest.raises(ConfigError, match=f"optimizer.parameter_groups: {message}"):
        check({"optimizer": {"name": "sgd", "parameter_groups": groups}})
    with pytest.raises(ParameterError):
        sm.Trainer(model(), parameter_groups=groups)


def test_what_cannot_be_right_is_refused() -> None:
    net = model()
    with pytest.raises(ParameterError, match=r"matches 'encodr'. Did you mean 'encoder'"):
        parameter_groups(net, [{"parameters": "encodr", "lr": 1.0}], lr=1.0)
    with pytest.raises(ParameterError, match=r"'encoder.0.weight' and 3 more would not be trained"):
        fit(net, optimizer=torch.optim.SGD(net.heads.parameters(), lr=1.0))  # type: ignore[union-attr]
    with pytest.raises(ParameterError, match="has its groups already"):
        fit(net, optimizer=torch.optim.SGD(net.parameters(), lr=1.0), layer_decay=0.5)
    masks = sm.TaskMasks.ones(net.shared_parameters(), net.tasks)
    with pytest.raises(ParameterError, match="pass the optimizer inside"):
        fit(net, optimizer=sm.MaskedOptimizer(torch.optim.SGD(net.parameters(), lr=1.0), masks, net))


def test_frozen_parameters_may_be_missing_from_an_optimizer() -> None:
    net = model()
    net.encoder[0].requires_grad_(False)  # type: ignore[index, union-attr]
    trained = [p for p in net.parameters() if p.requires_grad]
    before = weights(net)
    fit(net, optimizer=torch.optim.SGD(trained, lr=0.1))
    assert torch.equal(before["encoder.0.weight"], net.encoder[0].weight)  # type: ignore[index, union-attr]
    assert not torch.equal(before["encoder.2.weight"], net.encoder[2].weight)  # type: ignore[index, union-attr]


def test_every_registered_optimizer_takes_groups_where_the_first_is_empty() -> None:
    for name in OPTIMIZERS:
        net = model()
        before = weights(net)
        optimizer = OPTIMIZERS[name](parameter_groups(net, [{"parameters": "*", "lr": 0.1}], lr=1.0))
        net.encoder(torch.ones(2, 4)).sum().backward()  # type: ignore[operator]
        optimizer.step()
        assert not torch.equal(before["encoder.0.weight"], net.encoder[0].weight)  # type: ignore[index, union-attr]
