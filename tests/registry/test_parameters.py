from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict

import numpy as np
import pytest
import torch
from annotated_types import Gt, Le, Lt
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import each
from typing_extensions import Doc, Unpack

import sparsemtl as sm
from sparsemtl.errors import ParameterError
from sparsemtl.registry.checking import fits
from sparsemtl.registry.describe import describe
from sparsemtl.registry.parameters import (
    Count,
    Counts,
    Default,
    Fraction,
    Natural,
    NonNegative,
    Parameter,
    Positive,
    Share,
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


@each(
    ("arguments", "message"),
    [
        ({"keep": 1.5}, "'keep' parameter of Pruner must be a float in (0, 1]. Got 1.5 instead."),
        ({"keep": 0}, "'keep' parameter of Pruner must be a float in (0, 1]. Got 0 instead."),
        (
            {"keep": math.nan},
            "'keep' parameter of Pruner must be a float in (0, 1]. Got nan instead. Numbers are finite.",
        ),
        ({"keep": "much"}, "'keep' parameter of Pruner must be a float in (0, 1]. Got 'much' instead."),
        ({"keep": True}, "'keep' parameter of Pruner must be a float in (0, 1]. Got True instead."),
        (
            {"mode": "sideways"},
            "'mode' parameter of Pruner must be one of 'forward', 'gradient'. Got 'sideways' instead.",
        ),
        (
            {"mode": "foward"},
            "'mode' parameter of Pruner must be one of 'forward', 'gradient'. Got 'foward' instead. "
            "Did you mean 'forward'?",
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
        ({"widths": [8, 2.5]}, "'widths' parameter of Pruner must be a sequence of ints. Got [8, 2.5] instead."),
        (
            {"widths": [8, 2**63]},
            "'widths' parameter of Pruner must be a sequence of ints. Got [8, 9223372036854775808] instead. "
            "Such numbers are below 2^63.",
        ),
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
    assert str(caught.value) == (
        "The 'keep' parameter of FisherSharing must be a float in (0, 1] or a mapping to floats in (0, 1]. "
        "Got 1.5 instead."
    )


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
    with pytest.raises(TypeError, match=r"Pruner\(\): .*unexpected keyword argument 'kep'. Did you mean 'keep'\?"):
        Pruner(None, kep=0.5)  # type: ignore[call-arg]


def test_a_checked_constructor_looks_like_the_plain_one() -> None:
    assert list(inspect.signature(Pruner).parameters)[:3] == ["model", "keep", "mode"]
    assert Pruner.__init__.__doc__ == "Make one."
    assert Pruner.__init__.__name__ == "__init__"


RANGES: dict[Any, Callable[[float], bool]] = {
    Fraction: lambda x: 0 < x <= 1,
    Share: lambda x: 0 <= x < 1,
    Positive: lambda x: 0 < x < math.inf,
    NonNegative: lambda x: 0 <= x < math.inf,
    Count: lambda x: isinstance(x, int) and 1 <= x < 2**31,
    Natural: lambda x: isinstance(x, int) and 0 <= x < 2**63,
    Annotated[float, Gt(-2), Lt(3)]: lambda x: -2 < x < 3,
}
numbers = st.one_of(st.floats(), st.integers(), st.sampled_from([0.0, -0.0, 1.0, 0, 1, 1 - 2**-53]))


@settings(deadline=None)
@given(value=numbers, hint=st.sampled_from(list(RANGES)))
def test_a_number_fits_where_it_lies_in_the_range(value: float, hint: Any) -> None:
    assert fits(value, hint) == RANGES[hint](value)


@each(
    ("value", "hint", "expected"),
    [
        (3, float, True),
        (True, float, False),
        (True, int, False),
        (3.0, int, False),
        (np.int64(3), int, True),
        (np.int64(0), Count, False),
        (np.bool_(True), int, False),
        (np.array([1, 2]), Sequence[Count], True),
        (np.array([1, 0]), Sequence[Count], False),
        (torch.ones(2), Sequence[float], True),
        (torch.nn.ModuleDict(), Mapping[str, torch.nn.Module], True),
        ({"a": 1}, Mapping[str, int], True),
        ({"a": 1.5}, Mapping[str, int], False),
        ([("a", 1)], Mapping[str, int], False),
        ((1,), list[int], False),
        ([1], list[int], True),
        ((1, 2), Counts, True),
        ([], Counts, False),
        ([0], Counts, False),
        ([1.5], list[int], False),
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


@each("hint", [Any, object, torch.nn.Module, Callable[[int], int], type[int], str | torch.nn.Module])
def test_an_annotation_that_cannot_be_checked_passes_everything(hint: Any) -> None:
    assert fits(object(), hint)


@each(
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
        (Counts | None, "a non-empty sequence of ints in [1, inf) or None"),
        (Mapping[str, Mapping[str, Any] | None] | None, "a mapping to mappings or None, or None"),
        (
            str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]],
            "a string, a mapping, or a sequence of strings or mappings",
        ),
    ],
)
def test_an_annotation_in_words(hint: Any, words: str) -> None:
    assert describe(hint) == words


def told(target: Callable[..., Any]) -> list[tuple[str, str, Any]]:
    return [(parameter.name, parameter.kind, parameter.default) for parameter in parameters_of(target).values()]


def test_what_a_configuration_can_set_are_the_keywords() -> None:
    assert told(Pruner) == [
        ("mode", "one of 'forward', 'gradient'", "forward"),
        ("steps", "an int in [1, inf) or None", None),
        ("widths", "a sequence of ints", (8, 4)),
        ("metrics", "a mapping or None", None),
        ("strict", "a bool", True),
        ("name", "a string", "pruner"),
    ]


def test_a_function_is_described_like_a_class() -> None:
    def build(given: object, *, lr: Positive, decay: NonNegative = 0.0) -> None:
        """Never called."""

    assert told(build) == [("lr", "a float in (0, inf)", ...), ("decay", "a float in [0, inf)", 0.0)]
    assert [parameter.required for parameter in parameters_of(build).values()] == [True, False]
    assert parameters_of(MyPruner) == parameters_of(Pruner)


class Schedule(TypedDict, total=False):
    reach_at: Annotated[Count, Doc("Epoch of the last change.")]
    warmup: Annotated[Natural, Default(1), Doc("Dense epochs.")]
    metrics: Annotated[Mapping[str, Metric] | None, Default(None), Doc("Metrics of torchmetrics.")]


class Scheduled:
    """A class that takes the keys of a `TypedDict` beside its own parameters."""

    @validated
    def __init__(self, *, lambda_: Annotated[Positive, Doc("Strength.")] = 2.0, **schedule: Unpack[Schedule]) -> None:
        self.lambda_ = lambda_
        self.schedule = schedule


def test_a_parameter_has_the_meaning_that_stands_beside_it() -> None:
    assert parameters_of(Scheduled) == {
        "lambda": Parameter("lambda", Positive, 2.0, "Strength.", "lambda_"),
        "reach_at": Parameter("reach_at", Count, ..., "Epoch of the last change.", "reach_at"),
        "warmup": Parameter("warmup", Natural, 1, "Dense epochs.", "warmup"),
        "metrics": Parameter("metrics", Mapping[str, Any] | None, None, "Metrics of torchmetrics.", "metrics"),
    }
    assert list(parameters_of(Schedule)) == ["reach_at", "warmup", "metrics"]


def test_the_keys_of_a_typed_dict_are_checked_and_their_defaults_filled_in() -> None:
    assert Scheduled(reach_at=3).schedule == {"reach_at": 3, "warmup": 1, "metrics": None}
    assert Scheduled(reach_at=3, warmup=0, lambda_=1).schedule == {"reach_at": 3, "warmup": 0, "metrics": None}
    with pytest.raises(ParameterError) as caught:
        Scheduled(reach_at=3, warmup=-1)
    assert str(caught.value) == "The 'warmup' parameter of Scheduled must be an int in [0, inf). Got -1 instead."


def test_a_missing_or_unknown_key_of_a_typed_dict_is_pythons_own_error() -> None:
    with pytest.raises(TypeError, match=r"Scheduled\(\) missing a required argument: 'reach_at'"):
        Scheduled()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"Scheduled\(\) got an unexpected .* 'warmpu'\. Did you mean 'warmup'\?"):
        Scheduled(reach_at=3, warmpu=1)  # type: ignore[call-arg]


def test_a_function_is_checked_under_its_own_name() -> None:
    @validated
    def build(given: object, *, lr: Positive) -> float:
        """Return the learning rate."""
        return lr

    assert build(None, lr=0.5) == 0.5
    with pytest.raises(ParameterError, match=r"^The 'lr' parameter of build must be a float in \(0, inf\)\. Got 0"):
        build(None, lr=0)
