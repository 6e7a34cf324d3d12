"""Sharing methods: which shared weights each task reads and trains, and when that changes. One file a method."""

from sparsemtl.registry import Registry
from sparsemtl.sharing.dense import DenseSharing
from sparsemtl.sharing.fisher import FisherSharing
from sparsemtl.sharing.masked import MaskedSharing
from sparsemtl.sharing.random import RandomSharing
from sparsemtl.sharing.sharing import Sharing

SHARING: Registry[Sharing] = Registry(
    "sharing method",
    {
        "dense": DenseSharing,
        "random": RandomSharing,
        "fisher": FisherSharing,
    },
)

__all__ = ["SHARING", "DenseSharing", "FisherSharing", "MaskedSharing", "RandomSharing", "Sharing"]
