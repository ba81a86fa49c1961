"""Work on many rows that may hang: a read from a dead server or a dying disk never returns.

Nothing can interrupt such a read. So the work is done by a thread that can be left behind, while
whoever wants the results looks at the clock.
"""

from __future__ import annotations

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
    """Rows after one another, in a thread of its own; `began_at` is None while it may not go on."""

    def __init__(
        self, work: Callable[[int], None], rows: Sequence[int], may_go: Callable[[], bool]
    ) -> None:
        self.num_done = 0
        self.began_at: float | None = None
        self.error: BaseException | None = None
        self.stopped = False
        self.over = threading.Event()
        self._work, self._rows, self._may_go = work, rows, may_go
        threading.Thread(target=self._run, name="vidi-rows", daemon=True).start()

    def _run(self) -> None:
        try:
            for row in self._rows:
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
        look_s = min(_LOOK_S, limit_s / 4)
        while not attempt.over.wait(look_s) and not attempt.is_late(limit_s):
            pass
        if attempt.error is not None:
            raise attempt.error
        if attempt.stopped:
            return False
        if attempt.over.is_set():
            break
        done += attempt.num_done
        late(rows[done])
        done += 1
    return True
