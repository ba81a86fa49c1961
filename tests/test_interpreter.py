"""Nothing is imported from the folder that vidi happens to be started in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

VIDI = Path(sys.executable).with_name("vidi")


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """A folder of somebody's data, with files in it that are called like what vidi imports."""
    for name in ("torch", "numpy", "safetensors", "vidi"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('planted')\n")
    return tmp_path


def run(folder: Path, *command: str | Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_module_planted_in_the_current_folder_is_not_run(trap: Path) -> None:
    assert "lenet5" in run(trap, VIDI, "models", "lenet5")


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "digits", "--nproc", "2", "--epochs", "0.05", "--out", "run"),
        ("tune", "digits", "--trials", "1", "--epochs", "0.05", "--workers", "1", "--out", "study"),
    ],
)
@pytest.mark.slow
def test_nor_by_the_processes_that_it_starts(trap: Path, arguments: tuple[str, ...]) -> None:
    settings = ("--set", "model.name=lenet5", "--set", "machine.probe=never")
    run(trap, VIDI, *arguments, *settings)


def test_who_imports_from_the_current_folder_has_processes_that_do(tmp_path: Path) -> None:
    """`python -m vidi` does, and its user may have a network of theirs there."""
    code = "from vidi.interpreter import options; print(options())"
    assert run(tmp_path, sys.executable, "-c", code).strip() == "()"
    assert run(tmp_path, sys.executable, "-P", "-c", code).strip() == "('-P',)"
