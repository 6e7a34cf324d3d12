"""Parameters whose groups are read together: one weight, or all parameters of a layer's heads or neurons.

A proximal step acts on one tensor per layer: on the weight itself, or on a matrix (units, entries per unit) that is
gathered from the parameters and written back to them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sparsemtl.errors import ParameterError
from sparsemtl.networks.structures import Part, Structure


class Layer(NamedTuple):
    """One weight with its groups, or the parameters of a layer's units.

    Attributes:
        name: name of the weight; of units, the name of the weight that reads them.
        parameters: the weight, or the parameters of the units.
        parts: for units, the part of each parameter, that of the reading weight last.
        units: number of units.
    """

    name: str
    parameters: tuple[Tensor, ...]
    parts: tuple[Part, ...] = ()
    units: int = 0

    def gather(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the dense tensor of the groups, of the parameters or of any tensors of their shapes.

        Returns:
            the weight, or of units (units, entries per unit); a copy unless the tensor is one and dense.
        """
        if not self.parts:
            return dense(tensors[0])
        return torch.cat(
            [
                tensor.movedim(part.axis, 0)[part.order.to(tensor.device)].reshape(self.units, -1)
                for tensor, part in zip(tensors, self.parts, strict=True)
            ],
            1,
        )

    def scatter(self, gathered: Tensor) -> None:
        """Write a changed tensor of `gather` into the parameters; a no-op for the weight itself."""
        if not self.parts:
            (parameter,) = self.parameters
            if not parameter.is_set_to(gathered):
                parameter.copy_(gathered)
            return
        widths = [parameter.numel() // len(gathered) for parameter in self.parameters]
        for parameter, part, own in zip(self.parameters, self.parts, gathered.split(widths, 1), strict=True):
            rows = parameter.movedim(part.axis, 0)
            rows[part.order.to(rows.device)] = own.reshape(rows.shape).to(rows.dtype)

    def restricted(self, taken: Sequence[bool]) -> Layer:
        """Return the layer with some of its parameters."""
        parameters = tuple(p for p, is_taken in zip(self.parameters, taken, strict=True) if is_taken)
        parts = tuple(part for part, is_taken in zip(self.parts, taken, strict=True) if is_taken)
        return Layer(self.name, parameters, parts, self.units)


def unit_layers(structures: Mapping[str, Structure], parameters: Mapping[str, Tensor]) -> Iterator[Layer]:
    """Yield the layers whose units are groups, each entry of a parameter in one group at most.

    A unit consists of its parts that are among the parameters. Where units follow one another, as in a perceptron, the
    entries that make one unit and read another belong to the unit that they read: a unit whose reading entries are zero
    takes part in no output, whatever its other entries are. For the same reason a layer whose reading weight is not
    among the parameters has no groups.

    Args:
        structures: layer -> its units.
        parameters: name -> parameter.

    Raises:
        ParameterError: if no parameter has the name of a part.
    """
    claims = Counter(part.name for structure in structures.values() for part in structure.parts)
    if parameters and claims and not claims.keys() & parameters.keys():
        raise ParameterError(
            f"no parameter has the name of a part of the {next(iter(structures.values())).kind}s, such as "
            f"{next(iter(claims))!r}; the first is {next(iter(parameters))!r}. Pass the named parameters of the model "
            "in which the units were found: `model.named_parameters()`."
        )
    for name, structure in structures.items():
        *makers, reader = structure.parts
        if reader.name in parameters:
            own = (part for part in makers if claims[part.name] == 1 and part.name in parameters)
            parts = (*own, reader)
            yield Layer(name, tuple(parameters[part.name] for part in parts), parts, structure.count)


def check_structures(structures: Mapping[str, Structure]) -> None:
    """Raise unless all units of a layer have as many entries.

    Raises:
        ParameterError: naming the layer and the parameter.
    """
    for layer, structure in structures.items():
        for part in structure.parts:
            counts = part.units.bincount(minlength=structure.count)
            if len(counts) != structure.count or bool((counts != counts[0]).any()):
                raise ParameterError(
                    f"{layer}, part {part.name!r}: expected as many positions for each of {structure.count} units, got "
                    f"{counts.tolist()}."
                )


def dense(weight: Tensor) -> Tensor:
    """Return the weight itself if it is contiguous in one of torch's memory formats, else a contiguous copy."""
    return weight if weight.is_contiguous() or _is_channels_last(weight) else weight.contiguous()


def _is_channels_last(weight: Tensor) -> bool:
    """Return True for a weight of four axes that is contiguous in the format channels-last."""
    return weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last)
