from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
from torch import nn

from sparsemtl.networks.modes import eval_mode, train_mode


def mixed() -> nn.Module:
    """A model in train mode with a frozen norm, as when a pretrained encoder keeps its statistics."""
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)))
    model[1].eval()
    model[2].training = False
    return model


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


@pytest.mark.parametrize(("context", "mode"), [(eval_mode, False), (train_mode, True)])
def test_inside_every_module_has_the_mode_and_afterwards_its_own(
    context: Callable[[nn.Module], AbstractContextManager[None]], mode: bool
) -> None:
    model = mixed()
    before = modes(model)
    assert len(set(before)) == 2
    with context(model):
        assert set(modes(model)) == {mode}
    assert modes(model) == before


@pytest.mark.parametrize("context", [eval_mode, train_mode])
def test_an_error_inside_puts_the_modes_back(context: Callable[[nn.Module], AbstractContextManager[None]]) -> None:
    model = mixed()
    before = modes(model)
    with pytest.raises(KeyError), context(model):
        raise KeyError
    assert modes(model) == before


def test_modes_nest() -> None:
    model = mixed()
    before = modes(model)
    with eval_mode(model):
        with train_mode(model):
            assert all(modes(model))
        assert not any(modes(model))
    assert modes(model) == before
