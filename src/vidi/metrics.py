"""Predictions -> Evaluation: every number with an interval, computed from saved predictions.

A new metric, threshold or interval never needs the model again, and two models are compared image
by image. Nothing here imports torch. Every number is finite: what cannot be computed is `None` and
a sentence in `Evaluation.notes` says why.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from vidi.errors import DamagedError, DataError, TrainingError, UsageError
from vidi.facts import Frozen

__all__ = [
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
    "Predictions",
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

# (low, high) of a 95 % interval.
Interval = tuple[float, float]
Metric = Callable[["Predictions"], float]

# The two-sided 95 % point of the normal distribution, and the one-sided 80 % point (the power that
# sample sizes are stated for).
_Z_95: Final = 1.959963984540054
_Z_POWER_80: Final = 0.8416212335729143
# Rows looked at in one go: 8192 x 1000 classes of float64 are 64 MB.
_ROWS: Final = 8192
# What a probability is cut off at before its logarithm is taken: the spacing of float32, as
# scikit-learn does, so that one confident mistake costs at most 15.9 nats.
_SMALLEST: Final = float(np.finfo(np.float32).eps)
_BINS: Final = 15
_RESAMPLES: Final = 1000
_MOST_CONFUSED: Final = 20
_COVERAGE_POINTS: Final = 50
_CURVES: Final = 20
_CURVE_POINTS: Final = 101


@dataclass(frozen=True)
class Predictions:
    """What a model said about each image of a split; everything else is computed from it.

    ids: (N,) int64, the samples' indices in their Dataset, each once.
    labels: (N,) int64, 0 to K - 1.
    probabilities: (N, K) float32, rows sum to 1.
    """

    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float32]

    def __post_init__(self) -> None:
        shape = self.probabilities.shape
        if len(shape) != 2 or self.ids.shape != shape[:1] or self.labels.shape != shape[:1]:
            raise DataError(
                f"predictions do not fit together: ids {self.ids.shape}, labels "
                f"{self.labels.shape}, probabilities {shape}"
            )
        if len(self) and not 0 <= self.labels.min() <= self.labels.max() < shape[1]:
            raise DataError(
                f"labels run from {self.labels.min()} to {self.labels.max()}, but the model "
                f"has {shape[1]} classes"
            )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_classes(self) -> int:
        return int(self.probabilities.shape[1])

    def take(self, index: NDArray[np.int64] | NDArray[np.bool_]) -> Predictions:
        """The images at these positions, or where a mask is true."""
        return Predictions(self.ids[index], self.labels[index], self.probabilities[index])

    def scaled(self, temperature: float) -> Predictions:
        """The same predictions with their logits divided by `temperature`."""
        scaled = np.empty_like(self.probabilities)
        for rows in _chunks(len(self)):
            scaled[rows] = _soften(_logits(self.probabilities[rows]), 1 / temperature)
        return Predictions(self.ids, self.labels, scaled)

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """By name, in the types that are written to disk."""
        return {
            "ids": self.ids.astype(np.int64, copy=False),
            "labels": self.labels.astype(np.int64, copy=False),
            "probabilities": self.probabilities.astype(np.float32, copy=False),
        }

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, NDArray[Any]], *, where: str = "the predictions file"
    ) -> Self:
        """What `arrays` gave.

        Raises:
            DamagedError: arrays are missing, have another type, or do not fit together.
        """
        kinds = {"ids": np.int64, "labels": np.int64, "probabilities": np.float32}
        for name, kind in kinds.items():
            if name not in arrays:
                raise DamagedError(f"{where} has no {name}", fix=_EVALUATE_AGAIN)
            if arrays[name].dtype != kind:
                raise DamagedError(
                    f"{where}: {name} are {arrays[name].dtype} instead of {np.dtype(kind)}",
                    fix=_EVALUATE_AGAIN,
                )
        try:
            return cls(arrays["ids"], arrays["labels"], arrays["probabilities"])
        except DataError as error:
            raise DamagedError(f"{where}: {error.message}", fix=_EVALUATE_AGAIN) from error

    def to_bytes(self) -> bytes:
        """An uncompressed npz archive; the same predictions always give the same bytes."""
        buffer = io.BytesIO()
        np.savez(buffer, **self.arrays())  # type: ignore[arg-type]
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, *, where: str = "the predictions file") -> Self:
        """Read what `to_bytes` wrote.

        Raises:
            DamagedError: not such an archive. Compressed members are refused, so that a small
                file cannot ask for much memory.
        """
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                    raise DamagedError(f"{where} has compressed members", fix=_EVALUATE_AGAIN)
            with np.load(io.BytesIO(data), allow_pickle=False) as opened:
                arrays = {name: opened[name] for name in opened.files}
        except _UNREADABLE as error:
            raise DamagedError(
                f"{where} cannot be read: {type(error).__name__}: {error}", fix=_EVALUATE_AGAIN
            ) from error
        return cls.from_arrays(arrays, where=where)


# What zipfile and numpy raise on a damaged archive, found by flipping its bytes.
_UNREADABLE: Final = (
    zipfile.BadZipFile,
    EOFError,
    KeyError,
    MemoryError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
_EVALUATE_AGAIN: Final = "evaluate the run again; the old file can be deleted"


class ClassScore(Frozen):
    """One class against all others. `None` where the class has no image, or nothing to divide by.

    The intervals are Wilson's. That of F1 is the interval of the Jaccard index
    J = TP / (TP + FP + FN), a proportion, carried over by F1 = 2 J / (1 + J), which is monotone.
    """

    name: str
    # Images whose label it is, and images that were given it.
    n: int
    predicted: int
    correct: int
    precision: float | None
    recall: float | None
    f1: float | None
    precision_interval: Interval | None
    recall_interval: Interval | None
    f1_interval: Interval | None
    # Area under the ROC curve, and average precision (area under the precision-recall curve).
    auc: float | None
    average_precision: float | None


class Confused(Frozen):
    """`n` images of class `label` were called `predicted`: `share` of that class's images."""

    label: int
    predicted: int
    n: int
    share: float


