"""What training finds out about its images by itself, and what becomes of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vidi
from vidi.data import Audit
from vidi.metrics import Evaluation

QUICK = {
    "train.epochs": 1,
    "train.batch_size": 16,
    "model.name": "mlp",
    "machine.threads": 1,
    "data.validation_fraction": 0.2,
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDI_CACHE", str(tmp_path / "cache"))


def draw(path: Path, seed: int, quality: int = 90) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((48, 48), Image.Resampling.BICUBIC).save(path, quality=quality)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Training images in bursts of four; three of twelve test images are there in training too."""
    root = tmp_path / "photos"
    for number in range(80):
        name = f"{number // 4:02d}-{number % 4}.jpg"
        draw(root / "train" / "ab"[number // 4 % 2] / name, number // 4, quality=70 + number % 4)
    for number in range(9):
        draw(root / "test" / "ab"[number % 2] / f"{number}.jpg", 1000 + number)
    for number in range(3):
        draw(root / "test" / "ab"[number % 2] / f"again-{number}.jpg", number, quality=60)
    return root


def test_leaks_are_said_kept_and_counted_out(photos: Path, tmp_path: Path) -> None:
    """E12, P10"""
    said: list[str] = []
    run = vidi.train(
        photos, settings=QUICK, out=tmp_path / "run", show=lambda what: said.append(str(what))
    )
    assert any("3 test images (25.0%) can also be seen in training" in line for line in said), said
    assert any("e.g. test/a/again-0.jpg = " in line for line in said), said
    found = Audit.from_json(run.text("audit"))
    assert len(found.leaked["test"]) == 3
    evaluation = Evaluation.model_validate_json(run.read_evaluation("test"))
    assert (evaluation.n_evaluated, evaluation.n_leaked) == (12, 3)
    assert evaluation.without_leaked is not None
    assert evaluation.without_leaked.n == 9
    page = run.report_path.read_text()
    assert "3 test images (25.0%) can also be seen in training" in page


def test_bursts_stay_together_also_when_the_run_is_taken_up_again(
    photos: Path, tmp_path: Path
) -> None:
    run = vidi.train(photos, settings=QUICK, out=tmp_path / "run")
    validation = run.read_predictions("validation")["ids"]
    bursts = np.bincount((validation - 12) // 4)
    found = Audit.from_json(run.text("audit"))
    assert found.leaked["validation"] == ()
    assert len(validation) == 16
    again = vidi.evaluate(run.path, split="validation")
    assert again.n_leaked == 0
    assert again.n_expected == 16
    assert set(bursts.tolist()) <= {0, 4}
    # A cache that is gone, as on another machine, changes nothing.
    shutil.rmtree(tmp_path / "cache")
    longer = {**QUICK, "train.epochs": 2}
    vidi.train(photos, settings=longer, out=tmp_path / "run")
    assert (run.read_predictions("validation")["ids"] == validation).all()


def test_other_data_are_judged_without_what_this_run_knows(photos: Path, tmp_path: Path) -> None:
    run = vidi.train(photos, settings=QUICK, out=tmp_path / "run")
    other = tmp_path / "other"
    for number in range(20):
        draw(other / "train" / "ab"[number % 2] / f"{number}.jpg", 2000 + number)
        draw(other / "test" / "ab"[number % 2] / f"{number}.jpg", 3000 + number)
    assert vidi.evaluate(run.path, other, split="test").n_leaked == 0


def test_a_run_that_decodes_alongside_looks_when_all_is_decoded(
    photos: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    run = vidi.train(
        photos,
        settings={**QUICK, "data.build": "alongside"},
        out=tmp_path / "run",
        show=lambda what: said.append(str(what)),
    )
    assert any("3 test images (25.0%) can also be seen in training" in line for line in said)
    found = Audit.from_json(run.text("audit"))
    # The splits were in use by then.
    assert not found.recut
    assert found.leaked["validation"]
    evaluation = Evaluation.model_validate_json(run.read_evaluation("test"))
    assert evaluation.n_leaked == 3
    again = vidi.evaluate(run.path, split="validation")
    assert again.n_leaked == len(found.leaked["validation"])
