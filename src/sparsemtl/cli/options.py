"""Arguments and options that several commands have."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[Path, typer.Argument(metavar="FILE", help="A configuration, such as examples/digits.yaml.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="section.key=value",
        help="Changes of the file, such as sharing.keep=0.5 or sharing=random; a section with another name starts from "
        "the defaults of that name. A mapping is merged into the file's key by key: "
        "data.tasks={a: [3, 5]} adds or changes `a`, data.tasks={} changes nothing.",
        show_default=False,
    ),
]
DataRoot = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER", help="Folder of the data sets; by default $SPARSEMTL_DATA, or ./data.", show_default=False
    ),
]
Plugins = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FILE|MODULE",
        help="A plugin: a file my_methods.py or a module that adds members to the registries. May be given repeatedly.",
        show_default=False,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER", help="Folder of the results; by default runs/<name of the file>.", show_default=False
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def use_data_root(root: Path | None) -> None:
    """Let data sets lie in this folder; None changes nothing."""
    if root is not None:
        os.environ["SPARSEMTL_DATA"] = str(root)
