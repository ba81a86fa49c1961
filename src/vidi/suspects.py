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

__all__ = ["Doubt", "Doubts", "csv_of", "doubts_of", "suspects"]

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


@dataclass(frozen=True, slots=True)
class Doubts:
    """The doubtful images of `dataset`, whose names lie below `root`."""

    dataset: Dataset
    root: str
    images: tuple[Doubt, ...]
    # Their places in the dataset.
    ids: tuple[int, ...]


def suspects(*runs: str | Path | Run, data: str | Path | None = None) -> tuple[Doubt, ...]:
    """The images whose label is doubtful, the most doubtful first.

    Only images that a run was not trained on count: those of its validation and test splits. With
    runs of several splits of the same images (other seeds, folds) more of them are judged, and
    those judged twice by the mean.

    Raises:
        UsageError: no run, or none that was judged.
        MismatchError: the data changed since, or the runs have other classes.
    """
    return doubts_of(*runs, data=data).images


def doubts_of(*runs: str | Path | Run, data: str | Path | None = None) -> Doubts:
    """`suspects` with the data that they are of; raises the same."""
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
    found = label_suspects(averaged(parts))
    images = tuple(
        Doubt(
            root=root,
            file=dataset.name_of(each.id),
            split=SPLITS[int(dataset.split[each.id])],
            label=dataset.classes[each.label],
            suggested=dataset.classes[each.suggested],
            probability_of_label=each.probability_of_label,
            probability_of_suggested=each.probability_of_suggested,
        )
        for each in found
    )
    return Doubts(dataset, root, images, tuple(each.id for each in found))


def _check_same_rows(other: Dataset, dataset: Dataset, run: Run) -> None:
    if other.source.names_digest() != dataset.source.names_digest():
        raise MismatchError(
            f"{run.path} was trained on other images than {dataset.name} has now",
            fix="name runs on the same images; their splits may differ",
        )


def csv_of(found: Doubts, folder: Path) -> str:
    """All images as a table that lies in `folder`, the doubtful ones first.

    Write the right class into `label` of the first rows, those with a suggestion, and train on the
    table: it names every image, and its split, so that runs before and after are compared on the
    same images. Names are written exactly, as a program reads them.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["image", "label", "suggested", "probability_of_label", "probability_of_suggested", "split"]
    )

    def place(file: str) -> str:
        return os.path.relpath(Path(found.root) / file, folder)

    for each in found.images:
        shares = (each.probability_of_label, each.probability_of_suggested)
        writer.writerow(
            [place(each.file), each.label, each.suggested, *(f"{share:.4g}" for share in shares),
             each.split]
        )  # fmt: skip
    dataset, doubtful = found.dataset, set(found.ids)
    for split in SPLITS:
        for index in dataset.indices(split).tolist():
            if index not in doubtful:
                label = dataset.classes[int(dataset.labels[index])]
                writer.writerow([place(dataset.name_of(index)), label, "", "", "", split])
    return text.getvalue()
