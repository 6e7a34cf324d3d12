from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import each
from torch import Tensor
from typer.testing import CliRunner

import sparsemtl as sm
from sparsemtl.backbones import CNN
from sparsemtl.cli import data as cli_data
from sparsemtl.data import DATASETS, LazySplit, Split, TaskData
from sparsemtl.data.images.mnist import MNIST
from sparsemtl.data.lazy import DecodedSample
from sparsemtl.data.subsets.class_sampling import ClassSampling, drawn_classes
from sparsemtl.errors import ConfigError, DataError, LabelWarning, ParameterError
from sparsemtl.tasks import Classification, MultiLabel

DIGITS = {"name": "digits", "task": "digit"}
SIX = {"source": DIGITS, "classes": 6, "overlap": 2, "samples_per_class": 10}
PARTS = ("train", "validation", "test")


class Numbered:
    """Images that are their own number, decoded when they are asked for; class number % 5."""

    targets = ("kind",)

    def __init__(self, first: int, count: int, *, tells: bool, remarked: int = -1) -> None:
        self.first, self.count, self.remarked, self.decoded = first, count, remarked, list[int]()
        if tells:
            self.labels_of = lambda target: torch.arange(count) % 5

    def __len__(self) -> int:
        return self.count

    def where(self, row: int) -> str:
        return f"{self.first + row}.png"

    def sample(self, row: int, targets: Sequence[str]) -> DecodedSample:
        self.decoded.append(row)
        remarks = {"odd": f"{self.where(row)} is odd."} if row == self.remarked else {}
        x = torch.full((1, 2, 2), self.first + row, dtype=torch.uint8)
        return DecodedSample(x, dict.fromkeys(targets, torch.tensor(row % 5)), remarks)


def numbered(name: str, first: int = 0, *, lazy: bool = False, tells: bool = True, side: int = 2) -> TaskData:
    """A data set of 100 images that are their own number, 60, 20 and 20 of them for training, validation and test."""

    def split(start: int, count: int) -> Any:
        if lazy:
            return LazySplit.of(Numbered(first + start, count, tells=tells), workers=0, memory=0.0)
        numbers = torch.arange(count)
        x = ((first + start + numbers).float() / 255)[:, None, None, None].expand(count, 1, side, side)
        return Split(x.contiguous(), {"kind": numbers % 5})

    task = Classification("kind", ["ant", "bee", "cow", "dog", "eel"])
    return TaskData(name, (task,), split(0, 60), split(60, 20), split(80, 20), notes=("made up",))


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def add(name: str, *args: Any, **options: Any) -> None:
        monkeypatch.setitem(DATASETS._members, name, lambda: numbered(name, *args, **options))

    return add


def build(**options: Any) -> TaskData:
    return DATASETS.build("label-subsets", **options)


def split(data: TaskData, part: str, task: str) -> Split:
    parts = getattr(data, part)
    assert isinstance(parts, Mapping)
    samples = parts[task]
    loaded = samples.load() if isinstance(samples, LazySplit) else samples
    assert isinstance(loaded, Split)
    assert set(loaded.targets) == {task}
    return loaded


def numbers(data: TaskData, part: str, task: str) -> list[int]:
    return [round(255 * float(value)) for value in split(data, part, task).x[:, 0, 0, 0]]


def rows(data: TaskData, part: str, task: str) -> set[bytes]:
    """Images as bytes: of the digits no two are the same."""
    return {image.numpy().tobytes() for image in split(data, part, task).x}


def names(data: TaskData, task: str) -> list[str]:
    (found,) = (one for one in data.tasks if one.name == task)
    assert isinstance(found, Classification)
    return found.class_names


def by_class(data: TaskData, part: str, task: str) -> Counter[str]:
    return Counter(names(data, task)[label] for label in split(data, part, task).targets[task].tolist())


def test_every_label_names_the_class_that_the_sample_has_in_its_source() -> None:
    source = DATASETS.build("digits")
    assert isinstance(source.train, Split)
    true = {image.numpy().tobytes(): str(int(c)) for part in PARTS for image, c in _pairs(getattr(source, part))}
    data = build(**SIX)
    for part in PARTS:
        for task in ("task1", "task2", "auxiliary"):
            samples = split(data, part, task)
            for image, label in zip(samples.x, samples.targets[task], strict=True):
                assert names(data, task)[int(label)] == true[image.numpy().tobytes()]


