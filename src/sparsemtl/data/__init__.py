"""Data sets: official files in, tasks with training, validation and test samples out."""

from sparsemtl.data.base import Split, TaskData, TensorLoader
from sparsemtl.data.census import census_income
from sparsemtl.data.clustered_regressions import clustered_regressions
from sparsemtl.data.digits import digits
from sparsemtl.data.dkl import dkl
from sparsemtl.data.images.attribute_pairs import pair_attributes
from sparsemtl.data.images.celeba import celeba
from sparsemtl.data.images.celebamask import celebamask_hq
from sparsemtl.data.images.cityscapes import cityscapes
from sparsemtl.data.images.classified.image_folders import image_folders
from sparsemtl.data.images.classified.objects import OBJECT_SETS
from sparsemtl.data.images.classified.tiny_imagenet import tiny_imagenet
from sparsemtl.data.images.mnist import MNIST_FAMILY
from sparsemtl.data.images.nyu import nyu_v2
from sparsemtl.data.images.overlaid import OVERLAID
from sparsemtl.data.images.three_sources import three_sources
from sparsemtl.data.lazy import LazySplit
from sparsemtl.data.movielens import movielens
from sparsemtl.data.options import following_run
from sparsemtl.data.scenes.dataset import rendered_scenes
from sparsemtl.data.sentences import sentences
from sparsemtl.data.student import student
from sparsemtl.data.subsets.label_subsets import label_subsets
from sparsemtl.data.tables.table import table
from sparsemtl.data.two_regressions import two_regressions
from sparsemtl.registry.registry import Registry

DATASETS: Registry[TaskData] = Registry(
    "data set",
    {
        "digits": digits,
        **MNIST_FAMILY,
        **OVERLAID,
        "pair-attributes": pair_attributes,
        "dkl": dkl,
        "three-sources": three_sources,
        "scenes": rendered_scenes,
        "nyu-v2": nyu_v2,
        "cityscapes": cityscapes,
        "celeba": celeba,
        "celebamask-hq": celebamask_hq,
        "census-income": census_income,
        "movielens-100k": movielens,
        "student": student,
        "two-regressions": two_regressions,
        "clustered-regressions": clustered_regressions,
        "sentences": sentences,
        "table": table,
        "label-subsets": label_subsets,
        "image-folders": image_folders,
        **OBJECT_SETS,
        "tiny-imagenet": tiny_imagenet,
    },
    in_configurations=following_run,
)

__all__ = ["DATASETS", "LazySplit", "Split", "TaskData", "TensorLoader"]
