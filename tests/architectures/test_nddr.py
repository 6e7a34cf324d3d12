from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from expert_oracles import batch, gradients, loss_of, stack, tasks
from loops import each
from torch import Tensor, nn

from sparsemtl import CrossStitch, SingleTask, TaskNorms
from sparsemtl.architectures import NDDR
from sparsemtl.architectures.nddr import _Fusion, _resized, _Shortcut
from sparsemtl.backbones import CNN, MLP, resnet18
from sparsemtl.backbones.stages import stages_of
from sparsemtl.errors import ParameterError

ENCODERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "stack": (lambda: stack(6, 4), (5,)),
    "mlp": (lambda: MLP((5,), hidden=[6, 4], norm=True), (5,)),
    "cnn": (lambda: CNN((1, 8, 8), widths=[4, 6]), (1, 8, 8)),
    "resnet": (lambda: resnet18((3, 16, 16), stem="cifar", width=2), (3, 16, 16)),
}
each_encoder = each("kind", ENCODERS)
PLAIN: dict[str, Any] = {"norm": False, "activation": False}


def model_of(kind: str, **options: Any) -> tuple[NDDR, Tensor]:
    torch.manual_seed(0)
    make, shape = ENCODERS[kind]
    model = NDDR(make(), tasks(), **{"fresh": True, **options})
    x = torch.randn(4, *shape)
    model(x)
    return model.double(), x.double()


def fusion_of(streams: int, *features: Tensor, **options: Any) -> tuple[_Fusion, list[Tensor]]:
    fusion = _Fusion(streams, **{"own": 0.9, **PLAIN, **options})
    return fusion, fusion(features)


@each_encoder
@each("dtype", [torch.float32, torch.float64])
def test_fusions_of_the_own_features_only_leave_single_tasks_bit_for_bit(kind: str, dtype: torch.dtype) -> None:
    model, x = model_of(kind, own=1.0, **PLAIN)
    model, x = model.to(dtype), x.to(dtype)
    assert len(model.mixers) > 1
    single = SingleTask(dict(model.encoders.items()), tasks(), dict(model.heads.items()))
    ours, theirs = model(x), single(x)
    assert all(torch.equal(ours[task], theirs[task]) for task in model.tasks)
    model.zero_grad()
    loss_of(ours).backward()
    found = {name: p.grad.clone() for name, p in single.named_parameters() if p.grad is not None}
    model.zero_grad()
    loss_of(theirs).backward()
    assert found.keys() == {name for name, _ in single.named_parameters()}
    assert all(torch.equal(found[name], p.grad) for name, p in single.named_parameters() if p.grad is not None)


@pytest.mark.parametrize("size", [(), (3,), (3, 2)])
def test_of_two_tasks_a_fusion_starts_with_nine_tenths_of_ones_own_and_one_of_the_others(size: tuple[int, ...]) -> None:
    own, other = torch.randn(2, 4, 6, *size).unbind()
    fused = fusion_of(2, own, other)[1]
    torch.testing.assert_close(fused, [0.9 * own + 0.1 * other, 0.9 * other + 0.1 * own])


@pytest.mark.parametrize("own", [0.9, 0.5, 1.0])
def test_several_other_tasks_share_the_rest_in_equal_parts(own: float) -> None:
    features = list(torch.randn(3, 4, 6, 2, 2))
    rest = (1 - own) / 2
    a, b, c = features
    fused = fusion_of(3, *features, own=own)[1]
    expected = [own * a + rest * (b + c), own * b + rest * (a + c), own * c + rest * (a + b)]
    torch.testing.assert_close(fused, expected)


def test_a_task_alone_keeps_all_of_its_own() -> None:
    feature = torch.randn(4, 6, 3, 3)
    assert torch.equal(fusion_of(1, feature)[1][0], feature)


