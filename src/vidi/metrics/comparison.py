"""Two models on the same images: better, worse, or how many images it would take to tell."""

from __future__ import annotations

import math
from typing import Final, Literal

import numpy as np
from scipy import special

from vidi.errors import DataError
from vidi.metrics.intervals import Z_95, percentiles, resamples, wilson
from vidi.metrics.predictions import Predictions, checked, rows_of
from vidi.metrics.values import Comparison, Interval

_Z_POWER_80: Final = 0.8416212335729143


def compare(a: Predictions, b: Predictions) -> Comparison:
    """Is b better than a? Judged image by image on the images that both were asked about.

    The exact McNemar test (binomial on the images that only one of them got right) decides at 5 %.
    The number of images that it would take is Connor's (1987) for a power of 80 %.

    Raises:
        DataError: no common image, another number of classes, or another label for the same image.
        TrainingError: no image has finite probabilities.
    """
    if a.num_classes != b.num_classes:
        raise DataError(
            f"the two models have different classes: {a.num_classes} and {b.num_classes}",
            fix="compare models that were trained on the same data",
        )
    a, b = checked(a, "first")[0], checked(b, "second")[0]
    common, in_a, in_b = np.intersect1d(a.ids, b.ids, assume_unique=True, return_indices=True)
    n = len(common)
    if n == 0:
        raise DataError(
            "the two were judged on different images", fix="evaluate both on the same split"
        )
    differing = np.flatnonzero(a.labels[in_a] != b.labels[in_b])
    if len(differing):
        raise DataError(
            f"{len(differing):,} images have another label in each, first id "
            f"{common[differing[0]]}",
            fix="compare runs on the same data",
        )
    n_a, n_b = len(a), len(b)
    a, b = a.take(in_a), b.take(in_b)
    rows_a, rows_b = rows_of(a), rows_of(b)
    right_a, right_b = rows_a.predicted == a.labels, rows_b.predicted == b.labels
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    both_right = int((right_a & right_b).sum())
    p_value = _mcnemar(only_a, only_b)
    difference = (only_b - only_a) / n
    discordant = (only_a + only_b) / n
    verdict: Literal["better", "worse", "cannot tell"] = "cannot tell"
    if p_value < 0.05:
        verdict = "better" if difference > 0 else "worse"
    change = rows_b.surprise - rows_a.surprise
    return Comparison(
        n=n,
        n_only_in_a=n_a - n,
        n_only_in_b=n_b - n,
        accuracy_a=(both_right + only_a) / n,
        accuracy_b=(both_right + only_b) / n,
        difference=difference,
        difference_interval=_paired_interval(only_a, only_b, n),
        only_a_right=only_a,
        only_b_right=only_b,
        both_right=both_right,
        both_wrong=n - both_right - only_a - only_b,
        p_value=p_value,
        verdict=verdict,
        images_to_tell=_images_to_tell(difference, discordant),
        smallest_difference=_smallest_difference(only_a + only_b, n),
        log_loss_difference=float(change.mean()),
        log_loss_interval=percentiles(
            np.array([change[index].mean() for index in resamples(n)]), float(change.mean())
        ),
    )


def _mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided exact binomial test of 1 : 1 on the images that only one got right."""
    if only_a == only_b:
        return 1.0
    n = only_a + only_b
    return min(1.0, 2 * float(special.bdtr(min(only_a, only_b), n, 0.5)))


def _paired_interval(only_a: int, only_b: int, n: int) -> Interval:
    a, b = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    half = Z_95 * math.sqrt((a + b - (b - a) ** 2) / (n + 2))
    difference = (only_b - only_a) / n
    return (
        min(max(-1.0, b - a - half), difference),
        max(min(1.0, b - a + half), difference),
    )


def _images_to_tell(difference: float, discordant: float) -> int | None:
    if difference == 0:
        return None
    spread = max(discordant - difference**2, 0.0)
    root = Z_95 * math.sqrt(discordant) + _Z_POWER_80 * math.sqrt(spread)
    # The exact test never rejects with fewer than six discordant images: 2 * 0.5 ** 6 = 0.03.
    return math.ceil(max((root / difference) ** 2, 6 / discordant))


def _smallest_difference(discordant: int, n: int) -> float:
    """Connor's formula turned round; with no discordant image, with the most there may be."""
    share = discordant / n if discordant else wilson(0, n)[1]
    return min(1.0, max((Z_95 + _Z_POWER_80) * math.sqrt(share / n), 6 / n))
