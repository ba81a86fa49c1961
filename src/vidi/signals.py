"""Ctrl-C, `kill` and a closed terminal: the first asks to stop, the second stops at once."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from types import FrameType

# SIGHUP is what a closed terminal sends; Windows has no such signal.
_WATCHED = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


_SAME_SIGNAL_S = 2.0


def speaks() -> bool:
    """Whether this process tells the user what all do: the first of several, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def saving_first(number: int) -> str:
    """What is said by whoever saves and stops."""
    del number
    return "stopping: saving first (again: stop at once)"


def nothing_yet(number: int) -> str:
    """What is said by whoever has nothing to save."""
    del number
    return "stopping: nothing has begun yet (again: stop at once)"


class Stop:
    """Which signal asked to stop, if any did.

    said: what is told the user about a signal when it comes. Whoever watches keeps it true.
    """

    def __init__(self, said: Callable[[int], str] = saving_first) -> None:
        self.signal_number: int | None = None
        self.said = said

    def __bool__(self) -> bool:
        return self.signal_number is not None


# Who asks the work of this thread to stop, where no signal comes.
_GIVEN: ContextVar[Stop | None] = ContextVar("stop", default=None)


@contextlib.contextmanager
def obeying(stop: Stop) -> Iterator[None]:
    """Inside, in this thread, `watched` gives `stop`, which any thread may set."""
    token = _GIVEN.set(stop)
    try:
        yield
    finally:
        _GIVEN.reset(token)


class _Handler:
    """Notes the first signal, and ends the process at the second."""

    def __init__(self, stop: Stop) -> None:
        self.stop = stop
        # A launcher of several processes passes on what the terminal has sent to all of them.
        self._launched = "TORCHELASTIC_RUN_ID" in os.environ
        self._noted_at = 0.0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        del frame
        stop = self.stop
        if stop:
            if self._launched and time.monotonic() - self._noted_at < _SAME_SIGNAL_S:
                return
            os._exit(128 + number)
        self._noted_at = time.monotonic()
        stop.signal_number = number
        if not speaks():
            return
        # Written by the system call: a handler may interrupt a print.
        with contextlib.suppress(OSError, AttributeError, ValueError):
            os.write(sys.stderr.fileno(), f"\n{stop.said(number)}\n".encode())


@contextlib.contextmanager
def watched() -> Iterator[Stop]:
    """Inside, a first signal is only noted, for the caller to save and stop; a second one ends the
    process at once, which loses nothing but the work since the last checkpoint.

    One inside another has the same `Stop`, so that the second signal is the second wherever the
    first one came. Outside the main thread, where Python allows no signal handlers, nothing is
    watched but what `obeying` was given.
    """
    given = _GIVEN.get()
    if given is not None:
        yield given
        return
    if threading.current_thread() is not threading.main_thread():
        yield Stop()
        return
    outer = signal.getsignal(signal.SIGINT)
    if isinstance(outer, _Handler):
        yield outer.stop
        return
    handler = _Handler(Stop())
    before = {number: signal.signal(number, handler) for number in _WATCHED}
    try:
        yield handler.stop
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
