from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from expert_oracles import batch, gradients, loss_of, stack, tasks
from loops import each
from torch import Tensor, nn

from sparsemtl import SingleTask
from sparsemtl.architectures import CrossStitch
from sparsemtl.backbones import CNN, MLP, resnet18
from sparsemtl.backbones.stages import stages_of
from sparsemtl.backbones.stemmed import Stemmed
from sparsemtl.errors import ParameterError

ENCODERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "stack": (lambda: stack(6, 4), (5,)),
    "mlp": (lambda: MLP((5,), hidden=[6, 4], norm=True), (5,)),
    "cnn": (lambda: CNN((1, 8, 8), widths=[4, 6]), (1, 8, 8)),
    "resnet": (lambda: resnet18((3, 16, 16), stem="cifar", width=2), (3, 16, 16)),
    "resnet map": (lambda: resnet18((3, 16, 16), stem="cifar", width=2, output_stride=4), (3, 16, 16)),
    "stemmed": (lambda: Stemmed(nn.Linear(3, 5), stack(6, 4)), (3,)),
}
each_encoder = each("kind", ENCODERS)


def model_of(kind: str, **options: object) -> tuple[CrossStitch, Tensor]:
    torch.manual_seed(0)
    make, shape = ENCODERS[kind]
    model = CrossStitch(make(), tasks(), fresh=True, **options)  # type: ignore[arg-type]
    x = torch.randn(4, *shape)
    model(x)
    return model.double(), x.double()


def set_all(model: CrossStitch, value: Callable[[int], Tensor]) -> None:
    with torch.no_grad():
        for mixer in model.mixers:
            weights = value(len(mixer.weight)).to(mixer.weight)
            mixer.weight.copy_(weights if mixer.weight.ndim == 2 else weights.unsqueeze(2).expand_as(mixer.weight))


@each("per_channel", [False, True])
@each_encoder
def test_stitches_that_are_the_identity_leave_single_tasks_bit_for_bit(kind: str, per_channel: bool) -> None:
    model, x = model_of(kind, per_channel=per_channel)
    assert len(model.mixers) > 1
    set_all(model, torch.eye)
    single = SingleTask(dict(model.encoders.items()), tasks(), dict(model.heads.items()))
    for network in (model.train(), single.train()):
        network.zero_grad()
        torch.manual_seed(0)
        network.outputs = network(x)
        loss_of(network.outputs).backward()
        network.gradients = [p.grad.clone() for part in (network.encoders, network.heads) for p in part.parameters()]
    assert all(torch.equal(output, single.outputs[task]) for task, output in model.outputs.items())
    assert all(torch.equal(a, b) for a, b in zip(model.gradients, single.gradients, strict=True))


@each("per_channel", [False, True])
@each_encoder
def test_uniform_stitches_make_all_streams_equal(kind: str, per_channel: bool) -> None:
    model, x = model_of(kind, per_channel=per_channel)
    set_all(model, lambda count: torch.full((count, count), 1 / count))
    read: dict[str, Tensor] = {}
    for task, head in model.heads.items():
        head.register_forward_pre_hook(lambda _, args, task=task: read.update({task: args[0]}))
    model(x)
    torch.testing.assert_close(read["b"], read["a"])
    torch.testing.assert_close(read["c"], read["a"])


def test_equal_encoders_are_not_changed_by_stitches_whose_rows_sum_to_one() -> None:
    model = CrossStitch(stack(6, 4), tasks()).double()
    for stage in zip(*(encoder.parameters() for encoder in model.encoders.values()), strict=True):
        assert all(torch.equal(own, stage[0]) for own in stage)
    single = SingleTask(stack(6, 4), tasks()).double()
    single.encoders = model.encoders
    model(batch())
    single.heads = model.heads
    torch.testing.assert_close(model(batch()), single(batch()))


@pytest.mark.parametrize("per_channel", [False, True])
def test_mixtures_are_those_of_the_paper_written_out(per_channel: bool) -> None:
    model, x = model_of("mlp", per_channel=per_channel)
    with torch.no_grad():
        for mixer in model.mixers:
            mixer.weight.normal_()
    model.eval()
    streams = [x] * 3
    stages = [list(stages_of(encoder).values()) for encoder in model.encoders.values()]
    for depth, mixer in enumerate(model.mixers):
        features = [own[depth](stream) for own, stream in zip(stages, streams, strict=True)]
        streams = [sum(mixer.weight[t, j] * features[j] for j in range(3)) for t in range(3)]  # type: ignore[misc]
    expected = {task: model.heads[task](stream) for task, stream in zip(model.tasks, streams, strict=True)}
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("own", [0.9, 0.5, 1.0])
def test_stitches_start_with_much_of_their_own_and_the_rest_of_the_others(own: float) -> None:
    for mixer in CrossStitch(stack(6, 4), tasks(), own=own).mixers:
        rest = (1 - own) / 2
        expected = torch.tensor([[own, rest, rest], [rest, own, rest], [rest, rest, own]])
        torch.testing.assert_close(mixer.weight.data, expected)


