"""Learning-rate schedules: pure functions of how much of the run is done.

A schedule maps `done` in [0, 1] to a multiplier of the peak learning rate in [0, 1]. It has no
state, so a resumed run needs none, and a run that is stopped early keeps the curve it started on.
Names and values are those of torch.optim.lr_scheduler, with two changes of unit: a time is a share
of the run, not a number of epochs, and a rate is a share of the peak.

    schedule = make("cosine", warmup_fraction=0.05)
    set_learning_rate(optimizer, schedule(step / num_steps))

Reduce-on-plateau needs a memory. It is `Plateau` (the rule) and `PlateauState` (the memory, a small
value that goes into the checkpoint); the loop multiplies its `multiplier` by the schedule's.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from vidi.errors import UsageError, nearest

Schedule = Callable[[float], float]

# A restart at done = 1/3 has to happen at step 10 of 30 although 10 / 30 * 3 may round to less
# than 1; a step is at least 1e-8 of any run.
_ROUNDING = 1e-9


def make(
    name: str | Schedule,
    *,
    warmup_fraction: float = 0.0,
    warmup_start: float = 0.0,
    final_fraction: float | None = None,
    **settings: Any,
) -> Schedule:
    """The schedule of that name, after a linear warm-up.

    Args:
        name: one of `SCHEDULES`, "plateau" (constant here: see `Plateau`), or your own function.
        warmup_fraction: share of the run, in [0, 1), over which the multiplier rises linearly. What
            follows is squeezed into the rest of the run, as torch's SequentialLR does it.
        warmup_start: the multiplier at the very start of the warm-up, in [0, 1].
        final_fraction: the multiplier at the end of the run; for the schedules that fall in steps
            a floor. None takes the schedule's own (0, or 0.01 for "exponential").
        settings: further settings of that schedule, see its function.

    Raises:
        UsageError: an unknown name or setting, or a value that is not in its range.
    """
    _check("warmup_fraction", warmup_fraction, low=0.0, high=1.0, below=True)
    _check("warmup_start", warmup_start, low=0.0, high=1.0)
    if callable(name):
        if settings or final_fraction:
            raise UsageError("a schedule of your own takes no settings here")
        shape = name
    else:
        shape = _shape(name, final_fraction, settings)
    if warmup_fraction == 0.0:
        return shape

    def warmed_up(done: float) -> float:
        if done < warmup_fraction:
            return warmup_start + (1.0 - warmup_start) * done / warmup_fraction
        return shape(min(1.0, (done - warmup_fraction) / (1.0 - warmup_fraction)))

    return warmed_up


def check_name(name: str) -> None:
    """Raises UsageError for a schedule that does not exist."""
    if name not in SCHEDULES:
        raise UsageError(f"there is no schedule '{name}'", fix=nearest(name, SCHEDULES))


def _shape(name: str, final_fraction: float | None, settings: Mapping[str, Any]) -> Schedule:
    check_name(name)
    if name == "plateau":
        # Its settings are those of the rule that lowers the rate; they are checked here, too.
        plateau(
            {**settings, **({} if final_fraction is None else {"final_fraction": final_fraction})}
        )
        return constant()
    function = SCHEDULES[name]
    known = inspect.signature(function).parameters
    given = dict(settings)
    if final_fraction is not None:
        if "final_fraction" in known:
            given["final_fraction"] = final_fraction
        elif final_fraction != 0.0:
            raise UsageError(
                f"schedule '{name}' does not fall, so final_fraction says nothing",
                fix="leave it out, or use 'linear' or 'cosine'",
            )
    _check_settings(name, given, known)
    return function(**given)


def plateau(settings: Mapping[str, Any]) -> Plateau:
    """The rule of the schedule "plateau" with these of its settings.

    Raises:
        UsageError: an unknown setting, or a value that is not in its range.
    """
    _check_settings("plateau", settings, inspect.signature(Plateau).parameters)
    whole = {name: int(settings[name]) for name in ("patience", "cooldown") if name in settings}
    return Plateau(**{**settings, **whole})


def _check_settings(name: str, given: Mapping[str, Any], known: Collection[str]) -> None:
    for setting, value in given.items():
        if setting not in known:
            raise UsageError(
                f"schedule '{name}' has no setting '{setting}'", fix=nearest(setting, known)
            )
        if isinstance(value, Sequence) != (setting == "milestones"):
            number = "numbers" if setting == "milestones" else "one number"
            raise UsageError(f"{setting} = {value}: schedule '{name}' takes {number}")


def constant() -> Schedule:
    """The peak all the way. torch: ConstantLR with factor 1."""
    return lambda done: 1.0  # noqa: ARG005 - a schedule takes `done`


def step(
    *, every_fraction: float = 1 / 3, factor: float = 0.1, final_fraction: float = 0.0
) -> Schedule:
    """Falls by `factor` after every `every_fraction` of the run. torch: StepLR."""
    _check("every_fraction", every_fraction, low=0.0, high=1.0, above=True)
    _check("factor", factor, low=0.0, high=1.0)
    _check("final_fraction", final_fraction, low=0.0, high=1.0)

    def at(done: float) -> float:
        return max(final_fraction, factor ** math.floor(done / every_fraction + _ROUNDING))

    return at


def multistep(
    *,
    milestones: Sequence[float] = (0.5, 0.75),
    factor: float = 0.1,
    final_fraction: float = 0.0,
) -> Schedule:
    """Falls by `factor` at each of `milestones`, shares of the run. torch: MultiStepLR."""
    for milestone in milestones:
        _check("milestones", milestone, low=0.0, high=1.0)
    _check("factor", factor, low=0.0, high=1.0)
    _check("final_fraction", final_fraction, low=0.0, high=1.0)
    ordered = sorted(milestones)

    def at(done: float) -> float:
        passed = sum(done >= milestone - _ROUNDING for milestone in ordered)
        return max(final_fraction, factor**passed)

    return at


def exponential(*, final_fraction: float = 0.01) -> Schedule:
    """Falls by the same factor in every step. torch: ExponentialLR, gamma ** steps = final."""
    _check("final_fraction", final_fraction, low=0.0, high=1.0, above=True)
    return lambda done: final_fraction**done


def cosine(*, final_fraction: float = 0.0) -> Schedule:
    """Half a cosine down; Loshchilov and Hutter 2017 (SGDR). torch: CosineAnnealingLR."""
    _check("final_fraction", final_fraction, low=0.0, high=1.0)
    return lambda done: _between(1.0, final_fraction, done)


def cosine_restarts(
    *,
    first_fraction: float = 0.25,
    growth: int = 1,
    final_fraction: float = 0.0,
) -> Schedule:
    """Half cosines, each from the peak; Loshchilov and Hutter 2017. CosineAnnealingWarmRestarts.

    Args:
        first_fraction: length of the first half cosine, a share of the run.
        growth: each half cosine is that many times as long as the one before it.
        final_fraction: where each of them ends.
    """
    _check("first_fraction", first_fraction, low=0.0, high=1.0, above=True)
    _check("growth", growth, low=1, high=1_000_000)
    _check("final_fraction", final_fraction, low=0.0, high=1.0)

    def at(done: float) -> float:
        start, length = 0.0, first_fraction
        while done >= start + length - _ROUNDING and start + length < 1.0 - _ROUNDING:
            start, length = start + length, length * growth
        return _between(1.0, final_fraction, (done - start) / length)

    return at


def one_cycle(
    *,
    rise_fraction: float = 0.3,
    start_fraction: float = 1 / 25,
    final_fraction: float = 1 / 25 / 10_000,
) -> Schedule:
    """A cosine up to the peak and a cosine down; Smith and Topin 2019. torch: OneCycleLR.

    Args:
        rise_fraction: where in the run the peak is.
        start_fraction: the multiplier at the start; torch's 1 / div_factor.
        final_fraction: the multiplier at the end; torch's 1 / (div_factor * final_div_factor).
    """
    _check("rise_fraction", rise_fraction, low=0.0, high=1.0, above=True, below=True)
    _check("start_fraction", start_fraction, low=0.0, high=1.0)
    _check("final_fraction", final_fraction, low=0.0, high=1.0)

    def at(done: float) -> float:
        if done <= rise_fraction:
            return _between(start_fraction, 1.0, done / rise_fraction)
        return _between(1.0, final_fraction, (done - rise_fraction) / (1.0 - rise_fraction))

    return at


def linear(*, final_fraction: float = 0.0) -> Schedule:
    """A straight line down. With a warm-up, the triangle of Smith 2017. torch: LinearLR."""
    return polynomial(power=1.0, final_fraction=final_fraction)


def polynomial(*, power: float = 2.0, final_fraction: float = 0.0) -> Schedule:
    """(1 - done) ** power, down to `final_fraction`. torch: PolynomialLR."""
    _check("power", power, low=0.0, high=100.0, above=True)
    _check("final_fraction", final_fraction, low=0.0, high=1.0)

    def at(done: float) -> float:
        return final_fraction + (1.0 - final_fraction) * math.pow(max(0.0, 1.0 - done), power)

    return at


def trapezoid(*, decay_fraction: float = 0.2, final_fraction: float = 0.0) -> Schedule:
    """The peak, then a straight line down over the last `decay_fraction` of the run.

    With a warm-up this is "warm-up, stable, decay" (Zhai et al. 2022; Hu et al. 2024, MiniCPM).
    """
    _check("decay_fraction", decay_fraction, low=0.0, high=1.0, above=True)
    _check("final_fraction", final_fraction, low=0.0, high=1.0)

    def at(done: float) -> float:
        left = min(1.0, max(0.0, 1.0 - done) / decay_fraction)
        return final_fraction + (1.0 - final_fraction) * left

    return at


SCHEDULES: Final[Mapping[str, Callable[..., Schedule]]] = {
    "constant": constant,
    "step": step,
    "multistep": multistep,
    "exponential": exponential,
    "cosine": cosine,
    "cosine_restarts": cosine_restarts,
    "one_cycle": one_cycle,
    "linear": linear,
    "polynomial": polynomial,
    "trapezoid": trapezoid,
    # What falls is `Plateau`; before it does, the rate is constant.
    "plateau": constant,
}


@dataclass(frozen=True, slots=True)
class Plateau:
    """When to lower the learning rate because a score stopped improving. torch: ReduceLROnPlateau.

    Args:
        factor: what the multiplier is multiplied by, in (0, 1).
        patience: evaluations without improvement that are borne before it falls.
        threshold: the least improvement that counts, a share of the best score.
        cooldown: evaluations after a fall that are not counted against it.
        final_fraction: the multiplier does not go below this.
        better: "higher" for an accuracy, "lower" for a loss.
    """

    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    cooldown: int = 0
    final_fraction: float = 0.0
    better: Literal["higher", "lower"] = "higher"

    def __post_init__(self) -> None:
        _check("factor", self.factor, low=0.0, high=1.0, above=True, below=True)
        _check("patience", self.patience, low=0, high=1_000_000)
        _check("threshold", self.threshold, low=0.0, high=1.0, below=True)
        _check("cooldown", self.cooldown, low=0, high=1_000_000)
        _check("final_fraction", self.final_fraction, low=0.0, high=1.0)

    def after(self, state: PlateauState, score: float) -> PlateauState:
        """The state after one more evaluation. A score that is not a number is never better."""
        best, bad, cooldown = state.best, state.bad_evaluations + 1, state.cooldown_left
        if self._improves(score, best):
            best, bad = score, 0
        if cooldown > 0:
            cooldown, bad = cooldown - 1, 0
        multiplier = state.multiplier
        if bad > self.patience:
            multiplier = max(self.final_fraction, multiplier * self.factor)
            cooldown, bad = self.cooldown, 0
        return replace(
            state, multiplier=multiplier, best=best, bad_evaluations=bad, cooldown_left=cooldown
        )

    def _improves(self, score: float, best: float | None) -> bool:
        if not math.isfinite(score):
            return False
        if best is None:
            return True
        if self.better == "higher":
            return score > best * (1.0 + self.threshold)
        return score < best * (1.0 - self.threshold)


@dataclass(frozen=True, slots=True)
class PlateauState:
    """What `Plateau` remembers; `dataclasses.asdict` makes JSON of it."""

    multiplier: float = 1.0
    best: float | None = None
    bad_evaluations: int = 0
    cooldown_left: int = 0


def _between(start: float, end: float, share: float) -> float:
    """Half a cosine from `start` (share 0) to `end` (share 1)."""
    return end + (start - end) * (1.0 + math.cos(math.pi * min(1.0, max(0.0, share)))) / 2.0


def _check(
    name: str,
    value: float,
    *,
    low: float,
    high: float,
    above: bool = False,
    below: bool = False,
) -> None:
    """`value` lies in [low, high]; `above` and `below` take the ends out. NaN lies nowhere."""
    inside = (low < value if above else low <= value) and (value < high if below else value <= high)
    if not inside:
        span = f"{'above' if above else 'from'} {low:g} {'to below' if below else 'to'} {high:g}"
        raise UsageError(f"{name} = {value}: a schedule takes {span}")
