"""Balancing by the gradients of the tasks' common representation, in place of those of the shared weights.

The shared weights act on the losses through the representation Z alone. The gradients with respect to Z of a batch take
T times the memory of Z, whatever the number of weights, and one backward pass through the shared network serves all
tasks (Sener & Koltun 2018, Sec. 3.3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import Doc

from sparsemtl.balancing.absent import row_weights
from sparsemtl.balancing.balancer import Balancer
from sparsemtl.balancing.targets import GradientTarget, representation
from sparsemtl.balancing.torchjd_module import Always, TorchJDModule, check_reads_inner_products, check_tasks
from sparsemtl.networks.model import MultiTaskModel

_Normalise = Literal["none", "l2", "loss", "loss+"]


class RepresentationBalancer(Balancer):
    """Weights the losses of a batch by an aggregator's weights of their gradients (T, P) at the representation.

    P is the number of all entries of the representation, batch axis included.

    Args:
        make: function from the number of tasks to a `torchjd.aggregation.GramianWeightedAggregator`.
        normalise: what each gradient is divided by; see `mgda_ub`.
    """

    def __init__(self, make: Callable[[int], nn.Module], normalise: _Normalise = "none") -> None:
        self._torchjd = TorchJDModule(make)
        self._divide_by = normalise
        self._weights = torch.ones(0)

    @property
    def module(self) -> Any:
        """Aggregator, once attached."""
        return self._torchjd.module

    def attach(self, tasks: int, device: torch.device) -> None:
        """Make the module; tasks weigh the same until gradients are known.

        Raises:
            ParameterError: if the aggregator reads more than inner products.
        """
        check_tasks(self._torchjd.make, tasks)
        self._torchjd.attach(tasks, device)
        check_reads_inner_products(self.module, "representation")
        self._weights = torch.full((tasks,), 1.0 / tasks, device=device)

    def gradient_target(self, model: MultiTaskModel) -> GradientTarget:
        """Return the model's common representation."""
        return representation(model)

    def observe_gradients(self, losses: Tensor, rows: Tensor, present: Tensor) -> None:
        """Choose the weights of this batch's losses."""
        rows = self._divided(rows, losses)
        with self._torchjd.vectors_in(rows.dtype):
            self._weights = row_weights(self.module, rows, present).float()

    def _divided(self, rows: Tensor, losses: Tensor) -> Tensor:
        """Return each gradient over its divisor."""
        if self._divide_by == "none":
            return rows
        divisors = torch.ones_like(losses, dtype=rows.dtype)
        if self._divide_by in ("loss", "loss+"):
            divisors = divisors * losses.to(rows.dtype)
        if self._divide_by in ("l2", "loss+"):
            divisors = divisors * rows.norm(dim=1)
        usable = torch.where(divisors > 0, divisors, 1.0)  # a gradient of zero stays zero
        return rows / usable[:, None]

    def weights(self, losses: Tensor, present: Tensor | None = None) -> Tensor:
        """Return the weights of the gradients that were observed last."""
        return self._weights.to(losses)

    def state_dict(self) -> dict[str, Any]:
        """Return the module's state, and the last weights."""
        return {**self._torchjd.state_dict(), "weights": self._weights.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        self._torchjd.load_state_dict(state)
        self._weights = state["weights"].clone().to(self._weights.device)


def mgda_ub(
    *,
    normalise: Annotated[
        _Normalise,
        Doc(
            "Divisor of each task's gradient: none; l2, its norm; loss, the task's loss; loss+, both. Norms of zero "
            "and losses that are not positive divide by 1."
        ),
    ] = "none",
) -> RepresentationBalancer:
    """Minimum-norm point of the gradients at the tasks' common representation (MGDA-UB, Sener & Koltun 2018).

    The weights a on the simplex minimize the norm of sum_t a_t dL_t/dZ, exactly to rounding, Z being the output of the
    shared encoder for the whole batch. Then one backward pass of sum_t a_t L_t trains the shared weights and the heads.
    The norm bounds that of MGDA from above. Where each task has data or a network of its own there is no common
    representation, which is an error: use `mgda` there.
    """
    from sparsemtl.balancing import solved

    return RepresentationBalancer(Always(solved.mgda), normalise)
