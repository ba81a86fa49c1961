"""Is one run better than another? Image by image, on images that both were asked about."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from vidi import metrics
from vidi.errors import DamagedError, MismatchError, UsageError
from vidi.facts import DatasetFacts, Facts
from vidi.metrics import Comparison, Predictions
from vidi.run import Run
from vidi.words import class_difference


def compare(
    first: str | Path | Run, *others: str | Path | Run, split: str | None = None
) -> tuple[Comparison, ...]:
    """Each of `others` against `first`, from the predictions that the runs keep.

    split: "test" where all were judged on it, else "validation", if left out; "test_tta" compares
    averages over views.

    Raises:
        UsageError: fewer than two runs, or one that was not judged on the split.
        MismatchError: they were not made from the same images.
    """
    runs = [each if isinstance(each, Run) else Run.open(Path(each)) for each in (first, *others)]
    if len(runs) < 2:
        raise UsageError("one run alone cannot be compared", fix="name two or more")
    chosen = _split(runs, split)
    facts = [facts_of(run) for run in runs]
    for run, about in zip(runs[1:], facts[1:], strict=True):
        if about.classes != facts[0].classes:
            raise MismatchError(
                f"{run.path} has other classes than {runs[0].path}: "
                f"{class_difference(about.classes, facts[0].classes)}",
                fix="compare runs that were trained on the same data",
            )
        if about.fingerprint != facts[0].fingerprint:
            raise MismatchError(
                f"{run.path} and {runs[0].path} were not made from the same images and splits",
                fix="evaluate both on the same data; only then an image is the same image",
            )
    parts = [Predictions.from_arrays(run.read_predictions(chosen)) for run in runs]
    return tuple(metrics.compare(parts[0], part) for part in parts[1:])


def _split(runs: Sequence[Run], asked: str | None) -> str:
    common = set.intersection(*(set(run.evaluated_splits()) for run in runs))
    wanted = (asked,) if asked else ("test", "validation")
    for split in wanted:
        if split in common:
            return split
    lacking = [str(run.path) for run in runs if not set(wanted) & set(run.evaluated_splits())]
    raise UsageError(
        f"{', '.join(lacking) or 'the runs'} were not judged on the same split",
        fix="vidi evaluate RUN judges a run again",
    )


def facts_of(run: Run) -> DatasetFacts:
    """What was true of a run's data when it was trained. Raises DamagedError."""
    try:
        return Facts.model_validate_json(run.text("facts")).dataset
    except ValidationError as error:
        why = error.errors()[0]["msg"]
        raise DamagedError(f"{run.path}: facts.json is damaged: {why}") from None


def judged_alike(
    runs: Sequence[str | Path | Run], split: str | None
) -> tuple[str, list[metrics.Evaluation]]:
    """The split that `compare` takes, and what each run is worth on it."""
    opened = [each if isinstance(each, Run) else Run.open(Path(each)) for each in runs]
    chosen = _split(opened, split)
    return chosen, [
        metrics.Evaluation.model_validate_json(run.read_evaluation(chosen)) for run in opened
    ]
