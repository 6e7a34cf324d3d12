"""The diagnosis names what is there, what is missing and what is broken."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from sparsemtl.cli import diagnosis as doctor
from sparsemtl.cli.diagnosis import Finding, diagnosis
from sparsemtl.cli.main import app


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for one small package in place of those that take seconds to import."""
    monkeypatch.setattr(doctor, "_OPTIONAL", ("typer",))


def findings() -> dict[str, Finding]:
    return {finding.what: finding for finding in diagnosis()}


def test_base_dependencies_devices_and_extras_are_named() -> None:
    found = findings()
    assert {"Python", "sparsemtl", "torch", "pydantic", "CPU", "GPU", "C++ kernels", "extra report"} <= set(found)
    assert found["typer"].state == "ok"
    assert all(found[name].state == "ok" for name in ("torch", "pydantic", "typer", "rich"))
    assert found["torch"].found.startswith("2.")


def test_an_old_and_an_absent_package_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        doctor,
        "requires",
        lambda name: ["torch>=99", "not-there>=1", "pandas>=99; extra == 'report'", "nor-this; extra == 'report'"],
    )
    found = findings()
    assert found["torch"].state == found["not-there"].state == "broken"
    assert "is not >=99" in found["torch"].found
    assert found["torch"].remedy == "pip install 'torch>=99'"
    assert found["not-there"].found == "not-there is not installed"
    assert found["extra report"].state == "missing"
    assert "sparsemtl[report]" in found["extra report"].remedy
    assert "nor-this is not installed" in found["extra report"].found


def test_a_broken_torchvision_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_OPTIONAL", ("torch",))

    def run(command: list[str], **options: Any) -> Any:
        return SimpleNamespace(returncode=1, stderr="Traceback\nRuntimeError: torchvision::nms does not exist\n")

    monkeypatch.setattr(subprocess, "run", run)
    (found,) = doctor._imports()
    assert found.state == "broken"
    assert "nms does not exist" in found.found
    assert "pip uninstall torch" in found.remedy


def test_missing_tools_of_kernels_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPARSEMTL_KERNELS", raising=False)
    monkeypatch.setattr(doctor.shutil, "which", lambda tool: None if tool == "ninja" else f"/bin/{tool}")
    assert "ninja" in doctor._kernels().found
    monkeypatch.setattr(doctor.shutil, "which", lambda tool: f"/bin/{tool}")
    monkeypatch.setattr("sparsemtl.kernels.compiled.failures", lambda: [Path("answer.failed")])
    assert doctor._kernels().state == "broken"
    assert "answer.failed" in doctor._kernels().remedy
    monkeypatch.setenv("SPARSEMTL_KERNELS", "0")
    assert "turned off" in doctor._kernels().found


def test_plugins_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ImportError("old")

    points = [SimpleNamespace(name=n, value=n, load=f) for n, f in (("good", lambda: None), ("bad", fail))]
    monkeypatch.setattr(doctor, "entry_points", lambda group: points)
    found = {finding.what: finding.state for finding in doctor._plugins()}
    assert found == {"plugin good": "ok", "plugin bad": "broken"}


def test_the_command_prints_the_table_and_fails_if_something_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_plugins", lambda: iter(()))
    whole = CliRunner().invoke(app, ["doctor"])
    assert "torch" in whole.output
    assert whole.exit_code == ("broken:" in whole.output)
    monkeypatch.setattr(doctor, "_plugins", lambda: iter([Finding("plugin bad", "old", "broken", "uninstall it")]))
    broken = CliRunner().invoke(app, ["doctor"])
    assert broken.exit_code == 1
    assert "broken: uninstall it" in broken.output


@pytest.mark.slow
def test_the_command_runs_in_a_process_of_its_own() -> None:
    run = subprocess.run([sys.executable, "-m", "sparsemtl", "doctor"], capture_output=True, text=True, check=False)
    assert "torch" in run.stdout
    assert run.returncode == ("broken:" in run.stdout)
