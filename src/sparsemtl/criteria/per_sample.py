"""Sums of powers of per-sample gradients: every parameter by the fastest path that is right for it.

Per-sample gradients are computed in five files. `gradient_powers` has the sum and the contract. The fast path
(`per_sample_hooks`) runs one forward and one backward pass per batch and applies a rule per layer class
(`per_sample_layers`). The general path (`per_sample_functional`) runs one backward pass per sample. `per_sample`, here,
chooses: a parameter takes the general path if its layer has no rule or is called twice, if other code reads the
parameter, if it is tied to another, or if its layer's first axis is not the batch. This is not guessed but measured on
the first batch: its first sample must have the gradients of autograd, and no layer may have a gradient in the rows of
other samples.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypedDict

import torch
from torch import Tensor, nn
from typing_extensions import Doc

from sparsemtl.criteria.gradient_powers import BatchPowers, GradientPowers, PowerSum, Totals
from sparsemtl.criteria.per_sample_functional import FunctionalPowers, Select
from sparsemtl.criteria.per_sample_hooks import HookedPowers, hookable, zeros_for
from sparsemtl.errors import ParameterError
from sparsemtl.registry.parameters import Default, Positive

logger = logging.getLogger(__name__)

Path = Literal["auto", "hooks", "functional", "loop"]


class PerSampleOptions(TypedDict, total=False):
    """Options of the computation of per-sample gradients; none changes the result."""

    chunk_mb: Annotated[
        Positive,
        Default(8),
        Doc("Megabytes of per-sample gradients and copies of inputs that exist at a time. More is not faster."),
    ]
    path: Annotated[
        Path,
        Default("auto"),
        Doc(
            "`auto` takes for every parameter the fastest path that is right; `hooks` insists on the fast path, "
            "`functional` is torch.func's vmap, `loop` one backward pass per sample."
        ),
    ]
    select: Annotated[
        Select | None,
        Default(None),
        Doc(
            "Function (x, i) -> sample i as a batch of one, for inputs that do not hold their samples along the first "
            "axis of tensors (sequences time first, graphs with a list of edges). Without it such samples are "
            "differentiated inside their batch, which is slower and gives the same."
        ),
    ]


_TOLERANCE = {torch.float64: 1e-8}
"""Relative error of a gradient that counts as rounding, by dtype."""
_ROUNDING = 1e-4
"""The same for all other dtypes."""


def per_sample(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    tasks: Iterable[str],
    sums: PowerSum,
    path: Path = "auto",
    select: Select | None = None,
) -> GradientPowers:
    """Return the sum of powers of per-sample gradients that is right for a model.

    Args:
        model: a `MultiTaskModel` in eval mode.
        parameters: the parameters to differentiate, by name.
        tasks: all tasks that `forward` will run.
        sums: sum to add.
        path: `auto` takes for every parameter the fastest path that is right; `hooks` insists on the fast one,
            `functional` is torch.func's vmap, `loop` one autograd backward per sample.
        select: cuts a sample out of a batch, (x, i) -> sample i as a batch of one. By default it is row i of every
            tensor whose first axis has the batch's length; everything else is shared by all samples.

    Raises:
        ParameterError: if a batch norm takes its statistics from the batch, in which no sample stands alone; later, if
            `select` returns something other than the sample, or the path that `path` insists on cannot be right.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise ParameterError(
                f"{name!r} ({type(module).__name__}) has no running statistics, so its samples depend on each other "
                "and none has a gradient of its own. Use estimator='batch', or track_running_stats=True."
            )
    if path in ("functional", "loop"):
        return FunctionalPowers(model, parameters, sums, vectorised=path == "functional", strict=True, select=select)
    return _CheckedPowers(model, parameters, tuple(tasks), sums, strict=path == "hooks", select=select)


