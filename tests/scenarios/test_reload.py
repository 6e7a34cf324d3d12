"""Save, reload as another process would, predict and deploy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import walk
from torch import nn

import sparsemtl as sm

N = 24

# ---- the user's code: 7 lines ----

x = torch.randn(N, 5, generator=torch.Generator().manual_seed(0))
targets = {"kind": x[:, :3].argmax(1), "size": x.sum(1)}
tasks = [sm.Classification("kind", 3), sm.Regression("size")]


def make() -> sm.MultiTaskModel:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())
    return sm.SharedBottom(encoder, tasks, {t.name: t.head(16) for t in tasks})


# ---- what must work ----

batches = walk.batches_of(x, targets)


@pytest.mark.parametrize("method", walk.METHODS)
def test_a_run_is_reloaded(method: str, tmp_path: Path) -> None:
    trainer = walk.train(make, method, batches, folder=tmp_path / "run")
    walk.plain_loop(make(), method, batches)
    run = sm.load_run(tmp_path / "run", make())
    for task, output in trainer.predict(x).items():
        assert torch.equal(run.predict(x)[task], output)


@pytest.mark.parametrize("method", walk.WHOLE)
def test_a_reloaded_run_is_deployed_as_a_smaller_network(method: str, tmp_path: Path) -> None:
    sharing = walk.WHOLE[method]("neuron")
    trainer = sm.Trainer(make(), sharing=sharing, epochs=2, progress=False, folder=tmp_path / "run")
    trainer.fit(batches, list(batches)).test(list(batches))
    run = sm.load_run(tmp_path / "run", make())
    small = run.compact("kind", x[:4])
    torch.testing.assert_close(small(x), run.predict(x)["kind"])
    assert sm.parameter_count(small) < sm.parameter_count(sm.compact(make(), task="kind", example_inputs=x[:4]))


def test_fisher_information_equals_a_loop_over_samples() -> None:
    walk.check_fisher(make(), batches[0], walk.rows)
