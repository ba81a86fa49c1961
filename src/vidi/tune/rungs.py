"""Which trial is worked on next: a pure function of what all trials are worth so far.

A trial stops at rungs, shares of its training, each `eta` times as far as the one before it. There
it waits; the best of those that came as far are promoted and go on from their checkpoints. Nothing
here has a memory, so a search that was killed decides as if it had not been.

- "asha": a trial is promoted as soon as it is in the best 1/eta of those that have come as far (Li
  et al. 2020, asynchronous successive halving).
- "pasha": the same, but higher rungs are opened only when the ranking of the two highest ones
  disagrees (Bohdal et al. 2023).
- "halving": promotions wait until all trials have come as far (Jamieson and Talwalkar 2016).
- "median": all are promoted that are not below the median of their rung (Golovin et al. 2017).
- "none": every trial goes to its end at once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, get_args

from vidi.config import Config
from vidi.plan.optimizing import SCHEDULE_FREE
from vidi.space import is_open
from vidi.study import Trial

Promotion = Literal["asha", "pasha", "halving", "median", "none"]
PROMOTIONS: Final[tuple[Promotion, ...]] = get_args(Promotion)

# What is less below the end, besides the steps: nothing, the size of the images, or how many of the
# training images are learnt from.
Fidelity = Literal["steps", "image_px", "data_share"]
FIDELITIES: Final[tuple[Fidelity, ...]] = get_args(Fidelity)
# Up to the first rung images have this share of their side; then they grow evenly.
SMALLEST_SIDE: Final = 0.5
# Sides are multiples of so many pixels.
PX_STEP: Final = 4
# One in so many is promoted, and each rung is so many times as far as the one before it.
ETA: Final = 3


@dataclass(frozen=True, slots=True)
class Rules:
    """How a search goes on and when it stops.

    shares: the rungs, ascending, shares of a trial's training; the end itself, 1.0, comes last.
    eta: one in so many is promoted. num_trials: how many are begun; None: as many as there is time
    for. patience: so many trials without a better one, and none is begun any more; 0: never.
    bound: what cannot reach the best any more, if it gains as much as any trial has gained from
    there, is not promoted. default: a trial that goes to its end rung by rung, whatever it is
    worth, so that the answer is never worse than it.
    """

    shares: tuple[float, ...] = (1 / ETA**2, 1 / ETA, 1.0)
    promotion: Promotion = "asha"
    eta: int = ETA
    num_trials: int | None = None
    patience: int = 0
    bound: bool = True
    default: int | None = None


class Action(NamedTuple):
    """kind: "begin" a new trial, go on with trial `number` up to rung `rung` (from 0), "wait" for
    what is being worked on, or "stop"."""

    kind: Literal["begin", "go_on", "wait", "stop"]
    number: int | None = None
    rung: int | None = None
    why: str = ""


def sides(count: int) -> tuple[float, ...]:
    """The side of the images up to each of so many rungs, as a share of the whole side."""
    step = (1.0 - SMALLEST_SIDE) / max(1, count - 1)
    return tuple(1.0 - step * (count - 1 - number) for number in range(count))


def settings_of(
    fidelity: Fidelity, shares: Sequence[float], image_px: int | None = None
) -> dict[str, Any]:
    """The settings that make rungs cheaper, in equal parts of a run of which rungs are some.

    A trial that is promoted goes on from its checkpoint: weights, average and optimizer do not
    depend on the size or the number of the images, so it is the same run as one that went straight
    through. A network that takes one size only is refused by the plan.

    Args:
        shares: of the steps at which the rungs are; multiples of the first.
        image_px: the side that the model sees in the end, for "image_px".
    """
    if fidelity == "steps" or len(shares) == 1:
        return {}
    parts = round(1.0 / shares[0])
    rung_of = [next(n for n, s in enumerate(shares) if s > (k + 0.5) / parts) for k in range(parts)]
    if fidelity == "data_share":
        return {"train.progressive_data": tuple(shares[rung] for rung in rung_of)}
    assert image_px is not None
    whole = sides(len(shares))
    px = [max(PX_STEP, round(side * image_px / PX_STEP) * PX_STEP) for side in whole[:-1]]
    sizes = (*(min(each, image_px) for each in px), image_px)
    return {"train.progressive_px": tuple(sizes[rung] for rung in rung_of)}


def flat_schedule(config: Config) -> dict[str, Any]:
    """Settings of a trial, of those that its config leaves open: a learning rate that stays flat
    until the last part, so that what is seen at a rung is not spoilt by one that is about to fall
    in one trial and not in another.

    An optimizer that does without a schedule has a flat one by its own rule.
    """
    if config.train.optimizer in SCHEDULE_FREE:
        return {}
    given = {"train.schedule": "trapezoid", "train.warmup_fraction": 0.05}
    return {name: value for name, value in given.items() if is_open(config, name)}


def costs_of(fidelity: Fidelity, shares: Sequence[float]) -> tuple[float, ...]:
    """What a trial has cost at each rung, in whole trainings on whole images.

    A step takes as long as its images have pixels.
    """
    areas = [side**2 if fidelity == "image_px" else 1.0 for side in sides(len(shares))]
    steps = [after - before for before, after in itertools.pairwise((0.0, *shares))]
    return tuple(itertools.accumulate(a * s for a, s in zip(areas, steps, strict=True)))


def next_action(
    trials: Sequence[Trial],
    rules: Rules,
    *,
    busy: Collection[int] = (),
    may_begin: bool = True,
    num_validation: int = 0,
) -> Action:
    """What a free worker does now.

    Args:
        trials: all of them, as they stand.
        busy: numbers of the trials that are being worked on.
        may_begin: whether a new trial could still come far enough to matter.
        num_validation: images that an accuracy is counted on; for its standard error.
    """
    # What was cut off: a process that died, or a search that was killed.
    for trial in trials:
        if trial.status in ("running", "waiting") and trial.number not in busy:
            why = "it was interrupted" if trial.retries or trial.rungs else trial.origin
            return Action("go_on", trial.number, _next_rung(trial, rules), why)
    for trial in trials:
        if trial.number == rules.default and trial.status == "paused" and trial.number not in busy:
            why = "it is what all others are compared with"
            return Action("go_on", trial.number, _next_rung(trial, rules), why)
    if promoted := _promotion(trials, rules, busy, num_validation):
        return promoted
    limit = rules.num_trials
    if may_begin and (limit is None or len(trials) < limit) and not out_of_patience(trials, rules):
        rung = 0 if rules.promotion != "none" else len(rules.shares) - 1
        return Action("begin", _free_number(trials), rung, "there is room for another")
    if busy:
        return Action("wait", why="the others are at work")
    if last := _last_one(trials, rules):
        return last
    return Action("stop", why=_why_over(trials, rules))


def ranked(trials: Sequence[Trial], reached: int) -> list[Trial]:
    """The trials that have `reached` results or more, the best at that rung first."""

    def key(trial: Trial) -> tuple[float, float, int]:
        rung = trial.rungs[reached - 1]
        log_loss = math.inf if rung.log_loss is None else rung.log_loss
        return -rung.accuracy, log_loss, trial.number

    return sorted((one for one in trials if len(one.rungs) >= reached), key=key)


def passed_over(trials: Sequence[Trial], rules: Rules) -> list[Trial]:
    """Those that are in the best part of no rung and not at work, the oldest first."""
    kept: set[int] = set()
    for reached in range(1, len(rules.shares) + 1):
        here = ranked(trials, reached)
        kept |= {one.number for one in here[: max(1, len(here) // rules.eta)]}
    still = ("paused", "failed", "finished")
    return [one for one in trials if one.status in still and one.number not in kept]


def best_of(trials: Sequence[Trial], rules: Rules) -> Trial | None:
    """The trial to build the answer on: the best of those that came furthest.

    What stopped at a rung is behind everything that came further, because it was passed over there.
    """
    for reached in range(len(rules.shares), 0, -1):
        if found := [one for one in ranked(trials, reached) if one.status != "failed"]:
            return found[0]
    return None


def out_of_patience(trials: Sequence[Trial], rules: Rules) -> bool:
    """Whether the best at the first rung is older than the last `patience` trials."""
    if not rules.patience:
        return False
    judged = [trial for trial in trials if trial.rungs]
    if len(judged) <= rules.patience:
        return False
    newest = sorted(judged, key=lambda trial: trial.number)[-rules.patience :]
    return ranked(judged, 1)[0] not in newest and not any(
        trial.status in ("running", "waiting") for trial in trials
    )


def hopeless(trial: Trial, trials: Sequence[Trial], rules: Rules, num_validation: int) -> bool:
    """Whether it cannot reach the best finished trial any more, for all that is known.

    The bound: its accuracy now, plus the most that any finished trial gained from there on, plus
    two standard errors. Two finished trials at least have to say what can be gained.
    """
    finished = [one for one in trials if one.status == "finished" and one.rungs]
    reached = len(trial.rungs)
    if not rules.bound or len(finished) < 2 or not reached or not num_validation:
        return False
    gains = [
        one.rungs[-1].accuracy - one.rungs[reached - 1].accuracy
        for one in finished
        if len(one.rungs) > reached
    ]
    if len(gains) < 2:
        return False
    now, best = trial.rungs[-1].accuracy, max(one.rungs[-1].accuracy for one in finished)
    share = (now * num_validation + 1) / (num_validation + 2)
    error = math.sqrt(share * (1 - share) / num_validation)
    return now + max(0.0, *gains) + 2 * error < best


def _free_number(trials: Sequence[Trial]) -> int:
    """The first that no trial has: one may have been deleted to be tried anew."""
    taken = {trial.number for trial in trials}
    return next(number for number in itertools.count(1) if number not in taken)


def _next_rung(trial: Trial, rules: Rules) -> int:
    if rules.promotion == "none":
        return len(rules.shares) - 1
    return min(len(trial.rungs), len(rules.shares) - 1)


def _promotion(
    trials: Sequence[Trial], rules: Rules, busy: Collection[int], num_validation: int
) -> Action | None:
    """The best trial that has earned to go on, from the highest rung down."""
    for reached in range(_highest(trials, rules), 0, -1):
        here = ranked(trials, reached)
        if rules.promotion == "halving" and not _is_complete(trials, rules, reached, busy):
            continue
        quota = len(here) // rules.eta
        if rules.promotion == "median":
            quota = len(here) - len(here) // 2
        for place, trial in enumerate(here[:quota]):
            waits = trial.status == "paused" and len(trial.rungs) == reached
            if not waits or trial.number in busy:
                continue
            if hopeless(trial, trials, rules, num_validation):
                continue
            return Action(
                "go_on",
                trial.number,
                reached,
                f"number {place + 1} of {len(here)} at {rules.shares[reached - 1]:.0%}",
            )
    return None


def _highest(trials: Sequence[Trial], rules: Rules) -> int:
    """The highest rung, counted from 1, from which trials are promoted."""
    top = len(rules.shares) - 1
    if rules.promotion != "pasha":
        return top if rules.promotion != "none" else 0
    opened = min(1, top)
    while opened < top:
        above = ranked(trials, opened + 1)
        below = [one for one in ranked(trials, opened) if one in above]
        if len(above) < 2 or [one.number for one in above] == [one.number for one in below]:
            break
        opened += 1
    return opened


def _is_complete(
    trials: Sequence[Trial], rules: Rules, reached: int, busy: Collection[int]
) -> bool:
    """Whether all that will come to that rung have come."""
    if rules.num_trials is None or len(trials) < rules.num_trials:
        return False
    below = [one for one in trials if len(one.rungs) < reached and one.status != "failed"]
    return not any(one.number in busy or one.status in ("running", "waiting") for one in below)


def _last_one(trials: Sequence[Trial], rules: Rules) -> Action | None:
    """When nothing is promoted any more, the best goes to the end, or there is no answer."""
    best = best_of(trials, rules)
    if best is None or best.status != "paused" or len(best.rungs) >= len(rules.shares):
        return None
    return Action("go_on", best.number, len(rules.shares) - 1, "the best so far, to its end")


def _why_over(trials: Sequence[Trial], rules: Rules) -> str:
    if rules.num_trials is not None and len(trials) >= rules.num_trials:
        return f"all {rules.num_trials} trials are done"
    if out_of_patience(trials, rules):
        return f"no better for {rules.patience} trials"
    return "there is no time for another"
