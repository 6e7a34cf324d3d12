"""Data sets: official files in, tasks with training, validation and test samples out."""

from sparsemtl.data.base import Split, TaskData, TensorLoader
from sparsemtl.data.celeba import celeba
from sparsemtl.data.celebamask.celebamask_hq import celebamask_hq
from sparsemtl.data.census import census_income
from sparsemtl.data.cityscapes.cityscapes import cityscapes
from sparsemtl.data.digits import digits
from sparsemtl.data.dkl import dkl
from sparsemtl.data.emnist_letters import emnist_letters
from sparsemtl.data.fashion_mnist import fashion_mnist
from sparsemtl.data.image_folders import image_folders
from sparsemtl.data.kmnist import kmnist
from sparsemtl.data.label_subsets import label_subsets
from sparsemtl.data.lazy import LazySplit
from sparsemtl.data.mnist import mnist
from sparsemtl.data.movielens import movielens
from sparsemtl.data.multi import multi_fashion, multi_fashion_mnist, multi_mnist
from sparsemtl.data.nyu.nyu_v2 import nyu_v2
from sparsemtl.data.objects.caltech import caltech_101, caltech_256
from sparsemtl.data.objects.office import office_31, office_caltech, office_home
from sparsemtl.data.objects.tiny_imagenet import tiny_imagenet
from sparsemtl.data.scenes.dataset import rendered_scenes
from sparsemtl.data.student import student
from sparsemtl.data.tables.table import table
from sparsemtl.data.two_regressions import two_regressions
from sparsemtl.registry.registry import Registry

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
        "census-income": census_income,
        "movielens-100k": movielens,
        "student": student,
        "two-regressions": two_regressions,
        "table": table,
        "label-subsets": label_subsets,
        "image-folders": image_folders,
        "office-31": office_31,
        "office-caltech": office_caltech,
        "office-home": office_home,
        "caltech-101": caltech_101,
        "caltech-256": caltech_256,
        "tiny-imagenet": tiny_imagenet,
    },
)

__all__ = ["DATASETS", "LazySplit", "Split", "TaskData", "TensorLoader"]
