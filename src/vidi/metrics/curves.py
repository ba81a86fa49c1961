"""One class against the rest: ROC and precision-recall curves and the areas under them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vidi.metrics.values import ClassCurve

_CURVES: Final = 20
_CURVE_POINTS: Final = 101


def areas_of(
    probabilities: NDArray[np.float32], labels: NDArray[np.int64], label: int
) -> tuple[float | None, float | None]:
    """Area under the ROC curve and average precision of one class.

    One sort and two binary searches per class: both areas need only the ranks of the images that
    have the label (Mann-Whitney; ties count half).
    """
    column = np.ascontiguousarray(probabilities[:, label])
    positives = np.sort(column[labels == label])
    n, n_positive = len(column), len(positives)
    if n_positive in (0, n):
        return None, None
    column.sort()
    below = np.searchsorted(column, positives, side="left")
    not_above = np.searchsorted(column, positives, side="right")
    ranks = (below + not_above + 1) / 2
    n_negative = n - n_positive
    auc = (ranks.sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)
    # At the threshold of each positive: positives and images at or above it.
    positives_above = n_positive - np.searchsorted(positives, positives, side="left")
    return float(auc), float((positives_above / (n - below)).mean())


def labels_to_draw(areas: Sequence[tuple[float | None, float | None]]) -> list[int]:
    known = [(precision, label) for label, (_, precision) in enumerate(areas) if precision]
    return sorted(label for _, label in sorted(known)[:_CURVES])


def curve_of(scores: NDArray[np.float32], positive: NDArray[np.bool_], label: int) -> ClassCurve:
    order = np.argsort(-scores, kind="stable")
    scores, positive = scores[order], positive[order]
    last = np.flatnonzero(np.append(np.diff(scores) != 0, True))
    above = np.cumsum(positive)[last]
    false = last + 1 - above
    recall, fall_out = above / above[-1], false / false[-1]
    precision = above / (last + 1)
    roc = _thinned(np.concatenate(([0.0], fall_out)), np.concatenate(([0.0], recall)))
    pr = _thinned(recall, precision)
    return ClassCurve(
        label=label,
        false_positive_rate=tuple(roc[0]),
        recall=tuple(roc[1]),
        pr_recall=tuple(pr[0]),
        pr_precision=tuple(pr[1]),
    )


def _thinned(
    x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """At most 101 of the points, spread evenly along the drawn line, ends included."""
    if len(x) <= _CURVE_POINTS:
        return x, y
    along = np.concatenate(([0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))))
    chosen = np.searchsorted(along, np.linspace(0, along[-1], _CURVE_POINTS))
    chosen = np.unique(np.append(chosen[:-1], [0, len(x) - 1]))
    return x[chosen], y[chosen]