def _pairs(samples: Split) -> Any:
    return zip(samples.x, samples.targets["digit"], strict=True)


@pytest.mark.parametrize("auxiliary", ["rest", "all", "none"])
def test_no_sample_is_learnt_by_one_task_and_tested_for_another(auxiliary: str) -> None:
    data = build(**SIX, auxiliary=auxiliary)
    of_parts = [set().union(*(rows(data, part, task.name) for task in data.tasks)) for part in PARTS]
    assert not of_parts[0] & of_parts[1]
    assert not of_parts[0] & of_parts[2]
    assert not of_parts[1] & of_parts[2]


def test_small_tasks_and_the_rest_share_no_training_sample_and_leave_none_out() -> None:
    data, source = build(**SIX), DATASETS.build("digits")
    first, second, rest = (rows(data, "train", task) for task in ("task1", "task2", "auxiliary"))
    assert (len(first), len(second)) == (60, 60)
    assert not first & second
    assert not (first | second) & rest
    assert isinstance(source.train, Split)
    assert first | second | rest == {image.numpy().tobytes() for image in source.train.x}


def test_the_auxiliary_task_can_learn_from_all_samples_or_be_absent() -> None:
    everything, none = build(**SIX, auxiliary="all"), build(**SIX, auxiliary="none")
    assert rows(everything, "train", "task1") < rows(everything, "train", "auxiliary")
    assert len(rows(everything, "train", "auxiliary")) == 1078
    assert [task.name for task in none.tasks] == ["task1", "task2"]
    assert rows(none, "train", "task1") == rows(everything, "train", "task1")
    assert names(everything, "auxiliary") == [str(digit) for digit in range(10)]


def test_every_class_of_a_small_task_has_the_samples_that_were_asked_for() -> None:
    data = build(**SIX, validation_per_class=7, test_per_class=5)
    for part, count in (("train", 10), ("validation", 7), ("test", 5)):
        for task in ("task1", "task2"):
            assert by_class(data, part, task) == dict.fromkeys(names(data, task), count)
    whole = build(**SIX, validation_per_class=None)
    for part in ("validation", "test"):
        every = by_class(whole, part, "auxiliary")
        assert by_class(whole, part, "task1") == {name: every[name] for name in names(whole, "task1")}


def test_tasks_are_tested_on_the_same_samples_of_a_class_that_they_have_in_common() -> None:
    data = build(**SIX, test_per_class=4)
    common = set(names(data, "task1")) & set(names(data, "task2"))
    assert len(common) == 2
    tested = [
        {(name, image.numpy().tobytes()) for name, image in _named(data, task) if name in common}
        for task in ("task1", "task2")
    ]
    assert tested[0] == tested[1]


def _named(data: TaskData, task: str) -> Any:
    samples = split(data, "test", task)
    return ((names(data, task)[int(c)], image) for image, c in zip(samples.x, samples.targets[task], strict=True))


def test_fewer_samples_a_class_are_among_more() -> None:
    few, more = (build(**{**SIX, "samples_per_class": count}) for count in (4, 20))
    for task in ("task1", "task2"):
        assert rows(few, "train", task) < rows(more, "train", task)


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(2, 8), st.integers(0, 8), st.integers(0, 99))
def test_drawn_tasks_have_exactly_the_overlap_in_common(tasks: int, size: int, overlap: int, seed: int) -> None:
    overlap = min(overlap, size)
    needed = overlap + tasks * (size - overlap)
    drawn = drawn_classes(needed, tasks, size, overlap, seed=seed)
    assert list(drawn) == [f"task{number + 1}" for number in range(tasks)]
    used = Counter(index for chosen in drawn.values() for index in chosen)
    assert sorted(used) == list(range(needed))
    assert sorted(used.values()) == sorted([1] * (tasks * (size - overlap)) + [tasks] * overlap)
    assert all(chosen == sorted(chosen) and len(chosen) == size for chosen in drawn.values())
    with pytest.raises(ParameterError, match=f"need {needed} classes; there are {needed - 1}"):
        drawn_classes(needed - 1, tasks, size, overlap, seed=seed)


