"""Worker processes by themselves: what is heard of one that dies."""

from __future__ import annotations

import time
from pathlib import Path

import psutil

from vidi.tune.workers import Event, Processes


def next_of(crew: Processes, kind: str) -> Event:
    for _ in range(600):
        event = crew.wait(0.1)
        if event is not None:
            assert event.message["kind"] == kind, event
            return event
    raise AssertionError(f"no event of the kind {kind!r} within a minute")


def test_a_death_is_heard_of_before_another_process_gets_work(tmp_path: Path) -> None:
    crew = Processes(1, tmp_path / "workers.log")
    try:
        first = int(next_of(crew, "ready").message["pid"])
        crew.kill(0)
        until = time.monotonic() + 30
        while psutil.pid_exists(first) and time.monotonic() < until:
            time.sleep(0.01)
        # Sent to one that is dead: what comes back says so, and nothing was given to another.
        crew.send(0, {"do": "dance"})
        assert "killed" in next_of(crew, "died").message["message"]
        crew.send(0, {"do": "dance"})
        second = int(next_of(crew, "ready").message["pid"])
        assert second != first
        assert "cannot 'dance'" in next_of(crew, "failed").message["message"]
    finally:
        crew.close()
    assert not psutil.pid_exists(second)
