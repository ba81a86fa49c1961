"""Predictions -> Evaluation: every number with an interval, computed from saved predictions.

A new metric, threshold or interval never needs the model again, and two models are compared image
by image. Nothing here imports torch. Every number is finite: what cannot be computed is `None` and
a sentence in `Evaluation.notes` says why.
"""

from __future__ import annotations

from vidi.metrics.comparison import compare
from vidi.metrics.evaluation import Metric, evaluate
from vidi.metrics.intervals import wilson
from vidi.metrics.predictions import Predictions
from vidi.metrics.scores import (
    accuracy,
    balanced_accuracy,
    log_loss,
    macro_f1,
    quick_scores,
    top_k_accuracy,
)
from vidi.metrics.trust import PRECISIONS, fit_temperature, threshold_for
from vidi.metrics.values import (
    Calibration,
    CalibrationBin,
    ClassCurve,
    ClassScore,
    Comparison,
    Confused,
    CoveragePoint,
    Evaluation,
    GroupScore,
    Interval,
    Replaced,
    Temperature,
    Threshold,
)

__all__ = [
    "PRECISIONS",
    "Calibration",
    "CalibrationBin",
    "ClassCurve",
    "ClassScore",
    "Comparison",
    "Confused",
    "CoveragePoint",
    "Evaluation",
    "GroupScore",
    "Interval",
    "Metric",
    "Predictions",
    "Replaced",
    "Temperature",
    "Threshold",
    "accuracy",
    "balanced_accuracy",
    "compare",
    "evaluate",
    "fit_temperature",
    "log_loss",
    "macro_f1",
    "quick_scores",
    "threshold_for",
    "top_k_accuracy",
    "wilson",
]
