"""Ctrl-C, `kill` and a closed terminal: the first asks to stop, the second stops at once."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

# SIGHUP is what a closed terminal sends; Windows has no such signal.
_WATCHED = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


class Stop:
    """Which signal asked to stop, if any did."""

    def __init__(self) -> None:
        self.signal_number: int | None = None

    def __bool__(self) -> bool:
        return self.signal_number is not None


@contextlib.contextmanager
def watched() -> Iterator[Stop]:
    """Inside, a first signal is only noted, for the caller to save and stop; a second one ends the
    process at once, which loses nothing but the work since the last checkpoint.

    Outside the main thread, where Python allows no signal handlers, nothing is watched.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - a handler takes both
        if stop:
            os._exit(128 + number)
        stop.signal_number = number
        # Written by the system call: a handler may interrupt a print.
        with contextlib.suppress(OSError, AttributeError, ValueError):
            os.write(sys.stderr.fileno(), b"\nstopping: saving first (again: stop at once)\n")

    before = {number: signal.signal(number, note) for number in _WATCHED}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
