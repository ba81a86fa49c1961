"""Whether probabilities can be believed, and from which one on answers are right often enough."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from vidi.errors import UsageError
from vidi.metrics.intervals import wilson
from vidi.metrics.predictions import Predictions, checked, chunks, logits_of, rows_of
from vidi.metrics.scores import log_loss
from vidi.metrics.values import Calibration, CalibrationBin, CoveragePoint, Temperature, Threshold

BINS: Final = 15
_COVERAGE_POINTS: Final = 50
# What people ask for: nine in ten right, 19 in 20, ...
PRECISIONS: Final = (0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)


def fit_temperature(predictions: Predictions, *, fitted_on: str = "validation") -> Temperature:
    """The temperature under which these labels are most likely (Guo et al. 2017).

    Fit it on validation, never on the images that the model is judged by. Targets are smoothed by
    one image's worth, 1 / (N + 2) (Platt 1999), so that a model without a mistake on a few images
    does not become certain of everything. The result lies in 0.05..20.

    Raises:
        DataError: no image, an id twice, or rows that do not sum to 1.
        TrainingError: no image has finite probabilities.
    """
    judged, _ = checked(predictions, fitted_on)
    smoothing = 1 / (len(judged) + 2)

    # Per chunk: logits with the row's largest at 0, so that no exponential overflows, and how far
    # the smoothed target lies below the largest.
    parts = []
    for rows in chunks(len(judged)):
        logits = logits_of(judged.probabilities[rows])
        logits -= logits.max(axis=1, keepdims=True)
        of_label = logits[np.arange(len(logits)), judged.labels[rows]]
        target = (1 - smoothing) * of_label + smoothing * logits.mean(axis=1)
        parts.append((logits, float(target.sum(dtype=np.float64))))

    def loss(log_temperature: float) -> float:
        sharpness = math.exp(-log_temperature)
        return sum(
            float(np.log(np.exp(logits * np.float32(sharpness)).sum(axis=1)).sum(dtype=np.float64))
            - sharpness * target
            for logits, target in parts
        ) / len(judged)

    # The loss is convex in 1 / temperature, so it has one minimum in the logarithm too.
    found = optimize.minimize_scalar(
        loss, bounds=(math.log(0.05), math.log(20.0)), method="bounded", options={"xatol": 1e-3}
    )
    value = math.exp(float(found.x))
    return Temperature(
        value=value,
        fitted_on=fitted_on,
        n=len(judged),
        log_loss_before=log_loss(judged),
        log_loss_after=log_loss(judged.scaled(value)),
    )


def threshold_for(predictions: Predictions, wanted: float) -> Threshold:
    """The lowest top probability from which on `wanted` (0..1) of the answers are right.

    Choose it on validation: on the images it was chosen on, the accuracy is a little flattering.

    Raises:
        UsageError: `wanted` is not between 0 and 1.
        DataError, TrainingError: as `evaluate`.
    """
    if not 0 < wanted <= 1:
        raise UsageError(f"a precision of {wanted} was asked for", fix="ask for 0 to 1, e.g. 0.99")
    judged, _ = checked(predictions, "given")
    rows = rows_of(judged)
    thresholds, answered, correct = _by_falling_confidence(
        rows.confidence, rows.predicted == judged.labels
    )
    reached = np.flatnonzero(correct >= wanted * answered)
    if len(reached) == 0:
        return Threshold(
            wanted=wanted,
            threshold=None,
            coverage=0.0,
            n=0,
            accuracy=None,
            accuracy_interval=None,
            sure=False,
        )
    last = reached[-1]
    n, n_correct = int(answered[last]), int(correct[last])
    interval = wilson(n_correct, n)
    return Threshold(
        wanted=wanted,
        threshold=float(thresholds[last]),
        coverage=n / len(judged),
        n=n,
        accuracy=n_correct / n,
        accuracy_interval=interval,
        sure=interval[0] >= wanted,
    )


def calibrated(judged: Predictions, temperature: Temperature) -> Calibration:
    rows = rows_of(judged.scaled(temperature.value))
    reliability = reliability_of(rows.confidence, rows.predicted == judged.labels)
    return Calibration(
        temperature=temperature,
        log_loss=float(rows.surprise.mean()),
        brier=float(rows.squared_error.mean()),
        ece=ece_of(reliability),
        reliability=reliability,
    )


def reliability_of(
    confidence: NDArray[np.float64], right: NDArray[np.bool_]
) -> tuple[CalibrationBin, ...]:
    edges = np.linspace(0, 1, BINS + 1)
    index = _bin_of(confidence)
    n = np.bincount(index, minlength=BINS)
    correct = np.bincount(index, weights=right, minlength=BINS)
    total = np.bincount(index, weights=confidence, minlength=BINS)
    return tuple(
        CalibrationBin(
            low=float(edges[i]),
            high=float(edges[i + 1]),
            n=int(n[i]),
            confidence=float(total[i] / n[i]) if n[i] else None,
            accuracy=float(correct[i] / n[i]) if n[i] else None,
            accuracy_interval=wilson(int(correct[i]), int(n[i])) if n[i] else None,
        )
        for i in range(BINS)
    )


def _bin_of(confidence: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.minimum((confidence * BINS).astype(np.int64), BINS - 1)


def ece_of(reliability: Sequence[CalibrationBin]) -> float:
    gaps = [
        each.n * abs(each.accuracy - each.confidence)
        for each in reliability
        if each.accuracy is not None and each.confidence is not None
    ]
    return sum(gaps) / sum(each.n for each in reliability)


def noise_of_ece(confidence: NDArray[np.float64]) -> float:
    """The 95th percentile of the ECE of 200 sets of answers that are right as often as they say.

    After the consistency resampling of Broecker and Smith (2007). A finite test set never gives
    an ECE of 0: with 372 images a perfect model shows 2 to 4 %.
    """
    rng = np.random.default_rng(0)
    index = _bin_of(confidence)
    order = np.argsort(index, kind="stable")
    index, confidence = index[order], confidence[order]
    starts = np.flatnonzero(np.diff(index, prepend=-1))
    errors = [
        np.abs(np.add.reduceat((rng.random(len(confidence)) < confidence) - confidence, starts))
        for _ in range(200)
    ]
    return float(np.percentile([each.sum() / len(confidence) for each in errors], 95))


def _by_falling_confidence(
    confidence: NDArray[np.float64], right: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """For each threshold that makes a difference: itself, images answered, of those right."""
    order = np.argsort(-confidence, kind="stable")
    confidence, correct = confidence[order], np.cumsum(right[order], dtype=np.int64)
    last = np.flatnonzero(np.append(np.diff(confidence) != 0, True)).astype(np.int64)
    return confidence[last], last + 1, correct[last]


def coverage_of(
    confidence: NDArray[np.float64], right: NDArray[np.bool_]
) -> tuple[CoveragePoint, ...]:
    thresholds, answered, correct = _by_falling_confidence(confidence, right)
    wanted = np.linspace(1, 0, _COVERAGE_POINTS, endpoint=False) * len(confidence)
    chosen = np.unique(np.searchsorted(answered, np.maximum(wanted, 1), side="left"))[::-1]
    return tuple(
        CoveragePoint(
            threshold=float(thresholds[i]),
            coverage=int(answered[i]) / len(confidence),
            n=int(answered[i]),
            accuracy=int(correct[i]) / int(answered[i]),
            accuracy_interval=wilson(int(correct[i]), int(answered[i])),
        )
        for i in chosen
    )
