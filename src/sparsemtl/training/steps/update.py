"""Choice of how a batch becomes optimizer steps."""

from __future__ import annotations

from sparsemtl.balancing import Balancer
from sparsemtl.errors import ParameterError
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.sharing.sharing import Update


def choose_update(
    model: MultiTaskModel,
    networks: TaskNetworks,
    balancer: Balancer,
    *,
    asked: Update | None = None,
    own_data: bool = False,
) -> Update:
    """Return how a batch becomes optimizer steps.

    Args:
        model: the model.
        networks: the tasks' networks.
        balancer: decides whether tasks may take turns, or are combined in a step.
        asked: wish of the sharing method or of the user; None leaves the choice to the rest.
        own_data: every task has data of its own, and a forward pass of its own in any case: `joint` is `average`.

    Raises:
        ParameterError: if `joint` is asked for and the tasks do not compute with one network.
    """
    if own_data and asked in (None, "joint"):
        return "average"
    one_network = networks.one_network
    if asked == "joint" and not one_network:
        raise ParameterError(
            "update='joint' runs one forward pass for all tasks, but each task has a network of its own. Use "
            "update='average', or 'alternate' if the balancer's weights are constant."
        )
    if asked is not None:
        return asked
    if one_network and not (balancer.constant and model.independent):
        return "joint"
    return "alternate" if balancer.takes_turns else "average"
