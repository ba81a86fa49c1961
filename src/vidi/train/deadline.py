"""Keeping `train.minutes`: a machine may turn out not to be as fast as it was when measured."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Self, final

from vidi.config import Config
from vidi.facts import Facts
from vidi.plan import Plan
from vidi.train.loop import Progress

# Looked at every so many steps, and every so large a share of the run; of a run that was planned to
# be short sooner, because a wrong forecast may be the reason.
LOOK_EVERY_STEPS = 20
LOOK_EVERY_SHARE = 0.04
LOOK_FIRST_SHARE = 0.1
LOOK_FEWEST_STEPS = 3
# Nothing is changed for less than this share of what is left: of time that is missing, and of time
# to spare, which is sure only when a part of the run has been seen.
MISSING_TOLERANCE = 0.03
SPARE_TOLERANCE = 0.08
SURE_SPARE_TOLERANCE = 0.03
SURE_SHARE = 0.3
# The learning rate does not rise any more in the last part of a run.
LAST_STRETCH = 0.7
# Writing a report and whatever else has no measurement.
OVERHEAD_S = 2.0


@final
@dataclass(slots=True)
class Deadline:
    """When training has to be over, so that the judging still fits."""

    training_ends_at: float
    looked_at_step: int = 0
    # Whether time to spare makes the run longer.
    may_lengthen: bool = True

    @classmethod
    def of(cls, config: Config, facts: Facts, started_at: float) -> Self | None:
        """None without a time to keep. `started_at`: `time.monotonic()` of the clock's start."""
        if config.train.minutes is None or facts.measured is None:
            return None
        judged = facts.dataset.num_images("validation") + facts.dataset.num_images("test")
        # Judging computes in float32 and bootstraps; it is slower than a bare forward pass.
        forward = facts.measured.judging_images_per_second or float("inf")
        reserve_s = OVERHEAD_S + 2 * judged / forward
        return cls(started_at + config.train.minutes * 60 - reserve_s)

    def steps_left(self, progress: Progress, plan: Plan) -> int | None:
        """How many more steps the time allows, when that is not what is planned; else None."""
        step, planned = progress.step, progress.last_step
        few = max(LOOK_FEWEST_STEPS, int(LOOK_FIRST_SHARE * planned))
        every = max(min(LOOK_EVERY_STEPS, few), int(LOOK_EVERY_SHARE * planned))
        if step < self.looked_at_step + every or progress.remaining_s <= 0:
            return None
        self.looked_at_step = step
        left_s = self.training_ends_at - time.monotonic()
        missing = progress.remaining_s > left_s * (1 + MISSING_TOLERANCE)
        early = step < LAST_STRETCH * planned
        tolerance = SPARE_TOLERANCE if step < SURE_SHARE * planned else SURE_SPARE_TOLERANCE
        to_spare = self.may_lengthen and early and progress.remaining_s < left_s * (1 - tolerance)
        if not missing and not to_spare:
            return None
        share = max(0.0, left_s) / progress.remaining_s
        return max(1, plan.steps_for(share * plan.work(step, planned), step))
