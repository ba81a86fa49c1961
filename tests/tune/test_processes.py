"""Searches with processes that train: warm, killed, and none left behind."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import vidi
from vidi.config import parse
from vidi.study import Study

SPACE = "[space]\ntrain.learning_rate = { log_uniform = [0.01, 1.0] }\n"
SETTINGS = {
    "model.name": "mlp",
    "train.epochs": 3,
    "train.batch_size": 64,
    "machine.probe": "never",
    "machine.threads": 1,
}


def command(out: Path, space: Path, *more: str) -> list[str]:
    settings = [f"--set={name}={json.dumps(value)}" for name, value in SETTINGS.items()]
    start = [sys.executable, "-m", "vidi", "tune", "digits", "--out", str(out)]
    return [*start, "--space", str(space), "--json", *settings, *more]


def told(study: Path) -> list[Any]:
    """What must not depend on kills."""
    return [
        (one.number, one.settings, one.status, [(r.step, r.accuracy) for r in one.rungs])
        for one in Study.open(study).trials()
    ]


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("space") / "space.toml"
    path.write_text(SPACE)
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, space: Path) -> tuple[Path, Any]:
    out = tmp_path_factory.mktemp("whole") / "s"
    done = subprocess.run(
        command(out, space, "--trials", "6"), check=True, capture_output=True, text=True
    )
    return out, json.loads(done.stdout)


def test_a_search_on_the_command_line_judges_its_answer_on_test_images(
    whole: tuple[Path, Any],
) -> None:
    out, said = whole
    study = Study.open(out)
    assert (said["split"], said["trials"]) == ("test", 6)
    assert said["n_evaluated"] == 359
    assert said["accuracy"] > 0.6
    assert vidi.Run.open(study.final_path).evaluated_splits() == ("test", "validation")
    for trial in study.trials():
        assert study.trial_run(trial.number).evaluated_splits() == ()
    config = parse(study.best_path.read_text())
    assert config.model.name == "mlp"
    best = next(one for one in study.trials() if one.number == study.decided["answer"])
    assert config.train.learning_rate == best.settings.get("train.learning_rate")


def test_a_search_whose_processes_are_killed_ends_with_the_same_trials(
    tmp_path: Path, space: Path, whole: tuple[Path, Any]
) -> None:
    # At once when a trial has begun: however fast the machine, there is something left to lose.
    killed = _until_done(tmp_path / "s", space, random.Random(5), kills=3, within_s=0.0)
    assert killed
    assert told(tmp_path / "s") == told(whole[0])


@pytest.mark.slow
def test_kills_at_random_moments_lose_and_repeat_nothing(
    tmp_path: Path, space: Path, whole: tuple[Path, Any]
) -> None:
    kills = int(os.environ.get("VIDI_TUNE_KILLS", "15"))
    done = attempt = 0
    while done < kills:
        attempt += 1
        out = tmp_path / f"s{attempt}"
        done += _until_done(out, space, random.Random(attempt), kills=min(5, kills - done))
        assert told(out) == told(whole[0])


def _until_done(
    out: Path, space: Path, chance: random.Random, *, kills: int, within_s: float = 2.5
) -> int:
    """Runs the search again and again, killing it or its workers; how often it was killed."""
    killed = 0
    while True:
        process = subprocess.Popen(
            command(out, space, "--trials", "6"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        if killed < kills and _killed(process, out, chance, killed + 1, within_s):
            killed += 1
        _, said = process.communicate(timeout=300)
        if process.returncode == 0:
            return killed
        assert process.returncode == -signal.SIGKILL, said


def _killed(
    process: subprocess.Popen[str],
    out: Path,
    chance: random.Random,
    num_trials: int,
    within_s: float,
) -> bool:
    """Kills the search or one of its workers, at a random moment after so many trials have begun;
    False: it was done before."""
    _wait_for(lambda: process.poll() is not None or _trials(out / "trials") >= num_trials)
    time.sleep(chance.uniform(0.0, within_s))
    children = _children(process.pid)
    if process.poll() is not None:
        return False
    if chance.random() < 0.5 and children:
        children[0].kill()
        return True
    process.kill()
    # Nobody is left behind.
    _wait_for(lambda: not any(map(_lives, children)), 10.0)
    return True


def _trials(folder: Path) -> int:
    return len(list(folder.glob("*.json"))) if folder.is_dir() else 0


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _wait_for(condition: Callable[[], bool], limit_s: float = 600.0) -> None:
    until = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.02)


@pytest.mark.slow
def test_ctrl_c_ends_with_an_answer_and_130(tmp_path: Path, space: Path) -> None:
    out = tmp_path / "s"
    process = subprocess.Popen(
        command(out, space, "--trials", "200"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    _wait_for(lambda: process.poll() is not None or _trials(out / "trials") > 3)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert vidi.Run.open(out / "final").evaluated_splits() == ("test", "validation")


@pytest.mark.slow
def test_minutes_are_kept(tmp_path: Path, space: Path) -> None:
    began_at = time.monotonic()
    subprocess.run(
        [
            part
            for part in command(tmp_path / "s", space, "--minutes", "0.6")
            if "epochs" not in part
        ],
        check=True,
        capture_output=True,
    )
    assert time.monotonic() - began_at <= 0.6 * 60 + 3
    study = Study.open(tmp_path / "s")
    assert study.trials()
    assert vidi.Run.open(study.final_path).evaluated_splits() == ("test", "validation")


@pytest.mark.slow
def test_trials_run_on_a_ray_cluster_and_survive_the_loss_of_an_actor(
    tmp_path: Path, space: Path, whole: tuple[Path, Any]
) -> None:
    pytest.importorskip("ray")
    out = tmp_path / "s"
    process = subprocess.Popen(
        command(out, space, "--trials", "6", "--ray", "local"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    _wait_for(lambda: process.poll() is not None or _trials(out / "trials") > 1)
    actors = [one for one in _children(process.pid) if "_Actor" in _name(one)]
    assert actors
    actors[0].kill()
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert told(out) == told(whole[0])


def _name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def test_a_name_of_nothing_in_a_space_ends_it_at_once_in_words_and_json(tmp_path: Path) -> None:
    space = tmp_path / "space.toml"
    space.write_text('[space]\ntrain.optimizer = { choice = ["sgd", "adamww"] }\n')
    done = subprocess.run(
        command(tmp_path / "s", space, "--trials", "2"), capture_output=True, text=True
    )
    assert done.returncode == 2
    said = json.loads(done.stdout)
    assert said["error"] == "there is no optimizer 'adamww'"
    assert (said["fix"], said["exit_code"]) == ("did you mean 'adamw'?", 2)
    assert "there is no optimizer 'adamww'" in done.stderr
    # No data were opened, and no study is left.
    assert "digits:" not in done.stderr
    assert not (tmp_path / "s").exists()