class CalibrationBin(Frozen):
    """The images whose top probability lies in [low, high)."""

    low: float
    high: float
    n: int
    # Mean top probability, and the share that was right. `None` in an empty bin.
    confidence: float | None
    accuracy: float | None
    accuracy_interval: Interval | None


class CoveragePoint(Frozen):
    """Answering only where the top probability is at least `threshold`."""

    threshold: float
    coverage: float
    n: int
    accuracy: float
    accuracy_interval: Interval


class ClassCurve(Frozen):
    """ROC and precision-recall curve of one class against all others, at most 101 points each."""

    label: int
    false_positive_rate: tuple[float, ...]
    recall: tuple[float, ...]
    pr_recall: tuple[float, ...]
    pr_precision: tuple[float, ...]


class GroupScore(Frozen):
    """Accuracy on a part of the images."""

    name: str
    n: int
    accuracy: float
    accuracy_interval: Interval


class Temperature(Frozen):
    """One number that all logits are divided by, fitted on images that are not the test images."""

    value: float
    fitted_on: str
    n: int
    log_loss_before: float
    log_loss_after: float


class Calibration(Frozen):
    """How far the probabilities can be believed after `temperature`."""

    temperature: Temperature
    log_loss: float
    brier: float
    ece: float
    reliability: tuple[CalibrationBin, ...]


class Threshold(Frozen):
    """Answer only at or above `threshold`: the most images for which `wanted` is reached."""

    wanted: float
    # `None`: no threshold reaches it.
    threshold: float | None
    coverage: float
    n: int
    accuracy: float | None
    accuracy_interval: Interval | None
    # The low end of the interval reaches what was wanted too.
    sure: bool


