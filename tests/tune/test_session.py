"""What a worker measures."""

from __future__ import annotations

import itertools

import pytest

from vidi.tune.session import step_s


def moments(*steps: float) -> list[float]:
    return list(itertools.accumulate((100.0, *steps)))


def test_a_step_takes_what_most_steps_take_also_where_some_wait_for_many_batches() -> None:
    assert step_s(moments(1.0, 1.0, 1.0, 5.0)) == pytest.approx(2.0)


def test_a_pause_of_the_machine_is_no_step() -> None:
    assert step_s(moments(0.1, 0.1, 60.0, 0.1)) == pytest.approx(0.1)


@pytest.mark.parametrize("done", [[], [7.0]])
def test_fewer_than_two_steps_tell_nothing(done: list[float]) -> None:
    assert step_s(done) == 0.0
