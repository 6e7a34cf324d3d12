"""Speed of compacted networks: how many times faster they are, over how many times fewer multiply-adds they have.

    python benchmarks/compaction_speed.py [--quick] [--full] [--threads 2] [--json FILE]

ResNet-18 and ResNet-50 of one task with zeros in 50, 70 or 90 % of the input channels of every convolution but the
first, at random; with `--full` also images of 224x224 at each share, and ResNet-18 in the pattern that group lasso
leaves: few zeros at the front, many at the back. Four layers of BERT and of ViT in their usual width, without half of
the heads and neurons, on 8 sequences of 128 tokens (of ViT 122). Dense and compact network run in turns, each in the
faster of its two layouts. In onnxruntime also with the number of channels that is fastest there, of multiples of 1, 8
and 16; the saved multiply-adds are those of the network without that. The rows *narrow from the start* are the ceiling
at 90 % zeros: a network of the same kind with about as many multiply-adds as the compacted one, in which every layer
reads all channels of the layer before it, so that nothing is gathered. Beside it the time of a compaction, verification
included.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from common import Measure, Ratio, main, seconds
from torch import Tensor, nn

import sparsemtl as sm
from sparsemtl.backbones import resnet18, resnet50
from sparsemtl.compaction.files.modules import OnnxFile
from sparsemtl.compaction.inputs import Inputs
from sparsemtl.compaction.timing.measure import times_of

CASES = {"ResNet-18": [(16, 64), (1, 64)], "ResNet-50": [(16, 64), (1, 64)]}
"""Network -> samples and pixels of a side."""
LARGE = (16, 224)
"""The same of ResNet-18 at 70 % zeros; with `--full` of both at each share."""
NETWORKS = {"ResNet-18": resnet18, "ResNet-50": resnet50}
GOALS = {
    ("ResNet-18", "eager"): (0.65, 0.45, 0.22),
    ("ResNet-50", "eager"): (0.60, 0.42, 0.18),
    ("ResNet-18", "onnxruntime, rounded"): (0.80, 0.55, 0.35),
    ("ResNet-50", "onnxruntime, rounded"): (0.80, 0.55, 0.35),
}
"""Network and kind of row -> share at 50, 70 and 90 % zeros."""
ATTENTION_GOAL = 0.8
"""Share of the saved multiply-adds of BERT and ViT that becomes time."""
ZEROS = (0.5, 0.7, 0.9)
MULTIPLES = (1, 8, 16)
"""Numbers of which channels are multiples; `multiple_of="onnxruntime"` tries 4 as well."""
REPEATS = 7
NARROW = {"ResNet-18": 13, "ResNet-50": 10}
"""Network -> width at which it has about the multiply-adds of the one that is compacted at 90 % zeros."""


def measures(quick: bool, full: bool = False) -> Iterator[Measure]:
    """Yield a row per network, runtime, share of zeros and batch, and one for the compaction itself."""
    for name in list(NETWORKS)[: 1 if quick else None]:
        yield from _convolutional(name, quick, full)
    if quick:
        return
    if find_spec("transformers") is None:
        print("BERT and ViT are left out: pip install 'sparsemtl[transformers]'")
    else:
        yield from _attention("BERT", *_bert())
        yield from _attention("ViT", *_vit())
    large = _with_zeros(resnet50, lambda depth: 0.5)
    time = seconds(lambda: sm.compact(large, example_inputs=torch.rand(1, 3, 64, 64)))
    yield Measure("compaction of ResNet-50, with verification", Ratio(time, time, time), 15, "s")


def _convolutional(name: str, quick: bool, full: bool) -> Iterator[Measure]:
    """Yield the rows of a residual network."""
    build = NETWORKS[name]
    with tempfile.TemporaryDirectory() as folder:
        dense = _file(_with_zeros(build, lambda depth: 0.0), Path(folder) / "dense.onnx")
        for index, zeros in enumerate(ZEROS[:1] if quick else ZEROS):
            model = _with_zeros(build, lambda depth, zeros=zeros: zeros)
            goals = {kind: shares[index] for (of, kind), shares in GOALS.items() if of == name}
            cases = CASES[name][: 1 if quick else None]
            if full or (name == "ResNet-18" and zeros == 0.7):
                cases = [*cases, LARGE]
            yield from _rows(f"{name}, {zeros:.0%} zeros", model, dense, goals, cases)
        if not quick:
            yield from _narrow(name, dense, Path(folder))
        if full and name == "ResNet-18":
            model = _with_zeros(build, lambda depth: 0.2 + 0.7 * depth)
            yield from _rows("ResNet-18, 20 to 90 % zeros", model, dense, {}, CASES[name][:1])


def _narrow(name: str, dense: OnnxFile, folder: Path) -> Iterator[Measure]:
    """Yield which share of the saved multiply-adds becomes time in a network without gathers."""
    torch.manual_seed(0)
    model, whole = (NETWORKS[name]((3, 64, 64), width=width).eval() for width in (NARROW[name], 64))
    one = torch.rand(1, 3, 64, 64)
    fewer = sm.macs(whole, one) / sm.macs(model, one)
    narrow = _file(sm.compact(model, example_inputs=one), folder / "narrow.onnx")
    for samples, side in CASES[name]:
        inputs = Inputs((torch.rand(samples, 3, side, side),))
        times = times_of({"dense": dense, "narrow": narrow}, inputs, "onnxruntime", repeats=REPEATS)
        share = times["dense"].median / times["narrow"].median / fewer
        label = f"{name}, narrow from the start ({fewer:.1f}x fewer multiply-adds), onnxruntime, {samples} x {side}²"
        yield Measure(label, Ratio(share, share, share), at_least=True)


def _bert() -> tuple[nn.Module, tuple[str, ...], Tensor]:
    """Return four layers of BERT, names of the layers behind heads and neurons, and a batch."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    model = BertModel(BertConfig(vocab_size=1000, num_hidden_layers=4))
    return model, ("attention.output.dense", "output.dense"), torch.randint(0, 1000, (8, 128))


