from __future__ import annotations

from collections import UserDict
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsemtl.data import Split, TaskData, TensorLoader
from sparsemtl.errors import DataError, ParameterError
from sparsemtl.tasks import Classification, Regression


def numbered(count: int) -> Split:
    """Samples that say their own number, in the input and in both labels."""
    numbers = torch.arange(count)
    return Split(numbers[:, None].float(), {"a": numbers % 2, "b": numbers.float()})


def read(loader: TensorLoader) -> Tensor:
    """All inputs of a pass, after a check that labels came with them."""
    seen = []
    for x, targets in loader:
        assert torch.equal(x[:, 0], targets["b"])
        seen.append(x[:, 0])
    return torch.cat(seen).long()


def homogeneous(count: int = 10) -> TaskData:
    tasks = (Classification("a", 2), Regression("b"))
    return TaskData("toy", tasks, train=numbered(count), validation=numbered(4), test=numbered(3), notes=("a note",))


def heterogeneous() -> TaskData:
    splits = {name: Split(torch.zeros(n, 2), {name: torch.zeros(n)}) for name, n in (("a", 6), ("b", 9))}
    return TaskData("toy", (Classification("a", 2), Regression("b")), splits, splits, splits)


@pytest.mark.parametrize(("size", "batch", "expected"), [(10, 5, [5, 5]), (10, 4, [4, 4, 2]), (3, 8, [3])])
def test_batches_are_full_but_the_last(size: int, batch: int, expected: list[int]) -> None:
    loader = numbered(size).loader(batch)
    assert [len(x) for x, _ in loader] == expected
    assert len(loader) == len(expected)
    assert loader.dataset_size == size


def test_a_last_batch_that_is_not_full_can_be_left_out() -> None:
    loader = numbered(10).loader(4, drop_last=True)
    assert [len(x) for x, _ in loader] == [4, 4]
    assert len(loader) == 2
    assert len(numbered(8).loader(4, drop_last=True)) == 2


def test_in_order_a_pass_gives_the_samples_as_they_are() -> None:
    assert torch.equal(read(numbered(11).loader(4)), torch.arange(11))


def test_shuffled_a_pass_gives_every_sample_once_with_its_labels() -> None:
    order = read(numbered(100).loader(7, shuffle=True))
    assert not torch.equal(order, torch.arange(100))
    assert torch.equal(order.sort().values, torch.arange(100))


def test_passes_differ_and_a_restored_global_state_repeats_them() -> None:
    loader = numbered(100).loader(10, shuffle=True)
    state = torch.get_rng_state()
    first, second = read(loader), read(loader)
    assert not torch.equal(first, second)
    torch.set_rng_state(state)
    assert torch.equal(read(loader), first)
    assert torch.equal(read(loader), second)


def test_the_order_is_drawn_before_the_first_batch() -> None:
    loader = numbered(20).loader(10, shuffle=True)
    state = torch.get_rng_state()
    expected = read(loader)
    torch.set_rng_state(state)
    batches = iter(loader)
    torch.rand(5)
    assert torch.equal(torch.cat([x[:, 0] for x, _ in batches]).long(), expected)


