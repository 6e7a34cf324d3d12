"""Import of torchmetrics, which fails where a torchvision is installed that does not fit torch."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version

import torch

from sparsemtl.errors import DependencyError


def import_torchmetrics() -> None:
    """Import torchmetrics, so that a failure has a name; later imports of its parts then succeed.

    torchmetrics imports torchvision if it is installed. One that was built for another torch raises errors such as
    "operator torchvision::nms does not exist" there.

    Raises:
        DependencyError: if it cannot be imported.
    """
    try:
        import torchmetrics  # noqa: F401
    except Exception as error:
        raise DependencyError(f"torchmetrics cannot be imported: {error}. {_remedy()}") from error


def _remedy() -> str:
    """Return what to do. torchvision is looked at on its own, as it is the usual cause and never needed."""
    try:
        found = version("torchvision")
    except PackageNotFoundError:
        return "Install it anew: pip install --force-reinstall torchmetrics."
    try:
        importlib.import_module("torchvision")
    except Exception:
        return (
            f"The installed torchvision {found} does not fit torch {torch.__version__}. Install the version that "
            "belongs to it (https://pytorch.org/get-started/locally), or remove it, as sparsemtl does not need it: "
            "pip uninstall torchvision."
        )
    return "Install it anew: pip install --force-reinstall torchmetrics."
