"""The doubtful labels of a run's data, as a table that can be corrected and trained on."""

from __future__ import annotations

import csv
import io
import os
from dataclasses import dataclass
from pathlib import Path

from vidi.comparing import facts_of
from vidi.data import Dataset
from vidi.errors import MismatchError, UsageError
from vidi.facts import SPLITS
from vidi.label_errors import averaged, label_suspects
from vidi.metrics import Predictions
from vidi.own_data import own_dataset, where_trained
from vidi.run import Run

__all__ = ["Doubt", "csv_of", "suspects"]

_HELD_OUT = ("validation", "test")


@dataclass(frozen=True, slots=True)
class Doubt:
    """One image whose label is doubtful; `file` lies below `root`."""

    root: str
    file: str
    split: str
    label: str
    suggested: str
    probability_of_label: float
    probability_of_suggested: float


def suspects(*runs: str | Path | Run, data: str | Path | None = None) -> tuple[Doubt, ...]:
    """The images whose label is doubtful, the most doubtful first.

    Only images that a run was not trained on count: those of its validation and test splits. With
    runs of several splits of the same images (other seeds, folds) more of them are judged, and
    those judged twice by the mean.

    Raises:
        UsageError: no run, or none that was judged.
        MismatchError: the data changed since, or the runs have other classes.
    """
    opened = [run if isinstance(run, Run) else Run.open(Path(run)) for run in runs]
    if not opened:
        raise UsageError("no run was named")
    dataset = own_dataset(opened[0], data)
    parts = []
    for run in opened:
        if facts_of(run).classes != dataset.classes:
            raise MismatchError(f"{run.path} was trained for other classes than {dataset.name} has")
        # Of other splits, their own: what counts is that a row is the same image in all of them.
        if run is not opened[0]:
            _check_same_rows(own_dataset(run, data), dataset, run)
        parts += [
            Predictions.from_arrays(run.read_predictions(split))
            for split in _HELD_OUT
            if split in run.evaluated_splits()
        ]
    if not parts:
        raise UsageError("none of these runs was judged", fix="vidi evaluate RUN")
    source = str(data) if data is not None else where_trained(opened[0])
    root = source if Path(source).is_dir() else os.path.dirname(source)  # noqa: PTH120
    return tuple(
        Doubt(
            root=root,
            file=dataset.name_of(each.id),
            split=SPLITS[int(dataset.split[each.id])],
            label=dataset.classes[each.label],
            suggested=dataset.classes[each.suggested],
            probability_of_label=each.probability_of_label,
            probability_of_suggested=each.probability_of_suggested,
        )
        for each in label_suspects(averaged(parts))
    )


def _check_same_rows(other: Dataset, dataset: Dataset, run: Run) -> None:
    if other.source.names_digest() != dataset.source.names_digest():
        raise MismatchError(
            f"{run.path} was trained on other images than {dataset.name} has now",
            fix="name runs on the same images; their splits may differ",
        )


def csv_of(doubts: tuple[Doubt, ...], folder: Path) -> str:
    """A table to correct: `image` from `folder` on, `label` as it is, `suggested`, and how sure.

    Write the right class into `label` and leave out the other columns, or keep them: `vidi train`
    reads the first two. Labels are written exactly, a table that is read by a program.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["image", "label", "suggested", "probability_of_label", "probability_of_suggested", "split"]
    )
    for each in doubts:
        place = os.path.relpath(Path(each.root) / each.file, folder)
        writer.writerow(
            [
                place,
                each.label,
                each.suggested,
                f"{each.probability_of_label:.4g}",
                f"{each.probability_of_suggested:.4g}",
                each.split,
            ]
        )
    return text.getvalue()