def test_a_generator_of_its_own_leaves_the_global_state_alone() -> None:
    split = numbered(50)

    def order(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return read(TensorLoader(split.x, split.targets, shuffle=True, generator=generator))

    state = torch.get_rng_state()
    assert torch.equal(order(3), order(3))
    assert not torch.equal(order(3), order(4))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("shuffle", [False, True])
def test_work_in_place_on_a_batch_does_not_touch_the_data(shuffle: bool) -> None:
    split = numbered(6)
    for x, targets in split.loader(6, shuffle=shuffle):
        x.zero_()
        targets["b"].zero_()
    assert torch.equal(split.x[:, 0], torch.arange(6.0))
    assert torch.equal(split.targets["b"], torch.arange(6.0))


def test_inputs_may_be_nests_and_labels_bare() -> None:
    x = {"table": torch.arange(5), "pair": (torch.arange(5) + 10, torch.arange(5) + 20)}
    batches: list[tuple[Any, Tensor]] = list(TensorLoader(x, torch.arange(5) + 30, batch_size=3))
    (last, labels) = batches[1]
    assert last["table"].tolist() == [3, 4]
    assert [t.tolist() for t in last["pair"]] == [[13, 14], [23, 24]]
    assert labels.tolist() == [33, 34]


def test_a_mapping_that_is_no_dict_keeps_its_class() -> None:
    words: Any = UserDict(ids=torch.arange(5), mask=torch.arange(5) + 10)  # as transformers.BatchEncoding is
    (x, labels), _ = TensorLoader(words, torch.arange(5), batch_size=3)
    assert type(x) is UserDict
    assert (x["ids"].tolist(), x["mask"].tolist(), labels.tolist()) == ([0, 1, 2], [10, 11, 12], [0, 1, 2])


def test_lengths_must_agree() -> None:
    with pytest.raises(DataError, match="target 'b' has 4 labels for 5 samples"):
        TensorLoader(torch.zeros(5, 2), {"a": torch.zeros(5), "b": torch.zeros(4)})
    with pytest.raises(DataError, match=r"one length, found lengths \[4, 5\]"):
        TensorLoader([torch.zeros(5, 2), torch.zeros(4)], torch.zeros(5))
    with pytest.raises(DataError, match="target 'a' has 4 labels for 5 samples"):
        Split(torch.zeros(5), {"a": torch.zeros(4)})


def test_a_loader_without_a_batch_is_refused() -> None:
    with pytest.raises(DataError, match="0 samples make no batch"):
        numbered(0).loader(4)
    with pytest.raises(DataError, match="3 samples make no batch of 4 with drop_last"):
        numbered(3).loader(4, drop_last=True)


def test_a_batch_holds_at_least_one_sample() -> None:
    with pytest.raises(ParameterError, match="'batch_size' parameter of TensorLoader must be an int in"):
        numbered(3).loader(0)


def test_taking_and_selecting_keep_labels_with_their_samples() -> None:
    split = numbered(10)
    assert read(split.select(torch.tensor([7, 1])).loader(2)).tolist() == [7, 1]


def test_training_data_is_shuffled_and_the_rest_in_order() -> None:
    train, validation, test = homogeneous(100).loaders(8)
    assert isinstance(train, TensorLoader)
    assert isinstance(validation, TensorLoader)
    assert isinstance(test, TensorLoader)
    assert (train.shuffle, validation.shuffle, test.shuffle) == (True, False, False)
    assert (train.batch_size, validation.batch_size, test.batch_size) == (8, 16, 16)
    assert (train.dataset_size, validation.dataset_size, test.dataset_size) == (100, 4, 3)


def test_evaluation_batches_and_the_last_training_batch_can_be_set() -> None:
    train, validation, test = homogeneous(10).loaders(4, evaluation_batch_size=1, drop_last=True)
    assert [len(loader) for loader in (train, validation, test)] == [2, 4, 3]


def test_tasks_with_inputs_of_their_own_get_a_loader_each() -> None:
    data = heterogeneous()
    assert data.heterogeneous
    assert data.input_shape == (2,)
    for part in data.loaders(4):
        assert isinstance(part, dict)
        assert {name: loader.dataset_size for name, loader in part.items()} == {"a": 6, "b": 9}
    x, targets = next(iter(data.loaders(4)[0]["b"]))
    assert x.shape == (4, 2)
    assert list(targets) == ["b"]


def test_inputs_of_different_shapes_have_no_common_shape() -> None:
    splits = {n: Split(torch.zeros(2, width), {n: torch.zeros(2)}) for n, width in (("a", 3), ("b", 4))}
    data = TaskData("toy", (Regression("a"), Regression("b")), splits, splits, splits)
    with pytest.raises(DataError, match=r"different shapes \[\(3,\), \(4,\)\]"):
        _ = data.input_shape


@pytest.mark.parametrize("data", [homogeneous(), heterogeneous()])
def test_some_of_the_tasks_can_be_kept(data: TaskData) -> None:
    kept = data.only(["b"])
    assert [task.name for task in kept.tasks] == ["b"]
    assert (kept.name, kept.notes) == (data.name, data.notes)
    for part in (kept.train, kept.validation, kept.test):
        split = part["b"] if isinstance(part, dict) else part
        assert isinstance(split, Split)
        assert list(split.targets) == ["b"]
        assert not isinstance(part, dict) or list(part) == ["b"]
    assert [task.name for task in data.only(["b", "a"]).tasks] == ["a", "b"]


def test_a_task_that_is_not_there_is_refused_with_the_nearest_name() -> None:
    data = TaskData("toy", (Regression("slant"),), *[Split(torch.zeros(2), {"slant": torch.zeros(2)})] * 3)
    with pytest.raises(ParameterError, match=r"toy: unknown task 'slont'. Did you mean 'slant'?"):
        data.only(["slont"])
    with pytest.raises(ParameterError, match=r"at least one task must be kept. Known: slant"):
        data.only([])


def test_a_data_set_prints_its_tasks_and_sizes_and_no_values() -> None:
    split = Split(torch.zeros(1200), {"slant": torch.zeros(1200)})
    assert repr(split) == "Split(1,200 samples; targets slant)"
    data = TaskData("toy", (Regression("slant"),), split, split.select(torch.arange(3)), split)
    assert repr(data) == "TaskData('toy', Regression('slant', 1); 1,200 training, 3 validation, 1,200 test samples)"


def test_every_part_needs_labels_of_every_task() -> None:
    bare = Split(torch.zeros(4, 1), {"a": torch.zeros(4)})
    with pytest.raises(DataError, match="toy: the validation data has no labels of task 'b'"):
        TaskData("toy", (Regression("a"), Regression("b")), numbered(4), bare, numbered(4))
    with pytest.raises(DataError, match="toy: the test data has no labels of task 'b'"):
        TaskData(
            "toy",
            (Regression("a"), Regression("b")),
            {"a": bare, "b": numbered(4)},
            {"a": bare, "b": numbered(4)},
            {"a": bare},
        )


def test_parts_are_all_of_one_form() -> None:
    split = numbered(4)
    with pytest.raises(DataError, match="training data has one split for all tasks, validation data has not"):
        TaskData("toy", (Regression("b"),), split, {"b": split}, split)


def test_training_labels_come_in_the_order_of_the_samples() -> None:
    labels = homogeneous(10_000).labels()  # more than are read at once
    assert labels is not None
    assert torch.equal(labels["a"], torch.arange(10_000) % 2)
    assert torch.equal(labels["b"], torch.arange(10_000).float())
    assert heterogeneous().labels() is None