def _vit() -> tuple[nn.Module, tuple[str, ...], Tensor]:
    """Return four layers of ViT in the same way."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    model = ViTModel(ViTConfig(image_size=176, num_hidden_layers=4))
    return model, ("attention.o_proj", "mlp.fc2"), torch.rand(8, 3, 176, 176)


def _attention(name: str, model: nn.Module, readers: tuple[str, ...], x: Tensor) -> Iterator[Measure]:
    """Yield which share of the saved multiply-adds becomes time where half of the heads and neurons are gone."""
    model.eval().requires_grad_(False)
    for layer_name, layer in model.named_modules():
        if layer_name.endswith(readers):
            layer.weight[:, : layer.in_features // 2] = 0
    networks = {"dense": model, "small": sm.compact(model, example_inputs=x[:2])}
    kept = sm.macs(networks["small"], x) / sm.macs(model, x)
    for runtime in ("eager", "onnxruntime"):
        times = times_of(networks, Inputs((x,)), runtime, repeats=REPEATS)
        share = (1 - times["small"].median / times["dense"].median) / (1 - kept)
        label = f"{name}, half of heads and neurons ({kept:.0%} of the multiply-adds left), {runtime}, share as time"
        goal = ATTENTION_GOAL if runtime == "onnxruntime" else None
        yield Measure(label, Ratio(share, share, share), goal, at_least=True)


def _with_zeros(build: Callable[..., nn.Module], zeros: Callable[[float], float]) -> nn.Module:
    """Return a network whose convolutions have zeros in a share of their input channels, by depth in [0, 1]."""
    torch.manual_seed(0)
    model = build((3, 64, 64)).eval()
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d)][1:]
    with torch.no_grad():
        for position, layer in enumerate(layers):
            count = round(zeros(position / (len(layers) - 1)) * layer.in_channels)
            layer.weight[:, torch.randperm(layer.in_channels)[:count]] = 0
    return model


def _rows(
    name: str, model: nn.Module, dense: OnnxFile, goals: Mapping[str, float], cases: Sequence[tuple[int, int]]
) -> Iterator[Measure]:
    """Yield the rows of a network; each form of it is compacted and exported once, for all cases.

    `dense` is the file of such a network without zeros, which takes the same time.
    """
    forms = {str(multiple): network for multiple, network in _forms(model).items()}
    with tempfile.TemporaryDirectory() as folder:
        files = {each: _file(network, Path(folder) / f"{each}.onnx") for each, network in forms.items()}
        for case in cases:
            yield from _shares(name, {"dense": model, **forms}, {"dense": dense, **files}, goals, case)


def _forms(model: nn.Module) -> dict[int, nn.Module]:
    """Return the compacted network per multiple of its numbers of channels; one network of those that are the same."""
    forms: dict[int, nn.Module] = {}
    for multiple in MULTIPLES:
        small = sm.compact(model, example_inputs=torch.rand(1, 3, 64, 64), multiple_of=multiple)
        if all(sm.parameter_count(small) != sm.parameter_count(other) for other in forms.values()):
            forms[multiple] = small
    return forms


def _file(network: nn.Module, path: Path) -> OnnxFile:
    sm.export(network, path, example_inputs=torch.rand(2, 3, 64, 64), axes=(0, 2, 3))
    return OnnxFile(path)


def _shares(
    name: str,
    networks: Mapping[str, nn.Module],
    files: Mapping[str, nn.Module],
    goals: Mapping[str, float],
    case: tuple[int, int],
) -> Iterator[Measure]:
    """Yield what share of the saved multiply-adds becomes time: in torch, in onnxruntime, and there rounded."""
    samples, side = case
    x = torch.rand(samples, 3, side, side)
    fewer = sm.macs(networks["dense"], x) / sm.macs(networks["1"], x)

    def row(kind: str, before: str, after: str, networks: Mapping[str, nn.Module]) -> Measure:
        runtime = kind.partition(",")[0]
        times = times_of({each: networks[each] for each in (before, after)}, Inputs((x,)), runtime, repeats=REPEATS)
        share = times[before].median / times[after].median / fewer
        label = f"{name} ({fewer:.1f}x fewer multiply-adds), {kind}, {samples} x {side}²"
        return Measure(label, Ratio(share, share, share), goals.get(kind), at_least=True)

    yield row("eager", "dense", "1", networks)
    yield row("onnxruntime", "dense", "1", files)
    small = {each: file for each, file in files.items() if each != "dense"}
    times = times_of(small, Inputs((x,)), "onnxruntime", repeats=REPEATS)
    yield row("onnxruntime, rounded", "dense", min(times, key=lambda each: times[each].median), files)


if __name__ == "__main__":
    main(measures, __doc__)
