"""Data sets: official files in, tasks with training, validation and test samples out."""

from sparsemtl.data.base import Split, TaskData, TensorLoader
from sparsemtl.data.celeba import celeba
from sparsemtl.data.celebamask.celebamask_hq import celebamask_hq
from sparsemtl.data.cityscapes.cityscapes import cityscapes
from sparsemtl.data.digits import digits
from sparsemtl.data.dkl import dkl
from sparsemtl.data.emnist_letters import emnist_letters
from sparsemtl.data.fashion_mnist import fashion_mnist
from sparsemtl.data.kmnist import kmnist
from sparsemtl.data.lazy import LazySplit
from sparsemtl.data.mnist import mnist
from sparsemtl.data.multi import multi_fashion, multi_fashion_mnist, multi_mnist
from sparsemtl.data.nyu.nyu_v2 import nyu_v2
from sparsemtl.data.scenes.dataset import rendered_scenes
from sparsemtl.registry import Registry

DATASETS: Registry[TaskData] = Registry(
    "data set",
    {
        "digits": digits,
        "mnist": mnist,
        "fashion-mnist": fashion_mnist,
        "kmnist": kmnist,
        "emnist-letters": emnist_letters,
        "multi-mnist": multi_mnist,
        "multi-fashion": multi_fashion,
        "multi-fashion-mnist": multi_fashion_mnist,
        "dkl": dkl,
        "scenes": rendered_scenes,
        "nyu-v2": nyu_v2,
        "cityscapes": cityscapes,
        "celeba": celeba,
        "celebamask-hq": celebamask_hq,
    },
)

__all__ = ["DATASETS", "LazySplit", "Split", "TaskData", "TensorLoader"]
