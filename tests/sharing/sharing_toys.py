"""A model, its data and an engine, small enough for many runs in a test."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from policies import Started
from torch import Tensor, nn

import sparsemtl as sm
from sparsemtl.balancing import Balancer, as_balancer
from sparsemtl.data import TensorLoader
from sparsemtl.registry.parameters import parameters_of as keywords_of
from sparsemtl.sharing import SHARING, Sharing
from sparsemtl.sharing.sharing import Update
from sparsemtl.tasks.batches import Group, Loaders, per_task
from sparsemtl.training.mixing import epoch_batches
from sparsemtl.training.steps.step import TrainingStep
from sparsemtl.training.steps.update import choose_update

WIDTH = 6
NAMES = ("kind", "marks", "side")

OPTIMIZERS: dict[str, Callable[[Iterable[Any]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=0.02, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.5),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, weight_decay=0.1),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05, weight_decay=0.1),
}


def tasks(**weights: float) -> list[sm.Task]:
    """Three tasks of which every Fisher estimator has something to say."""
    kind, marks, side = (weights.get(name, 1.0) for name in NAMES)
    return [
        sm.Classification("kind", 3, weight=kind),
        sm.MultiLabel("marks", 2, weight=marks),
        sm.Classification("side", 2, weight=side),
    ]


def encoder(*, norm: bool = True, dropout: float = 0.0) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(WIDTH, 8)]
    if norm:
        layers.append(nn.BatchNorm1d(8))
    layers.append(nn.ReLU())
    if dropout:
        layers.append(nn.Dropout(dropout))
    network = nn.Sequential(*layers, nn.Linear(8, 5), nn.Tanh())
    network.out_features = 5  # type: ignore[assignment]
    return network


def model(*, norm: bool = True, dropout: float = 0.0, **weights: float) -> sm.SharedBottom:
    """Always the same one."""
    torch.manual_seed(0)
    return sm.SharedBottom(encoder(norm=norm, dropout=dropout), tasks(**weights))


def table(count: int = 24, *, seed: int = 1) -> tuple[Tensor, dict[str, Tensor]]:
    x = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))
    targets = {"kind": x[:, :3].argmax(1), "marks": (x[:, 2:4] > 0).float(), "side": (x.sum(1) > 0).long()}
    return x, targets


def loader(count: int = 24, *, seed: int = 1, batch_size: int = 8, shuffle: bool = True) -> TensorLoader:
    return TensorLoader(*table(count, seed=seed), batch_size=batch_size, shuffle=shuffle)


def own_loaders(count: int = 16) -> dict[str, TensorLoader]:
    """A loader a task, with bare labels and inputs of its own."""
    loaders = {}
    for seed, name in enumerate(NAMES):
        x, targets = table(count, seed=seed)
        loaders[name] = TensorLoader(x, targets[name], batch_size=8, shuffle=True)
    return loaders


def double(batch: Group) -> Group:
    """The same batch in double precision."""
    targets = {name: t.double() if t.is_floating_point() else t for name, t in batch.targets.items()}
    return Group(batch.x.double(), targets, batch.tasks)


def batch_of(seed: int, tasks: tuple[str, ...] = NAMES) -> Group:
    return Group(*table(8, seed=seed), tasks)


def takes(method: str, parameter: str) -> bool:
    return parameter in keywords_of(SHARING[method])


def build(method: str, **options: Any) -> Sharing:
    """A method of the registry, on linear layers if it must be told; options that it does not know are left out.

    One that trains in iterations has one, so that it is at its end after as few epochs as others.
    """
    one: dict[str, Any] = {"linear": True, "iterations": 1, "iteration": 1, "epochs_per_iteration": 1}
    options = {**one, **options}
    return SHARING.build(method, **{name: value for name, value in options.items() if takes(method, name)})


def engine_of(
    network: sm.MultiTaskModel,
    sharing: Sharing,
    *,
    optimizer: str | Callable[[Iterable[Any]], torch.optim.Optimizer] = "adamw",
    update: Update | None = None,
    balancing: Balancer | Any = "mean",
    own_data: bool = False,
) -> TrainingStep:
    """An engine on the model, the method attached."""
    device = torch.device("cpu")
    networks = sharing.start(network)
    balancer = as_balancer(balancing)
    balancer.attach(len(network.tasks), device)
    make = OPTIMIZERS[optimizer] if isinstance(optimizer, str) else optimizer
    own = update or choose_update(network, networks, balancer, asked=sharing.update, own_data=own_data)
    made = make([*network.parameters(), *networks.parameters()])
    return TrainingStep(network, made, networks, sharing=sharing, balancing=balancer, update=own)


def run_epoch(engine: TrainingStep, loaders: Loaders, epoch: int) -> None:
    Started.of(engine).begin_epoch(epoch, loaders)
    engine.model.train()
    for groups in epoch_batches(loaders, engine.tasks, "longest"):
        engine.step([groups])


def trained(
    sharing: Sharing, loaders: Loaders, *, epochs: int = 2, network: sm.MultiTaskModel | None = None, **options: Any
) -> TrainingStep:
    """An engine after some epochs, the order of the data always the same."""
    engine = engine_of(network or model(), sharing, own_data=per_task(loaders), **options)
    torch.manual_seed(7)
    for epoch in range(epochs):
        run_epoch(engine, loaders, epoch)
    return engine


def watch_steps(engine: TrainingStep) -> list[dict[str, Tensor]]:
    """A list that gets the parameters after every step from now on; they stand there as they are now to begin with."""
    states = [parameters_of(engine.model)]
    take_step = engine._move

    def record(tasks: Any, part: float = 1.0) -> None:
        take_step(tasks, part)
        states.append(parameters_of(engine.model))

    engine._move = record  # type: ignore[method-assign]
    return states


def parameters_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in network.named_parameters()}


def assert_held(before: Mapping[str, Tensor], after: Mapping[str, Tensor], active: Mapping[str, Tensor] | None) -> None:
    """What lies outside of `active` did not move by a bit."""
    for name, mask in (active or {}).items():
        assert torch.equal(before[name][~mask], after[name][~mask]), name


def moved_outside(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], active: Mapping[str, Tensor] | None
) -> int:
    """Number of weights outside of `active` that moved."""
    return sum(int((before[name] != after[name])[~mask].sum()) for name, mask in (active or {}).items())
