"""Members of the registry that are found in TorchJD, so that a newer TorchJD brings its new ones.

A class becomes a member with the keyword-only parameters that a configuration can set: numbers, choices, and vectors
as lists with one number per task. The number of tasks is filled in. Parameters that only Python can give, such as
functions, keep their defaults; a class that requires one is no member. A table gives the field's names, sentences and
ranges for classes that are known.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import torch
from torch import Tensor, nn
from typing_extensions import Doc

from sparsemtl.balancing.balancer import Balancer
from sparsemtl.balancing.gradients import GradientOptions, gradient_balancer
from sparsemtl.balancing.losses import LossBalancer
from sparsemtl.errors import MissingExtraError, ParameterError
from sparsemtl.registry.checking import check_value
from sparsemtl.registry.parameters import NonNegative, Parameter, Share, hints_of, parameters_of


@dataclass(frozen=True)
class _Known:
    """Words for a class of TorchJD.

    Attributes:
        name: name of the member.
        about: sentence and source.
        hints: parameter -> annotation with a range.
    """

    name: str
    about: str = ""
    hints: Mapping[str, Any] = field(default_factory=dict)


_KNOWN = {
    "UPGrad": _Known("upgrad", "Mean of the gradients, each projected onto the dual cone of all (Quinton & Rey 2024)."),
    "DualProj": _Known("dualproj", "Projection of the mean onto the gradients' dual cone (GEM, Lopez-Paz 2017)."),
    "FairGrad": _Known("fairgrad", "Update of alpha-fair gains of the tasks (Ban & Ji 2024)."),
    "PCGrad": _Known("pcgrad", "Projection of conflicting gradients onto each other's normal planes (Yu et al. 2020)."),
    "GradVac": _Known(
        "gradvac",
        "Gradient vaccine: pairwise cosine similarities are set to their running averages (Wang et al. 2021).",
        {"beta": Share, "eps": NonNegative},
    ),
    "GradDrop": _Known(
        "graddrop",
        "Gradient sign dropout: entries are dropped at random by the agreement of their signs (Chen et al. 2020).",
    ),
    "IMTLG": _Known("imtl-g", "IMTL-G: an update with equal projections on all tasks' gradients (Liu et al. 2021)."),
    "AlignedMTL": _Known("aligned-mtl", "Alignment of the gradients' principal components (Senushkin et al. 2023)."),
    "ConFIG": _Known("config", "Conflict-free inverse gradients (Liu et al. 2024)."),
    "ExcessMTL": _Known(
        "excess-mtl",
        "Weights that grow with the tasks' estimated excess risk (He et al. 2024). Its sums of squared gradients take "
        "T times the memory of the shared weights.",
    ),
    "PCD": _Known("pcd", "Descent of the first task's loss under progress constraints of the others (PCD, TMLR 2026)."),
    "Krum": _Known("krum", "Gradients that are nearest to the others (Blanchard et al. 2017)."),
    "TrimmedMean": _Known("trimmed-mean", "Mean per entry without the most extreme values (Yin et al. 2018)."),
    "Random": _Known("random-gradients", "Random gradient weighting (Lin et al. 2021)."),
    "Mean": _Known("mean-gradients", "Mean of the shared weights' gradients; heads get their plain gradient."),
    "Sum": _Known("sum-gradients", "Sum of the shared weights' gradients; heads get their plain gradient."),
    "Constant": _Known(
        "constant-gradients", "Gradients of the shared weights with constant factors; heads get their plain gradient."
    ),
}
_MEANINGS = {
    "pref_vector": "Preference for each task, in the tasks' order, one number per task; equal by default.",
    "weights": "Factor of each gradient, in the tasks' order, one number per task.",
    "leak": "Fraction in [0, 1] of each gradient that is never dropped, in the tasks' order; 0 by default.",
    "tau": "Fraction in [0, 1] of its own descent that each task but the first is guaranteed: one number, or one per "
    "task but the first.",
    "alpha": "Kind of fairness: 0 maximizes the sum of the gains, 1 their product, infinity the smallest.",
}
_TASKS = ("n_tasks", "shape")
"""Parameters that are the number of tasks."""
_SHORTER = {"tau": 1}
"""Vectors without an entry for some tasks -> how many."""


_SCALARIZERS = {"UW": "uncertainty", "IMTLL": "imtl-l"}
"""Class -> name, where that is not `member_name`."""


def found_members() -> tuple[dict[str, Callable[..., Balancer]], dict[str, str]]:
    """Return name -> function that makes a balancer, and alias -> name: the classes' own names in small letters."""
    from torchjd import aggregation, scalarization

    members: dict[str, Callable[..., Balancer]] = {}
    aliases: dict[str, str] = {}
    for package, base in ((scalarization, scalarization.Scalarizer), (aggregation, aggregation.Aggregator)):
        for label in package.__all__:
            kind = getattr(package, label)
            if not (inspect.isclass(kind) and issubclass(kind, base)) or inspect.isabstract(kind):
                continue
            if base is aggregation.Aggregator:
                known = _KNOWN.get(label) or _Known(member_name(label))
            else:
                known = _Known(_SCALARIZERS.get(label, member_name(label)))
            member = _member(kind, known)
            if member is not None:
                members.setdefault(known.name, member)
            aliases.setdefault(label.lower(), known.name)
    return members, {alias: name for alias, name in aliases.items() if alias != name}