class Evaluation(Frozen):
    """All numbers of one split. Shares are in 0..1, intervals are 95 %."""

    split: str
    classes: tuple[str, ...]
    # Images that the split has, and those that the numbers are over. They differ when a file could
    # not be read or when the model's answer was not finite (`n_not_finite`).
    n_expected: int
    n_evaluated: int
    n_not_finite: int

    accuracy: float
    accuracy_interval: Interval
    # The label is among the `top_k` = min(5, K) highest.
    top_k: int
    top5_accuracy: float
    top5_interval: Interval
    # What always naming the most frequent class would get.
    majority_accuracy: float

    # Over the `macro_classes` classes that have images. A class that was never predicted counts
    # with precision 0. Macro recall is also called balanced accuracy.
    macro_classes: int
    macro_precision: float
    macro_recall: float
    macro_f1: float
    weighted_precision: float
    weighted_recall: float
    weighted_f1: float
    macro_auc: float | None
    macro_average_precision: float | None

    # Nats; probabilities are cut off at 1.2e-7.
    log_loss: float
    # Sum over classes of squared differences, 0..2 (Brier 1950).
    brier: float
    # Expected calibration error (Guo et al. 2017), and what 95 % of perfectly calibrated models
    # with the same confidences would stay under on this many images.
    ece: float
    ece_binning: str
    ece_noise: float
    mean_confidence: float
    reliability: tuple[CalibrationBin, ...]
    calibration: Calibration | None

    # Of the averages over classes, of log_loss and of brier, by name; from 1,000 resamples of the
    # images.
    intervals: dict[str, Interval]
    per_class: tuple[ClassScore, ...]
    # The class that is found least often, and the chance that the worst of so many classes looks
    # this bad when all are found equally often (binomial, times the number of classes).
    worst_class: GroupScore
    worst_class_chance: float
    # Rows are labels, columns predictions.
    confusion: tuple[tuple[int, ...], ...]
    most_confused: tuple[Confused, ...]
    # All classes up to 20; otherwise the 20 with the lowest average precision.
    curves: tuple[ClassCurve, ...]
    # Ordered by falling coverage; the last entry of a tie in confidence stands for all.
    coverage: tuple[CoveragePoint, ...]

    # Without the images that also stand in another split; `None` when none do.
    n_leaked: int
    without_leaked: GroupScore | None
    groups: tuple[GroupScore, ...]
    worst_group: GroupScore | None
    # The user's own metrics, by the functions' names.
    extra: dict[str, float | None]
    notes: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Every image of the split was judged."""
        return self.n_evaluated == self.n_expected


class Comparison(Frozen):
    """Two models on the same images; differences are b minus a, so positive is better for b."""

    n: int
    # Images that only one of the two was asked about; they are left out.
    n_only_in_a: int
    n_only_in_b: int
    accuracy_a: float
    accuracy_b: float
    difference: float
    # Bonett and Price (2012): one image more for each side, so that two models that never disagree
    # do not get an interval of no width, as a bootstrap would give them.
    difference_interval: Interval
    only_a_right: int
    only_b_right: int
    both_right: int
    both_wrong: int
    # Exact McNemar test, two-sided.
    p_value: float
    verdict: Literal["better", "worse", "cannot tell"]
    # Images it takes to tell a difference of this size, four times out of five. `None` when no
    # difference was seen.
    images_to_tell: int | None
    # The smallest difference that this many images tell, four times out of five.
    smallest_difference: float
    log_loss_difference: float
    # Paired bootstrap over images, 1,000 resamples.
    log_loss_interval: Interval

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        points = f"{100 * self.difference:+.2f} points on {self.n:,} images"
        low, high = (100 * end for end in self.difference_interval)
        interval = f"95 % interval {low:+.2f} to {high:+.2f}"
        if self.verdict != "cannot tell":
            return f"{self.verdict}: {points} ({interval}, p = {self.p_value:.2g})"
        needed = (
            "no difference was seen"
            if self.images_to_tell is None
            else f"it would take about {self.images_to_tell:,} images to tell"
        )
        return f"cannot tell: {points} ({interval}); {needed}"


def wilson(successes: int, n: int) -> Interval:
    """95 % score interval of a proportion (Wilson 1927); contains successes / n, stays in 0..1."""
    return _score_interval(successes / n, n) if n else (0.0, 1.0)


def accuracy(predictions: Predictions) -> float:
    """Share of images whose highest probability is their label's."""
    return float((predictions.probabilities.argmax(axis=1) == predictions.labels).mean())


def top_k_accuracy(predictions: Predictions, k: int = 5) -> float:
    """Share of images whose label is among the k highest; ties go to the lower class number."""
    return float((_rows(predictions).rank < k).mean())


def log_loss(predictions: Predictions) -> float:
    """Mean negative logarithm of the label's probability, in nats."""
    rows = np.arange(len(predictions))
    return float(_surprise(predictions.probabilities[rows, predictions.labels]).mean())


def macro_f1(predictions: Predictions) -> float:
    """Mean of the F1 of all classes that have images."""
    return _averages_of(predictions)["macro_f1"]


