"""Classes per token: padding adds exactly nothing, metrics equal counts by hand, Fisher equals a loop over samples."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score
from torch import Tensor, nn

from sparsemtl import Classification, SharedBottom, TokenClassification, fisher_information
from sparsemtl.errors import LabelError, ParameterError
from sparsemtl.heads import TokenFeatures, TokenHead
from sparsemtl.tasks.entities import EntityF1, entities

SAMPLES, TOKENS, CLASSES, WIDTH = 6, 5, 3, 4
BIO = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


def labels() -> Tensor:
    target = torch.randint(CLASSES, (SAMPLES, TOKENS), generator=torch.Generator().manual_seed(0))
    target[1, 3:] = -100
    return target


def logits(requires_grad: bool = True) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(SAMPLES, TOKENS, CLASSES, generator=generator, dtype=torch.float64, requires_grad=requires_grad)


class Encoder(nn.Module):
    """Token features that depend on the neighbours, and their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.out_features = WIDTH
        self.embed = nn.Embedding(7, WIDTH)
        self.mix = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: dict[str, Tensor]) -> TokenFeatures:
        embedded = self.embed(x["ids"])
        tokens = torch.tanh(self.mix(torch.cat([embedded, embedded.roll(1, 1)], 2)))
        return TokenFeatures(tokens, tokens.mean(1))


def model_and_batch() -> tuple[SharedBottom, tuple[dict[str, Tensor], dict[str, Tensor]]]:
    torch.manual_seed(0)
    model = SharedBottom(Encoder(), [TokenClassification("tags", CLASSES), Classification("topic", 2)]).double()
    x = {"ids": torch.randint(7, (SAMPLES, TOKENS))}
    return model, (x, {"tags": labels(), "topic": torch.randint(2, (SAMPLES,))})


def test_the_loss_is_the_mean_over_labelled_tokens() -> None:
    output, target = logits(), labels()
    expected = [F.cross_entropy(output[i, j], target[i, j]) for i, j in (target != -100).nonzero().tolist()]
    torch.testing.assert_close(TokenClassification("t", CLASSES).loss(output, target), torch.stack(expected).mean())


def test_outputs_of_padding_change_nothing() -> None:
    task, output, target = TokenClassification("t", CLASSES), logits(), labels()
    other = output.detach().clone()
    other[1, 3:] = math.nan
    other.requires_grad_()
    first, second = task.loss(output, target), task.loss(other, target)
    first.backward()
    second.backward()
    assert torch.equal(first, second)
    assert torch.equal(output.grad, other.grad)
    assert not bool(output.grad[1, 3:].any())


def test_token_metrics_equal_scikit_learn_over_labelled_tokens() -> None:
    task, output, target = TokenClassification("t", CLASSES), logits(requires_grad=False), labels()
    metrics = task.metrics()
    for part in (slice(0, 2), slice(2, SAMPLES)):
        task.update(metrics, output[part], target[part])
    known = target != -100
    predicted, true = output.argmax(2)[known], target[known]
    assert float(metrics["accuracy"].compute()) == pytest.approx(float((predicted == true).double().mean()))
    assert float(metrics["f1_macro"].compute()) == pytest.approx(f1_score(true, predicted, average="macro"))


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("B-PER I-PER O B-LOC", [(0, 2, "PER"), (3, 4, "LOC")]),
        ("B-PER B-PER I-PER", [(0, 1, "PER"), (1, 3, "PER")]),
        ("O I-LOC I-LOC", [(1, 3, "LOC")]),
        ("B-PER I-LOC", [(0, 1, "PER"), (1, 2, "LOC")]),
        ("O O", []),
    ],
)
def test_entities_of_bio_tags(tags: str, expected: list[tuple[int, int, str]]) -> None:
    assert list(entities(tags.split())) == expected


def test_an_entity_counts_only_as_a_whole() -> None:
    true = torch.tensor([[1, 2, 0, 3, -100]])
    predicted = torch.tensor([[1, 2, 0, 1, 4]])  # the person is right, the place is taken for a person
    metric = EntityF1(BIO)
    metric.update(F.one_hot(predicted, len(BIO)).double().transpose(1, 2), true)
    assert float(metric.compute()) == pytest.approx(0.5)


def test_bio_tags_are_judged_by_entities_first() -> None:
    assert next(iter(TokenClassification("ner", BIO).metrics())) == "entity_f1"
    assert next(iter(TokenClassification("pos", ["noun", "verb"]).metrics())) == "accuracy"


@pytest.mark.parametrize("estimator", ["fs", "true"])
def test_fisher_information_of_a_token_task_equals_a_loop_over_samples(estimator: str) -> None:
    model, (x, targets) = model_and_batch()
    names = list(model.shared_parameters())
    total = {name: torch.zeros_like(p) for name, p in model.shared_parameters().items()}
    for i in range(SAMPLES):
        output = model({"ids": x["ids"][i : i + 1]})["tags"][0]
        label = targets["tags"][i] if estimator == "true" else output.argmax(1)
        label = torch.where(targets["tags"][i] == -100, -100, label)
        log_prob = -F.cross_entropy(output, label, reduction="sum")
        for name, g in zip(names, torch.autograd.grad(log_prob, [model.get_parameter(n) for n in names]), strict=True):
            total[name] += g.square() / SAMPLES
    scores = fisher_information(model, [(x, targets)], "tags", estimator, mask_all=True)
    assert set(scores) == set(names)
    for name, score in scores.items():
        torch.testing.assert_close(score.double(), total[name], rtol=1e-6, atol=1e-12)


def test_tasks_per_token_and_per_sequence_share_one_encoder() -> None:
    model, (x, targets) = model_and_batch()
    outputs = model(x)
    assert outputs["tags"].shape == (SAMPLES, TOKENS, CLASSES)
    assert outputs["topic"].shape == (SAMPLES, 2)
    sum(task.loss(outputs[name], targets) for name, task in model.tasks.items()).backward()
    assert all(bool(p.grad.any()) for p in model.parameters())


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (torch.zeros(2, 3, dtype=torch.float64), "whole numbers"),
        (torch.zeros(2, dtype=torch.long), "whole numbers"),
        (torch.full((2, 3), 7), "label 7"),
        (torch.full((2, 3), -1), "label -1"),
    ],
)
def test_wrong_labels_are_named(target: Tensor, message: str) -> None:
    with pytest.raises(LabelError, match=message):
        TokenClassification("t", CLASSES).labels(target)


def test_wrong_outputs_are_named() -> None:
    task = TokenClassification("t", CLASSES)
    with pytest.raises(ParameterError, match=r"\(batch, tokens, 3\), got \(6, 3, 5\)"):
        task.loss(logits().transpose(1, 2), labels())
    with pytest.raises(LabelError, match="outputs of 4 tokens, labels of 5"):
        task.loss(logits()[:, :4], labels())
    with pytest.raises(ParameterError, match=r"\(batch, tokens, width\), the encoder gave \(2, 4\)"):
        TokenHead(4, 3)(torch.zeros(2, 4))
    with pytest.raises(ParameterError, match="width of the encoder's token features"):
        task.head()
    with pytest.raises(ParameterError, match="one of the classes"):
        TokenClassification("t", 3, ignore_index=2)
