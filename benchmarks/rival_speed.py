"""Time of a whole training over that of LibMTL 1.1.5, with three tasks and four ways of balancing.

    python benchmarks/rival_speed.py [--quick]

LibMTL is not a dependency; without it the script prints the command that installs it, and skips.

Both train copies of one network on the same batches with Adam at its defaults, and evaluate accuracy and loss after
every epoch; LibMTL makes the Adam of torch as it does, the trainer that of the registry. Trainings alternate in one
process. What is made for LibMTL, and nothing else:

- it runs on the CPU, where its trainer names `cuda:0`; it takes a batch by `next(loader)`, where it calls the method
  `loader.next()` of an old torch; its import of `torchvision.models.utils`, which is gone, finds `torch.hub`; and
  gradients are set to zero between tasks, not to None as torch does now;
- its release has no Nash-MTL: its gradients are combined by TorchJD's `NashMTL`, as its later source does by the same
  solver; its CAGrad is for three tasks only.

Forward and backward passes are torch's in both. In our training of the ResNet-18 with EW they take 94 % of the time and
steps of Adam 2 %: a ratio below that needs a rival that spends more time outside of them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from common import BATCH, CLASSES, Batch, Measure, Ratio, batch, main, network, seconds, spread
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sparsemtl import Classification, SharedBottom, Trainer

INSTALL = (
    "pip install --target build/rival --no-deps LibMTL==1.1.5 cvxpy==1.9.3 ecos==2.0.14 clarabel osqp scs qdldl "
    "highspy sparsediffpy"
)
FOLDER = Path(__file__).parent.parent / "build" / "rival"
TASKS = [f"task{index}" for index in range(3)]
METHODS = {"EW": "sum", "CAGrad": "cagrad", "Nash-MTL": "nash-mtl", "MGDA": "mgda"}
"""Name in the literature -> name of our balancer."""


@dataclass(frozen=True)
class Size:
    """Length of a training.

    Attributes:
        batches: training batches per epoch.
        evaluation: batches of the evaluation after every epoch.
        epochs: number of epochs.
        pairs: trainings by each library.
        goal: bound of the ratio.
    """

    batches: int
    evaluation: int
    epochs: int
    pairs: int
    goal: float


SIZES = {
    "small": Size(batches=150, evaluation=25, epochs=2, pairs=3, goal=1.0),
    "mlp": Size(batches=10, evaluation=3, epochs=2, pairs=3, goal=0.9),
    "resnet18": Size(batches=4, evaluation=1, epochs=1, pairs=2, goal=0.9),
}


def model_of(name: str) -> SharedBottom:
    if name != "small":
        return network(name, len(TASKS))
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
    heads = {task: nn.Linear(64, CLASSES) for task in TASKS}
    return SharedBottom(encoder, [Classification(task, CLASSES) for task in TASKS], heads)


def loader_of(name: str, count: int) -> DataLoader[Batch]:
    """A loader of batches that are ready, so that no time goes into putting samples together."""
    if name != "small":
        batches = [batch(name, len(TASKS)) for _ in range(count)]
    else:
        drawn = [torch.randn(BATCH, 64) for _ in range(count)]
        batches = [(x, {task: torch.randint(CLASSES, (BATCH,)) for task in TASKS}) for x in drawn]
    return DataLoader(batches, batch_size=None, shuffle=True)  # type: ignore[arg-type]


def ours(model: SharedBottom, method: str, loaders: tuple[DataLoader[Batch], DataLoader[Batch]], epochs: int) -> None:
    Trainer(model, balancing=METHODS[method], epochs=epochs, progress=False).fit(*loaders)


def load_libmtl() -> ModuleType | None:
    """Import LibMTL, if it is installed."""
    sys.path.append(str(FOLDER))
    moved = ModuleType("torchvision.models.utils")
    moved.load_state_dict_from_url = torch.hub.load_state_dict_from_url  # type: ignore[attr-defined]
    modules = {"torchvision": ModuleType("torchvision"), "torchvision.models": ModuleType("torchvision.models")}
    sys.modules.update({**modules, moved.__name__: moved})
    try:
        import cvxpy  # noqa: F401
        import ecos  # noqa: F401
        import LibMTL
    except ImportError as error:
        print(f"skipped: {error}. Install the rival by\n\n    {INSTALL}\n")
        return None
    finally:
        for name in (*modules, moved.__name__):
            del sys.modules[name]
    return LibMTL


def rival(
    libmtl: Any, model: SharedBottom, method: str, loaders: tuple[DataLoader[Batch], DataLoader[Batch]], epochs: int
) -> None:
    """Train by LibMTL."""

    class OnCPU(libmtl.Trainer):
        def _prepare_model(self, *arguments: Any) -> None:
            self.device = torch.device("cpu")
            super()._prepare_model(*arguments)

        def _process_data(self, loader: list[Any]) -> Batch:
            x, labels = next(loader[1], None) or next(self._again(loader))
            return x.to(self.device), {task: label.to(self.device) for task, label in labels.items()}

        def _again(self, loader: list[Any]) -> Iterator[Batch]:
            loader[1] = iter(loader[0])
            return loader[1]

    class ZeroGradients(libmtl.architecture.HPS):
        def zero_grad_share_params(self) -> None:
            self.encoder.zero_grad(set_to_none=False)

    task_dict = {
        task: {
            "metrics": ["Acc"],
            "metrics_fn": libmtl.metrics.AccMetric(),
            "loss_fn": libmtl.loss.CELoss(),
            "weight": [1],
        }
        for task in TASKS
    }
    weighting, arguments = {
        "EW": (libmtl.weighting.EW, {}),
        "CAGrad": (libmtl.weighting.CAGrad, {"calpha": 0.5, "rescale": 1}),
        "Nash-MTL": (nash_weighting(libmtl), {}),
        "MGDA": (libmtl.weighting.MGDA, {"mgda_gn": "none"}),
    }[method]
    trainer = OnCPU(
        task_dict,
        weighting,
        ZeroGradients,
        lambda: model.encoder,
        model.heads,
        rep_grad=False,
        multi_input=False,
        optim_param={"optim": "adam", "lr": 1e-3},
        scheduler_param=None,
        weight_args=arguments,
        arch_args={},
    )
    trainer.train(*loaders, epochs)


def nash_weighting(libmtl: Any) -> type[nn.Module]:
    """Nash-MTL for LibMTL: TorchJD's solver on LibMTL's gradients."""
    from torchjd.aggregation import NashMTL

    class Nash(libmtl.weighting.AbsWeighting):
        def init_param(self) -> None:
            self.solver = NashMTL(self.task_num).weighting

        def backward(self, losses: Tensor, **_: Any) -> Any:
            gradients = self._get_grads(losses)
            weights = self.solver(gradients)
            self._backward_new_grads(weights, grads=gradients)
            return weights.numpy()

    return Nash


def ratio(libmtl: Any, name: str, method: str, pairs: int) -> Ratio:
    """Time of our training over that of LibMTL."""
    size, model = SIZES[name], model_of(name)
    if name == "small" and method == "Nash-MTL":
        size = replace(size, epochs=1)  # a step of the rival's solver takes 20 ms
    loaders = loader_of(name, size.batches), loader_of(name, size.evaluation)

    def once() -> float:
        theirs, mine = deepcopy(model), deepcopy(model)
        with redirect_stdout(StringIO()):
            base = seconds(partial(rival, libmtl, theirs, method, loaders, size.epochs))
        return seconds(partial(ours, mine, method, loaders, size.epochs)) / base

    return spread(once, pairs)


def measures(quick: bool) -> Iterator[Measure]:
    libmtl = load_libmtl()
    if libmtl is None:
        return
    ratio(libmtl, "small", "EW", 1)  # first use of optimizers imports much of torch
    for name in ("mlp", "small") if quick else SIZES:
        for method in ("EW", "MGDA") if quick else METHODS:
            found = ratio(libmtl, name, method, 2 if quick else SIZES[name].pairs)
            yield Measure(f"training ÷ LibMTL's, {method}, {name}", found, SIZES[name].goal)


if __name__ == "__main__":
    main(measures, __doc__)
