"""What cannot be traced is said, with the name of the part and what to do."""

from __future__ import annotations

import pytest
import torch
from compaction_toys import alive, assert_same_outputs, compacted, zeroed
from torch import Tensor, nn

from sparsemtl.compaction import compact
from sparsemtl.errors import CompactionError


class Branching(nn.Module):
    """Python that asks for a value."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if x.sum() > 0 else -self.layer(x)


def around(part: nn.Module) -> nn.Module:
    return alive(nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), part), nn.Linear(4, 6), nn.Linear(6, 2)))


X = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_the_error_names_the_part_that_cannot_be_traced() -> None:
    with pytest.raises(CompactionError, match=r"cannot trace '1\.1' \(Branching\).*`leaf_modules`"):
        compact(around(Branching()))


def test_a_model_that_cannot_be_traced_itself_is_named() -> None:
    with pytest.raises(CompactionError, match=r"cannot trace the model \(Branching\)"):
        compact(Branching())


def test_a_part_that_cannot_be_traced_can_stay_whole() -> None:
    model = zeroed(around(Branching()), "both", 0.4)
    small = compacted(model, X, leaf_modules=["1.1"])
    assert small.get_submodule("1.1.layer").weight.shape == (4, 4)
    assert small.get_submodule("2").out_features < 6


def test_a_layer_named_whole_keeps_its_weights() -> None:
    model = zeroed(around(nn.ReLU()), "both", 0.4)
    small = compacted(model, X, leaf_modules=("2",))
    assert torch.equal(small.get_submodule("2").weight, model[2].weight)


def test_a_name_of_no_module_is_refused() -> None:
    with pytest.raises(CompactionError, match=r"unknown module '1\.2'"):
        compact(around(nn.ReLU()), leaf_modules=["1.2"])


def test_a_module_that_does_not_know_its_shapes_is_refused() -> None:
    with pytest.raises(CompactionError, match=r"'1' \(LazyLinear\).*one batch"):
        compact(nn.Sequential(nn.Flatten(), nn.LazyLinear(3)))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_a_scripted_module_is_refused() -> None:
    with pytest.raises(CompactionError, match="scripted"):
        compact(nn.Sequential(torch.jit.script(nn.Linear(2, 2))))


def test_hooks_on_the_model_itself_are_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model.register_forward_hook(lambda module, inputs, output: output + 1)
    with pytest.raises(CompactionError, match="hooks"):
        compact(model)


class Writing(nn.Module):
    """A sum that is written into the first of two results, and what reads it before or after."""

    def __init__(self, reader: str) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.reader = reader

    def forward(self, x: Tensor) -> Tensor:
        written = self.one(x)
        before = written.view(x.shape[0], -1) if self.reader == "view" else written * 3
        written += self.two(x)
        written.relu_()
        return written * 2 + before if self.reader != "after" else written * 2


@pytest.mark.parametrize("reader", ["before", "after"])
def test_what_is_written_in_place_is_read_as_it_was_at_the_time(reader: str) -> None:
    model = alive(Writing(reader))
    assert_same_outputs(compact(model), model, X)


def test_writing_into_a_tensor_that_has_a_view_is_refused() -> None:
    with pytest.raises(CompactionError, match="in place"):
        compact(alive(Writing("view")))


def test_writing_through_a_view_is_refused() -> None:
    class Through(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.layer(x)
            x.view(-1).relu_()
            return x

    with pytest.raises(CompactionError, match="in place"):
        compact(Through())


def test_train_mode_of_the_model_does_not_matter_and_stays() -> None:
    model = alive(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2)))
    expected = model(X)
    model.train()
    small = compact(model)
    assert all(module.training for module in model.modules())
    assert not any(module.training for module in small.modules())
    torch.testing.assert_close(small(X), expected, rtol=1e-12, atol=1e-12)


def test_a_name_of_a_tensor_that_is_written_to_reads_what_was_written() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.layer(x)
            same = x
            x += 1
            x *= 2
            return self.layer(same) - x

    model = alive(Named())
    assert_same_outputs(compact(model), model, X)


def test_a_length_that_is_counted_up_is_another_number() -> None:
    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            rows = x.shape[0]
            more = rows
            more += 1
            return self.layer(x) * rows + more

    model = alive(Counted())
    small = compact(model)
    assert_same_outputs(small, model, X)
    assert_same_outputs(small, model, X[:1])
