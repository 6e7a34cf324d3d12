"""Backbones: encoders that tasks share, from an image or a table row to features.

The library passes the shape of one sample, channels first. The module maps a batch (B, *input_shape) to features, whose
width is its attribute `out_features`. Features are vectors (B, out_features), or maps
(B, out_features, H / stride, W / stride) if the module has a `stride`: pixels per side of a position.
"""

from torch import nn

from sparsemtl.backbones.cnn import CNN
from sparsemtl.backbones.mlp import MLP
from sparsemtl.backbones.pretrained import load_torchvision
from sparsemtl.backbones.resnet import ResNet, resnet18, resnet34, resnet50, resnet50_d
from sparsemtl.backbones.segnet import SegNet
from sparsemtl.backbones.transformers_library import transformers_model
from sparsemtl.backbones.vgg import VGG, vgg5, vgg11, vgg13, vgg16
from sparsemtl.registry.registry import Registry

ENCODERS: Registry[nn.Module] = Registry(
    "encoder",
    {
        "mlp": MLP,
        "cnn": CNN,
        "resnet18": resnet18,
        "resnet34": resnet34,
        "resnet50": resnet50,
        "resnet50-d": resnet50_d,
        "segnet": SegNet,
        "vgg5": vgg5,
        "vgg11": vgg11,
        "vgg13": vgg13,
        "vgg16": vgg16,
        "transformers": transformers_model,
    },
)

__all__ = [
    "CNN",
    "ENCODERS",
    "MLP",
    "VGG",
    "ResNet",
    "SegNet",
    "load_torchvision",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet50_d",
    "transformers_model",
    "vgg5",
    "vgg11",
    "vgg13",
    "vgg16",
]
