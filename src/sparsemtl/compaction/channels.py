"""What is known of a tensor in the graph: where its channels lie, which are constant, which are needed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Where the channels of a tensor lie.

    Attributes:
        rank: number of axes, None if it depends on the input.
        channels: number of channels, None if nothing tells.
        axis: their axis; -1 if the rank is None.
        spread: entries along the axis that belong to one channel: its positions, side by side, once the tensor
            is flattened. None where that depends on the input's size.
    """

    rank: int | None = None
    channels: int | None = None
    axis: int = 1
    spread: int | None = 1

    @property
    def whole(self) -> bool:
        """True if the number of channels is known and each is one entry of the axis."""
        return self.channels is not None and self.spread == 1

    @property
    def last(self) -> bool:
        """True if the channels are on the last axis."""
        return self.axis == -1 or self.axis + 1 == self.rank


@dataclass(frozen=True)
class Constants:
    """Channels that have one value at all positions, whatever the network reads.

    Attributes:
        known: (channels,), bool: the channel is constant.
        value: (channels,), float64: its value, of no meaning where it is not.
    """

    known: Tensor
    value: Tensor

    @classmethod
    def none(cls, channels: int) -> Constants:
        """No channel is constant."""
        return cls(torch.zeros(channels, dtype=torch.bool), torch.zeros(channels, dtype=torch.float64))

    def where(self, also: Tensor) -> Constants:
        """Only the constants among these channels."""
        return Constants(self.known & also, self.value)


@dataclass(frozen=True)
class Need:
    """Which channels of a tensor later nodes ask for.

    Attributes:
        live: (channels,), bool: the values count.
        carried: (channels,), bool: the channel must be there. Of a tensor without a live channel one is carried,
            for its size at least is read.
    """

    live: Tensor
    carried: Tensor

    @classmethod
    def nothing(cls, channels: int) -> Need:
        """No channel is asked for."""
        return cls.of(torch.zeros(channels, dtype=torch.bool))

    @classmethod
    def all(cls, channels: int) -> Need:
        """Every channel counts."""
        return cls.of(torch.ones(channels, dtype=torch.bool))

    @classmethod
    def of(cls, live: Tensor) -> Need:
        """These channels count, and no others need be there."""
        return cls(live, live)

    def __or__(self, other: Need) -> Need:
        return Need(self.live | other.live, self.carried | other.carried)

    def settled(self) -> Need:
        """The same, with one channel at least."""
        if self.carried.any() or not len(self.carried):
            return self
        carried = self.carried.clone()
        carried[0] = True
        return Need(self.live, carried)
