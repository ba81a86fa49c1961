"""Ablations of small pictures, through the public door."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

import vidi
from vidi.config import Config
from vidi.effects import of_study
from vidi.errors import InUseError, MismatchError, TrainingError, UsageError
from vidi.study import Study
from vidi.train.trial import train_and_answer
from vidi.tune import ablate as ablation

SETTINGS: dict[str, object] = {
    "train.epochs": 1,
    "train.batch_size": 16,
    "model.name": "mlp",
    "machine.threads": 1,
    "machine.probe": "never",
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two colours that are not quite easy to tell apart."""
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("photos") / "two"
    for number, label in enumerate(("red", "green")):
        (root / label).mkdir(parents=True)
        for index in range(60):
            pixels = rng.integers(0, 200, (12, 12, 3), dtype=np.uint8)
            pixels[:, :, number] += 14
            image.fromarray(pixels).save(root / label / f"{index:03}.png")
    return root


def ablated(photos: Path, out: Path, **how: Any) -> Study:
    settings = {**SETTINGS, **how.pop("settings", {})}
    how = {"factors": ["accumulation", "dropout"], "seeds": 2, **how}
    return vidi.ablate(photos, settings=settings, out=out, **how)


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    return ablated(photos, tmp_path_factory.mktemp("studies") / "a")


def test_every_level_is_trained_with_the_seeds_of_the_base(finished: Study) -> None:
    trials = finished.trials()
    assert [trial.status for trial in trials] == ["finished"] * len(trials)
    assert [trial.settings["train.seed"] for trial in trials] == [0, 1] * (len(trials) // 2)
    assert trials[0].settings == {"train.seed": 0}
    assert finished.report_path.exists()
    for trial in trials:
        run = finished.trial_run(trial.number)
        # Judged on validation images alone, image by image; the weights are not kept.
        assert set(run.read_predictions("validation")) == {"ids", "labels", "probabilities"}
        assert not run.predictions_path("test").exists()
        assert run.checkpoint_steps() == ()


def test_effects_are_paired_by_seed_and_image(finished: Study) -> None:
    found = of_study(finished)
    assert {each.factor for each in found} == {"accumulation", "dropout"}
    base = [finished.trial_run(number).read_predictions("validation") for number in (1, 2)]
    for level, effect in enumerate(found, start=1):
        differences = []
        for seed in (0, 1):
            ours = finished.trial_run(1 + level * 2 + seed).read_predictions("validation")
            theirs = base[seed]
            right = ours["probabilities"].argmax(1) == ours["labels"]
            differences.append(
                right.mean() - (theirs["probabilities"].argmax(1) == theirs["labels"]).mean()
            )
        assert effect.differences == pytest.approx(differences)
        assert effect.estimate is not None
        assert effect.estimate.difference == pytest.approx(np.mean(differences))


def test_a_finished_ablation_trains_nothing_again(photos: Path, finished: Study) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.path.rglob("predictions/*")}
    lines: list[Any] = []
    again = ablated(photos, finished.path, show=lines.append)
    assert again.trials() == finished.trials()
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert not [line for line in lines if str(line).startswith("training ")]


def test_an_ablation_that_asks_for_something_else_is_refused(photos: Path, finished: Study) -> None:
    with pytest.raises(MismatchError, match="seeds was 2, now 3"):
        ablated(photos, finished.path, seeds=3)
    with pytest.raises(MismatchError, match="epochs"):
        ablated(photos, finished.path, settings={"train.epochs": 2})


def test_two_at_once_are_refused(photos: Path, finished: Study) -> None:
    with finished.lock(), pytest.raises(InUseError):
        ablated(photos, finished.path)


def test_what_does_not_fit_into_the_minutes_is_not_begun_and_said(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    # A clock that jumps to the end of the minutes once the base has been trained with both seeds.
    late_s = 0.0
    monkeypatch.setattr(
        ablation, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + late_s)
    )

    def show(line: Any) -> None:
        nonlocal late_s
        lines.append(str(line))
        if sum(each.startswith("the base: ") for each in lines) == 2:
            late_s = 30 * 60.0

    study = ablated(photos, tmp_path / "a", minutes=30.0, show=show)
    assert [trial.status for trial in study.trials()] == ["finished", "finished"]
    assert any("no time is left for" in line for line in lines)
    assert any(each["event"] == "not started" for each in study.events.read())
    assert all(effect.estimate is None for effect in of_study(study))
    late_s = 0.0
    # More minutes are no other question: the rest is done now.
    whole = ablated(photos, tmp_path / "a", minutes=60.0)
    assert {trial.status for trial in whole.trials()} == {"finished"}
    assert all(effect.estimate is not None for effect in of_study(whole))


def test_minutes_too_few_for_the_base_say_how_many_are_needed(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late_s = 0.0
    monkeypatch.setattr(
        ablation, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + late_s)
    )
    late_s = 30 * 60.0
    with pytest.raises(UsageError, match="too short: starting and opening the data") as caught:
        ablated(photos, tmp_path / "a", minutes=30.0, started_at=time.monotonic())
    assert "--minutes" in caught.value.fix
    assert not (tmp_path / "a").exists()
    late_s = 0.0
    lines: list[str] = []

    def show(line: Any) -> None:
        nonlocal late_s
        lines.append(str(line))
        if str(line).startswith("the base: "):
            late_s = 30 * 60.0

    # One of the two trainings of the base: what one takes is known then.
    with pytest.raises(UsageError, match="one training takes about") as caught:
        ablated(photos, tmp_path / "a", minutes=30.0, show=show)
    assert "the same command with --minutes" in caught.value.fix
    assert any("trainings left take about" in line for line in lines)
    # It was kept, and more minutes go on from there.
    assert [trial.status for trial in Study.open(tmp_path / "a").trials()] == ["finished"]


