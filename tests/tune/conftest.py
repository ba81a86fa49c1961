"""A crew that trains nothing: what a search does with what its workers say, in milliseconds."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vidi.config import parse
from vidi.facts import DatasetFacts, Facts, Machine
from vidi.run import Run
from vidi.tune import search
from vidi.tune.mirror import Mirror
from vidi.tune.workers import Event

FACTS = Facts(
    dataset=DatasetFacts(
        name="made up",
        fingerprint="f",
        classes=("a", "b"),
        counts={"train": (640, 640), "validation": (100, 100), "test": (100, 100)},
        height_px=(32, 32, 32),
        width_px=(32, 32, 32),
        grey=False,
        split_rule="folders",
    ),
    machine=Machine(
        platform="p",
        processor="p",
        physical_cores=2,
        usable_cores=2,
        memory_bytes=1 << 33,
        cpu_bfloat16=False,
        python="3",
        torch="2",
    ),
)


# Longer than any test here lets its workers be silent.
IDLE_S = 20.0


class Killed(BaseException):
    """What a kill of the search is in these tests: nothing of it runs any more."""


class Imagined:
    """Workers whose trainings are formulas.

    misdeed: asked before each message is done; what it returns is sent instead of the answer, and
    None lets it be done.
    """

    def __init__(self, misdeed: Callable[[Mapping[str, Any]], Any] | None = None) -> None:
        self.misdeed = misdeed or (lambda _: None)
        self.advanced: list[tuple[str, int]] = []
        self.sent: list[Mapping[str, Any]] = []
        self.killed: list[int] = []
        self.events: deque[Event] = deque()
        self.size = 1
        self.threads: int | None = None
        self.heard_at = 0.0
        # How many of the validation images a run answers rightly, by its name.
        self.right = {"0001": 150, "final": 150}
        self.at_work: set[int] = set()
        self.most_at_work = 0

    def __call__(self, size: int, log_path: Path) -> Imagined:
        del log_path
        self.size = size
        self.threads = 1 if size > 1 else None
        self.heard_at = time.monotonic()
        self.events.clear()
        self.at_work.clear()
        return self

    def send(self, worker: int, message: Mapping[str, Any]) -> None:
        self.sent.append(message)
        self.at_work.add(worker)
        self.most_at_work = max(self.most_at_work, len(self.at_work))
        answer = self.misdeed(message) or self._done(message)
        if answer != "silence":
            self.events.append(Event(worker, answer))

    def wait(self, timeout_s: float) -> Event | None:
        del timeout_s
        if self.events:
            self.heard_at = time.monotonic()
            event = self.events.popleft()
            self.at_work.discard(event.worker)
            return event
        assert time.monotonic() - self.heard_at < IDLE_S, "the search waits for nothing"
        return None

    def stop(self, worker: int) -> None:
        self.events.append(Event(worker, {"kind": "stopped", "message": ""}))

    def kill(self, worker: int) -> None:
        self.killed.append(worker)
        self.events.append(Event(worker, {"kind": "died", "message": "killed"}))

    def close(self) -> None:
        pass

    def _done(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        match message["do"]:
            case "open":
                return {"kind": "done", "facts": FACTS.model_dump(mode="json")}
            case "time":
                return {"kind": "done", "seconds_per_step": 0.01}
            case "finish":
                run = Run.create(Path(message["path"]), texts={"config": message["config"]})
                self._answers(run)
                if "test" in message["splits"]:
                    run.report_path.touch()
                return {"kind": "done", "result": {}}
            case "answers":
                self._answers(Run.open(Path(message["path"])))
                return {"kind": "done"}
            case "conclude":
                Run.open(Path(message["path"])).report_path.touch()
                return {"kind": "done", "result": {}}
            case "retrain":
                texts = {"config": message["config"], "replaces": "{}"}
                Run.create(Path(message["path"]), texts=texts).report_path.touch()
                return {"kind": "done", "result": {}}
        path, share = Path(message["path"]), message["shares"][message["rung"]]
        self.advanced.append((path.name, message["rung"]))
        step = round(share * 90)
        if not Run.exists(path):
            run = Run.create(path, texts={"config": message["config"], "plan": PLAN})
            with run.lock():
                run.save_checkpoint(step, {"model.safetensors": b"x"}, {})
        rate = parse(message["config"]).train.learning_rate or 0.2
        accuracy = (1 - abs(math.log10(rate) + 1) / 5) * (0.5 + share / 2)
        result = {
            "step": step,
            "accuracy": accuracy,
            "log_loss": 1 - accuracy,
            "seconds": 0.01,
            "finished": share == 1.0,
        }
        return {"kind": "done", "result": result}

    def _answers(self, run: Run) -> None:
        keep_answers(run, self.right[run.path.name], FACTS.dataset.num_images("validation"))


def keep_answers(run: Run, right: int, count: int) -> None:
    """Predictions of so many validation images, of which the first so many are right."""
    labels = np.arange(count) % 2
    guessed = np.where(np.arange(count) < right, labels, 1 - labels)
    probabilities = np.where(guessed[:, None] == np.arange(2), 0.9, 0.1).astype(np.float32)
    arrays: dict[str, Any] = {
        "ids": np.arange(count),
        "labels": labels,
        "probabilities": probabilities,
    }
    run.write_predictions("validation", arrays)


PLAN = '{"horizon_steps": 90}'


class NoMirror:
    """Making a database takes half a second, which most tests here need not wait for."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def show(self, *_: Any, **__: Any) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def imagined(monkeypatch: pytest.MonkeyPatch) -> Imagined:
    crew = Imagined()
    monkeypatch.setattr(search, "Processes", crew)
    monkeypatch.setattr(search, "Mirror", NoMirror)
    return crew


@pytest.fixture
def with_database(imagined: Imagined, monkeypatch: pytest.MonkeyPatch) -> Imagined:
    monkeypatch.setattr(search, "Mirror", Mirror)
    return imagined
