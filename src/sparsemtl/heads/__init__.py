"""Heads: modules from the features of an encoder to the outputs of a task.

The library passes the width of the features, the number of outputs, and the stride of the feature map (None for
features without positions); keyword parameters are the user's. Heads with outputs per pixel enlarge them by the stride
to the size of the images.
"""

from torch import nn

from sparsemtl.heads.classification import ClassificationHead
from sparsemtl.heads.convolution import ConvolutionHead
from sparsemtl.heads.deeplabv3 import DeepLabV3Head
from sparsemtl.heads.dense import DenseHead
from sparsemtl.heads.fcn import FCNHead
from sparsemtl.heads.linear import linear_head
from sparsemtl.heads.mlp import MLPHead
from sparsemtl.heads.tokens import TokenFeatures, TokenHead
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
    "TokenFeatures",
    "TokenHead",
    "linear_head",
]