@pytest.mark.parametrize("convolution", [nn.Conv2d, nn.Linear])
def test_a_fusion_is_the_papers_convolution_norm_and_relu_for_every_task(convolution: Any) -> None:
    maps = convolution is nn.Conv2d
    features = list(torch.randn(3, 5, 4, *((6, 2) if maps else ()), dtype=torch.float64))
    fusion = fusion_of(3, *(feature.float() for feature in features), norm=True, activation=True)[0].double()
    for p in fusion.parameters():
        nn.init.normal_(p)
    joined = torch.cat(features, 1)
    for task, fused in enumerate(fusion(features)):
        rows = slice(4 * task, 4 * task + 4)
        layer = nn.Conv2d(12, 4, 1) if maps else nn.Linear(12, 4)
        norm = (nn.BatchNorm2d if maps else nn.BatchNorm1d)(4)
        layer.weight.data = fusion.weight.data[rows].view(layer.weight.shape)
        layer.bias.data = fusion.bias.data[rows]
        norm.double().weight.data, norm.bias.data = fusion.norm.weight.data[rows], fusion.norm.bias.data[rows]
        torch.testing.assert_close(fused, F.relu(norm(layer(joined))))


def test_without_norm_and_activation_it_starts_as_cross_stitch_does() -> None:
    model, x = model_of("cnn", **PLAIN)
    other = CrossStitch(dict(model.encoders.items()), tasks(), dict(model.heads.items())).double()
    torch.testing.assert_close(model(x), other(x))


@pytest.mark.parametrize("options", [{"norm": False}, {"activation": False}, {"after": ["1"]}], ids=str)
def test_parts_of_a_fusion_can_be_left_out(options: dict[str, Any]) -> None:
    model, x = model_of("stack", **options)
    norms = sum(isinstance(module, nn.BatchNorm1d) for module in model.modules())
    assert norms == (0 if options.get("norm") is False else len(model.mixers))
    below = any(
        bool((feature < 0).any())
        for feature in model.mixers[0]([encoder[:2](x) for encoder in model.encoders.values()])
    )
    assert below == (options.get("activation") is False)
    assert len(model.mixers) == (1 if "after" in options else 2)


def test_the_fusions_learning_rate_is_multiplied_as_asked() -> None:
    assert NDDR(stack(6, 4), tasks()).lr_factors == {}
    factors = NDDR(stack(6), tasks("ab"), lr_factor=100, shortcut=True, norm=False).lr_factors
    names = {f"{part}.{kind}" for part in ("mixers.0", "shortcuts.a", "shortcuts.b") for kind in ("weight", "bias")}
    assert factors == dict.fromkeys(names, 100)


# ---- shortcuts -----------------------------------------------------------------------------------------------------


@each_encoder
def test_a_shortcut_reads_all_fused_features_and_what_is_behind_reads_the_shortcut(kind: str) -> None:
    model, x = model_of(kind, shortcut=True)
    stages = {task: list(stages_of(encoder).items()) for task, encoder in model.encoders.items()}
    streams, fused = [x] * 3, []
    mixers = dict(zip(model.mixed, model.mixers, strict=True))
    model.eval()
    for depth, (name, _) in enumerate(stages["a"]):
        streams = [stages[task][depth][1](stream) for task, stream in zip(model.tasks, streams, strict=True)]
        if name in mixers:
            streams = mixers[name](streams)
            fused.append(streams)
            if name == model.mixed[-1]:
                size = streams[0].shape[2:]
                joined = [torch.cat([_resized(level[t], size) for level in fused], 1) for t in range(3)]
                streams = [model.shortcuts[task].applied([j]) for task, j in zip(model.tasks, joined, strict=True)]
    expected = {task: model.heads[task](stream) for task, stream in zip(model.tasks, streams, strict=True)}
    found = model(x)
    assert all(torch.equal(found[task], expected[task]) for task in model.tasks)


def test_a_shortcut_is_the_tasks_own() -> None:
    model, x = model_of("stack", shortcut=True)
    found = {name for name, gradient in gradients(model, x, ["b"]).items() if gradient is not None}
    assert {name for name in found if name.startswith("shortcuts.")} == {
        name for name in model.task_parameters("b") if name.startswith("shortcuts.")
    }
    assert len(found & model.task_parameters("b").keys()) == len(model.task_parameters("b"))


