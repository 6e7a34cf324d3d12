from __future__ import annotations

import pickle
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from loops import each
from torch import nn

import sparsemtl as sm
from sparsemtl.data import LazySplit, Split, TaskData
from sparsemtl.data.lazy import AHEAD, DecodedSample, LazyLoader
from sparsemtl.errors import DataError, LabelWarning, ParameterError
from sparsemtl.tasks import Classification, Regression


class Numbered:
    """Samples that say their own number: in a byte of the image, in a class and as a float."""

    targets = ("class", "value")

    def __init__(self, count: int, *, bad: int = -1, odd: int = -1, remarked: Sequence[int] = ()) -> None:
        self.count, self.bad, self.odd, self.remarked = count, bad, odd, remarked
        self.decoded: list[int] = []
        self.asked: set[str] = set()

    def __len__(self) -> int:
        return self.count

    def where(self, row: int) -> str:
        return f"{row}.png"

    def sample(self, row: int, targets: Sequence[str]) -> DecodedSample:
        self.decoded.append(row)
        self.asked |= set(targets)
        if row == self.bad:
            raise DataError(f"{row}.png is not a whole image.")
        x = torch.full((1, 2, 3 if row == self.odd else 2), row, dtype=torch.uint8)
        labels = {"class": torch.tensor(row % 3), "value": torch.tensor(float(row))}
        remarks = {"empty": f"{row}.png is empty."} if row in self.remarked else {}
        return DecodedSample(x, {name: labels[name] for name in targets}, remarks)


def lazy(source: Numbered, *, workers: int = 0, memory: float = 0.0) -> LazySplit:
    return LazySplit.of(source, workers=workers, memory=memory)


def in_memory(count: int) -> Split:
    numbers = torch.arange(count)
    x = (numbers.float() / 255)[:, None, None, None].expand(count, 1, 2, 2).contiguous()
    return Split(x, {"class": numbers % 3, "value": numbers.float()})


def passes(loader: Any, count: int = 2) -> list[Any]:
    return [batch for _ in range(count) for batch in loader]


def assert_same(first: list[Any], second: list[Any]) -> None:
    assert len(first) == len(second)
    for (x, targets), (other, labels) in zip(first, second, strict=True):
        assert torch.equal(x, other)
        assert list(targets) == list(labels)
        assert all(torch.equal(targets[name], labels[name]) for name in targets)


def numbers(loader: LazyLoader) -> list[int]:
    return [int(value) for _, targets in loader for value in targets["value"]]


@each("memory", [0.0, 1.0])
@each(("workers", "shuffle", "drop_last"), [(0, False, False), (0, True, False), (0, True, True), (2, True, False)])
def test_batches_are_those_of_the_same_samples_in_memory(
    workers: int, shuffle: bool, drop_last: bool, memory: float
) -> None:
    torch.manual_seed(3)
    expected = passes(in_memory(17).loader(5, shuffle=shuffle, drop_last=drop_last))
    after = torch.get_rng_state()
    torch.manual_seed(3)
    split = lazy(Numbered(17), workers=workers, memory=memory)
    assert_same(passes(split.loader(5, shuffle=shuffle, drop_last=drop_last)), expected)
    assert torch.equal(torch.get_rng_state(), after)


def test_the_order_is_drawn_before_the_first_batch() -> None:
    loader = lazy(Numbered(20)).loader(4, shuffle=True)
    state = torch.get_rng_state()
    expected = numbers(loader)
    torch.set_rng_state(state)
    batches = iter(loader)
    torch.rand(5)
    assert [int(v) for _, targets in batches for v in targets["value"]] == expected


