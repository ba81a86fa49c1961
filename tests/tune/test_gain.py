"""What the answer of a fit gained over its first trial, in words that chance does not change."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from vidi.config import Config
from vidi.report import load_study, study_views
from vidi.run import Run
from vidi.signals import Stop
from vidi.study import Rung, Study, Trial
from vidi.train.prepare import Extensions
from vidi.tune.answer import compare
from vidi.tune.clock import Clock
from vidi.tune.gain import INSIDE_THE_NOISE
from vidi.tune.work import Work

from .conftest import keep_answers


def judged(study: Study, number: int, right: int) -> None:
    """A trial that answers so many of 400 held-out images rightly."""
    run = Run.create(study.trial_run_path(number), texts={"config": ""})
    keep_answers(run, right, 400)
    run.write_evaluation("validation", "{}")
    rungs = (Rung(10, right / 400, 0.5, 1.0),)
    origin = "a head on kept features" if number == 1 else "fine-tuning"
    study.write_trial(Trial(number, {}, status="finished", origin=origin, rungs=rungs))


@pytest.mark.parametrize(
    ("right", "verdict", "title"),
    [
        (302, "cannot tell", "The gain is inside the noise"),
        (340, "better", "Better than the first by more than chance"),
    ],
)
def test_a_gain_is_more_than_chance_or_inside_the_noise(
    tmp_path: Path, right: int, verdict: str, title: str
) -> None:
    told: list[Any] = []
    study = Study.create(tmp_path / "s", kind="fit", config=Config(), asked={})
    clock = Clock(time.monotonic(), 60.0, 0.0)
    work = Work(study, "photos", Config(), Extensions(), clock, told.append, Stop(), export=None)
    with study.lock():
        judged(study, 1, 300)
        judged(study, 3, right)
        compare(work, first=1)
        (event,) = study.events.read()
    assert (event["trial"], event["verdict"]) == (3, verdict)
    assert event["why"].startswith(f"fine-tuning against a head on kept features: {verdict}")
    assert (INSIDE_THE_NOISE in told) == (verdict == "cannot tell")
    assert title in [one["title"] for one in study_views(load_study(study))["summary"]["tried"]]
