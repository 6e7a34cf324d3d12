"""Sharing methods: which shared weights each task reads and trains, and when that changes. One file a method."""

from sparsemtl.registry.registry import Registry
from sparsemtl.sharing.dense import DenseSharing
from sparsemtl.sharing.fisher import FisherSharing
from sparsemtl.sharing.group_lasso import GroupLassoSharing
from sparsemtl.sharing.group_mcp import GroupMCPSharing
from sparsemtl.sharing.l1 import L1Sharing
from sparsemtl.sharing.masked import MaskedSharing
from sparsemtl.sharing.pbfs import PBFSSharing
from sparsemtl.sharing.proximal import ProximalSharing
from sparsemtl.sharing.random import RandomSharing
from sparsemtl.sharing.sharing import Sharing
from sparsemtl.sharing.soft_masks import SoftMaskSharing
from sparsemtl.sharing.subnetwork import SubnetworkSharing

SHARING: Registry[Sharing] = Registry(
    "sharing method",
    {
        "dense": DenseSharing,
        "random": RandomSharing,
        "fisher": FisherSharing,
        "group-lasso": GroupLassoSharing,
        "l1": L1Sharing,
        "group-mcp": GroupMCPSharing,
        "pbfs": PBFSSharing,
        "soft-masks": SoftMaskSharing,
    },
)

__all__ = [
    "SHARING",
    "DenseSharing",
    "FisherSharing",
    "GroupLassoSharing",
    "GroupMCPSharing",
    "L1Sharing",
    "MaskedSharing",
    "PBFSSharing",
    "ProximalSharing",
    "RandomSharing",
    "Sharing",
    "SoftMaskSharing",
    "SubnetworkSharing",
]
