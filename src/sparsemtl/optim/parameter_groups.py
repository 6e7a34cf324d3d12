"""Parameter groups by name: learning rates and weight decay of parts of a model, and layer-wise decay."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, TypedDict

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError
from torch import nn
from typing_extensions import Doc

from sparsemtl.errors import ParameterError, unknown_name
from sparsemtl.networks.depth import heights
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.networks.patterns import Patterns, parameters_matching
from sparsemtl.registry.checking import EXPLAINED, check_value
from sparsemtl.registry.parameters import Default, Fraction, NonNegative, Positive, parameters_of


class ParameterGroup(TypedDict, total=False):
    """Options of the parameters of some names."""

    parameters: Annotated[
        Patterns,
        Doc(
            "Names or globs of parameters and modules, or classes of modules: `encoder`, `*.bias`, or "
            "`[heads, LayerNorm]`."
        ),
    ]
    lr: Annotated[Positive | None, Default(None), Doc("Learning rate; by default the optimizer's.")]
    weight_decay: Annotated[NonNegative | None, Default(None), Doc("Weight decay; by default the optimizer's.")]


def _check(entries: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Raise pydantic's error if a group has a wrong key or value."""
    known = parameters_of(ParameterGroup)
    for number, entry in enumerate(entries, 1):
        try:
            for key, value in entry.items():
                if key not in known:
                    raise ParameterError(unknown_name("key", key, known))
                check_value(f"`{key}`", value, known[key].hint)
            if "parameters" not in entry:
                raise ParameterError("`parameters` is required: names, globs, or classes of modules.")
            if not any(entry.get(key) is not None for key in ("lr", "weight_decay")):
                raise ParameterError("set `lr`, `weight_decay` or both.")
        except ParameterError as error:
            raise PydanticCustomError(EXPLAINED, f"Group {number}: {error}") from None
    return entries


ParameterGroups = Annotated[Sequence[Mapping[str, Any]], AfterValidator(_check)]
"""Groups as `ParameterGroup` describes them."""


class ParameterGroupOptions(TypedDict, total=False):
    """Keys of the section `optimizer` beside those of the optimizer itself."""

    parameter_groups: Annotated[
        ParameterGroups,
        Default([]),
        Doc(
            "Learning rates and weight decay by names, a list of mappings: `parameters` (names or globs of parameters "
            "and modules, or classes of modules), `lr`, `weight_decay`. Where several match, later ones win, key by "
            "key."
        ),
    ]
    layer_decay: Annotated[
        Fraction | None,
        Default(None),
        Doc(
            "Factor of the learning rate from one block of an encoder to the block below it; heads and what stands "
            "behind the last block keep the full rate."
        ),
    ]


def parameter_groups(
    model: nn.Module,
    groups: ParameterGroups = (),
    *,
    lr: float,
    layer_decay: float | None = None,
) -> list[dict[str, Any]]:
    """Return parameter groups for any optimizer of torch, with learning rates by name and by depth.

    Args:
        model: a multi-task model, or any module.
        groups: options by names, see `ParameterGroup`. A module, by name or class, stands for everything inside it. A
            parameter that several groups match takes the options of all; later ones win.
        lr: learning rate of all other parameters.
        layer_decay: factor, in (0, 1], of the learning rate from one block of an encoder to the block below it (Bao et
            al. 2022). The last block has it once, embeddings before L blocks L + 1 times; heads do not. It multiplies
            learning rates of `groups` as well.

    Returns:
        Groups with `params`, `lr`, `name`, and `weight_decay` where it is set; the first holds what no group names.

    Raises:
        ParameterError: if a pattern matches nothing, a key or value is wrong, or an encoder's blocks have no depth.

    Examples:
        >>> model = SharedBottom(MLP((4,), hidden=[8, 8]), [Regression("a"), Classification("b", 3)])
        >>> groups = [{"parameters": "encoder", "lr": 1e-4}, {"parameters": "*.bias", "weight_decay": 0.0}]
        >>> made = sm.optim.parameter_groups(model, groups, lr=1e-2)
        >>> [(group["name"], group["lr"], len(group["params"])) for group in made]
        [('others', 0.01, 2), ('encoder', 0.0001, 2), ('encoder, *.bias', 0.0001, 2), ('*.bias', 0.01, 2)]
        >>> optimizer = torch.optim.AdamW(made, lr=1e-2)
        >>> made = sm.optim.parameter_groups(model, lr=1.0, layer_decay=0.5)
        >>> [(group["name"], group["lr"]) for group in made]
        [('others', 1.0), ('2 blocks below', 0.25), ('1 block below', 0.5)]
    """
    check_value("The 'groups' parameter of parameter_groups", groups, ParameterGroups)
    check_value("The 'lr' parameter of parameter_groups", lr, Positive)
    check_value("The 'layer_decay' parameter of parameter_groups", layer_decay, Fraction | None)
    made = named_groups(model, groups, layer_decay)
    return [{**group, "lr": group.get("lr", lr) * group.pop("lr_factor", 1.0)} for group in made]


