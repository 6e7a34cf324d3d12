from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pytest
import torch
from annotated_types import Gt, Le, Lt
from hypothesis import given, settings
from hypothesis import strategies as st

import sparsemtl as sm
from sparsemtl.errors import ParameterError
from sparsemtl.registry.parameters import (
    Count,
    Fraction,
    Natural,
    NonNegative,
    ParameterInfo,
    Positive,
    Share,
    describe,
    fits,
    parameters_of,
    validated,
)

if TYPE_CHECKING:
    from torchmetrics import Metric

Mode = Literal["forward", "gradient"]


class Pruner:
    """A class with a parameter of every kind."""

    @validated
    def __init__(
        self,
        model: object,
        keep: Fraction = 0.3,
        *,
        mode: Mode = "forward",
        steps: Count | None = None,
        widths: Sequence[int] = (8, 4),
        metrics: Mapping[str, Metric] | None = None,
        strict: bool = True,
        name: str = "pruner",
    ) -> None:
        """Make one."""
        self.keep = keep
        self.steps = steps


class MyPruner(Pruner):
    pass


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep": 1.5}, "'keep' parameter of Pruner must be a float in (0, 1]. Got 1.5 instead."),
        ({"keep": 0}, "'keep' parameter of Pruner must be a float in (0, 1]. Got 0 instead."),
        ({"keep": math.nan}, "'keep' parameter of Pruner must be a float in (0, 1]. Got nan instead."),
        ({"keep": "much"}, "'keep' parameter of Pruner must be a float in (0, 1]. Got 'much' instead."),
        ({"keep": True}, "'keep' parameter of Pruner must be a float in (0, 1]. Got True instead."),
        (
            {"mode": "sideways"},
            "'mode' parameter of Pruner must be one of 'forward', 'gradient'. Got 'sideways' instead.",
        ),
        ({"steps": 0}, "'steps' parameter of Pruner must be an int in [1, inf) or None. Got 0 instead."),
        (
            {"steps": 2**31},
            "'steps' parameter of Pruner must be an int in [1, inf) or None. Got 2147483648 instead. "
            "Such numbers are below 2^31.",
        ),
        ({"steps": 2.0}, "'steps' parameter of Pruner must be an int in [1, inf) or None. Got 2.0 instead."),
        ({"widths": 8}, "'widths' parameter of Pruner must be a sequence of ints. Got 8 instead."),
        ({"widths": "84"}, "'widths' parameter of Pruner must be a sequence of ints. Got '84' instead."),
        ({"strict": 1}, "'strict' parameter of Pruner must be a bool. Got 1 instead."),
        ({"name": None}, "'name' parameter of Pruner must be a string. Got None instead."),
    ],
)
def test_a_wrong_argument_is_named_with_its_owner_its_range_and_its_value(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ParameterError) as caught:
        Pruner(object(), **arguments)
    assert str(caught.value) == f"The {message}"


def test_the_message_is_that_of_the_librarys_classes() -> None:
    with pytest.raises(ParameterError) as caught:
        sm.FisherSharing(keep=1.5)
    assert str(caught.value) == "The 'keep' parameter of FisherSharing must be a float in (0, 1]. Got 1.5 instead."


def test_arguments_by_position_are_checked_too_and_the_class_made_is_named() -> None:
    with pytest.raises(ParameterError, match=r"The 'keep' parameter of MyPruner must be a float in \(0, 1\]"):
        MyPruner(object(), 2)


def test_arguments_that_fit_arrive_as_they_are() -> None:
    pruner = Pruner(None, 1, mode="gradient", steps=3, widths=[1], metrics={}, strict=False, name="")
    assert (pruner.keep, pruner.steps) == (1, 3)
    assert Pruner(None).keep == 0.3


def test_a_missing_or_unknown_argument_is_pythons_own_error() -> None:
    with pytest.raises(TypeError, match="missing a required argument: 'model'"):
        Pruner()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unexpected keyword argument 'kep'"):
        Pruner(None, kep=0.5)  # type: ignore[call-arg]


def test_a_checked_constructor_looks_like_the_plain_one() -> None:
    assert list(inspect.signature(Pruner).parameters)[:3] == ["model", "keep", "mode"]
    assert Pruner.__init__.__doc__ == "Make one."
    assert Pruner.__init__.__name__ == "__init__"


RANGES: dict[Any, Callable[[float], bool]] = {
    Fraction: lambda x: 0 < x <= 1,
    Share: lambda x: 0 <= x < 1,
    Positive: lambda x: x > 0,
    NonNegative: lambda x: x >= 0,
    Count: lambda x: isinstance(x, int) and x >= 1,
    Natural: lambda x: isinstance(x, int) and x >= 0,
    Annotated[float, Gt(-2), Lt(3)]: lambda x: -2 < x < 3,
}
numbers = st.one_of(st.floats(), st.integers(), st.sampled_from([0.0, -0.0, 1.0, 0, 1, 1 - 2**-53]))


