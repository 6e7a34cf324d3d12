"""Commands list and schema: the keys and members of configurations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsemtl.cli.options import Plugins
from sparsemtl.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from sparsemtl.registry.registry import Registry
    from sparsemtl.runs.schema import Keys


def list_members(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="WHAT",
            help="run, training, study, search, tasks, datasets, encoders, heads, architectures, methods, criteria, "
            "balancers, optimizers, schedulers or callbacks; a section (sharing), a key (pretraining) or a member "
            "(pcgrad); by default an overview.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="One of them, to list the meaning of its parameters.", show_default=False),
    ] = None,
    plugin: Plugins = None,
) -> None:
    """List the keys and members of a configuration, with parameters, defaults and sources."""
    from sparsemtl.registry.plugins import load_plugins

    load_plugins(plugin or ())
    from sparsemtl.cli.terminal import overview, show

    if what is None:
        show(overview(plain_keys(), registries()))
    else:
        _show(what, name)


def _show(what: str, name: str | None) -> None:
    """Print a list, or one of its members, or a key or a member whose list is not named.

    Raises:
        ConfigError: if there is no such list, key or member.
    """
    from sparsemtl.cli.terminal import explained_keys, member, members, show
    from sparsemtl.runs.schema import SECTIONS

    plain = plain_keys()
    found = {**{section: registry for section, (registry, _) in SECTIONS.items()}, **registries()}
    owner = next((of for of, keys in plain.items() if what in keys), None)
    if what in plain:
        show(explained_keys(what, plain[what], name))
    elif what in found:
        show(members(found[what]) if name is None else member(found[what], name))
        if found[what] is SECTIONS["sharing"][0] and name is None:
            show("`sharing: auto` chooses among networks of these for every task: `sparsemtl list run auto`.")
    elif owner is not None and name is None:
        show(explained_keys(owner, plain[owner], what))
    elif owner is not None:
        raise ConfigError(f"{what!r} is a {owner} key, not a list with {name!r}. Use `sparsemtl list {what}`.")
    elif name is None and (homes := [registry for registry in registries().values() if what in registry]):
        for registry in homes:
            show(f"{registry.kind} {what}:")
            show(member(registry, what))
    else:
        raise ConfigError(unknown_name("list", what, {*plain, *found, *plain["run"]}))


def schema(
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write to this file.", show_default=False)] = None,
    study: Annotated[bool, typer.Option("--study", help="The schema of study files.")] = False,
    plugin: Plugins = None,
) -> None:
    """Print the JSON schema of configurations or studies, for editors."""
    from sparsemtl.registry.plugins import load_plugins

    load_plugins(plugin or ())
    from sparsemtl.runs.schema import json_schema
    from sparsemtl.storage.text_files import write_text
    from sparsemtl.study.schema import study_json_schema

    text = json.dumps(study_json_schema() if study else json_schema(), indent=2)
    if out is None:
        typer.echo(text)
    else:
        write_text(out, text + "\n")


def plain_keys() -> dict[str, Keys]:
    """Return the keys without a registry: of a run (no sections), of `training`, of a study and of its `search`."""
    from sparsemtl.runs.schema import run_keys, training_keys
    from sparsemtl.study.grid import KEYS
    from sparsemtl.study.search_options import SEARCH_KEYS

    return {"run": run_keys(), "training": training_keys(), "study": KEYS, "search": SEARCH_KEYS}


def registries() -> dict[str, Registry[Any]]:
    """Return name of a list -> registry."""
    from sparsemtl.architectures import ARCHITECTURES
    from sparsemtl.backbones import ENCODERS
    from sparsemtl.balancing import BALANCERS
    from sparsemtl.criteria import CRITERIA
    from sparsemtl.data import DATASETS
    from sparsemtl.heads import HEADS
    from sparsemtl.optim import OPTIMIZERS, SCHEDULERS
    from sparsemtl.sharing import SHARING
    from sparsemtl.tasks import TASKS
    from sparsemtl.training.callbacks import CALLBACKS

    return {
        "tasks": TASKS,
        "datasets": DATASETS,
        "encoders": ENCODERS,
        "heads": HEADS,
        "architectures": ARCHITECTURES,
        "methods": SHARING,
        "criteria": CRITERIA,
        "balancers": BALANCERS,
        "optimizers": OPTIMIZERS,
        "schedulers": SCHEDULERS,
        "callbacks": CALLBACKS,
    }
