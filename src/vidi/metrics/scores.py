"""Shares of right answers: over all images, over classes, over groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vidi.metrics.intervals import wilson
from vidi.metrics.predictions import Predictions, rows_of, surprise_of
from vidi.metrics.values import ClassScore, Confused, GroupScore

_MOST_CONFUSED: Final = 20


def accuracy(predictions: Predictions) -> float:
    """Share of images whose highest probability is their label's."""
    return float((predictions.probabilities.argmax(axis=1) == predictions.labels).mean())


def top_k_accuracy(predictions: Predictions, k: int = 5) -> float:
    """Share of images whose label is among the k highest; ties go to the lower class number."""
    return float((rows_of(predictions).rank < k).mean())


def log_loss(predictions: Predictions) -> float:
    """Mean negative logarithm of the label's probability, in nats."""
    rows = np.arange(len(predictions))
    return float(surprise_of(predictions.probabilities[rows, predictions.labels]).mean())


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


@dataclass(frozen=True)
class _Counts:
    """Per class, each (K,)."""

    correct: NDArray[np.int64]
    n: NDArray[np.int64]
    predicted: NDArray[np.int64]

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        return iter((self.correct, self.n, self.predicted))


def counts_of(labels: NDArray[np.int64], predicted: NDArray[np.int64], num_classes: int) -> _Counts:
    return _Counts(
        correct=np.bincount(labels[labels == predicted], minlength=num_classes),
        n=np.bincount(labels, minlength=num_classes),
        predicted=np.bincount(predicted, minlength=num_classes),
    )


def averages_over(
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
    return averages_over(*counts_of(predictions.labels, predicted, predictions.num_classes))


def class_score(
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


def most_confused(confusion: NDArray[np.int64]) -> tuple[Confused, ...]:
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


def group_score(name: str, right: NDArray[np.bool_]) -> GroupScore:
    correct, n = int(right.sum()), len(right)
    return GroupScore(name=name, n=n, accuracy=correct / n, accuracy_interval=wilson(correct, n))


def group_scores_of(
    ids: NDArray[np.int64], right: NDArray[np.bool_], groups: Mapping[int, str]
) -> tuple[GroupScore, ...]:
    members: dict[str, list[int]] = {}
    for position, identity in enumerate(ids.tolist()):
        if identity in groups:
            members.setdefault(groups[identity], []).append(position)
    return tuple(group_score(name, right[members[name]]) for name in sorted(members))
