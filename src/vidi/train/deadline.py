"""Keeping `train.minutes`: a machine may turn out not to be as fast as it was when measured."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Self, final

from vidi.config import Config
from vidi.facts import Facts
from vidi.train.loop import Progress

# Looked at every so many steps, and every so large a share of the run; of a run that was planned to
# be short sooner, because a wrong forecast may be the reason.
LOOK_EVERY_STEPS = 20
LOOK_EVERY_SHARE = 0.04
LOOK_FIRST_SHARE = 0.1
LOOK_FEWEST_STEPS = 3
# Nothing is changed for less than this share of what is left: of time that is missing, and of time
# to spare.
MISSING_TOLERANCE = 0.03
SPARE_TOLERANCE = 0.08
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
        forward = facts.measured.evaluation_images_per_second or float("inf")
        reserve_s = OVERHEAD_S + 2 * judged / forward
        return cls(started_at + config.train.minutes * 60 - reserve_s)

    def steps_left(self, progress: Progress) -> int | None:
        """How many more steps the time allows, when that is not what is planned; else None."""
        planned = progress.last_step
        few = max(LOOK_FEWEST_STEPS, int(LOOK_FIRST_SHARE * planned))
        every = max(min(LOOK_EVERY_STEPS, few), int(LOOK_EVERY_SHARE * planned))
        if progress.step < self.looked_at_step + every or progress.remaining_s <= 0:
            return None
        self.looked_at_step = progress.step
        left_s = self.training_ends_at - time.monotonic()
        missing = progress.remaining_s > left_s * (1 + MISSING_TOLERANCE)
        early = progress.step < LAST_STRETCH * progress.last_step
        to_spare = (
            self.may_lengthen and early and progress.remaining_s < left_s * (1 - SPARE_TOLERANCE)
        )
        if not missing and not to_spare:
            return None
        steps = progress.last_step - progress.step
        return max(1, int(steps * max(0.0, left_s) / progress.remaining_s))
