"""Which weights: `only` and `exclude` mean the same everywhere, and what is left out has a reason."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from loops import each
from torch import Tensor, nn

import sparsemtl as sm
from sparsemtl.criteria import CRITERIA, Fisher, choose_masks
from sparsemtl.errors import ConfigError, MaskError, ParameterError
from sparsemtl.networks.patterns import Pattern, Patterns
from sparsemtl.registry.parameters import parameters_of
from sparsemtl.runs.changes import override
from sparsemtl.runs.config import check
from sparsemtl.sharing import SHARING
from sparsemtl.sharing.proximal import ProximalSharing
from sparsemtl.storage.yaml_text import parse_yaml

tasks = [sm.Classification("a", 2), sm.Regression("b")]
WORDS = torch.randint(0, 7, (6, 4), generator=torch.Generator().manual_seed(0))
TARGETS = {"a": torch.tensor([0, 1, 0, 1, 1, 0]), "b": torch.linspace(-1, 1, 6)}
DATA = [(WORDS[:3], {n: y[:3] for n, y in TARGETS.items()}), (WORDS[3:], {n: y[3:] for n, y in TARGETS.items()})]


class Gate(nn.Module):
    """A parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.ones(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate


class Reader(nn.Module):
    """Words, positions, layers and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 8)
        self.pos_embedding = nn.Parameter(torch.randn(4, 8))
        self.gate = Gate()
        self.conv = nn.Conv1d(4, 5, 3, padding=1)
        self.norm = nn.LayerNorm(8)
        self.mlp = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 6))
        self.out_features = 6

    def forward(self, ids: Tensor) -> Tensor:
        features: Tensor = self.mlp(self.norm(self.conv(self.gate(self.words(ids) + self.pos_embedding))).mean(1))
        return features


def make(frozen: str | None = None) -> sm.SharedBottom:
    torch.manual_seed(0)
    model = sm.SharedBottom(Reader(), tasks)
    if frozen is not None:
        model.get_submodule(frozen).requires_grad_(False)
    return model


def names(patterns: Patterns | None = None, exclude: Patterns | None = None, **options: Any) -> set[str]:
    return set(sm.maskable_parameters(make(), only=patterns, exclude=exclude, **options))


LAYERS = {"encoder.conv.weight", "encoder.mlp.0.weight", "encoder.mlp.2.weight"}
WORD_TABLE, POSITIONS, GATE = "encoder.words.weight", "encoder.pos_embedding", "encoder.gate.gate"
PATTERNS: dict[Any, set[str]] = {
    "encoder.mlp": {"encoder.mlp.0.weight", "encoder.mlp.2.weight"},
    "encoder.mlp.0.weight": {"encoder.mlp.0.weight"},
    "*.mlp.?.weight": {"encoder.mlp.0.weight", "encoder.mlp.2.weight"},
    "Linear": {"encoder.mlp.0.weight", "encoder.mlp.2.weight"},
    nn.Linear: {"encoder.mlp.0.weight", "encoder.mlp.2.weight"},
    "Conv1d": {"encoder.conv.weight"},
    "_ConvNd": {"encoder.conv.weight"},
    "Sequential": {"encoder.mlp.0.weight", "encoder.mlp.2.weight"},
    Reader: LAYERS,
    "encoder": LAYERS,
    "*": LAYERS,
}
BROUGHT_IN: dict[Any, set[str]] = {
    "encoder.words": {WORD_TABLE},
    nn.Embedding: {WORD_TABLE},
    "Embedding": {WORD_TABLE},
    "*words*": {WORD_TABLE},
    "encoder.pos_embedding": {POSITIONS},
    Gate: {GATE},
}


def test_by_default_weights_of_layers_are_covered_and_the_rest_has_a_reason() -> None:
    assert names() == LAYERS
    reasons = sm.left_out_parameters(make())
    assert reasons[WORD_TABLE].startswith("an embedding, whose rows serve one input each")
    assert reasons[POSITIONS].startswith("a position or class token of Reader's own")
    assert reasons[GATE].startswith("a parameter of Gate's own")
    assert reasons["encoder.norm.weight"] == "a bias, scale or shift of LayerNorm"
    assert set(reasons) | LAYERS == set(make().shared_parameters())


def test_a_pattern_covers_the_weights_that_it_names_and_their_complement_is_excluded() -> None:
    for pattern, expected in PATTERNS.items():
        only, rest = names(pattern), names(exclude=pattern)
        assert only == expected, pattern
        assert only | rest == LAYERS, pattern
        assert not only & rest, pattern


def test_what_is_left_out_by_default_comes_in_by_its_own_name_alone() -> None:
    for pattern, expected in BROUGHT_IN.items():
        assert names(pattern) == expected
        assert names([pattern, "Linear"]) == expected | PATTERNS["Linear"]
        assert names(exclude=pattern) == LAYERS
        assert names(exclude=pattern, mask_all=True) == set(make().shared_parameters()) - expected


def test_the_order_of_patterns_does_not_matter_and_the_order_of_parameters_is_the_models() -> None:
    several: list[Pattern] = ["encoder.mlp.2", nn.Conv1d, "encoder.words"]
    expected = list(sm.maskable_parameters(make(), only=several))
    assert expected == [n for n, _ in make().named_parameters() if n in expected]
    for order in itertools.permutations(several):
        assert list(sm.maskable_parameters(make(), only=order)) == expected
    assert names(several, "encoder.mlp") == {"encoder.conv.weight", WORD_TABLE}


def test_the_reason_names_the_pattern() -> None:
    reasons = sm.left_out_parameters(make(), only=["Linear"], exclude="encoder.mlp.0")
    assert reasons["encoder.mlp.0.weight"] == "excluded by 'encoder.mlp.0'"
    assert reasons["encoder.conv.weight"] == "not named by `only`"
    assert reasons[WORD_TABLE].startswith("an embedding")


@each(("options", "message"), [
        ({"only": "encoder.mpl"}, r"`only`: no parameter, module or class of modules matches 'encoder\.mpl'\. Did you "
         r"mean 'encoder\.mlp'.*Classes: .*Linear.*Names: encoder\.pos_embedding"),
        ({"exclude": ["Conv2d"]}, r"`exclude`: no .* matches 'Conv2d'\. Did you mean 'Conv1d'"),
        ({"only": nn.GRU}, "`only`: no .* matches GRU"),
        ({"only": "heads.*"}, r"'heads\.\*' matches 'heads\.a\.weight', which stands in no shared module"),
        ({"only": "encoder.norm"}, r"nothing that 'encoder\.norm' matches can be covered: encoder\.norm\.weight is"),
        ({"only": 3}, "expected names, or classes such as nn.Conv2d, got 3"),
        ({"exclude": [int]}, "expected names, or classes such as nn.Conv2d, got <class 'int'>"),
        ({"only": []}, "`only` is an empty list"),
    ])  # fmt: skip
def test_a_pattern_that_names_nothing_is_an_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        sm.maskable_parameters(make(), **options)


@each(
    "method",
    [
        "fisher",
        "random",
        "pbfs",
        "group-lasso",
        "l1",
        "group-mcp",
        "soft-masks",
        "lottery",
        "disparse",
        "sparse-training",
    ],
)
def test_every_method_checks_its_patterns(method: str) -> None:
    linear = {"linear": True} if "linear" in parameters_of(SHARING[method]) else {}
    with pytest.raises(ParameterError, match=r"nn\.Conv2d, got 3"):
        SHARING.build(method, only=3)
    with pytest.raises(ParameterError, match=r"Did you mean 'encoder\.mlp"):
        SHARING.build(method, only="encoder.mpl", **linear).start(make())
    for name in CRITERIA:
        with pytest.raises(ParameterError, match=r"nn\.Conv2d, got 3"):
            CRITERIA.build(name, exclude=3)


def test_frozen_weights_are_left_out_and_cannot_be_named() -> None:
    model = make(frozen="encoder.mlp.0")
    assert set(sm.maskable_parameters(model)) == LAYERS - {"encoder.mlp.0.weight"}
    assert "encoder.mlp.0.bias" not in sm.maskable_parameters(model, mask_all=True)
    assert sm.left_out_parameters(model)["encoder.mlp.0.weight"].startswith("frozen (requires_grad=False)")
    assert set(sm.maskable_parameters(model, only="Linear")) == {"encoder.mlp.2.weight"}
    with pytest.raises(ParameterError, match=r"encoder\.mlp\.0\.weight is frozen"):
        sm.maskable_parameters(model, only="encoder.mlp.0")


def test_an_encoder_that_is_frozen_as_a_whole_is_masked_as_it_is() -> None:
    assert set(sm.maskable_parameters(make(frozen="encoder"))) == LAYERS


def test_a_tied_embedding_is_an_embedding_under_any_name() -> None:
    model = nn.Module()
    model.out, model.words, model.own = nn.Linear(3, 5, bias=False), nn.Embedding(5, 3), nn.Linear(3, 3)
    model.out.weight = model.words.weight
    assert list(sm.maskable_parameters(model)) == ["own.weight"]
    assert list(sm.maskable_parameters(model, only=nn.Linear)) == ["own.weight"]
    assert list(sm.maskable_parameters(model, only="words")) == ["out.weight"]
    assert list(sm.maskable_parameters(model, only="out")) == ["out.weight"]


def test_a_computed_weight_may_be_excluded() -> None:
    model = make()
    nn.utils.parametrizations.weight_norm(model.get_submodule("encoder.conv"))
    with pytest.raises(ParameterError, match="is no parameter but computed"):
        sm.RandomSharing().start(model)
    networks = sm.RandomSharing(exclude="encoder.conv").start(model)
    assert set(networks["a"].weight_factors) == LAYERS - {"encoder.conv.weight"}


# ---- criteria and masks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["hooks", "functional", "loop"])
def test_scores_of_named_weights_are_those_of_the_full_run_bit_for_bit(path: Any) -> None:
    model = make()
    full = Fisher(path=path, estimator="efs").scores(model, DATA, tasks)
    for pattern in ("Linear", "encoder.conv") if path == "hooks" else ("Linear",):
        part = Fisher(path=path, estimator="efs", only=pattern).scores(model, DATA, tasks)
        rest = Fisher(path=path, estimator="efs", exclude=pattern).scores(model, DATA, tasks)
        for task, scores in full.items():
            assert set(part[task]) == names(pattern)
            joined = {**part[task], **rest[task]}
            assert set(joined) == set(scores)
            assert all(torch.equal(joined[name], score) for name, score in scores.items())


@pytest.mark.parametrize("name", list(CRITERIA))
def test_every_criterion_scores_what_is_named(name: str) -> None:
    efs: dict[str, Any] = {"estimator": "efs"}
    options = {"fisher": efs, "specific": {"of": {"name": "fisher", **efs}}}.get(name, {})
    criterion = CRITERIA.build(name, only=["encoder.words", "Linear"], exclude="*.0.*", **options)
    found = criterion.scores(make(), DATA, tasks)
    assert all(set(scores) == {WORD_TABLE, "encoder.mlp.2.weight"} for scores in found.values())


def test_masks_are_the_best_of_the_named_weights() -> None:
    model = make()
    masks = sm.fisher_masks(model, DATA, 0.4, only=nn.Linear, estimator="efs")
    scores = Fisher(estimator="efs").scores(model, DATA, tasks)
    for task in masks:
        kept = {n: scores[task][n] for n in ("encoder.mlp.0.weight", "encoder.mlp.2.weight")}
        assert all(torch.equal(masks[task][n], m) for n, m in sm.criteria.select(kept, 0.4).items())
        assert list(masks[task]) == list(kept)
    of_a_wider_criterion = choose_masks(Fisher(estimator="efs"), model, DATA, keep=0.4, only="Linear")
    assert of_a_wider_criterion == masks


def test_a_criterion_that_scores_less_than_is_named_is_an_error() -> None:
    with pytest.raises(MaskError, match=r"has no score for 'encoder\.words\.weight'.*same `only`"):
        choose_masks(CRITERIA.build("magnitude"), make(), DATA, keep=0.5, only=["Embedding", "Linear"])


def test_units_are_those_of_the_named_layers() -> None:
    model = make()
    every = sm.fisher_masks(model, DATA, 0.5, granularity="channel", estimator="efs")
    masks = sm.fisher_masks(model, DATA, 0.5, granularity="channel", estimator="efs", only="encoder.mlp")
    assert set(every.shapes()) == set(model.shared_parameters())
    assert set(masks.shapes()) == {f"encoder.mlp.{i}.{own}" for i in (0, 2) for own in ("weight", "bias")}
    for task in masks:
        kept = [masks[task][f"encoder.mlp.{i}.bias"] for i in (0, 2)]
        assert int(torch.cat(kept).sum()) == 6
        assert torch.equal(masks[task]["encoder.mlp.0.weight"].all(1), kept[0])
    neurons = sm.fisher_masks(model, DATA, 0.5, granularity="neuron", estimator="efs", only="encoder.mlp.2")
    assert list(neurons.shapes()) == ["encoder.mlp.2.weight"]  # the columns that read the neurons
    assert int(neurons["a"]["encoder.mlp.2.weight"].all(0).sum()) == 3


# ---- training ----------------------------------------------------------------------------------------------------


def trained(sharing: sm.Sharing, epochs: int = 2) -> sm.Trainer:
    trainer = sm.Trainer(make(), sharing=sharing, epochs=epochs, seed=0, progress=False, accelerator="cpu")
    trainer.fit(DATA, list(DATA))
    return trainer


@pytest.mark.parametrize(
    ("method", "granularity"), [("fisher", "weight"), ("fisher", "channel"), ("random", "weight"), ("pbfs", "weight")]
)
def test_weights_that_masks_do_not_cover_train_for_all_tasks(method: str, granularity: str) -> None:
    options: dict[str, Any] = {"fisher": {"estimator": "efs", "warmup": 0, "keep": 0.5}, "pbfs": {"reach_at": 2}}
    extra = {} if method == "pbfs" else {"granularity": granularity}
    sharing = SHARING.build(method, only="Linear", **options.get(method, {}), **extra)
    trainer, start = trained(sharing), make()
    assert trainer.masks is not None
    assert set(trainer.masks.shapes()) <= {f"encoder.mlp.{i}.{own}" for i in (0, 2) for own in ("weight", "bias")}
    for name, parameter in start.shared_parameters().items():
        if name not in trainer.masks.shapes() and name != WORD_TABLE:
            assert bool((trainer.model.get_parameter(name) != parameter).all()), name


@pytest.mark.filterwarnings("ignore:.*every group:sparsemtl.errors.MaskWarning")
@pytest.mark.parametrize("method", ["group-lasso", "l1", "group-mcp"])
def test_penalties_make_only_named_weights_sparse(method: str) -> None:
    sharing = SHARING.build(method, **{"lambda": 1e3, "linear": True, "only": ["encoder.mlp.2", "encoder.words"]})
    model = trained(sharing, 1).model
    zero = {name for name, p in model.shared_parameters().items() if not bool(p.any())}
    assert zero == {"encoder.mlp.2.weight", WORD_TABLE}
    assert isinstance(sharing, ProximalSharing)
    assert set(sharing.covered(model)) == zero


def test_a_penalty_on_convolutions_says_how_to_have_linear_layers() -> None:
    with pytest.raises(ParameterError, match=r"encoder\.mlp\.0\.weight is a weight of 2 axes, not four; `linear`"):
        sm.GroupLassoSharing(only="Linear").start(make())


def test_soft_masks_lie_on_named_weights() -> None:
    networks = sm.SoftMaskSharing(linear=True, only=["Linear", "encoder.words"], exclude="*.0.weight").start(make())
    assert all(set(network.weight_factors) == {"encoder.mlp.2.weight", WORD_TABLE} for network in networks.values())


def test_units_of_a_penalty_are_those_of_the_named_layers() -> None:
    sharing = sm.GroupLassoSharing(lambda_=1e3, granularity="neuron", only="encoder.mlp", keep_min=1)
    model = trained(sharing, 1).model
    assert set(sharing.covered(model)) == {"encoder.mlp.0.weight", "encoder.mlp.0.bias", "encoder.mlp.2.weight"}
    assert int(model.get_parameter("encoder.mlp.2.weight").any(0).sum()) == 1
    groups = sm.optim.penalty_groups(model, sharing.shrink.penalty, exclude="encoder.mlp.0")
    assert [name for name, _ in groups[0]["params"]] == ["encoder.mlp.2.weight"]
    excluding = sm.GroupLassoSharing(granularity="neuron", exclude="encoder.mlp.2")
    with pytest.raises(ParameterError, match=r"finds no neuron.*`only` and `exclude` leave them out"):
        trained(excluding, 1)


# ---- description -------------------------------------------------------------------------------------------------


def test_a_description_names_every_parameter_with_density_or_reason(tmp_path: Path) -> None:
    model = make(frozen="encoder.conv")
    masks = sm.fisher_masks(model, DATA, 0.5, estimator="efs", exclude="encoder.mlp.0")
    found = masks.describe()
    assert found.densities == masks.layer_density() == {"encoder.mlp.2.weight": {"a": 0.5, "b": 0.5}}
    assert found.left_out is not None
    reasons = {name: entry.reason for name, entry in found.left_out.items()}
    assert {*reasons, *masks.shapes()} == {name for name, _ in model.named_parameters()}
    assert reasons["encoder.mlp.0.weight"] == "excluded by 'encoder.mlp.0'"
    assert reasons["encoder.mlp.0.bias"] == "a bias, scale or shift of Linear"
    assert reasons["encoder.conv.weight"].startswith("frozen")
    assert reasons["heads.a.weight"] == "of task 'a' alone, like its head"
    assert reasons[WORD_TABLE] == sm.left_out_parameters(model)[WORD_TABLE]
    frame = found.frame()
    assert frame.weights.sum() == sum(p.numel() for p in model.parameters())
    assert list(frame.columns) == ["shape", "weights", "covered", "a", "b", "left_out"]
    assert dict(frame.left_out[~frame.covered]) == reasons
    assert f"The masks cover 36 of {frame.weights.sum()} weights." in str(found)
    masks.save(tmp_path / "masks.safetensors")
    read = sm.TaskMasks.load(tmp_path / "masks.safetensors")
    assert read.describe() == found
    assert read.to("cpu").describe(model) == found


def test_masks_of_ones_own_say_what_they_do_not_know() -> None:
    model = make()
    ones = sm.TaskMasks.ones({n: p for n, p in sm.maskable_parameters(model).items() if "conv" in n}, model.tasks)
    assert ones.describe().left_out is None
    assert "Other parameters are not known without the model: describe(model) lists them." in str(ones.describe())
    left_out = ones.describe(model).left_out
    assert left_out is not None
    assert left_out["encoder.mlp.0.weight"] == ((6, 8), "a weight that these masks were not chosen for")
    with pytest.raises(MaskError, match=r"the masks cover .encoder\.conv\.weight., which Linear does not have"):
        ones.describe(nn.Linear(2, 2))


@pytest.mark.parametrize("method", ["fisher", "random", "pbfs"])
def test_masks_of_a_run_know_what_they_leave_out(method: str) -> None:
    options: dict[str, Any] = {"fisher": {"estimator": "efs", "warmup": 0}}
    model = make()
    sharing = SHARING.build(method, exclude="encoder.conv", **options.get(method, {}))
    networks = sharing.start(model)
    networks = sharing.begin_epoch(1 if method == "pbfs" else 0, model, networks, DATA) or networks
    assert networks.masks is not None
    left_out = networks.masks.describe().left_out
    assert left_out is not None
    assert left_out["encoder.conv.weight"].reason == "excluded by 'encoder.conv'"
    assert {*left_out, *networks.masks.shapes()} == {name for name, _ in model.named_parameters()}


def test_groups_of_a_proximal_optimizer_hold_every_trained_parameter_once() -> None:
    model = make(frozen="encoder.mlp.0")
    penalty = sm.optim.GroupLasso(strength=1e3, linear=True)
    covered, others = sm.optim.penalty_groups(model, penalty, only=["Linear", "encoder.words"])
    named = {id(p): name for name, p in model.named_parameters()}
    assert [named[id(p)] for p in covered["params"]] == [WORD_TABLE, "encoder.mlp.2.weight"]
    found = [*covered["params"], *others["params"]]
    assert {named[id(p)] for p in found} == {n for n, p in model.named_parameters() if p.requires_grad}
    assert len(found) == len(set(map(id, found)))
    with pytest.raises(ParameterError, match="GroupLasso acts on no shared weight of SharedBottom"):
        sm.optim.penalty_groups(model, sm.optim.GroupLasso(strength=1.0))


# ---- configurations ----------------------------------------------------------------------------------------------


def test_a_configuration_and_the_command_line_mean_what_python_means() -> None:
    model = make()
    python = sm.RandomSharing(seed=0, only=[nn.Linear, "encoder.words"], exclude="*.0.weight")
    text = "sharing: {name: random, seed: 0, only: [Linear, encoder.words], exclude: '*.0.weight'}"
    overrides = ["sharing.only=[Linear, encoder.words]", "sharing.exclude='*.0.weight'"]
    written = check(parse_yaml(text, "text"))["sharing"]
    changed = check(override({"sharing": {"name": "random", "seed": 0}}, overrides))["sharing"]
    assert written == changed
    configured = SHARING.build(written.pop("name"), **written)
    networks = [s.begin_epoch(0, model, s.start(model), DATA) for s in (python, configured)]
    assert networks[0] is not None
    assert networks[1] is not None
    assert networks[0].masks == networks[1].masks
    assert set(networks[0]["a"].weight_factors) == {WORD_TABLE, "encoder.mlp.2.weight"}


def test_a_wrong_pattern_in_a_configuration_is_named_with_its_place() -> None:
    with pytest.raises(ConfigError, match=r"sharing\.only: expected a string or a sequence of strings or null, got 3"):
        check({"sharing": {"name": "fisher", "only": 3}})
    with pytest.raises(ConfigError, match=r"Text that begins with \* stands in quotes"):
        override({}, ["sharing.only=*.weight"])
