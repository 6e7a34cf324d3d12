"""Cost of the exact diagonal Fisher information of transformers for 3 tasks, in plain training steps.

    python benchmarks/transformer_fisher_speed.py [--quick] [--threads 2] [--json FILE]

Time of `Fisher(mask_all=True).scores` over 16 batches of 32, the check of the first batch included, divided by the time
of forward and backward passes of the same batches. All parameters are scored, class tokens and positions too. The
networks are a ViT and a BERT of transformers with random weights, and an encoder of torch's own layers with attention
by `nn.MultiheadAttention`. The error is the largest difference to one backward pass per sample, over the largest score
of the tensor or 1e-4 of the largest of all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from common import Measure, Ratio, joint_pass, main, paired
from torch import Tensor, nn
from transformers import BertConfig, BertModel, ViTConfig, ViTModel

from sparsemtl import Classification, SharedBottom
from sparsemtl.criteria import Fisher

TASKS = 3
BATCH = 32
WIDTH = 192
SIZES = {"hidden_size": WIDTH, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 4 * WIDTH}
LENGTH = 64


class First(nn.Module):
    """Output of a transformer at the first position."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, width)."""
        y: Any = self.encoder(x)
        hidden: Tensor = y if isinstance(y, Tensor) else y.last_hidden_state
        return hidden[:, 0]


class Torchs(nn.Module):
    """Vision transformer of torch's own layers."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, LENGTH + 1, WIDTH) * 0.02)
        layer = nn.TransformerEncoderLayer(WIDTH, 3, 4 * WIDTH, activation="gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, positions, width)."""
        hidden = self.patches(x).flatten(2).transpose(1, 2)
        hidden = torch.cat([self.token.expand(len(x), -1, -1), hidden], 1)
        return self.layers(hidden + self.positions)


def images(count: int) -> Tensor:
    """Random images of 64x64."""
    return torch.randn(count, 3, 64, 64)


def words(count: int) -> Tensor:
    """Random sequences of 64 tokens."""
    return torch.randint(1000, (count, LENGTH))


KINDS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor], float | None]] = {
    "ViT": (lambda: ViTModel(ViTConfig(**SIZES, image_size=64, patch_size=8), add_pooling_layer=False), images, 3.2),
    "BERT": (lambda: BertModel(BertConfig(**SIZES, vocab_size=1000), add_pooling_layer=False), words, 2.7),
    "ViT of torch's layers": (Torchs, images, None),
}


def network(kind: str) -> SharedBottom:
    """A network with 3 tasks in eval mode, so that dropout costs neither side."""
    torch.manual_seed(0)
    tasks = [Classification(f"task{index}", 10) for index in range(TASKS)]
    heads = {task.name: nn.Linear(WIDTH, 10) for task in tasks}
    return SharedBottom(First(KINDS[kind][0]()), tasks, heads).eval()


def batches(kind: str, samples: int) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Random batches of 32 samples, or one of fewer."""
    size = min(BATCH, samples)
    read = KINDS[kind][1]
    return [
        (read(size), {f"task{task}": torch.randint(10, (size,)) for task in range(TASKS)})
        for _ in range(samples // size)
    ]


def scores(model: SharedBottom, data: Any, **options: Any) -> dict[str, dict[str, Tensor]]:
    """Scores of all tasks and all parameters."""
    criterion = Fisher(samples=None, mask_all=True, estimator="true", **options)
    return criterion.scores(model, data, list(model.tasks.values()))


def error(kind: str) -> float:
    """Largest relative difference to the loop over samples, on four of them."""
    model, data = network(kind), batches(kind, 4)
    fast, loop = scores(model, data)["task0"], scores(model, data, path="loop")["task0"]
    least = 1e-4 * max(float(score.max()) for score in loop.values())
    return max(float((fast[n] - loop[n]).abs().max()) / max(float(loop[n].max()), least) for n in loop)


def measures(quick: bool) -> Iterator[Measure]:
    """Yield a ratio per network, then its error."""
    for kind, (_, _, goal) in KINDS.items():
        if quick and goal is None:
            continue
        model, data = network(kind), batches(kind, 128 if quick else 512)

        def plain(model: SharedBottom = model, data: Any = data) -> None:
            for x, targets in data:
                joint_pass(model, x, targets)

        time = paired(plain, lambda model=model, data=data: scores(model, data), 2 if goal and not quick else 1)
        yield Measure(f"Fisher of {kind}, T={TASKS}, {len(data)} batches ÷ plain", time, goal=goal)
        if not quick:
            largest = error(kind)
            yield Measure(f"largest error of {kind}", Ratio(largest, largest, largest), goal=1e-4)


if __name__ == "__main__":
    main(measures, __doc__)
