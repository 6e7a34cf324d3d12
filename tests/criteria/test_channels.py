"""Channels are found with everything that makes them, and are silent when all of it is masked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from loops import each
from policies import Started
from small_networks import WORDS, Runs, settle_norms
from torch import Tensor, nn

import sparsemtl as sm
from sparsemtl.backbones import resnet18
from sparsemtl.criteria import Fisher, Random, choose_masks, fisher_masks
from sparsemtl.criteria.channels import channel_units
from sparsemtl.criteria.top_k import budget
from sparsemtl.networks.shared_coverage import maskable_parameters

Maker = Callable[[], nn.Module]


def model_of(encoder: nn.Module, width: int = 6) -> sm.SharedBottom:
    settle_norms(encoder, torch.Generator().manual_seed(0))
    encoder = nn.Sequential(encoder, nn.Flatten())
    return sm.SharedBottom(encoder, [sm.Classification("t", 3), sm.Regression("u")], heads(width)).eval()


def heads(width: int) -> dict[str, nn.Module]:
    return {"t": nn.Linear(width, 3), "u": nn.Linear(width, 1)}


def units_of(encoder: nn.Module, x: Tensor) -> dict[str, tuple[str, ...]]:
    """The units, by names inside the encoder."""
    with torch.no_grad():
        width = nn.Flatten()(encoder.eval()(x)).shape[1]
    units = channel_units(model_of(encoder, width), x)
    start = len("encoder.0.")
    return {layer[start:]: tuple(name[start:] for name in names) for layer, names in units.items()}


CASES: dict[str, tuple[Maker, tuple[int, ...], dict[str, tuple[str, ...]]]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(4, 6)), (4,), {"0.weight": ("0.weight", "0.bias")}),
    "without bias": (lambda: nn.Sequential(nn.Linear(4, 6, bias=False)), (4,), {"0.weight": ("0.weight",)}),
    "linear and batch norm": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)),
        (4,),
        {"0.weight": ("0.weight", "0.bias", "1.weight", "1.bias")},
    ),
    "conv and batch norm": (
        lambda: nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 1)),
        (1, 4, 4),
        {"0.weight": ("0.weight", "0.bias", "1.weight", "1.bias"), "3.weight": ("3.weight", "3.bias")},
    ),
    "conv and group norm": (
        lambda: nn.Sequential(nn.Conv1d(1, 6, 3, bias=False), nn.GroupNorm(2, 6)),
        (1, 4),
        {"0.weight": ("0.weight", "1.weight", "1.bias")},
    ),
    "conv and instance norm": (
        lambda: nn.Sequential(nn.Conv1d(1, 6, 3), nn.InstanceNorm1d(6, affine=True)),
        (1, 4),
        {"0.weight": ("0.weight", "0.bias", "1.weight", "1.bias")},
    ),
    "conv and synchronised batch norm": (
        lambda: nn.Sequential(nn.Conv1d(1, 6, 3), nn.SyncBatchNorm(6)),
        (1, 4),
        {"0.weight": ("0.weight", "0.bias", "1.weight", "1.bias")},
    ),
    "linear and layer norm": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6)),
        (3, 4),
        {"0.weight": ("0.weight", "0.bias", "1.weight", "1.bias")},
    ),
    "conv and layer norm of its maps": (
        lambda: nn.Sequential(nn.Conv1d(1, 6, 1), nn.LayerNorm([6, 4])),
        (1, 4),
        {"0.weight": ("0.weight", "0.bias", "1.weight", "1.bias")},
    ),
    "conv and layer norm of another axis, as long by chance": (
        lambda: nn.Sequential(nn.Conv1d(1, 4, 1), nn.LayerNorm(4)),
        (1, 4),
        {"0.weight": ("0.weight", "0.bias")},
    ),
    "norm behind something else": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.BatchNorm1d(6)),
        (4,),
        {"0.weight": ("0.weight", "0.bias")},
    ),
    "norm without scale": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, affine=False)),
        (4,),
        {"0.weight": ("0.weight", "0.bias")},
    ),
    "one layer before two norms": (
        lambda: Runs(
            lambda m, x: m.one(m.fc(x)) + m.other(m.fc(-x)),
            fc=nn.Linear(4, 6),
            one=nn.BatchNorm1d(6),
            other=nn.BatchNorm1d(6),
        ),
        (4,),
        {"fc.weight": ("fc.weight", "fc.bias", "one.weight", "one.bias", "other.weight", "other.bias")},
    ),
    "norm called by keyword": (
        lambda: Runs(lambda m, x: m.norm(input=m.fc(x)), fc=nn.Linear(4, 6), norm=nn.BatchNorm1d(6)),
        (4,),
        {"fc.weight": ("fc.weight", "fc.bias", "norm.weight", "norm.bias")},
    ),
    "transposed convolutions have none": (lambda: nn.Sequential(nn.ConvTranspose1d(1, 6, 3)), (1, 4), {}),
}
if hasattr(nn, "RMSNorm"):  # torch 2.4
    CASES["linear and rms norm"] = (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.RMSNorm(6)),
        (3, 4),
        {"0.weight": ("0.weight", "0.bias", "1.weight")},
    )


@each("name", CASES)
def test_a_layers_channels_are_its_rows_its_bias_and_the_norm_that_reads_it(name: str) -> None:
    make, shape, expected = CASES[name]
    assert units_of(make(), torch.rand(5, *shape)) == expected


def test_a_resnets_channels_take_every_norm_along() -> None:
    encoder = resnet18((3, 16, 16), stem="cifar", width=4)
    units = units_of(encoder, torch.rand(2, 3, 16, 16))
    convolutions = [n for n, m in encoder.named_modules() if isinstance(m, nn.Conv2d)]
    assert list(units) == [f"{n}.weight" for n in convolutions]
    named = [name for names in units.values() for name in names]
    assert sorted(named) == sorted(name for name, _ in encoder.named_parameters())
    assert units["layer2.0.downsample.0.weight"][1:] == ("layer2.0.downsample.1.weight", "layer2.0.downsample.1.bias")


def test_heads_and_their_norms_have_no_channels() -> None:
    head = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3))
    model = sm.SharedBottom(nn.Linear(4, 6), [sm.Classification("t", 3)], {"t": head})
    assert channel_units(model, torch.rand(5, 4)) == {"encoder.weight": ("encoder.weight", "encoder.bias")}


def test_finding_channels_leaves_no_hook_mode_or_statistic_behind() -> None:
    model = model_of(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5))).train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    state = torch.get_rng_state()
    channel_units(model, torch.rand(5, 4, generator=torch.Generator()))
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert all(m.training and not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


def test_hooks_are_gone_even_if_the_model_fails() -> None:
    model = model_of(nn.Linear(4, 6))
    with pytest.raises(RuntimeError):
        channel_units(model, torch.rand(5, 7))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


SILENT: dict[str, tuple[Maker, Callable[[Any], list[nn.Module]], tuple[int, ...], int]] = {
    "batch norm": (lambda: nn.Sequential(nn.Conv2d(1, 6, 2), nn.BatchNorm2d(6)), lambda m: [m[1]], (1, 2, 2), 6),
    "group norm": (lambda: nn.Sequential(nn.Conv2d(1, 6, 2), nn.GroupNorm(3, 6)), lambda m: [m[1]], (1, 3, 2), 12),
    "layer norm": (lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6)), lambda m: [m[1]], (4,), 6),
    "no norm": (lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU()), lambda m: [m[0]], (4,), 6),
    "two norms": (
        CASES["one layer before two norms"][0],
        lambda m: [m.one, m.other],
        (4,),
        6,
    ),
}


@pytest.mark.parametrize("name", SILENT)
def test_a_masked_channel_is_exactly_zero_behind_its_norm(name: str) -> None:
    make, observed, shape, width = SILENT[name]
    encoder = make()
    model = model_of(encoder, width)
    x = torch.randn(5, *shape)
    batches = [(x, {"t": torch.tensor([0, 1, 2, 0, 1]), "u": torch.randn(5)})]
    masks = fisher_masks(model, batches, keep=0.5, granularity="channel", estimator="true")
    outputs: list[Tensor] = []
    handles = [module.register_forward_hook(lambda m, x, y: outputs.append(y)) for module in observed(encoder)]
    layer = next(name for name in masks["t"] if name.endswith("weight") and masks["t"][name].ndim > 1)
    for task in ("t", "u"):
        silent = ~masks[task][layer].flatten(1).any(1)
        assert int(silent.sum()) == 3
        with masks.applied(model, task):
            model(x, tasks=(task,))
    for handle in handles:
        handle.remove()
    for y, task in zip(outputs, [t for t in ("t", "u") for _ in observed(encoder)], strict=True):
        silent = ~masks[task][layer].flatten(1).any(1)
        assert not y[:, silent].any()
        assert y[:, ~silent].any()


@each("keep", [0.1, 0.3, 0.5, 1.0])
@each("scope", ["global", "layer"])
def test_exactly_the_asked_number_of_channels_is_kept(scope: Any, keep: float) -> None:
    model = model_of(resnet18((3, 16, 16), stem="cifar", width=4), 32)
    x = torch.randn(4, 3, 16, 16)
    batches = [(x, {"t": torch.tensor([0, 1, 2, 0]), "u": torch.randn(4)})]
    criterion = Fisher(estimator="true", mask_all=True)
    masks = choose_masks(criterion, model, batches, keep=keep, scope=scope, granularity="channel", min_per_layer=1)
    units = channel_units(model, x)
    for task in masks:
        channels = {layer: masks[task][layer].flatten(1).any(1) for layer in units}
        assert all(torch.equal(masks[task][layer].flatten(1).all(1), kept) for layer, kept in channels.items())
        if scope == "layer":
            assert all(int(kept.sum()) == budget(len(kept), keep) for kept in channels.values())
        else:
            counted, total = (sum(f(kept) for kept in channels.values()) for f in (lambda k: int(k.sum()), len))
            assert counted == budget(total, keep)
        for layer, names in units.items():
            assert all(torch.equal(masks[task][n], channels[layer]) for n in names[1:])


def norms_last() -> nn.Module:
    return Runs(
        lambda m, x: m.norm2(m.fc2(m.norm1(m.fc1(x)))),
        fc1=nn.Linear(4, 5),
        fc2=nn.Linear(5, 6),
        norm1=nn.BatchNorm1d(5),
        norm2=nn.BatchNorm1d(6),
    )


EVERYTHING: dict[str, tuple[Maker, Tensor]] = {
    "an embedding": (lambda: nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(12, 6)), WORDS[:3]),
    "a norm in front": (lambda: nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 6)), torch.rand(3, 4)),
    "a transposed convolution": (
        lambda: nn.Sequential(nn.ConvTranspose1d(1, 2, 2), nn.Conv1d(2, 6, 3)),
        torch.rand(3, 1, 2),
    ),
    "norms registered after all layers": (norms_last, torch.rand(3, 4)),
}


@pytest.mark.parametrize("name", EVERYTHING)
def test_masks_of_channels_cover_the_same_parameters_as_the_masks_before(name: str) -> None:
    """The first masks of a run keep everything; how much of them changed is read off both, weight by weight."""
    make, x = EVERYTHING[name]
    model = model_of(make())
    batches = [(x, {"t": torch.tensor([0, 1, 2]), "u": torch.randn(3)})]
    sharing = Started(sm.FisherSharing(keep=0.5, granularity="channel", warmup=0, estimator="true"), model)
    sharing.begin_epoch(0, batches)
    assert list(sharing.masks["t"]) == list(maskable_parameters(model, mask_all=True))
    changed = {task: value for task, measure, value in sharing.metrics() if measure == "changed"}
    assert changed == {task: pytest.approx(1 - sharing.masks.density(task)) for task in ("t", "u")}
    assert all(0 < value < 1 for value in changed.values())


@pytest.mark.parametrize("own_data", [False, True])
def test_a_dict_of_loaders_will_do_to_find_channels(own_data: bool) -> None:
    model = model_of(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)))
    x, targets = torch.randn(3, 4), {"t": torch.tensor([0, 1, 2]), "u": torch.randn(3)}
    loaders: Any = {t: [(x, y)] for t, y in targets.items()} if own_data else [(x, targets)]
    masks = choose_masks(Random(mask_all=True), model, loaders, keep=0.5, granularity="channel")
    for task in masks:
        assert int(masks[task]["encoder.0.1.bias"].sum()) == 3
