"""Backbones: encoders that tasks share, from an image or a table row to features.

A builder takes the shape of one sample, channels first, and gives a module with `out_features` that maps a
batch (B, *input_shape) to features (B, out_features).
"""

from torch import nn

from sparsemtl.backbones.cnn import CNN
from sparsemtl.backbones.mlp import MLP
from sparsemtl.backbones.pretrained import load_torchvision
from sparsemtl.backbones.resnet import ResNet, resnet18, resnet34
from sparsemtl.registry import Registry

ENCODERS: Registry[nn.Module] = Registry(
    "encoder",
    {
        "mlp": MLP,
        "cnn": CNN,
        "resnet18": resnet18,
        "resnet34": resnet34,
    },
)

__all__ = ["CNN", "ENCODERS", "MLP", "ResNet", "load_torchvision", "resnet18", "resnet34"]
