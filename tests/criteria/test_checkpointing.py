"""Models that call torch.utils.checkpoint in eval mode too have the scores that they have without."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from fisher_oracles import assert_close, fisher
from loops import each
from small_networks import Runs, two_classifications
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import sparsemtl as sm
from sparsemtl.criteria import CRITERIA, Fisher
from sparsemtl.errors import ParameterError
from sparsemtl.networks.model_state import preserve_model_state

KINDS: dict[str, Any] = {
    "not reentrant": lambda inner, x: checkpoint(inner, x, use_reentrant=False),
    "reentrant": lambda inner, x: checkpoint(inner, x, use_reentrant=True),
    "bound early": partial(checkpoint, use_reentrant=False),
    "nested": lambda inner, x: checkpoint(partial(checkpoint, inner, use_reentrant=False), x, use_reentrant=True),
    "sequential": lambda inner, x: checkpoint_sequential([inner, nn.Tanh()], 2, x, use_reentrant=False),
}


def model(run: Any) -> sm.SharedBottom:
    """A residual block with a gain of its own, run by `run`, between two layers."""
    torch.manual_seed(0)
    tasks, _ = two_classifications()
    block = Runs(
        lambda m, x: x + m.gain * torch.tanh(m.norm(m.layer(x))),
        layer=nn.Linear(5, 5),
        norm=nn.LayerNorm(5),
        gain=nn.Parameter(torch.randn(1, 5)),
    )
    encoder = Runs(
        lambda m, x: m.last(run(m.block, m.first(x))), first=nn.Linear(3, 5), block=block, last=nn.Linear(5, 4)
    )
    return sm.SharedBottom(encoder, tasks, {task.name: nn.Linear(4, task.outputs) for task in tasks}).double()


def batch(samples: int = 4) -> tuple[Tensor, dict[str, Tensor]]:
    return torch.randn(samples, 3, dtype=torch.float64), two_classifications()[1]


@each("path", ["auto", "hooks", "functional", "loop"])
@each("kind", KINDS)
def test_scores_are_those_without_checkpointing(kind: str, path: str) -> None:
    plain = (lambda inner, x: torch.tanh(inner(x))) if kind == "sequential" else (lambda inner, x: inner(x))
    criterion = Fisher(estimator="true", mask_all=True, path=path)
    without, checkpointed, data = model(plain), model(KINDS[kind]), [batch()]
    expected = criterion.scores(without, data, list(without.tasks.values()))
    found = criterion.scores(checkpointed, data, list(checkpointed.tasks.values()))
    for name, task in without.tasks.items():
        assert all(torch.equal(found[name][parameter], score) for parameter, score in expected[name].items())
        assert_close(found[name], fisher(without, data, task, list(expected[name]), estimator="true"))


@each("kind", ["not reentrant", "reentrant"])
@each("name", [name for name in CRITERIA if name != "fisher"])
def test_other_criteria_run_checkpointed_models(name: str, kind: str) -> None:
    without, checkpointed, data = model(lambda inner, x: inner(x)), model(KINDS[kind]), [batch()]
    expected = CRITERIA.build(name).scores(without, data, list(without.tasks.values()))
    found = CRITERIA.build(name).scores(checkpointed, data, list(checkpointed.tasks.values()))
    for task in expected:
        assert all(torch.equal(found[task][name], score) for name, score in expected[task].items())


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
def test_training_checkpoints_again_afterwards(reentrant: bool, fails: bool) -> None:
    checkpointed, (x, targets) = model(KINDS["reentrant" if reentrant else "not reentrant"]), batch()
    calls = []
    checkpointed.encoder.block.layer.register_forward_hook(lambda *_: calls.append(1))

    def backward() -> int:
        calls.clear()
        sum(output.sum() for output in checkpointed(x).values()).backward()
        return len(calls)

    assert backward() == 2
    try:
        Fisher().scores(checkpointed, [] if fails else [(x, targets)], list(checkpointed.tasks.values()))
    except ParameterError:
        assert fails
    assert backward() == 2
    first, second = preserve_model_state(checkpointed), preserve_model_state(model(KINDS["reentrant"]))
    with first:
        with second:
            assert backward() == 1
        assert backward() == 1
    assert backward() == 2
