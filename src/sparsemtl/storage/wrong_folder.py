"""Files by which folders of runs and studies are recognised, and the error for a path that is not the expected one."""

from __future__ import annotations

from pathlib import Path

from sparsemtl.errors import CheckpointError

CONFIG = "config.yaml"
"""Name of the configuration in the folder of a run."""
ABOUT = "study.json"
"""Name of the record in the folder of a study."""
RUNS = "runs"
"""Name of the folder of the runs in the folder of a study."""

_NAMED = 5
"""Number of folders that an error names."""


def wrong_folder(path: Path, expected: str) -> CheckpointError:
    """Return the error for a path that is not the folder of what is expected.

    Args:
        path: the path.
        expected: "a run", "a study" or "a run or a study".
    """
    if not path.exists():
        found = "does not exist"
    elif not path.is_dir():
        found = "is a file"
    elif (path / ABOUT).is_file():
        found = "is the folder of a study"
    elif (path / CONFIG).is_file():
        found = "is the folder of a run"
    else:
        found = f"holds no run ({CONFIG} is missing) and no study ({ABOUT} is missing)"
    return CheckpointError(f"{path} {found}; expected the folder of {expected}.{_inside(path, expected)}")


def _inside(path: Path, expected: str) -> str:
    """Return the sentence that names folders of the expected kind below a path; "" without any."""
    kinds = {"run": (f"*/{CONFIG}", f"{RUNS}/*/{CONFIG}"), "study": (f"*/{ABOUT}",)}
    patterns = [pattern for kind, of in kinds.items() if kind in expected for pattern in of]
    folders = sorted({file.parent for pattern in patterns for file in path.glob(pattern)})
    if not folders:
        return ""
    names = ", ".join(map(str, folders[:_NAMED]))
    more = f" and {len(folders) - _NAMED} more" if len(folders) > _NAMED else ""
    return f" Below it: {names}{more}."
