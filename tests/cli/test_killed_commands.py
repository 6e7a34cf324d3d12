"""Commands that are killed at random moments leave readable files, and resumed runs end bit for bit alike."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fcntl", reason="processes are copied and signalled as POSIX has it")

KILLS = 200


@pytest.mark.slow
def test_two_hundred_kills_lose_nothing(tmp_path: Path) -> None:
    script = Path(__file__).with_name("killed_commands.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, str(script), str(tmp_path), str(KILLS), "0"], check=True, env=environment)
    outcome = json.loads((tmp_path / "outcome.json").read_text())
    assert outcome["wrong"] == []
    assert outcome["kills"] >= KILLS
    assert outcome["runs"] >= KILLS // 4
