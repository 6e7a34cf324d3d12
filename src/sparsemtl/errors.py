"""Errors and warnings of sparsemtl, and the wording of messages about wrong names."""

from __future__ import annotations

import re
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


class NonFiniteError(TrainingError, ArithmeticError):
    """A loss, a gradient or a weight became NaN or infinite."""


class ForwardError(SparseMTLError, RuntimeError):
    """A module of the model, or a task's loss, cannot compute with what it is given; torch's own error is the cause."""

    def at(self, where: str) -> ForwardError:
        """Return the error with its place in a run, to be raised from the cause of this one."""
        return ForwardError(f"{where}: {self}")


class NonFiniteLossError(NonFiniteError):
    """A task's loss became NaN or infinite."""


class ProcessError(SparseMTLError, RuntimeError):
    """Another process of the same run has ended, or does not answer."""


class SelectionError(TrainingError):
    """No epoch of a run can be chosen: what chooses it is undefined on validation data."""


class EmptyMaskError(TrainingError, MaskError):
    """A mask that is learned has nothing left of a layer."""


class NonFiniteScoreError(NonFiniteError, MaskError):
    """A score that ranks weights is NaN."""


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


class DeadUnitWarning(MaskWarning):
    """A task keeps no incoming weight of many units of a layer."""


class ReproducibilityWarning(SparseMTLWarning):
    """Figures may differ in their last bits from those that the same configuration gave before."""


class CompactionWarning(SparseMTLWarning):
    """Outputs of a compacted or exported network were not compared, or its file takes fewer inputs than it does."""


class PluginWarning(SparseMTLWarning):
    """An installed plugin could not be loaded."""


class RecordWarning(SparseMTLWarning):
    """A part of a run folder's record is damaged, or not protected against another writer."""


class LabelWarning(SparseMTLWarning):
    """A task sees no labelled sample."""


class MetricWarning(SparseMTLWarning):
    """A metric is undefined: NaN or infinite."""


RENAMED = {
    "semantics": ("mask_applies_to", ", with the values 'weights' and 'gradients'"),
    "target_density": ("target_sparsity", ", which is 1 - target_density"),
    "resample_every": ("update_every", ""),
    "start": ("warmup", ""),
    "every": ("update_every_steps", ""),
    "groups": ("granularity", ""),
}
"""Name of a parameter in version 0.1 -> its present name, and how the value changed."""


def unknown_name(kind: str, found: str, known: Iterable[str]) -> str:
    """Word the message for a name that does not exist, with its new name or the nearest valid one first."""
    names = sorted(known)
    new, change = RENAMED.get(found, ("", ""))
    if new in names:
        return f"unknown {kind} {found!r}: it is {new!r} since version 0.2{change}. Known: {', '.join(names)}."
    near = get_close_matches(str(found), names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {found!r}.{hint} Known: {', '.join(names) or 'none'}."


def check_list(names: object, argument: str) -> None:
    """Raise a ParameterError for a text in the place of a list of names, which would be read letter by letter."""
    if isinstance(names, str):
        raise ParameterError(f"`{argument}` is a list of names, got {names!r}. Pass [{names!r}].")


def missing_extra(package: str, extra: str, purpose: str) -> MissingExtraError:
    """Build the error for an optional dependency that is not installed."""
    return MissingExtraError(f"{purpose} needs {package!r}: pip install 'sparsemtl[{extra}]'.")


OUT_OF_MEMORY = (
    "Memory is used up: use smaller batches (`training.batch_size`; `training.accumulate` keeps the size of a step), a "
    "smaller network, or fewer `--jobs`."
)
"""Advice where memory is used up."""
_ALLOCATOR = re.compile("allocate memory|not enough memory|out of memory", re.IGNORECASE)


def memory_used_up(error: BaseException) -> bool:
    """Return True if an error says that memory is used up; torch raises a plain RuntimeError on the CPU."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(_ALLOCATOR.search(str(error))))
