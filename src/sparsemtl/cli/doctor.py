"""Command `sparsemtl doctor`: versions, devices, extras and plugins, and what to do about those that are broken."""

from __future__ import annotations

from collections.abc import Iterable

import typer

from sparsemtl.storage.findings import Finding


def doctor() -> None:
    """Show versions, devices, extras and plugins, and what is broken; exit with 1 if something is."""
    from sparsemtl.cli.diagnosis import diagnosis  # reads the metadata of packages, which other commands do not need

    findings = list(diagnosis())
    show_findings(findings, "what")
    if any(finding.state == "broken" for finding in findings):
        raise typer.Exit(1)


def show_findings(findings: Iterable[Finding], what: str) -> None:
    """Print findings as a table.

    Args:
        findings: the findings.
        what: heading of their first column.
    """
    from rich.table import Table

    from sparsemtl.cli.terminal import show

    table = Table(what, "found", "", box=None, pad_edge=False)
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.overflow = "fold"  # a path that is cut is no help
    for finding in findings:
        note = f": {finding.remedy}" if finding.remedy else ""
        table.add_row(finding.what, finding.found, "" if finding.state == "ok" else f"{finding.state}{note}")
    show(table)
