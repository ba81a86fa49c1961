"""Keeping a time that was promised, whatever the first forecast of a step was worth."""

from __future__ import annotations

import time

import pytest

import vidi
from vidi.plan import Plan, retimed
from vidi.train.deadline import Deadline
from vidi.train.loop import Progress


def at(step: int, last_step: int, *, step_s: float) -> Progress:
    return Progress(
        phase="train", step=step, last_step=last_step, epoch=0.0, loss=None, accuracy=None,
        learning_rate=0.1, images_per_second=1.0, wait_fraction=0.0,
        remaining_s=step_s * (last_step - step), validation=None, best=None,
    )  # fmt: skip


def ending_in(seconds: float) -> Deadline:
    return Deadline(time.monotonic() + seconds)


@pytest.mark.parametrize("last_step", [11, 60, 400])
def test_a_run_that_was_planned_too_short_is_lengthened_soon(last_step: int) -> None:
    deadline = ending_in(60.0)
    asked = [deadline.steps_left(at(step, last_step, step_s=0.01)) for step in range(1, 25)]
    more = [steps for steps in asked if steps is not None]
    assert more
    assert more[0] == pytest.approx(6_000, rel=0.1)


def test_a_run_that_is_as_fast_as_planned_is_left_alone() -> None:
    deadline = ending_in(11.0)
    assert [deadline.steps_left(at(step, 11, step_s=1.0 + 0.01)) for step in (1,)] == [None]
    steady = ending_in(100.0)
    assert steady.steps_left(at(20, 400, step_s=100.0 / 380)) is None


def test_a_run_that_is_too_slow_is_shortened() -> None:
    steps = ending_in(10.0).steps_left(at(20, 400, step_s=1.0))
    assert steps is not None
    assert steps == pytest.approx(10, abs=1)


def plan(**changes: object) -> Plan:
    made = vidi.plan("digits", settings={"train.epochs": 2}).plan
    return made.model_copy(update=changes)


def test_a_longer_run_that_was_to_be_validated_once_is_validated_along_the_way() -> None:
    before = plan()
    steps = before.steps_per_epoch
    before = before.model_copy(
        update={"horizon_steps": 11, "last_step": 11, "evaluate_every_steps": 11}
    )
    after = retimed(before, 20 * steps)
    assert after.evaluate_every_steps == steps
    assert retimed(before, 7).evaluate_every_steps == 7
