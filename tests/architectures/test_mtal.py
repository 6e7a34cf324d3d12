from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from expert_oracles import assert_same_model, batch, loss_of, stack, tasks
from loops import each
from torch import Tensor, fx, nn

from sparsemtl import MultiTaskModel, SingleTask, Trainer, compact
from sparsemtl.architectures import MTAL
from sparsemtl.architectures.mtal import _similar_groups, _Ties
from sparsemtl.backbones import CNN, resnet18
from sparsemtl.criteria import fisher_information
from sparsemtl.data import TensorLoader
from sparsemtl.errors import ParameterError

HEADS = 4


def model_of(names: str = "ab", *, noise: float = 0.0, **options: Any) -> MTAL:
    """Stacks that begin as equals and differ by so much noise; kernels are paired at once."""
    torch.manual_seed(0)
    its_tasks = tasks(names)
    heads = {task.name: task.head(HEADS) for task in its_tasks}
    model = MTAL(stack(6, HEADS), its_tasks, heads, **{"warmup": 0, **options}).double()
    with torch.no_grad():
        for p in model.encoders.parameters():
            p.add_(noise * torch.randn_like(p))
    model.begin_epoch(0)
    return model


def single_of(model: MTAL) -> SingleTask:
    return deepcopy(SingleTask(model.encoders, list(model.tasks.values()), model.heads))  # type: ignore[arg-type]


def stepped(model: MultiTaskModel, steps: int = 5) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model(batch())).backward()
        optimizer.step()


def kernels_read(model: MTAL, layer: str, kind: str = "weight") -> Tensor:
    """The kernels that the networks compute with, (T, kernels, ...)."""
    apart = model.separated()
    return torch.stack([getattr(encoder.get_submodule(layer), kind) for encoder in apart.encoders.values()])


def cosines(kernels: Tensor) -> Tensor:
    flat = kernels.flatten(2).flatten(0, 1)
    return torch.cosine_similarity(flat[:, None], flat[None], dim=2)


# ---- the whole model -----------------------------------------------------------------------------------------------


def test_with_a_threshold_of_one_the_networks_are_separate_bit_for_bit() -> None:
    model = model_of(rho=1.0)
    assert set(model.tied.values()) == {0.0}
    single = single_of(model)
    stepped(model)
    stepped(single)
    assert all(torch.equal(p, model.get_parameter(name)) for name, p in single.named_parameters())
    assert all(torch.equal(output, single(batch())[task]) for task, output in model(batch()).items())
    assert all(not p.any() for p in model.mixers.parameters())


def test_networks_without_similar_kernels_are_separate_bit_for_bit() -> None:
    model = model_of("abc", rho=0.999, fresh=True)
    assert set(model.tied.values()) == {0.0}
    single = single_of(model)
    outputs = model(batch())
    assert all(torch.equal(output, outputs[task]) for task, output in single(batch()).items())


@pytest.mark.parametrize("names", ["a", "ab", "abc"])
def test_equal_networks_are_paired_in_all_kernels_and_compute_the_same(names: str) -> None:
    model = model_of(names)
    assert set(model.tied.values()) == {0.0 if names == "a" else 1.0}
    outputs, expected = model(batch()), single_of(model)(batch())
    if len(names) == 2:
        assert all(torch.equal(outputs[task], expected[task]) for task in model.tasks)
    torch.testing.assert_close(outputs, expected)


@pytest.mark.parametrize("names", ["ab", "abc"])
def test_paired_kernels_stay_equal_whatever_the_steps(names: str) -> None:
    model = model_of(names, noise=0.1)
    groups = [ties.group for ties in model.mixers]
    assert any(0 < share < 1 for share in model.tied.values()), "some are paired, others not"
    stepped(model)
    assert any(ties.alpha.any() for ties in model.mixers), "their weights are learned"
    for name, group in zip(model.layers, groups, strict=True):
        for kind in ("weight", "bias"):
            read = kernels_read(model, name, kind).flatten(0, 1)
            assert torch.equal(read, read[group.flatten()])
            raw = torch.stack([getattr(e.get_submodule(name), kind) for e in model.encoders.values()]).flatten(0, 1)
            assert not torch.equal(raw, raw[group.flatten()])