def quick_scores(predictions: Predictions) -> tuple[float, float]:
    """(accuracy, log loss) without intervals, for a look while training.

    The log loss is NaN where a probability is; `evaluate` is what judges.
    """
    return accuracy(predictions), log_loss(predictions)


def balanced_accuracy(predictions: Predictions) -> float:
    """Mean of the recall of all classes that have images."""
    return _averages_of(predictions)["macro_recall"]


def evaluate(
    predictions: Predictions,
    classes: Sequence[str],
    *,
    n_expected: int,
    split: str = "test",
    metrics: Sequence[Metric] = (),
    temperature: Temperature | None = None,
    leaked_ids: Collection[int] = (),
    groups: Mapping[int, str] | None = None,
) -> Evaluation:
    """Judge the predictions of one split.

    Args:
        n_expected: images that the split has; unequal to what was evaluated is for the caller to
            refuse or allow.
        metrics: functions Predictions -> float; a result that is not finite becomes `None`.
        temperature: from `fit_temperature` on other images than these.
        leaked_ids: images that also stand in another split; accuracy is given without them too.
        groups: a group's name for each id; the worst group is named.

    Raises:
        DataError: an id twice, rows that do not sum to 1, another number of classes, no image.
        TrainingError: no image has finite probabilities.
    """
    if predictions.num_classes != len(classes):
        raise DataError(
            f"the predictions have {predictions.num_classes} classes, the data {len(classes)}"
        )
    judged, n_not_finite = _checked(predictions, split)
    notes: list[str] = []
    if n_not_finite:
        notes.append(
            f"The model's answer was not finite for {n_not_finite:,} images; they are not judged."
        )
    if len(judged) + n_not_finite != n_expected:
        notes.append(
            f"{n_expected - len(judged) - n_not_finite:,} of {n_expected:,} images of the split "
            "were not predicted."
        )

    labels, num_classes = judged.labels, judged.num_classes
    rows = _rows(judged)
    right = rows.predicted == labels
    n = len(judged)
    counts = _counts(labels, rows.predicted, num_classes)
    averages = _averages(*counts)
    confusion = np.bincount(
        labels * num_classes + rows.predicted, minlength=num_classes * num_classes
    ).reshape(num_classes, num_classes)

    absent = [name for name, n_label in zip(classes, counts.n, strict=True) if n_label == 0]
    if absent:
        shown = ", ".join(repr(name) for name in absent[:5]) + (", ..." if absent[5:] else "")
        one = len(absent) == 1
        notes.append(
            f"{len(absent)} {'class has' if one else 'classes have'} no image here: {shown}. "
            f"Averages are over the other {num_classes - len(absent)}."
        )
    areas = [_areas(judged.probabilities, labels, label) for label in range(num_classes)]
    per_class = tuple(
        _class_score(name, int(tp), int(n_label), int(n_predicted), *area)
        for name, tp, n_label, n_predicted, area in zip(
            classes, counts.correct, counts.n, counts.predicted, areas, strict=True
        )
    )
    worst = min(
        (score for score in per_class if score.recall is not None),
        key=lambda score: (score.recall, -score.n),
    )
    k = min(5, num_classes)
    in_top_k = int((rows.rank < k).sum())
    reliability = _reliability(rows.confidence, right)
    group_scores = _group_scores(judged.ids, right, groups or {})
    leaked = np.isin(judged.ids, np.fromiter(leaked_ids, np.int64))
    extra = {_metric_name(metric): _finite(metric(judged)) for metric in metrics}
    return Evaluation(
        split=split,
        classes=tuple(classes),
        n_expected=n_expected,
        n_evaluated=n,
        n_not_finite=n_not_finite,
        accuracy=int(right.sum()) / n,
        accuracy_interval=wilson(int(right.sum()), n),
        top_k=k,
        top5_accuracy=in_top_k / n,
        top5_interval=wilson(in_top_k, n),
        majority_accuracy=int(counts.n.max()) / n,
        macro_classes=int((counts.n > 0).sum()),
        **averages,
        macro_auc=_mean_of([auc for auc, _ in areas]),
        macro_average_precision=_mean_of([precision for _, precision in areas]),
        log_loss=float(rows.surprise.mean()),
        brier=float(rows.squared_error.mean()),
        ece=_ece(reliability),
        ece_binning=f"{_BINS} bins of equal width of the top probability",
        ece_noise=_ece_noise(rows.confidence),
        mean_confidence=float(rows.confidence.mean()),
        reliability=reliability,
        calibration=None if temperature is None else _calibration(judged, temperature),
        intervals=_bootstrap(labels, rows, num_classes, averages),
        per_class=per_class,
        worst_class=GroupScore(
            name=worst.name,
            n=worst.n,
            accuracy=worst.correct / worst.n,
            accuracy_interval=wilson(worst.correct, worst.n),
        ),
        worst_class_chance=min(
            1.0,
            float(special.bdtr(worst.correct, worst.n, right.mean())) * int((counts.n > 0).sum()),
        ),
        confusion=tuple(map(tuple, confusion.tolist())),
        most_confused=_most_confused(confusion),
        curves=tuple(
            _curve(judged.probabilities[:, label], labels == label, label)
            for label in _labels_to_draw(areas)
        ),
        coverage=_coverage(rows.confidence, right),
        n_leaked=int(leaked.sum()),
        without_leaked=(
            _group_score("without leaked images", right[~leaked])
            if leaked.any() and not leaked.all()
            else None
        ),
        groups=group_scores,
        worst_group=min(group_scores, key=lambda group: group.accuracy, default=None),
        extra=extra,
        notes=tuple(notes),
    )


