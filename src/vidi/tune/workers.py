"""Worker processes of a search: started once, kept warm, replaced when they die."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Final, NamedTuple, Protocol, final

from vidi.cores import usable_cores
from vidi.errors import (
    DataError,
    InUseError,
    MismatchError,
    StorageError,
    TrainingError,
    UsageError,
    VidiError,
)
from vidi.interpreter import options

# How long a worker may take to save and stop before it is killed.
GRACE_S: Final = 20.0
# What a worker says last of what it was asked to do, in one of these ways.
ENDINGS: Final = ("done", "failed", "died", "stopped")


class Event(NamedTuple):
    """What a worker sent; kind "died" when its process is gone, with the reason in "message"."""

    worker: int
    message: Mapping[str, Any]


class Crew(Protocol):
    """Workers by number, 0 to `size` - 1; processes here, actors on a Ray cluster."""

    @property
    def size(self) -> int: ...

    @property
    def threads(self) -> int | None:
        """What each may compute with; None: as many as its machine has cores."""

    def send(self, worker: int, message: Mapping[str, Any]) -> None:
        """Gives it something to do; it must have nothing else to do."""

    def wait(self, timeout_s: float) -> Event | None:
        """The next event of any of them; None when there was none for so long."""

    def stop(self, worker: int) -> None:
        """Asks it to save what it is doing and stop; it stays there for what comes next."""

    def kill(self, worker: int) -> None:
        """Ends it at once; an event of its death follows, and another takes its place when it is
        sent something."""

    def close(self) -> None: ...


@final
class Processes:
    """A crew of processes on this machine."""

    def __init__(self, size: int, log_path: Path) -> None:
        """log_path: what their libraries print, and what is said when one crashes."""
        self._size = size
        self._log_path = log_path
        self._events: queue.SimpleQueue[tuple[int, int, Mapping[str, Any]]] = queue.SimpleQueue()
        self._processes: dict[int, subprocess.Popen[str]] = {}
        # How often each place was filled: what a process sent that is gone is not listened to.
        self._lives = [0] * size
        self._reading: list[threading.Thread] = []
        for worker in range(size):
            self._start(worker)

    @property
    def size(self) -> int:
        return self._size

    @property
    def threads(self) -> int | None:
        return None if self._size == 1 else max(1, usable_cores() // self._size)

    def send(self, worker: int, message: Mapping[str, Any]) -> None:
        # One that is dead, but not heard of yet, is not replaced: what it was given would get lost
        # with it, or go to a process that does not have the data open.
        process = self._processes.get(worker) or self._start(worker)
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()

    def wait(self, timeout_s: float) -> Event | None:
        until = time.monotonic() + timeout_s
        while True:
            try:
                worker, life, message = self._events.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                return None
            if life == self._lives[worker]:
                if message["kind"] == "died":
                    _close_input(self._processes.pop(worker))
                return Event(worker, message)

    def stop(self, worker: int) -> None:
        self._signal(worker, signal.SIGTERM)

    def kill(self, worker: int) -> None:
        self._signal(worker, signal.SIGKILL)

    def close(self) -> None:
        """Ends all; nothing is lost by it but the steps since the last checkpoints."""
        for worker, process in self._processes.items():
            self._lives[worker] += 1
            _close_input(process)
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for reading in self._reading:
            reading.join()

    def _signal(self, worker: int, number: int) -> None:
        process = self._processes.get(worker)
        if process is not None and process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    def _start(self, worker: int) -> subprocess.Popen[str]:
        self._lives[worker] += 1
        with self._log_path.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *options(), "-m", "vidi.tune.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
                env=_environment(worker, self._size),
                # What a terminal sends goes to the search alone, which says what is to be done.
                start_new_session=True,
            )
        self._processes[worker] = process
        reading = threading.Thread(
            target=self._listen, args=(worker, self._lives[worker], process), daemon=True
        )
        reading.start()
        self._reading.append(reading)
        return process

    def _listen(self, worker: int, life: int, process: subprocess.Popen[str]) -> None:
        stream: IO[str] | None = process.stdout
        assert stream is not None
        with stream:
            for line in stream:
                # Half a line is all that a killed process may have left.
                with contextlib.suppress(json.JSONDecodeError):
                    self._events.put((worker, life, json.loads(line)))
        code = process.wait()
        self._events.put((worker, life, {"kind": "died", "message": _why_died(code)}))


def error_of(told: Mapping[str, Any]) -> VidiError:
    """An error that happened in a worker, here."""
    kinds: tuple[type[VidiError], ...] = (
        UsageError,
        DataError,
        MismatchError,
        InUseError,
        StorageError,
        TrainingError,
    )
    for kind in kinds:
        if kind.exit_code == told["exit_code"]:
            return kind(str(told["message"]), fix=str(told["fix"]))
    error = VidiError(str(told["message"]), fix=str(told["fix"]))
    error.exit_code = int(told["exit_code"])  # type: ignore[misc]
    return error


def _close_input(process: subprocess.Popen[str]) -> None:
    """A worker ends with its input. One that is gone may leave a part unread."""
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()


def _why_died(code: int) -> str:
    if code == -signal.SIGKILL:
        return "its process was killed (by the system, perhaps, when memory ran out)"
    if code < 0:
        return f"its process died of {signal.Signals(-code).name}"
    return f"its process ended with status {code}"


def _environment(worker: int, size: int) -> dict[str, str]:
    """Each worker has its own graphics card, where there are several."""
    environment = dict(os.environ)
    asked = environment.get("CUDA_VISIBLE_DEVICES")
    cards = (
        [card for card in asked.split(",") if card]
        if asked is not None
        else [path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*")]
    )
    if size > 1 and cards:
        environment["CUDA_VISIBLE_DEVICES"] = sorted(cards)[worker % len(cards)]
    return environment
