"""What Python asks of tensors while a network is recorded has the true answer, or compaction is refused."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from compaction_toys import alive, assert_same_outputs, compacted
from loops import each
from torch import Tensor, nn

import sparsemtl as sm
from sparsemtl.errors import CompactionError, CompactionWarning, ParameterError

IMAGES = torch.randn(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
WORDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
Function = Callable[[nn.Module, Any], Any]


class Asking(nn.Module):
    """Two convolutions, the second of which reads five of eight channels, and a function in between."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)
        with torch.no_grad():
            self.second.weight[:, 5:] = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.function(self, self.first(x)).relu())


class Words(nn.Module):
    """Embedded words, positions that the sequence's length selects, two layers."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.words, self.places = nn.Embedding(20, 6), nn.Embedding(32, 6)
        self.register_buffer("table", torch.randn(1, 32, 6))
        self.register_buffer("triangle", torch.ones(32, 32).tril())
        self.learned = nn.Parameter(torch.randn(1, 32, 6))
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)
        with torch.no_grad():
            self.second.weight[:, 5:] = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(self.function(self, self.words(x))).relu())


QUESTIONS: dict[str, Function] = {
    "isinstance": lambda m, x: 2 * x if isinstance(x, torch.Tensor) else x,
    "isinstance, or the first": lambda m, x: x if isinstance(x, Tensor) else x[0] * 0,
    "is_tensor": lambda m, x: 2 * x if torch.is_tensor(x) else x,
    "type": lambda m, x: 2 * x if type(x) is Tensor else x,
    "class": lambda m, x: 2 * x if x.__class__ is Tensor else x,
    "tuple": lambda m, x: 2 * x if isinstance(x, (tuple, list)) else x,
    "callable": lambda m, x: 2 * x if callable(x) else x,
    "an attribute that is not there": lambda m, x: 2 * x if hasattr(x, "logits") else x,
    "an attribute that is there": lambda m, x: 2 * x if hasattr(x, "shape") else x,
    "axes": lambda m, x: 2 * x if x.dim() == 4 else x,
    "axes of the shape": lambda m, x: 2 * x if len(x.shape) == 4 else x,
    "number of channels": lambda m, x: 2 * x if x.shape[1] == 8 else x,
    "whether there are positions": lambda m, x: 2 * x if x.shape[2] and x.size(3) > 0 else x,
    "type of numbers": lambda m, x: 2 * x if x.dtype == torch.float16 else 3 * x,
    "whether they are fractions": lambda m, x: 2 * x if x.is_floating_point() else x,
    "device": lambda m, x: 2 * x if x.device.type == "cpu" else x,
    "GPU": lambda m, x: 2 * x if x.is_cuda else x,
    "scripting": lambda m, x: 2 * x if torch.jit.is_scripting() else x,
    "training": lambda m, x: 2 * x if m.training else x,
    "strides": lambda m, x: 2 * x if x.stride(1) == 1 else x,
    "gradients": lambda m, x: 2 * x if x.requires_grad else x,
    "root of the number of channels": lambda m, x: x / math.sqrt(x.shape[1]),
}


@each("question", QUESTIONS)
def test_a_question_has_its_true_answer(question: str) -> None:
    small = compacted(alive(Asking(QUESTIONS[question])), IMAGES)
    assert (small.first.out_channels, small.second.in_channels) == (5, 5)


class Mapped(Asking):
    """Reads a mapping, of which no layer tells the keys."""

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return super().forward(batch["image"])


CLASSES = ("isinstance", "isinstance, or the first", "is_tensor", "class", "tuple")


@each("question", QUESTIONS)
def test_without_an_example_what_cannot_be_answered_is_refused_or_warned_of(question: str) -> None:
    model, batch = alive(Mapped(QUESTIONS[question])), {"image": IMAGES}
    small = sm.compact(model, example_inputs=batch)
    with torch.no_grad():
        torch.testing.assert_close(small(batch), model(batch), rtol=1e-12, atol=1e-12)
    if question in CLASSES:
        with pytest.raises(CompactionError, match="example_inputs"):
            sm.compact(model)
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            small = sm.compact(model)
        except CompactionError:
            return
    assert CompactionWarning in [each.category for each in caught]
    assert not small.report.verification.verified


KEPT: dict[str, Function] = {
    "halves": lambda m, x: torch.cat(x.chunk(2, 1), 1),
    "parts": lambda m, x: torch.cat(x.split(3, dim=1), dim=1),
    "samples": lambda m, x: torch.stack(x.unbind(), 0),
    "channels": lambda m, x: torch.cat(x.unbind(1), 1).view(x.shape),
    "both halves as arguments": lambda m, x: torch.maximum(*x.chunk(2, 1)).repeat(1, 2, 1, 1).rot90(2, (2, 3)),
    "length one": lambda m, x: F.normalize(x, dim=1),
    "divided by a norm": lambda m, x: x / torch.norm(x),
    "divided by norms": lambda m, x: x / x.norm(dim=1, keepdim=True),
    "cumulated": lambda m, x: torch.cumsum(x, 1, out=None),
    "as long as the batch": lambda m, x: x.view(len(x), -1).view(x.shape),
    "largest": lambda m, x: x - x.max(1, keepdim=True).values,
}


@each("function", KEPT)
def test_what_is_not_followed_keeps_all_channels(function: str) -> None:
    small = compacted(alive(Asking(KEPT[function])), IMAGES)
    assert small.first.out_channels == 8
    assert small.report.layer("first").why


FOLLOWED: dict[str, Function] = {
    "only part": lambda m, x: torch.relu(x.chunk(1, 1)[0]),
    "swapped halves": lambda m, x: torch.cat(x.chunk(2, 1)[::-1], 1),
    "ones": lambda m, x: x + torch.ones(x.shape[0], 1, 1, 1, dtype=x.dtype, device=x.device),
    "numbers of places": lambda m, x: x + torch.arange(x.size(3), device=x.device),
}


@pytest.mark.parametrize("function", FOLLOWED)
def test_what_is_followed_loses_channels(function: str) -> None:
    small = compacted(alive(Asking(FOLLOWED[function])), IMAGES)
    assert (small.first.out_channels, small.second.in_channels) == (5, 5)


POSITIONS: dict[str, Function] = {
    "a buffer's first rows": lambda m, x: x + m.table[:, : x.size(1)],
    "a parameter's first rows": lambda m, x: x + m.learned[:, : x.shape[1], :],
    "embedded places": lambda m, x: x + m.places(torch.arange(x.size(1), device=x.device)),
    "a corner of a buffer": lambda m, x: m.triangle[: x.size(1), : x.size(1)] @ x,
    "a token in front": lambda m, x: torch.cat([m.table[:, :1].expand(x.shape[0], -1, -1), x], 1),
    "a triangle": lambda m, x: torch.ones(x.size(1), x.size(1), dtype=x.dtype).tril() @ x,
    "the least number": lambda m, x: x.masked_fill(x > 0, torch.finfo(x.dtype).min).clamp(min=-1),
    "type and back": lambda m, x: (x.to(torch.float32) * 2).to(x.dtype),
}


@each("function", POSITIONS)
def test_positions_are_those_of_each_sequence(function: str) -> None:
    model = alive(Words(POSITIONS[function]))
    small = compacted(model, WORDS)
    assert small.first.out_features == 5
    file = io.BytesIO()
    torch.save(small, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for words in (WORDS, WORDS[:1, :3], WORDS.repeat(3, 4)):
        assert_same_outputs(small, model, words)
        assert_same_outputs(loaded, model, words)


def _repeated(m: nn.Module, x: Tensor) -> Tensor:
    places = torch.arange(x.shape[1]).unsqueeze(0)
    if places.shape[0] != x.shape[0]:  # as models of transformers do
        places = places.expand(x.shape[0], -1)
    return x + m.places(places)


def _heads(x: Tensor) -> Tensor:
    return x.view(x.shape[0], -1, 2, 3).softmax(-1).reshape(x.shape[0], -1, 6)


SAMPLES: dict[str, Function] = {
    "places for each sample": _repeated,
    "table in front": lambda m, x: _heads(m.table[:, : x.size(1)] * x),
    "rows of places": lambda m, x: _repeated(m, x.view(-1, x.shape[1], x.shape[2])),
    "mean of samples in front": lambda m, x: _heads(x.mean(0, keepdim=True) + x),
    "product with a table": lambda m, x: _heads(torch.matmul(m.triangle[None, :4, : x.size(1)], x)),
}


@each("samples", [1, 2])
@each("function", SAMPLES)
def test_a_network_takes_any_number_of_samples_whatever_the_example_has(function: str, samples: int) -> None:
    model = alive(Words(SAMPLES[function]))
    small = sm.compact(model, example_inputs=WORDS[:samples])
    assert (small.first.out_features, small.report.verification.only) == (5, "")
    for words in (WORDS[:1], WORDS, WORDS.repeat(2, 3), WORDS[:1].repeat(1, 2)):
        assert_same_outputs(small, model, words)


class Beside(nn.Module):
    """Features of (B, positions, 5), and a second input beside them that may be the same for all samples."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function, self.first, self.second = function, nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        made = self.function(self.first(x), other)
        return self.second(made.view(made.shape[0], -1, 2, 4).softmax(-1).flatten(2))


