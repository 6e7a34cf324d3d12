"""What all samples share is given to each of them, what attention computes at once is computed apart: same scores."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fisher_oracles import assert_close, fisher
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import each
from small_networks import NETWORKS, SAMPLES, Runs, build, two_classifications
from torch import Tensor, nn

import sparsemtl as sm
from sparsemtl.criteria import Fisher
from sparsemtl.criteria.per_sample_attention import attend
from sparsemtl.criteria.per_sample_shared import Expansion
from sparsemtl.errors import ParameterError
from sparsemtl.networks.shared_coverage import maskable_parameters

Batches = list[tuple[Tensor, dict[str, Tensor]]]


def made(encoder: nn.Module, x: Tensor) -> tuple[sm.SharedBottom, Batches]:
    """A model of one task, and two batches of `x`: all samples, and the last one."""
    torch.manual_seed(0)
    encoder = nn.Sequential(encoder, nn.Flatten()).double()
    labels = torch.arange(len(x)) % 3
    task = sm.Classification("t", 3)
    model = sm.SharedBottom(encoder, [task], {"t": nn.Linear(encoder(x).shape[1], 3)}).double()
    return model, [(x, {"t": labels}), (x[-1:], {"t": labels[-1:]})]


def scores(model: sm.SharedBottom, batches: Batches, path: Any = "auto") -> dict[str, Tensor]:
    criterion = Fisher(estimator="true", mask_all=True, samples=None, path=path)
    return criterion.scores(model, batches, list(model.tasks.values()))["t"]


def expected(model: sm.SharedBottom, batches: Batches) -> dict[str, Tensor]:
    return fisher(model, batches, model.tasks["t"], list(maskable_parameters(model, mask_all=True)), estimator="true")


def with_token(**children: Any) -> nn.Module:
    return Runs(
        lambda m, x: m.mix(torch.cat([m.token.expand(len(x), -1, -1), x], 1)).tanh()[:, 0] + x.mean(1),
        token=nn.Parameter(torch.rand(1, 1, 4)),
        mix=nn.Linear(4, 4),
        **children,
    )


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@each("batch", [2, 3, 5])
@each("name", ["class token and map of positions", "learned query", "transformer"])
def test_batches_of_any_length_follow_the_checked_one(name: str, batch: int) -> None:
    tasks, targets = two_classifications()
    model, x = build(NETWORKS[name], tasks)
    x, targets = torch.cat([x, x + 1]), {task: torch.cat([y, y]) for task, y in targets.items()}
    parts = [slice(0, batch), slice(batch, batch + 1), slice(batch + 1, 2 * SAMPLES)]
    batches = [(x[part], {task: y[part] for task, y in targets.items()}) for part in parts]
    criterion = Fisher(estimator="true", mask_all=True, path="hooks")
    found = criterion.scores(model, batches, tasks)
    names = list(maskable_parameters(model, mask_all=True))
    for task in tasks:
        assert_close(found[task.name], fisher(model, batches, task, names, estimator="true"))


def test_first_batch_of_one_sample_does_not_settle_what_is_shared() -> None:
    model, batches = made(with_token(), rand(5, 3, 4))
    assert_close(scores(model, batches[::-1]), expected(model, batches))


def test_no_parameter_but_the_one_that_needs_it_takes_the_general_path(caplog: pytest.LogCaptureFixture) -> None:
    """A class token does not send the layers through `vmap`, nor does a parameter that cannot be spread."""
    model, batches = made(with_token(fold=nn.Parameter(torch.rand(2, 2))), rand(5, 3, 4))
    model.encoder[0].function = lambda m, x: (
        m.mix(torch.cat([m.token.expand(len(x), -1, -1), x], 1)).tanh()[:, 0] * m.fold.reshape(4)
    )
    with caplog.at_level("INFO", logger="sparsemtl"):
        found = scores(model, batches)
    assert [record.getMessage() for record in caplog.records] == ["general path for encoder.0.fold"]
    assert_close(found, expected(model, batches))


class Sizes(nn.Module):
    """Notes how many samples it reads at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        return x


def test_first_batch_is_checked_on_two_samples_alone() -> None:
    sizes = Sizes()
    model, batches = made(nn.Sequential(sizes, nn.Conv2d(1, 2, 2), nn.Tanh()), rand(7, 1, 3, 3))
    sizes.seen.clear()
    scores(model, batches)
    assert sizes.seen[0] == 7
    assert sizes.seen[-1] == 1
    assert set(sizes.seen[1:-1]) == {2}


def test_samples_that_cannot_be_cut_out_are_checked_inside_their_batch() -> None:
    """Normalised over the batch, without a gradient through the mean: two samples alone have other outputs."""
    sizes = Sizes()
    encoder = Runs(lambda m, x: m.layer(m.sizes(x) - x.mean(0)), layer=nn.Linear(4, 4), sizes=sizes)
    model, batches = made(encoder, rand(7, 4))
    sizes.seen.clear()
    scores(model, batches[:1], path="hooks")
    assert sizes.seen.count(7) > 2


