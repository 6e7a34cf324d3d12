"""Search for the first layer whose output differs between a graph and the model that it was traced from."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn

from sparsemtl.compaction.inputs import Inputs
from sparsemtl.compaction.verification.comparison import difference, snapshot

_SAME = 1e-8
"""Outputs of a layer that differ by less, as a fraction of their spread, are the same in double precision."""


def first_difference(model: nn.Module, graph: fx.GraphModule, inputs: Inputs, prefix: str) -> str:
    """Return the name of the first layer whose output in a graph differs from the model's, "" if there is none.

    Args:
        model: the model.
        graph: its graph before any channels were removed.
        inputs: inputs for both, in their precision.
        prefix: prefix of the names of the model's layers that those of the graph lack.
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
    """Interpreter of a graph that compares the outputs of its layers.

    Args:
        graph: the graph.
        expected: name of a layer -> its output.
    """

    def __init__(self, graph: fx.GraphModule, expected: dict[str, Any]) -> None:
        super().__init__(graph)
        self.expected = expected
        self.last, self.wrong = "", ""

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Run a layer."""
        self.last = str(target)
        output = super().call_module(target, args, kwargs)
        if not self.wrong and target in self.expected and difference(self.expected.pop(target), output) > _SAME:
            self.wrong = str(target)
        return output
