"""A run that runs out of memory goes on with fewer images at once, and learns the same."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vidi
from vidi.errors import Interrupted, OutOfMemory
from vidi.run import Run
from vidi.train import Progress

ERRORS: dict[str, Callable[[], Exception]] = {
    "device": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "processor": lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: 12"),
}
SETTINGS: dict[str, object] = {
    "train.epochs": 2,
    "train.batch_size": 64,
    "machine.threads": 1,
    "train.ema_decay": 0,
    "train.label_smoothing": 0,
}


class Small(nn.Module):
    """A network that has room for so many images, from a call on."""

    def __init__(self, num_classes: int, room: dict[str, Any]) -> None:
        super().__init__()
        self.room = room
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU())
        self.head = nn.Linear(32, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        self.room["calls"] += 1
        phase = "training" if self.training else "evaluation"
        if self.room["calls"] > self.room["after"] and len(images) > self.room[phase]:
            raise self.room["error"]()
        logits: Tensor = self.head(self.layers(images))
        return logits


def room(**changes: Any) -> dict[str, Any]:
    return {"calls": 0, "after": 0, "training": 999, "evaluation": 999,
            "error": ERRORS["device"], **changes}  # fmt: skip


def train(out: Path, space: dict[str, Any], **more: Any) -> Run:
    def small(num_classes: int) -> nn.Module:
        return Small(num_classes, space)

    return vidi.train("digits", settings=SETTINGS, out=out, model=small, **more)


def losses(run: Run) -> list[float]:
    return [line["loss"] for line in run.metrics.read() if line["kind"] == "train"]


def notes(run: Run) -> list[str]:
    checkpoint, _ = run.newest_checkpoint()
    assert checkpoint is not None
    return list(checkpoint.state["notes"])


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(tmp_path_factory.mktemp("straight") / "run", room())


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("after", [0, 30], ids=["at the start", "in the middle"])
def test_training_goes_on_with_smaller_parts_of_the_same_batches(
    after: int, error: str, straight: Run, tmp_path: Path
) -> None:
    run = train(tmp_path / "run", room(after=after, training=20, error=ERRORS[error]))
    # 64, 32, 16: what fits into 20.
    assert sum("training takes" in note for note in notes(run)) == 2
    assert losses(run) == pytest.approx(losses(straight), rel=1e-5)
    rates = [[r["learning_rate"] for r in one.metrics.read() if r["kind"] == "train"]
             for one in (run, straight)]  # fmt: skip
    assert rates[0] == rates[1]


def test_evaluation_halves_its_own_batches_and_leaves_training_alone(
    straight: Run, tmp_path: Path
) -> None:
    run = train(tmp_path / "run", room(evaluation=50))
    assert any("evaluation takes" in note for note in notes(run))
    assert not any("training takes" in note for note in notes(run))
    assert losses(run) == losses(straight)
    ours, theirs = (json.loads(one.read_evaluation("test")) for one in (run, straight))
    assert ours["n_evaluated"] == theirs["n_evaluated"]
    assert ours["accuracy"] == theirs["accuracy"]


def test_what_was_learnt_about_memory_is_kept_for_the_continuation(tmp_path: Path) -> None:
    space = room(training=20)

    def stop(what: object) -> None:
        if isinstance(what, Progress) and (what.step, what.phase) == (10, "train"):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        train(tmp_path / "run", space, show=stop)
    space["calls"] = 0
    run = train(tmp_path / "run", space)
    # Not tried again, so not noted again.
    assert sum("training takes" in note for note in notes(run)) == 2
    checkpoint, _ = run.newest_checkpoint()
    assert checkpoint is not None
    assert checkpoint.state["training_limit"] == 16


def test_when_not_one_image_fits_the_run_ends_in_words_and_is_saved(tmp_path: Path) -> None:
    with pytest.raises(OutOfMemory, match="not even one image") as caught:
        train(tmp_path / "run", room(after=5, training=0))
    assert caught.value.exit_code == 75
    assert Run.open(tmp_path / "run").checkpoint_steps()


def test_another_error_of_the_network_is_not_taken_for_it(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="mine"):
        train(tmp_path / "run", room(training=0, error=lambda: RuntimeError("mine")))
