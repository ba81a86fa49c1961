"""Searches on a Ray cluster, which is made up here: actors are threads, and trainings formulas."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest

import vidi
from vidi.config import parse
from vidi.errors import Interrupted, UsageError
from vidi.signals import watched
from vidi.space import log_uniform
from vidi.study import Study
from vidi.tune import cluster, search, session
from vidi.tune.cluster import Node, Share, fair_share

from .conftest import Imagined, NoMirror


class RayError(Exception):
    pass


class Answer:
    """What an actor was asked for, once it is there."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.value: Any = None


class Actor:
    """An object whose methods run in threads, as Ray's do where several may run at a time."""

    def __init__(self, made: Any, share: tuple[float, float], room: list[float]) -> None:
        """made: None while there is no room for it. room: of the machine that it is on."""
        self.made = made
        self.share = share
        self.room = room
        self.dead = threading.Event()
        self.waiting: list[Answer] = []
        self._work: SimpleQueue[Callable[[], None]] = SimpleQueue()
        if made is not None:
            threading.Thread(target=self._handle, daemon=True).start()

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *given: self._asked(name, *given))

    def _asked(self, name: str, *given: Any) -> Answer:
        answer = Answer()
        self.waiting.append(answer)
        if self.dead.is_set():
            answer.value = RayError("dead")
            answer.done.set()
        elif self.made is not None:

            def do() -> None:
                answer.value = getattr(self.made, name)(*given)
                answer.done.set()

            if name == "handle":
                # Training takes its time; everything else is answered meanwhile.
                self._work.put(do)
            else:
                do()
        return answer

    def _handle(self) -> None:
        while True:
            self._work.get()()


class MadeUpRay:
    """A cluster of so many machines, with what the search asks of Ray."""

    exceptions = SimpleNamespace(RayError=RayError)

    def __init__(self, *nodes: tuple[float, float]) -> None:
        self.free = [list(node) for node in nodes]
        self.told = [
            {"Alive": True, "Resources": {"CPU": cores, "GPU": cards}} for cores, cards in nodes
        ]
        self.actors: list[Actor] = []

    def is_initialized(self) -> bool:
        return False

    def init(self, **_: Any) -> None:
        pass

    def shutdown(self) -> None:
        pass

    def nodes(self) -> Sequence[Mapping[str, Any]]:
        return [*self.told, {"Alive": False, "Resources": {"CPU": 64.0}}]

    def remote(self, kind: Any) -> Any:
        def options(*, num_cpus: float, num_gpus: float, **_: Any) -> Any:
            return SimpleNamespace(remote=lambda: self._placed(kind, (num_cpus, num_gpus)))

        return SimpleNamespace(options=options)

    def _placed(self, kind: Any, share: tuple[float, float]) -> Actor:
        fits = [one for one in self.free if one[0] >= share[0] and one[1] >= share[1]]
        actor = Actor(kind() if fits else None, share, fits[0] if fits else [0.0, 0.0])
        actor.room[:] = [actor.room[0] - share[0], actor.room[1] - share[1]]
        self.actors.append(actor)
        return actor

    def wait(
        self, answers: list[Answer], *, num_returns: int, timeout: float
    ) -> tuple[list[Answer], list[Answer]]:
        until = time.monotonic() + timeout
        while True:
            done = [one for one in answers if one.done.is_set()]
            if len(done) >= num_returns or time.monotonic() >= until:
                return done, [one for one in answers if not one.done.is_set()]
            time.sleep(0.001)

    def get(self, answer: Answer) -> Any:
        assert answer.done.is_set()
        if isinstance(answer.value, Exception):
            raise answer.value
        return answer.value

    def kill(self, actor: Actor) -> None:
        if not actor.dead.is_set():
            actor.room[:] = [actor.room[0] + actor.share[0], actor.room[1] + actor.share[1]]
        actor.dead.set()
        for answer in actor.waiting:
            if not answer.done.is_set():
                answer.value = RayError("killed")
                answer.done.set()


# Trials that take for ever, and whether they have begun.
SLOW: dict[str, threading.Event] = {}


class MadeUpSession:
    """Does what the real one does with messages, without data and without training."""

    def __init__(self, send: Callable[[Mapping[str, Any]], None]) -> None:
        self._send = send
        self._is_open = False
        self._imagined = Imagined()

    def handle(self, message: Mapping[str, Any]) -> None:
        self._is_open |= message["do"] == "open"
        if not self._is_open:
            why = {"error": "UsageError", "message": "a worker has to open the data first"}
            self._send({"kind": "failed", "fix": "", "exit_code": 2, **why})
            return
        name = Path(message.get("path", "")).name
        if name not in SLOW:
            self._send(self._imagined._done(message))
            return
        SLOW[name].set()
        with watched() as stop:
            while not stop and name in SLOW:
                time.sleep(0.001)
        if not stop:
            return
        self._imagined._done(message)
        self._send({"kind": "stopped", "message": "saved"})
        raise Interrupted("stopped", signal_number=signal.SIGTERM)


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> Callable[..., MadeUpRay]:
    monkeypatch.setattr(session, "Session", MadeUpSession)
    monkeypatch.setattr(search, "Mirror", NoMirror)
    monkeypatch.setattr(cluster, "_SAID_S", 0.05)
    monkeypatch.setattr(cluster, "ROOM_S", 0.1)
    monkeypatch.setattr(cluster, "_POLL_S", 0.002)
    SLOW.clear()

    def make(*nodes: tuple[float, float]) -> MadeUpRay:
        ray: Any = MadeUpRay(*nodes)
        monkeypatch.setitem(sys.modules, "ray", ray)
        return ray  # type: ignore[no-any-return]

    return make