REPEATED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": lambda x, other: other + x,
    "comparison": lambda x, other: torch.where(other > 0, x, 0.5),
    "matrices": lambda x, other: torch.matmul(other @ other.transpose(1, 2), x),
    "attention": lambda x, other: F.scaled_dot_product_attention(*(part.unsqueeze(1) for part in (other, x, x)))[:, 0],
}


@each("function", REPEATED)
def test_a_tensor_that_is_the_same_for_all_samples_has_not_their_number(function: str) -> None:
    model = Beside(REPEATED[function]).double()
    x, other = (torch.randn(3, 4, width, dtype=torch.float64) for width in (5, 8))
    for samples in (1, 2):
        small = sm.compact(model, example_inputs=(x[:samples], other[:samples]))
        for pair in ((x, other[:1]), (x, other), (x[:1], other), (x[:1], other[:1])):
            with torch.no_grad():
                torch.testing.assert_close(small(*pair), model(*pair), rtol=1e-12, atol=1e-12)


ALONE: dict[str, Function] = {
    "another way": lambda m, x: 2 * x if x.shape[0] == 1 else x,
    "a further question": lambda m, x: 2 * x if x.shape[0] < 2 and x.shape[1] > 50 else x,
}


@each("function", ALONE)
def test_one_sample_is_refused_where_the_model_does_something_else_with_it(function: str) -> None:
    small = sm.compact(alive(Words(ALONE[function])), example_inputs=WORDS)
    with pytest.raises(ParameterError, match="another way"):
        small(WORDS[:1])
    assert "refused" in small.report.verification.only


