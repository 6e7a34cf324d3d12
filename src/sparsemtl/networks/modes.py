"""Train and eval mode inside a context, restored per module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Set eval mode inside the context; restore the mode of every module on exit."""
    with _modes(model, training=False):
        yield


@contextmanager
def train_mode(model: nn.Module) -> Iterator[None]:
    """Set train mode inside the context; restore the mode of every module on exit."""
    with _modes(model, training=True):
        yield


@contextmanager
def _modes(model: nn.Module, *, training: bool) -> Iterator[None]:
    before = [(module, module.training) for module in model.modules()]
    if any(mode != training for _, mode in before):  # setting the mode of a module takes as long as a small layer
        model.train(training)
    try:
        yield
    finally:
        for module, mode in before:
            if module.training != mode:
                module.training = mode
