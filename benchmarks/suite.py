"""Run all speed scripts, one after another, and record or compare their rows.

    python benchmarks/suite.py                    # `make bench`: rewrite results/speed.json and results/speed.md
    python benchmarks/suite.py --only step masks  # the same for some scripts; other sections stay
    python benchmarks/suite.py --quick            # `make bench-quick`: compare with the recorded rows, write nothing

Scripts are the files `*_speed.py` of this folder, and `growth.py`. A comparison names each row that became worse by
more than 10 % in two runs, and ends with exit code 1 if there is one. Ratios and bytes are compared on any machine,
times only on the recorded CPU. `SLOW` scripts are compared only if they are named by `--only`.
"""

from __future__ import annotations

import argparse
import ast
import datetime
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from common import HEAD, Measure, Ratio

FOLDER = Path(__file__).parent
RECORD = FOLDER / "results" / "speed.json"
PAGE = FOLDER / "results" / "speed.md"
PACKAGES = ("sparsemtl", "torch", "torchjd", "numpy", "scipy", "pandas", "pillow")
LIMIT = {False: 600, True: 40}
"""Seconds after which a script is stopped, by `quick`."""
SLOW = ("compile", "damtl", "growth", "rival", "scenes", "transformer_fisher")
"""Scripts that `--quick` leaves out, unless they are named by `--only`: it ends in three minutes."""
WORSE = 1.1
PORTABLE = ("", "x", "bytes", "MB", "GB")
"""Units of figures that are compared between machines."""

Result = dict[str, Any]
"""Outcome of a script: its seconds, its rows, and an error or None."""


def scripts() -> dict[str, Path]:
    """Return name -> file of all scripts."""
    files = [*sorted(FOLDER.glob("*_speed.py")), FOLDER / "growth.py"]
    return {file.stem.removesuffix("_speed"): file for file in files if file.exists()}


def run(script: Path, *, quick: bool) -> Result:
    """Run a script in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "rows.json"
        command = [sys.executable, str(script), "--json", str(output), *(["--quick"] if quick else [])]
        start = time.perf_counter()
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
        try:
            _, messages = process.communicate(timeout=LIMIT[quick])
            error = None if process.returncode == 0 else (messages.strip().splitlines() or ["no message"])[-1]
        except subprocess.TimeoutExpired:
            error = f"stopped after {LIMIT[quick]} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # with the processes that the script started
                process.wait()
        rows = json.loads(output.read_text()) if output.exists() else []
    if error is not None:
        print(f"FAILED: {script.name}: {error}", flush=True)
    duration = time.perf_counter() - start
    print(f"{duration:.0f} s", flush=True)
    return {"seconds": round(duration, 1), "rows": rows, "error": error}


def machine() -> dict[str, str]:
    """Return what figures depend on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    capability = torch.backends.cpu.get_cpu_capability()
    return {"CPU": name, "cores": str(os.cpu_count()), "capability": capability, "system": platform.system()}


def versions() -> dict[str, str]:
    """Return package -> version; packages that are not installed are left out."""
    found = {"Python": platform.python_version()}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def measure_of(row: Mapping[str, Any]) -> Measure:
    """Return a row of a script's JSON as a `Measure`."""
    return Measure(**{**row, "value": Ratio(**row["value"])})


def page(record: Mapping[str, Any]) -> str:
    """Return results/speed.md."""
    facts = ", ".join(f"{name} {value}" for name, value in {**record["machine"], **record["versions"]}.items())
    rows = [measure_of(row) for of in record["scripts"].values() for row in of["rows"] if "value" in row]
    met = [row.is_met for row in rows if row.is_met is not None]
    minutes = sum(of["seconds"] for of in record["scripts"].values()) / 60
    parts = [
        "# Speed",
        f"Written by `make bench` on {record['date']} in {minutes:.0f} minutes: {facts}. "
        f"{sum(met)} of {len(met)} goals are met.",
        "Medians and ranges. A figure without a unit is a ratio of times that were taken alternately in one process. "
        "`make bench-quick` names rows that became worse by more than 10 %.",
    ]
    if missing := [script.name for name, script in scripts().items() if name not in record["scripts"]]:
        parts.append(f"**Not run here**: {', '.join(f'`{name}`' for name in missing)}.")
    for name, result in record["scripts"].items():
        parts += section(scripts()[name], result)
    return "\n\n".join(parts) + "\n"


