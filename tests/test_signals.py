"""Ctrl-C and `kill`: the first asks, the second ends."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from vidi.signals import Stop, obeying, watched


def test_the_first_signal_is_noted_and_told_in_the_watchers_words(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with watched() as stop:
        assert not stop
        stop.said = lambda number: f"signal {number} is understood"
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal_number == signal.SIGTERM
    assert f"signal {signal.SIGTERM:d} is understood" in capfd.readouterr().err


def test_the_second_signal_ends_the_process_wherever_the_first_one_was_noted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended: list[int] = []
    monkeypatch.setattr("vidi.signals.os._exit", ended.append)
    with watched() as outer:
        with watched() as inner:
            os.kill(os.getpid(), signal.SIGINT)
            assert inner.signal_number == signal.SIGINT
        assert outer.signal_number == signal.SIGINT
        assert not ended
        os.kill(os.getpid(), signal.SIGINT)
    assert ended == [128 + signal.SIGINT]


def test_what_was_there_before_is_there_again() -> None:
    before = signal.getsignal(signal.SIGINT)
    with watched(), watched():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_the_work_of_a_thread_is_asked_to_stop_by_another() -> None:
    asked, seen = Stop(), []

    def work() -> None:
        with obeying(asked), watched() as stop:
            asked.signal_number = signal.SIGTERM
            seen.append(stop.signal_number)
        with watched() as stop:
            seen.append(stop.signal_number)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.SIGTERM, None]
