"""Heads: from an encoder's features to one task's outputs.

A builder takes the width of the features, the number of outputs, and the stride of the feature map (None for features
without positions), all given by the library; its keywords are the user's. Heads with an output a pixel end as large as
the encoder's images: they enlarge what they give by the stride.
"""

from torch import nn

from sparsemtl.heads.classification import ClassificationHead
from sparsemtl.heads.convolution import ConvolutionHead
from sparsemtl.heads.deeplabv3 import DeepLabV3Head
from sparsemtl.heads.dense import DenseHead
from sparsemtl.heads.fcn import FCNHead
from sparsemtl.heads.linear import linear_head
from sparsemtl.heads.mlp import MLPHead
from sparsemtl.registry.registry import Registry

HEADS: Registry[nn.Module] = Registry(
    "head",
    {
        "linear": linear_head,
        "mlp": MLPHead,
        "classification": ClassificationHead,
        "convolution": ConvolutionHead,
        "fcn": FCNHead,
        "deeplabv3": DeepLabV3Head,
    },
)

__all__ = [
    "HEADS",
    "ClassificationHead",
    "ConvolutionHead",
    "DeepLabV3Head",
    "DenseHead",
    "FCNHead",
    "MLPHead",
    "linear_head",
]
