"""Files that are written at once: to a temporary file, which is then renamed. Text and JSON, without torch."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparsemtl.errors import CheckpointError
from sparsemtl.storage.disk import make_folder, storage_errors, sync_folder


@contextmanager
def replacing(path: str | Path, size: int | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which replaces `path` at the end of the context, unless an error leaves it.

    A process that is killed inside leaves either the old file or the new one, complete.

    Args:
        path: the file.
        size: number of bytes to write, for the message if the disk is full.

    Raises:
        StorageError: if there is no space for the file, naming the needed and the free space.
    """
    target = Path(path)
    aside = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    with storage_errors(target, size):
        make_folder(target.parent)
        os.close(os.open(aside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # the umask decides who may read it
        mode = aside.stat().st_mode & 0o777
        try:
            yield aside
            with aside.open("rb+") as file:
                os.fsync(file.fileno())
            aside.chmod(mode)  # safetensors puts another file in its place
            os.replace(aside, target)
            sync_folder(target.parent)
        finally:
            aside.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file at once."""
    content = text.encode()
    with replacing(path, len(content)) as aside:
        aside.write_bytes(content)


def write_json(path: str | Path, value: Any) -> None:
    """Write a JSON file at once; NaN becomes null, which every JSON reader can read."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """Return a value as JSON; NaN becomes null, which every JSON reader can read."""
    return json.dumps(_without_nan(value), indent=2, allow_nan=False) + "\n"


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        CheckpointError: if it is missing or damaged.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist.") from None
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}.") from None


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not (float("-inf") < value < float("inf")) else value