def test_a_task_alone_keeps_all_of_its_own() -> None:
    model = CrossStitch(stack(4), tasks("b"))
    assert torch.equal(model.mixers[0].weight.data, torch.ones(1, 1))


def test_what_is_behind_the_last_stitch_is_the_tasks_own() -> None:
    torch.manual_seed(0)
    model = CrossStitch(stack(6, 5, 4), tasks(), {t.name: t.head(4) for t in tasks()}, after=["1"]).double()
    assert model.mixed == ("1",)
    users = model.parameter_tasks()
    assert users["encoders.b.0.weight"] == {"a", "b", "c"}
    assert users["encoders.b.2.weight"] == users["encoders.b.4.weight"] == {"b"}
    found = gradients(model, batch(), ["a"])
    assert {name for name, gradient in found.items() if gradient is not None} == {
        name for name, its_tasks in users.items() if "a" in its_tasks
    }


def test_encoders_of_other_tasks_run_no_further_than_the_last_stitch() -> None:
    model = CrossStitch(stack(6, 5, 4), tasks(), {t.name: t.head(4) for t in tasks()}, after=["1"])
    ran: list[str] = []
    for name, module in model.encoders.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    model(batch().float(), tasks=["b"])
    assert ran == ["a.0", "b.0", "c.0", "b.2", "b.4"]


def test_without_stitches_the_tasks_are_independent() -> None:
    model = CrossStitch(stack(6, 4), tasks(), {t.name: t.head(4) for t in tasks()}, after=[])
    assert model.independent
    assert not model.mixers


def test_a_residual_network_is_stitched_behind_its_stages() -> None:
    model, _ = model_of("resnet")
    assert model.mixed == ("layer1", "layer2", "layer3", "layer4")
    assert set(model.shared_modules()) == {"encoders.a", "encoders.b", "encoders.c"}


@pytest.mark.parametrize("kind", ["resnet", "resnet map", "cnn"])
def test_an_encoder_is_the_composition_of_its_stages(kind: str) -> None:
    make, shape = ENCODERS[kind]
    encoder, x = make().eval(), torch.randn(2, *shape)
    features = x
    for stage in stages_of(encoder).values():
        features = stage(features)
    assert torch.equal(features, encoder(x))


def test_every_task_may_have_its_own_input() -> None:
    model = CrossStitch(stack(6, 4), tasks()).double()
    model(batch())
    own = {task: batch(seed=seed) for seed, task in enumerate(model.tasks)}
    set_all(model, torch.eye)
    for task, output in model(own).items():
        torch.testing.assert_close(output, model(own[task], tasks=[task])[task])


def test_the_stitches_learning_rate_is_multiplied_as_asked() -> None:
    assert CrossStitch(stack(6, 4), tasks()).lr_factors == {}
    factors = CrossStitch(stack(6, 4), tasks(), lr_factor=100).lr_factors
    assert factors == {"mixers.0.weight": 100, "mixers.1.weight": 100}


def test_trained_encoders_of_every_task_are_taken_as_they_are() -> None:
    given = {task.name: stack(6, 4) for task in tasks()}
    assert dict(CrossStitch(given, tasks()).encoders.items()) == given


def test_wrong_encoders_are_refused() -> None:
    one = stack(6, 4)
    with pytest.raises(ParameterError, match=r"task 'c' has no encoder; found \['a', 'b'\]"):
        CrossStitch({"a": stack(4), "b": stack(4)}, tasks())
    with pytest.raises(ParameterError, match="tasks 'a' and 'b' were given the same parameters"):
        CrossStitch(dict.fromkeys("abc", one), tasks())
    with pytest.raises(ParameterError, match="that of task 'b' has other stages"):
        CrossStitch({"a": stack(4), "b": stack(6, 4), "c": stack(4)}, tasks())
    with pytest.raises(ParameterError, match="LSTM declares no stages"):
        CrossStitch(nn.LSTM(5, 4), tasks())
    with pytest.raises(ParameterError, match=r"ResNet: unknown part 'layer5'\. Did you mean 'layer4'"):
        CrossStitch(resnet18(width=2), tasks(), after=["layer5"])


def test_streams_of_different_widths_cannot_be_mixed() -> None:
    model = CrossStitch({"a": stack(4), "b": stack(3), "c": stack(4)}, tasks())
    with pytest.raises(ParameterError, match=r"features of one shape to be mixed, found \[\(7, 3\), \(7, 4\)\]"):
        model(batch().float())


class Halved(MLP):
    """A stack whose subclass does something else with it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 2


def test_a_subclass_with_a_forward_of_its_own_is_not_taken_for_a_stack() -> None:
    with pytest.raises(ParameterError, match="Halved declares no stages"):
        CrossStitch(Halved((5,), hidden=[4]), tasks())
