"""Three tasks on one small BERT: intent and sentiment of a sentence, and a tag per word. Nothing to download.

    python examples/text_tasks.py

The sentences are made from templates. Replace `sentences` by your own data, and the configuration by
`AutoModel.from_pretrained("bert-base-uncased")` with its tokenizer.
"""

from __future__ import annotations

import random

import torch
from transformers import BertConfig, BertModel

import sparsemtl as sm
from sparsemtl.data import TensorLoader

INTENTS = {
    "book": ["book a table at {place} for {person}", "please reserve {place} today for {person}"],
    "play": ["play something by {person}", "put on the new song of {person} at {place}"],
    "ask": ["where is {person} now", "how do i get to {place} from here"],
}
MOODS = {"negative": ["this is awful", "i am annoyed"], "neutral": ["", "thanks"], "positive": ["i love it", "great"]}
PLACES = ["blue lagoon", "paris", "green dragon inn", "rome"]
PEOPLE = ["ada", "grace hopper", "alan turing", "emmy noether"]
TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
LENGTH = 20  # words per sentence, padding included


def sentences(number: int, seed: int) -> list[tuple[list[tuple[str, str]], str, str]]:
    """Return sentences as ((word, tag), ...), intent, mood."""
    draw = random.Random(seed)
    made = []
    for _ in range(number):
        intent, mood = draw.choice(list(INTENTS)), draw.choice(list(MOODS))
        words: list[tuple[str, str]] = []
        for word in f"{draw.choice(INTENTS[intent])} {draw.choice(MOODS[mood])}".split():
            kind, names = {"{place}": ("LOC", PLACES), "{person}": ("PER", PEOPLE)}.get(word, ("O", [word]))
            for position, part in enumerate(draw.choice(names).split()):
                words.append((part, "O" if kind == "O" else f"{'I' if position else 'B'}-{kind}"))
        made.append((words, intent, mood))
    return made


def vocabulary() -> dict[str, int]:
    """Return word -> number; 0 is padding."""
    words = sorted({word for words, _, _ in sentences(2000, seed=0) for word, _ in words})
    return {word: number for number, word in enumerate(words, 1)}


def loader(number: int, seed: int, words: dict[str, int], **options: bool) -> TensorLoader:
    """Return batches of (inputs of BERT, task -> labels)."""
    rows = sentences(number, seed)
    tokens = torch.zeros(number, LENGTH, dtype=torch.long)
    tags = torch.full((number, LENGTH), -100)  # an unknown label, as padding has
    for row, (tagged, _, _) in enumerate(rows):
        tokens[row, : len(tagged)] = torch.tensor([words[word] for word, _ in tagged])
        tags[row, : len(tagged)] = torch.tensor([TAGS.index(tag) for _, tag in tagged])
    labels = {
        "intent": torch.tensor([list(INTENTS).index(intent) for _, intent, _ in rows]),
        "sentiment": torch.tensor([list(MOODS).index(mood) for _, _, mood in rows]),
        "tags": tags,
    }
    inputs = {"input_ids": tokens, "attention_mask": (tokens > 0).long()}
    return TensorLoader(inputs, labels, batch_size=32, **options)


def main(samples: int = 600, epochs: int = 8) -> sm.Trainer:
    """Train with half of the feed-forward neurons per task, and print test figures and sizes."""
    torch.manual_seed(0)
    words = vocabulary()
    config = BertConfig(
        vocab_size=len(words) + 1,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
    )
    tasks: list[sm.Task] = [
        sm.Classification("intent", list(INTENTS)),
        sm.Classification("sentiment", list(MOODS)),
        sm.TokenClassification("tags", TAGS),
    ]
    encoder = sm.TransformerEncoder(BertModel(config, add_pooling_layer=False), pool="mean")
    trainer = sm.Trainer(
        sm.SharedBottom(encoder, tasks),
        sharing=sm.FisherSharing(keep=0.5, granularity="neuron", estimator="sample", samples=128),
        optimizer="adamw",
        parameter_groups=[{"parameters": ["*.bias", "LayerNorm"], "weight_decay": 0.0}],
        layer_decay=0.9,
        epochs=epochs,
        measure_cost=False,
    )
    trainer.fit(loader(samples, 1, words, shuffle=True), loader(samples // 3, 2, words))
    test = loader(samples // 3, 3, words)
    for task, figures in trainer.test(test).items():
        name, value = next((name, value) for name, value in figures.items() if name != "loss")
        print(f"{task}: {name} {value:.2f}")
    inputs, _ = next(iter(test))
    small = sm.compact(trainer.network("intent"), task="intent", example_inputs=inputs)
    print(f"intent alone: {sm.parameter_count(small)} of {sm.parameter_count(trainer.model)} weights")
    return trainer


if __name__ == "__main__":
    main()
