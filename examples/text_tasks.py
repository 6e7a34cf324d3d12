"""Three tasks on one small BERT: intent and sentiment of a sentence, and a tag per word. Nothing to download.

    python examples/text_tasks.py                # this file as a script
    sparsemtl run examples/text-tasks.yaml       # the same from a configuration alone

The sentences are made from templates, as numbers of words. Replace them by your own data and tokenizer, and the
configuration by `AutoModel.from_pretrained("bert-base-uncased")`.
"""

from __future__ import annotations

import torch
from transformers import BertConfig, BertModel

import sparsemtl as sm
from sparsemtl.data import DATASETS, Split, TensorLoader
from sparsemtl.data.sentences import PADDING


def loader(split: Split, *, shuffle: bool = False) -> TensorLoader:
    """Return batches of (inputs of BERT, task -> labels)."""
    inputs = {"input_ids": split.x, "attention_mask": (split.x != PADDING).long()}
    return TensorLoader(inputs, split.targets, batch_size=32, shuffle=shuffle)


def main(samples: int = 600, epochs: int = 8) -> sm.Trainer:
    """Train with half of the feed-forward neurons per task, and print test figures and sizes."""
    torch.manual_seed(0)
    data = DATASETS.build("sentences", train_size=samples, validation_size=samples // 3, test_size=samples // 3)
    config = BertConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=20,
    )
    encoder = sm.TransformerEncoder(BertModel(config, add_pooling_layer=False), pool="mean")
    trainer = sm.Trainer(
        sm.SharedBottom(encoder, data.tasks),
        sharing=sm.FisherSharing(keep=0.5, granularity="neuron", estimator="sample", samples=128),
        optimizer="adamw",
        parameter_groups=[{"parameters": ["*.bias", "LayerNorm"], "weight_decay": 0.0}],
        layer_decay=0.9,
        epochs=epochs,
        measure_cost=False,
    )
    assert isinstance(data.train, Split)
    assert isinstance(data.validation, Split)
    assert isinstance(data.test, Split)
    trainer.fit(loader(data.train, shuffle=True), loader(data.validation))
    test = loader(data.test)
    for task, figures in trainer.test(test).items():
        name, value = next((name, value) for name, value in figures.items() if name != "loss")
        print(f"{task}: {name} {value:.2f}")
    inputs, _ = next(iter(test))
    small = sm.compact(trainer.network("intent"), task="intent", example_inputs=inputs)
    print(f"intent alone: {sm.parameter_count(small)} of {sm.parameter_count(trainer.model)} weights")
    return trainer


if __name__ == "__main__":
    main()
