from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from sparsemtl import Classification, MultiLabel, Regression, SharedBottom, Task, Trainer
from sparsemtl.data import TensorLoader
from sparsemtl.errors import LabelWarning

SAMPLES = 12


def tasks() -> list[Task]:
    return [Classification("digit", 4), MultiLabel("shape", 3), Regression("ink")]


def data() -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    targets = {
        "digit": torch.randint(4, (SAMPLES,), generator=generator),
        "shape": torch.randint(2, (SAMPLES, 3), generator=generator).double(),
        "ink": torch.randn(SAMPLES, generator=generator, dtype=torch.float64),
    }
    return torch.randn(SAMPLES, 5, generator=generator, dtype=torch.float64), targets


def model_of(encoder: nn.Module | None = None) -> SharedBottom:
    torch.manual_seed(0)
    encoder = encoder or nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6))
    return SharedBottom(encoder, tasks(), {t.name: t.head(6) for t in tasks()}).double()


def task_gradients(model: SharedBottom) -> dict[str, list[Tensor]]:
    """Every task's gradient of the encoder, from a forward pass of its own."""
    x, targets = data()
    gradients = {}
    for name, task in model.tasks.items():
        loss = task.loss(model(x, tasks=[name])[name], targets)
        gradients[name] = list(torch.autograd.grad(loss, list(model.encoder.parameters())))
    return gradients


def test_the_shared_gradient_of_the_mean_loss_is_the_mean_of_the_tasks_gradients() -> None:
    model = model_of()
    x, targets = data()
    losses = [model.tasks[name].loss(output, targets) for name, output in model(x).items()]
    torch.stack(losses).mean().backward()
    for p, *rows in zip(model.encoder.parameters(), *task_gradients(model).values(), strict=True):
        torch.testing.assert_close(p.grad, torch.stack(rows).mean(0), rtol=1e-6, atol=1e-15)


@pytest.mark.parametrize("missing", [(), ("digit",), ("ink", "shape")])
def test_a_step_of_the_trainer_goes_along_the_mean_of_the_labelled_tasks_gradients(missing: tuple[str, ...]) -> None:
    model = model_of()
    x, targets = data()
    for name in missing:
        targets[name] = torch.full_like(targets[name].double(), torch.nan)
    mean = [
        sum(rows) / len(model.tasks)
        for rows in zip(*(g for name, g in task_gradients(model).items() if name not in missing), strict=True)
    ]
    before = [p.detach().clone() for p in model.encoder.parameters()]
    trainer = Trainer(
        model,
        optimizer=lambda groups: torch.optim.SGD(groups, lr=1.0),
        epochs=1,
        accelerator="cpu",
        precision="64-true",
        progress=False,
    )
    with pytest.warns(LabelWarning) if missing else nullcontext():
        trainer.fit(TensorLoader(x, targets, batch_size=SAMPLES), TensorLoader(*data(), batch_size=SAMPLES))
    for p, earlier, gradient in zip(model.encoder.parameters(), before, mean, strict=True):
        torch.testing.assert_close(earlier - p.detach(), gradient, rtol=1e-6, atol=1e-8)


def test_the_encoder_runs_once_for_all_tasks() -> None:
    model = model_of()
    calls: list[object] = []
    model.encoder.register_forward_hook(lambda *call: calls.append(call))
    model(data()[0])
    assert len(calls) == 1


class Widthless(nn.Module):
    """An encoder that tells nothing about itself."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return x.new_ones(len(x), *self.shape)


@pytest.mark.parametrize(
    ("encoder", "width"),
    [
        (nn.Linear(5, 9), 9),
        (nn.Sequential(nn.Linear(5, 9), nn.ReLU()), 9),
        (nn.LazyLinear(9), 9),
        (Widthless(4), 4),
        (Widthless(4, 3, 3), 4),
    ],
)
def test_any_module_is_an_encoder(encoder: nn.Module, width: int) -> None:
    model = SharedBottom(encoder, tasks())
    outputs = model(torch.rand(2, 5))
    assert {name: tuple(o.shape) for name, o in outputs.items()} == {"digit": (2, 4), "shape": (2, 3), "ink": (2, 1)}
    assert all(model.heads[name].in_features == width for name in model.tasks)


@pytest.mark.parametrize("attribute", ["out_features", "num_features"])
def test_heads_are_ready_at_once_if_the_encoder_tells_its_width(attribute: str) -> None:
    encoder = Widthless(4)
    setattr(encoder, attribute, 4)
    assert all(p.numel() for p in SharedBottom(encoder, tasks()).heads.parameters())


def test_an_encoder_may_take_and_give_nests_of_tensors() -> None:
    class Pair(nn.Module):
        def forward(self, x: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            return x["left"], x["right"]

    class Difference(nn.Module):
        def forward(self, features: tuple[Tensor, Tensor]) -> Tensor:
            return features[0] - features[1]

    model = SharedBottom(Pair(), [Regression("ink", 2)], {"ink": Difference()})
    assert model({"left": torch.full((3, 2), 5.0), "right": torch.ones(3, 2)})["ink"].tolist() == [[4, 4]] * 3


def test_the_encoder_is_the_users_own_and_not_a_copy() -> None:
    encoder = nn.Linear(5, 6)
    assert SharedBottom(encoder, tasks()).encoder is encoder
