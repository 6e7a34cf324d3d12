"""Dense sharing against the training loops that it stands for, written out in plain torch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from policies import Started
from sharing_toys import NAMES, OPTIMIZERS, batch_of, encoder, engine_of, loader, model, own_loaders, tasks, trained
from states import assert_same, state_of

import sparsemtl as sm
from sparsemtl.errors import ParameterError
from sparsemtl.sharing.sharing import Update

Loop = Callable[[sm.SharedBottom, torch.optim.Optimizer, int], None]


def joint(network: sm.SharedBottom, optimizer: torch.optim.Optimizer, seed: int) -> None:
    """The textbook's loop: one forward, the mean of the losses, one step."""
    batch = batch_of(seed)
    optimizer.zero_grad()
    outputs = network(batch.x)
    losses = [task.loss(outputs[name], batch.targets[name]) for name, task in network.tasks.items()]
    torch.stack(losses).mean().backward()
    optimizer.step()


def average(network: sm.SharedBottom, optimizer: torch.optim.Optimizer, seed: int) -> None:
    """A forward and a backward a task, one step."""
    batch = batch_of(seed)
    optimizer.zero_grad()
    for name, task in network.tasks.items():
        loss = task.loss(network(batch.x, tasks=(name,))[name], batch.targets[name])
        (loss / len(network.tasks)).backward()
    optimizer.step()


def alternate(network: sm.SharedBottom, optimizer: torch.optim.Optimizer, seed: int) -> None:
    """A step a task."""
    batch = batch_of(seed)
    for name, task in network.tasks.items():
        optimizer.zero_grad()
        task.loss(network(batch.x, tasks=(name,))[name], batch.targets[name]).backward()
        optimizer.step()


LOOPS: dict[Update, Loop] = {"joint": joint, "average": average, "alternate": alternate}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("update", LOOPS)
def test_it_is_plain_multi_task_training(update: Update, optimizer: str) -> None:
    engine = engine_of(model(), sm.DenseSharing(update=update), optimizer=optimizer)
    plain = model()
    plain_optimizer = OPTIMIZERS[optimizer](plain.parameters())
    for seed in range(4):
        engine.step([[batch_of(seed)]])
        LOOPS[update](plain, plain_optimizer, seed)
    found, expected = state_of(engine.model), state_of(plain)
    if update == "joint":  # the mean of the losses rounds once more than the sum of their thirds
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    else:
        assert_same(found, expected)


def test_by_default_tasks_on_one_input_train_jointly_and_on_inputs_of_their_own_averaged() -> None:
    sharing = Started(sm.DenseSharing(), model())
    assert sharing.update_for(own_data=False) == "joint"
    assert sharing.update_for(own_data=True) == "average"


def test_by_default_independent_tasks_take_turns() -> None:
    torch.manual_seed(0)
    sharing = Started(sm.DenseSharing(), sm.SingleTask(encoder(), tasks()))
    assert sharing.update_for(own_data=False) == "alternate"


def test_with_statistics_a_task_it_takes_turns_and_cannot_train_jointly() -> None:
    sharing = Started(sm.DenseSharing(bn="per_task"), model())
    assert sharing.update_for(own_data=False) == "alternate"
    sharing = Started(sm.DenseSharing(bn="per_task", update="joint"), model())
    with pytest.raises(ParameterError, match="update='joint' runs one forward pass for all tasks"):
        sharing.update_for(own_data=False)


def test_it_has_no_masks_and_holds_nothing() -> None:
    sharing = Started.of(trained(sm.DenseSharing(), loader()))
    assert sharing.masks is None
    assert sharing.active(NAMES) is None
    assert sharing.is_selectable(0)
    assert list(sharing.metrics()) == []
    assert all(sharing.gradient_mask(task) is None and sharing.penalty(task) is None for task in NAMES)


def outputs(engine_model: sm.MultiTaskModel, sharing: Started) -> dict[str, torch.Tensor]:
    found = {}
    for task in NAMES:
        with torch.no_grad(), sharing.view(task):
            found |= engine_model(batch_of(9).x, tasks=(task,))
    return found


def test_batch_statistics_serve_evaluation_too_and_are_not_remembered() -> None:
    engine = trained(sm.DenseSharing(bn="batch"), loader())
    network, sharing = engine.model, Started.of(engine)
    assert network.encoder[1].num_batches_tracked == 0
    assert_same(outputs(network.eval(), sharing), outputs(network.train(), sharing))


def test_shared_statistics_are_averages_over_all_tasks_batches() -> None:
    network = trained(sm.DenseSharing(update="alternate"), loader(), epochs=1).model
    assert network.encoder[1].num_batches_tracked == len(loader()) * len(NAMES)
    network = trained(sm.DenseSharing(update="joint"), loader(), epochs=1).model
    assert network.encoder[1].num_batches_tracked == len(loader())


def test_tasks_with_data_of_their_own_see_their_own_inputs_only() -> None:
    loaders = own_loaders()
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in NAMES}
    network = model()
    for name in NAMES:
        network.heads[name].register_forward_pre_hook(lambda _, args, name=name: seen[name].append(args[0]))
    engine = trained(sm.DenseSharing(), loaders, epochs=1, network=network)
    assert engine.update == "average"
    assert {name: len(inputs) for name, inputs in seen.items()} == dict.fromkeys(NAMES, 2)
