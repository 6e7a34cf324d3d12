"""Command `sparsemtl advise`: a brief training of a configuration's tasks, and what to try first."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sparsemtl.runs.advice import Advice


def advise(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A configuration, such as examples/digits.yaml.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="section.key=value", help="Changes of the file, as for `sparsemtl run`.", show_default=False
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Epochs of the brief training; by default 5 at most.", show_default=False
        ),
    ] = None,
    write: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write the configuration with the first suggestion's changes.", show_default=False
        ),
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder of the data sets, as for `sparsemtl run`.")
    ] = None,
    plugin: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE|MODULE", help="A plugin, as for `sparsemtl run`.", show_default=False),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Train the plain shared network briefly, measure which tasks use the same weights, and say what to try first.

    Each suggestion has its reason, the strength of its evidence, and lines of YAML for the configuration. Nothing is
    written without --write.
    """
    from sparsemtl.errors import ConfigError
    from sparsemtl.registry.plugins import with_plugins
    from sparsemtl.runs.advise import advise as advise_config
    from sparsemtl.runs.changes import merge, override
    from sparsemtl.runs.config import check, origins_of
    from sparsemtl.storage.text_files import json_text, write_text
    from sparsemtl.storage.yaml_text import dump_yaml, read_yaml

    if data_root is not None:
        os.environ["SPARSEMTL_DATA"] = str(data_root)
    content = with_plugins(read_yaml(file), file.parent, plugin or ())
    if "methods" in content:
        raise ConfigError(f"{file} is a study: it has `methods`. Advice is for one configuration, such as its `base`.")
    if write is not None and write.exists():
        raise ConfigError(f"{write} exists already. Name another file for --write.")
    changes = overrides or []
    content = override(content, changes)
    config = check(content, where=str(file), origins=origins_of(file, changes))
    found = advise_config(config, epochs=epochs, progress=not quiet)
    if as_json:
        typer.echo(json_text(found.record()), nl=False)
    else:
        _show(found)
    if write is not None:
        write_text(write, dump_yaml(merge(content, found.suggestions[0].changes)))
        typer.echo(f"Configuration with suggestion 1: {write}. Train it with `sparsemtl run {write}`.", err=True)


def _show(advice: Advice) -> None:
    """Print tables, suggestions and cautions."""
    from dataclasses import replace

    from rich.text import Text

    from sparsemtl.cli.terminal import rich_table, show

    for table in advice.tables():
        show(Text(f"\n{table.title}", style="bold"))
        show(rich_table(replace(table, title="")))
    for number, one in enumerate(advice.suggestions, start=1):
        show(Text(f"\n{number}. {one.title} (evidence: {one.evidence})", style="bold"))
        show(Text(one.reason))
        typer.echo("\n" + "".join(f"    {line}\n" for line in one.yaml.splitlines()), nl=False)
    for caution in advice.cautions:
        typer.secho(f"\ncaution: {caution}", fg=typer.colors.YELLOW)
