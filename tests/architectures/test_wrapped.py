"""A user's own multi-task model equals the same network written as a SharedBottom, in every sharing method's eyes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsemtl import (
    Classification,
    FisherSharing,
    Regression,
    SharedBottom,
    Trainer,
    fisher_masks,
    from_model,
)
from sparsemtl.architectures import WrappedModel
from sparsemtl.data import TensorLoader
from sparsemtl.errors import ParameterError

HEADS = {"depth": "decoders.depth", "kind": "decoders.kind"}


class Network(nn.Module):
    """Two decoders behind a backbone; the form of the output varies."""

    def __init__(self, form: str = "dict") -> None:
        super().__init__()
        self.form = form
        self.backbone = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6))
        self.decoders = nn.ModuleDict({"depth": nn.Linear(6, 1), "kind": nn.Linear(6, 3)})

    def forward(self, x: Tensor) -> Any:
        features = self.backbone(x)
        outputs = {name: decoder(features) for name, decoder in self.decoders.items()}
        forms = {"dict": outputs, "object": SimpleNamespace(**outputs), "tuple": tuple(outputs.values())}
        return forms[self.form]


def tasks() -> list[Any]:
    return [Regression("depth"), Classification("kind", 3)]


def wrapped(form: str = "dict", **options: Any) -> WrappedModel:
    torch.manual_seed(0)
    return from_model(Network(form), tasks(), **{"shared": "backbone.*", "heads": HEADS, **options})


def written() -> SharedBottom:
    torch.manual_seed(0)
    network = Network()
    return SharedBottom(network.backbone, tasks(), dict(network.decoders))


def loader() -> TensorLoader:
    generator = torch.Generator().manual_seed(0)
    targets = {"depth": torch.randn(24, generator=generator), "kind": torch.randint(3, (24,), generator=generator)}
    return TensorLoader(torch.randn(24, 4, generator=generator), targets, batch_size=8)


@pytest.mark.parametrize("form", ["dict", "object", "tuple"])
def test_outputs_of_any_form_are_read(form: str) -> None:
    model = wrapped(form, outputs=["depth", "kind"] if form == "tuple" else None)
    x = torch.randn(5, 4)
    expected = written()(x)
    assert {name: torch.equal(output, expected[name]) for name, output in model(x).items()} == {
        "depth": True,
        "kind": True,
    }
    assert list(model(x, tasks=["kind"])) == ["kind"]


def test_a_wrapped_model_trains_bit_for_bit_as_a_shared_bottom() -> None:
    finals = []
    for model in (wrapped(), written()):
        sharing = FisherSharing(keep=0.5, estimator="efs")
        trainer = Trainer(model, sharing=sharing, epochs=3, progress=False, seed=0).fit(loader(), loader())
        finals.append([*model.parameters(), *trainer.masks["kind"].values()])
    assert all(torch.equal(a, b) for a, b in zip(*finals, strict=True))


def test_fisher_masks_cover_the_shared_modules_alone() -> None:
    masks = fisher_masks(wrapped(), loader(), keep=0.5, estimator="efs")
    assert list(masks.shapes()) == ["model.backbone.0.weight", "model.backbone.2.weight"]


def test_modules_that_nobody_claims_are_used_by_all_tasks_and_never_masked() -> None:
    model = wrapped(shared="backbone.0")
    assert list(model.unmasked_modules()) == ["model.backbone.2"]
    assert model.parameter_tasks()["model.backbone.2.weight"] == {"depth", "kind"}
    assert model.parameter_tasks()["model.decoders.kind.bias"] == {"kind"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shared": "encoder"}, "no module of Network matches 'encoder'"),
        ({"heads": {"depth": "decoders.depth", "colour": "decoders.kind"}}, "'colour'"),
        ({"heads": {"depth": "decoders.*", "kind": "decoders.kind"}}, "already to the head of 'depth'"),
        ({"shared": ["backbone", "decoders.kind"]}, "already to shared"),
        ({"outputs": ["depth", "colour"]}, "'colour'"),
    ],
)
def test_wrong_names_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        wrapped(**options)


def test_outputs_without_names_need_an_order() -> None:
    with pytest.raises(ParameterError, match="outputs have no names"):
        wrapped("tuple")(torch.randn(2, 4))
    with pytest.raises(ParameterError, match="must return 1 outputs, for depth, got 2"):
        wrapped("tuple", outputs=["depth"])(torch.randn(2, 4))
    with pytest.raises(ParameterError, match="'kind'"):
        wrapped(outputs=lambda outputs: {"depth": outputs["depth"]})(torch.randn(2, 4))


def test_a_parameter_outside_of_every_module_is_named() -> None:
    network = Network()
    network.scale = nn.Parameter(torch.ones(1))
    with pytest.raises(ParameterError, match="parameter 'scale'"):
        from_model(network, tasks(), shared="backbone", heads=HEADS)
