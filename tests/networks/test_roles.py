"""Masks and penalties act on weights of layers, told by their role."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from loops import each
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import sparsemtl as sm
from sparsemtl.errors import MaskError, ParameterError
from sparsemtl.sharing import SHARING

tasks = [sm.Classification("a", 2), sm.Regression("b")]
IMAGES = torch.rand(4, 2, 6, 6)


class Gained(nn.Module):
    """A convolution among parameters that look like weights: a gain, a map of positions, a scale per position."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        self.gain = nn.Parameter(torch.ones(1, 3, 1, 1))
        self.places = nn.Parameter(torch.rand(3, 6, 6))
        self.scale = nn.Parameter(torch.rand(2, 3, 6, 6))
        self.norm = nn.LayerNorm([3, 6, 6])
        self.token = nn.Parameter(torch.rand(1, 3))
        self.out_features = 3

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm((self.conv(x) * self.gain + self.places) * self.scale[0] + self.scale[1])
        return hidden.mean((2, 3)).tanh() + self.token


class LowRank(nn.Module):
    """A weight in two factors of the user's own."""

    maskable_weights = ("left", "right")

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.randn(4, 2))
        self.right = nn.Parameter(torch.randn(2, 5))
        self.gain = nn.Parameter(torch.ones(1, 5))
        self.out_features = 5

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.left @ self.right * self.gain


LAYERS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "linear": (lambda: nn.Linear(3, 2), ["weight"]),
    "bilinear": (lambda: nn.Bilinear(3, 2, 4), ["weight"]),
    "convolution": (lambda: nn.Conv1d(3, 2, 3), ["weight"]),
    "transposed convolution": (lambda: nn.ConvTranspose3d(3, 2, 3), ["weight"]),
    "embedding": (lambda: nn.Embedding(3, 2), []),
    "embedding bag": (lambda: nn.EmbeddingBag(3, 2), []),
    "recurrent": (
        lambda: nn.LSTM(3, 4, bidirectional=True, proj_size=2),
        [f"weight_{part}_l0{way}" for way in ("", "_reverse") for part in ("ih", "hh", "hr")],
    ),
    "recurrent cell": (lambda: nn.GRUCell(3, 4), ["weight_ih", "weight_hh"]),
    "attention": (lambda: nn.MultiheadAttention(4, 2, add_bias_kv=True), ["in_proj_weight", "out_proj.weight"]),
    "attention of other widths": (
        lambda: nn.MultiheadAttention(4, 2, kdim=3, vdim=5),
        ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"],
    ),
    "norm of maps": (lambda: nn.LayerNorm([3, 4]), []),
    "gains and positions": (Gained, ["conv.weight"]),
    "a user's own": (LowRank, ["left", "right"]),
    "a subclass": (lambda: type("Mine", (nn.Linear,), {})(3, 2), ["weight"]),
}


@each("name", LAYERS)
def test_masks_cover_the_weights_of_a_layer_and_nothing_else(name: str) -> None:
    make, expected = LAYERS[name]
    layer = make()
    assert list(sm.maskable_parameters(layer)) == expected
    everything = dict(layer.named_parameters())
    assert set(sm.left_out_parameters(layer)) == set(everything) - set(expected)
    assert list(sm.maskable_parameters(layer, mask_all=True)) == list(everything)


def test_a_weight_is_one_under_any_of_its_names() -> None:
    module = nn.Module()
    module.table = nn.Parameter(torch.rand(3, 2))
    module.layer = nn.Linear(2, 3)
    module.layer.weight = module.table
    assert list(sm.maskable_parameters(module)) == ["table"]


def test_a_name_that_is_no_parameter_is_refused() -> None:
    module = LowRank()
    module.maskable_weights = ("left", "middle")
    with pytest.raises(ParameterError, match=r"LowRank\.maskable_weights names 'middle', .* it has left, right, gain"):
        sm.maskable_parameters(module)


def test_what_is_left_out_says_why_and_how_to_have_it() -> None:
    reasons = sm.left_out_parameters(sm.SharedBottom(Gained(), tasks))
    assert reasons["encoder.conv.bias"] == "a bias, scale or shift of Conv2d"
    assert "maskable_weights = ('places',)" in reasons["encoder.places"]