@settings(deadline=None)
@given(st.lists(st.integers(-1, 4), min_size=1, max_size=80), st.integers(0, 99))
def test_samples_are_drawn_apart_or_there_are_too_few(labels: list[int], seed: int) -> None:
    classes, chosen = torch.tensor(labels), {"a": [0, 1, 2], "b": [1, 2], "c": [2, 3]}
    draws = ClassSampling(classes, list("vwxyz"), "training", seed=seed)
    counts = [labels.count(index) for index in range(4)]
    enough = counts[0] >= 3 and counts[1] >= 6 and counts[2] >= 9 and counts[3] >= 3
    if not enough:
        with pytest.raises(DataError, match=r"training samples; \d+ are needed"):
            draws.disjoint(chosen, 3)
        return
    drawn = draws.disjoint(chosen, 3)
    for task, of in chosen.items():
        assert Counter(classes[drawn[task]].tolist()) == dict.fromkeys(of, 3)
        assert drawn[task].tolist() == sorted(drawn[task].tolist())
    taken = [row for some in drawn.values() for row in some.tolist()]
    assert len(set(taken)) == len(taken)
    others = draws.others(drawn.values()).tolist()
    assert sorted(taken + others) == [row for row, label in enumerate(labels) if label >= 0]


def test_the_seed_alone_draws_and_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    one, again, other = build(**SIX), build(**SIX), build(**SIX, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    for task in ("task1", "task2", "auxiliary"):
        for part in PARTS:
            assert torch.equal(split(one, part, task).x, split(again, part, task).x)
    assert rows(one, "train", "task1") != rows(other, "train", "task1")
    assert names(one, "task1") != names(other, "task1")


def test_tasks_are_named_with_the_classes_that_are_chosen_for_them() -> None:
    chosen = {"low": ["2", "0", 1], "even": [0, 4, 8]}
    data = build(source=DIGITS, tasks=chosen, samples_per_class=5)
    assert [task.name for task in data.tasks] == ["low", "even", "auxiliary"]
    assert (names(data, "low"), names(data, "even")) == (["2", "0", "1"], ["0", "4", "8"])
    assert by_class(data, "train", "low") == {"2": 5, "0": 5, "1": 5}
    assert "low: 2, 0, 1" in data.notes
    assert any(note.startswith("auxiliary: all 10 classes, 1,048 training samples") for note in data.notes)
    assert any(note.startswith("digits: 60 % training") for note in data.notes)


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("tells", [False, True])
def test_data_sets_are_joined_with_their_names_before_the_classes(
    toys: Callable[..., None], lazy: bool, tells: bool
) -> None:
    toys("hares", lazy=lazy, tells=tells)
    toys("mice", 100, lazy=lazy, tells=tells)
    chosen = {"pets": ["mice/dog", "hares/bee"], "farm": ["hares/cow", "mice/cow", "hares/bee"]}
    data = build(source=["hares", "mice"], tasks=chosen, samples_per_class=3, validation_per_class=2, test_per_class=1)
    assert names(data, "auxiliary") == [f"{name}/{kind}" for name in ("hares", "mice") for kind in _KINDS]
    for part, start, count in zip(PARTS, (0, 60, 80), (3, 2, 1), strict=True):
        for task in ("pets", "farm", "auxiliary"):
            labels = split(data, part, task).targets[task].tolist()
            for number, label in zip(numbers(data, part, task), labels, strict=True):
                assert names(data, task)[label] == f"{'mice' if number >= 100 else 'hares'}/{_KINDS[number % 100 % 5]}"
                assert start <= number % 100 < start + 60
            if task != "auxiliary":
                assert len(labels) == count * len(chosen[task])
    assert len(numbers(data, "train", "auxiliary")) == 120 - 3 * 5


_KINDS = ["ant", "bee", "cow", "dog", "eel"]


def test_images_are_decoded_only_when_they_are_needed_and_keep_their_names_and_remarks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = Numbered(0, 60, tells=True, remarked=7)
    part = LazySplit.of(source, workers=0, memory=0.0)
    made = TaskData("hares", (Classification("kind", _KINDS),), part, part, part)
    monkeypatch.setitem(DATASETS._members, "hares", lambda: made)
    options: dict[str, Any] = {"tasks": {"pair": [0, 2]}, "validation_per_class": 1, "auxiliary": "none"}
    data = build(source="hares", **options, samples_per_class=12)
    assert source.decoded == []
    assert isinstance(data.train, Mapping)
    samples = data.train["pair"]
    assert isinstance(samples, LazySplit)
    with pytest.warns(LabelWarning, match=r"7\.png is odd"):
        x = samples.load().x
    decoded = [round(255 * float(value)) for value in x[:, 0, 0, 0]]
    assert list(dict.fromkeys(source.decoded)) == decoded
    assert [samples.source.where(row) for row in range(24)] == [f"{number}.png" for number in decoded]


def test_a_class_may_be_absent_where_the_sources_validate(monkeypatch: pytest.MonkeyPatch) -> None:
    train = Split(torch.rand(30, 3), {"kind": torch.arange(30) % 5})
    made = TaskData("hares", (Classification("kind", _KINDS),), train, train.select(torch.arange(3)), train)
    monkeypatch.setitem(DATASETS._members, "hares", lambda: made)
    data = build(source="hares", tasks={"pair": ["eel", "bee"]}, samples_per_class=2, validation_per_class=None)
    assert by_class(data, "validation", "pair") == {"bee": 1}
    assert by_class(data, "test", "pair") == {"eel": 6, "bee": 6}


def test_samples_without_a_class_are_nobodys() -> None:
    source: dict[str, Any] = {**DIGITS, "missing": 0.5}
    data = build(**{**SIX, "source": source})
    assert sum(len(split(data, "train", task.name)) for task in data.tasks) == 1078 - round(0.5 * 1078)
    for task in data.tasks:
        assert bool((split(data, "train", task.name).targets[task.name] >= 0).all())


def test_a_table_can_be_cut_too(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pandas")
    from sparsemtl.data.tables.coded import CodedSplit, OneHot

    coded, kinds = torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 2.0], [4.0, 0.0]] * 10), torch.arange(40) % 4
    part = CodedSplit(coded, {"kind": kinds}, torch.arange(40), OneHot(1, (3,)))
    made = TaskData("rows", (Classification("kind", 4),), part, part, part)
    monkeypatch.setitem(DATASETS._members, "rows", lambda: made)
    data = build(source="rows", tasks={"pair": [3, 1]}, samples_per_class=4, validation_per_class=1)
    samples = split(data, "train", "pair")
    assert samples.x[:, 0].tolist() == [4.0 if label == 0 else 2.0 for label in samples.targets["pair"].tolist()]
    assert samples.x.shape == (8, 3)


