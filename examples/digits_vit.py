"""Two tasks on a small ViT with scikit-learn's digits: which digit, and how far it leans. Nothing to download.

python examples/digits_vit.py                # this file as a script
sparsemtl run examples/digits-vit.yaml       # the same as a configuration, with this file as a plugin
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated

import torch
from transformers import ViTConfig, ViTModel
from typing_extensions import Doc

import sparsemtl as sm
from sparsemtl.backbones import ENCODERS
from sparsemtl.data import DATASETS


def vit(
    input_shape: Sequence[int],
    *,
    patch: Annotated[int, Doc("Pixels per side of a patch.")] = 2,
    width: Annotated[int, Doc("Width of the tokens.")] = 32,
    layers: Annotated[int, Doc("Transformer layers.")] = 2,
    heads: Annotated[int, Doc("Attention heads per layer.")] = 4,
) -> sm.TransformerEncoder:
    """Vision transformer of the transformers library, with random weights (Dosovitskiy et al. 2021)."""
    config = ViTConfig(
        image_size=input_shape[1],
        num_channels=input_shape[0],
        patch_size=patch,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
    )
    return sm.TransformerEncoder(ViTModel(config, add_pooling_layer=False), pool="first")


ENCODERS["vit"] = vit  # `encoder: vit` in a configuration that names this file in `plugins`


def main(epochs: int = 10) -> sm.Trainer:
    """Train with half of the feed-forward neurons per task, and print test figures and sizes."""
    torch.manual_seed(0)
    data = DATASETS.build("digits")
    tasks = [task for task in data.tasks if task.name in ("digit", "slant")]
    train, validation, test = data.loaders(batch_size=64)
    trainer = sm.Trainer(
        sm.SharedBottom(vit(data.input_shape), tasks),
        sharing=sm.FisherSharing(keep=0.5, granularity="neuron", estimator="efs", samples=256),
        optimizer=partial(torch.optim.AdamW, lr=3e-3),
        layer_decay=0.9,
        epochs=epochs,
        measure_cost=False,
    )
    trainer.fit(train, validation)
    for task, figures in trainer.test(test).items():
        name, value = next((name, value) for name, value in figures.items() if name != "loss")
        print(f"{task}: {name} {value:.2f}")
    images, _ = next(iter(test))
    small = sm.compact(trainer.network("digit"), task="digit", example_inputs=images)
    print(f"digit alone: {sm.parameter_count(small)} of {sm.parameter_count(trainer.model)} weights")
    return trainer


if __name__ == "__main__":
    main()