def searched(out: Path, *, workers: int, **changes: Any) -> Study:
    given: dict[str, Any] = {
        "settings": {"model.name": "mlp", "train.epochs": 9, "train.batch_size": 64},
        "space": {"train.learning_rate": log_uniform(1e-3, 1.0)},
        "trials": 6,
    }
    return vidi.tune("made up", out=out, workers=workers, ray="auto", **{**given, **changes})


def test_a_search_on_a_cluster_ends_with_an_answer(
    tmp_path: Path, made_up: Callable[..., MadeUpRay]
) -> None:
    ray = made_up((16.0, 0.0), (8.0, 0.0))
    study = searched(tmp_path / "s", workers=3)
    assert len(study.trials()) == 6
    assert vidi.Run.exists(study.final_path)
    assert [actor.share for actor in ray.actors] == [(8, 0.0)] * 3
    # A trial computes with what its worker has, wherever that is.
    for trial in study.trials():
        config = parse(study.trial_run(trial.number).text("config"))
        assert config.machine.threads == 8


@pytest.mark.parametrize(
    ("number", "has_answer"), [(signal.SIGINT, True), (signal.SIGTERM, False)], ids=["int", "term"]
)
def test_a_signal_saves_what_actors_are_at(
    tmp_path: Path, made_up: Callable[..., MadeUpRay], number: int, has_answer: bool
) -> None:
    made_up((4.0, 0.0))
    SLOW["0004"] = threading.Event()

    def stop_it() -> None:
        SLOW["0004"].wait(30)
        os.kill(os.getpid(), number)

    threading.Thread(target=stop_it, daemon=True).start()
    with pytest.raises(Interrupted, match="everything is saved") as caught:
        searched(tmp_path / "s", workers=1)
    assert caught.value.status == 128 + number
    study = Study.open(tmp_path / "s")
    assert study.trial_run(4).checkpoint_steps()
    assert vidi.Run.exists(study.final_path) == has_answer
    SLOW.clear()
    assert len(searched(tmp_path / "s", workers=1).trials()) == 6


def test_an_actor_that_is_lost_is_replaced_and_opens_the_data_first(
    tmp_path: Path, made_up: Callable[..., MadeUpRay]
) -> None:
    ray = made_up((4.0, 0.0), (4.0, 0.0))
    SLOW["0002"] = threading.Event()

    def lose_it() -> None:
        SLOW["0002"].wait(30)
        ray.kill(ray.actors[0])
        SLOW.clear()

    threading.Thread(target=lose_it, daemon=True).start()
    trials = searched(tmp_path / "s", workers=1).trials()
    assert [one.number for one in trials if one.retries] == [2]
    assert len(trials) == 6


def test_with_room_for_fewer_the_search_begins_with_those(
    tmp_path: Path, made_up: Callable[..., MadeUpRay]
) -> None:
    made_up((4.0, 0.0))
    settings = {"model.name": "mlp", "train.epochs": 9, "machine.threads": 2}
    lines: list[str] = []
    study = searched(tmp_path / "s", workers=3, settings=settings, show=lines.append)
    assert len(study.trials()) == 6
    (said,) = [line for line in lines if "has no room" in line]
    assert "1 of 3 workers with 2 cores each" in said
    assert "--workers 2" in said
    settings["machine.threads"] = 8
    with pytest.raises(UsageError, match=r"no room for 3 of 3 workers with 8 cores") as caught:
        searched(tmp_path / "other", workers=3, settings=settings)
    assert "machine.threads" in caught.value.fix


@pytest.mark.parametrize(
    ("nodes", "size", "expected"),
    [
        # As many cores for each as leave room for all.
        ([Node(16, 0)], 1, Share(16, 0.0)),
        ([Node(16, 0)], 3, Share(5, 0.0)),
        ([Node(16, 0), Node(4, 0)], 2, Share(8, 0.0)),
        ([Node(16, 0), Node(4, 0)], 5, Share(4, 0.0)),
        # A graphics card each, or a part of one, and no worker where there is none.
        ([Node(16, 2)], 2, Share(8, 1.0)),
        ([Node(16, 2)], 4, Share(4, 0.5)),
        ([Node(16, 1)], 3, Share(5, 0.3333)),
        ([Node(32, 2), Node(64, 0)], 2, Share(16, 1.0)),
        ([Node(16, 1), Node(8, 1)], 2, Share(8, 1.0)),
        # More than there is room for.
        ([Node(2, 0)], 5, Share(1, 0.0)),
        ([], 2, Share(1, 0.0)),
    ],
)
def test_workers_share_a_cluster_fairly(nodes: list[Node], size: int, expected: Share) -> None:
    assert fair_share(nodes, size) == expected


def test_a_worker_asks_for_what_the_user_gives_it() -> None:
    assert fair_share([Node(16, 2)], 2, cores=3) == Share(3, 1.0)
    assert fair_share([Node(16, 2), Node(64, 0)], 2, cards=False) == Share(32, 0.0)
