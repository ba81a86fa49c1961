"""How the time of a search is divided: pure functions of what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Final, NamedTuple

from vidi.facts import FORWARD_AGAINST_TRAINING
from vidi.plan import epochs_of
from vidi.plan.budget import judging_s
from vidi.study import Trial
from vidi.tune.rungs import ETA

# One full training may take this share of the whole time. With promotions of one in three a search
# of n trials costs about 0.26 n trainings, so this leaves room for about a dozen.
TRAINING_SHARE: Final = 0.22
# A trial of fewer updates than this at its first rung says nothing.
LEAST_STEPS: Final = 8
# What the clock may be wrong by: starting, writing, a machine that is busy.
SLACK_S: Final = 1.5
SLACK_SHARE: Final = 0.02
# A retraining is begun with so many times the time that it is expected to take.
RETRAINING_SPARE: Final = 1.15


class Division(NamedTuple):
    """epochs: of a trial. shares: its rungs."""

    epochs: float
    shares: tuple[float, ...]
    why: str


def divide(
    *,
    budget_s: float | None,
    seconds_per_epoch: float,
    steps_per_epoch: float,
    default_epochs: float,
    asked_epochs: float | None,
    retraining: float = 0.0,
) -> Division:
    """How long a trial is and where it is looked at.

    budget_s: what is left of the time; None: trials are counted, not minutes. retraining: as for
    `Costs`.
    """
    if budget_s is not None:
        budget_s /= 1 + TRAINING_SHARE * retraining
    if asked_epochs is not None:
        epochs, why = asked_epochs, f"asked for {epochs_of(asked_epochs)}"
    elif budget_s is None:
        epochs, why = default_epochs, f"{epochs_of(default_epochs)}, as one training would have"
    else:
        affordable = TRAINING_SHARE * budget_s / seconds_per_epoch
        epochs = min(default_epochs, affordable)
        # A number that says no more than it knows; never less than one update.
        epochs = max(float(f"{epochs:.3g}"), 1.0 / steps_per_epoch)
        why = (
            f"{epochs_of(epochs)}: a fifth of {budget_s:.0f} s at {seconds_per_epoch:.2g} s each"
            if epochs < default_epochs
            else f"{epochs_of(epochs)}: enough to converge, and there is time for many"
        )
    steps = epochs * steps_per_epoch
    shares = tuple(share for share in (1 / ETA**2, 1 / ETA) if share * steps >= LEAST_STEPS)
    return Division(epochs, (*shares, 1.0), why)


class Costs(NamedTuple):
    """What things cost, in seconds.

    full_s: one whole training, by the timing before the first trial. judging_s: the answer.
    retraining: what is done to the best in the end, in whole trainings.
    """

    shares: tuple[float, ...]
    full_s: float
    judging_s: float
    retraining: float = 0.0

    def cost(self, trials: Sequence[Trial], trial: Trial | None, rung: int) -> float:
        """Going on with a trial (None: a new one) up to and including that rung."""
        reached = self.shares[len(trial.rungs) - 1] if trial is not None and trial.rungs else 0.0
        return max(0.0, self.shares[rung] - reached) * self._rate(trials, trial)

    def to_the_end(self, trials: Sequence[Trial], trial: Trial | None) -> float:
        """Making an answer of a trial: its training to the end, and judging it."""
        rest = 0.0
        if trial is None or trial.status != "finished":
            rest = self.cost(trials, trial, len(self.shares) - 1)
        return rest + self.answer_s(trials, trial)

    def answer_s(self, trials: Sequence[Trial], trial: Trial | None) -> float:
        """Making an answer of a trial that is at its end."""
        return self.judging_s + self.retraining * self._rate(trials, trial)

    def _rate(self, trials: Sequence[Trial], trial: Trial | None) -> float:
        """Seconds for a whole training, by its own rungs, else by those of the others."""
        if trial is not None and trial.rungs:
            return self._seen(trial)
        seen = [self._seen(one) for one in trials if one.rungs]
        return median(seen) if seen else self.full_s

    def _seen(self, trial: Trial) -> float:
        return trial.rungs[-1].seconds / self.shares[min(len(trial.rungs), len(self.shares)) - 1]


def judging_seconds(num_images: int, images_per_second: float) -> float:
    """Judging so many images of the answer, where so many are trained on in a second."""
    return judging_s(num_images, FORWARD_AGAINST_TRAINING * max(1.0, images_per_second))


def retraining_share(num_train: int, num_validation: int) -> float:
    """Training once more on the validation images too, in whole trainings, with some to spare."""
    return RETRAINING_SPARE * (num_train + num_validation) / num_train


def slack(budget_s: float) -> float:
    """What is held back so that the time is kept."""
    return SLACK_S + SLACK_SHARE * budget_s
