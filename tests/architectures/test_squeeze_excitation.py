"""Squeeze-and-excitation per task: the formula, where it stands, what is shared, and the small networks."""

from __future__ import annotations

import pickle
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import sparsemtl as sm
from sparsemtl.backbones import CNN, MLP, resnet18, resnet50
from sparsemtl.backbones.stemmed import Stemmed
from sparsemtl.data import TensorLoader
from sparsemtl.errors import ParameterError
from sparsemtl.networks.depth import heights
from sparsemtl.networks.frozen import Frozen

IMAGES = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def tasks() -> list[sm.Task]:
    return [sm.Classification("kind", 3), sm.Regression("size")]


def convolutions() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten())


def model_of(encoder: nn.Module | None = None, **options: Any) -> sm.SqueezeExcitation:
    torch.manual_seed(1)
    model = sm.SqueezeExcitation(encoder or convolutions(), tasks(), **{"reduction": 2, **options})
    if encoder is None:
        model.eval()(IMAGES)  # heads infer their width
    return model.train()


def own_of(model: sm.SqueezeExcitation, task: str) -> list[Any]:
    """Excitations of a task."""
    found: list[Any] = list(model.excitations[task])  # type: ignore[call-overload]
    return found


def sites(encoder: nn.Module, after: Any = None) -> tuple[str, ...]:
    return sm.SqueezeExcitation(encoder, tasks(), after=after).sites


def test_a_task_computes_the_formula_of_the_paper() -> None:
    model, plain = model_of().eval(), convolutions().eval()
    for place, task in enumerate(model.tasks):
        for number, parameter in enumerate(model.excitations[task].parameters()):
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(10 * number + place))
        z = IMAGES
        for name, layer in plain.named_children():
            z = layer(z)
            if name in model.sites:
                own = own_of(model, task)[model.sites.index(name)]
                inner = own.squeeze.weight @ z.mean((2, 3)).T + own.squeeze.bias[:, None]
                factor = torch.sigmoid(own.excite.weight @ inner.clamp(min=0) + own.excite.bias[:, None]).T
                z = z * factor[:, :, None, None]
        torch.testing.assert_close(model(IMAGES)[task], model.heads[task](z))


def test_with_zeros_behind_the_squeeze_the_scale_is_exactly_one_half() -> None:
    model, plain = model_of(), convolutions()
    for module in model.excitations.modules():
        if isinstance(module, nn.Linear) and module in {own.excite for t in model.tasks for own in own_of(model, t)}:
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    for name in model.sites:
        plain.get_submodule(name).register_forward_hook(lambda _, __, output: 0.5 * output)
    features = plain.eval()(IMAGES)
    for task, output in model.eval()(IMAGES).items():
        assert torch.equal(output, model.heads[task](features))


def test_only_its_own_loss_reaches_the_excitations_of_a_task() -> None:
    model = model_of()
    model(IMAGES)["kind"].sum().backward()
    assert all(p.grad is not None for p in model.task_parameters("kind").values())
    assert all(p.grad is None for p in model.task_parameters("size").values())
    assert {"excitations.size.0.squeeze.weight", "heads.size.weight"} <= model.task_parameters("size").keys()
    assert not any("excitations" in name for name in model.shared_parameters())


def test_the_layer_between_has_at_least_one_unit() -> None:
    widths = [[own.squeeze.out_features for own in own_of(model_of(reduction=r), "kind")] for r in (1, 4, 16)]
    assert widths == [[6, 4], [1, 1], [1, 1]]


def test_blocks_end_with_the_norm_behind_a_convolution_shortcuts_included() -> None:
    residual = sites(resnet18((3, 32, 32), width=4))
    assert residual[:3] == ("bn1", "layer1.0.bn1", "layer1.0.bn2")
    assert "layer2.0.downsample.1" in residual
    assert len(residual) == 20  # one per convolution
    assert len(sites(resnet50((3, 32, 32), width=4))) == 53
    assert sites(CNN((1, 8, 8), widths=[4, 8])) == ("layers.1", "layers.5")
    assert sites(CNN((1, 8, 8), widths=[4, 8], norm=False)) == ("layers.0", "layers.3")
    assert sites(MLP((4,), hidden=[5, 6])) == ("layers.1", "layers.3")
    assert sites(nn.Conv2d(1, 4, 3)) == ("",)
    assert sites(Frozen(Stemmed(nn.Linear(3, 4), MLP((4,), hidden=[5])))) == ("layers.1",)


class Unordered(nn.Module):
    """Registers all convolutions before all norms, and with `first` every norm in front of its convolution."""

    def __init__(self, *, first: bool = False) -> None:
        super().__init__()
        for number in (1, 2):
            norm = nn.BatchNorm2d(4)
            if first:
                setattr(self, f"bn{number}", norm)
            setattr(self, f"conv{number}", nn.Conv2d(4, 4, 1))
        if not first:
            self.bn1, self.bn2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)


def test_norms_are_paired_with_the_convolutions_in_front_of_them() -> None:
    assert sites(Unordered()) == ("bn1", "bn2")
    assert sites(Unordered(first=True)) == ("bn2", "conv2")  # the second norm reads the first convolution


def test_after_names_modules_by_names_globs_and_classes() -> None:
    network = resnet18((3, 32, 32), width=4)
    assert sites(network, "layer?") == ("layer1", "layer2", "layer3", "layer4")
    assert sites(network, ["layer1.*", "bn1"]) == ("bn1", "layer1.0", "layer1.1")
    assert sites(network, "BasicBlock") == sites(network, ["layer*.?"])
    assert sites(network, nn.BatchNorm2d) == sites(network)
    model = sm.SqueezeExcitation(network, tasks(), after="layer?")
    assert [own.excite.out_features for own in own_of(model, "kind")] == [4, 8, 16, 32]
    assert model(torch.rand(2, 3, 32, 32))["kind"].shape == (2, 3)


