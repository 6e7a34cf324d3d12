"""Where a graph first gives something else than the model that it was traced from."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn

from sparsemtl.compaction.inputs import Inputs
from sparsemtl.compaction.verification import difference, snapshot

SAME = 1e-8
"""Outputs of a layer that differ by less, as a fraction of their spread, are the same in double precision."""


def first_difference(model: nn.Module, graph: fx.GraphModule, inputs: Inputs, prefix: str) -> str:
    """The name of the first layer that gives something else in a graph than in the model, "" if there is none.

    Args:
        model: the model.
        graph: its graph before anything was cut.
        inputs: what to run both on, in their precision.
        prefix: what names of the model's layers begin with and those of the graph do not.
    """
    expected: dict[str, Any] = {}
    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: expected.setdefault(name, snapshot(output)))
        for name, module in model.named_modules()
    ]
    try:
        inputs.call(model)
    finally:
        for hook in hooks:
            hook.remove()
    walk = _Walk(graph, {name.removeprefix(prefix): output for name, output in expected.items()})
    try:
        walk.run(*inputs.mapped(Tensor.clone).named(model).values())
    except Exception:  # what cannot go on has gone wrong before
        return walk.wrong or walk.last
    return walk.wrong


class _Walk(fx.Interpreter):
    """Runs a graph and compares what its layers give.

    Args:
        graph: the graph.
        expected: name of a layer -> what it gives.
    """

    def __init__(self, graph: fx.GraphModule, expected: dict[str, Any]) -> None:
        super().__init__(graph)
        self.expected = expected
        self.last, self.wrong = "", ""

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Run a layer."""
        self.last = str(target)
        output = super().call_module(target, args, kwargs)
        if not self.wrong and target in self.expected and difference(self.expected.pop(target), output) > SAME:
            self.wrong = str(target)
        return output
