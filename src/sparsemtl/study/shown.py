"""Digest of a study's records when its tables and its report were made."""

from __future__ import annotations

import hashlib
from typing import Any

from sparsemtl._version import __version__
from sparsemtl.storage.study_folder import StudyFolder
from sparsemtl.storage.text_files import read_json

RECORD = ".shown.json"
"""File with the digest of what the tables show (`tables`), and of what the report shows (`report`)."""


def digest(folder: StudyFolder) -> str:
    """Return the digest of all that tables and report show: the study's records, and those of its runs."""
    whole = hashlib.sha256(__version__.encode())
    files = [folder.about, folder.config, folder.results, *([folder.failures] if folder.failures.is_file() else [])]
    for run_folder in folder.run_folders():
        files += [run_folder.config, run_folder.summary, run_folder.metrics, run_folder.environment]
        whole.update(f"{run_folder.path.name} {run_folder.report.is_file()}".encode())
    for path in files:
        whole.update(hashlib.sha256(path.read_bytes() if path.is_file() else b"").digest())
    return whole.hexdigest()


def read_record(folder: StudyFolder) -> dict[str, Any]:
    """Read the digests of a study folder; empty if there are none yet."""
    record: dict[str, Any] = read_json(path) if (path := folder.path / RECORD).is_file() else {}
    return record
