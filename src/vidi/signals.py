"""Ctrl-C, `kill` and a closed terminal: the first asks to stop, the second stops at once."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

# SIGHUP is what a closed terminal sends; Windows has no such signal.
_WATCHED = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


_SAME_SIGNAL_S = 2.0


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

    # A launcher of several processes passes on what the terminal has sent to all of them already.
    launched = "TORCHELASTIC_RUN_ID" in os.environ
    noted_at = 0.0

    def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - a handler takes both
        nonlocal noted_at
        if stop:
            if launched and time.monotonic() - noted_at < _SAME_SIGNAL_S:
                return
            os._exit(128 + number)
        noted_at = time.monotonic()
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
