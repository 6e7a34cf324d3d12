"""Less is More: shared convolutions that shed their own channels while they train."""

from __future__ import annotations

from typing import Annotated, Literal

from typing_extensions import Doc, Unpack

from sparsemtl.networks.structures import Kind
from sparsemtl.optim.penalties import GroupLasso
from sparsemtl.registry.parameters import Natural, NonNegative, validated
from sparsemtl.sharing.proximal import ProximalOptions, ProximalSharing

ChannelGroups = Literal["input-channel", "output-channel", "block"]
GroupGranularity = ChannelGroups | Kind


def groups_and_units(granularity: GroupGranularity) -> tuple[ChannelGroups, Kind | None]:
    """Return the groups of a penalty, and the units that replace them, for a granularity."""
    if granularity == "head" or granularity == "neuron":
        return "input-channel", granularity
    return granularity, None


class GroupLassoSharing(ProximalSharing):
    """Channel-wise l1/l2 group sparsity of the shared convolutions (Upadhyay et al., Less is More, 2023).

    After every step of the optimizer the proximal map of lambda * sum of sqrt(n_g) |W_g| is applied (Eq. 3 to 5), where
    W_g are the weights of one input channel of one convolution; channels that no task needs become exactly zero.

    With granularity `head` or `neuron`, W_g are the weights and biases of one attention head or one hidden unit, which
    span several layers: the rows that make the unit, and the columns that read it. One proximal step acts on all of
    them. Units are found in the first batch (`find_structures`). A frozen parameter is no part of a unit.

    Differences from the paper:
        - The plain step of Eq. 5 is `adaptive=False`; the code, and the lambdas of the paper, are of the adaptive one.
        - The code also adds the penalty to the loss (`penalty_in_loss` does), weighing a group there by the square root
          of the number of channels.
        - The code makes a new optimizer every epoch, whose moments start again (`training.restart_every: 1` does).
        - The code's dense baseline has coupled weight decay, its sparse runs decoupled; a fair one is lambda = 0 here.
    """

    @validated
    def __init__(
        self,
        *,
        lambda_: Annotated[NonNegative, Doc("Strength of the penalty. The paper: 1e-6 and 1e-5.")] = 1e-5,
        granularity: Annotated[
            GroupGranularity,
            Doc(
                "What becomes zero together: `input-channel` W[:, c] (the paper), `output-channel` W[n], or `block`; "
                "`head`, an attention head in the query, key, value and output projections; or `neuron`, a hidden unit "
                "of a feed-forward layer in the layers before and behind it."
            ),
        ] = "input-channel",
        keep_min: Annotated[Natural, Doc("Groups of every layer that always survive.")] = 0,
        linear: Annotated[
            bool, Doc("Make linear layers sparse as well; heads and neurons are of linear layers in any case.")
        ] = False,
        **options: Unpack[ProximalOptions],
    ) -> None:
        groups, units = groups_and_units(granularity)
        super().__init__(
            GroupLasso(strength=lambda_, granularity=groups, keep_min=keep_min, linear=linear), options, units
        )
