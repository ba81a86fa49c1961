"""Work on many rows that may hang: a read from a dead server or a dying disk never returns.

Nothing can interrupt such a read. So the work is done by a thread that can be left behind, while
whoever wants the results looks at the clock.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final, final

from vidi.errors import DataError

# How often the clock is looked at while somebody waits.
_LOOK_S: Final = 0.25
# So many reads that did not come back are no longer single bad files.
MOST_LATE: Final = 8


@final
class _Attempt:
    """Rows after one another, by another thread, until one of them is late."""

    def __init__(
        self, work: Callable[[int], None], rows: Iterator[int], may_go: Callable[[], bool]
    ) -> None:
        self.row = -1
        self.error: BaseException | None = None
        self.stopped = False
        self.over = threading.Event()
        self._work, self._rows, self._may_go = work, rows, may_go
        # None while no row is being worked on.
        self._began_at: float | None = None
        # Nobody waits for it any more, and the rows after this one are another thread's.
        self._abandoned = False
        self._lock = threading.Lock()

    def run(self) -> None:
        try:
            for row in self._rows:
                if not self._may_go():
                    self.stopped = True
                    return
                self.row, self._began_at = row, time.monotonic()
                self._work(row)
                with self._lock:
                    if self._abandoned:
                        return
                    self._began_at = None
        except BaseException as error:
            # Whoever waits raises it.
            self.error = error
        finally:
            self.over.set()

    def abandoned(self, limit_s: float) -> bool:
        """Whether its row took longer than that; it then ends with that row."""
        with self._lock:
            began_at = self._began_at
            self._abandoned = began_at is not None and time.monotonic() - began_at > limit_s
            return self._abandoned


@final
class _Hand:
    """A thread that does one attempt after another, until it is left behind or its maker is gone.

    One that lasts, because each new thread that computes with torch starts a team of OpenMP threads
    of its own: a new one for every block of rows made decoding a third slower.
    """

    def __init__(self) -> None:
        self._given: queue.SimpleQueue[_Attempt | None] = queue.SimpleQueue()
        threading.Thread(
            target=_work_off, args=(self._given,), name="vidi-rows", daemon=True
        ).start()

    def give(self, attempt: _Attempt) -> None:
        self._given.put(attempt)

    def leave(self) -> None:
        """It ends with what it is doing."""
        self._given.put(None)

    def __del__(self) -> None:
        self.leave()


def _work_off(given: queue.SimpleQueue[_Attempt | None]) -> None:
    while (attempt := given.get()) is not None:
        attempt.run()
        # Its rows are large, and the next ones may come late.
        del attempt


_OWN: Final = threading.local()


@final
class Late:
    """The rows that took longer than `limit_s`. From several threads.

    Raises DataError with the one that makes `MOST_LATE` of them: then it is not the files.
    """

    def __init__(self, limit_s: float, name: str, name_of: Callable[[int], str]) -> None:
        self.limit_s = limit_s
        self.rows: set[int] = set()
        self._name, self._name_of = name, name_of

    @property
    def words(self) -> str:
        return f"not read in {self.limit_s:g} s"

    def add(self, row: int) -> None:
        self.rows.add(row)
        if len(self.rows) >= MOST_LATE:
            raise DataError(
                f"{len(self.rows)} images of {self._name} were not read within {self.limit_s:g} s "
                f"each, e.g. {self._name_of(min(self.rows))}",
                fix="see whether the disk or server that they are on still answers, or give it "
                "longer: data.read_limit_s",
            )


def each_in_time(
    work: Callable[[int], None],
    rows: Iterable[int],
    late: Callable[[int], None],
    *,
    limit_s: float,
    may_go: Callable[[], bool] = lambda: True,
) -> bool:
    """`work` on every row, in order; those that take longer than `limit_s` are told to `late`.

    The thread of a late row is left behind: it may still write what it was to write, whenever it
    comes back, so what `work` writes to must not be used any more once a row was late.

    Args:
        rows: iterated over by the thread that works; what it does between two rows has no limit.
        late: may raise.
        may_go: asked before each row; may wait, which does not count. False ends it all.

    Returns:
        Whether it came to its end.
    """
    left = iter(rows)
    while True:
        attempt = _Attempt(work, left, may_go)
        hand: _Hand | None = getattr(_OWN, "hand", None)
        if hand is None:
            hand = _OWN.hand = _Hand()
        hand.give(attempt)
        look_s = min(_LOOK_S, limit_s / 4)
        while not attempt.over.wait(look_s):
            if attempt.abandoned(limit_s):
                break
        else:
            if attempt.error is not None:
                raise attempt.error
            return not attempt.stopped
        _OWN.hand = None
        hand.leave()
        late(attempt.row)
