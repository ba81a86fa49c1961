"""What is found: frozen values, every number finite or `None`."""

from __future__ import annotations

from typing import Literal

from vidi.facts import Frozen

# (low, high) of a 95 % interval.
Interval = tuple[float, float]


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


class Replaced(Frozen):
    """The run that another one, trained on its validation images as well, stands in for.

    accuracy, n: of its validation images; the other one has none to be held against.
    """

    name: str
    accuracy: float
    n: int
    temperature: Temperature


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
