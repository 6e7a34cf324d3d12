"""The unstructured control of group lasso: single weights become zero."""

from __future__ import annotations

from typing import Annotated

from typing_extensions import Doc, Unpack

from sparsemtl.optim.penalties import L1
from sparsemtl.registry.parameters import Natural, NonNegative, validated
from sparsemtl.sharing.proximal import ProximalOptions, ProximalSharing


class L1Sharing(ProximalSharing):
    """l1 sparsity of the shared convolutions (Upadhyay et al., Less is More, 2023, Table 3).

    Soft thresholding of single weights after every step of the optimizer; channels become zero by accident only. A
    group is a weight.
    """

    @validated
    def __init__(
        self,
        *,
        lambda_: Annotated[NonNegative, Doc("Strength of the penalty. The paper: 1e-3.")] = 1e-3,
        keep_min: Annotated[Natural, Doc("Weights of every layer that always survive.")] = 0,
        linear: Annotated[bool, Doc("Make linear layers sparse as well.")] = False,
        **options: Unpack[ProximalOptions],
    ) -> None:
        super().__init__(L1(strength=lambda_, keep_min=keep_min, linear=linear), options)
