"""What one change of the settings does to accuracy: estimates with intervals, from paired runs.

Every level of an ablation is trained with the same seeds as the base, and both answer the same
images. A difference has two sources of luck, the seeds and the images, and they are crossed: each
seed meets each image. The error of the mean difference is put together from both, as in studies of
several readers and many cases:

    Var = s2 / S + max(0, V_images - V_rest)        Obuchowski and Rockette 1995; Hillis 2007

with S seeds, `s2` the variance of the difference among seeds, `V_images` what the images alone
would give and `V_rest` what their meeting adds by itself. Three seeds tell little about `s2`, so
it borrows from the other levels of the same study (moderated variances, Smyth 2004: what limma does
for a few arrays and many genes). Many levels are looked at, so p values are adjusted by Holm 1979,
and an effect is only said to be there when the adjusted one is below 0.05.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from vidi.errors import VidiError
from vidi.metrics import Interval
from vidi.study import Study, Trial

Verdict = Literal["helps", "hurts", "cannot tell", "no difference at all", "failed"]

ALPHA: Final = 0.05
# What an ablation calls the level that nothing was changed in.
BASE: Final = "the base"
# From so many levels on, how much their variances differ is estimated; before, each has its own.
_LEAST_LEVELS: Final = 3


@dataclass(frozen=True)
class Paired:
    """One level against the base, seed by seed.

    differences: (S,) accuracy of the level minus that of the base. by_image: (S, N) the same of
    each image, in -1, 0, 1, or None where only accuracies are known.
    """

    differences: NDArray[np.float64]
    by_image: NDArray[np.int8] | None = None


@dataclass(frozen=True)
class Estimate:
    """interval: 95 % for this level alone. wide: 95 % for all levels together (Bonferroni).

    from_seeds, from_images: the standard errors that the two kinds of luck give.
    """

    difference: float
    interval: Interval
    wide: Interval
    p_value: float
    p_adjusted: float
    from_seeds: float
    from_images: float


@dataclass(frozen=True)
class Effect:
    """One level of a factor: what it changes, and what that did.

    estimate: None where fewer than two of its seeds are there. log_loss: mean difference, the base
    subtracted. seconds: how many times as long as the base a training took, geometric mean; the
    runs were made one after another, so it is as steady as the machine was.
    """

    factor: str
    level: str
    settings: Mapping[str, Any]
    verdict: Verdict
    seeds: int
    failed: int
    accuracy: float | None = None
    base_accuracy: float | None = None
    differences: tuple[float, ...] = ()
    estimate: Estimate | None = None
    log_loss: float | None = None
    seconds: float | None = None
    reason: str = ""


def moderated(variances: Sequence[float], df: Sequence[int]) -> tuple[list[float], float]:
    """Each variance drawn towards what the others say, and the degrees of freedom that this adds.

    Smyth 2004, section 6.2. variances: positive. Unchanged, and 0, for fewer than three.
    """
    s2, d = np.asarray(variances, np.float64), np.asarray(df, np.float64)
    if len(s2) < _LEAST_LEVELS:
        return [float(each) for each in s2], 0.0
    e = np.log(s2) - special.digamma(d / 2) + np.log(d / 2)
    excess = float(np.var(e, ddof=1) - special.polygamma(1, d / 2).mean())
    if excess <= 0.0:
        # No more different than such estimates of one variance are.
        prior, added = math.exp(float(e.mean())), math.inf
        return [prior] * len(s2), added
    added = 2.0 * _trigamma_inverse(excess)
    prior = math.exp(float(e.mean()) + special.digamma(added / 2) - math.log(added / 2))
    return [float(each) for each in (added * prior + d * s2) / (added + d)], added


def _trigamma_inverse(y: float) -> float:
    """x > 0 with trigamma(x) = y, by Newton's method on 1 / trigamma (Smyth 2004, appendix)."""
    x = 0.5 + 1.0 / y
    for _ in range(60):
        value = float(special.polygamma(1, x))
        change = value * (1.0 - value / y) / float(special.polygamma(2, x))
        x += change
        if abs(change) < 1e-10 * x:
            break
    return x


