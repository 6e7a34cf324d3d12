"""Criteria: what ranks the weights of a shared network for a task, and masks made of the ranking."""

from sparsemtl.criteria.choose import choose_masks, fisher_masks
from sparsemtl.criteria.criterion import Criterion
from sparsemtl.criteria.fisher import Fisher, fisher_information
from sparsemtl.criteria.gradient import Gradient
from sparsemtl.criteria.magnitude import Magnitude
from sparsemtl.criteria.random import Random
from sparsemtl.criteria.registered import CRITERIA, as_criterion
from sparsemtl.criteria.select import select
from sparsemtl.criteria.specific import Specific

CRITERIA["specific"] = Specific

__all__ = [
    "CRITERIA",
    "Criterion",
    "Fisher",
    "Gradient",
    "Magnitude",
    "Random",
    "Specific",
    "as_criterion",
    "choose_masks",
    "fisher_information",
    "fisher_masks",
    "select",
]
