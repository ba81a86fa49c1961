"""Work on many rows that may hang: a read from a dead server or a dying disk never returns.

Nothing can interrupt such a read. So the work is done by a thread that can be left behind, while
whoever wants the results looks at the clock.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, final

from vidi.errors import DataError

# How often the clock is looked at while somebody waits.
_LOOK_S: Final = 0.25
# So many reads that did not come back are no longer single bad files.
MOST_LATE: Final = 8


@final
class _Attempt:
    """Rows after one another, by another thread; `began_at` is None while it may not go on."""

    def __init__(
        self, work: Callable[[int], None], rows: Sequence[int], may_go: Callable[[], bool]
    ) -> None:
        self.num_done = 0
        self.began_at: float | None = None
        self.error: BaseException | None = None
        self.stopped = False
        # Nobody waits for it any more.
        self.abandoned = False
        self.over = threading.Event()
        self._work, self._rows, self._may_go = work, rows, may_go

    def run(self) -> None:
        try:
            for row in self._rows:
                if self.abandoned:
                    return
                if not self._may_go():
                    self.stopped = True
                    return
                self.began_at = time.monotonic()
                self._work(row)
                self.began_at = None
                self.num_done += 1
        except BaseException as error:
            # Whoever waits raises it.
            self.error = error
        finally:
            self.over.set()

    def is_late(self, limit_s: float) -> bool:
        began_at = self.began_at
        return began_at is not None and time.monotonic() - began_at > limit_s


@final
class _Hand:
    """A thread that does one attempt after another, as long as whoever made it is there.

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

    def __del__(self) -> None:
        self._given.put(None)


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
    rows: Sequence[int],
    late: Callable[[int], None],
    *,
    limit_s: float,
    may_go: Callable[[], bool] = lambda: True,
) -> bool:
    """`work` on every row, in order; those that take longer than `limit_s` are told to `late`.

    The thread of a late row is left behind: it may still write what it was to write, whenever it
    comes back, so what `work` writes to must not be used any more once a row was late.

    Args:
        late: may raise.
        may_go: asked before each row; may wait, which does not count. False ends it all.

    Returns:
        Whether it came to its end.
    """
    done = 0
    while done < len(rows):
        attempt = _Attempt(work, rows[done:], may_go)
        hand: _Hand | None = getattr(_OWN, "hand", None)
        if hand is None:
            hand = _OWN.hand = _Hand()
        hand.give(attempt)
        look_s = min(_LOOK_S, limit_s / 4)
        while not attempt.over.wait(look_s) and not attempt.is_late(limit_s):
            pass
        if attempt.error is not None:
            raise attempt.error
        if attempt.stopped:
            return False
        if attempt.over.is_set():
            break
        attempt.abandoned = True
        _OWN.hand = None
        done += attempt.num_done
        late(rows[done])
        done += 1
    return True
