"""Compiled models compute with the weights of the context that they are called in."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

import sparsemtl as sm
from sparsemtl.errors import MaskError, ParameterError, SparseMTLWarning
from sparsemtl.networks.compiled import CompiledModel
from sparsemtl.networks.outputs import masked_outputs


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))


def gradients(model: nn.Module, output: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    output.square().sum().backward(retain_graph=True)
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_tasks_and_later_masks_run_the_same_code_on_their_own_weights() -> None:
    model, x = network(), torch.randn(8, 4)
    twin = copy.deepcopy(model)
    run = CompiledModel(model, backend="eager")
    for seed in range(2):
        kept = torch.rand(6, 4, generator=torch.Generator().manual_seed(seed)) < 0.5
        masks = sm.TaskMasks({"a": {"0.weight": kept}, "b": {"0.weight": ~kept}})
        for task in ("a", "b"):
            with masks.applied(model, task):
                output = run(x)
                found = [gradients(model, output), gradients(model, output)]  # of one graph
            with masks.applied(twin, task):
                expected = twin(x)
                wanted = gradients(twin, expected)
            assert torch.equal(output, expected)
            for each in found:
                torch.testing.assert_close(each, wanted, rtol=0, atol=0)
    assert torch.equal(model[1].running_mean, twin[1].running_mean)  # type: ignore[arg-type]
    assert vars(model[0]).keys() == vars(network()[0]).keys()


def test_without_gradients_and_with_hooks_the_model_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = network().eval(), torch.randn(3, 4)
    run = CompiledModel(model)
    monkeypatch.setattr(torch, "compile", None)
    with torch.no_grad():
        assert torch.equal(run(x), model(x))
    with masked_outputs({model[0]: torch.tensor([True, False, True, True, False, True])}):
        with pytest.warns(SparseMTLWarning, match="runs uncompiled: the networks of its tasks have factors"):
            assert torch.equal(run(x), model(x))
        assert torch.equal(run(x), model(x))  # the warning comes once


def test_it_is_copied_and_pickled_without_its_code() -> None:
    run = CompiledModel(network(), backend="eager")
    run(torch.randn(3, 4))
    for made in (copy.deepcopy(run), pickle.loads(pickle.dumps(run))):
        assert made._function is None


def test_what_cannot_be_compiled_is_refused() -> None:
    with pytest.raises(ParameterError, match="GRU cannot be compiled"):
        CompiledModel(nn.Sequential(nn.GRU(2, 2)))
    with pytest.raises(MaskError, match="is compiled"):
        CompiledModel(nn.Sequential(torch.compile(nn.Linear(2, 2))))  # type: ignore[arg-type]
