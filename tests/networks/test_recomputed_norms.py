"""Batch-norm statistics of the present weights, against plain averages over batches in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from functools import partial
from itertools import count
from typing import Any

import pytest
import torch
from loops import each
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

import sparsemtl as sm
from sparsemtl.data import TensorLoader
from sparsemtl.errors import ParameterError
from sparsemtl.networks.frozen import Frozen
from sparsemtl.networks.masks import TaskMasks
from sparsemtl.networks.norms import shared_norms
from sparsemtl.tasks.batches import Loaders, per_task
from sparsemtl.training.evaluation.evaluate import evaluate
from sparsemtl.training.evaluation.trained import Trained

WIDTH = 6
CPU = torch.device("cpu")


def data(count: int, *, seed: int, shift: float = 0.0) -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.randn(count, WIDTH, generator=generator) + shift
    return x, {"a": (x[:, 0] > shift).long(), "b": x[:, 1:4].argmax(1)}


def loader(count: int = 40, *, seed: int = 1, size: int = 8, shuffle: bool = False, **options: Any) -> TensorLoader:
    return TensorLoader(*data(count, seed=seed), batch_size=size, shuffle=shuffle, **options)


def own_loaders(*, shuffle: bool = False) -> dict[str, TensorLoader]:
    """Inputs of unlike distributions, one loader per task."""
    loaders = {}
    for seed, (task, shift) in enumerate({"a": -4.0, "b": 4.0}.items()):
        x, targets = data(40, seed=seed, shift=shift)
        loaders[task] = TensorLoader(x, targets[task], batch_size=8, shuffle=shuffle)
    return loaders


def tasks() -> list[sm.Task]:
    return [sm.Classification("a", 2), sm.Classification("b", 3)]


def encoder() -> nn.Sequential:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(WIDTH, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5), nn.BatchNorm1d(5))
    network.out_features = 5  # type: ignore[assignment]
    return network


def shared() -> sm.SharedBottom:
    """Norms in the encoder, and one in the head of task "b"."""
    network = encoder()
    return sm.SharedBottom(network, tasks(), {"b": nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 3))})


def convolutional() -> nn.Sequential:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(8, 5)
    )
    network.out_features = 5  # type: ignore[assignment]
    return network


def inputs(loaders: Loaders, task: str) -> list[Tensor]:
    return [x for x, _ in (loaders[task] if per_task(loaders) else loaders)]  # type: ignore[index, call-overload]


def averages(network: sm.MultiTaskModel, batches: Iterable[Tensor], task: str) -> dict[str, Tensor]:
    """The mean over batches of each batch's mean and unbiased variance at every norm that it passes, in float64.

    Args:
        network: the task's network with weights of its own: computed in train mode, as it was trained.
    """
    network = deepcopy(network).double().train()
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for name, module in network.named_modules():
        if isinstance(module, _NormBase) and module.track_running_stats:

            def note(_: nn.Module, given: tuple[Tensor], name: str = name) -> None:
                channels = given[0].transpose(0, 1).flatten(1)
                seen.setdefault(name, []).append((channels.mean(1), channels.var(1)))

            module.register_forward_pre_hook(note)
    with torch.no_grad():
        for x in batches:
            network(x.double(), tasks=(task,))
    found = {}
    for name, pairs in seen.items():
        found[f"{name}.running_mean"] = torch.stack([mean for mean, _ in pairs]).mean(0)
        found[f"{name}.running_var"] = torch.stack([variance for _, variance in pairs]).mean(0)
    return found


def assert_averages(network: sm.MultiTaskModel, batches: Iterable[Tensor], task: str, *, equal: bool = True) -> None:
    buffers = dict(network.named_buffers())
    expected = averages(network, batches, task)
    assert expected
    close = [torch.allclose(buffers[n].double(), value, rtol=1e-4, atol=1e-5) for n, value in expected.items()]
    assert all(close) if equal else not any(close)


def with_masks(model: sm.MultiTaskModel, masks: TaskMasks, norms: sm.TaskNorms, task: str) -> sm.MultiTaskModel:
    """A plain copy with the task's weights and statistics written into it."""
    own = deepcopy(model)
    with torch.no_grad():
        for name, mask in masks[task].items():
            own.get_parameter(name).mul_(mask)
    own.load_state_dict(own.state_dict() | norms[task])
    return own


# In a user's own loop


@pytest.mark.parametrize("make", [loader, own_loaders])
def test_every_task_gets_the_averages_of_its_own_network_over_its_own_batches(make: Callable[[], Loaders]) -> None:
    model, loaders = shared(), make()
    masks = sm.choose_masks(sm.criteria.Random(seed=1), model, (), keep=0.5)
    norms = sm.TaskNorms(model)
    own = {name: tensor.clone() for name, tensor in shared_state(model).items()}
    sm.recompute_norms(model, loaders, norms, masks=masks)
    for task in model.tasks:
        assert_averages(with_masks(model, masks, norms, task), inputs(loaders, task), task)
    assert all(torch.equal(own[name], tensor) for name, tensor in shared_state(model).items())


