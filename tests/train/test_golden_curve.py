"""The loss curve of a small run on digits, as it was when somebody last looked at it.

A change that moves it is a change of numerics: write the new curve with
`python tests/train/test_golden_curve.py`, and a fragment changelog.d/<topic>.numerics.md with
before and after.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import pytest

import vidi

GOLDEN = Path(__file__).parent.parent / "assets" / "golden_digits.json"
SETTINGS: dict[str, object] = {
    "model.name": "small_cnn",
    "train.epochs": 2,
    "train.batch_size": 64,
    "train.ema_decay": 0.9,
    "machine.threads": 1,
    "machine.precision": "float32",
    "machine.channels_last": True,
}


def curve(out: Path) -> list[dict[str, float]]:
    run = vidi.train("digits", settings=SETTINGS, out=out)
    kept = ("step", "loss", "learning_rate", "log_loss")
    return [{k: v for k, v in line.items() if k in kept} for line in run.metrics.read()]


def test_the_loss_curve_is_the_golden_one(tmp_path: Path) -> None:
    golden = json.loads(GOLDEN.read_text())
    found = curve(tmp_path / "run")
    assert [line["step"] for line in found] == [line["step"] for line in golden]
    for line, expected in zip(found, golden, strict=True):
        # Processors round differently; a change of method moves the loss by far more.
        assert line == {k: pytest.approx(v, rel=5e-3) for k, v in expected.items()}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        lines = curve(Path(folder) / "run")
    GOLDEN.write_text("[\n " + ",\n ".join(json.dumps(line) for line in lines) + "\n]\n")
    sys.stdout.write(f"{len(lines)} lines written to {GOLDEN}\n")