def test_of_one_sample_as_the_example_a_network_takes_one_alone_where_others_differ() -> None:
    model = alive(Words(ALONE["another way"]))
    small = sm.compact(model, example_inputs=WORDS[:1])
    assert_same_outputs(small, model, WORDS[:1])
    with pytest.raises(ParameterError, match="another way"):
        small(WORDS)


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: x if x.sum() > 0 else -x,
        lambda m, x: x * x.mean().item(),
        lambda m, x: x + torch.from_numpy(x.numpy() * 2),
        lambda m, x: torch.stack([2 * each for each in x]),
        lambda m, x: x.index_fill_(1, torch.tensor([0]), 1.0) if x.__setitem__(0, 1.0) else x,
    ],
    ids=["branch", "number", "numpy", "loop over samples", "written into"],
)
def test_what_no_graph_can_hold_is_refused(function: Function) -> None:
    with pytest.raises(CompactionError):
        sm.compact(alive(Asking(function)))


def test_a_size_that_python_needs_is_refused_where_it_is_another() -> None:
    model = alive(Asking(lambda m, x: F.interpolate(x, size=(int(x.shape[2] * 1.5), x.shape[3] // 2))))
    small = compacted(model, IMAGES[:, :, :, :4], example_inputs=IMAGES)
    with pytest.raises(ParameterError, match="other sizes"):
        small(IMAGES[:, :, :4])
    assert "refused" in small.report.verification.only


def test_a_branch_on_sizes_is_refused_where_it_would_be_another() -> None:
    model = alive(Asking(lambda m, x: 2 * x if x.shape[-1] > 6 else x))
    small = compacted(model, IMAGES, example_inputs=IMAGES)
    with pytest.raises(ParameterError, match="another way"):
        small(IMAGES[..., :5])


def test_a_shortcut_by_values_that_tracing_skips_is_not_taken() -> None:
    def masked(m: nn.Module, x: Tensor) -> Tensor:
        known = x > -100.0
        if not torch.jit.is_tracing() and bool(known.all()):  # as models of transformers drop a mask of ones
            return x
        return x * known

    model = alive(Asking(masked))
    assert_same_outputs(sm.compact(model, example_inputs=IMAGES), model, IMAGES)


def test_a_loop_over_positions_is_refused_for_other_sizes() -> None:
    model = alive(Asking(lambda m, x: sum(x[:, :, :1] * place for place in range(1, x.shape[2]))))
    small = compacted(model, IMAGES, example_inputs=IMAGES)
    with pytest.raises(ParameterError, match="size"):
        small(torch.cat([IMAGES, IMAGES], 2))


def test_outputs_that_gradients_change_are_refused_with_gradients() -> None:
    small = sm.compact(alive(Asking(QUESTIONS["gradients"])))
    with pytest.raises(ParameterError, match="no_grad"):
        small(IMAGES)
