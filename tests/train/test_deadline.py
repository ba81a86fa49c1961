"""Keeping a time that was promised, whatever the first forecast of a step was worth."""

from __future__ import annotations

import time

import pytest

import vidi
from vidi.plan import Plan, retimed
from vidi.plan.values import Stage
from vidi.train.deadline import Deadline
from vidi.train.loop import Progress


def at(step: int, last_step: int, *, step_s: float) -> Progress:
    return Progress(
        phase="train", step=step, last_step=last_step, epoch=0.0, loss=None, accuracy=None,
        learning_rate=0.1, images_per_second=1.0, wait_fraction=0.0,
        remaining_s=step_s * (last_step - step), validation=None, best=None,
    )  # fmt: skip


def planned(steps: int) -> Plan:
    return plan(horizon_steps=steps, last_step=steps)


def ending_in(seconds: float) -> Deadline:
    return Deadline(time.monotonic() + seconds)


@pytest.mark.parametrize("last_step", [11, 60, 400])
def test_a_run_that_was_planned_too_short_is_lengthened_soon(last_step: int) -> None:
    made = planned(last_step)
    deadline = ending_in(60.0)
    asked = [deadline.steps_left(at(step, last_step, step_s=0.01), made) for step in range(1, 25)]
    more = [steps for steps in asked if steps is not None]
    assert more
    assert more[0] == pytest.approx(6_000, rel=0.1)


def test_a_run_that_is_as_fast_as_planned_is_left_alone() -> None:
    made = planned(11)
    assert ending_in(11.0).steps_left(at(1, 11, step_s=1.0 + 0.01), made) is None
    made = planned(400)
    assert ending_in(100.0).steps_left(at(20, 400, step_s=100.0 / 380), made) is None


def test_a_little_time_to_spare_is_used_once_the_speed_is_sure() -> None:
    made = planned(400)

    def asked(step: int) -> int | None:
        # A second for each step, and a twentieth more than that is left.
        return ending_in(1.05 * (400 - step)).steps_left(at(step, 400, step_s=1.0), made)

    assert asked(100) is None
    more = asked(200)
    assert more is not None
    assert more == pytest.approx(210, abs=1)
    assert asked(300) is None, "the learning rate does not rise any more"


def test_a_run_that_is_too_slow_is_shortened() -> None:
    made = planned(400)
    steps = ending_in(10.0).steps_left(at(20, 400, step_s=1.0), made)
    assert steps is not None
    assert steps == pytest.approx(10, abs=1)


def test_smaller_images_at_first_are_thought_of_when_a_run_is_shortened() -> None:
    small = Stage(until=0.5, image_px=8, frozen_stages=0)
    whole = Stage(until=1.0, image_px=16, frozen_stages=0)
    rising = planned(400).model_copy(update={"stages": (small, whole)})
    # A step on whole images takes a second.
    moment = at(100, 400, step_s=rising.work(100, 400) / 300)
    steps = ending_in(150.0).steps_left(moment, rising)
    assert steps is not None
    # Some of them are on small images; the run is shorter, so it comes to whole ones sooner.
    assert 150 < steps < 200
    assert planned(100 + steps).model_copy(update={"stages": (small, whole)}).work(
        100, 100 + steps
    ) == pytest.approx(150.0, abs=1.5)


def plan(**changes: object) -> Plan:
    made = vidi.plan("digits", settings={"train.epochs": 2}).plan
    return made.model_copy(update=changes)


def test_a_longer_run_that_was_to_be_validated_once_is_validated_along_the_way() -> None:
    before = planned(11).model_copy(update={"evaluate_every_steps": 11})
    steps = before.steps_per_epoch
    after = retimed(before, 20 * steps)
    assert after.evaluate_every_steps == steps
    assert retimed(before, 7).evaluate_every_steps == 7
