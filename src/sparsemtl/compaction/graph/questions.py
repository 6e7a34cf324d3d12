"""Questions that a model asks about the sizes of its inputs, and those that one sample alone answers differently."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx

from sparsemtl.compaction.checks import check_answer
from sparsemtl.compaction.graph.network import Network

_SIZES = (operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge)

Number = int | tuple[str, int]
"""Number, or the size of an input on an axis."""


@dataclass(frozen=True)
class Question:
    """Comparison of two numbers."""

    compare: Callable[[Any, Any], bool]
    one: Number
    other: Number

    def answer(self, samples: int) -> bool | None:
        """Return the answer for a number of samples, None if it depends on anything else."""
        numbers = [samples if isinstance(each, tuple) and each[1] == 0 else each for each in (self.one, self.other)]
        return bool(self.compare(*numbers)) if all(isinstance(each, int) for each in numbers) else None

    def is_lone(self) -> bool:
        """Return whether one sample has another answer than all other numbers of samples."""
        constant = max(each for each in (self.one, self.other, 0) if isinstance(each, int))
        others = {self.answer(samples) for samples in range(2, constant + 3)}
        return len(others) == 1 and others == {not self.answer(1)}


def needless(network: Network, alone: Network) -> list[fx.Node]:
    """Return the checks of questions that one sample answers differently, if it is asked no question beside them.

    Args:
        network: graph of a model on several samples.
        alone: graph of the model on one sample.
    """
    ours, theirs = _checks(network), _checks(alone)
    lone = {question for question in ours if question is not None and question.is_lone()}
    same = all(each in lone or (each in ours and ours[each].args[1] == node.args[1]) for each, node in theirs.items())
    return [ours[each] for each in lone] if same and None not in theirs else []


def has_lone(network: Network) -> bool:
    """Return whether a graph is right for several samples and not for one."""
    return any(question is not None and question.is_lone() for question in _checks(network))


def _checks(network: Network) -> dict[Question | None, fx.Node]:
    """Return the questions whose answers a graph checks; None for one about other numbers than sizes of inputs."""
    return {_question(node.args[0]): node for node in network.graph.nodes if node.target is check_answer}


def _question(asked: Any) -> Question | None:
    numbers = [_number(each) for each in asked.args] if asked.target in _SIZES else []
    known = len(numbers) == 2 and None not in numbers
    return Question(asked.target, *numbers) if known else None  # type: ignore[arg-type]


def _number(value: object) -> Number | None:
    if isinstance(value, int):
        return value
    if not isinstance(value, fx.Node) or value.target != "size" or len(value.args) != 2:
        return None
    source, axis = value.args
    known = isinstance(source, fx.Node) and source.op == "placeholder" and isinstance(axis, int)
    return (str(source.target), axis) if known else None  # type: ignore[union-attr, return-value]
