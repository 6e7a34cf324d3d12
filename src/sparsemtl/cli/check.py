"""Command `sparsemtl check`: one batch of a configuration through everything, or every file of a run folder read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsemtl.cli.options import AsJson, DataRoot, Overrides, Plugins, use_data_root

if TYPE_CHECKING:
    from sparsemtl.training.checks.check import TrainingCheck


def check(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="FILE|FOLDER",
            help="A configuration, a study, the folder of a run or of a study, or networks as .safetensors.",
        ),
    ],
    overrides: Overrides = None,
    data_root: DataRoot = None,
    plugin: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """Check a configuration on one batch, or the files of a run folder; nothing is trained or written.

    Of a configuration, or of every candidate of `sharing: auto`: shapes, losses and gradients per task, labels, memory,
    expected time, what is masked; warnings do not fail. Of a folder: every file is read; the exit status is 1 if one is
    broken. Of networks that were exported as safetensors, alone or as a bundle: all of them are built.
    """
    from sparsemtl.errors import ConfigError, ParameterError

    if path.suffix == ".safetensors":
        _check_networks(path, as_json=as_json)
    elif path.suffix in (".onnx", ".pt2"):
        raise ParameterError(
            f"{path} is a network for other libraries: `sparsemtl bench {path}` runs it, and `sm.verify` compares it."
        )
    elif not path.is_dir():
        use_data_root(data_root)
        _check_file(path, overrides or [], plugin or [], as_json=as_json)
    elif overrides:
        raise ConfigError(f"{path} is a folder: its files are checked as they are, without {overrides[0]!r}.")
    else:
        _check_folder(path, plugin or [], as_json=as_json)


def _check_folder(folder: Path, plugins: list[str], *, as_json: bool) -> None:
    from sparsemtl.cli.doctor import show_findings
    from sparsemtl.registry.plugins import load_plugins
    from sparsemtl.runs.check_run import check_run

    load_plugins(plugins)
    found = check_run(folder)
    if as_json:
        _print(found.record())
    else:
        show_findings(found.findings, "file")
    if not found.ok:
        raise typer.Exit(1)


def _check_networks(file: Path, *, as_json: bool) -> None:
    """Build the networks of a file, which raises for a broken one."""
    from sparsemtl.runs.check_run import describe_networks

    found = describe_networks(file)
    if as_json:
        _print({"path": str(file), "found": found})
    else:
        typer.echo(f"{file}: {found}")


def _check_file(file: Path, overrides: list[str], plugins: list[str], *, as_json: bool) -> None:
    """Check a configuration, or the first run per method of a study."""
    from sparsemtl.runs.check_config import check_config
    from sparsemtl.runs.config_file import is_study_file, read_config

    if is_study_file(file):
        configs = _study_configs(file, overrides, plugins)
    else:
        configs = {"": read_config(file, overrides, plugins)}
    records = {}
    for name, config in configs.items():
        checks = check_config(config)
        records[name] = {run: one.record() for run, one in checks.items()}
        if not as_json:
            _show(name, checks)
    if as_json:
        _print(records if len(records) > 1 or "" not in records else records[""])


def _study_configs(file: Path, overrides: list[str], plugins: list[str]) -> dict[str, Mapping[str, Any]]:
    """Return method -> configuration of its first run."""
    from sparsemtl.study.grid import read_study

    configs: dict[str, Mapping[str, Any]] = {}
    for run in read_study(file, overrides, plugins).runs:
        configs.setdefault(str(run.config["label"]), run.config)
    return configs


def _show(name: str, checks: Mapping[str, TrainingCheck]) -> None:
    """Print the check of a run after that of its pretraining run, with their warnings."""
    from rich.text import Text

    from sparsemtl.cli.terminal import rich_table, show

    for run, one in checks.items():
        if title := " ".join(part for part in (name, run if len(checks) > 1 else "") if part):
            show(Text(f"\n{title}", style="bold"))
        for table in one.tables():
            show(rich_table(table))
        for warning in one.warnings:
            typer.secho(f"warning: {warning}", fg=typer.colors.YELLOW)


def _print(record: Any) -> None:
    from sparsemtl.storage.text_files import json_text

    typer.echo(json_text(record), nl=False)
