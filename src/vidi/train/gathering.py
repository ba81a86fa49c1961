"""One evaluation from the parts that several processes made."""

from __future__ import annotations

import numpy as np

from vidi.metrics import Predictions
from vidi.train.ranks import Ranks


def together(part: Predictions | None, ranks: Ranks, num_classes: int) -> Predictions:
    """The predictions of all processes in the order of their ids, the same in each process.

    Args:
        part: of this process; None when it had no image.
    """
    if ranks.alone:
        assert part is not None, "a loader is never empty"
        return part
    if part is None:
        nothing = np.zeros(0, dtype=np.int64)
        part = Predictions(nothing, nothing, np.zeros((0, num_classes), dtype=np.float32))
    ids, labels = ranks.together(part.ids), ranks.together(part.labels)
    probabilities = ranks.together(part.probabilities)
    order = np.argsort(ids, kind="stable")
    return Predictions(ids[order], labels[order], probabilities[order])
