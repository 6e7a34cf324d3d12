"""Command compare: the methods of one study or of several, with intervals, tests and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparsemtl.errors import ParameterError, unknown_name

if TYPE_CHECKING:
    from sparsemtl.study.results import StudyResults
    from sparsemtl.study.tables import StudyTable
    from sparsemtl.views.tables import Table

_FORMATS = {"text": "txt", "markdown": "md", "latex": "tex", "csv": "csv"}
"""Format -> ending of its files."""


def compare(
    folders: Annotated[
        list[Path], typer.Argument(metavar="FOLDER...", help="Folders of studies; several are several data sets.")
    ],
    format: Annotated[
        str,
        typer.Option("--format", "-f", metavar="text|markdown|latex|csv", help="Format of what is printed."),
    ] = "text",
    baseline: Annotated[
        str | None, typer.Option(metavar="METHOD", help="Baseline in place of the study's own.", show_default=False)
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="METHOD", help="Method that intervals compare with; by default the baseline."),
    ] = None,
    level: Annotated[float, typer.Option(metavar="LEVEL", help="Confidence level of intervals and ranks.")] = 0.95,
    bootstrap: Annotated[
        bool, typer.Option("--bootstrap", help="Bootstrap intervals (BCa) in place of t intervals: ten seeds or more.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Write every table in every format there, and the pictures as SVG and PDF.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Compare the methods of studies: best settings by validation, intervals of the gain, Friedman and Wilcoxon tests.

    A search with several objectives has its Pareto front as well.

    Warnings say where the evidence is weak, and what to do.
    """
    from sparsemtl.study.pareto import pareto_table
    from sparsemtl.study.results import StudyResults
    from sparsemtl.study.statistics import comparison
    from sparsemtl.study.tables import primary_table

    if format not in _FORMATS:
        raise ParameterError(unknown_name("format", format, _FORMATS))
    results = StudyResults.read(*folders, baseline=baseline)
    best = results.best()
    main = primary_table(best)
    others = comparison(best, against=against, level=level, method="bootstrap" if bootstrap else "t")
    if (front := pareto_table(results)) is not None:
        others["front"] = front
    weak = results.warnings()
    if format == "text":
        _print(main, others, weak)
    else:
        typer.echo("\n".join(_texts(main, others, format).values()).rstrip())
        for point in weak:
            typer.echo(f"Weak evidence: {point}", err=True)
    if out is not None:
        _write(best, main, others, out)
        typer.echo(f"Files: {out}", err=format != "text")


def _print(main: StudyTable, others: Mapping[str, Table], weak: list[str]) -> None:
    from sparsemtl.cli.study_table import PrintedTable, show_study

    show_study(PrintedTable.of(main))
    for table in others.values():
        typer.echo(f"\n{table.text()}")
    if weak:
        typer.echo("\nThe evidence is weak:")
        for point in weak:
            typer.echo(f"- {point}")


def _texts(main: StudyTable, others: Mapping[str, Table], format: str) -> dict[str, str]:
    """Return name -> table in a format."""
    from sparsemtl.study.latex import plain_latex, to_latex
    from sparsemtl.study.tables import to_csv, to_markdown

    if format == "latex":
        return {"results": to_latex(main)} | {name: plain_latex(table) for name, table in others.items()}
    if format == "csv":
        return {"results": to_csv([main])} | {name: table.csv() for name, table in others.items()}
    return {"results": to_markdown(main)} | {name: f"{table.markdown()}\n" for name, table in others.items()}


def _write(best: StudyResults, main: StudyTable, others: Mapping[str, Table], out: Path) -> None:
    """Write the tables in all formats, and the pictures that can be drawn."""
    from sparsemtl.storage.text_files import write_text

    for format in ("markdown", "latex", "csv"):
        for name, text in _texts(main, others, format).items():
            write_text(out / f"{name}.{_FORMATS[format]}", text)
    _draw(best, others, out)


def _draw(best: StudyResults, others: Mapping[str, Table], out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pictures: dict[str, str | None] = {"ranks": "ranks"} if "ranks" in others else {}
    if "pairs" in others:
        pictures["profiles"] = "profiles"
    if "intervals" in others and "pairs" in others:
        pictures["gains"] = None
    if len(best.tasks) > 1 and len(set(best.primary.values())) == 1:
        pictures["tasks"] = "tasks"
    for name, what in pictures.items():
        axes = best.plot(what)
        for ending in ("svg", "pdf"):
            axes.figure.savefig(out / f"{name}.{ending}", bbox_inches="tight")  # type: ignore[union-attr]
        pyplot.close(axes.figure)  # type: ignore[arg-type]
