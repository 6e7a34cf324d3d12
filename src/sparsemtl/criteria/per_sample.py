"""Sums of powers of per-sample gradients: every parameter by the fastest path that is right for it.

`gradient_powers` has the contract and `power_sum` the sum. The fast path (`per_sample_hooks`) runs one forward and one
backward pass per batch and applies a rule per layer class (`per_sample_layers`); it also takes attention
(`per_sample_attention`), and parameters and lookups that all samples share (`per_sample_shared`). The general path
(`per_sample_functional`) runs one backward pass per sample. `per_sample`, here, chooses: a parameter takes the general
path if its layer has no rule or is called twice, if other code reads the parameter, if it is tied to another, or if its
layer's first axis is not the batch. This is not guessed but measured on the first two samples of the first batch, or on
all of it if they cannot be cut out: the first sample must have the gradients of autograd, and no layer may have a
gradient in the rows of other samples.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypedDict

import torch
from torch import Tensor, nn
from typing_extensions import Doc

from sparsemtl.criteria.gradient_powers import BatchPowers, GradientPowers, Totals
from sparsemtl.criteria.per_sample_functional import FunctionalPowers, Select, check_cut, cut
from sparsemtl.criteria.per_sample_hooks import HookedPowers, hookable, zeros_for
from sparsemtl.criteria.per_sample_shared import SAMPLES, find_spreads, spreadable, succeeds
from sparsemtl.criteria.power_sum import PowerSum
from sparsemtl.errors import ParameterError
from sparsemtl.networks.masked_product import cached_parts
from sparsemtl.registry.parameters import Default, Positive
from sparsemtl.tasks.nests import tensors_in

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
        self._spare: dict[str, Tensor] = {}
        self._checked = 0
        self._counted = 0

    def zeros(self) -> dict[str, Tensor]:
        """Return totals of zeros in the rules' memory layout; the first ones in the memory that the check has used."""
        spare, self._spare = self._spare, {}
        fresh = zeros_for(self.model, {name: p for name, p in self.parameters.items() if name not in spare})
        return {name: fresh[name] if name in fresh else spare[name].zero_() for name in self.parameters}

    def forward(self, x: Any, tasks: tuple[str, ...]) -> dict[str, Tensor]:
        """Run the model; also check the first batch of several samples, on two of them if they can be cut out."""
        outputs = self._run(x, tasks)
        rows = min(len(next(iter(outputs.values()))), SAMPLES)
        if rows > self._checked:  # a single row may be the first of anything: two samples are checked again
            self._checked, hooked = rows, self.hooked
            self._check(x, outputs)
            if self.hooked is not hooked:
                outputs = self._run(x, tasks)
        self._leave(self.hooked.broken & self.hooked.parameters.keys())
        if self.general is not None:
            self.general.read(x, outputs)
        return outputs

    def add(self, cotangents: Mapping[str, Tensor], totals: Totals) -> None:
        """Add by both paths, each for its own parameters."""
        if self.hooked.parameters:
            self.hooked.add(cotangents, totals)
        if self.general is not None:
            self.general.add(cotangents, totals)

    def _run(self, x: Any, tasks: tuple[str, ...]) -> dict[str, Tensor]:
        """Run the model with hooks; without those that change what it computes with, if it refuses them."""
        changed = self.hooked.changed()
        if not changed:
            return self.hooked.forward(x, tasks)
        batch = self._length(x)
        try:
            outputs = self.hooked.forward(x, tasks, batch)
            if not self.hooked.spreads or len(next(iter(outputs.values()))) == batch:
                return outputs
        except Exception as refusal:  # a model may refuse a tensor of another shape by any error
            logger.info("%s refuses shared tensors one per sample: %s", type(self.model).__name__, refusal)
        self._leave(changed)
        return self.hooked.forward(x, tasks)

    def _length(self, x: Any) -> int:
        """Return the number of samples, by the tensor whose first axis had it in the checked batch."""
        lengths = [len(tensor) if tensor.ndim else 0 for tensor in tensors_in(x)]
        return lengths[self._counted] if self._counted < len(lengths) else 0

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

    def _check(self, x: Any, outputs: Mapping[str, Tensor]) -> None:
        """Leave to the general path what hooks get wrong on a batch whose outputs are known."""
        called, before = self.hooked.called, set(self.hooked.parameters)
        pair = self._pair(x, outputs)
        if pair is None:
            wrong, _ = self._wrong(x, 0)
        else:
            self._adopt(pair, outputs)
            wrong, seen = self._wrong(pair, SAMPLES)
            if seen & before != called:  # the model computes otherwise with more samples
                wrong |= self._wrong(x, len(next(iter(outputs.values()))))[0]
        kept = self.hooked.parameters.keys() - wrong
        self.hooked.drop(wrong)
        self.general = None
        self._leave(self.parameters.keys() - kept)

    def _pair(self, x: Any, outputs: Mapping[str, Tensor]) -> Any | None:
        """Return the first two samples as a batch of their own, None if they cannot be cut out."""
        batch = len(next(iter(outputs.values())))
        lengths = [len(tensor) if tensor.ndim else 0 for tensor in tensors_in(x)]
        if batch < SAMPLES or batch not in lengths:
            return None
        self._counted = lengths.index(batch)
        pair = cut(x, slice(0, SAMPLES), batch)
        return pair if succeeds(lambda: self._returns(pair, outputs)) else None

    def _returns(self, pair: Any, outputs: Mapping[str, Tensor]) -> bool:
        """Return True if the model returns the first rows of the outputs for two samples; otherwise raise."""
        check_cut(self.model(pair, tasks=tuple(outputs)), outputs, slice(0, SAMPLES))
        return True

    def _adopt(self, pair: Any, outputs: Mapping[str, Tensor]) -> None:
        """Take parameters to the hooks that all samples share, where the model computes the same if they are spread."""
        hooks = HookedPowers(self.model, self.hooked.parameters, self.sums)
        hooks.forward(pair, self.tasks)
        rest = {name: p for name, p in self.parameters.items() if name not in hooks.parameters}
        own = spreadable(self.model, rest)
        layers = {layer: names.values() for layer, names in hooks.shared.items()}
        spreads = find_spreads(self.model, self.detached, own, layers, lambda: self._returns(pair, outputs))
        if spreads:
            chosen = {n: p for n, p in self.parameters.items() if n in hooks.parameters or n in spreads}
            self.hooked = HookedPowers(self.model, chosen, self.sums, spreads)

    def _wrong(self, x: Any, batch: int) -> tuple[set[str], set[str]]:
        """Return the parameters whose gradient on the first sample is not autograd's, and those whose layer ran.

        Args:
            x: input of the model.
            batch: number of its samples, needed where there are spreads.
        """
        try:
            return self._compared(x, batch)
        except Exception as refusal:
            changed = self.hooked.changed()
            if not changed:
                raise
            logger.info("%s refuses shared tensors one per sample: %s", type(self.model).__name__, refusal)
            self.hooked.drop(changed)
            return self._compared(x, batch)

    def _compared(self, x: Any, batch: int) -> tuple[set[str], set[str]]:
        """Return what `_wrong` returns; raise if the model refuses spreads, or returns other outputs with hooks."""
        self._spare = {}
        plain = BatchPowers(self.model, self.hooked.parameters, self.sums)
        outputs = plain.forward(x, self.tasks)
        first = _of_sample(0, outputs)
        gradients = plain.gradients(first)
        del plain  # and with it a graph of the size of a training step's
        hooked = HookedPowers(self.model, self.hooked.parameters, self.sums, self.hooked.spreads)
        found = hooked.zeros()
        same = hooked.forward(x, self.tasks, batch)
        if hooked.changed():
            check_cut(same, outputs, slice(None))
        hooked.add_alone(0, first, found)
        self.sums.flush()
        if len(next(iter(outputs.values()))) > 1:  # a layer that reads one position of all samples: row 0 may be it
            hooked.add_alone(1, _of_sample(1, outputs), {})
        broken = hooked.broken | (gradients.keys() - hooked.called)
        sizes = {name: _largest(gradient) for name, gradient in gradients.items() if gradient.numel()}
        least = 1e-3 * max(sizes.values(), default=0.0)
        wrong = set(broken)
        for name, total in found.items():
            size = total
            if self.sums.power == "square":  # torch's root is ten times as slow where there are zeros
                size = total.clamp_(min=0).rsqrt_().reciprocal_()
            if name not in broken and not _equal(size, gradients.pop(name, None), max(sizes.get(name, 0.0), least)):
                wrong.add(name)
        self._spare = found
        return wrong, hooked.called


def _of_sample(n: int, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return gradients of one sample's outputs alone, without symmetry that could hide an error."""
    generator = torch.Generator().manual_seed(n)
    cotangents = {task: torch.zeros_like(output) for task, output in outputs.items()}
    for cotangent in cotangents.values():
        cotangent[n] = torch.randn(cotangent[n].shape, generator=generator).to(cotangent)
    return cotangents


def _largest(gradient: Tensor) -> float:
    """Return the largest |entry|, without a copy of the tensor."""
    low, high = torch.aminmax(gradient)
    return max(float(-low), float(high))


def _equal(found: Tensor, expected: Tensor | None, scale: float) -> bool:
    """Return whether |gradients| differ by no more than the rounding of numbers of a scale; `found` is changed."""
    if not found.numel():
        return True
    if expected is not None:
        for own, other in cached_parts(found, expected):
            own.sub_(other.abs())
    return float(found.abs_().amax()) <= _TOLERANCE.get(found.dtype, _ROUNDING) * scale