def test_a_matrix_of_a_users_own_that_masks_leave_out_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Own(LowRank):
        maskable_weights = ("left",)

    model = sm.SharedBottom(Own(), tasks)
    with caplog.at_level("WARNING", logger="sparsemtl"):
        sm.RandomSharing().start(model)
    (record,) = caplog.records
    assert "'encoder.right' of shape (2, 5) is not masked" in record.getMessage()


def test_nothing_but_own_parameters_is_an_error_that_says_how_to_name_them() -> None:
    class Own(LowRank):
        maskable_weights = ()

    with pytest.raises(MaskError, match="names its weights in `maskable_weights`"):
        sm.RandomSharing().start(sm.SharedBottom(Own(), tasks))


@pytest.mark.parametrize("method", ["group-lasso", "group-mcp", "l1", "soft-masks", "pbfs", "random", "fisher"])
def test_no_method_touches_gains_and_maps_of_positions(method: str) -> None:
    torch.manual_seed(0)
    model = sm.SharedBottom(Gained(), tasks)
    options: dict[str, Any] = {"lambda": 10.0, "keep_min": 1} if method in ("group-lasso", "group-mcp", "l1") else {}
    if method == "fisher":
        options = {"estimator": "efs"}
    sharing = SHARING.build(method, **options)
    loader = [(IMAGES, {"a": torch.tensor([0, 1, 0, 1]), "b": torch.rand(4)})]
    trainer = sm.Trainer(model, sharing=sharing, epochs=2, progress=False, accelerator="cpu")
    trainer.fit(loader, list(loader))
    for name, p in model.encoder.named_parameters():
        if name != "conv.weight":
            assert bool((p != 0).any()), name
    if trainer.masks is not None:
        assert list(trainer.masks.shapes()) == ["encoder.conv.weight"]


def old_weight_norm(layer: nn.Module) -> nn.Module:
    with pytest.warns(FutureWarning, match="weight_norm"):
        return nn.utils.weight_norm(layer)


def pruned(layer: nn.Module) -> nn.Module:
    prune.random_unstructured(layer, "weight", 0.5)
    return layer


COMPUTED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "weight norm by hooks": old_weight_norm,
    "spectral norm by hooks": nn.utils.spectral_norm,
    "pruned": pruned,
}


@each("method", ["group-lasso", "soft-masks", "pbfs", "random", "fisher"])
@each("kind", COMPUTED)
def test_a_weight_that_is_computed_is_refused_with_what_to_do(kind: str, method: str) -> None:
    encoder = nn.Sequential(COMPUTED[kind](nn.Conv2d(2, 3, 3)), nn.Flatten(), nn.Linear(48, 4))
    model = sm.SharedBottom(encoder, tasks)
    with pytest.raises(ParameterError, match=r"encoder\.0\.weight \(.*\) is no parameter but computed from"):
        SHARING.build(method).start(model)
    if method == "fisher":
        loader = [(IMAGES, {"a": torch.tensor([0, 1, 0, 1]), "b": torch.rand(4)})]
        for granularity in ("weight", "channel"):
            with pytest.raises(ParameterError, match=r"encoder\.0\.weight"):
                sm.fisher_masks(model, loader, granularity=granularity)


def test_a_computed_weight_that_a_penalty_does_not_cover_is_no_obstacle() -> None:
    encoder = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), parametrizations.weight_norm(nn.Linear(48, 4)))
    sm.GroupLassoSharing().start(sm.SharedBottom(encoder, tasks))
    with pytest.raises(ParameterError, match=r"encoder\.2\.weight"):
        sm.GroupLassoSharing(linear=True).start(sm.SharedBottom(encoder, tasks))


def test_a_computed_weight_in_a_head_is_the_tasks_own_affair() -> None:
    heads = {"a": parametrizations.weight_norm(nn.Linear(5, 2)), "b": nn.Linear(5, 1)}
    networks = sm.RandomSharing().start(sm.SharedBottom(nn.Linear(3, 5), tasks, heads))
    assert list(networks["a"].weight_factors) == ["encoder.weight"]


def test_the_linear_layers_of_gpt2_are_layers() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=20, eos_token_id=0, bos_token_id=0, n_embd=16, n_layer=1, n_head=4, n_inner=24
    )
    names = [name for name in sm.maskable_parameters(transformers.GPT2Model(config)) if name.startswith("h.0")]
    assert names == [f"h.0.{layer}.weight" for layer in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")]
