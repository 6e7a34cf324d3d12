from __future__ import annotations

import torch
from torch import nn

import sparsemtl as sm
from sparsemtl.architectures.heads import stride_of, width_of
from sparsemtl.backbones import CNN, MLP
from sparsemtl.backbones.stemmed import Stemmed
from sparsemtl.data.tables.embedding import ColumnEmbedding


def test_it_is_the_stem_and_then_the_body() -> None:
    stem, body = nn.Linear(4, 3), MLP((3,), hidden=[5])
    x = torch.randn(6, 4)
    assert torch.equal(Stemmed(stem, body)(x), body(stem(x)))


def test_it_tells_of_its_features_what_the_body_tells() -> None:
    maps = CNN((3, 8, 8), widths=[4])
    assert width_of(Stemmed(nn.Identity(), maps)) == width_of(maps)
    assert stride_of(Stemmed(nn.Identity(), maps)) == stride_of(maps)
    vectors = Stemmed(nn.Linear(2, 3), MLP((3,), hidden=[7]))
    assert (width_of(vectors), stride_of(vectors)) == (7, None)
    timm = nn.Linear(3, 2)
    timm.num_features = 2
    del timm.out_features
    assert width_of(Stemmed(nn.Identity(), timm)) == 2
    assert width_of(Stemmed(nn.Identity(), nn.ReLU())) is None


def test_stem_and_body_learn_together_and_come_back_from_their_weights() -> None:
    def make() -> Stemmed:
        stem = ColumnEmbedding([4, 3], numeric=2)
        return Stemmed(stem, MLP((stem.out_features,), hidden=[6]))

    model = sm.SharedBottom(make(), [sm.Regression("a"), sm.Classification("b", 2)])
    x = torch.tensor([[0.1, 0.2, 1, 2], [0.3, -0.2, 3, 1]])
    sum(output.sum() for output in model(x).values()).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    other = sm.SharedBottom(make(), [sm.Regression("a"), sm.Classification("b", 2)])
    other.load_state_dict(model.state_dict())
    assert all(torch.equal(model(x)[name], other(x)[name]) for name in ("a", "b"))
