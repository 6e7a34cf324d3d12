"""Import of torchmetrics without what classification and regression do not need."""

from __future__ import annotations

import importlib
import logging
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

import torch

from sparsemtl.errors import DependencyError


def import_torchmetrics() -> None:
    """Import torchmetrics, so that a failure has its cause in the message.

    The packages `torchmetrics` and `torchmetrics.functional` import metrics of text, audio and images: transformers,
    scipy and torchvision, in ten times the time of what tasks measure with. They are imported when an attribute of the
    package is asked for.

    Raises:
        DependencyError: if it cannot be imported. torchvision is the usual cause: one built for another torch raises
            errors such as "operator torchvision::nms does not exist".
    """
    if "torchmetrics" in sys.modules:
        return
    try:
        # Modules of torchmetrics read its logger, and Lightning Fabric its version.
        _put_off("torchmetrics", _logger=logging.getLogger("torchmetrics"), __version__=version("torchmetrics"))
        _put_off("torchmetrics.functional")
        importlib.import_module("torchmetrics.utilities")  # first, as it and `torchmetrics.metric` import each other
    except Exception:
        _import_whole()


class _PutOff(ModuleType):
    """Package whose `__init__` runs when an attribute is missing. Until then, its modules can be imported."""

    def __getattr__(self, name: str) -> Any:
        self.__class__ = ModuleType  # type: ignore[assignment]
        importlib.reload(self)
        return getattr(self, name)


def _put_off(package: str, **attributes: Any) -> None:
    """Make a package whose `__init__` runs later.

    Args:
        package: its name.
        attributes: those that are read before.
    """
    spec = find_spec(package)
    if spec is None:
        raise ModuleNotFoundError(package)
    module = module_from_spec(spec)
    module.__class__ = _PutOff
    vars(module).update(attributes)
    sys.modules[package] = module


def _import_whole() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchmetrics"]:
        del sys.modules[name]
    try:
        importlib.import_module("torchmetrics")
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