def test_a_level_that_fails_is_said_and_the_others_go_on(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverges(path: Path, shared: Any, config: Config, **how: Any) -> Any:
        if config.train.accumulate == 4:
            raise TrainingError("the loss is not finite")
        return train_and_answer(path, shared, config, **how)

    monkeypatch.setattr(ablation, "train_and_answer", diverges)
    lines: list[str] = []
    study = ablated(photos, tmp_path / "a", show=lambda line: lines.append(str(line)))
    assert study.report_path.exists()
    failed = [trial for trial in study.trials() if trial.status == "failed"]
    assert {trial.origin for trial in failed} == {"accumulation: batches in 4 parts"}
    assert lines.count("failed: the loss is not finite") == len(failed) == 2
    found = {each.factor: each for each in of_study(study)}
    assert found["accumulation"].verdict == "failed"
    assert found["accumulation"].reason == "the loss is not finite"
    assert found["dropout"].estimate is not None


def test_a_base_that_fails_ends_it(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="the base failed with every seed"):
        ablated(photos, tmp_path / "a", settings={"train.learning_rate": 1e30, "train.epochs": 10})


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"seeds": 1}, "two or more"),
        ({"minutes": 0.0}, "some time"),
        ({"factors": ["flip"]}, "no factor 'flip'"),
        ({"factors": [""]}, "a factor has no name"),
        ({"settings": {"train.epochs": None, "train.minutes": 1.0}}, "equal epochs"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    photos: Path, tmp_path: Path, how: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        ablated(photos, tmp_path / "a", **how)
    assert not Study.exists(tmp_path / "a")


def test_the_command_prints_a_table_or_json(photos: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "vidi", "ablate", str(photos), "--factors", "accumulation"]
    words += ["--seeds", "2", "--out", str(tmp_path / "a")]
    words += [f"--set={name}={value}" for name, value in SETTINGS.items()]
    table = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "batches in 4 parts" in table.stdout
    assert "points of validation accuracy" in table.stdout
    again = subprocess.run([*words, "--json"], capture_output=True, text=True, check=True)
    printed = json.loads(again.stdout)
    assert printed["effects"][0]["factor"] == "accumulation"
    assert printed["effects"][0]["estimate"]["interval"]


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_answers(
    photos: Path, tmp_path: Path, finished: Study
) -> None:
    program = (
        "import sys, vidi; settings = " + repr(SETTINGS) + "; "
        "vidi.ablate(sys.argv[1], settings=settings, out=sys.argv[2], seeds=2,"
        " factors=['accumulation', 'dropout'])"
    )
    rng = np.random.default_rng(8)
    done: dict[int, bytes] = {}
    for kill in range(40):
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(photos), str(tmp_path / "a")],
            stderr=subprocess.DEVNULL,
            env=os.environ,
        )
        try:
            # The last one may end.
            limit_s = None if kill >= 15 else 3.0 + float(rng.uniform(0, 3.0))
            assert process.wait(limit_s) == 0
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        if Study.exists(tmp_path / "a"):
            study = Study.open(tmp_path / "a")
            for trial in study.trials():
                path = study.trial_run_path(trial.number)
                if trial.status == "finished":
                    kept = (path / "predictions" / "validation.npz").read_bytes()
                    # What is finished is not done again.
                    assert done.setdefault(trial.number, kept) == kept
    study = Study.open(tmp_path / "a")
    assert all(trial.status == "finished" or trial.retries for trial in study.trials())
    for trial, whole in zip(study.trials(), finished.trials(), strict=True):
        if trial.status == "finished":
            ours = study.trial_run(trial.number).read_predictions("validation")
            theirs = finished.trial_run(trial.number).read_predictions("validation")
            assert np.array_equal(ours["probabilities"], theirs["probabilities"])
            assert [r.accuracy for r in trial.rungs] == [r.accuracy for r in whole.rungs]


def test_workers_train_the_same_and_a_killed_one_costs_nothing_but_time(
    photos: Path, finished: Study, tmp_path: Path
) -> None:
    killed: list[int] = []
    # Other tests of this process may have left a server running.
    before = set(psutil.Process().children())

    def workers() -> list[psutil.Process]:
        return [child for child in psutil.Process().children() if child not in before]

    def show(line: Any) -> None:
        # At work on the first training.
        if str(line).startswith("training 2 of") and not killed:
            child = workers()[0]
            killed.append(child.pid)
            child.kill()

    study = ablated(photos, tmp_path / "a", workers=2, show=show)
    assert killed
    assert sorted(trial.retries for trial in study.trials())[-1] == 1
    assert sum(trial.retries for trial in study.trials()) == 1

    def told(one: Study) -> list[Any]:
        return [(each.number, each.settings, each.status, each.last and each.last.accuracy)
                for each in one.trials()]  # fmt: skip

    assert told(study) == told(finished)
    ours, its = ([effect.differences for effect in of_study(one)] for one in (study, finished))
    assert ours == its
    assert not workers()


def test_no_workers_are_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="workers = 0"):
        ablated(photos, tmp_path / "a", workers=0)
