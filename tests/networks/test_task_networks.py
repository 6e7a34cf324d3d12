"""Task networks: what a task computes with is factor * own tensor, whoever reads it, and from a file as well."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from loops import each
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import sparsemtl as sm
from sparsemtl.errors import CheckpointError, MaskError
from sparsemtl.networks import swap, swap_guards
from sparsemtl.networks.norms import own_statistics
from sparsemtl.networks.swap import swap_tensors
from sparsemtl.networks.task_networks import TaskNetwork, TaskNetworks, dense_networks
from sparsemtl.storage.files import write_tree

TASKS = ("a", "b")


class Blocks(nn.Module):
    """Three blocks, each of which may be recomputed in the backward pass."""

    def __init__(self, how: str = "plain") -> None:
        super().__init__()
        self.how = how
        self.first = nn.Linear(5, 8)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Tanh()) for _ in range(3))
        self.out_features = 8

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x) if self.how == "plain" else checkpoint(block, x, use_reentrant=self.how == "reentrant")
        return x


def model_of(how: str = "plain") -> sm.SharedBottom:
    torch.manual_seed(0)
    heads = {"a": nn.Linear(8, 3), "b": nn.Linear(8, 1)}
    return sm.SharedBottom(Blocks(how), [sm.Classification("a", 3), sm.Regression("b")], heads)


def batch(seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    x = torch.randn(12, 5, generator=torch.Generator().manual_seed(seed))
    return x, {"a": x[:, :3].argmax(1), "b": x.sum(1)}


def masks_of(model: sm.MultiTaskModel, keep: float = 0.5) -> sm.TaskMasks:
    generator = torch.Generator().manual_seed(1)
    shared = {name: p for name, p in model.shared_parameters().items() if p.ndim == 2}
    return sm.TaskMasks(
        {t: {n: torch.rand(p.shape, generator=generator) < keep for n, p in shared.items()} for t in TASKS}
    )


def soft_of(model: sm.MultiTaskModel) -> TaskNetworks:
    generator = torch.Generator().manual_seed(2)
    shared = {name: p for name, p in model.shared_parameters().items() if p.ndim == 2}
    own = own_statistics(model, "per_task")
    return TaskNetworks(
        {
            task: TaskNetwork(
                weight_factors={n: nn.Parameter(torch.rand(p.shape, generator=generator)) for n, p in shared.items()},
                own_tensors=own[task],
            )
            for task in TASKS
        }
    )


def masked_outputs_of(model: sm.MultiTaskModel) -> TaskNetworks:
    """Outputs of a layer, and of a norm behind one, switched off by turns."""
    off = {
        t: {n: torch.arange(8) % 2 == i for n in ("encoder.first", "encoder.blocks.1.1")} for i, t in enumerate(TASKS)
    }
    own = own_statistics(model, "per_task")
    return TaskNetworks({t: TaskNetwork(output_factors=off[t], own_tensors=own[t]) for t in TASKS})


KINDS: dict[str, Callable[[sm.MultiTaskModel], TaskNetworks]] = {
    "dense": lambda model: dense_networks(model, TASKS),
    "own statistics": lambda model: dense_networks(model, TASKS, own_statistics(model, "per_task")),
    "statistics of the batch": lambda model: dense_networks(model, TASKS, own_statistics(model, "batch")),
    "masks": lambda model: TaskNetworks.of_masks(masks_of(model), own_statistics(model, "per_task")),
    "masks of gradients": lambda model: TaskNetworks.of_masks(masks_of(model), applies_to="gradients"),
    "soft masks": soft_of,
    "masks of outputs": masked_outputs_of,
    "own weights under masks": lambda model: TaskNetworks.of_masks(
        masks_of(model),
        {t: {n: p.detach() + i for n, p in model.shared_parameters().items()} for i, t in enumerate(TASKS)},
    ),
}
every_kind = each("kind", KINDS)


def by_hand(model: sm.MultiTaskModel, network: TaskNetwork) -> dict[str, Any]:
    values: dict[str, Any] = {**model.state_dict(), **{n: t for n, t in network.own_tensors.items() if t is not None}}
    for module, factor in network.output_factors.items():
        for name in (f"{module}.weight", f"{module}.bias"):
            values[name] = values[name] * factor.view(-1, *[1] * (values[name].ndim - 1))
    return values | {name: values[name] * factor for name, factor in network.weight_factors.items()}


@every_kind
def test_a_task_computes_with_factor_times_own_tensor_or_the_models(kind: str) -> None:
    model, (x, _) = model_of().eval(), batch()
    networks = KINDS[kind](model)
    for task in TASKS:
        with networks.swapped(model, task), torch.no_grad():
            found = model(x)[task]
        if kind == "statistics of the batch":
            assert torch.equal(found, model_of().train()(x)[task])
            continue
        expected = functional_call(model, by_hand(model, networks[task]), (x,))[task]
        assert torch.equal(found, expected)
        copied = networks.network(model, task)
        assert torch.equal(copied(x)[task], expected)
        tensors: Any = networks.tensors(model, task)
        assert torch.equal(functional_call(model, tensors, (x,))[task], expected)


@every_kind
def test_one_network_is_said_exactly_where_all_tasks_compute_the_same(kind: str) -> None:
    networks = KINDS[kind](model_of())
    assert networks.one_network == (kind in ("dense", "statistics of the batch", "masks of gradients"))


def test_channels_of_an_output_are_switched_off_per_task() -> None:
    model, (x, _) = model_of().eval(), batch()
    factors = {task: {"encoder.first": torch.arange(8) % 2 == i} for i, task in enumerate(TASKS)}
    networks = TaskNetworks({task: TaskNetwork(output_factors=factors[task]) for task in TASKS})
    assert not networks.one_network
    for task in TASKS:
        values = dict(model.state_dict())
        for name in ("encoder.first.weight", "encoder.first.bias"):
            keep = factors[task]["encoder.first"]
            values[name] = values[name] * (keep[:, None] if values[name].ndim == 2 else keep)
        with networks.swapped(model, task):
            assert torch.equal(model(x)[task], functional_call(model, values, (x,))[task])
    assert not model.encoder.first._forward_hooks


@pytest.mark.parametrize("tasks", [("a",), ("b",), TASKS])
@pytest.mark.parametrize("applies_to", ["weights", "gradients"])
def test_a_step_may_move_what_one_of_its_tasks_keeps(applies_to: Any, tasks: tuple[str, ...]) -> None:
    masks = masks_of(model_of())
    region = TaskNetworks.of_masks(masks, applies_to=applies_to).trainable(tasks)
    assert region is not None
    for name, mask in region.items():
        assert torch.equal(mask, torch.stack([masks[task][name] for task in tasks]).any(0))
    assert TaskNetworks.of_masks(masks, applies_to=applies_to, strict=False).trainable(tasks) is None


def test_masks_that_keep_everything_restrict_no_step() -> None:
    masks = sm.TaskMasks.ones(model_of().shared_parameters(), TASKS)
    assert TaskNetworks.of_masks(masks).trainable(TASKS) is None


@every_kind
def test_a_file_gives_the_same_networks_back(kind: str, tmp_path: Path) -> None:
    model, (x, _) = model_of().eval(), batch()
    networks = KINDS[kind](model)
    networks.save(tmp_path / "networks.safetensors")
    again = TaskNetworks.load(tmp_path / "networks.safetensors", model)
    assert again.one_network == networks.one_network
    assert again.masks == networks.masks
    for task in TASKS:
        with networks.swapped(model, task), torch.no_grad():
            expected = model(x)[task]
        with again.swapped(model, task), torch.no_grad():
            assert torch.equal(model(x)[task], expected)


def test_a_mask_takes_one_bit_per_weight_on_disk(tmp_path: Path) -> None:
    model = sm.SharedBottom(nn.Linear(300, 300, bias=False), [sm.Regression("a"), sm.Regression("b")])
    TaskNetworks.of_masks(masks_of(model)).save(tmp_path / "networks.safetensors")
    assert (tmp_path / "networks.safetensors").stat().st_size < 2 * 300 * 300 / 8 + 4000


def test_files_that_are_not_of_this_model_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "networks.safetensors"
    TaskNetworks.of_masks(masks_of(model_of())).save(path)
    other = sm.SharedBottom(nn.Linear(5, 8), [sm.Classification("a", 3), sm.Regression("b")])
    with pytest.raises(MaskError, match=r"task 'a': SharedBottom has no parameter or buffer 'encoder\.first\.weight'"):
        TaskNetworks.load(path, other)
    narrow = model_of()
    narrow.encoder.first = nn.Linear(4, 8)
    with pytest.raises(
        MaskError, match=r"'encoder\.first\.weight': the network has shape \(8, 5\), SharedBottom has \(8, 4\)"
    ):
        TaskNetworks.load(path, narrow)
    write_tree(path, {"anything": 1})
    with pytest.raises(CheckpointError, match="is not a file of task networks"):
        TaskNetworks.load(path)


@every_kind
def test_a_state_is_put_back_into_the_parameters_that_an_optimizer_holds(kind: str) -> None:
    networks = KINDS[kind](model_of())
    state, parameters = networks.state_dict(), list(networks.parameters())
    with torch.no_grad():
        for parameter in parameters:
            parameter.zero_()
    again = networks.restored(state)
    assert [id(p) for p in again.parameters()] == [id(p) for p in parameters]
    for task in TASKS:
        for name, tensor in state[task]["weight_factors"].items():
            assert torch.equal(again[task].weight_factors[name], tensor)


@every_kind
def test_a_state_copies_what_training_changes_in_place(kind: str) -> None:
    networks = KINDS[kind](model_of())
    for task, parts in networks.state_dict().items():
        for part, tensors in parts.items():
            for name, tensor in tensors.items():
                own = getattr(networks[task], part)[name]
                if own is not None:
                    assert torch.equal(tensor, own)
                    assert (tensor.data_ptr() == own.data_ptr()) == (own.dtype == torch.bool)


# The swap holds from the forward to the backward pass

RECOMPUTED = ["reentrant", "not reentrant"]


def gradients(model: sm.MultiTaskModel, networks: TaskNetworks, run: Callable[..., None]) -> list[Tensor]:
    run(model, networks)
    everything = [*model.parameters(), *networks.parameters()]
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in everything]


def loss_of(model: sm.MultiTaskModel, task: str) -> Tensor:
    x, labels = batch()
    return model.tasks[task].loss(model(x.requires_grad_(), [task])[task], labels[task])


def one_by_one(model: sm.MultiTaskModel, networks: TaskNetworks) -> None:
    for task in TASKS:
        with networks.swapped(model, task):
            loss_of(model, task).backward()


def all_forward_first(model: sm.MultiTaskModel, networks: TaskNetworks) -> None:
    losses = {}
    for task in TASKS:
        with networks.swapped(model, task):
            losses[task] = loss_of(model, task)
    for task, loss in losses.items():
        with networks.swapped(model, task):
            loss.backward()


@each("run", [one_by_one, all_forward_first])
@each("how", RECOMPUTED)
@every_kind
def test_recomputed_forward_passes_give_the_same_gradients(kind: str, how: str, run: Callable[..., None]) -> None:
    found, expected = (gradients(model, KINDS[kind](model), run) for model in (model_of(how), model_of()))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@each("how", RECOMPUTED)
@each("kind", ["own statistics", "masks", "soft masks", "own weights under masks"])
def test_a_backward_pass_after_the_context_is_refused_where_it_recomputes(kind: str, how: str) -> None:
    model = model_of(how)
    networks = KINDS[kind](model)
    with networks.swapped(model, "a"):
        loss = loss_of(model, "a")
    with pytest.raises(MaskError, match=r"recomputes the forward pass of .* Call backward\(\) inside the same `with`"):
        loss.backward()
    with networks.swapped(model, "a"):
        loss = loss_of(model, "a")
    with networks.swapped(model, "b"), pytest.raises(MaskError, match="outside of that network's context"):
        loss.backward()


@pytest.mark.parametrize("how", ["plain", *RECOMPUTED])
def test_dense_training_after_masked_training_is_not_refused(how: str) -> None:
    model = model_of(how)
    one_by_one(model, KINDS["masks"](model))
    model.zero_grad()
    loss_of(model, "a").backward()
    plain = model_of()
    loss_of(plain, "a").backward()
    for name, p in plain.encoder.named_parameters():
        assert p.grad is not None
        assert torch.equal(p.grad, model.encoder.get_parameter(name).grad), name  # type: ignore[arg-type]


@pytest.mark.parametrize("how", RECOMPUTED)
def test_labels_of_renewed_networks_are_not_kept_without_end(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swap_guards, "_MOST_LABELS", 3)
    model = model_of(how)
    for _ in range(6):
        one_by_one(model, KINDS["masks"](model))
    kept = [len(labels) for module, labels in swap_guards._recomputable.items() if module in set(model.modules())]
    assert kept
    assert max(kept) == 3


def test_threads_on_models_of_their_own_leave_no_guard_behind() -> None:
    def serve() -> None:
        model, (x, _) = model_of().eval(), batch()
        networks = KINDS["masks"](model)
        for _ in range(100):
            with networks.swapped(model, "a"), torch.no_grad():
                model(x)

    threads = [threading.Thread(target=serve) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not swap_guards._uses
    assert not swap._eager
    assert not swap._LAYERS


def test_without_recomputation_a_backward_pass_after_the_context_is_right() -> None:
    late, within = model_of(), model_of()
    networks = KINDS["masks"](late)
    with networks.swapped(late, "a"):
        loss = loss_of(late, "a")
    loss.backward()
    with networks.swapped(within, "a"):
        loss_of(within, "a").backward()
    for name, p in late.named_parameters():
        other = within.get_parameter(name).grad
        assert (p.grad is None and other is None) or torch.equal(p.grad, other), name  # type: ignore[arg-type]


@each("balancing", ["mean", "uncertainty", "pcgrad"])
@each("sharing", [lambda: sm.RandomSharing(keep=0.5), lambda: sm.SoftMaskSharing(linear=True)])
def test_the_trainer_ends_with_the_same_weights(sharing: Callable[[], Any], balancing: str) -> None:
    ends = {}
    for kind in ("plain", *RECOMPUTED):
        trainer = sm.Trainer(
            model_of(kind), sharing=sharing(), balancing=balancing, epochs=2, progress=False, accelerator="cpu"
        )
        trainer.fit([_needing_gradients(s) for s in range(3)], [batch(9)])
        ends[kind] = [p.detach().clone() for p in [*trainer.model.parameters(), *trainer.networks.parameters()]]
    for how in RECOMPUTED:
        assert all(torch.equal(one, other) for one, other in zip(ends["plain"], ends[how], strict=True)), how


def _needing_gradients(seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """A batch whose input needs a gradient, without which the reentrant kind computes none."""
    x, labels = batch(seed)
    return x.requires_grad_(), labels


# Threads and the order of contexts


def test_threads_that_serve_different_tasks_get_right_answers() -> None:
    model, (x, _) = model_of().eval(), batch()
    networks = KINDS["masks"](model)
    expected = {}
    for task in TASKS:
        with networks.swapped(model, task), torch.no_grad():
            expected[task] = model(x)[task]
    wrong: list[str] = []

    def serve(task: str) -> None:
        for _ in range(50):
            with networks.swapped(model, task), torch.no_grad():
                if not torch.equal(model(x)[task], expected[task]):
                    wrong.append(task)

    threads = [threading.Thread(target=serve, args=(task,)) for task in TASKS * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_another_thread_that_calls_the_plain_model_meanwhile_is_refused() -> None:
    model, (x, _) = model_of().eval(), batch()
    networks, caught = KINDS["masks"](model), []

    def call() -> None:
        with pytest.raises(MaskError, match="while another thread computes with a task's network"):
            model(x)
        caught.append(True)

    with networks.swapped(model, "a"):
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
    assert caught
    model(x)


def test_contexts_that_end_in_the_wrong_order_leave_the_one_that_is_open() -> None:
    model, (x, _) = model_of().eval(), batch()
    networks = KINDS["masks"](model)
    plain = model(x)
    first, second = networks.swapped(model, "a"), networks.swapped(model, "b")
    with networks.swapped(model, "b"):
        expected = model(x)["b"]
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert torch.equal(model(x)["b"], expected)
    second.__exit__(None, None, None)
    assert torch.equal(model(x)["b"], plain["b"])


def test_a_model_that_changes_between_contexts_is_looked_at_again() -> None:
    model, (x, _) = model_of().eval(), batch()
    masks = masks_of(model)
    networks = TaskNetworks.of_masks(masks)
    with networks.swapped(model, "a"):
        pass
    model.encoder.first = nn.Linear(5, 8)
    with networks.swapped(model, "a"), torch.no_grad():
        values: Any = by_hand(model, networks["a"])
        assert torch.equal(model(x)["a"], functional_call(model, values, (x,))["a"])
    del model.encoder.blocks[1]  # what was the third block is the second now
    name = "encoder.blocks.1.0.weight"
    with swap_tensors(model, {name: torch.zeros(8, 8)}), torch.no_grad():
        values = {**model.state_dict(), name: torch.zeros(8, 8)}
        assert torch.equal(model(x)["a"], functional_call(model, values, (x,))["a"])


# Exports inside a context


class OneTask(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        return self.model(x, tasks=("a",))["a"]


EXPORTS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "jit.trace": lambda model, x: torch.jit.trace(model, (x,)),
    "torch.fx": lambda model, x: torch.fx.symbolic_trace(model),
    "compact": lambda model, x: sm.compact(model.model, task="a", example_inputs=x),  # type: ignore[arg-type]
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("export", EXPORTS)
def test_an_export_inside_a_context_is_refused(export: str) -> None:
    model, (x, _) = model_of().eval(), batch()
    networks = KINDS["masks"](model)
    with networks.swapped(model, "a"), pytest.raises(MaskError, match=r"inside a task's network"):
        EXPORTS[export](OneTask(model), x)
    EXPORTS[export](OneTask(networks.network(model, "a")), x)


def test_torch_export_inside_a_context_gives_no_plain_network() -> None:
    model, (x, _) = model_of().eval(), batch()
    networks = KINDS["masks"](model)
    with networks.swapped(model, "a"), pytest.raises(Exception, match=r"cannot assign|inside a task's network"):
        torch.export.export(OneTask(model), (x,), strict=False)