@pytest.mark.parametrize(
    ("encoder", "after", "message"),
    [
        (convolutions(), "layer1", r"`after`: no parameter, module or class of modules matches 'layer1'"),
        (convolutions(), [], r"`after` names no module"),
        (convolutions(), ["ReLU"], r"`after`: '2' \(ReLU\) has no layer that tells its number of channels"),
        (nn.ModuleDict({"a": nn.Linear(2, 2)}), None, r"ModuleDict has no convolution .* Name modules in `after`"),
    ],
)
def test_modules_that_cannot_be_scaled_are_refused(encoder: nn.Module, after: Any, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        sites(encoder, after)


def test_features_of_tokens_are_scaled_along_their_last_axis() -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    model = sm.SqueezeExcitation(nn.Sequential(layer, nn.Flatten()), tasks(), after="0")
    x = torch.rand(2, 3, 4)
    model.eval()
    own, z = own_of(model, "kind")[0], layer.eval()(x)
    found = model(x)["kind"]
    torch.testing.assert_close(found, model.heads["kind"]((z * own(z.mean(1)).unsqueeze(1)).flatten(1)))
    with pytest.raises(ParameterError, match=r"4 channels on axis 1 or the last axis, and on one of them only"):
        model(torch.rand(2, 4, 4))


def test_the_encoder_that_is_given_stays_as_it_is() -> None:
    encoder = convolutions()
    names = list(encoder.state_dict())
    model = model_of(encoder)
    assert list(encoder.state_dict()) == names
    assert encoder(IMAGES).shape == (4, 4)
    assert {n.replace("module.", "") for n in model.encoder.state_dict()} == set(names)


def test_the_encoder_runs_only_for_a_task_and_not_again_in_the_backward_pass() -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = convolutions()

        def forward(self, x: Tensor) -> Any:
            return checkpoint(self.layers, x, use_reentrant=False)

    model = model_of(Checkpointed())
    with pytest.raises(ParameterError, match=r"runs for one task at a time. Call the model"):
        model.encoder(IMAGES)
    output = model(IMAGES)["kind"]
    with pytest.raises(ParameterError, match="activation checkpointing runs the encoder"):
        output.sum().backward()


def test_norm_statistics_are_per_task_unless_said_otherwise() -> None:
    model = model_of()
    assert sm.DenseSharing().start(model).have_own_tensors
    assert not sm.DenseSharing(bn="shared").start(model).have_own_tensors
    assert not sm.DenseSharing().start(sm.SharedBottom(convolutions(), tasks())).have_own_tensors
    assert sm.RandomSharing(mask_applies_to="gradients").start(model).have_own_tensors


def test_depth_is_that_of_the_plain_encoder() -> None:
    for encoder in (CNN((1, 8, 8), widths=[4, 8]), resnet18((3, 32, 32), width=4)):
        plain, model = heights(encoder), sm.SqueezeExcitation(encoder, tasks())
        assert {name.replace("module.", ""): h for name, h in heights(model.encoder).items()} == plain


def trained(**options: Any) -> sm.Trainer:
    x = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    targets = {"kind": torch.arange(24) % 3, "size": x.mean((1, 2, 3))}
    torch.manual_seed(2)
    model = sm.SqueezeExcitation(convolutions(), tasks(), reduction=2)
    trainer = sm.Trainer(model, epochs=2, seed=0, progress=False, accelerator="cpu", measure_cost=False, **options)
    trainer.fit(TensorLoader(x, targets, batch_size=8), TensorLoader(x, targets, batch_size=8))
    return trainer


def test_the_excitations_of_a_task_are_part_of_its_small_network() -> None:
    sharing = sm.FisherSharing(keep=0.5, granularity="channel", samples=16, estimator="sample", warmup=0)
    trainer = trained(sharing=sharing)
    network = trainer.network("kind")
    small = sm.compact(network, task="kind", example_inputs=IMAGES)
    assert small.report.verification.verified
    torch.testing.assert_close(small(IMAGES), network(IMAGES)["kind"], rtol=1e-4, atol=1e-5)
    layers = [layer.name for layer in small.report.layers]
    assert "excitations.kind.0.excite" in layers
    assert not any("size" in name for name in layers)
    first = small.report.layer("encoder.0")
    assert first.outputs[1] < first.outputs[0]


def gradient_of(model: nn.Module, name: str) -> Tensor:
    found = model.get_parameter(name).grad
    assert found is not None
    return found


def test_fisher_information_is_that_of_a_loop_over_samples() -> None:
    model = model_of().eval()
    loader = TensorLoader(IMAGES, {"kind": torch.arange(4) % 3, "size": torch.rand(4)}, batch_size=4)
    scores = sm.fisher_information(model, loader, "kind", "true")
    expected = dict.fromkeys(scores, torch.zeros(()))
    for i in range(4):
        model.zero_grad()
        model.tasks["kind"].loss(model(IMAGES[i : i + 1])["kind"], torch.tensor([i % 3])).backward()
        expected = {n: e + (gradient_of(model, n) ** 2) / 4 for n, e in expected.items()}
    for name, score in scores.items():
        torch.testing.assert_close(score.to(expected[name].dtype), expected[name], rtol=1e-4, atol=1e-9)


def test_copies_and_pickles_compute_the_same_and_share_nothing() -> None:
    model = model_of().eval()
    for copy in (deepcopy(model), pickle.loads(pickle.dumps(model))):
        before = copy(IMAGES)["kind"]
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1.5)
        assert torch.equal(copy(IMAGES)["kind"], before)