def test_a_generator_of_its_own_leaves_the_global_state_alone() -> None:
    state = torch.get_rng_state()
    orders = [
        numbers(LazyLoader(lazy(Numbered(30)), shuffle=True, generator=torch.Generator().manual_seed(seed)))
        for seed in (1, 1, 2)
    ]
    assert orders[0] == orders[1] != orders[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_samples_that_fit_into_memory_are_decoded_once() -> None:
    source = Numbered(10)
    split = lazy(source, memory=1.0)
    passes(split.loader(4, shuffle=True), 3)
    passes(split.loader(3), 2)
    assert sorted(source.decoded[1:]) == list(range(10))  # the first one told the size


def test_samples_that_do_not_fit_are_decoded_in_every_pass() -> None:
    source = Numbered(10)
    sample = 4 + 8 + 4
    split = lazy(source, memory=(10 * sample - 1) / 1e9)
    passes(split.loader(4), 3)
    assert len(source.decoded) == 1 + 30
    assert lazy(source, memory=10 * sample / 1e9).cache is not None


def test_a_pass_that_was_broken_off_leaves_no_gap_behind() -> None:
    split = lazy(Numbered(10), memory=1.0)
    next(iter(split.loader(4)))
    assert numbers(split.loader(4)) == list(range(10))
    assert numbers(split.loader(4)) == list(range(10))


def test_work_in_place_on_a_batch_does_not_touch_what_is_kept() -> None:
    split = lazy(Numbered(6), memory=1.0)
    for _ in range(2):
        for x, targets in split.loader(6):
            assert torch.equal(targets["value"], torch.arange(6.0))
            x.zero_()
            targets["value"].zero_()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_comes_as_it_was_raised_wherever_the_sample_is_decoded(workers: int) -> None:
    with pytest.raises(DataError) as caught:
        passes(lazy(Numbered(9, bad=4), workers=workers).loader(3))
    assert str(caught.value) == "4.png is not a whole image."


class Meeting(Numbered):
    """Samples that two threads must ask for at once."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.both = threading.Barrier(2)

    def sample(self, row: int, targets: Sequence[str]) -> DecodedSample:
        if threading.current_thread() is not threading.main_thread():
            self.both.wait(timeout=10)
        return super().sample(row, targets)


def test_workers_decode_at_once_and_in_this_process() -> None:
    source = Meeting(12)
    assert numbers(lazy(source, workers=2).loader(3)) == list(range(12))
    assert sorted(source.decoded[1:]) == list(range(12))  # the first one told the size


def test_workers_decode_the_next_batches_and_no_more() -> None:
    source = Numbered(1000)
    batches = iter(lazy(source, workers=2).loader(1))
    next(batches)
    batches.close()  # waits for those at work
    assert 1 < len(source.decoded) <= 1 + 1 + 2 * AHEAD


def test_a_pass_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    split = lazy(Numbered(9, bad=8), workers=2)
    next(iter(split.loader(3)))
    with pytest.raises(DataError):
        passes(split.loader(3))
    assert threading.active_count() == before


def test_images_of_different_sizes_are_refused_by_name() -> None:
    with pytest.raises(DataError, match=r"3\.png has 2x2 pixels, 5\.png 2x3\. Set `size`"):
        passes(lazy(Numbered(6, odd=5)).loader(3))


@pytest.mark.parametrize("memory", [0.0, 1.0])
def test_what_a_person_should_know_is_told_once(memory: float) -> None:
    split = lazy(Numbered(8, remarked=[2, 3, 6]), memory=memory)
    with pytest.warns(LabelWarning, match=r"2\.png is empty\. Further warnings of the kind are left out") as told:
        passes(split.loader(4), 3)
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        passes(split.loader(2))


def test_some_samples_or_targets_are_a_split_like_the_whole() -> None:
    source = Numbered(10)
    split = lazy(source)
    chosen = split.select(torch.tensor([7, 1, 4]))
    assert numbers(chosen.loader(2)) == [7, 1, 4]
    assert numbers(chosen.select(torch.tensor([2, 0])).loader(2)) == [4, 7]
    only = split.only(["value", "value"])
    assert only.targets == ("value",)
    source.asked.clear()
    assert list(next(iter(only.loader(2)))[1]) == ["value"]
    assert source.asked == {"value"}


def test_loading_gives_the_split_in_memory() -> None:
    split, expected = lazy(Numbered(7)).load(), in_memory(7)
    assert torch.equal(split.x, expected.x)
    assert all(torch.equal(split.targets[name], labels) for name, labels in expected.targets.items())


def test_a_split_can_be_sent_to_another_process() -> None:
    split = pickle.loads(pickle.dumps(lazy(Numbered(5)).select(torch.arange(3))))
    assert numbers(split.loader(2)) == [0, 1, 2]


def test_no_sample_makes_no_batch() -> None:
    with pytest.raises(DataError, match="0 samples make no batch"):
        lazy(Numbered(5)).select(torch.arange(0)).loader(2)
    with pytest.raises(DataError, match="there is no sample"):
        _ = lazy(Numbered(0)).shape
    with pytest.raises(ParameterError, match="'batch_size' parameter of LazyLoader must be an int in"):
        lazy(Numbered(5)).loader(0)


def task_data(workers: int = 0, memory: float = 0.0) -> TaskData:
    split = lazy(Numbered(60), workers=workers, memory=memory)
    rows = torch.arange(60)
    return TaskData(
        "numbered",
        (Classification("class", 3), Regression("value")),
        split.select(rows[:40]),
        split.select(rows[40:50]),
        split.select(rows[50:]),
    )


def test_a_data_set_may_lie_in_files() -> None:
    data = task_data()
    assert data.input_shape == (1, 2, 2)
    train, validation, test = data.loaders(8, drop_last=True)
    assert isinstance(train, LazyLoader)
    assert (len(train), train.shuffle) == (5, True)
    assert [loader.shuffle for loader in (validation, test) if isinstance(loader, LazyLoader)] == [False, False]
    kept = data.only(["value"])
    assert isinstance(kept.train, LazySplit)
    assert kept.train.targets == ("value",)


class Killed(Exception):
    pass


class Dying:
    """A loader that dies before its n-th batch, counted over all epochs."""

    def __init__(self, loader: Any, batches: int) -> None:
        self.loader, self.left = loader, batches

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Any:
        for batch in self.loader:
            if self.left == 0:
                raise Killed
            self.left -= 1
            yield batch


def trainer(folder: Path) -> sm.Trainer:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.2))
    model = sm.SharedBottom(encoder, [Classification("class", 3), Regression("value", weight=0.01)])
    return sm.Trainer(model, epochs=3, folder=folder, checkpoint_every=2, progress=False, accelerator="cpu")


@pytest.mark.parametrize(("workers", "memory"), [(0, 0.0), (0, 1.0), (1, 0.0)])
def test_a_resumed_run_ends_like_the_uninterrupted_one(tmp_path: Path, workers: int, memory: float) -> None:
    train, validation, _ = task_data().loaders(8)
    whole = trainer(tmp_path / "whole").fit(train, validation)
    train, validation, _ = task_data(workers, memory).loaders(8)
    with pytest.raises(Killed):
        trainer(tmp_path / "cut").fit(Dying(train, 8), validation)
    train, validation, _ = task_data(workers, memory).loaders(8)
    resumed = trainer(tmp_path / "cut").fit(train, validation, resume=True)
    for name, parameter in whole.model.state_dict().items():
        assert torch.equal(parameter, resumed.model.state_dict()[name]), name
