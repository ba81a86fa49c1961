"""Real kills of real processes. More of them: `python tests/faults/kill_loop.py FOLDER 1000`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize("kills", [40, pytest.param(400, marks=pytest.mark.slow)])
def test_every_kill_of_a_process_that_saves_in_a_loop_is_resumed(
    kills: int, tmp_path: Path
) -> None:
    child = subprocess.run(
        [sys.executable, HERE / "kill_loop.py", tmp_path, str(kills)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    # A child that met an error of its own says so, and is not killed any more.
    assert child.stderr == ""
    found = json.loads(child.stdout)
    assert found["kills"] == kills
    assert found["inside_a_save"] > kills // 10
    assert found["step"] > kills
