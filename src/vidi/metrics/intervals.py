"""How sure a number is: 95 % intervals of shares and of means."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vidi.metrics.values import Interval

# The two-sided 95 % point of the normal distribution, and the one-sided 80 % point (the power that
# sample sizes are stated for).
Z_95: Final = 1.959963984540054
_RESAMPLES: Final = 1000


def wilson(successes: int, n: int) -> Interval:
    """95 % score interval of a proportion (Wilson 1927); contains successes / n, stays in 0..1."""
    return score_interval(successes / n, n) if n else (0.0, 1.0)


def score_interval(share: float, n: float) -> Interval:
    z2 = Z_95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return (min(max(0.0, centre - half), share), max(min(1.0, centre + half), share))


def effective_wilson(share: float, standard_error: float, n: int) -> Interval:
    spread, variance = share * (1 - share), standard_error**2
    effective = min(max(1.0, spread / variance), n) if spread and variance else n
    return score_interval(share, effective)


def resamples(n: int) -> Iterator[NDArray[np.int64]]:
    """The same resamples for everything that is computed on n images."""
    rng = np.random.default_rng(0)
    for _ in range(_RESAMPLES):
        yield rng.integers(0, n, n)


def percentiles(values: NDArray[np.float64], estimate: float) -> Interval:
    """The middle 95 %, widened to the estimate where a skewed bootstrap leaves it outside."""
    low, high = np.percentile(values, [2.5, 97.5])
    return (min(float(low), estimate), max(float(high), estimate))