def test_a_pair_is_mixed_by_the_sigmoid_of_a_learned_number_that_starts_at_one_half() -> None:
    model = model_of(noise=0.05, rho=0.5)
    a, b = (encoder[0].weight for encoder in model.encoders.values())
    ties = model.mixers[0]
    assert ties.tied.all()
    partner = ties.group[1]
    torch.testing.assert_close(kernels_read(model, "0")[1], (a[partner] + b) / 2)
    with torch.no_grad():
        ties.alpha.normal_()
    share = torch.sigmoid(ties.alpha[0][partner] - ties.alpha[1]).unsqueeze(1)
    torch.testing.assert_close(kernels_read(model, "0")[1], share * a[partner] + (1 - share) * b)


def test_what_the_networks_compute_is_what_separate_ones_do_with_the_mixed_kernels() -> None:
    model = model_of("abc", noise=0.1)
    stepped(model, 3)
    apart = model.separated()
    assert apart.independent
    outputs = model(batch())
    assert all(torch.equal(output, outputs[task]) for task, output in apart(batch()).items())


@pytest.mark.parametrize(
    "make", [lambda: CNN((3, 8, 8), widths=[4, 6]), lambda: resnet18((3, 8, 8), stem="cifar", width=2)]
)
def test_convolutions_are_paired_and_norms_are_every_tasks_own(make: Any) -> None:
    torch.manual_seed(0)
    model = MTAL(make(), tasks("ab"), warmup=0)
    x = torch.randn(4, 3, 8, 8)
    model(x)
    model.begin_epoch(0)
    assert set(model.tied.values()) == {1.0}
    kinds = {type(layer) for layer in model.shared_modules().values()}
    assert nn.Conv2d in kinds
    assert kinds <= {nn.Conv2d, nn.Linear}
    norms = [name for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(name in {**model.task_modules("a"), **model.task_modules("b")} for name in norms)
    assert_same_model(model.separated().double(), single_of(model).double(), x.double())


def test_every_task_may_have_its_own_input() -> None:
    model = model_of("abc", noise=0.1)
    own = {task: batch(3 + seed, seed=seed) for seed, task in enumerate(model.tasks)}
    for task, output in model(own).items():
        assert torch.equal(output, model(own[task], tasks=[task])[task])


@pytest.mark.parametrize(
    "path",
    [
        "functional",
        "auto",
    ],
)
def test_fisher_information_of_kernels_goes_through_the_mixture(path: str) -> None:
    model = model_of(noise=0.1).eval()
    data = TensorLoader(batch(6), {"a": torch.arange(6) % 3, "b": torch.ones(6)}, batch_size=3)
    slow = fisher_information(model, data, "a", path="loop")
    assert slow["encoders.b.2.weight"].any()
    torch.testing.assert_close(fisher_information(model, data, "a", path=path), slow)


# ---- when they are paired ------------------------------------------------------------------------------------------


def test_kernels_are_paired_when_the_warm_up_is_over_and_anew_at_every_epoch() -> None:
    model = model_of(warmup=2)
    model.begin_epoch(1)
    assert set(model.tied.values()) == {0.0}
    model.begin_epoch(2)
    assert set(model.tied.values()) == {1.0}
    with torch.no_grad():
        model.encoders["a"][0].weight[:2].neg_()
    model.begin_epoch(3)
    assert model.tied == {"0": pytest.approx(4 / 6), "2": 1.0}


def test_pairs_that_last_keep_their_weights_and_new_ones_begin_with_equal_ones() -> None:
    ties = _Ties(torch.zeros(2, 3, 4))
    ties.tie(torch.tensor([[0, 1, 2], [0, 1, 5]]))
    with torch.no_grad():
        ties.alpha.copy_(torch.tensor([[1.0, 2.0, 0.0], [3.0, 4.0, 0.0]]))
    ties.tie(torch.tensor([[0, 1, 2], [0, 4, 1]]))
    assert ties.alpha[:, 0].tolist() == [1, 3]
    share = ties(torch.eye(6).view(2, 3, 6))[0, 1]
    assert share.tolist() == [0, 0.5, 0, 0, 0, 0.5]


def test_large_logits_do_no_harm() -> None:
    ties = _Ties(torch.zeros(2, 2, 1))
    ties.tie(torch.tensor([[0, 1], [0, 1]]))
    with torch.no_grad():
        ties.alpha.copy_(torch.tensor([[500.0, -500.0], [500.0, -501.0]]))
    mixed = ties(torch.tensor([[[2.0], [1.0]], [[4.0], [0.0]]]))
    torch.testing.assert_close(mixed[0].flatten(), torch.tensor([3.0, torch.sigmoid(torch.tensor(1.0)).item()]))


def loaders() -> tuple[TensorLoader, TensorLoader]:
    x = torch.randn(24, 5, generator=torch.Generator().manual_seed(1))
    targets = {"a": torch.arange(24) % 3, "b": x[:, 0] * 2}
    train = TensorLoader(x[:16], {t: v[:16] for t, v in targets.items()}, batch_size=4, shuffle=True)
    return train, TensorLoader(x[16:], {t: v[16:] for t, v in targets.items()}, batch_size=8)


def trainer(folder: Path, epochs: int = 4) -> Trainer:
    torch.manual_seed(0)
    model = MTAL(stack(6, 4), tasks("ab"), warmup=1, rho=0.9)
    options: dict[str, Any] = {"accelerator": "cpu", "progress": False, "checkpoint_every": 1}
    return Trainer(model, epochs=epochs, folder=folder, optimizer=lambda p: torch.optim.Adam(p, lr=0.02), **options)


class Killed(Exception):
    pass


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_a_resumed_run_has_the_pairs_of_the_uninterrupted_one(tmp_path: Path, epoch: int) -> None:
    whole = trainer(tmp_path / "whole").fit(*loaders())
    dying = trainer(tmp_path / "killed")
    plain, steps = MTAL.forward, []

    def forward(model: MTAL, *args: Any, **options: Any) -> dict[str, Tensor]:
        if model.training:
            steps.append(1)
            if len(steps) == 4 * epoch + 3:
                raise Killed
        return plain(model, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MTAL, "forward", forward)
        with pytest.raises(Killed):
            dying.fit(*loaders())
    left = [ties.group.clone() for ties in dying.model.mixers]
    assert any(dying.model.tied.values()) == (epoch > 0)
    resumed = trainer(tmp_path / "killed")
    read: list[list[Tensor]] = []
    resumed.model.register_forward_pre_hook(
        lambda model, _: read.append([ties.group.clone() for ties in model.mixers]) if model.training else None
    )
    resumed.fit(*loaders(), resume=True)
    assert all(map(torch.equal, read[0], left))
    assert len(read) == 16 - 4 * epoch - 2, "it goes on within the epoch"
    expected = whole.model.state_dict()
    assert any(whole.model.tied.values())
    for name, tensor in resumed.model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_the_trainer_tells_the_model_of_every_epoch_once(tmp_path: Path) -> None:
    told: list[int] = []

    class Told(SingleTask):
        def begin_epoch(self, epoch: int) -> None:
            told.append(epoch)

    model = Told(stack(4), tasks("ab"))
    Trainer(model, epochs=3, accelerator="cpu", progress=False).fit(*loaders())
    assert told == [0, 1, 2]


def test_a_state_dict_has_the_pairs_in_shapes_that_never_change() -> None:
    model, other = model_of(noise=0.1), model_of(fresh=True)
    assert not all(map(torch.equal, model.mixers.buffers(), other.mixers.buffers()))
    other.load_state_dict(model.state_dict())
    assert all(map(torch.equal, model.mixers.buffers(), other.mixers.buffers()))
    assert_same_model(model, other, batch())


# ---- which are similar ---------------------------------------------------------------------------------------------


def slow_pairs(kernels: Tensor, rho: float) -> dict[int, int]:
    """Of two tasks: take the most alike of what is left, as long as any are alike."""
    count = kernels.shape[1]
    cosine = cosines(kernels)[:count, count:].clone()
    found = {}
    while bool((cosine > rho).any()):
        i, j = divmod(int(cosine.argmax()), count)
        found[count + j] = i
        cosine[i, :] = cosine[:, j] = -2
    return found


@each("seed", range(5))
@each("rho", [0.2, 0.7, 0.95])
def test_pairs_of_two_tasks_are_one_to_one_the_most_alike_first(seed: int, rho: float) -> None:
    kernels = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    group = _similar_groups(kernels, rho).flatten()
    found = {place: int(first) for place, first in enumerate(group) if place != first}
    assert found == slow_pairs(kernels, rho)
    assert len(set(found.values())) == len(found)


@pytest.mark.parametrize("seed", range(5))
def test_groups_have_at_most_one_kernel_a_task_and_any_two_alike(seed: int) -> None:
    kernels = torch.randn(4, 7, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    group = _similar_groups(kernels, 0.5).flatten()
    cosine = cosines(kernels)
    sizes = []
    for first in group.unique():
        places = (group == first).nonzero().flatten()
        assert places[0] == first
        assert len({int(place) // 7 for place in places}) == len(places)
        assert bool((cosine[places][:, places] > 0.5).all())
        sizes.append(len(places))
    assert max(sizes) > 2


def test_similarity_does_not_ask_for_scale_but_for_sign_and_never_pairs_zeros() -> None:
    kernels = torch.tensor([[[1.0, 2.0], [1.0, -1.0], [0.0, 0.0]], [[-1.0, 1.0], [0.0, 0.0], [10.0, 20.0]]])
    assert _similar_groups(kernels, 0.9).tolist() == [[0, 1, 2], [3, 4, 0]]


def test_kernels_equal_to_the_last_bit_are_not_more_alike_than_one() -> None:
    kernels = torch.randn(1, 50, 27).expand(3, -1, -1)
    assert torch.equal(_similar_groups(kernels, 1.0).flatten(), torch.arange(150))


# ---- what is refused -----------------------------------------------------------------------------------------------


def test_wrong_encoders_are_refused() -> None:
    with pytest.raises(ParameterError, match=r"task 'c' has no encoder; found \['a', 'b'\]"):
        MTAL({"a": stack(4), "b": stack(4)}, tasks())
    with pytest.raises(ParameterError, match="tasks 'a' and 'b' were given the same parameters"):
        MTAL(dict.fromkeys("abc", stack(4)), tasks())
    with pytest.raises(
        ParameterError, match=r"layer '0' of task 'b' is Linear of \(3, 5\) and \(3,\), that of task 'a'"
    ):
        MTAL({"a": stack(4), "b": stack(3)}, tasks("ab"))
    with pytest.raises(ParameterError, match=r"layer '2' of task 'b' is absent"):
        MTAL({"a": stack(4, 4), "b": stack(4)}, tasks("ab"))
    with pytest.raises(ParameterError, match="'a', BatchNorm1d, has no kernels"):
        MTAL(nn.BatchNorm1d(5), tasks("ab"))


@pytest.mark.parametrize("rho", [0, 1.01])
def test_a_threshold_that_is_no_cosine_of_similar_kernels_is_refused(rho: float) -> None:
    with pytest.raises(ParameterError, match=r"'rho' parameter of MTAL must be a float in \(0, 1\]"):
        MTAL(stack(4), tasks(), rho=rho)


def test_kernels_inside_of_modules_with_parameters_of_their_own_are_left_alone() -> None:
    encoder = nn.Sequential(nn.Linear(5, 4), nn.Unflatten(1, (1, 4)), nn.TransformerEncoderLayer(4, 2, 8))
    model = MTAL(encoder, tasks("ab"), {t.name: nn.Sequential(nn.Flatten(), t.head(4)) for t in tasks("ab")})
    assert model.layers == ("0", "2.linear1", "2.linear2")
    assert "encoders.a.2.self_attn" in model.task_modules("a")
    model(batch().float())


def test_a_graph_that_would_miss_the_mixture_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"trace `model\.separated\(\)` instead"):
        fx.symbolic_trace(model_of(noise=0.1).eval(), concrete_args={"tasks": ("a",)})


def test_mixed_kernels_are_compacted() -> None:
    model = model_of(noise=0.1).eval()
    torch.testing.assert_close(compact(model, task="a")(batch()), model(batch())["a"])
    both = compact(model)(batch())
    torch.testing.assert_close(both, model(batch()))
