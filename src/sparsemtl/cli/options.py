"""Options that several commands have."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

DataRoot = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Folder of the data sets; by default $SPARSEMTL_DATA, or ./data.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
Plugins = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FILE|MODULE",
        help="A plugin: a file my_methods.py or a module that adds members to the registries. May be given repeatedly.",
        show_default=False,
    ),
]
Out = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Folder of the results; by default runs/<name of the file>.")
]


def use_data_root(root: Path | None) -> None:
    """Let data sets lie in this folder; None changes nothing."""
    if root is not None:
        os.environ["SPARSEMTL_DATA"] = str(root)