def estimate(levels: Sequence[Paired]) -> list[Estimate]:
    """The effects of some levels, judged together.

    Raises:
        ValueError: a level with fewer than two seeds.
    """
    if not levels:
        return []
    if min(len(each.differences) for each in levels) < 2:
        raise ValueError("two seeds are the least from which luck can be seen")
    df = [len(each.differences) - 1 for each in levels]
    still = [_is_still(each) for each in levels]
    moving = [k for k, each in enumerate(still) if not each]
    drawn, added = moderated([_variance(levels[k]) for k in moving], [df[k] for k in moving])
    variances = dict(zip(moving, drawn, strict=True))
    pooled = sum(df[k] for k in moving)
    found = []
    for k, level in enumerate(levels):
        mean = float(np.mean(level.differences))
        if k not in variances:
            found.append((mean, 0.0, 0.0, math.inf))
            continue
        by_seeds = variances[k] / len(level.differences)
        by_images = _of_images(level)
        whole = by_seeds + by_images
        # Never more than all the levels together have: what they share was estimated from them.
        freedom = min(df[k] + added, pooled) * (whole / by_seeds) ** 2
        found.append((mean, by_seeds, by_images, freedom))
    p_values = [_p_value(mean, seeds + images, freedom) for mean, seeds, images, freedom in found]
    return [
        Estimate(
            difference=mean,
            interval=_around(mean, seeds + images, freedom, ALPHA),
            wide=_around(mean, seeds + images, freedom, ALPHA / len(levels)),
            p_value=p,
            p_adjusted=adjusted,
            from_seeds=math.sqrt(seeds),
            from_images=math.sqrt(images),
        )
        for (mean, seeds, images, freedom), p, adjusted in zip(
            found, p_values, holm(p_values), strict=True
        )
    ]


def _is_still(level: Paired) -> bool:
    """Nothing differed anywhere: the change does not reach the result."""
    if level.by_image is not None:
        return not level.by_image.any()
    return not np.any(level.differences)


def _variance(level: Paired) -> float:
    """Among seeds. Accuracies are multiples of 1 / N; finer than that no variance is."""
    n = 10_000 if level.by_image is None else level.by_image.shape[1]
    return max(float(np.var(level.differences, ddof=1)), 1.0 / (6.0 * n * n))


def _of_images(level: Paired) -> float:
    """What other images would change, beyond what the seeds show already."""
    if level.by_image is None or level.by_image.shape[1] < 2:
        return 0.0
    seeds, n = (int(each) for each in level.by_image.shape)
    table = level.by_image.astype(np.float64)
    of_images = table.mean(axis=0)
    rest = table - of_images - table.mean(axis=1, keepdims=True) + table.mean()
    alone = float(np.var(of_images, ddof=1)) / n
    meeting = float((rest**2).sum()) / ((seeds - 1) * (n - 1) * n * seeds)
    return max(0.0, alone - meeting)


def _p_value(mean: float, variance: float, df: float) -> float:
    if variance == 0.0:
        return 1.0
    return float(2.0 * stats.t.sf(abs(mean) / math.sqrt(variance), df))


def _around(mean: float, variance: float, df: float, alpha: float) -> Interval:
    if variance == 0.0:
        return mean, mean
    reach = float(stats.t.isf(alpha / 2.0, df)) * math.sqrt(variance)
    return mean - reach, mean + reach


def holm(p_values: Sequence[float]) -> list[float]:
    """p values adjusted so that the chance of any false alarm among them is kept; Holm 1979."""
    order = sorted(range(len(p_values)), key=lambda k: p_values[k])
    adjusted = [1.0] * len(p_values)
    largest = 0.0
    for rank, k in enumerate(order):
        largest = max(largest, (len(p_values) - rank) * p_values[k])
        adjusted[k] = min(1.0, largest)
    return adjusted


# ---- Of a study ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Answers:
    """What one finished trial said of the validation images."""

    accuracy: float
    log_loss: float | None
    seconds: float
    right: NDArray[np.bool_] | None


def trial_number(level: int, seed: int, seeds: int) -> int:
    """Which trial of an ablation trains that level, 0 being the base, with that seed."""
    return 1 + level * seeds + seed