class _CheckedPowers(GradientPowers):
    """Hooks wherever they agree with autograd, the general path for the other parameters.

    Args:
        model: as in `GradientPowers`.
        parameters: as in `GradientPowers`.
        tasks: all tasks that `forward` will run.
        sums: as in `GradientPowers`.
        strict: raise instead of taking the general path.
        select: as in `FunctionalPowers`.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, Tensor],
        tasks: tuple[str, ...],
        sums: PowerSum,
        *,
        strict: bool = False,
        select: Select | None = None,
    ) -> None:
        super().__init__(model, parameters, sums)
        self.tasks = tasks
        self.strict = strict
        self.select = select
        self.hooked = HookedPowers(model, hookable(model, parameters), sums)
        self.general: FunctionalPowers | None = None
        self._leave([name for name in parameters if name not in self.hooked.parameters])
        self._checked = 0

    def zeros(self) -> dict[str, Tensor]:
        """Return totals of zeros in the rules' memory layout."""
        return zeros_for(self.model, self.parameters)

    def forward(self, x: Any, tasks: tuple[str, ...]) -> dict[str, Tensor]:
        """Run the model; also check the first batch of several samples, which costs about two training steps."""
        outputs = self.hooked.forward(x, tasks)
        rows = min(len(next(iter(outputs.values()))), 2)
        if rows > self._checked:  # a single row may be the first of anything: two samples are checked again
            self._leave(self._wrong(x))
            self._checked = rows
            outputs = self.hooked.forward(x, tasks)
        self._leave(self.hooked.broken)
        if self.general is not None:
            self.general.read(x, outputs)
        return outputs

    def add(self, cotangents: Mapping[str, Tensor], totals: Totals) -> None:
        """Add by both paths, each for its own parameters."""
        if self.hooked.parameters:
            self.hooked.add(cotangents, totals)
        if self.general is not None:
            self.general.add(cotangents, totals)

    def _leave(self, names: Iterable[str]) -> None:
        """Move parameters to the general path from here on."""
        names = sorted(names)
        if not names:
            return
        if self.strict:
            raise ParameterError(
                f"path='hooks' cannot give per-sample gradients of {', '.join(names)}: the layer has no rule, is "
                "called twice, shares the parameter, or does not read the batch on its first axis. Use path='auto'."
            )
        logger.info("general path for %s", ", ".join(names))
        self.hooked.drop(names)
        chosen = {name: p for name, p in self.parameters.items() if name not in self.hooked.parameters}
        self.general = FunctionalPowers(self.model, chosen, self.sums, select=self.select)

    def _wrong(self, x: Any) -> list[str]:
        """Return the parameters whose gradient on the first sample is not autograd's."""
        if not self.hooked.parameters:
            return []
        plain = BatchPowers(self.model, self.hooked.parameters, self.sums)
        outputs = plain.forward(x, self.tasks)
        first = _of_sample(0, outputs)
        expected = plain.zeros()
        gradients = plain.gradients(first)
        for name, gradient in gradients.items():
            self.sums.gradients(expected[name], gradient.unsqueeze(0))
        del plain  # and with it a graph of the size of a training step's
        found = zeros_for(self.model, self.hooked.parameters)
        self.hooked.forward(x, self.tasks)
        self.hooked.add_alone(0, first, found)
        if len(next(iter(outputs.values()))) > 1:  # a layer that reads one position of all samples: row 0 may be it
            self.hooked.add_alone(1, _of_sample(1, outputs), {})
        broken = self.hooked.broken | (gradients.keys() - self.hooked.called)
        root = 0.5 if self.sums.power == "square" else 1.0
        largest = max((float(e.amax()) ** root for e in expected.values() if e.numel()), default=0.0)
        return [
            name
            for name in expected
            if name in broken or not _equal(found[name].clamp(min=0) ** root, expected[name] ** root, largest)
        ]


def _of_sample(n: int, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return gradients of one sample's outputs alone, without symmetry that could hide an error."""
    generator = torch.Generator().manual_seed(n)
    cotangents = {task: torch.zeros_like(output) for task, output in outputs.items()}
    for cotangent in cotangents.values():
        cotangent[n] = torch.randn(cotangent[n].shape, generator=generator).to(cotangent)
    return cotangents


def _equal(found: Tensor, expected: Tensor, largest: float) -> bool:
    """Return whether gradients differ by no more than their rounding, or that of far larger gradients."""
    if not found.numel():
        return True
    scale = max(float(expected.amax()), 1e-3 * largest)
    return float((found - expected).abs().amax()) <= _TOLERANCE.get(expected.dtype, _ROUNDING) * scale