def fit_temperature(predictions: Predictions, *, fitted_on: str = "validation") -> Temperature:
    """The temperature under which these labels are most likely (Guo et al. 2017).

    Fit it on validation, never on the images that the model is judged by. Targets are smoothed by
    one image's worth, 1 / (N + 2) (Platt 1999), so that a model without a mistake on a few images
    does not become certain of everything. The result lies in 0.05..20.

    Raises:
        DataError: no image, an id twice, or rows that do not sum to 1.
        TrainingError: no image has finite probabilities.
    """
    judged, _ = _checked(predictions, fitted_on)
    smoothing = 1 / (len(judged) + 2)

    # Per chunk: logits with the row's largest at 0, so that no exponential overflows, and how far
    # the smoothed target lies below the largest.
    parts = []
    for rows in _chunks(len(judged)):
        logits = _logits(judged.probabilities[rows])
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
    judged, _ = _checked(predictions, "given")
    rows = _rows(judged)
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
            f"the two models have different classes: {a.num_classes} and {b.num_classes}"
        )
    a, b = _checked(a, "first")[0], _checked(b, "second")[0]
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
    rows_a, rows_b = _rows(a), _rows(b)
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
        log_loss_interval=_percentiles(
            np.array([change[index].mean() for index in _resamples(n)]), float(change.mean())
        ),
    )


# ---------------------------------------------------------------------------------------- per image


@dataclass(frozen=True)
class _Rows:
    """Per image, each (N,): everything that needs the whole row of probabilities."""

    predicted: NDArray[np.int64]
    # The highest probability, as float64.
    confidence: NDArray[np.float64]
    # How many classes stand before the label; 0 is right.
    rank: NDArray[np.int64]
    # Negative logarithm of the label's probability.
    surprise: NDArray[np.float64]
    # Sum over classes of (probability - target) squared.
    squared_error: NDArray[np.float64]


def _chunks(n: int) -> Iterator[slice]:
    for start in range(0, n, _ROWS):
        yield slice(start, start + _ROWS)


def _rows(predictions: Predictions) -> _Rows:
    n = len(predictions)
    predicted, rank = np.empty(n, np.int64), np.empty(n, np.int64)
    confidence, of_label, squares = (np.empty(n, np.float64) for _ in range(3))
    for rows in _chunks(n):
        block, labels = predictions.probabilities[rows], predictions.labels[rows]
        each = np.arange(len(block))
        own = block[each, labels][:, None]
        predicted[rows] = block.argmax(axis=1)
        confidence[rows] = block[each, predicted[rows]]
        of_label[rows] = own[:, 0]
        # Ties go to the lower class number, as argmax decides them.
        earlier = np.arange(block.shape[1])[None, :] < labels[:, None]
        rank[rows] = ((block > own) | ((block == own) & earlier)).sum(axis=1)
        squares[rows] = np.einsum("nk,nk->n", block, block, dtype=np.float64)
    # A row that sums to a little more than 1 may hold a probability a little above it.
    return _Rows(
        predicted=predicted,
        confidence=np.minimum(confidence, 1.0),
        rank=rank,
        surprise=_surprise(of_label),
        squared_error=np.maximum(squares - 2 * of_label + 1, 0.0),
    )


