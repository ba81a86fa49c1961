"""Images whose label is doubtful, from predictions of models that were not trained on them.

Confident learning (Northcutt, Jiang and Chuang 2021): a class's threshold is the mean probability
that images with its label are given; an image is suspected when another class reaches its own
threshold and its label's class is not the most probable of those that do. So a model that is unsure
of a class everywhere does not suspect all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vidi.errors import DataError
from vidi.metrics import Predictions


@dataclass(frozen=True, slots=True)
class Suspect:
    """One image: `id` as in Predictions, classes by number, probabilities 0..1."""

    id: int
    label: int
    suggested: int
    probability_of_label: float
    probability_of_suggested: float


def label_suspects(predictions: Predictions) -> tuple[Suspect, ...]:
    """The images whose label is doubtful, the least probable label first.

    The predictions must be of images that the model was not trained on, or it has learnt the wrong
    labels too.

    Raises:
        DataError: no image, or a probability that is not finite.
    """
    probabilities, labels = predictions.probabilities, predictions.labels
    if not len(labels) or not np.isfinite(probabilities).all():
        raise DataError("label errors need images with finite probabilities")
    candidate = _confident_class(probabilities, labels)
    found = np.flatnonzero((candidate >= 0) & (candidate != labels))
    own = probabilities[found, labels[found]]
    order = np.lexsort((predictions.ids[found], own))
    return tuple(
        Suspect(
            id=int(predictions.ids[row]),
            label=int(labels[row]),
            suggested=int(candidate[row]),
            probability_of_label=float(probabilities[row, labels[row]]),
            probability_of_suggested=float(probabilities[row, candidate[row]]),
        )
        for row in found[order]
    )


def _confident_class(
    probabilities: NDArray[np.float32], labels: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The most probable of the classes that reach their threshold; -1 where none does."""
    num_classes = probabilities.shape[1]
    own = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    n = np.bincount(labels, minlength=num_classes)
    sums = np.bincount(labels, weights=own, minlength=num_classes)
    # A class without images has no threshold: nothing is suspected to belong to it.
    threshold = np.where(n > 0, sums / np.maximum(n, 1), np.inf)
    # As much as float32 loses in a mean; an image alone in its class reaches its own threshold.
    reached = probabilities >= threshold - 1e-6
    best = np.where(reached, probabilities, -1.0).argmax(axis=1)
    return np.where(reached.any(axis=1), best, -1)


def averaged(parts: Sequence[Predictions]) -> Predictions:
    """One row for each image that any of the parts judged; the mean where several did.

    Raises:
        DataError: they name different labels for an image, or differ in their classes.
    """
    if len({part.num_classes for part in parts}) != 1:
        raise DataError("the runs have different classes")
    ids = np.unique(np.concatenate([part.ids for part in parts]))
    labels = np.full(len(ids), -1, np.int64)
    total = np.zeros((len(ids), parts[0].num_classes))
    count = np.zeros(len(ids))
    for part in parts:
        place = np.searchsorted(ids, part.ids)
        known = labels[place] >= 0
        if (labels[place][known] != part.labels[known]).any():
            raise DataError("the runs name different labels for the same image")
        labels[place] = part.labels
        total[place] += part.probabilities
        count[place] += 1
    return Predictions(ids, labels, (total / count[:, None]).astype(np.float32))
