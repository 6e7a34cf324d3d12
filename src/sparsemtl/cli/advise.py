"""Command `sparsemtl advise`: a brief training of a configuration's tasks, and what to try first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparsemtl.cli.options import AsJson, ConfigFile, DataRoot, Overrides, Plugins, Quiet, use_data_root

if TYPE_CHECKING:
    from sparsemtl.runs.advice import Advice


def advise(
    file: ConfigFile,
    overrides: Overrides = None,
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
    data_root: DataRoot = None,
    plugin: Plugins = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train the plain shared network briefly, measure which tasks use the same weights, and suggest what to try first.

    Each suggestion has its reason, the strength of its evidence, and lines of YAML for the configuration. Nothing is
    written without --write.
    """
    from sparsemtl.errors import ConfigError
    from sparsemtl.runs.advise import advise as advise_config
    from sparsemtl.runs.config_file import read_config
    from sparsemtl.storage.text_files import json_text

    use_data_root(data_root)
    if write is not None and write.exists():
        raise ConfigError(f"{write} exists already. Name another file for --write.")
    config = read_config(file, overrides or [], plugin or [])
    advice = advise_config(config, epochs=epochs, progress=not quiet)
    if as_json:
        typer.echo(json_text(advice.record()), nl=False)
    else:
        _show(advice)
    if write is not None:
        _write(write, file, overrides or [], plugin or [], advice)


def _write(path: Path, file: Path, overrides: list[str], plugins: list[str], advice: Advice) -> None:
    """Write the given configuration with the changes of the first suggestion."""
    from sparsemtl.runs.changes import merge
    from sparsemtl.runs.config_file import read_changed
    from sparsemtl.storage.text_files import write_text
    from sparsemtl.storage.yaml_text import dump_yaml

    write_text(path, dump_yaml(merge(read_changed(file, overrides, plugins), advice.suggestions[0].changes)))
    typer.echo(f"Configuration with suggestion 1: {path}. Train it with `sparsemtl run {path}`.", err=True)


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