def _surprise(of_label: NDArray[np.floating]) -> NDArray[np.float64]:
    return -np.log(np.clip(of_label.astype(np.float64), _SMALLEST, 1.0))


def _logits(probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))


def _soften(logits: NDArray[np.float32], sharpness: float) -> NDArray[np.float32]:
    scaled = logits * np.float32(sharpness)
    scaled -= scaled.max(axis=1, keepdims=True)
    np.exp(scaled, out=scaled)
    scaled /= scaled.sum(axis=1, keepdims=True)
    return scaled


def _checked(predictions: Predictions, split: str) -> tuple[Predictions, int]:
    """Ordered by id, without the rows that are not finite, and how many those were."""
    n = len(predictions)
    if n == 0:
        raise DataError(f"there is no image to judge in the {split} split")
    ids = predictions.ids
    if not (np.diff(ids) > 0).all():
        predictions = predictions.take(np.argsort(ids, kind="stable"))
        repeated = np.flatnonzero(np.diff(predictions.ids) == 0)
        if len(repeated):
            raise DataError(
                f"image {predictions.ids[repeated[0]]} of the {split} split was predicted twice"
            )
    totals = np.empty(n, np.float64)
    for rows in _chunks(n):
        totals[rows] = predictions.probabilities[rows].sum(axis=1, dtype=np.float64)
    finite = np.isfinite(totals)
    n_finite = int(finite.sum())
    if n_finite == 0:
        raise TrainingError(
            f"the model's answer is not finite for any image of the {split} split",
            fix="the training diverged: a lower learning rate helps",
        )
    off = np.flatnonzero(finite & (np.abs(totals - 1) > 1e-3))
    if len(off):
        raise DataError(
            f"the probabilities of image {predictions.ids[off[0]]} sum to {totals[off[0]]:.4g}",
            fix="give probabilities (after softmax), not logits",
        )
    negative = [
        rows for rows in _chunks(n) if (predictions.probabilities[rows][finite[rows]] < 0).any()
    ]
    if negative:
        raise DataError("some probabilities are negative", fix="give probabilities, not logits")
    return (predictions if n_finite == n else predictions.take(finite)), n - n_finite


# ----------------------------------------------------------------------------------------- averages


@dataclass(frozen=True)
class _Counts:
    """Per class, each (K,)."""

    correct: NDArray[np.int64]
    n: NDArray[np.int64]
    predicted: NDArray[np.int64]

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        return iter((self.correct, self.n, self.predicted))


def _counts(labels: NDArray[np.int64], predicted: NDArray[np.int64], num_classes: int) -> _Counts:
    return _Counts(
        correct=np.bincount(labels[labels == predicted], minlength=num_classes),
        n=np.bincount(labels, minlength=num_classes),
        predicted=np.bincount(predicted, minlength=num_classes),
    )


def _averages(
    correct: NDArray[np.int64], n: NDArray[np.int64], predicted: NDArray[np.int64]
) -> dict[str, float]:
    """Over the classes that have images; never predicted is precision 0, as scikit-learn has it."""
    present = n > 0
    correct, n, predicted = correct[present], n[present], predicted[present]
    precision = correct / np.maximum(predicted, 1)
    recall = correct / n
    f1 = 2 * correct / (n + predicted)
    weight = n / n.sum()
    return {
        "macro_precision": float(precision.mean()),
        "macro_recall": float(recall.mean()),
        "macro_f1": float(f1.mean()),
        "weighted_precision": float(precision @ weight),
        "weighted_recall": float(recall @ weight),
        "weighted_f1": float(f1 @ weight),
    }


def _averages_of(predictions: Predictions) -> dict[str, float]:
    predicted = predictions.probabilities.argmax(axis=1)
    return _averages(*_counts(predictions.labels, predicted, predictions.num_classes))


