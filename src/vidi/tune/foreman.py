"""Who of the crew is at what: opening the data, at work, free or gone.

A worker is given work once it has the data open. The process in place of one that died opens them
anew while the others go on, and one that tells nothing for too long is ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, final

from vidi import storage
from vidi.errors import TrainingError
from vidi.tune.workers import ENDINGS, Crew, error_of

# How often in a row a worker may die of the same before it is given up.
MAX_RETRIES: Final = 2
# A worker that opens the data may look for copies among them for long, and tells nothing meanwhile.
OPENING_TIMEOUT_S: Final = 1800.0
# A pause of the whole machine that is longer than this is not counted against the workers.
_PAUSE_S: Final = 1.0


class Outcome(NamedTuple):
    """How what a worker was given ended: kind "done", "failed", "stopped" or "died" in "message".

    hung: it was ended because it told nothing.
    """

    worker: int
    message: Mapping[str, Any]
    hung: bool


@dataclass(slots=True)
class _Task:
    opens: bool
    timeout_s: float | None
    heard_at: float
    hangs: bool = False


@final
class Foreman:
    """Gives the workers of a crew something to do, and says what came of it.

    Args:
        opening: what a worker is told first, so that it has the data open.
        log_path: where they write what is not for us.
        say: told what the first that opens the data says meanwhile, and who is given up.
    """

    def __init__(
        self,
        crew: Crew,
        opening: Mapping[str, Any],
        *,
        log_path: Path,
        say: Callable[[str], None],
    ) -> None:
        self._crew = crew
        self._opening = opening
        self._log_path = log_path
        self._say = say
        self._tasks: dict[int, _Task] = {}
        self._free: set[int] = set()
        self._given_up: set[int] = set()
        self._deaths = [0] * crew.size
        self._heard_at = time.monotonic()
        # What the first that had the data open told of them.
        self.facts: Mapping[str, Any] | None = None

    @property
    def free(self) -> list[int]:
        """Who has the data open and nothing to do."""
        return sorted(self._free)

    @property
    def all_open(self) -> bool:
        """Whether everybody who can open the data has done so."""
        return not self._closed and not any(task.opens for task in self._tasks.values())

    def open_one(self) -> None:
        """Has somebody open the data, unless somebody has, or is at it."""
        if not self._free and not self._tasks:
            self._open(self._closed[0])

    def open_all(self) -> None:
        """Has everybody open the data who has not."""
        for worker in self._closed:
            self._open(worker)

    def give(
        self, worker: int, message: Mapping[str, Any], *, timeout_s: float | None = None
    ) -> None:
        """Gives somebody who is free something to do; who tells nothing for so long is ended."""
        self._free.remove(worker)
        self._tasks[worker] = _Task(False, timeout_s, time.monotonic())
        self._crew.send(worker, message)

    def hear(self, timeout_s: float) -> Outcome | None:
        """What came of something that was given; None when nothing did within that time.

        Raises what opening the data came to, where it is for all the same; TrainingError when
        nobody is left who can open them.
        """
        event = self._crew.wait(timeout_s)
        now = time.monotonic()
        if now - self._heard_at > _PAUSE_S + timeout_s:
            # The whole machine stood still, or we did: nobody is to blame for that.
            for task in self._tasks.values():
                task.heard_at += now - self._heard_at
        self._heard_at = now
        outcome = None if event is None else self._taken(event.worker, event.message)
        for worker, task in self._tasks.items():
            limit_s = task.timeout_s
            if not task.hangs and limit_s is not None and now - task.heard_at > limit_s:
                task.hangs = True
                self._crew.kill(worker)
        return outcome

    @property
    def _closed(self) -> list[int]:
        known = self._tasks.keys() | self._free | self._given_up
        return [worker for worker in range(self._crew.size) if worker not in known]

    def _open(self, worker: int) -> None:
        self._tasks[worker] = _Task(True, OPENING_TIMEOUT_S, time.monotonic())
        self._crew.send(worker, self._opening)

    def _taken(self, worker: int, message: Mapping[str, Any]) -> Outcome | None:
        kind, task = message["kind"], self._tasks.get(worker)
        if kind == "died":
            self._free.discard(worker)
        if task is None:
            return None
        task.heard_at = self._heard_at
        if kind == "line" and task.opens and self.facts is None:
            self._say(message["text"])
        if kind not in ENDINGS:
            return None
        del self._tasks[worker]
        if task.opens:
            self._opened(worker, message)
            return None
        if kind != "died":
            self._free.add(worker)
        return Outcome(worker, message, task.hangs)

    def _opened(self, worker: int, message: Mapping[str, Any]) -> None:
        match message["kind"]:
            case "done":
                self._deaths[worker] = 0
                self._free.add(worker)
                self.facts = self.facts or message["facts"]
            case "failed":
                raise error_of(message)
            case _:
                self._deaths[worker] += 1
                if self._deaths[worker] > MAX_RETRIES:
                    self._give_up(worker, str(message["message"]))

    def _give_up(self, worker: int, why: str) -> None:
        self._given_up.add(worker)
        what = f"worker {worker + 1} cannot open the data: {why}"
        if len(self._given_up) == self._crew.size:
            raise TrainingError(what, fix=f"see {storage.shown(self._log_path)}")
        self._say(f"{what}; the search goes on without it")