@settings(deadline=None, max_examples=300)
@given(value=numbers, hint=st.sampled_from(list(RANGES)))
def test_a_number_fits_where_it_lies_in_the_range(value: float, hint: Any) -> None:
    assert fits(value, hint) == RANGES[hint](value)


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (3, float, True),
        (True, float, False),
        (True, int, False),
        (3.0, int, False),
        (np.float64(0.5), Fraction, True),
        (True, bool, True),
        (0, bool, False),
        ("a", str, True),
        (1, str, False),
        (None, None, True),
        (0, None, False),
        (None, Count | None, True),
        (0, Count | None, False),
        (7, int | Sequence[str], True),
        (["a", "b"], int | Sequence[str], True),
        (("a",), int | Sequence[str], True),
        (np.array(["a", "b"]), int | Sequence[str], True),
        (torch.Size([1, 8, 8]), Sequence[int], True),
        ("ab", int | Sequence[str], False),
        (b"ab", Sequence[int], False),
        ({"a": 1}, Sequence[str], False),
        ({"a", "b"}, Sequence[str], False),
        (2.5, int | Sequence[str], False),
        ("forward", Mode, True),
        ("Forward", Mode, False),
        (["forward"], Mode, False),
    ],
)
def test_what_fits(value: object, hint: Any, expected: bool) -> None:
    assert fits(value, hint) is expected


@pytest.mark.parametrize("hint", [Any, object, torch.nn.Module, Callable[[int], int], Mapping[str, int], list[int]])
def test_an_annotation_that_cannot_be_checked_passes_everything(hint: Any) -> None:
    assert fits(object(), hint)


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (Fraction, "a float in (0, 1]"),
        (Share, "a float in [0, 1)"),
        (Positive, "a float in (0, inf)"),
        (NonNegative, "a float in [0, inf)"),
        (Count, "an int in [1, inf)"),
        (Natural, "an int in [0, inf)"),
        (Annotated[float, Le(2)], "a float in (-inf, 2]"),
        (Annotated[int, "a remark"], "an int"),
        (float, "a float"),
        (int, "an int"),
        (bool, "a bool"),
        (str, "a string"),
        (None, "None"),
        (Mode, "one of 'forward', 'gradient'"),
        (Fraction | None, "a float in (0, 1] or None"),
        (str | Count, "a string or an int in [1, inf)"),
        (Sequence[Count], "a sequence of ints in [1, inf)"),
        (int | Sequence[str], "an int or a sequence of strings"),
        (torch.nn.Module, "Module"),
        (Any, "any value"),
        (Sequence[Any], "a sequence"),
        (Mapping[str, Any] | None, "a mapping or None"),
        (list[str] | None, "a list of strings or None"),
        (Mapping[str, str | Mapping[str, Any]], "a mapping to strings or mappings"),
        (Sequence[Mode] | None, "a sequence of any of 'forward', 'gradient' or None"),
        (Sequence[str | Count], "a sequence of strings or ints in [1, inf)"),
        (Sequence[Sequence[int]], "a sequence of sequences of ints"),
        (Mapping[str, Mapping[str, Any] | None] | None, "a mapping to mappings or None, or None"),
        (
            str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]],
            "a string, a mapping, or a sequence of strings or mappings",
        ),
    ],
)
def test_an_annotation_in_words(hint: Any, words: str) -> None:
    assert describe(hint) == words


def test_what_a_configuration_can_set_are_the_keywords() -> None:
    assert parameters_of(Pruner) == [
        ParameterInfo("mode", "one of 'forward', 'gradient'", "forward", False),
        ParameterInfo("steps", "an int in [1, inf) or None", None, False),
        ParameterInfo("widths", "a sequence of ints", (8, 4), False),
        ParameterInfo("metrics", "any value", None, False),
        ParameterInfo("strict", "a bool", True, False),
        ParameterInfo("name", "a string", "pruner", False),
    ]


def test_a_function_is_described_like_a_class() -> None:
    def build(given: object, *, lr: Positive, decay: NonNegative = 0.0) -> None:
        """Never called."""

    assert parameters_of(build) == [
        ParameterInfo("lr", "a float in (0, inf)", None, True),
        ParameterInfo("decay", "a float in [0, inf)", 0.0, False),
    ]
    assert parameters_of(MyPruner) == parameters_of(Pruner)
