"""Registries: a member is found by name, made with known parameters only, and configurable once it is added."""

from __future__ import annotations

import re
from typing import Any

import pytest
from loops import each

from sparsemtl import DenseSharing, FisherSharing
from sparsemtl.architectures import ARCHITECTURES
from sparsemtl.backbones import ENCODERS
from sparsemtl.balancing import BALANCERS
from sparsemtl.criteria import CRITERIA
from sparsemtl.data import DATASETS
from sparsemtl.errors import ConfigError, ParameterError, missing_extra, unknown_name
from sparsemtl.heads import HEADS
from sparsemtl.optim import OPTIMIZERS, PENALTIES, SCHEDULERS
from sparsemtl.registry.checking import fits
from sparsemtl.registry.parameters import Count, parameters_of, validated
from sparsemtl.registry.registry import Registry
from sparsemtl.runs.config import check
from sparsemtl.runs.schema import run_keys, training_keys
from sparsemtl.sharing import SHARING
from sparsemtl.study.grid import KEYS
from sparsemtl.tasks import TASKS
from sparsemtl.training.trainer import Trainer

ALL: list[Registry[Any]] = [
    ARCHITECTURES,
    BALANCERS,
    CRITERIA,
    DATASETS,
    ENCODERS,
    HEADS,
    OPTIMIZERS,
    PENALTIES,
    SCHEDULERS,
    SHARING,
    TASKS,
]
MEMBERS = [(registry, name) for registry in ALL for name in registry]


class Circle:
    """A round shape, which
    goes on.

    More about it.
    """

    @validated
    def __init__(self, centre: float, *, radius: Count = 1) -> None:
        self.centre = centre
        self.radius = radius


class Square(Circle):
    pass


def shapes() -> Registry[Circle]:
    return Registry("shape", {"circle": Circle})


def test_a_member_is_made_from_what_is_given_and_the_users_parameters() -> None:
    circle = shapes().build("circle", 2.0, radius=3)
    assert (circle.centre, circle.radius) == (2.0, 3)
    assert shapes().build("circle", 2.0).radius == 1


@each("ask", [lambda r: r["cirkle"], lambda r: r.build("cirkle"), lambda r: r.summary("cirkle")])
def test_an_unknown_name_is_answered_with_the_nearest(ask) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError) as caught:
        ask(shapes())
    assert str(caught.value) == "unknown shape 'cirkle'. Did you mean 'circle'? Known: circle."


def test_an_unknown_parameter_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        shapes().build("circle", 2.0, radios=3)
    assert str(caught.value) == "shape 'circle': unknown parameter 'radios'. Did you mean 'radius'? Known: radius."


def test_what_the_library_gives_is_no_parameter_of_the_users() -> None:
    with pytest.raises(ConfigError, match="shape 'circle': unknown parameter 'centre'"):
        shapes().build("circle", centre=2.0)


def test_a_parameter_out_of_range_is_the_members_own_error() -> None:
    with pytest.raises(ParameterError, match=r"The 'radius' parameter of Circle must be an int in \[1, inf\)"):
        shapes().build("circle", 2.0, radius=0)


def test_a_member_added_at_run_time_is_there_like_any_other() -> None:
    registry = shapes()
    assert "square" not in registry
    registry["square"] = Square
    assert "square" in registry
    assert list(registry) == ["circle", "square"]
    assert len(registry) == 2
    assert type(registry.build("square", 1.0, radius=2)) is Square
    assert "square" not in shapes()


def test_a_member_added_at_run_time_is_configurable_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(DenseSharing):
        """Shares in my own way."""

        @validated
        def __init__(self, *, strength: Count = 2) -> None:
            super().__init__()

    monkeypatch.setattr(SHARING, "_members", dict(SHARING))
    SHARING["mine"] = Mine
    assert check({"sharing": "mine"})["sharing"] == {"name": "mine", "strength": 2}
    assert check({"sharing": {"name": "mine", "strength": 5}})["sharing"]["strength"] == 5
    with pytest.raises(ConfigError, match=r"'strenght'\. Did you mean 'strength'\?"):
        check({"sharing": {"name": "mine", "strenght": 5}})


def test_the_summary_is_the_first_paragraph_on_one_line() -> None:
    assert shapes().summary("circle") == "A round shape, which goes on."


@each(("registry", "name"), MEMBERS)
def test_every_member_has_a_summary_of_a_sentence(registry: Registry[object], name: str) -> None:
    assert registry.summary(name).endswith((".", ")"))


DOCUMENTED = {
    **{f"{registry.kind} {name}": parameters_of(registry[name]) for registry, name in MEMBERS},
    "Trainer": parameters_of(Trainer),
    "run": run_keys(),
    "training": training_keys(),
    "study": KEYS,
}


@each("owner", DOCUMENTED)
def test_every_parameter_has_a_type_in_words_and_a_meaning_of_a_sentence(owner: str) -> None:
    sentence = re.compile(r"[A-Z0-9(`].*\.")
    assert [name for name, parameter in DOCUMENTED[owner].items() if not parameter.kind] == []
    assert [name for name, parameter in DOCUMENTED[owner].items() if not sentence.fullmatch(parameter.meaning)] == []


@each("owner", DOCUMENTED)
def test_every_default_is_a_value_that_its_parameter_takes(owner: str) -> None:
    defaults = {name: parameter for name, parameter in DOCUMENTED[owner].items() if not parameter.required}
    assert [name for name, parameter in defaults.items() if not fits(parameter.default, parameter.hint)] == []


def test_members_are_found_by_the_names_of_their_axis() -> None:
    assert SHARING["fisher"] is FisherSharing
    assert "mean" in BALANCERS
    assert "maen" not in BALANCERS


@each(
    ("found", "known", "message"),
    [
        ("digt", ["ink", "digit"], "unknown task 'digt'. Did you mean 'digit'? Known: digit, ink."),
        ("depth", ["ink", "digit"], "unknown task 'depth'. Known: digit, ink."),
        ("depth", [], "unknown task 'depth'. Known: none."),
    ],
)
def test_a_wrong_name_is_worded_with_the_nearest_one_and_all(found: str, known: list[str], message: str) -> None:
    assert unknown_name("task", found, known) == message


def test_a_missing_package_is_named_with_the_extra_to_install() -> None:
    error = missing_extra("pandas", "report", "a study's table")
    assert isinstance(error, ImportError)
    assert str(error) == "a study's table needs 'pandas': pip install 'sparsemtl[report]'."
