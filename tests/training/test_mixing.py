from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler
from training_toys import loader, own_loaders, table, tasks

from sparsemtl.data import TensorLoader
from sparsemtl.errors import LabelError
from sparsemtl.tasks.batches import Group, loader_generators, preserve_loader_state
from sparsemtl.training.mixing import Mix, epoch_batches, steps_in_epoch

TASKS = {task.name: task for task in tasks("ab")}
MIXES: tuple[Mix, ...] = ("longest", "shortest", "proportional")
SIZES = {"a": 10, "b": 29}  # 3 and 8 batches of 4


def numbered(sizes: dict[str, int] = SIZES, *, shuffle: bool = True) -> dict[str, TensorLoader]:
    """Loaders whose samples say their own number."""
    return {
        task: TensorLoader(torch.arange(size)[:, None].float(), torch.zeros(size), batch_size=4, shuffle=shuffle)
        for task, size in sizes.items()
    }


def epoch(loaders: Any, mix: Mix, seed: int = 0) -> list[list[Group]]:
    torch.manual_seed(seed)
    return list(epoch_batches(loaders, TASKS, mix))


def seen(batches: list[list[Group]], task: str) -> list[int]:
    """The numbers of a task's samples in the order in which they came."""
    return [int(n) for batch in batches for group in batch if group.tasks == (task,) for n in group.x[:, 0]]


@pytest.mark.parametrize(("mix", "steps"), [("longest", 8), ("shortest", 3), ("proportional", 11)])
def test_an_epoch_is_as_long_as_the_mix_says(mix: Mix, steps: int) -> None:
    assert steps_in_epoch(numbered(), mix) == steps
    assert len(epoch(numbered(), mix)) == steps


@pytest.mark.parametrize("mix", ["longest", "shortest"])
def test_a_step_takes_a_batch_of_every_task_in_the_models_order(mix: Mix) -> None:
    backwards = dict(reversed(numbered().items()))
    assert all([group.tasks for group in batch] == [("a",), ("b",)] for batch in epoch(backwards, mix))


def test_the_longest_loader_is_read_once_and_shorter_ones_again() -> None:
    batches = epoch(numbered(), "longest")
    assert sorted(seen(batches, "b")) == list(range(29))
    passes = seen(batches, "a")
    assert sorted(passes[:10]) == sorted(passes[10:20]) == list(range(10))
    assert [len(group.x) for batch in batches for group in batch if group.tasks == ("a",)] == [4, 4, 2, 4, 4, 2, 4, 4]
    assert len(set(passes[20:])) == 8


def test_the_shortest_loader_is_read_once_and_longer_ones_in_part() -> None:
    batches = epoch(numbered(), "shortest")
    assert sorted(seen(batches, "a")) == list(range(10))
    assert len(set(seen(batches, "b"))) == len(seen(batches, "b")) == 12


def test_in_proportion_every_batch_comes_once_one_task_a_step() -> None:
    batches = epoch(numbered(), "proportional")
    assert all(len(batch) == 1 for batch in batches)
    assert Counter(batch[0].tasks for batch in batches) == {("a",): 3, ("b",): 8}
    assert sorted(seen(batches, "a")) == list(range(10))
    assert sorted(seen(batches, "b")) == list(range(29))


def test_in_proportion_the_tasks_come_in_random_order() -> None:
    orders = {tuple(batch[0].tasks for batch in epoch(numbered(), "proportional", seed)) for seed in range(5)}
    assert len(orders) > 1


@pytest.mark.parametrize("mix", MIXES)
def test_passes_differ_within_an_epoch_and_between_epochs(mix: Mix) -> None:
    torch.manual_seed(0)
    loaders = numbered()
    first, second = (list(epoch_batches(loaders, TASKS, mix)) for _ in range(2))
    assert seen(first, "b") != seen(second, "b")
    if mix == "longest":
        assert seen(first, "a")[:10] != seen(first, "a")[10:20]