@each(
    ("options", "message"),
    [
        ({"tasks": {"one": ["3", "tree"]}}, r"task 'one': unknown class 'tree'.*Known: 0, 1"),
        ({"tasks": {"one": [3, 10]}}, r"task 'one': a class's index lies in 0 .. 9, got 10"),
        ({"tasks": {"one": [3, True]}}, r"'tasks' parameter of label_subsets must be .* ints. Got .*True"),
        ({"tasks": {"one": [3, "3"]}}, r"task 'one' needs at least 2 classes, each once; got \[3, '3'\]"),
        ({"tasks": {"one": [3]}}, r"needs at least 2 classes"),
        ({"tasks": {"one": "34"}}, r"'tasks' parameter of label_subsets must be .* Got .*'34'"),
        ({"tasks": {}}, r"a mapping of tasks to their classes; got none"),
        ({"tasks": {"auxiliary": [1, 2]}}, r"'auxiliary' is what the task of all classes is called"),
        ({"tasks": 2, "classes": 10}, r"2 tasks of 10 classes, 3 of them in common, need 17 classes; there are 10"),
        ({"classes": 4, "overlap": 5}, r"got 4 classes with an overlap of 5"),
        ({"classes": 1, "overlap": 0}, r"a task needs at least 2 `classes`"),
        ({"source": "digits"}, r"digits has the classifications digit, parity; say which by `task`"),
        ({"source": {"name": "digits", "task": "digits"}}, r"unknown classification 'digits'. Did you mean 'digit'"),
        ({"source": {"name": "digits", "task": "shape"}}, r"unknown classification 'shape'"),
        ({"source": {"task": "digit"}}, r"expected a data set's name, or a mapping that has its `name`"),
        ({"source": []}, r"expected one or more data sets, each once; got none"),
        ({"source": [DIGITS, DIGITS]}, r"each once; got digits, digits"),
        ({"samples_per_class": 0}, r"'samples_per_class' parameter of label_subsets must be an int in \[1, inf\)"),
    ],
)
def test_wrong_parameters_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        build(**{"source": DIGITS, **options})