def _class_score(
    name: str,
    correct: int,
    n: int,
    predicted: int,
    auc: float | None,
    average_precision: float | None,
) -> ClassScore:
    union = n + predicted - correct
    jaccard_low, jaccard_high = wilson(correct, union)
    return ClassScore(
        name=name,
        n=n,
        predicted=predicted,
        correct=correct,
        precision=correct / predicted if n and predicted else None,
        recall=correct / n if n else None,
        f1=2 * correct / (n + predicted) if n else None,
        precision_interval=wilson(correct, predicted) if n and predicted else None,
        recall_interval=wilson(correct, n) if n else None,
        f1_interval=(
            (2 * jaccard_low / (1 + jaccard_low), 2 * jaccard_high / (1 + jaccard_high))
            if n
            else None
        ),
        auc=auc,
        average_precision=average_precision,
    )


def _most_confused(confusion: NDArray[np.int64]) -> tuple[Confused, ...]:
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    label, predicted = np.nonzero(wrong)
    n = wrong[label, predicted]
    share = n / confusion.sum(axis=1)[label]
    order = np.lexsort((predicted, label, -share, -n))[:_MOST_CONFUSED]
    return tuple(
        Confused(label=int(label[i]), predicted=int(predicted[i]), n=int(n[i]), share=share[i])
        for i in order
    )


# ---------------------------------------------------------------------------------------- intervals


def _resamples(n: int) -> Iterator[NDArray[np.int64]]:
    """The same resamples for everything that is computed on n images."""
    rng = np.random.default_rng(0)
    for _ in range(_RESAMPLES):
        yield rng.integers(0, n, n)


def _percentiles(values: NDArray[np.float64], estimate: float) -> Interval:
    """The middle 95 %, widened to the estimate where a skewed bootstrap leaves it outside."""
    low, high = np.percentile(values, [2.5, 97.5])
    return (min(float(low), estimate), max(float(high), estimate))


def _bootstrap(
    labels: NDArray[np.int64], rows: _Rows, num_classes: int, averages: Mapping[str, float]
) -> dict[str, Interval]:
    """Intervals of the averages, of log loss and of Brier.

    The averages over classes get Wilson's interval for as many images as would give the standard
    error that the bootstrap finds (the effective sample size of survey statistics: Korn and
    Graubard 1998). Measured over 400 simulated test sets each (10, 100 and 3 classes, 60 to
    10,000 images, accuracy 0.7 to 0.99), it holds the truth in 89 to 97 % of them; percentiles of
    the same bootstrap in 71 to 95 %, because resampling bends F1 of small classes downwards, and
    they have no width where nothing was wrong.
    """
    drawn: dict[str, list[float]] = {name: [] for name in (*averages, "log_loss", "brier")}
    for index in _resamples(len(labels)):
        counts = _counts(labels[index], rows.predicted[index], num_classes)
        for name, value in _averages(*counts).items():
            drawn[name].append(value)
        drawn["log_loss"].append(float(rows.surprise[index].mean()))
        drawn["brier"].append(float(rows.squared_error[index].mean()))
    intervals = {
        name: _effective_wilson(value, float(np.std(drawn[name])), len(labels))
        for name, value in averages.items()
    }
    for name, each in (("log_loss", rows.surprise), ("brier", rows.squared_error)):
        intervals[name] = _percentiles(np.array(drawn[name]), float(each.mean()))
    return intervals


def _effective_wilson(share: float, standard_error: float, n: int) -> Interval:
    spread, variance = share * (1 - share), standard_error**2
    effective = min(max(1.0, spread / variance), n) if spread and variance else n
    return _score_interval(share, effective)


def _score_interval(share: float, n: float) -> Interval:
    z2 = _Z_95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z_95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return (min(max(0.0, centre - half), share), max(min(1.0, centre + half), share))


