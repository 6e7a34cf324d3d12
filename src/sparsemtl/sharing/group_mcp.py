"""Group lasso without its bias: large channels are left as they are."""

from __future__ import annotations

from typing import Annotated

from typing_extensions import Doc, Unpack

from sparsemtl.optim.penalties import GroupMCP
from sparsemtl.registry.parameters import Natural, NonNegative, Positive, validated
from sparsemtl.sharing.group_lasso import GroupGranularity, groups_and_units
from sparsemtl.sharing.proximal import ProximalOptions, ProximalSharing


class GroupMCPSharing(ProximalSharing):
    """Minimax concave penalty on the channels of the shared convolutions (Zhang 2010; Huang et al. 2012).

    Attention heads and hidden units of feed-forward layers are groups as in `GroupLassoSharing`.
    """

    @validated
    def __init__(
        self,
        *,
        lambda_: Annotated[NonNegative, Doc("Strength of the penalty.")] = 1e-5,
        gamma: Annotated[
            Positive, Doc("A group whose norm is above gamma * lambda * sqrt(n_g) is not shrunk; above 0.")
        ] = 3.0,
        granularity: Annotated[
            GroupGranularity,
            Doc(
                "What becomes zero together: `input-channel` W[:, c], `output-channel` W[n], or `block`; `head`, an "
                "attention head in the query, key, value and output projections; or `neuron`, a hidden unit of a "
                "feed-forward layer in the layers before and behind it."
            ),
        ] = "input-channel",
        keep_min: Annotated[Natural, Doc("Groups of every layer that always survive.")] = 0,
        linear: Annotated[
            bool, Doc("Make linear layers sparse as well; heads and neurons are of linear layers in any case.")
        ] = False,
        **options: Unpack[ProximalOptions],
    ) -> None:
        groups, units = groups_and_units(granularity)
        penalty = GroupMCP(strength=lambda_, gamma=gamma, granularity=groups, keep_min=keep_min, linear=linear)
        super().__init__(penalty, options, units)