def member_name(kind: str) -> str:
    """Return the name of a member for the name of a class: trimmed-mean for TrimmedMean."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", kind).lower()


@dataclass(frozen=True)
class _Construct:
    """Function from a number of tasks to a new object of a class; it can be pickled and copied.

    Attributes:
        kind: class of TorchJD.
        name: name of the member, for messages.
        arguments: arguments of the class; lists become vectors.
    """

    kind: type[nn.Module]
    name: str
    arguments: Mapping[str, Any]

    def __call__(self, tasks: int) -> Any:
        """Return the object.

        Raises:
            ParameterError: if a list has another length than the number of tasks, or the class refuses a value.
            MissingExtraError: if a solver is not installed.
        """
        given = {name: self._value(name, value, tasks) for name, value in self.arguments.items()}
        own = inspect.signature(self.kind).parameters
        try:
            return self.kind(**given, **{name: tasks for name in _TASKS if name in own})
        except ImportError as error:
            raise MissingExtraError(f"balancer {self.name!r}: {str(error).replace(chr(34), chr(39))}.") from error
        except ValueError as error:
            raise ParameterError(f"balancer {self.name!r}: {error}") from error

    def _value(self, name: str, value: Any, tasks: int) -> Any:
        if not isinstance(value, (list, tuple)):
            return value
        needed = tasks - _SHORTER.get(name, 0)
        if len(value) != needed:
            raise ParameterError(f"{self.name}: {tasks} tasks need {needed} numbers in `{name}`, got {len(value)}.")
        return torch.tensor(value, dtype=torch.float32)


def _member(kind: type[nn.Module], known: _Known) -> Callable[..., Balancer] | None:
    """Return the function that makes a balancer of a class; None if only Python can give what the class requires."""
    from torchjd.aggregation import Aggregator

    parameters = _parameters(kind, known)
    if parameters is None:
        return None
    aggregates = issubclass(kind, Aggregator)
    options = parameters_of(GradientOptions) if aggregates else {}

    def make(**given: Any) -> Balancer:
        for name, value in given.items():
            check_value(f"The {name!r} parameter of {known.name}", value, (parameters | options)[name].hint)
        arguments = {parameters[name].keyword: value for name, value in given.items() if name in parameters}
        construct = _Construct(kind, known.name, arguments)
        if aggregates:
            return gradient_balancer(construct, **{name: given[name] for name in options if name in given})
        return LossBalancer(construct, trained=True)

    every = parameters | options
    make.__name__ = make.__qualname__ = known.name
    make.__doc__ = known.about or _sentence(kind)
    make.__annotations__ = {name: Annotated[p.hint, Doc(p.meaning)] for name, p in every.items()}
    make.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if p.required else p.default,
                annotation=make.__annotations__[name],
            )
            for name, p in every.items()
        ]
    )
    return make


def _parameters(kind: type[nn.Module], known: _Known) -> dict[str, Parameter] | None:
    """Return the parameters that a configuration can set by name; None if another one is required."""
    hints, meanings = hints_of(kind.__init__), _meanings(kind)
    found: dict[str, Parameter] = {}
    for name, parameter in inspect.signature(kind).parameters.items():
        required = parameter.default is parameter.empty
        hint = known.hints.get(name, _settable(hints.get(name, Any)))
        if name in _TASKS:
            continue
        if hint is None:
            if required:
                return None
            continue
        meaning = _MEANINGS.get(name) or meanings.get(name, "")
        found[name] = Parameter(name, hint, ... if required else parameter.default, meaning, name)
    return found


def _settable(hint: Any) -> Any:
    """Return an annotation with lists for tensors, without what only Python can give; None if nothing is left."""
    if get_origin(hint) in (Union, types.UnionType):
        options = [_settable(option) for option in get_args(hint)]
        left = tuple(option for option in options if option is not None)
        settable = [option for option in left if option is not type(None)]
        return Union[left] if settable else None  # noqa: UP007
    if isinstance(hint, type) and issubclass(hint, Tensor):
        return list[float]
    return hint if hint in (float, int, bool, str, type(None)) or get_origin(hint) is Literal else None


def _sentence(kind: type) -> str:
    """Return the first sentence of a class's docstring, and its reference in brackets with the year."""
    paragraph = " ".join((inspect.getdoc(kind) or kind.__name__).partition("\n\n")[0].split())
    links = re.findall(r"`([^`<]+?)\s*<(http[^>]+)>`_", paragraph)
    text = re.sub(r"\s*`([^`<]+?)\s*<http[^>]+>`_", r" \1", _plain(paragraph))
    first = re.split(r"(?<=[a-z)])\.(?:\s|$)", text, maxsplit=1)[0].strip().rstrip(".")
    sources = [f"{title}, {year}" for title, url in links if (year := _year(url))]
    return f"{first} ({sources[0]})." if sources else f"{first}."


def _year(url: str) -> str:
    """Return the year in an address, "" if there is none."""
    if archive := re.search(r"arxiv\.org/\w+/(\d\d)\d\d\.", url):
        return f"20{archive[1]}"
    return next(iter(re.findall(r"(?:19|20)\d\d", url)), "")


def _meanings(kind: type) -> dict[str, str]:
    """Return parameter -> meaning of the `:param` fields of a class's docstring."""
    fields = re.findall(r":param (\w+):\s*(.*?)(?=\n\s*:|\n\n|\n\.\. |\Z)", inspect.getdoc(kind) or "", re.DOTALL)
    return {name: _plain(" ".join(text.split())) for name, text in fields}


def _plain(text: str) -> str:
    """Return text without the roles of reStructuredText and the commands of LaTeX."""
    text = re.sub(r":math:`([^`]*)`", lambda found: found[1].replace("\\", "").replace("|", ""), text)
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?([^`]+)`", r"\1", text)
    return text.replace("``", "`")
