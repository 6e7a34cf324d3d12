"""Save, reload in another process's manner, predict and deploy; and masks of a pretrained encoder without training."""

from __future__ import annotations

from pathlib import Path

import torch
import walk
from torch import nn

import sparsemtl as sm

N = 24

# ---- the user's code: 10 lines ----

x = torch.randn(N, 5, generator=torch.Generator().manual_seed(0))
targets = {"kind": x[:, :3].argmax(1), "size": x.sum(1)}
tasks = [sm.Classification("kind", 3), sm.Regression("size")]


def make() -> sm.MultiTaskModel:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())
    return sm.SharedBottom(encoder, tasks, {t.name: t.head(16) for t in tasks})


# ---- what must work ----

batches = walk.batches_of(x, targets)


def test_a_run_is_reloaded_and_deployed(tmp_path: Path) -> None:
    sharing = sm.FisherSharing(keep=0.5, granularity="channel", estimator="sample", samples=16)
    trainer = sm.Trainer(make(), sharing=sharing, epochs=2, progress=False, folder=tmp_path / "run")
    trainer.fit(batches, list(batches)).test(list(batches))
    run = sm.load_run(tmp_path / "run", make())
    for task, output in trainer.predict(x).items():
        assert torch.equal(run.predict(x)[task], output)
    small = run.compact("kind", x[:4])
    torch.testing.assert_close(small(x), run.predict(x)["kind"])
    assert sm.parameter_count(small) < sm.parameter_count(run.model)


def test_a_pretrained_encoder_is_masked_and_compacted_without_training() -> None:
    model = make()
    masks = sm.fisher_masks(model, batches, keep=0.5, granularity="channel", estimator="sample")
    for task in model.tasks:
        with masks.applied(model, task):
            expected = model(x)[task].detach()
        small = sm.compact(model, masks, task=task, example_inputs=x[:4])
        torch.testing.assert_close(small(x), expected)
        assert sm.parameter_count(small) < sm.parameter_count(model)