def named_groups(
    model: nn.Module,
    groups: ParameterGroups,
    layer_decay: float | None,
    factors: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Return parameter groups with `lr_factor` beside their learning rate, or in place of one.

    Args:
        model: the model.
        groups: as in `parameter_groups`.
        layer_decay: as in `parameter_groups`.
        factors: name -> factor of the learning rate of parameters for which no group sets one.
    """
    named = dict(model.named_parameters())
    options = {name: _Options() for name in named}
    for group in groups:
        patterns = _listed(group["parameters"])
        found = {name for pattern in patterns for name in parameters_matching(model, pattern, "parameter_groups")}
        given = {key: group[key] for key in ("lr", "weight_decay") if group.get(key) is not None}
        for name in found:
            options[name].set(", ".join(map(_shown, patterns)), **given)
    for name, factor in (factors or {}).items():
        if factor != 1 and "lr" not in options[name].values:
            options[name].multiply(f"{factor:g} times", factor)
    for name, height in (_heights(model) if layer_decay is not None else {}).items():
        if height and layer_decay is not None:
            options[name].multiply(f"{height} block{'s' * (height > 1)} below", layer_decay**height)
    others = _Options()
    made: dict[str, dict[str, Any]] = {others.key: others.group()}
    for name, parameter in named.items():
        made.setdefault(options[name].key, options[name].group())["params"].append(parameter)
    return list(made.values())


class _Options:
    """Options of a parameter in the optimizer, and what set them; parameters of equal options are one group."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self.values: dict[str, float] = {}

    def set(self, name: str, **values: float) -> None:
        """Set a learning rate, a weight decay or both, in place of earlier ones."""
        self._names.append(name)
        self.values |= values

    def multiply(self, name: str, factor: float) -> None:
        """Multiply the learning rate."""
        self._names.append(name)
        self.values["lr_factor"] = self.values.get("lr_factor", 1.0) * factor

    @property
    def key(self) -> str:
        """Text that is the same for equal options."""
        return repr((self._name, sorted(self.values.items())))

    def group(self) -> dict[str, Any]:
        """Return a group of these options without parameters."""
        return {"params": [], "name": self._name, **self.values}

    @property
    def _name(self) -> str:
        return ", ".join(self._names) or "others"


def _heights(model: nn.Module) -> dict[str, int]:
    """Return name -> blocks from the top, of all parameters of encoders."""
    encoders = model.encoder_modules() if isinstance(model, MultiTaskModel) else {"": model}
    if not encoders:
        raise ParameterError(
            f"`layer_decay`: blocks of {type(model).__name__} have no depth. Name rates in `parameter_groups`, "
            "or, in an architecture of your own, its encoders in `encoder_modules`."
        )
    return {
        f"{prefix}.{name}" if prefix else name: height
        for prefix, encoder in encoders.items()
        for name, height in heights(encoder, prefix).items()
    }


def _listed(patterns: Patterns) -> Iterable[Any]:
    return [patterns] if isinstance(patterns, (str, type)) else list(patterns)


def _shown(pattern: Any) -> str:
    return pattern if isinstance(pattern, str) else str(pattern.__name__)
