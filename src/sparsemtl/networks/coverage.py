"""The parameters that masks, criteria and penalties act on, and why not on the others: the one rule.

By default these are the trained weights of layers, found by their role (`roles`). Three kinds of weights are left out:

- Embeddings. A row serves one token, so that its Fisher information depends on how often the token occurs; ranked
  together with layers, the table of a small encoder takes the whole budget. Its zeros save no multiply-add.
- Position embeddings, class tokens and tables of relative positions, for the same reasons.
- Frozen parameters, which cannot adapt to a mask. Where all shared parameters are frozen, none is left out for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, TypedDict

from torch import Tensor, nn
from typing_extensions import Doc

from sparsemtl.errors import ParameterError
from sparsemtl.networks.patterns import Pattern, Patterns, matches, no_match, outwards, shown
from sparsemtl.networks.roles import computed_from, is_declared, is_embedding, weight_names
from sparsemtl.registry.parameters import Default


class CoverageOptions(TypedDict, total=False):
    """Options of everything that acts on some of the shared parameters."""

    only: Annotated[
        Patterns | None,
        Default(None),
        Doc(
            "Which of the weights to act on: names or globs of parameters and modules, or classes of modules, such as "
            "`[encoder.0, Conv2d]`. By default all but embeddings, positions and frozen weights. A pattern that "
            "matches nothing else stands for the embeddings and positions that it matches."
        ),
    ]
    exclude: Annotated[Patterns | None, Default(None), Doc("Weights to leave alone, named in the same way.")]


def coverage_options(options: CoverageOptions) -> CoverageOptions:
    """Return `only` and `exclude` of some options.

    Raises:
        ParameterError: if a pattern is neither a text nor a class of modules, or `only` is empty.
    """
    only, exclude = options.get("only"), options.get("exclude")
    _listed("only", only)
    _listed("exclude", exclude)
    return {"only": only, "exclude": exclude}


@dataclass(frozen=True)
class CoveredParameters:
    """Parameters that something acts on, and the others.

    Attributes:
        covered: name -> parameter.
        reasons: name of every other parameter in the same modules -> why it is left out.
        computed: name of every weight that would be covered and is computed from parameters -> an advice.
    """

    covered: dict[str, nn.Parameter]
    reasons: dict[str, str]
    computed: dict[str, str]

    def refuse_computed(self) -> CoveredParameters:
        """Return the coverage; raise if a layer computes a weight, on which no mask and no penalty has a meaning.

        Raises:
            ParameterError: naming the weight, what it is computed from, and how to make it plain.
        """
        for advice in self.computed.values():
            raise ParameterError(advice)
        return self


@dataclass
class _Entry:
    """A parameter, or a weight that is computed from parameters.

    Attributes:
        name: its name.
        tensor: the parameter; of a computed weight, the largest that it is computed from.
        sources: names of the parameters that it is computed from.
        places: every place where it stands: its name there, and the modules around it, its own the last.
        why: reason why it is left out by default, "" if it is covered.
        may_be_named: a pattern of `only` may cover it nevertheless.
    """

    name: str
    tensor: nn.Parameter
    sources: Sequence[str] = ()
    places: list[tuple[str, tuple[nn.Module, ...]]] = field(default_factory=list)
    why: str = ""
    may_be_named: bool = False

    def is_named(self, pattern: Pattern) -> bool:
        """Return whether the pattern names the parameter, or a module around it."""
        return any(matches(pattern, name, around) for name, around in self.places)


def coverage(
    modules: Mapping[str, nn.Module],
    *,
    only: Patterns | None = None,
    exclude: Patterns | None = None,
    mask_all: bool = False,
    refusal: Callable[[Tensor], str] = lambda weight: "",
    others: Iterable[str] = (),
) -> CoveredParameters:
    """Return the parameters of modules that something acts on.

    Args:
        modules: name -> module, such as the shared modules of a model.
        only: see `CoverageOptions`.
        exclude: see `CoverageOptions`.
        mask_all: cover every trained parameter.
        refusal: returns for a weight why it cannot be acted on, "" if it can.
        others: names of parameters outside of the modules, for messages.

    Raises:
        ParameterError: if a pattern matches nothing, or of `only` nothing that can be covered.
    """
    entries = _scan(modules)
    _give_reasons(entries, mask_all, refusal)
    chosen = {entry.name for entry in entries if not entry.why}
    if only is not None:
        chosen = {name for pattern in _listed("only", only) for name in _named(pattern, entries, others)}
    left: dict[str, str] = {}
    for pattern in _listed("exclude", exclude):
        left |= {e.name: f"excluded by {shown(pattern)}" for e in _matching("exclude", pattern, entries, others)}
    reasons = {e.name: e.why or "not named by `only`" for e in entries if e.name not in chosen}
    reasons |= {name: why for name, why in left.items() if name in chosen}
    chosen -= set(left)
    return CoveredParameters(
        {e.name: e.tensor for e in entries if not e.sources and e.name in chosen},
        {e.name: reasons[e.name] for e in entries if not e.sources and e.name not in chosen},
        {e.name: _advice(e) for e in entries if e.sources and e.name in chosen},
    )


def _advice(entry: _Entry) -> str:
    """Return what to do about a weight that is computed."""
    return (
        f"{entry.name} ({type(entry.places[0][1][-1]).__name__}) is no parameter but computed from "
        f"{', '.join(entry.sources)}, as weight norm, spectral norm and torch's pruning do. Masks and penalties act on "
        "parameters. Name the weight in `exclude`, or make it plain first: "
        f"`torch.nn.utils.parametrize.remove_parametrizations(layer, {entry.name.rpartition('.')[2]!r})`, "
        "`torch.nn.utils.remove_weight_norm(layer)` or `torch.nn.utils.prune.remove`, whichever made it."
    )


def _scan(modules: Mapping[str, nn.Module]) -> list[_Entry]:
    """Return the parameters of modules, and the weights that are computed, in the order of `named_parameters`."""
    entries: dict[str, _Entry] = {}
    for prefix, module in modules.items():
        first: dict[int, str] = {}
        for where, around in _inside(prefix, module):
            own = around[-1]
            for name, parameter in own._parameters.items():
                if parameter is not None:
                    full = _joined(where, name)
                    known = first.setdefault(id(parameter), full)
                    entries.setdefault(known, _Entry(known, parameter)).places.append((full, around))
            for name in weight_names(own):
                if sources := computed_from(own, name):
                    full, largest = _joined(where, name), max(sources.values(), key=Tensor.numel)
                    entries[full] = _Entry(full, largest, list(sources), [(full, around)])
    return list(entries.values())


def _inside(prefix: str, module: nn.Module) -> Iterator[tuple[str, tuple[nn.Module, ...]]]:
    """Yield the full name of every module inside one, and the modules around it, itself the last."""
    around: dict[str, tuple[nn.Module, ...]] = {"": (module,)}
    for name, inner in module.named_modules(remove_duplicate=False):
        if name:
            around[name] = (*around[name.rpartition(".")[0]], inner)
        yield _joined(prefix, name), around[name]


def _give_reasons(entries: Sequence[_Entry], mask_all: bool, refusal: Callable[[Tensor], str]) -> None:
    """Set why each parameter is left out by default, and whether `only` may name it."""
    trains = any(entry.tensor.requires_grad for entry in entries)
    for entry in entries:
        entry.why, entry.may_be_named = ("", False) if mask_all else _role(entry)
        if trains and not entry.tensor.requires_grad:
            entry.why, entry.may_be_named = "frozen (requires_grad=False) and cannot adapt to a mask", False
        elif (entry.may_be_named or not entry.why) and (refused := refusal(entry.tensor)):
            entry.why, entry.may_be_named = refused, False


def _role(entry: _Entry) -> tuple[str, bool]:
    """Return why a parameter is left out by default, "" for a weight; and whether `only` may name it."""
    owners = [(around[-1], name.rpartition(".")[2]) for name, around in entry.places]
    if any(is_declared(module, own) for module, own in owners):
        return "", False
    weights = [module for module, own in owners if own in weight_names(module)]
    if any(map(is_embedding, weights)):
        kind = "a table of positions" if _POSITIONS.search(entry.name) else "an embedding"
        return f"{kind}, whose rows serve one input each; name it in `only` to have it", True
    if weights:
        return "", False
    module, own = owners[0]
    kind = type(module).__name__
    if type(module).__module__.startswith("torch."):
        return f"a bias, scale or shift of {kind}", False
    what = "a position or class token" if _POSITIONS.search(f".{own}") else "a parameter"
    return f"{what} of {kind}'s own; maskable_weights = ({own!r},) in that class has it masked, or `only`", True


_POSITIONS = re.compile(r"[._](?:w?pe\b|pos(?:\b|_|ition)|places|rel_|relative_|distance_|cls_|class_)")
"""Usual names of positions and class tokens."""


def _listed(option: str, patterns: Patterns | None) -> Sequence[Pattern]:
    if patterns is None:
        return ()
    several = list(patterns) if isinstance(patterns, Sequence) and not isinstance(patterns, str) else [patterns]
    for pattern in several:
        if not isinstance(pattern, str) and not (isinstance(pattern, type) and issubclass(pattern, nn.Module)):
            raise ParameterError(f"`{option}`: expected names, or classes such as nn.Conv2d, got {pattern!r}.")
    if option == "only" and not several:
        raise ParameterError("`only` is an empty list, which covers nothing. None covers what is covered by default.")
    return several


def _named(pattern: Pattern, entries: Sequence[_Entry], others: Iterable[str]) -> list[str]:
    """Return the names that a pattern of `only` covers: weights, or else what is left out by default."""
    matching = _matching("only", pattern, entries, others)
    found = [entry.name for entry in matching if not entry.why]
    found = found or [entry.name for entry in matching if entry.may_be_named]
    if not found:
        examples = "; ".join(f"{entry.name} is {entry.why}" for entry in matching[:_SHOWN])
        more = f"; and {len(matching) - _SHOWN} more" if len(matching) > _SHOWN else ""
        raise ParameterError(f"`only`: nothing that {shown(pattern)} matches can be covered: {examples}{more}.")
    return found


def _matching(option: str, pattern: Pattern, entries: Sequence[_Entry], others: Iterable[str]) -> list[_Entry]:
    """Return the entries that a pattern matches.

    Raises:
        ParameterError: if there are none, with the nearest names.
    """
    found = [entry for entry in entries if entry.is_named(pattern)]
    if found:
        return found
    outside = next((name for name in others if matches(pattern, name, ())), None)
    if outside is not None:
        raise ParameterError(
            f"`{option}`: {shown(pattern)} matches {outside!r}, which stands in no shared module; masks and penalties "
            "act on these alone."
        )
    places = {name: around for entry in entries for name, around in entry.places}
    classes = dict.fromkeys(type(around[-1]).__name__ for around in places.values())
    names = list(dict.fromkeys(part for name in places for part in outwards(name)))
    listed = ", ".join(names[: 2 * _SHOWN]) + (", ..." if len(names) > 2 * _SHOWN else "")
    raise no_match(option, pattern, places, f"Classes: {', '.join(classes)}. Names: {listed}.")


_SHOWN = 4
"""Parameters that a message names at most."""


def _joined(*parts: str) -> str:
    return ".".join(part for part in parts if part)
