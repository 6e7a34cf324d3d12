"""Which class of the auxiliary task each class of a small task is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sparsemtl import Classification, Regression, Source
from sparsemtl.architectures.damtl.class_map import ClassMapping, class_mapping, class_mappings
from sparsemtl.errors import ParameterError

EVERYTHING = ["cat", "Polar bear", "sea-lion", "car", "dog"]


def found(classes: int | Sequence[str], auxiliary: int | Sequence[str], given: Mapping[Any, Any] | None = None) -> Any:
    return class_mapping(Classification("small", classes), Classification("all", auxiliary), given).indices.tolist()


@given(order=st.permutations(range(5)), size=st.integers(2, 5))
def test_classes_are_found_by_their_names_in_any_order(order: list[int], size: int) -> None:
    chosen = order[:size]
    assert found([EVERYTHING[i] for i in chosen], EVERYTHING) == chosen


def test_classes_without_names_are_the_same_by_their_numbers_if_there_are_as_many() -> None:
    assert found(5, 5) == [0, 1, 2, 3, 4]
    assert found(3, ["0", "2", "1"]) == [0, 2, 1]


@pytest.mark.parametrize("auxiliary", [6, ["0", "1", "2", "3"], ["0", "cat"], 2])
def test_numbers_of_some_classes_only_are_no_names(auxiliary: int | list[str]) -> None:
    count = auxiliary if isinstance(auxiliary, int) else len(auxiliary)
    message = (
        rf"task 'small': its 3 classes have numbers for names, so that 0, 1, 2 may be any of the {count} of "
        r"the auxiliary task 'all': 0, .*\. Give the classes their names, or say .* in `class_map`, as in .small: .0"
    )
    with pytest.raises(ParameterError, match=message):
        found(3, auxiliary)
    with pytest.raises(ParameterError, match=r"so that 1 may"):
        found(3, auxiliary, {0: 1, "2": None})
    assert found(3, auxiliary, {0: 1, 1: 0, "2": None}) == [1, 0, -1]


def test_numbers_that_are_given_as_names_are_names() -> None:
    assert found(["3", "5"], 10) == [3, 5]
    assert found(["0", "1"], 10) == [0, 1]


@pytest.mark.parametrize("name", ["polar_bear", "POLAR BEAR", " Polar--Bear ", "polar.bear"])
def test_case_blanks_and_signs_do_not_matter_if_no_name_is_the_same(name: str) -> None:
    assert found([name, "dog"], EVERYTHING) == [1, 4]


def test_the_very_same_name_goes_before_one_that_differs_in_case() -> None:
    assert found(["Cat", "cat"], ["cat", "Cat", "CAT"]) == [1, 0]


def test_letters_of_other_scripts_count() -> None:
    assert found(["ÖL", "кот"], ["кот", "öl", "ol"]) == [1, 0]


def test_a_name_that_may_be_two_classes_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"the auxiliary task 'all' lacks its class 'CAT'"):
        found(["CAT", "dog"], ["cat", "Cat", "dog"])
    assert found(["CAT", "dog"], ["cat", "Cat", "dog"], {"CAT": "Cat"}) == [1, 2]


def test_a_class_that_is_missing_is_named_with_the_nearest_one_and_the_way_out() -> None:
    message = (
        r"^task 'small': the auxiliary task 'all' lacks its class 'cats' \(perhaps 'cat'\)\. Known: cat, Polar bear, "
        r"sea-lion, car, dog\. Say which classes these are in `class_map`, as in \{small: \{cats: \.\.\.\}\}, with "
        r"null for one that has no counterpart\.$"
    )
    with pytest.raises(ParameterError, match=message):
        found(["cats", "dog"], EVERYTHING)


def test_all_classes_that_are_missing_are_named_at_once_and_near_names_only_where_there_are_any() -> None:
    with pytest.raises(ParameterError, match=r"lacks its classes 'owl', 'Dogs' \(perhaps 'dog'\), 'worm'\. Known"):
        found(["owl", "cat", "Dogs", "worm"], ["crow", "cat", "dog"])
    with pytest.raises(ParameterError, match=r"lacks its class 'CAT' \(perhaps 'cat' or 'Cat'\)\."):
        found(["CAT", "dog"], ["cat", "Cat", "dog"])


@pytest.mark.parametrize("given", [{"a": "dog", "b": None}, {0: 4, 1: None}, {"a": 4, 1: None}, {0: "dog", "b": None}])
def test_classes_are_given_by_name_or_index_and_null_for_none(given: dict[Any, Any]) -> None:
    assert found(["a", "b", "cat"], EVERYTHING, given) == [4, -1, 0]


def test_what_is_given_goes_before_the_name() -> None:
    assert found(["cat", "dog"], EVERYTHING, {"cat": "dog"}) == [4, 4]


def test_a_number_is_a_name_before_it_is_an_index() -> None:
    assert found(["3", "4"], ["4", "3", "2"], {"3": 4, 4: 2}) == [0, 2]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cta": "cat"}, r"class_map: task 'small': unknown class 'cta'\. Did you mean 'cat'\? Known: cat, dog"),
        ({"cat": "dgo"}, r"class_map: task 'all': unknown class 'dgo'\. Did you mean 'dog'\?"),
        ({2: "cat"}, r"class_map: task 'small': unknown class 2"),
        ({"cat": 5}, r"class_map: task 'all': unknown class 5"),
        ({"cat": -1}, r"class_map: task 'all': unknown class -1"),
        ({"cat": 0.0}, r"class_map: task 'all': unknown class 0\.0"),
    ],
)
def test_what_is_not_there_cannot_be_given(given: dict[Any, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        found(["cat", "dog"], EVERYTHING, given)


def test_the_classes_in_common_are_those_with_a_counterpart_in_the_tasks_order() -> None:
    mapping = ClassMapping(torch.tensor([4, -1, 0, -1, 2]))
    assert mapping.mapped.tolist() == [0, 2, 4]
    assert mapping.counterparts.tolist() == [4, 0, 2]


def test_counterparts_are_saved_with_a_model() -> None:
    mapping, other = ClassMapping(torch.tensor([4, -1, 0])), ClassMapping(torch.tensor([1, -1, 2]))
    other.load_state_dict(mapping.state_dict())
    assert other.indices.tolist() == [4, -1, 0]
    assert other.counterparts.tolist() == [4, 0]
    assert other.mapped.tolist() == [0, 2]


def source(head: nn.Module | None = None) -> Source:
    return Source(Classification("all", EVERYTHING), head or nn.Linear(3, 5))


def tasks() -> dict[str, Any]:
    return {
        "pets": Classification("pets", ["dog", "cat"]),
        "size": Regression("size"),
        "zoo": Classification("zoo", ["sea lion", "polar bear"]),
    }


def test_only_classifications_without_a_head_of_their_own_have_counterparts() -> None:
    assert {name: mapping.indices.tolist() for name, mapping in class_mappings(tasks(), source(), {}, ()).items()} == {
        "pets": [4, 0],
        "zoo": [2, 1],
    }
    assert set(class_mappings(tasks(), source(), {}, {"zoo": nn.Identity()})) == {"pets"}


@pytest.mark.parametrize("unknown", [None, source(nn.Sequential(nn.Linear(3, 5)))], ids=["no source", "no linear head"])
def test_without_a_last_layer_there_is_nothing_to_map_to(unknown: Source | None) -> None:
    assert class_mappings(tasks(), unknown, {}, ()) == {}
    with pytest.raises(ParameterError, match=r"class_map: the auxiliary network's last layer is not known.*`source`"):
        class_mappings(tasks(), unknown, {"pets": {"dog": "cat"}}, ())


def test_a_map_of_an_unknown_task_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"class_map: unknown task 'pet'\. Did you mean 'pets'\?"):
        class_mappings(tasks(), source(), {"pet": {}}, ())


def test_a_task_that_is_mapped_to_null_has_no_counterparts_whatever_its_classes_are() -> None:
    given: dict[str, Any] = {"pets": None, "size": None}
    assert set(class_mappings(tasks(), source(), given, ())) == {"zoo"}
    strange = {"strange": Classification("strange", ["unheard of", "nowhere"])}
    assert class_mappings(strange, source(), {"strange": None}, ()) == {}
    with pytest.raises(ParameterError, match="lacks its classes 'unheard of', 'nowhere'"):
        class_mappings(strange, source(), {}, ())


@pytest.mark.parametrize("owner", ["size", "zoo"])
def test_a_map_that_would_not_be_used_is_refused(owner: str) -> None:
    with pytest.raises(ParameterError, match=f"class_map: task '{owner}'"):
        class_mappings(tasks(), source(), {owner: {"sea lion": "cat"}}, {"zoo": nn.Identity()})