@pytest.mark.parametrize("shortcut", [False, True])
def test_encoders_of_other_tasks_run_no_further_than_the_last_fusion(shortcut: bool) -> None:
    model = NDDR(stack(6, 5, 4), tasks(), {t.name: t.head(4) for t in tasks()}, after=["1"], shortcut=shortcut)
    ran: list[str] = []
    for name, module in model.encoders.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    model(batch().float(), tasks=["b"])
    assert ran == ["a.0", "b.0", "c.0", "b.2", "b.4"]


def test_larger_maps_are_averaged_smaller_ones_interpolated_and_vectors_are_means() -> None:
    maps = torch.arange(16.0).view(1, 1, 4, 4)
    assert torch.equal(_resized(maps, torch.Size([2, 2])), F.avg_pool2d(maps, 2))
    assert torch.equal(_resized(maps, torch.Size([])), maps.mean((2, 3)))
    assert torch.equal(_resized(maps, torch.Size([4, 4])), maps)
    up = _resized(maps, torch.Size([8, 8]))
    torch.testing.assert_close(F.avg_pool2d(up, 2)[..., 1:-1, 1:-1], maps[..., 1:-1, 1:-1])


def test_what_cannot_be_resized_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"found features of size \(\) to resize to \(2, 2\)"):
        _Shortcut(**PLAIN)([torch.zeros(1, 3), torch.zeros(1, 3, 2, 2)])


def test_a_shortcut_without_a_fusion_is_refused() -> None:
    with pytest.raises(ParameterError, match="needs at least one fusion"):
        NDDR(stack(6, 4), tasks(), shortcut=True, after=[])


# ---- inputs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shortcut", [False, True])
def test_every_task_may_have_its_own_input(shortcut: bool) -> None:
    model, _ = model_of("stack", own=1.0, shortcut=shortcut, **PLAIN)
    own = {task: batch(seed=seed) for seed, task in enumerate(model.tasks)}
    for task, output in model(own).items():
        torch.testing.assert_close(output, model(own[task], tasks=[task])[task])


def test_a_state_dict_is_taken_before_the_width_is_known() -> None:
    model, x = model_of("stack", shortcut=True)
    other = NDDR(stack(6, 4), tasks(), {t.name: t.head(4) for t in tasks()}, shortcut=True).double()
    other.load_state_dict(model.state_dict())
    model.eval(), other.eval()
    assert all(torch.equal(output, other(x)[task]) for task, output in model(x).items())


def test_features_that_differ_in_shape_or_width_cannot_be_fused() -> None:
    model = NDDR({"a": stack(4), "b": stack(3), "c": stack(4)}, tasks())
    with pytest.raises(ParameterError, match=r"features of one shape to be fused, found \[\(7, 3\), \(7, 4\)\]"):
        model(batch().float())
    fusion = fusion_of(2, torch.zeros(2, 3), torch.zeros(2, 3))[0]
    with pytest.raises(ParameterError, match="expected features of 6 channels in all, got 8"):
        fusion([torch.zeros(2, 4), torch.zeros(2, 4)])


@pytest.mark.parametrize("own", [0, 1.5])
def test_a_part_outside_of_0_and_1_is_refused(own: float) -> None:
    with pytest.raises(ParameterError, match=r"'own' parameter of NDDR must be a float in \(0, 1\]"):
        NDDR(stack(4), tasks(), own=own)


def test_norms_of_the_fusions_have_statistics_for_each_task_too() -> None:
    model, x = model_of("mlp", norm=True)
    norms = TaskNorms(model)
    fused = [name for name in norms["a"] if name.startswith("mixers")]
    assert len(fused) == 3 * len(model.mixers)
    before = {name: tensor.clone() for name, tensor in norms["b"].items()}
    with norms.applied(model, "a"):
        model.train()(x, tasks=["a"])
    assert all(torch.equal(norms["b"][name], tensor) for name, tensor in before.items())
    assert not torch.equal(norms["a"][fused[0]], before[fused[0]])
