"""`compile=True`: training equals that of the plain model up to rounding, resumes bit for bit, or is refused."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training_toys import loader, own_loaders, quiet, shared, tasks

import sparsemtl as sm
from sparsemtl.balancing import BALANCERS
from sparsemtl.errors import ParameterError, SparseMTLWarning
from sparsemtl.training import compiling

slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"execution": "sliced"}, "execution='sliced' runs parts"),
        ({"balancing": "mgda-ub"}, "reads the output of 'encoder'"),
    ],
)
def test_combinations_that_it_excludes_are_refused_at_the_start(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        quiet(compile=True, epochs=1, **options).fit(loader(), loader())


class Branching(nn.Module):
    """Computes otherwise for some values, which no graph can."""

    out_features = 5

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if x.sum() > 0 else -self.layer(x)


@slow
def test_a_model_that_torch_cannot_compile_is_refused_at_the_start(tmp_path: Path) -> None:
    trainer = quiet(sm.SharedBottom(Branching(), tasks()), compile=True, folder=tmp_path / "run")
    with pytest.raises(ParameterError, match=r"torch.compile cannot compile SharedBottom: .*[Bb]ranching"):
        trainer.fit(loader(), loader())
    assert not (tmp_path / "run" / "checkpoints").exists()


CASES: dict[str, dict[str, Any]] = {
    "dense": {},
    "masks, norms and dropout": {"sharing": sm.FisherSharing(keep=0.5, warmup=0, estimator="efs")},
    "rows of gradients": {"balancing": "upgrad"},
    "gramian": {},
    "double": {"precision": "64-true", "accumulate": 2, "clip_norm": 0.1},
    "bf16": {"precision": "bf16-mixed"},
    "soft masks": {"sharing": sm.SoftMaskSharing(linear=True)},
}


def trained(compile: bool, name: str, folder: Path | None = None, epochs: int = 2) -> sm.Trainer:
    options = dict(CASES[name])
    if name == "gramian":
        options["balancing"] = BALANCERS.build("upgrad", gradients="gramian")
    model = shared(norm="norms" in name)
    return quiet(model, compile=compile, optimizer="sgd", epochs=epochs, folder=folder, **options)


@slow
@pytest.mark.parametrize("name", CASES)
def test_it_trains_as_the_plain_model_does(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name not in ("dense", "double"):  # what differs between the cases is not the backend, which takes minutes
        monkeypatch.setattr(compiling, "CompiledModel", partial(sm.CompiledModel, backend="aot_eager"))
    found = [trained(compile, name).fit(loader(44), loader()) for compile in (False, True)]
    plain, compiled = ({n: w.double() for n, w in trainer.model.state_dict().items()} for trainer in found)
    close = {"rtol": 0.02, "atol": 0.02} if name == "bf16" else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(compiled, plain, **close)


@slow
def test_tasks_with_data_of_their_own_train_too() -> None:
    data = own_loaders({"a": 12, "b": 10})
    found = [quiet(compile=compile, epochs=2).fit(data, own_loaders({"a": 12, "b": 10})) for compile in (False, True)]
    plain, compiled = (dict(trainer.model.state_dict()) for trainer in found)
    torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)


@slow
def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(tmp_path: Path) -> None:
    name = "masks, norms and dropout"
    whole = trained(True, name, tmp_path / "whole").fit(loader(44), loader())
    trained(True, name, tmp_path / "run", epochs=1).fit(loader(44), loader())
    torch._dynamo.reset()
    rest = trained(True, name, tmp_path / "run").fit(loader(44), loader(), resume=True)
    for key, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, rest.model.state_dict()[key])


@slow
def test_networks_with_factors_on_outputs_run_as_they_are_with_a_warning() -> None:
    trainer = quiet(compile=True, epochs=1, sharing=sm.TaskRoutingSharing(keep=0.5))
    with pytest.warns(SparseMTLWarning, match="runs uncompiled: the networks of its tasks have factors on outputs"):
        trainer.fit(loader(), loader())


@slow
def test_a_compacted_network_compiles() -> None:
    trainer = quiet(
        shared(), epochs=1, sharing=sm.FisherSharing(keep=0.5, warmup=0, estimator="efs", granularity="neuron")
    )
    trainer.fit(loader(), loader())
    small, (x, _) = trainer.compact("a"), next(iter(loader()))
    torch._dynamo.reset()  # code of other tests
    torch.testing.assert_close(torch.compile(small, dynamic=False)(x), small(x))
