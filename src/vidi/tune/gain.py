"""What the best trial of a study gained over its first one: image by image, and only if by more
than chance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from vidi import metrics
from vidi.metrics import Predictions
from vidi.run import Run
from vidi.study import Study

INSIDE_THE_NOISE: Final = "the gain is inside the noise of so few held-out images"


def say_gain(
    study: Study, number: int, runs: tuple[Run, Run], words: str, tell: Callable[[str], None]
) -> None:
    """Tell and note what trial `number` gained, by what the first of the runs and then its own say
    of the validation images.

    words: which of them is held against which. Raises UsageError where one says nothing of them.
    """
    first, best = (Predictions.from_arrays(run.read_predictions("validation")) for run in runs)
    found = metrics.compare(first, best)
    said = f"{words}: {found.sentence}"
    tell(said)
    if found.verdict == "cannot tell":
        tell(INSIDE_THE_NOISE)
    study.note("compared", trial=number, verdict=found.verdict, why=said)
