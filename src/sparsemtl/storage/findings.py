"""Findings of a diagnosis: what was looked at, what was found there, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "missing", "broken"]


@dataclass(frozen=True)
class Finding:
    """One line of a diagnosis.

    Attributes:
        what: part of the installation, or a file.
        found: version, device, content or state.
        state: `missing` is something that is not there and need not be, `broken` is something that will fail.
        remedy: command or change that mends it.
    """

    what: str
    found: str
    state: State = "ok"
    remedy: str = ""
