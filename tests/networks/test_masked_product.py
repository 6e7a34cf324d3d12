"""Products of weights and masks: torch's own bit for bit, in memory that nothing else refers to."""

from __future__ import annotations

import gc
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import each
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from sparsemtl.networks import masked_product as subject
from sparsemtl.networks.masked_product import MaskedProducts, ProductMemory, cached_parts
from sparsemtl.networks.masks import TaskMasks
from sparsemtl.networks.task_networks import TaskNetworks

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True)


@pytest.fixture(autouse=True)
def parts_of_three(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small weights take the way of large ones, in several parts."""
    monkeypatch.setattr(subject, "SMALL", 1)
    monkeypatch.setattr(subject, "_PART", 3)


def assert_same_bits(found: Tensor, expected: Tensor) -> None:
    assert (found.dtype, found.shape, found.stride()) == (expected.dtype, expected.shape, expected.stride())
    integers = INTEGERS[expected.element_size()]
    assert torch.equal(found.detach().view(integers), expected.detach().view(integers))


def weight_and_mask(*shape: int, seed: int = 0) -> tuple[nn.Parameter, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return nn.Parameter(torch.randn(shape, generator=generator)), torch.rand(shape, generator=generator) < 0.5


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))


def masks_of(model: nn.Module, tasks: str = "ab") -> TaskMasks:
    generator = torch.Generator().manual_seed(1)
    return TaskMasks(
        {t: {n: torch.rand(p.shape, generator=generator) < 0.5 for n, p in model.named_parameters()} for t in tasks}
    )


# Bits


@settings(deadline=None)
@given(
    st.lists(st.tuples(FLOATS, st.booleans()), min_size=1, max_size=20),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
)
def test_a_product_is_torch_s_own_bit_for_bit(entries: list[tuple[float, bool]], dtype: torch.dtype) -> None:
    values, kept = map(list, zip(*entries, strict=True))
    weight, mask = torch.tensor(values).to(dtype), torch.tensor(kept)
    products = MaskedProducts()
    for _ in range(2):  # in fresh memory, and in memory with other content
        assert_same_bits(products(weight, mask, "t", "w"), weight * mask.to(dtype))
        products(weight + 1, ~mask, "t", "w")


LAYOUTS: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "contiguous": lambda: (torch.randn(2, 3, 4, 5), torch.rand(2, 3, 4, 5) < 0.5),
    "channels last": lambda: (
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.rand(2, 3, 4, 5) < 0.5,
    ),
    "both channels last": lambda: (
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        (torch.rand(2, 3, 4, 5) < 0.5).to(memory_format=torch.channels_last),
    ),
    "broadcast": lambda: (torch.randn(4, 5), torch.rand(4, 1) < 0.5),
    "gaps": lambda: (torch.randn(4, 10)[:, ::2], torch.rand(4, 5) < 0.5),
    "part of a storage": lambda: (torch.randn(8, 5)[3:], torch.rand(9, 5)[4:] < 0.5),
    "expanded": lambda: (torch.randn(1, 5).expand(4, 5), torch.rand(4, 5) < 0.5),
    "no dimension": lambda: (torch.randn(()), torch.tensor(False)),
    "empty": lambda: (torch.randn(0, 3), torch.rand(0, 3) < 0.5),
    "complex": lambda: (torch.randn(4, 5, dtype=torch.complex64), torch.rand(4, 5) < 0.5),
}


@each("layout", LAYOUTS)
def test_any_layout_in_memory_gives_torch_s_product_and_layout(layout: str) -> None:
    weight, mask = LAYOUTS[layout]()
    found, expected = MaskedProducts()(weight, mask, "t", "w"), weight * mask.to(weight.dtype)
    assert torch.equal(found, expected)
    assert found.stride() == expected.stride()


def test_parts_cover_every_entry_once_in_order() -> None:
    size = subject._PART * torch.get_num_threads()
    tensors = torch.arange(2 * size + 1), torch.arange(2 * size + 1.0)
    found = list(cached_parts(*tensors))
    assert [len(part[0]) for part in found] == [size, size, 1]
    for whole, parts in zip(tensors, zip(*found, strict=True), strict=True):
        assert torch.equal(torch.cat(parts), whole)
    turned = torch.zeros(3, 4).T
    ((whole,),) = cached_parts(turned)
    assert whole is turned


# Gradients


def test_gradients_of_every_order_are_those_of_the_plain_product() -> None:
    weight, mask = torch.randn(3, 4, dtype=torch.float64, requires_grad=True), torch.rand(3, 4) < 0.5
    products = MaskedProducts()

    def product(weight: Tensor) -> Tensor:
        return products(weight, mask, "t", "w").sin() * weight

    assert torch.autograd.gradcheck(product, weight, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(product, weight)


def test_a_gradient_is_masked_bit_for_bit_and_accumulates() -> None:
    weight, mask = weight_and_mask(4, 5)
    other = nn.Parameter(weight.detach().clone())
    products, steps = MaskedProducts(), torch.randn(4, 4, 5)
    steps[0, 0, 0], steps[0, 0, 1], steps[0, 0, 2] = -0.0, float("nan"), float("inf")
    for step in steps:
        (products(weight, mask, "t", "w") * step).sum().backward()
        (other * mask.float() * step).sum().backward()
        assert weight.grad is not None
        assert other.grad is not None
        assert_same_bits(weight.grad, other.grad)


def test_the_gradient_becomes_that_of_the_weight_without_a_copy() -> None:
    weight, mask = weight_and_mask(4, 5)
    products = MaskedProducts()
    (products(weight, mask, "t", "w") * torch.randn(4, 5)).sum().backward()
    assert weight.grad is not None
    blocks = [block._memory.ctypes.data for block in products.memory._blocks["w"]]
    assert weight.grad.data_ptr() in blocks


def test_a_mask_that_changes_before_the_backward_pass_is_an_error() -> None:
    weight, mask = weight_and_mask(4, 5)
    product = MaskedProducts()(weight, mask, "t", "w")
    mask.fill_(True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


# Memory: kept, and free exactly when nothing refers to it


def test_memory_is_used_again_when_the_product_is_gone() -> None:
    weight, mask = weight_and_mask(4, 5)
    products = MaskedProducts()
    places = {products(weight, mask, "t", "w").data_ptr() for _ in range(5)}
    assert len(places) == 1
    place = places.pop()
    assert place % 64 == 0
    assert products(weight, mask, "t", "v").data_ptr() != place


REFERENCES: dict[str, Callable[[Tensor], Any]] = {
    "tensor": lambda product: product,
    "view": lambda product: product[1:, 2],
    "detached": lambda product: product.detach(),
    "storage": lambda product: product.untyped_storage(),
    "array": lambda product: product.detach().numpy(),
    "graph": lambda product: product.exp().square(),  # exp saves its own output, square saves that
    "graph that saves the product": lambda product: torch.randn(3, 4, requires_grad=True) @ product,
    "parameter": lambda product: nn.Parameter(product.detach()),
    "node": lambda product: (product * product).grad_fn,
}


@pytest.mark.usefixtures("collected")
@each("reference", REFERENCES)
def test_memory_that_something_refers_to_is_left_alone(reference: str) -> None:
    weight, mask = weight_and_mask(4, 5)
    products = MaskedProducts()
    first = products(weight, mask, "t", "w")
    place, copy = first.data_ptr(), first.detach().clone()
    kept = REFERENCES[reference](first)
    if reference == "graph":
        del first
        kept.sum().backward()
        expected = 2 * copy.exp().square() * mask
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad, expected)
        return
    watched = torch.from_numpy(
        next(b._memory for b in products.memory._blocks["w"] if b._memory.ctypes.data == place)
    ).view(torch.float32)
    del first
    others = [products(weight + 1, ~mask, "t", "w") for _ in range(4)]
    assert place not in {other.data_ptr() for other in others}
    assert torch.equal(watched, copy.flatten())
    del kept, others
    gc.collect()
    assert place in {tensor.data_ptr() for tensor in [products(weight, mask, "t", "w") for _ in range(3)]}


def test_memory_does_not_grow_with_the_graphs_that_are_alive() -> None:
    weight, mask = weight_and_mask(4, 5)
    products = MaskedProducts()
    alive = [products(weight + i, mask, "t", "w") for i in range(10)]
    assert len({product.data_ptr() for product in alive}) == 10
    for i, product in enumerate(alive):
        assert torch.equal(product, (weight + i) * mask)
    assert len(products.memory._blocks["w"]) == subject._MOST_BLOCKS


def test_memory_of_another_size_is_given_up() -> None:
    products = MaskedProducts()
    for size in (4, 6, 4):
        weight, mask = weight_and_mask(size, 5)
        assert torch.equal(products(weight, mask, "t", "w"), weight * mask)
        assert [block.size for block in products.memory._blocks["w"]] == [size * 20]


def test_copies_have_no_memory() -> None:
    model = network()
    masks = masks_of(model)
    networks = TaskNetworks.of_masks(masks)
    with networks.swapped(model, "a"), masks.applied(model, "b"):
        for made in (deepcopy(masks), pickle.loads(pickle.dumps(masks))):
            assert made == masks
            assert made._products.memory._blocks == {}
        assert deepcopy(networks).masks == masks
        assert pickle.loads(pickle.dumps(ProductMemory()))._blocks == {}


def test_renewed_networks_go_on_with_the_memory() -> None:
    model = network()
    masks = masks_of(model)
    networks = TaskNetworks.of_masks(masks)
    places = set()
    for made in (networks, networks.with_masks(masks), networks.detached(), networks.with_own_tensors({})):
        with made.swapped(model, "a"):
            places.add(model[0].weight.data_ptr())
    assert len(places) == 1


# Two passes and more at once, other ways to differentiate, other modes


def plain(monkeypatch: pytest.MonkeyPatch, run: Callable[[], Any]) -> Any:
    """Result of torch's own product."""
    with monkeypatch.context() as patch:
        patch.setattr(subject, "SMALL", 10**9)
        return run()


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_graphs_of_several_tasks_are_alive_at_once(order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> list[Tensor]:
        model, x = network(), torch.randn(7, 6, generator=torch.Generator().manual_seed(2))
        networks = TaskNetworks.of_masks(masks_of(model))
        for _ in range(3):
            losses = {}
            for task in networks:
                with networks.swapped(model, task):
                    losses[task] = model(x).square().sum()
            for task in order:
                with networks.swapped(model, task):
                    losses[task].backward()
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.01 * p.grad
        return gradients(model)

    assert all(map(torch.equal, run(), plain(monkeypatch, run)))


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_recomputed_pass_that_enters_the_context_itself_is_right(
    reentrant: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> list[Tensor]:
        model, x = network(), torch.randn(7, 6, generator=torch.Generator().manual_seed(2)).requires_grad_()
        masks = masks_of(model)

        def forward(x: Tensor) -> Tensor:
            with masks.applied(model, "a"):
                return model(x)

        checkpoint(forward, x, use_reentrant=reentrant).square().sum().backward()
        assert x.grad is not None
        return [x.grad, *gradients(model)]

    assert all(map(torch.equal, run(), plain(monkeypatch, run)))


def test_nested_contexts_and_kept_weights_are_right() -> None:
    model = network()
    masks = masks_of(model)
    with masks.applied(model, "a"):
        outer = model[0].weight
        expected = outer.detach().clone()
        with masks.applied(model, "b"):
            inner = model[0].weight
            assert torch.equal(inner, model._modules["0"]._parameters["weight"] * masks["b"]["0.weight"])
    for _ in range(4):
        masks.weights(model, "b")
    assert torch.equal(outer, expected)
    assert torch.equal(inner, model[0].weight * masks["b"]["0.weight"])


def test_a_penalty_on_gradients_differentiates_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> list[Tensor]:
        model, x = network(), torch.randn(7, 6, generator=torch.Generator().manual_seed(2))
        masks = masks_of(model)
        for _ in range(2):
            with masks.applied(model, "a"):
                first = torch.autograd.grad(model(x).sin().sum(), list(model.parameters()), create_graph=True)
                sum(g.square().sum() for g in first).backward()
        return gradients(model)

    for found, expected in zip(run(), plain(monkeypatch, run), strict=True):
        torch.testing.assert_close(found, expected)


TRANSFORMS: dict[str, Callable[[Callable[..., Tensor]], Callable[..., Any]]] = {
    "grad": torch.func.grad,
    "hessian": torch.func.hessian,
    "vmap of grad": lambda f: lambda w, x: torch.func.vmap(torch.func.grad(f), (None, 0))(w, torch.stack([x, 2 * x])),
    "jvp": lambda f: lambda w, x: torch.func.jvp(f, (w, x), (w, x)),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms_of_functions_differentiate_and_map_the_product(transform: str) -> None:
    weight, mask = weight_and_mask(4, 5)
    products, x = MaskedProducts(), torch.randn(5)
    ours = TRANSFORMS[transform](lambda weight, x: (products(weight, mask, "t", "w") @ x).sin().sum())
    plains = TRANSFORMS[transform](lambda weight, x: ((weight * mask) @ x).sin().sum())
    torch.testing.assert_close(ours(weight.detach(), x), plains(weight.detach(), x))


def test_masks_of_inference_mode_can_train_and_masks_of_training_can_infer() -> None:
    model, x = network(), torch.randn(7, 6)
    with torch.inference_mode():
        masks = masks_of(model)
        with masks.applied(model, "a"):
            expected = model(x)
            assert model[0].weight.is_inference()
    for _ in range(2):
        with masks.applied(model, "a"):
            y = model(x)
            assert torch.equal(y, expected)
            assert not model[0].weight.is_inference()
            y.sum().backward()
        with torch.inference_mode(), masks.applied(model, "a"):
            assert torch.equal(model(x), expected)
    assert model[0].weight.grad is not None


def test_weights_without_gradient_stay_so() -> None:
    model = network().requires_grad_(False)
    assert not any(weight.requires_grad for weight in masks_of(model).weights(model, "a").values())
    model.requires_grad_(True)
    with torch.no_grad():
        assert not any(weight.requires_grad for weight in masks_of(model).weights(model, "a").values())


def test_modes_that_watch_operations_see_the_same_numbers() -> None:
    model, x = network(), torch.randn(7, 6)
    masks = masks_of(model)
    with masks.applied(model, "a"):
        expected = model(x)
        with FlopCounterMode(display=False) as alone:
            model(x)
    with FlopCounterMode(display=False) as around, masks.applied(model, "a"):
        assert torch.equal(model(x), expected)
    assert around.get_total_flops() == alone.get_total_flops() > 0


def test_a_compiled_function_may_make_the_product() -> None:
    weight, mask = weight_and_mask(4, 5)
    products = MaskedProducts()
    function = torch.compile(lambda weight: products(weight, mask, "t", "w") + 1, backend="eager")
    assert torch.equal(function(weight), weight * mask + 1)


def test_threads_share_masks_and_not_memory() -> None:
    reference = network()
    masks = masks_of(reference)
    networks = TaskNetworks.of_masks(masks)
    models = [network(seed) for seed in range(4)]
    x = torch.randn(7, 6)

    def outputs(model: nn.Module) -> Iterator[bool]:
        for task in [*masks] * 50:
            with networks.swapped(model, task):
                weight = model[0].weight
                expected = model._modules["0"]._parameters["weight"] * masks[task]["0.weight"]
                model(x).sum().backward()
                yield torch.equal(weight, expected)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda model: all(outputs(model)), models))
