"""The clock of a study: what is left of its minutes, and what was spent, whatever ends it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Final, NamedTuple

from vidi.study import Study

# The time is written down so often, for whoever goes on after a kill.
KEEP_EVERY_S: Final = 0.25


class Clock(NamedTuple):
    """The budget; time in which nothing ran does not count."""

    started_at: float
    budget_s: float
    before_s: float

    @property
    def spent_s(self) -> float:
        return time.monotonic() - self.started_at + self.before_s

    @property
    def left_s(self) -> float:
        return self.budget_s - self.spent_s

    @property
    def ends_at(self) -> float:
        """`time.monotonic()` when the time is over."""
        return self.started_at + self.budget_s - self.before_s


@contextlib.contextmanager
def kept(study: Study, clock: Clock) -> Iterator[None]:
    """Inside, the study always knows how much time was spent, however this ends."""
    over = threading.Event()

    def keep() -> None:
        while True:
            # A disk that is full costs a continuation a part of its clock, and nothing else.
            with contextlib.suppress(OSError):
                study.keep_spent(clock.spent_s)
            if over.wait(KEEP_EVERY_S):
                return

    keeping = threading.Thread(target=keep, name="vidi-clock", daemon=True)
    keeping.start()
    try:
        yield
    finally:
        over.set()
        keeping.join()
        with contextlib.suppress(OSError):
            study.keep_spent(clock.spent_s)