def _mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided exact binomial test of 1 : 1 on the images that only one got right."""
    if only_a == only_b:
        return 1.0
    n = only_a + only_b
    return min(1.0, 2 * float(special.bdtr(min(only_a, only_b), n, 0.5)))


def _paired_interval(only_a: int, only_b: int, n: int) -> Interval:
    a, b = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    half = _Z_95 * math.sqrt((a + b - (b - a) ** 2) / (n + 2))
    difference = (only_b - only_a) / n
    return (
        min(max(-1.0, b - a - half), difference),
        max(min(1.0, b - a + half), difference),
    )


def _images_to_tell(difference: float, discordant: float) -> int | None:
    if difference == 0:
        return None
    spread = max(discordant - difference**2, 0.0)
    root = _Z_95 * math.sqrt(discordant) + _Z_POWER_80 * math.sqrt(spread)
    # The exact test never rejects with fewer than six discordant images: 2 * 0.5 ** 6 = 0.03.
    return math.ceil(max((root / difference) ** 2, 6 / discordant))


def _smallest_difference(discordant: int, n: int) -> float:
    """Connor's formula turned round; with no discordant image, with the most there may be."""
    share = discordant / n if discordant else wilson(0, n)[1]
    return min(1.0, max((_Z_95 + _Z_POWER_80) * math.sqrt(share / n), 6 / n))


# -------------------------------------------------------------------------------------------- trust


def _reliability(
    confidence: NDArray[np.float64], right: NDArray[np.bool_]
) -> tuple[CalibrationBin, ...]:
    edges = np.linspace(0, 1, _BINS + 1)
    index = _bin_of(confidence)
    n = np.bincount(index, minlength=_BINS)
    correct = np.bincount(index, weights=right, minlength=_BINS)
    total = np.bincount(index, weights=confidence, minlength=_BINS)
    return tuple(
        CalibrationBin(
            low=float(edges[i]),
            high=float(edges[i + 1]),
            n=int(n[i]),
            confidence=float(total[i] / n[i]) if n[i] else None,
            accuracy=float(correct[i] / n[i]) if n[i] else None,
            accuracy_interval=wilson(int(correct[i]), int(n[i])) if n[i] else None,
        )
        for i in range(_BINS)
    )


def _bin_of(confidence: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.minimum((confidence * _BINS).astype(np.int64), _BINS - 1)


def _ece(reliability: Sequence[CalibrationBin]) -> float:
    gaps = [
        each.n * abs(each.accuracy - each.confidence)
        for each in reliability
        if each.accuracy is not None and each.confidence is not None
    ]
    return sum(gaps) / sum(each.n for each in reliability)


def _ece_noise(confidence: NDArray[np.float64]) -> float:
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


def _calibration(judged: Predictions, temperature: Temperature) -> Calibration:
    rows = _rows(judged.scaled(temperature.value))
    reliability = _reliability(rows.confidence, rows.predicted == judged.labels)
    return Calibration(
        temperature=temperature,
        log_loss=float(rows.surprise.mean()),
        brier=float(rows.squared_error.mean()),
        ece=_ece(reliability),
        reliability=reliability,
    )


def _by_falling_confidence(
    confidence: NDArray[np.float64], right: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """For each threshold that makes a difference: itself, images answered, of those right."""
    order = np.argsort(-confidence, kind="stable")
    confidence, correct = confidence[order], np.cumsum(right[order], dtype=np.int64)
    last = np.flatnonzero(np.append(np.diff(confidence) != 0, True)).astype(np.int64)
    return confidence[last], last + 1, correct[last]


def _coverage(
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


# ----------------------------------------------------------------------------- one against the rest


def _areas(
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


def _labels_to_draw(areas: Sequence[tuple[float | None, float | None]]) -> list[int]:
    known = [(precision, label) for label, (_, precision) in enumerate(areas) if precision]
    return sorted(label for _, label in sorted(known)[:_CURVES])


def _curve(scores: NDArray[np.float32], positive: NDArray[np.bool_], label: int) -> ClassCurve:
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


# -------------------------------------------------------------------------------------------- parts


def _group_score(name: str, right: NDArray[np.bool_]) -> GroupScore:
    correct, n = int(right.sum()), len(right)
    return GroupScore(name=name, n=n, accuracy=correct / n, accuracy_interval=wilson(correct, n))


def _group_scores(
    ids: NDArray[np.int64], right: NDArray[np.bool_], groups: Mapping[int, str]
) -> tuple[GroupScore, ...]:
    members: dict[str, list[int]] = {}
    for position, identity in enumerate(ids.tolist()):
        if identity in groups:
            members.setdefault(groups[identity], []).append(position)
    return tuple(_group_score(name, right[members[name]]) for name in sorted(members))


def _mean_of(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _metric_name(metric: Metric) -> str:
    return str(getattr(metric, "__name__", type(metric).__name__))