def shared_state(model: sm.MultiTaskModel) -> dict[str, Tensor]:
    return {n: t for n, t in model.state_dict().items() if n.startswith("encoder.")}


def test_a_bounded_number_of_batches_is_read() -> None:
    model, norms, batches = shared(), None, loader()
    sm.recompute_norms(model, batches, norms, batches=2)
    copy = shared()
    sm.recompute_norms(copy, list(batches)[:2])
    assert all(torch.equal(t, copy.state_dict()[n]) for n, t in model.state_dict().items())
    assert int(model.encoder[1].num_batches_tracked) == 4  # two batches of either task
    with pytest.raises(ParameterError, match="`batches` must be at least 1, got 0"):
        sm.recompute_norms(model, batches, batches=0)


def test_shared_statistics_are_averages_over_all_tasks() -> None:
    model, loaders = shared(), own_loaders()
    sm.recompute_norms(model, loaders)
    both = [*inputs(loaders, "a"), *inputs(loaders, "b")]
    expected = averages(model, both, "a")
    for kind in ("running_mean", "running_var"):
        torch.testing.assert_close(
            model.get_buffer(f"encoder.1.{kind}").double(), expected[f"encoder.1.{kind}"], rtol=1e-5, atol=1e-6
        )


def test_a_task_s_unlabelled_batches_and_single_samples_are_left_out() -> None:
    x, targets = data(17, seed=3)  # two batches and a sample
    targets["a"][:8] = -100
    norms = sm.TaskNorms(model := shared())
    sm.recompute_norms(model, TensorLoader(x, targets, batch_size=8), norms)
    nothing = TaskMasks.ones(dict(model.shared_parameters()), model.tasks)
    assert_averages(with_masks(model, nothing, norms, "a"), [x[8:16]], "a")
    assert_averages(with_masks(model, nothing, norms, "b"), [x[:8], x[8:16]], "b")


def test_nothing_else_changes_and_no_random_number_is_drawn() -> None:
    model = shared().train()
    model.encoder[1].eval()
    batches = loader(shuffle=True, generator=torch.Generator().manual_seed(4))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    modes = [(m.training, getattr(m, "momentum", None), len(m._forward_hooks)) for m in model.modules()]
    draws, order = torch.get_rng_state(), batches.generator.get_state()  # type: ignore[union-attr]
    sm.recompute_norms(model, batches, sm.TaskNorms(model))
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert [(m.training, getattr(m, "momentum", None), len(m._forward_hooks)) for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), draws)
    assert torch.equal(batches.generator.get_state(), order)  # type: ignore[union-attr]
    assert all(p.grad is None for p in model.parameters())


def test_norms_that_training_does_not_move_stay() -> None:
    frozen = sm.SharedBottom(Frozen(encoder()), tasks(), {t.name: nn.Linear(5, t.outputs) for t in tasks()})
    still = shared()
    for norm in shared_norms(still).values():
        norm.momentum = 0.0
    for model in (frozen, still):
        before = {n: t.clone() for n, t in shared_state(model).items()}
        sm.recompute_norms(model, loader())
        assert all(torch.equal(t, before[n]) for n, t in shared_state(model).items())


def test_instance_norms_with_statistics_count_too() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 3, 2), nn.InstanceNorm1d(3, track_running_stats=True), nn.Flatten()
    )
    model = sm.SharedBottom(network, tasks(), {t.name: nn.Linear(15, t.outputs) for t in tasks()})
    sm.recompute_norms(model, loader())
    means = [network[1](network[0](x)).mean((0, 2)) for x, _ in loader()]
    torch.testing.assert_close(network[2].running_mean, torch.stack(means).mean(0))


# The trainer


def quiet(model: sm.MultiTaskModel, **options: Any) -> sm.Trainer:
    return sm.Trainer(model, **{"progress": False, "accelerator": "cpu", "epochs": 3, **options})


METHODS: dict[str, tuple[Callable[[], sm.MultiTaskModel], Callable[[], sm.Sharing]]] = {
    "fisher": (lambda: sm.SharedBottom(encoder(), tasks()), lambda: sm.FisherSharing(keep=0.5, estimator="true")),
    "random": (shared, lambda: sm.RandomSharing(keep=0.5)),
    "random, renewed": (shared, lambda: sm.RandomSharing(keep=0.5, update_every=1)),
    "pbfs": (shared, lambda: sm.PBFSSharing(target_sparsity=0.6, warmup=1, reach_at=3, update_every_steps=2)),
    "soft masks": (lambda: sm.SharedBottom(convolutional(), tasks()), lambda: sm.SoftMaskSharing(lambda_=0.3)),
    "soft masks over copies": (
        lambda: sm.Auxiliary(convolutional(), tasks(), strength=0.0),
        lambda: sm.SoftMaskSharing(lambda_=0.3),
    ),
    "dense": (shared, lambda: sm.DenseSharing(bn="per_task")),
    "gradient masks": (shared, lambda: sm.RandomSharing(keep=0.5, mask_applies_to="gradients", bn="per_task")),
    "group lasso": (
        lambda: sm.SharedBottom(convolutional(), tasks()),
        lambda: sm.GroupLassoSharing(lambda_=0.2, bn="per_task"),
    ),
    "single task": (lambda: sm.SingleTask(encoder(), tasks()), lambda: sm.DenseSharing(bn="per_task")),
}