def test_an_unknown_source_or_parameter_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"unknown data set 'digit'. Did you mean 'digits'"):
        build(source="digit")
    with pytest.raises(ConfigError, match=r"unknown parameter 'seeds'. Did you mean 'seed'"):
        build(source={**DIGITS, "seeds": 3})


def test_too_few_samples_of_a_class_are_named_with_how_many_there_are() -> None:
    with pytest.raises(DataError, match=r"class '\d' has 1\d\d training samples; 120 are needed for 2 tasks"):
        build(**{**SIX, "samples_per_class": 60})
    with pytest.raises(DataError, match=r"class '\d' has \d\d test samples; 50 are needed; ask for fewer"):
        build(**SIX, test_per_class=50)


def test_a_class_that_the_small_tasks_use_up_is_missing_in_the_rest(toys: Callable[..., None]) -> None:
    toys("hares")
    options: dict[str, Any] = {"source": "hares", "tasks": {"pair": [0, 2]}, "validation_per_class": 2}
    build(**options, samples_per_class=11)
    with pytest.raises(
        DataError, match=r"task 'auxiliary': class 'ant' and 1 more has no sample in the training split"
    ):
        build(**options, samples_per_class=12)
    build(**options, samples_per_class=12, auxiliary="all")


def test_sources_that_do_not_go_together_are_refused(toys: Callable[..., None]) -> None:
    toys("hares")
    toys("mice", side=3)
    toys("moles", lazy=True)
    with pytest.raises(DataError, match=r"hares has inputs of shape \(1, 2, 2\), mice \(1, 3, 3\)"):
        build(source=["hares", "mice"])
    with pytest.raises(DataError, match=r"of hares and moles one lies in memory and the other in files"):
        build(source=["hares", "moles"])


def test_a_data_set_without_a_classification_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = {"signs": torch.zeros(4, 2)}
    part = Split(torch.rand(4, 3), labels)
    data = TaskData("signs", (MultiLabel("signs", ["a", "b"]),), part, part, part)
    monkeypatch.setitem(DATASETS._members, "signs", lambda: data)
    with pytest.raises(ParameterError, match="signs has no classification"):
        build(source="signs")


def test_a_source_gets_the_root_and_its_own_parameters(tmp_path: Path, lay: Callable[..., dict[str, Tensor]]) -> None:
    laid = lay(tmp_path, MNIST)
    data = build(
        root=tmp_path,
        source={"name": "mnist", "validation": 0.5, "seed": 3},
        tasks={"pair": [1, 2]},
        samples_per_class=1,
        validation_per_class=None,
        auxiliary="none",
    )
    assert "mnist: validation: the last 50 % of a permutation (seed 3)" in " ".join(data.notes)
    tested = np.sort((255 * split(data, "test", "pair").x[:, 0, 0, 0]).round().numpy())
    classes = laid["t10k-labels-idx1-ubyte"]
    assert tested.tolist() == [100 + row for row in range(20) if classes[row] in (1, 2)]


def test_the_command_line_says_that_its_files_are_those_of_others() -> None:
    result = CliRunner().invoke(cli_data.app, ["check", "label-subsets"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "cut out of other data sets" in result.output


def test_networks_learn_from_small_tasks_and_the_big_one_together() -> None:
    data = build(**{**SIX, "samples_per_class": 4, "test_per_class": 4})
    train, validation, test = data.loaders(64)
    model = sm.SharedBottom(CNN(data.input_shape, widths=[4]), data.tasks)
    results = sm.Trainer(model, epochs=1, progress=False, accelerator="cpu").fit(train, validation).test(test)
    assert set(results) == {"task1", "task2", "auxiliary"}
