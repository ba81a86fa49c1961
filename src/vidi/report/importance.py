"""Which setting mattered: functional ANOVA over the trials of a study, with how sure that is.

Hutter, Hoos and Leyton-Brown 2014: a random forest learns accuracy from settings, and the variance
of what it predicts is divided among them. The numbers are about the forest, so two things are
measured beside them: how far they move when the trials are drawn again, and how well the forest
predicts trials that it did not see.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

Scale = Literal["linear", "log", "choice"]

# Fewer trials than this say nothing that a look at them does not say better.
LEAST_TRIALS: Final = 10
# A forest over more trials takes seconds; these are drawn evenly.
_MOST_TRIALS: Final = 120
_TREES: Final = 32
_RESAMPLES: Final = 8
_TREES_AGAIN: Final = 8
# Positive values that span this factor were searched over their logarithm, or should have been.
_LOG_SPAN: Final = 20.0


@dataclass(frozen=True)
class Axis:
    """A setting that differed among trials. `choices` in the order of their names."""

    name: str
    scale: Scale
    low: float = 0.0
    high: float = 0.0
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Share:
    """How much of the variance a setting alone accounts for, 0 to 1.

    low, high: the range over trials drawn again, with putting back.
    """

    name: str
    share: float
    low: float
    high: float


@dataclass(frozen=True)
class Importances:
    """The largest share first. predicted: of the variance of trials that the forest did not see,
    what it foresaw; below about 0.2 the shares say little."""

    shares: tuple[Share, ...]
    num_trials: int
    predicted: float
    resamples: int


def worded(value: Any) -> str:
    """A choice as it is shown: True as "yes", None as "none", (32, 64) as "32, 64"."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(worded(each) for each in value)
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def axes_of(settings: Sequence[Mapping[str, Any]]) -> list[Axis]:
    """The settings that differ among these trials, in the order in which they first appear."""
    names = list(dict.fromkeys(name for each in settings for name in each))
    found = []
    for name in names:
        values = [each[name] for each in settings if name in each]
        if all(_is_number(value) for value in values) and len(set(values)) > 2:
            low, high = float(min(values)), float(max(values))
            scale: Scale = "log" if low > 0 and high / low >= _LOG_SPAN else "linear"
            found.append(Axis(name, scale, low, high))
        elif len(choices := sorted({worded(value) for value in values})) > 1:
            found.append(Axis(name, "choice", choices=tuple(choices)))
    return found


def _is_number(value: object) -> bool:
    fits = isinstance(value, int | float) and not isinstance(value, bool)
    return fits and math.isfinite(float(value))  # type: ignore[arg-type]


def importances(
    settings: Sequence[Mapping[str, Any]], scores: Sequence[float], axes: Sequence[Axis]
) -> Importances | None:
    """Shares of the axes that every trial has; None where trials are too few or all alike.

    settings, scores: one of each for every trial, judged after the same number of steps.
    """
    common = [axis for axis in axes if all(axis.name in each for each in settings)]
    target = np.asarray(scores, dtype=np.float64)
    if len(target) < LEAST_TRIALS or not common or np.ptp(target) == 0.0:
        return None
    chosen = np.unique(np.linspace(0, len(target) - 1, min(len(target), _MOST_TRIALS)).astype(int))
    columns = np.stack(
        [[_placed(settings[i][axis.name], axis) for i in chosen] for axis in common], axis=1
    )
    target = target[chosen]
    whole = _shares(columns, target, common, seed=0, trees=_TREES)
    rng = np.random.default_rng(0)
    again = []
    for seed in range(_RESAMPLES):
        drawn = rng.integers(0, len(target), len(target))
        if np.ptp(target[drawn]) > 0.0:
            again.append(
                _shares(columns[drawn], target[drawn], common, seed=seed, trees=_TREES_AGAIN)
            )
    spread = np.array(again) if again else whole[None]
    shares = [
        Share(axis.name, float(whole[k]), float(spread[:, k].min()), float(spread[:, k].max()))
        for k, axis in enumerate(common)
    ]
    shares.sort(key=lambda each: -each.share)
    return Importances(tuple(shares), len(target), _foreseen(columns, target), len(again))


def _placed(value: Any, axis: Axis) -> float:
    if axis.scale == "choice":
        return float(axis.choices.index(worded(value)))
    return math.log10(value) if axis.scale == "log" else float(value)


def _shares(
    columns: NDArray[np.float64],
    target: NDArray[np.float64],
    axes: Sequence[Axis],
    *,
    seed: int,
    trees: int,
) -> NDArray[np.float64]:
    """(K,) shares of the K axes. columns: (N, K); choices as their number."""
    # Optuna takes a fifth of a second to import, and only the page of a study needs it.
    import optuna  # noqa: PLC0415
    from optuna.distributions import CategoricalDistribution, FloatDistribution  # noqa: PLC0415

    distributions: dict[str, Any] = {}
    for k, axis in enumerate(axes):
        values = columns[:, k]
        distributions[str(k)] = (
            CategoricalDistribution(tuple(range(len(axis.choices))))
            if axis.scale == "choice"
            else FloatDistribution(float(values.min()), float(values.max()))
        )
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study()
        for row, value in zip(columns, target, strict=True):
            params = {
                str(k): int(row[k]) if axis.scale == "choice" else float(row[k])
                for k, axis in enumerate(axes)
            }
            study.add_trial(
                optuna.trial.create_trial(
                    params=params, distributions=distributions, value=float(value)
                )
            )
        evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=trees, seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = evaluator.evaluate(study)
    finally:
        optuna.logging.set_verbosity(before)
    return np.array([float(found.get(str(k), 0.0)) for k in range(len(axes))])


def _foreseen(columns: NDArray[np.float64], target: NDArray[np.float64]) -> float:
    """The share of the variance of left-out trials that a forest of the others foretells."""
    from sklearn.ensemble import RandomForestRegressor  # noqa: PLC0415 - as above
    from sklearn.model_selection import KFold, cross_val_predict  # noqa: PLC0415

    forest = RandomForestRegressor(n_estimators=32, random_state=0)
    folds = KFold(min(5, len(target)), shuffle=True, random_state=0)
    guessed = cross_val_predict(forest, columns, target, cv=folds)
    return float(1.0 - np.mean((target - guessed) ** 2) / np.var(target))
