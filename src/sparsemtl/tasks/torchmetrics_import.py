"""Import of torchmetrics, which fails beside a torchvision that does not fit the installed torch."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version

import torch

from sparsemtl.errors import DependencyError


def import_torchmetrics() -> None:
    """Import torchmetrics, so that a failure has its cause in the message.

    torchmetrics imports torchvision if that is installed. A torchvision built for another torch raises errors such as
    "operator torchvision::nms does not exist".

    Raises:
        DependencyError: if it cannot be imported.
    """
    try:
        import torchmetrics  # noqa: F401
    except Exception as error:
        raise DependencyError(f"torchmetrics cannot be imported: {error}. {_remedy()}") from error


def _remedy() -> str:
    """Return a sentence with the remedy. torchvision is tested on its own, as it is the usual cause."""
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
