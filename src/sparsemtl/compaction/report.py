"""What compaction did to every layer, and what is known of the result."""

from __future__ import annotations

from dataclasses import dataclass

from sparsemtl.compaction.examples import Inputs
from sparsemtl.compaction.verification import Verification


@dataclass(frozen=True)
class LayerReport:
    """One layer.

    Attributes:
        name: its name in the model, or that of the function that it is.
        kind: its class.
        inputs: channels that it read and reads; (n, 0) if it was removed, (0, 0) if they are not known.
        outputs: channels that it gave and gives.
        why: why no more was removed where something is in the way; "" if every channel left counts.
        removed: whether the compacted network has no such layer.
    """

    name: str
    kind: str
    inputs: tuple[int, int]
    outputs: tuple[int, int]
    why: str = ""
    removed: bool = False

    @property
    def change(self) -> str:
        """`removed`, `smaller` or `whole`."""
        if self.removed:
            return "removed"
        return "whole" if self.inputs[0] == self.inputs[1] and self.outputs[0] == self.outputs[1] else "smaller"


@dataclass(frozen=True)
class CompactionReport:
    """What compaction did.

    Attributes:
        layers: every layer with channels, in the order in which they run, and every part that was left as it is.
        parameters: number of parameters before and after.
        macs: multiply-adds of convolutions and linear layers before and after, of one forward pass on one sample of
            the example (on the whole example where a sample cannot be told); None without an example.
        verification: the comparison of outputs before and after.
        example: what the network was run on, with a `Like` in the place of every tensor; None if on nothing.
    """

    layers: tuple[LayerReport, ...]
    parameters: tuple[int, int]
    macs: tuple[int, int] | None
    verification: Verification
    example: Inputs | None = None

    def layer(self, name: str) -> LayerReport:
        """The report of one layer, by its name; KeyError if there is none."""
        found = {layer.name: layer for layer in self.layers}
        return found[name]

    def __str__(self) -> str:
        rows = [("layer", "kind", "in", "out", "", "why not more")]
        rows += [
            (each.name, each.kind, _change(each.inputs), _change(each.outputs), each.change, each.why)
            for each in self.layers
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        lines = ["  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[5]]).rstrip() for row in rows]
        lines.append(f"parameters: {_total(self.parameters)}")
        lines.append(f"multiply-adds: {'not counted without an example' if self.macs is None else _total(self.macs)}")
        lines.append(str(self.verification))
        return "\n".join(lines)


def _change(channels: tuple[int, int]) -> str:
    before, after = channels
    if before == after == 0:
        return ""
    return str(before) if before == after else f"{before} -> {after}"


def _total(numbers: tuple[int, int]) -> str:
    before, after = numbers
    share = f" ({after / before:.1%})" if before else ""
    return f"{before:,} -> {after:,}{share}"
