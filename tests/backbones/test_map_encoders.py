"""What holds for every encoder that gives a feature map, under heads, masks and criteria."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import torch
from loops import each
from torch import Tensor, nn

import sparsemtl as sm
from sparsemtl.backbones import ENCODERS
from sparsemtl.heads import FCNHead
from sparsemtl.networks.shared_coverage import maskable_parameters

SIDES = (32, 48)
ENCODERS_OF_MAPS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: ENCODERS.build("resnet18", (3, *SIDES), width=2, output_stride=8),
    "resnet34 of small images": lambda: ENCODERS.build("resnet34", (3, *SIDES), stem="cifar", width=2, output_stride=4),
    "resnet50": lambda: ENCODERS.build("resnet50", (3, *SIDES), width=2, output_stride=8),
    "resnet50-d": lambda: ENCODERS.build("resnet50-d", (3, *SIDES), width=2),
    "segnet": lambda: ENCODERS.build("segnet", (3, *SIDES), width=2),
}
every_encoder = each("name", ENCODERS_OF_MAPS)


def encoder(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return ENCODERS_OF_MAPS[name]()


def model_of(name: str) -> sm.SharedBottom:
    """Two classifications on the encoder, in double precision and eval mode."""
    tasks = [sm.Classification("kind", 3), sm.Classification("colour", 2)]
    return sm.SharedBottom(encoder(name), tasks).double().eval()


def images(samples: int = 3) -> Tensor:
    return torch.randn(samples, 3, *SIDES, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def random_masks(model: nn.Module) -> sm.TaskMasks:
    generator = torch.Generator().manual_seed(2)
    masks = {
        task: {name: torch.rand(p.shape, generator=generator) < 0.7 for name, p in maskable_parameters(model).items()}
        for task in ("kind", "colour")
    }
    return sm.TaskMasks(masks)


@every_encoder
def test_the_map_has_the_width_and_the_stride_that_are_told(name: str) -> None:
    model = encoder(name)
    features = model(images().float())
    assert features.shape == (3, model.out_features, *(side // model.stride for side in SIDES))


@every_encoder
def test_a_seed_fixes_the_weights_and_the_map(name: str) -> None:
    maps = [encoder(name, seed)(images().float()) for seed in (5, 5, 6)]
    assert torch.equal(maps[0], maps[1])
    assert not torch.equal(maps[0], maps[2])


@every_encoder
def test_a_loss_over_pixels_reaches_every_parameter(name: str) -> None:
    model = encoder(name).eval()
    head = FCNHead(model.out_features, 3, model.stride).eval()
    x = images().float()
    outputs = head(model(x))
    assert outputs.shape[2:] == x.shape[2:]
    outputs.sigmoid().square().sum().backward()
    untouched = [n for m in (model, head) for n, p in m.named_parameters() if p.grad is None or not p.grad.any()]
    assert untouched == []


@every_encoder
def test_per_sample_hooks_give_the_fisher_information_of_one_backward_a_sample(name: str) -> None:
    model = model_of(name)
    loader = [(images(), {"kind": torch.tensor([0, 2, 1])})]
    fast, slow = (
        sm.fisher_information(model, loader, "kind", "true", path=path, mask_all=True) for path in ("hooks", "loop")
    )
    assert set(fast) == set(model.shared_parameters())
    for parameter in slow:
        torch.testing.assert_close(fast[parameter], slow[parameter], rtol=1e-7, atol=1e-18)
    assert sum(float(score.sum()) for score in fast.values()) > 0


@every_encoder
def test_inside_masks_the_model_is_the_one_with_its_weights_multiplied(name: str) -> None:
    model = model_of(name)
    masks = random_masks(model)
    expected = deepcopy(model)
    with torch.no_grad():
        for parameter, mask in masks["colour"].items():
            expected.get_parameter(parameter).mul_(mask)
    with masks.applied(model, "colour"):
        output = model(images(), tasks=["colour"])["colour"]
        output.square().sum().backward()
    assert torch.equal(output, expected(images(), tasks=["colour"])["colour"])
    for parameter, mask in masks["colour"].items():
        gradient = model.get_parameter(parameter).grad
        assert not gradient[~mask].any()


@every_encoder
def test_masks_that_keep_everything_change_no_bit(name: str) -> None:
    model = model_of(name)
    masks = sm.TaskMasks.ones(maskable_parameters(model), model.tasks)
    dense = model(images())
    with masks.applied(model, "kind"):
        assert torch.equal(model(images())["kind"], dense["kind"])
