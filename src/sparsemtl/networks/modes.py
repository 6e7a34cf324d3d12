"""Train and eval modes, set for a while and put back module by module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode; afterwards every module has the mode that it had."""
    with _modes(model, training=False):
        yield


@contextmanager
def train_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into train mode; afterwards every module has the mode that it had."""
    with _modes(model, training=True):
        yield


@contextmanager
def _modes(model: nn.Module, *, training: bool) -> Iterator[None]:
    before = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in before:
            module.training = mode
