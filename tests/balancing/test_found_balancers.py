"""Members that are found in TorchJD: names, aliases, parameters, errors before training, and classes to come."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
import torchjd.aggregation as aggregation
from loops import each
from members import made_balancer
from test_balancers import CPU, NAMES, batch_of, engine_of, model_of, shared_gradient
from torch import Tensor
from torchjd import Stateful

import sparsemtl as sm
from sparsemtl.balancing import BALANCERS, GradientBalancer, RepresentationBalancer, solved
from sparsemtl.balancing.absent import aggregate
from sparsemtl.balancing.found import _Known, _member, member_name
from sparsemtl.balancing.solvers import cagrad_weights
from sparsemtl.errors import ConfigError, MissingExtraError, ParameterError
from sparsemtl.registry.registry import Registry
from sparsemtl.runs.config import check


class NewGrad(aggregation.Aggregator):
    r"""
    :class:`~torchjd.aggregation.Aggregator` that takes a step of length :math:`\tau`, as defined in Equation 2 of
    `A New Way <https://arxiv.org/pdf/2701.00001>`_. It is new.

    :param tau: The length :math:`\tau \in [0, 1]`
        of the step.
    :param pref_vector: Whatever.
    :param f: A function.
    """

    def __init__(self, tau: float = 0.5, pref_vector: Tensor | None = None, f: Any = None) -> None:
        super().__init__()
        if tau > 1:
            raise ValueError(f"tau must be in [0, 1]. Found {tau}.")
        self.tau, self.pref_vector, self.f = tau, pref_vector, f

    def forward(self, matrix: Tensor, /) -> Tensor:
        return self.tau * matrix.mean(0)


def test_a_class_of_a_newer_torchjd_becomes_a_member() -> None:
    members: Registry[Any] = Registry("balancer", {"new-grad": _member(NewGrad, _Known(member_name("NewGrad")))})
    assert members.summary("new-grad") == (
        "Aggregator that takes a step of length tau, as defined in Equation 2 of A New Way."
    )
    assert members.source("new-grad") == "A New Way, 2027"
    tau, preference = list(members.parameters("new-grad").values())[:2]
    assert (tau.name, tau.kind, tau.default) == ("tau", "a float", 0.5)
    assert preference.kind == "a list of floats or None"
    assert "f" not in members.parameters("new-grad")
    balancer = members.build("new-grad", tau=0.25, pref_vector=[1.0, 2.0])
    balancer.attach(2, CPU)
    assert torch.equal(balancer.aggregate(torch.ones(2, 3)), torch.full((3,), 0.25))
    assert balancer.module.pref_vector.tolist() == [1.0, 2.0]
    with pytest.raises(ParameterError, match=r"balancer 'new-grad': tau must be in \[0, 1\]. Found 2.0"):
        members.build("new-grad", tau=2.0).attach(2, CPU)


class Wrapped(aggregation.Aggregator):
    def __init__(self, inner: aggregation.Aggregator) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, matrix: Tensor, /) -> Tensor:
        return self.inner(matrix)


def test_a_class_that_only_python_can_make_is_no_member() -> None:
    assert _member(Wrapped, _Known("wrapped")) is None


def test_unknown_state_of_a_class_of_torchjd_reads_a_row_of_zeros_for_an_absent_task() -> None:
    class Running(aggregation.Aggregator, Stateful):
        __module__ = "torchjd.aggregation"

        def __init__(self) -> None:
            super().__init__()
            self.total = torch.zeros(())

        def reset(self) -> None:
            self.total = torch.zeros(())

        def forward(self, matrix: Tensor, /) -> Tensor:
            assert matrix.shape == (3, 4)
            return matrix.sum(0)

    rows = torch.ones(3, 4)
    assert torch.equal(aggregate(Running(), rows, torch.tensor([True, False, True])), torch.full((4,), 2.0))


ALIASES = {
    "rlw": "random",
    "rgw": "random-gradients",
    "uw": "uncertainty",
    "gls": "geometric-mean",
    "imtlg": "imtl-g",
    "imtll": "imtl-l",
    "nashmtl": "nash-mtl",
    "alignedmtl": "aligned-mtl",
    "excessmtl": "excess-mtl",
    "trimmedmean": "trimmed-mean",
    "crmogm": "cr-mogm",
}


def test_aliases_stand_for_members() -> None:
    for alias, name in ALIASES.items():
        assert alias in BALANCERS
        assert BALANCERS[alias] is BALANCERS[name]
        assert BALANCERS.resolve(alias) == name
        assert alias in BALANCERS.aliases(name)
        assert alias not in list(BALANCERS)


def test_a_configuration_may_use_an_alias_and_its_parameters() -> None:
    assert check({"balancing": {"name": "excessmtl", "n_warmup_steps": 3}})["balancing"]["robust_step_size"] == 1.0
    assert check({"balancing": "rlw"})["balancing"]["name"] == "rlw"
    with pytest.raises(ConfigError, match="unknown balancer 'rwl'"):
        check({"balancing": "rwl"})


def test_a_member_of_the_users_own_takes_the_place_of_an_alias() -> None:
    names: Registry[Any] = Registry("thing", {"one": dict}, aliases={"eins": "one"})
    assert names["eins"] is dict
    names["eins"] = list
    assert names["eins"] is list
    assert names.aliases("one") == []


@pytest.mark.parametrize("name", ["modo", "sdmgrad"])
def test_what_a_step_cannot_give_is_said(name: str) -> None:
    with pytest.raises(ConfigError, match=f"there is no balancer '{name}'. It needs the gradients of two independent"):
        BALANCERS.build(name)


@each(
    ("name", "parameters", "message"),
    [
        ("krum", {}, "balancer 'krum': parameter 'n_byzantine' is required"),
        ("constant", {}, "balancer 'constant': parameter 'weights' is required: Factor of each loss"),
        ("gradvac", {"beta": 2.0}, r"The 'beta' parameter of gradvac must be a float in \[0, 1\). Got 2.0"),
        ("pcd", {"tau": [0.1]}, "pcd: 3 tasks need 2 numbers in `tau`, got 1"),
        ("config", {"pref_vector": [1.0, 2.0]}, "config: 3 tasks need 3 numbers in `pref_vector`, got 2"),
        ("trimmed-mean", {"trim_number": 2}, "balancer 'trimmed-mean' cannot combine the gradients of 3 tasks"),
        ("krum", {"n_byzantine": 1}, "balancer 'krum' cannot combine the gradients of 3 tasks"),
        ("pcd", {"tau": 3.0}, r"balancer 'pcd': Attribute `tau` must be in \[0, 1\]"),
        ("cr-mogm", {"weighting": "graddrop"}, "'graddrop' does not add the gradients with weights"),
        ("cr-mogm", {"weighting": "mean"}, "'mean' combines no gradients"),
        ("cr-mogm", {"initial_weights": [1.0]}, "cr-mogm: 3 tasks need 3 numbers in `initial_weights`, got 1"),
        ("pbi", {"reference": [1.0]}, "pbi: 3 tasks need 3 numbers in `reference`, got 1"),
        ("famo", {"min_losses": [1.0]}, "famo: 3 tasks need 3 numbers in `min_losses`, got 1"),
        ("graddrop", {"gradients": "representation"}, "GradDrop combines gradients by more than these"),
        ("mgda", {"gradients": "representation", "scope": "overlap"}, "Leave one of the two out"),
    ],
)
def test_what_cannot_be_is_refused_before_training(name: str, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, ParameterError), match=message):
        BALANCERS.build(name, **parameters).attach(3, CPU)


def test_a_missing_solver_is_named_with_its_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchjd._mixins.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"balancer 'upgrad': .* pip install 'torchjd\[quadprog_projector\]'"):
        BALANCERS.build("upgrad").attach(3, CPU)
    with pytest.raises(MissingExtraError, match=r"balancer 'fairgrad': .* pip install 'torchjd\[fairgrad\]'"):
        BALANCERS.build("fairgrad", alpha=1.0).attach(3, CPU)


def test_the_trial_of_an_aggregator_draws_no_random_number() -> None:
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    made_balancer("pcgrad", 3).attach(3, CPU)
    assert torch.equal(torch.rand(2), expected)


@each("name", NAMES)
def test_balancers_can_be_pickled(name: str) -> None:
    balancer = pickle.loads(pickle.dumps(made_balancer(name, 3)))
    balancer.attach(3, CPU)
    assert balancer.weights(torch.ones(3)).shape == (3,)
    pickle.loads(pickle.dumps(balancer))


# Options of aggregators


def rows_of(tasks: int = 3, size: int = 7) -> Tensor:
    return torch.randn(tasks, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_cagrad_is_scaled_as_by_its_authors() -> None:
    rows, c = rows_of(), 0.4
    weights = torch.from_numpy(cagrad_weights((rows @ rows.T).numpy(), c))
    for rescale, factor in ((0, 1.0), (1, 1 / (1 + c**2)), (2, 1 / (1 + c))):
        balancer: Any = BALANCERS.build("cagrad", c=c, rescale=rescale)
        balancer.attach(3, CPU)
        torch.testing.assert_close(balancer.aggregate(rows), factor * weights @ rows)


def test_nash_weights_are_kept_between_solutions() -> None:
    balancer: Any = BALANCERS.build("nash-mtl", update_weights_every=3, max_norm=0.0)
    balancer.attach(3, CPU)
    first, other = rows_of(), rows_of().flip(1) * 2
    alone: Any = BALANCERS.build("nash-mtl", max_norm=0.0)
    alone.attach(3, CPU)
    weights = torch.linalg.lstsq(first.T, alone.aggregate(first)).solution
    torch.testing.assert_close(balancer.aggregate(first), weights @ first)
    torch.testing.assert_close(balancer.aggregate(other), weights @ other)
    torch.testing.assert_close(balancer.aggregate(other), weights @ other)
    torch.testing.assert_close(balancer.aggregate(other), alone.aggregate(other))


def test_kept_nash_weights_are_limited_at_every_step() -> None:
    balancer: Any = BALANCERS.build("nash-mtl", update_weights_every=2, max_norm=0.5)
    balancer.attach(3, CPU)
    for rows in (rows_of(), rows_of() * 100):
        assert float(balancer.aggregate(rows).norm()) == pytest.approx(0.5)
    copy: Any = BALANCERS.build("nash-mtl", update_weights_every=2, max_norm=0.5)
    copy.attach(3, CPU)
    balancer.aggregate(rows_of())
    copy.load_state_dict(balancer.state_dict())
    assert torch.equal(copy.aggregate(rows_of() * 3), balancer.aggregate(rows_of() * 3))


@pytest.mark.parametrize("name", ["cagrad", "nash-mtl", "pcgrad", "imtl-g", "aligned-mtl", "gradvac"])
def test_weights_may_be_found_at_the_representation(name: str) -> None:
    model = model_of("abc")
    (group,) = batch_of("abc")
    features = model.encoder(group.x)
    losses = [task.loss(model.heads[t](features), group.targets[t]) for t, task in model.tasks.items()]
    rows = torch.stack([torch.autograd.grad(loss, features, retain_graph=True)[0].flatten() for loss in losses])
    torch.manual_seed(1)
    weights = made_balancer(name, 3).make(3).weighting(rows)  # type: ignore[attr-defined]
    expected = torch.autograd.grad(
        sum(w * loss for w, loss in zip(weights, losses, strict=True)), model.encoder[0].weight
    )[0]
    torch.manual_seed(1)
    balancer = BALANCERS.build(name, gradients="representation")
    assert isinstance(balancer, RepresentationBalancer)
    engine_of(model, balancer).step([[group]])
    torch.testing.assert_close(model.encoder[0].weight.grad, expected, rtol=1e-5, atol=1e-8)


def masked_engine(balancer: Any, update: Any = "average", applies: Any = "gradients") -> Any:
    from policies import Started

    sharing = sm.RandomSharing(keep=0.5, mask_applies_to=applies, seed=3)
    engine = engine_of(model_of("abc"), balancer, update, sharing)
    Started.of(engine).begin_epoch(0, ())
    return engine


@pytest.mark.parametrize("applies", ["weights", "gradients"])
def test_only_the_overlap_is_aggregated(applies: Any) -> None:
    engine = masked_engine(BALANCERS.build("mgda", scope="overlap"), applies=applies)
    plain = masked_engine(GradientBalancer(made_balancer("sum-gradients", 3).make), applies=applies)  # type: ignore[attr-defined]
    batch = batch_of("abc")
    engine.step([batch])
    plain.step([batch])
    rows = plain._combination._rows.matrix()
    users = torch.zeros(rows.shape[1], dtype=torch.long)
    masks = engine.networks.masks
    names = list(engine._shared)
    for task in "abc":
        users += torch.cat(
            [
                masks[task][n].flatten() if n in masks[task] else torch.ones(engine._shared[n].numel()).bool()
                for n in names
            ]
        )
    overlap = users > 1
    assert 0 < int(overlap.sum()) < len(overlap)
    expected = torch.where(overlap, solved.mgda()(rows * overlap), rows.sum(0))
    torch.testing.assert_close(shared_gradient(engine.model), expected)


@pytest.mark.parametrize("applies", ["weights", "gradients"])
def test_selected_averages_over_the_tasks_that_use_a_weight(applies: Any) -> None:
    every = masked_engine(BALANCERS.build("mean"), applies=applies)
    selected = masked_engine(BALANCERS.build("mean", normalise="selected"), applies=applies)
    batch = batch_of("abc", missing="b")
    every.step([batch])
    selected.step([batch])
    masks = every.networks.masks
    count = torch.stack([masks[t]["encoder.0.weight"] for t in "abc"]).sum(0)
    name = "encoder.0.weight"
    gradient, other = every.model.get_parameter(name).grad, selected.model.get_parameter(name).grad
    torch.testing.assert_close(other, gradient * 3 / count.clamp(min=1))
    assert not torch.equal(other, gradient)
    for name, p in every.model.named_parameters():
        if name != "encoder.0.weight" and p.grad is not None:  # all tasks use biases, one task uses a head
            assert torch.equal(p.grad, selected.model.get_parameter(name).grad)


def test_without_masks_selected_is_the_mean_bit_for_bit() -> None:
    one, other = model_of("abc"), model_of("abc")
    for seed in range(3):
        engine_of(one, BALANCERS.build("mean")).step([batch_of("abc", seed)])
        engine_of(other, BALANCERS.build("mean", normalise="selected")).step([batch_of("abc", seed)])
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


def test_selected_combines_the_tasks_of_a_step() -> None:
    model = model_of("abc")
    sharing = sm.RandomSharing(keep=0.5)
    networks = sharing.start(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    updates = [
        sm.TrainingStep(model, optimizer, networks, balancing=BALANCERS.build("mean", normalise=normalise)).update
        for normalise in ("all", "selected")
    ]
    assert updates == ["alternate", "average"]
    with pytest.raises(ParameterError, match="update='alternate' takes a step for one task at a time"):
        engine_of(model_of("abc"), BALANCERS.build("mean", normalise="selected"), "alternate", sharing)
