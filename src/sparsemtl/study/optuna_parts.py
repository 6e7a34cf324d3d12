"""Parts of Optuna for the options of a search, imported where they are used."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sparsemtl.errors import missing_extra
from sparsemtl.study.search_options import Choices, Range


def distribution(values: Range | Choices) -> Any:
    """Return the distribution of the values of a key."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(values, Choices):
        return CategoricalDistribution(values.names)
    if values.whole:
        return IntDistribution(int(values.low), int(values.high), log=values.log, step=int(values.step or 1))
    return FloatDistribution(values.low, values.high, log=values.log, step=values.step)


def sampler(name: str, seed: int) -> Any:
    """Return a sampler; TPE takes the trials that have no result yet for bad ones, so that it avoids their values."""
    from optuna.samplers import RandomSampler, TPESampler

    return RandomSampler(seed=seed) if name == "random" else TPESampler(seed=seed, constant_liar=True)


def pruner(name: str, epochs: int) -> Any:
    """Return a pruner; None for the name "none".

    Args:
        name: name of the pruner.
        epochs: epochs of the longest run.
    """
    from optuna.pruners import HyperbandPruner, MedianPruner

    if name == "none":
        return None
    if name == "median":
        return MedianPruner(n_warmup_steps=epochs // 5)
    return HyperbandPruner(min_resource=1, max_resource=epochs)


def import_optuna() -> Any:
    """Return the module `optuna`.

    Raises:
        MissingExtraError: if it is not installed.
    """
    try:
        import optuna
        import optuna.storages.journal
    except ImportError:
        raise missing_extra("optuna", "search", "`search` in a study") from None
    return optuna


@contextmanager
def quiet_optuna() -> Iterator[Any]:
    """Yield Optuna without its own lines and its warnings of experimental features."""
    optuna = import_optuna()
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield optuna
    finally:
        optuna.logging.set_verbosity(before)
