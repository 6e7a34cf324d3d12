"""Masks in training loops of others: activation checkpointing changes no trained weight there either."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

import sparsemtl as sm
from sparsemtl.errors import MaskError

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]
HOW = {"plain": None, "not reentrant": False, "reentrant": True}


def masks_of(parameters: dict[str, Tensor], tasks: str) -> sm.TaskNetworks:
    generator = torch.Generator().manual_seed(1)
    masks = {t: {n: torch.rand(p.shape, generator=generator) < 0.5 for n, p in parameters.items()} for t in tasks}
    return sm.TaskNetworks.of_masks(sm.TaskMasks(masks))


class Encoder(nn.Module):
    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.first, self.second = nn.Linear(5, 8), nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.out_features = 8

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.second(x) if self.reentrant is None else checkpoint(self.second, x, use_reentrant=self.reentrant)


def lightning_modules() -> tuple[type[Any], type[Any]]:
    """Classes of modules, in a function, as importing Lightning takes longer than most files of tests."""
    lightning = pytest.importorskip("pytorch_lightning")

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        """Tasks in turns; Lightning calls `backward` after `training_step`, so the network is entered again there."""

        def __init__(self, reentrant: bool | None) -> None:
            super().__init__()
            torch.manual_seed(0)
            heads = {task: nn.Linear(8, 2) for task in "ab"}
            self.model = sm.SharedBottom(Encoder(reentrant), [sm.Classification(task, 2) for task in "ab"], heads)
            self.networks = masks_of({n: p for n, p in self.model.shared_parameters().items() if p.ndim == 2}, "ab")

        def training_step(self, batch: Any, index: int) -> Tensor:
            self.task = "ab"[index % 2]
            x, label = batch
            with self.networks.swapped(self.model, self.task):
                return self.model.tasks[self.task].loss(self.model(x, [self.task])[self.task], label)

        def backward(self, loss: Tensor) -> None:
            with self.networks.swapped(self.model, self.task):
                super().backward(loss)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters())

    class Late(Module):
        """The loop that cannot be right: backward after the context has ended."""

        def backward(self, loss: Tensor) -> None:
            loss.backward()

    return Module, Late


def fit(module: Any) -> list[Tensor]:
    import pytorch_lightning as lightning

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    x = torch.randn(32, 5, generator=torch.Generator().manual_seed(3))
    off = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(max_epochs=2, accelerator="cpu", **off)
    trainer.fit(module, DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=8))
    return [p.detach().clone() for p in module.parameters()]


def test_lightning_trains_the_same_weights() -> None:
    module, _ = lightning_modules()
    plain, *others = (fit(module(reentrant)) for reentrant in HOW.values())
    assert all(torch.equal(one, two) for other in others for one, two in zip(plain, other, strict=True))


def test_lightning_is_refused_where_backward_comes_too_late() -> None:
    _, late = lightning_modules()
    fit(late(None))
    with pytest.raises(MaskError, match="activation checkpointing recomputes"):
        fit(late(False))


def bert(reentrant: bool | None, folder: Path) -> list[Tensor]:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    model = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=20, **sizes))
    networks = masks_of({n: p for n, p in model.named_parameters() if p.ndim == 2 and "layer" in n}, "t")

    class Trainer(transformers.Trainer):  # type: ignore[misc, name-defined]
        def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
            with networks.swapped(model, "t"):  # forward and backward
                return super().training_step(model, *args, **kwargs)

    generator = torch.Generator().manual_seed(1)
    data = [
        {"input_ids": torch.randint(0, 20, (6,), generator=generator), "labels": torch.tensor(i % 2)} for i in range(16)
    ]
    arguments = transformers.TrainingArguments(
        str(folder),
        num_train_epochs=2,
        per_device_train_batch_size=4,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        gradient_checkpointing=reentrant is not None,
        gradient_checkpointing_kwargs=None if reentrant is None else {"use_reentrant": reentrant},
    )
    Trainer(model, arguments, train_dataset=data).train()
    return [p.detach().clone() for p in model.parameters()]


def test_the_trainer_of_transformers_trains_the_same_weights(tmp_path: Path) -> None:
    plain, *others = (bert(reentrant, tmp_path) for reentrant in HOW.values())
    assert all(torch.equal(one, two) for other in others for one, two in zip(plain, other, strict=True))
