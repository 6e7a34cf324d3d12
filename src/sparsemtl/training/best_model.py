"""What a run folder keeps of the model that validation chose."""

from __future__ import annotations

from collections.abc import Mapping

from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.sharing.sharing import Sharing
from sparsemtl.storage.files import write_tensors
from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.training.evaluation import Network
from sparsemtl.training.snapshots import task_network


def save_best_model(
    folder: RunFolder, model: MultiTaskModel, sharing: Sharing, networks: Mapping[str, Network] | None = None
) -> None:
    """Write the weights, masks and norm statistics, and every task's own network where these do not tell it.

    Args:
        folder: the run folder.
        model: the model.
        sharing: the sharing method.
        networks: task -> its network, if tasks that share weights were chosen apart.
    """
    header = {"model": type(model).__name__}
    write_tensors(folder.model, model.state_dict(), header)
    for task, network in (networks or _scaled_networks(model, sharing)).items():
        tensors = {name: tensor for name, tensor in network.items() if tensor is not None}
        write_tensors(folder.network(task), tensors, {**header, "task": task})
    if sharing.masks is not None:
        sharing.masks.save(folder.masks)
    if sharing.norms is not None:
        folder.save(folder.norms, sharing.norms.state_dict())


def _scaled_networks(model: MultiTaskModel, sharing: Sharing) -> dict[str, Network]:
    """Every task's own network, if it reads other values than the model's."""
    return {task: task_network(model, sharing, task) for task in model.tasks if sharing.scales}