@pytest.mark.filterwarnings("ignore:GroupLassoSharing:sparsemtl.errors.MaskWarning")  # these runs are too short
@pytest.mark.parametrize(
    ("method", "make"),
    [
        *((method, own_loaders) for method in METHODS),
        ("random", loader),
        ("soft masks", loader),
        *(
            pytest.param(method, loader, marks=pytest.mark.slow)
            for method in METHODS
            if method not in ("random", "soft masks")
        ),
    ],
)
def test_the_network_that_is_kept_has_the_statistics_of_its_weights(
    method: str, make: Callable[[], Loaders], tmp_path: Any
) -> None:
    model, sharing = METHODS[method][0](), METHODS[method][1]()
    loaders = make()
    options = {"optimizer": partial(torch.optim.SGD, lr=0.3, momentum=0.5)}
    trainer = quiet(model, sharing=sharing, folder=tmp_path, **options).fit(loaders, loader(20, seed=2))
    for task in model.tasks:
        assert_averages(trainer.network(task), inputs(loaders, task), task)


def test_running_averages_are_not_those_statistics() -> None:
    """Otherwise the test above proves nothing."""
    loaders = own_loaders()
    sharing, optimizer = sm.RandomSharing(keep=0.5), partial(torch.optim.SGD, lr=0.3, momentum=0.5)
    trainer = quiet(shared(), sharing=sharing, optimizer=optimizer, norm_batches=0).fit(loaders, loader(20, seed=2))
    for task in "ab":
        assert_averages(trainer.network(task), inputs(loaders, task), task, equal=False)


@pytest.mark.filterwarnings("ignore:GroupLassoSharing:sparsemtl.errors.MaskWarning")  # these runs are too short
@each("method", METHODS)
def test_training_itself_is_the_same_with_and_without(method: str) -> None:
    ends = []
    for norm_batches in (None, 0):
        model, sharing = METHODS[method][0](), METHODS[method][1]()
        train = {"a": loader(shuffle=True, generator=torch.Generator().manual_seed(3)), "b": loader(shuffle=True)}
        epochs = count()  # as monitor, it keeps the last epoch
        trainer = quiet(model, sharing=sharing, norm_batches=norm_batches, monitor=lambda _, n=epochs: next(n))
        trainer.fit(train, loader(20, seed=2))
        ends.append(
            ([p.detach().clone() for p in [*model.parameters(), *trainer.networks.parameters()]], torch.get_rng_state())
        )
    for one, other in zip(ends[0][0], ends[1][0], strict=True):
        assert torch.equal(one, other)
    assert torch.equal(ends[0][1], ends[1][1])


def test_shared_statistics_are_left_to_training_unless_asked_for() -> None:
    means = []
    for options in ({}, {"norm_batches": 0}, {"norm_batches": 50}):
        trainer = quiet(shared(), epochs=1, **options).fit(loader(), loader(20, seed=2))
        means.append(trainer.model.get_buffer("encoder.1.running_mean"))
    assert torch.equal(means[0], means[1])
    assert not torch.equal(means[0], means[2])


def test_stale_statistics_make_a_good_network_guess() -> None:
    """Weights that separate the classes, and running averages from before a bias moved by ten deviations."""
    network = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    task = sm.Classification("sign", 2)
    model = sm.SharedBottom(network, [task], {"sign": nn.Linear(1, 2)})
    x = torch.linspace(-1, 1, 40)[torch.randperm(40, generator=torch.Generator().manual_seed(0))][:, None]
    train = TensorLoader(x, {"sign": (x[:, 0] > 0).long()}, batch_size=10)
    with torch.no_grad():
        network[0].weight.fill_(1.0)
        network[0].bias.fill_(10.0)  # the running mean is still zero
        model.heads["sign"].weight.copy_(torch.tensor([[-1.0], [1.0]]))
        model.heads["sign"].bias.zero_()
    networks = sm.DenseSharing(bn="per_task").start(model)
    trained = Trained(model, networks, model)
    stale = evaluate(trained, train, CPU)["sign"]["accuracy"]
    sm.recompute_norms(model, train, networks=networks)
    fresh = evaluate(trained, train, CPU)["sign"]["accuracy"]
    assert stale == 0.5
    assert fresh > 0.9


def test_in_every_precision() -> None:
    for precision in ("bf16-mixed", "bf16-true", "64-true"):
        trainer = quiet(shared(), sharing=sm.RandomSharing(keep=0.5), precision=precision, epochs=1)
        trainer.fit(loader(), loader(20, seed=2))
        expected = averages(trainer.network("a"), inputs(loader(), "a"), "a")
        for name, value in expected.items():
            found = trainer.network("a").get_buffer(name).double()
            torch.testing.assert_close(found, value, rtol=1e-5 if precision == "64-true" else 0.05, atol=0.05)