def of_study(study: Study) -> tuple[Effect, ...]:
    """The effects in an ablation, also of one that is not finished; in the order of its plan.

    Raises:
        DamagedError: a file of the study cannot be read.
    """
    levels: list[dict[str, Any]] = study.asked["levels"]
    seeds = int(study.asked["seeds"])
    trials = {trial.number: trial for trial in study.trials()}
    answers = {
        number: _answers(study, trial)
        for number, trial in trials.items()
        if trial.status == "finished" and trial.last is not None
    }
    base = {seed: answers.get(trial_number(0, seed, seeds)) for seed in range(seeds)}
    paired: list[Paired | None] = []
    parts = []
    for level in range(1, len(levels)):
        pairs = []
        for seed in range(seeds):
            ours, other = answers.get(trial_number(level, seed, seeds)), base[seed]
            if ours is not None and other is not None:
                pairs.append((ours, other))
        parts.append(pairs)
        paired.append(_paired(pairs) if len(pairs) >= 2 else None)
    estimates = iter(estimate([each for each in paired if each is not None]))
    found = []
    for level, pairs, known in zip(range(1, len(levels)), parts, paired, strict=True):
        own = [trials.get(trial_number(level, seed, seeds)) for seed in range(seeds)]
        found.append(_effect(levels[level], own, pairs, None if known is None else next(estimates)))
    return tuple(found)


def _answers(study: Study, trial: Trial) -> _Answers:
    assert trial.last is not None
    right = None
    with contextlib.suppress(VidiError, KeyError):
        arrays = study.trial_run(trial.number).read_predictions("validation")
        right = arrays["probabilities"].argmax(axis=1) == arrays["labels"]
    last = trial.last
    # The answers are predicted in float32, whatever the training computed in.
    accuracy = last.accuracy if right is None else float(right.mean())
    # A training whose process died has lost count of its time.
    seconds = 0.0 if trial.retries else last.seconds
    return _Answers(accuracy, last.log_loss, seconds, right)


def _paired(pairs: Sequence[tuple[_Answers, _Answers]]) -> Paired:
    differences = np.array([ours.accuracy - base.accuracy for ours, base in pairs])
    lengths = {None if a.right is None else len(a.right) for pair in pairs for a in pair}
    if lengths == {None} or len(lengths) != 1:
        return Paired(differences)
    table = [
        np.asarray(ours.right, np.int8) - np.asarray(base.right, np.int8) for ours, base in pairs
    ]
    return Paired(differences, np.stack(table))


def _effect(
    level: Mapping[str, Any],
    trials: Sequence[Trial | None],
    pairs: Sequence[tuple[_Answers, _Answers]],
    known: Estimate | None,
) -> Effect:
    failed = [each for each in trials if each is not None and each.status == "failed"]
    losses = [
        ours.log_loss - base.log_loss
        for ours, base in pairs
        if ours.log_loss is not None and base.log_loss is not None
    ]
    ratios = [a.seconds / b.seconds for a, b in pairs if a.seconds > 0 and b.seconds > 0]
    verdict: Verdict = "cannot tell"
    if known is None:
        verdict = "failed" if failed else "cannot tell"
    elif known.from_seeds == 0.0 and known.difference == 0.0:
        verdict = "no difference at all"
    elif known.p_adjusted < ALPHA:
        verdict = "helps" if known.difference > 0 else "hurts"
    return Effect(
        factor=str(level["factor"]),
        level=str(level["level"]),
        settings=level["settings"],
        verdict=verdict,
        seeds=len(pairs),
        failed=len(failed),
        accuracy=float(np.mean([ours.accuracy for ours, _ in pairs])) if pairs else None,
        base_accuracy=float(np.mean([base.accuracy for _, base in pairs])) if pairs else None,
        differences=tuple(ours.accuracy - base.accuracy for ours, base in pairs),
        estimate=known,
        log_loss=float(np.mean(losses)) if losses else None,
        seconds=math.exp(float(np.mean(np.log(ratios)))) if ratios else None,
        reason=failed[0].reason if failed else "",
    )
