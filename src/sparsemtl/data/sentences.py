"""Sentences made from templates, with tasks per sentence and per word. Nothing to download."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
from typing_extensions import Doc

from sparsemtl.data.base import Split, TaskData
from sparsemtl.data.options import checked
from sparsemtl.data.requirements import requires_files
from sparsemtl.registry.parameters import Count, Natural
from sparsemtl.tasks import Classification, TokenClassification

INTENTS = {
    "book": ["book a table at {place} for {person}", "please reserve {place} today for {person}"],
    "play": ["play something by {person}", "put on the new song of {person} at {place}"],
    "ask": ["where is {person} now", "how do i get to {place} from here"],
}
"""Intent -> templates of its sentences."""
MOODS = {"negative": ["this is awful", "i am annoyed"], "neutral": ["", "thanks"], "positive": ["i love it", "great"]}
"""Sentiment -> ends of sentences."""
NAMES = {
    "{place}": ("LOC", ["blue lagoon", "paris", "green dragon inn", "rome"]),
    "{person}": ("PER", ["ada", "grace hopper", "alan turing", "emmy noether"]),
}
"""Word of a template -> kind of entity, and names that take its place."""
TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
LENGTH = 20
"""Words per sentence, padding included."""
PADDING = 0
"""Number that stands for padding."""


class Sentence(NamedTuple):
    """A sentence: words with their tags, intent, sentiment."""

    words: list[tuple[str, str]]
    intent: str
    mood: str


@requires_files(remark="generated when it is asked for.")
@checked
def sentences(
    *,
    root: Annotated[str | Path | None, Doc("Unused: nothing is read or written.")] = None,
    train_size: Annotated[Count, Doc("Number of training sentences.")] = 600,
    validation_size: Annotated[Count, Doc("Number of validation sentences.")] = 200,
    test_size: Annotated[Count, Doc("Number of test sentences.")] = 200,
    seed: Annotated[Natural, Doc("Seed of all sentences.")] = 0,
) -> TaskData:
    """Sentences: requests from templates, with an intent, a sentiment, and a tag per word.

    A sample is the numbers of 20 words, 0 being padding; other numbers are below 64. The tasks are `intent` (book,
    play, ask), `sentiment` (negative, neutral, positive) and `tags` (persons and places, BIO). Encoders that read token
    numbers fit, such as `encoder: {name: transformers, model: bert, padding: 0}`.
    """
    draw = random.Random(seed)
    train, validation, test = (_split(draw, size) for size in (train_size, validation_size, test_size))
    tasks = (
        Classification("intent", list(INTENTS)),
        Classification("sentiment", list(MOODS)),
        TokenClassification("tags", TAGS),
    )
    note = f"generated from templates (seed {seed})"
    return TaskData("sentences", tasks, train, validation, test, notes=(note,))


def vocabulary() -> dict[str, int]:
    """Return word -> number, from 1 on."""
    texts = [text for templates in (*INTENTS.values(), *MOODS.values()) for text in templates]
    texts += [name for _, names in NAMES.values() for name in names]
    words = sorted({word for text in texts for word in text.split()} - set(NAMES))
    return {word: number for number, word in enumerate(words, 1)}


def drawn(draw: random.Random) -> Sentence:
    """Return a random sentence."""
    intent, mood = draw.choice(list(INTENTS)), draw.choice(list(MOODS))
    words: list[tuple[str, str]] = []
    for word in f"{draw.choice(INTENTS[intent])} {draw.choice(MOODS[mood])}".split():
        kind, names = NAMES.get(word, ("O", [word]))
        for position, part in enumerate(draw.choice(names).split()):
            words.append((part, "O" if kind == "O" else f"{'I' if position else 'B'}-{kind}"))
    return Sentence(words, intent, mood)


def _split(draw: random.Random, size: int) -> Split:
    """Return sentences as numbers of words (N, 20), with their labels; tags of padding are unknown (-100)."""
    known = vocabulary()
    made = [drawn(draw) for _ in range(size)]
    tokens = torch.full((size, LENGTH), PADDING)
    tags = torch.full((size, LENGTH), -100)
    for row, (words, _, _) in enumerate(made):
        tokens[row, : len(words)] = torch.tensor([known[word] for word, _ in words])
        tags[row, : len(words)] = torch.tensor([TAGS.index(tag) for _, tag in words])
    intents = torch.tensor([list(INTENTS).index(sentence.intent) for sentence in made])
    moods = torch.tensor([list(MOODS).index(sentence.mood) for sentence in made])
    return Split(tokens, {"intent": intents, "sentiment": moods, "tags": tags})
