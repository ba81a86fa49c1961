"""The examples run, as a reader would run them, and end with what they promise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"

# Example -> (its arguments, what it must print).
RUNS: dict[str, tuple[list[str], str]] = {
    "digits.py": (["2"], "a picture of a 7 is taken for a"),
    "own_loop.py": (["60"], "saved in"),
    "custom_model.py": ([], "accuracy"),
}


def test_every_example_is_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(RUNS)


@pytest.mark.parametrize("name", sorted(RUNS))
def test_the_example_runs(name: str, tmp_path: Path) -> None:
    arguments, printed = RUNS[name]
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert printed in done.stdout
