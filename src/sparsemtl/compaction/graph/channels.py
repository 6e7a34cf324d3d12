"""Channels of a tensor in the graph: their axis, the constant ones, the needed ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Axis and number of the channels of a tensor.

    Attributes:
        rank: number of axes, None if it depends on the input.
        channels: number of channels, None if it is unknown.
        axis: axis of the channels; -1 if the rank is None.
        spread: number of entries along the axis per channel: its positions, side by side, once the tensor is flattened.
            None where that depends on the input's size.
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
    def is_image(self) -> bool:
        """True if the channels are those of images or volumes."""
        return self.whole and self.axis == 1 and self.rank is not None and self.rank > 3

    @property
    def last(self) -> bool:
        """True if the channels are on the last axis."""
        return self.axis == -1 or self.axis + 1 == self.rank


@dataclass(frozen=True)
class Constants:
    """Channels that have one value at all positions, whatever the network reads.

    Attributes:
        known: (channels,), bool: the channel is constant.
        value: (channels,), float64: the value of a constant channel, without meaning for others.
    """

    known: Tensor
    value: Tensor

    @classmethod
    def none(cls, channels: int) -> Constants:
        """Return constants of which no channel is one."""
        return cls(torch.zeros(channels, dtype=torch.bool), torch.zeros(channels, dtype=torch.float64))

    def where(self, also: Tensor) -> Constants:
        """Return only the constants among these channels."""
        return Constants(self.known & also, self.value)


@dataclass(frozen=True)
class Need:
    """Channels of a tensor that later nodes need.

    Attributes:
        live: (channels,), bool: the values change the output.
        carried: (channels,), bool: the channel must be present. A tensor without a live channel carries one, for
            at least its size is read.
    """

    live: Tensor
    carried: Tensor

    @classmethod
    def nothing(cls, channels: int) -> Need:
        """Return a need of no channel."""
        return cls.of(torch.zeros(channels, dtype=torch.bool))

    @classmethod
    def all(cls, channels: int) -> Need:
        """Return a need of every channel."""
        return cls.of(torch.ones(channels, dtype=torch.bool))

    @classmethod
    def of(cls, live: Tensor) -> Need:
        """Return a need of these channels alone."""
        return cls(live, live)

    def __or__(self, other: Need) -> Need:
        return Need(self.live | other.live, self.carried | other.carried)

    def rounded(self, multiple: int) -> Need:
        """Return the same need with further channels, up to a multiple of a number of channels."""
        return Need(self.live, rounded(self.carried, torch.ones_like(self.carried), multiple))

    def at_least_one(self) -> Need:
        """Return the same need with at least one channel."""
        if self.carried.any() or not len(self.carried):
            return self
        carried = self.carried.clone()
        carried[0] = True
        return Need(self.live, carried)


def first_channel(channels: Tensor) -> Tensor:
    """Return the first of some channels alone."""
    return channels & (channels.cumsum(0) == 1)


def rounded(chosen: Tensor, among: Tensor, multiple: int) -> Tensor:
    """Return some channels, with others up to a multiple of a number; without others if there are not enough.

    Args:
        chosen: (channels,), bool.
        among: (channels,), bool: the channels that there are.
        multiple: the number, at least 1.
    """
    others = among & ~chosen
    missing = -int(chosen.sum()) % multiple
    return chosen | (others & (others.cumsum(0) <= missing)) if int(others.sum()) >= missing else chosen