@pytest.mark.parametrize("mix", MIXES)
def test_an_order_does_not_depend_on_what_is_drawn_meanwhile(mix: Mix) -> None:
    expected = epoch(numbered(), mix)
    torch.manual_seed(0)
    found = []
    for batch in epoch_batches(numbered(), TASKS, mix):
        torch.rand(3)
        found.append(batch)
    assert [group.tasks for batch in found for group in batch] == [g.tasks for batch in expected for g in batch]
    for task in "ab":
        assert seen(found, task) == seen(expected, task)


@pytest.mark.parametrize("mix", MIXES)
def test_reading_an_epoch_draws_no_more_than_its_seeds(mix: Mix) -> None:
    torch.manual_seed(0)
    batches = epoch_batches(numbered(), TASKS, mix)
    next(batches)
    state = torch.get_rng_state()
    list(batches)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("mix", MIXES)
def test_one_loader_for_all_tasks_is_read_once(mix: Mix) -> None:
    batches = epoch(loader(20, shuffle=False), mix)
    assert steps_in_epoch(loader(20), mix) == len(batches) == 3
    assert [batch[0].tasks for batch in batches] == [("a", "b")] * 3
    assert torch.equal(torch.cat([batch[0].x for batch in batches]), table(20)[0])


class Stream(IterableDataset[Any]):
    """A data set that does not tell its length."""

    def __iter__(self) -> Iterator[Any]:
        x, targets = table(10)
        for i in range(10):
            yield x[i], {task: label[i] for task, label in targets.items()}


def test_a_loader_need_not_tell_its_length() -> None:
    stream: DataLoader[Any] = DataLoader(Stream(), batch_size=4)
    assert steps_in_epoch(stream, "longest") is None
    assert steps_in_epoch(iter([]), "longest") is None
    assert len(epoch(stream, "longest")) == 3


def test_loaders_that_are_mixed_must_tell_their_length() -> None:
    stream: DataLoader[Any] = DataLoader(Stream(), batch_size=4)
    with pytest.raises(LabelError, match="the loader of task 'b' has no length"):
        epoch({**numbered(), "b": stream}, "longest")


@pytest.mark.parametrize("mix", MIXES)
def test_an_empty_loader_is_an_error(mix: Mix) -> None:
    with pytest.raises(LabelError, match="the loader of task 'a' is empty"):
        epoch({**numbered(), "a": []}, mix)
    with pytest.raises(LabelError, match=r"gave no batch.*not an iterator"):
        epoch([], mix)


def test_an_iterator_that_is_used_up_is_an_error() -> None:
    batches = iter(loader(20))
    epoch(batches, "longest")
    with pytest.raises(LabelError, match="gave no batch"):
        epoch(batches, "longest")


class Rows(Dataset[Any]):
    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Any:
        return float(index), {"a": 0}


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def test_generators_are_found_wherever_loaders_keep_them() -> None:
    mine = [generator() for _ in range(4)]
    data = Rows()
    loaders = [
        TensorLoader(*table(), shuffle=True, generator=mine[0]),
        DataLoader(data, shuffle=True, generator=mine[1]),
        DataLoader(data, sampler=RandomSampler(data, generator=mine[2])),
        DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data, generator=mine[3]), 2, False)),
        DataLoader(data, shuffle=True),
        [table()],
    ]
    for one, expected in zip(loaders, [*mine, None, None], strict=True):
        found = loader_generators(one)
        assert found == ([] if expected is None else [expected])


def test_a_generator_that_loaders_share_is_found_once() -> None:
    one = generator()
    pair = {task: TensorLoader(*table(), shuffle=True, generator=one) for task in "ab"}
    assert loader_generators(pair) == [one]


def test_reading_undrawn_leaves_the_order_to_come_alone() -> None:
    def order(one: TensorLoader) -> Tensor:
        return torch.cat([x for x, _ in one])

    one, other = (TensorLoader(*table(), shuffle=True, generator=generator()) for _ in range(2))
    with preserve_loader_state(one):
        first = order(one)
    assert torch.equal(order(one), first)
    assert torch.equal(order(other), first)


def test_bare_labels_become_those_of_the_loaders_task() -> None:
    batch = epoch(own_loaders({"a": 4, "b": 4}), "longest")[0]
    assert [(group.tasks, list(group.targets)) for group in batch] == [(("a",), ["a"]), (("b",), ["b"])]
