"""Sentences from templates: words, tags and labels that belong together."""

from __future__ import annotations

import random

import torch

from sparsemtl.data import DATASETS, Split
from sparsemtl.data.sentences import INTENTS, LENGTH, MOODS, TAGS, drawn, vocabulary


def test_numbers_of_words_and_tags_are_those_of_the_sentences() -> None:
    words = {number: word for word, number in vocabulary().items()}
    assert set(words) == set(range(1, len(words) + 1))
    assert len(words) < 64
    split = DATASETS.build("sentences", train_size=50, validation_size=1, test_size=1, seed=3).train
    assert isinstance(split, Split)
    draw = random.Random(3)
    for x, intent, mood, tags in zip(split.x, *split.targets.values(), strict=True):
        sentence = drawn(draw)
        count = len(sentence.words)
        assert [words[int(number)] for number in x[:count]] == [word for word, _ in sentence.words]
        assert [TAGS[int(tag)] for tag in tags[:count]] == [tag for _, tag in sentence.words]
        assert (list(INTENTS)[int(intent)], list(MOODS)[int(mood)]) == (sentence.intent, sentence.mood)
        assert torch.equal(x[count:], torch.zeros(LENGTH - count, dtype=torch.long))
        assert bool((tags[count:] == -100).all())
