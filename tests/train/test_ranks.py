"""Several processes on one machine: the same training as one, or an end in words."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from vidi.run import Run

SETTINGS: dict[str, object] = {
    "model.name": "mlp",
    "train.batch_size": 62,
    "train.label_smoothing": 0,
    "model.dropout": 0.0,
    "train.ema_decay": 0.9,
    "machine.threads": 1,
}


def command(out: Path, *options: str, **changes: object) -> list[str]:
    words = [sys.executable, "-m", "vidi", "train", "digits", "--out", str(out), *options]
    settings = {**SETTINGS, **{key.replace("__", "."): value for key, value in changes.items()}}
    for name, value in settings.items():
        words += ["--set", f"{name}={json.dumps(value)}"]
    return words


def trained(out: Path, *options: str, **changes: object) -> Run:
    done = subprocess.run(
        command(out, *options, **changes), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return Run.open(out)


def losses(run: Run) -> list[float]:
    return [line["loss"] for line in run.metrics.read() if line["kind"] == "train"]


def children(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def wait_for(condition: object, limit_s: float = 180.0) -> None:
    assert callable(condition)
    ends_at = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < ends_at, "waited too long"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained(tmp_path_factory.mktemp("alone") / "run", train__epochs=3)


def test_two_processes_learn_what_one_does(alone: Run, tmp_path: Path) -> None:
    run = trained(tmp_path / "run", "--nproc", "2", train__epochs=3, train__accumulate=2)
    ours, theirs = losses(run), losses(alone)
    assert len(ours) >= 50
    assert ours == pytest.approx(theirs, rel=1e-5)
    validations = [
        [(line["step"], line["accuracy"]) for line in one.metrics.read() if "log_loss" in line]
        for one in (run, alone)
    ]
    assert validations[0] == validations[1]
    counts = [json.loads(one.read_evaluation("test"))["n_evaluated"] for one in (run, alone)]
    assert counts[0] == counts[1] == 359


@pytest.mark.slow
def test_torchrun_starts_it_too(alone: Run, tmp_path: Path) -> None:
    words = command(tmp_path / "run", train__epochs=3)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*launcher, "-m", *words[2:]], check=True, capture_output=True, timeout=120)
    assert losses(Run.open(tmp_path / "run")) == pytest.approx(losses(alone), rel=1e-5)


@pytest.mark.slow
def test_a_run_of_one_process_is_continued_by_two_in_the_same_order(
    alone: Run, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(command(out, train__epochs=3, checkpoint__every_s=0.01))
    wait_for(lambda: any((out / "checkpoints").glob("step-*")))
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=30)
    run = trained(out, "--nproc", "2", train__epochs=3, checkpoint__every_s=0.01)
    assert losses(run) == pytest.approx(losses(alone), rel=1e-5)
    checkpoint, _ = run.newest_checkpoint()
    assert checkpoint is not None
    if process.returncode == 143:
        assert any("instead of 1" in note for note in checkpoint.state["notes"])


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Two processes in the middle of a long run."""
    words = command(
        tmp_path / "run", "--nproc", "2", train__epochs=4_000, checkpoint__every_s=0.2,
        machine__timeout_s=10,
    )  # fmt: skip
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: any((tmp_path / "run" / "checkpoints").glob("step-*")))
    yield process
    for one in [*children(process), psutil.Process(process.pid)] if process.poll() is None else []:
        one.kill()


@pytest.mark.slow
def test_when_one_is_killed_all_end_and_none_is_left(pair: subprocess.Popen[str]) -> None:
    workers = children(pair)
    assert len(workers) == 2
    workers[1].kill()
    started_at = time.monotonic()
    _, err = pair.communicate(timeout=60)
    assert time.monotonic() - started_at < 45
    assert pair.returncode != 0, err
    assert re.search(r"process \d of 2 was ended by SIGKILL", err), err
    assert not any(worker.is_running() for worker in workers)


@pytest.mark.slow
def test_one_that_stands_still_is_named(pair: subprocess.Popen[str]) -> None:
    workers = children(pair)
    standing = next(w for w in workers if w.environ()["RANK"] == "1")
    standing.suspend()
    try:
        wait_for(lambda: any(w.pid != standing.pid and not w.is_running() for w in workers))
    finally:
        standing.resume()
    _, err = pair.communicate(timeout=60)
    assert re.search(r"process 1 of 2 did not answer within 10 s", err), err


@pytest.mark.slow
def test_a_signal_stops_all_at_the_same_step_with_the_state_saved(
    pair: subprocess.Popen[str], tmp_path: Path
) -> None:
    pair.send_signal(signal.SIGTERM)
    _, err = pair.communicate(timeout=60)
    assert pair.returncode == 143, err
    stopped = re.search(r"stopped at step (\d+) of", err)
    assert stopped, err
    assert err.count("stopp") == 2, err
    assert "death signal" not in err
    assert int(stopped[1]) in Run.open(tmp_path / "run").checkpoint_steps()


@pytest.mark.slow
def test_after_a_kill_all_start_again_from_the_checkpoint(alone: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = command(out, "--nproc", "2", "--max-restarts", "2", train__epochs=3,
                    checkpoint__every_s=0.01)  # fmt: skip
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: any((out / "checkpoints").glob("step-*")))
        for worker in children(process):
            if worker.environ().get("RANK") == "1":
                os.kill(worker.pid, signal.SIGKILL)
        try:
            _, err = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            process.terminate()
            raise
    assert process.returncode == 0, err
    assert "all were started again (restart 1)" in err
    assert losses(Run.open(out)) == pytest.approx(losses(alone), rel=1e-5)


CRAMPED = """
import os
import torch
from torch import nn

class Cramped(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.head = nn.Linear(64, num_classes)

    def forward(self, images):
        if os.environ["RANK"] == "1" and self.training and len(images) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.head(images.flatten(1))
"""


@pytest.mark.slow
def test_one_that_runs_out_of_memory_halves_what_it_does_at_once(tmp_path: Path) -> None:
    (tmp_path / "cramped.py").write_text(CRAMPED)
    words = command(tmp_path / "run", "--nproc", "2", model__name="cramped:Cramped",
                    train__epochs=2)  # fmt: skip
    where = next(number for number, word in enumerate(words) if "dropout" in word)
    del words[where - 1 : where + 1]
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    done = subprocess.run(
        words, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    checkpoint, _ = Run.open(tmp_path / "run").newest_checkpoint()
    assert checkpoint is not None
    # What one learnt, all know when the run is continued: 31 images, 16, 8.
    assert checkpoint.state["training_limit"] == 8
