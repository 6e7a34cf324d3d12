"""Architectures: the modules of a multi-task model, and the tasks that use each of them."""

from sparsemtl.architectures.assembled import AssembledModel
from sparsemtl.architectures.auxiliary import Auxiliary
from sparsemtl.architectures.cgc import CGC
from sparsemtl.architectures.cross_stitch import CrossStitch
from sparsemtl.architectures.damtl.reference import Source
from sparsemtl.architectures.mmoe import MMoE
from sparsemtl.architectures.mtal import MTAL
from sparsemtl.architectures.nddr import NDDR
from sparsemtl.architectures.pbfs import PBFS
from sparsemtl.architectures.ple import PLE
from sparsemtl.architectures.pools import Pools, build_pools, label_correlations
from sparsemtl.architectures.shared_bottom import SharedBottom
from sparsemtl.architectures.single_task import SingleTask
from sparsemtl.architectures.squeeze_excitation import SqueezeExcitation
from sparsemtl.architectures.task_groups import TaskGroups
from sparsemtl.architectures.wrapped import WrappedModel, from_model
from sparsemtl.backbones.adapters import EncoderAdapter, TransformerEncoder
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.registry.registry import Registry

ARCHITECTURES: Registry[MultiTaskModel] = Registry(
    "architecture",
    {
        "shared-bottom": SharedBottom,
        "single-task": SingleTask,
        "task-groups": TaskGroups,
        "cross-stitch": CrossStitch,
        "nddr": NDDR,
        "mtal": MTAL,
        "auxiliary": Auxiliary,
        "mmoe": MMoE,
        "cgc": CGC,
        "ple": PLE,
        "pbfs": PBFS,
        "squeeze-excitation": SqueezeExcitation,
    },
)

__all__ = [
    "ARCHITECTURES",
    "CGC",
    "MTAL",
    "NDDR",
    "PBFS",
    "PLE",
    "AssembledModel",
    "Auxiliary",
    "CrossStitch",
    "EncoderAdapter",
    "MMoE",
    "Pools",
    "SharedBottom",
    "SingleTask",
    "Source",
    "SqueezeExcitation",
    "TaskGroups",
    "TransformerEncoder",
    "WrappedModel",
    "build_pools",
    "from_model",
    "label_correlations",
]