def functional_in_large_batches(module: Any, x: Tensor) -> Tensor:
    return module.layer(x) if len(x) <= 2 else x @ module.layer.weight.T + module.layer.bias


def reshapes_in_large_batches(module: Any, x: Tensor) -> Tensor:
    places = module.places if len(x) <= 2 else module.places.reshape(1, 4)
    return module.layer(x + places)


def in_chunks(module: Any, x: Tensor) -> Tensor:
    return torch.cat([module.layer(part) for part in x.split(3)])


@pytest.mark.parametrize("run", [functional_in_large_batches, reshapes_in_large_batches, in_chunks])
def test_model_that_computes_otherwise_with_more_than_two_samples_is_followed(run: Any) -> None:
    encoder = Runs(run, layer=nn.Linear(4, 4), places=nn.Parameter(torch.rand(1, 4)))
    model, batches = made(encoder, rand(7, 4))
    assert_close(scores(model, batches), expected(model, batches))


def neighbours(module: Any, x: Tensor) -> Tensor:
    hidden = module.layer(x)
    return hidden + hidden.roll(1, 0)


def first_of_the_batch(module: Any, x: Tensor) -> Tensor:
    hidden = module.layer(x)
    return hidden - hidden[:1]


def faintly_tied(module: Any, x: Tensor) -> Tensor:
    hidden = module.layer(x)
    return hidden + 1e-13 * hidden.mean(0)


@pytest.mark.parametrize("run", [neighbours, first_of_the_batch, faintly_tied])
def test_samples_that_depend_on_each_other_are_noticed_on_two(run: Any) -> None:
    model, batches = made(Runs(run, layer=nn.Linear(4, 4)), rand(7, 4))
    with pytest.raises(ParameterError, match="path='hooks'"):
        scores(model, batches[:1], path="hooks")


@pytest.mark.parametrize("ones", [None, 0, 2])
def test_spread_is_a_view_that_repeats_the_tensor(ones: int | None) -> None:
    tensor = rand(1, 3)
    view = Expansion(ones)(tensor, 5)
    assert view.shape == ((5, 3) if ones is None else (5, *[1] * ones, 1, 3))
    assert view.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
    assert all(torch.equal(row.reshape(1, 3), tensor) for row in view)


@settings(deadline=None)
@given(
    batch_first=st.booleans(),
    need_weights=st.booleans(),
    average=st.booleans(),
    mask=st.sampled_from(["", "bool", "float", "per head"]),
    padding=st.sampled_from(["", "bool", "float"]),
    bias=st.booleans(),
)
def test_attention_computed_apart_is_torchs(
    batch_first: bool, need_weights: bool, average: bool, mask: str, padding: str, bias: bool
) -> None:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(8, 2, bias=bias, batch_first=batch_first).double().eval()
    query, key, value = rand(3, 4, 8), rand(3, 5, 8) + 1, rand(3, 5, 8) - 1
    if not batch_first:
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    hidden = torch.ones(4, 5, dtype=torch.bool).triu(2)
    masks = {"": None, "bool": hidden, "float": rand(4, 5), "per head": rand(6, 4, 5)}
    unread = torch.arange(5) > torch.tensor([[4], [3], [2]])
    paddings = {"": None, "bool": unread, "float": rand(3, 5)}
    options: dict[str, Any] = {
        "attn_mask": masks[mask],
        "key_padding_mask": paddings[padding],
        "need_weights": need_weights,
        "average_attn_weights": average,
    }

    def project(part: int, x: Tensor) -> Tensor:
        weight, shift = layer.in_proj_weight.chunk(3)[part], layer.in_proj_bias
        return nn.functional.linear(x, weight, None if shift is None else shift.chunk(3)[part])

    found, truth = attend(layer, project, query, key, value, **options), layer(query, key, value, **options)
    torch.testing.assert_close(found[0], truth[0], rtol=1e-12, atol=1e-12)
    assert (found[1] is None) == (truth[1] is None)
    if truth[1] is not None:
        torch.testing.assert_close(found[1], truth[1], rtol=1e-12, atol=1e-12)


def test_attention_and_torchs_fast_path_are_left_as_they_were() -> None:
    tasks, targets = two_classifications()
    model, x = build(NETWORKS["transformer"], tasks)
    attention = next(m for m in model.modules() if isinstance(m, nn.MultiheadAttention))
    before = dict(vars(attention))
    Fisher(estimator="true").scores(model, [(x, targets)], tasks)
    assert vars(attention).keys() == before.keys()
    assert torch.backends.mha.get_fastpath_enabled()


def test_unusual_input_of_attention_takes_the_general_path() -> None:
    encoder = Runs(lambda m, x: m.mix(x, x, x)[0], mix=nn.MultiheadAttention(4, 2))
    model, batches = made(encoder, rand(7, 4))  # the samples are the times of one sequence
    with pytest.raises(ParameterError, match="path='hooks'"):
        scores(model, batches[:1], path="hooks")