def section(script: Path, result: Result) -> Iterator[str]:
    """Yield the paragraphs on a script: its docstring, its rows, its error."""
    title, _, text = (ast.get_docstring(ast.parse(script.read_text())) or script.stem).partition("\n")
    yield f"## {title.rstrip('.')}"
    yield text.strip("\n")
    if any("value" in row for row in result["rows"]):
        table = "\n".join([HEAD, *(str(measure_of(row)) for row in result["rows"])])
        yield table
    elif result["rows"]:
        yield growth_table(result["rows"])
    if result["error"] is not None:
        yield f"**`{script.name}` failed**: {result['error']}"


def growth_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows of `growth.py` as a table."""
    head = (
        "| measure | sizes | seconds | exponent | peak MB | exponent | remark |\n| :--- " + "| ---: " * 5 + "| :--- |"
    )
    lines = [
        f"| {row['name']} | {_joined(row['sizes'], ',.0f')} | {_joined(row['seconds'], '.3g')} | {row['time']:.2f} | "
        f"{_joined(row['megabytes'], ',.0f')} | {row['memory']:.2f} | {row['remark']} |"
        for row in rows
    ]
    return "\n".join([head, *lines])


def _joined(values: Sequence[float], form: str) -> str:
    return " / ".join(format(value, form) for value in values)


def record_rows(names: Sequence[str]) -> int:
    """Run scripts, write their rows, and return the number of scripts that failed."""
    here, known = machine(), scripts()
    old = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    results = dict(old["scripts"]) if old and old["machine"] == here else {}
    for number, name in enumerate(names, start=1):
        print(f"\n{known[name].name} ({number} of {len(names)})", flush=True)
        results[name] = run(known[name], quick=False)
        record = {
            "date": datetime.date.today().isoformat(),
            "machine": here,
            "versions": versions(),
            "scripts": {name: results[name] for name in known if name in results},
        }
        RECORD.write_text(json.dumps(record, indent=1) + "\n")
        PAGE.write_text(page(record))
    print(f"\n{sum(results[name]['seconds'] for name in names):.0f} s in all", flush=True)
    return sum(results[name]["error"] is not None for name in names)


def worse_rows(recorded: Result, found: Result, *, same_cpu: bool) -> dict[str, str]:
    """Return row -> what became worse by more than 10 %."""
    old = {row["name"]: measure_of(row) for row in recorded["rows"] if "value" in row}
    worse = {}
    for row in map(measure_of, (row for row in found["rows"] if "value" in row)):
        before = old.get(row.name)
        if before is None or before.unit != row.unit or not (row.unit in PORTABLE or same_cpu):
            continue
        now, then = row.value.median, before.value.median
        if now * WORSE < then if row.at_least else now > WORSE * then:
            worse[row.name] = f"{then:.4g} {row.unit}".rstrip() + f" -> {now:.4g}"
    return worse


def uncompared_rows(recorded: Result, found: Result, *, same_cpu: bool) -> list[str]:
    """Return the rows without a recorded one to compare with: of another name or unit, or times of another CPU."""
    units = {row["name"]: row["unit"] for row in recorded["rows"] if "value" in row}
    known = {name for name, unit in units.items() if same_cpu or unit in PORTABLE}
    rows = [row for row in found["rows"] if "value" in row]
    return [row["name"] for row in rows if row["name"] not in known or units[row["name"]] != row["unit"]]


def compare_rows(names: Sequence[str]) -> int:
    """Run scripts quickly, print rows that became worse in two runs, and return the number of these and of failures."""
    recorded, known, problems = json.loads(RECORD.read_text()), scripts(), 0
    same_cpu = recorded["machine"]["CPU"] == machine()["CPU"]
    for number, name in enumerate(names, start=1):
        print(f"\n{known[name].name} ({number} of {len(names)})", flush=True)
        old = recorded["scripts"].get(name, {"rows": []})
        found = run(known[name], quick=True)
        worse = worse_rows(old, found, same_cpu=same_cpu)
        if worse:
            again = worse_rows(old, run(known[name], quick=True), same_cpu=same_cpu)
            worse = {row: change for row, change in worse.items() if row in again}
        for row in uncompared_rows(old, found, same_cpu=same_cpu):
            print(f"not compared: {row}", flush=True)
        for row, change in worse.items():
            print(f"WORSE: {known[name].name}: {row}: {change}", flush=True)
        problems += len(worse) + (found["error"] is not None)
    return problems


def main() -> int:
    """Run the suite; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rows and repeats, compared with the recorded ones")
    parser.add_argument("--only", nargs="+", choices=list(scripts()), help="names of scripts, without `_speed`")
    options = parser.parse_args()
    names = options.only or list(scripts())
    if options.quick:
        return int(compare_rows(options.only or [name for name in names if name not in SLOW]) > 0)
    return int(record_rows(names) > 0)


if __name__ == "__main__":
    sys.exit(main())
