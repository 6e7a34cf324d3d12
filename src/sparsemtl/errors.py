"""What sparsemtl raises and warns, and the one helper that words a wrong name."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class SparseMTLError(Exception):
    """Base of every error that sparsemtl raises on purpose."""


class CompactionError(SparseMTLError, ValueError):
    """A network cannot be traced, or not be made smaller with the same outputs."""


class ConfigError(SparseMTLError, ValueError):
    """A configuration value is unknown, of the wrong type or out of range."""


class ParameterError(SparseMTLError, ValueError):
    """An argument of a public function or class is out of its range."""


class LabelError(SparseMTLError, ValueError):
    """A target does not fit its task."""


class MaskError(SparseMTLError, ValueError):
    """Masks do not fit the model that they are put on, or keep nothing."""


class DataError(SparseMTLError, ValueError):
    """A data set's files are missing, short or corrupt."""


class CheckpointError(SparseMTLError, ValueError):
    """A run folder or a checkpoint cannot be used as asked."""


class StorageError(SparseMTLError, OSError):
    """A file cannot be written."""


class TrainingError(SparseMTLError):
    """Training came to nothing by its own settings. A study leaves such a run out and goes on."""


class NonFiniteLossError(TrainingError, ArithmeticError):
    """A task's loss became NaN or infinite."""


class EmptyMaskError(TrainingError, MaskError):
    """A mask that is learned has nothing left of a layer."""


class MissingExtraError(SparseMTLError, ImportError):
    """An optional dependency is needed and not installed."""


class DependencyError(SparseMTLError, ImportError):
    """An installed package cannot be imported, because it does not fit another one."""


class SparseMTLWarning(UserWarning):
    """Base of every warning of sparsemtl."""


class LikelihoodWarning(SparseMTLWarning):
    """An estimator is degenerate for a task's likelihood and was replaced."""


class MaskWarning(SparseMTLWarning):
    """A mask was kept as it was, or leaves a layer empty."""


class ReproducibilityWarning(SparseMTLWarning):
    """Figures may differ in their last bits from those that the same configuration gave before."""


class RecordWarning(SparseMTLWarning):
    """A part of a run folder's record is damaged, or not protected against another writer."""


class LabelWarning(SparseMTLWarning):
    """A task sees no labelled sample."""


def unknown_name(kind: str, found: str, known: Iterable[str]) -> str:
    """Word the message for a name that does not exist, with the nearest valid one first."""
    names = sorted(known)
    near = get_close_matches(str(found), names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {found!r}.{hint} Known: {', '.join(names) or 'none'}."


def missing_extra(package: str, extra: str, purpose: str) -> MissingExtraError:
    """Build the error for an optional dependency that is not installed."""
    return MissingExtraError(f"{purpose} needs {package!r}: pip install 'sparsemtl[{extra}]'.")
