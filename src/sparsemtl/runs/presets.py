"""Published methods as presets: settings of each paper, from which a configuration starts, in `published/`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

from sparsemtl.storage.yaml_text import read_yaml

Preset = Literal["fsmtl", "pbfs", "damtl", "less-is-more"]
"""Names of the published methods."""
PRESET = "preset"
"""Key of a configuration, or of changes of one, that names a preset."""
PRESETS = {name: Path(__file__).parent / "published" / f"{name}.yaml" for name in get_args(Preset)}
"""Name -> file of its settings, which are changes of a configuration."""


def preset_settings(name: str) -> dict[str, Any]:
    """Return the settings of a preset."""
    return read_yaml(PRESETS[name])
