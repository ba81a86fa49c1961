"""What a report is made from: a plain value, and how it is read from a run directory."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from vidi.errors import DamagedError
from vidi.facts import Facts
from vidi.metrics import (
    PRECISIONS,
    Evaluation,
    Predictions,
    Replaced,
    Threshold,
    threshold_for,
)
from vidi.plan import Plan
from vidi.run import Run

# The first of these that was judged is what the page is about.
_SPLITS: Final = ("test", "validation")


@dataclass(frozen=True)
class Pictures:
    """Some of the judged images as the model saw them.

    ids: (M,) int64, as in Predictions. pixels: (M, H, W, 1 or 3) uint8.
    names: M paths relative to the data's root.
    """

    ids: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Explained:
    """What `vidi report --explain` adds; ids as in Predictions, empty where there is nothing.

    heat: (M, h, w) uint8 of heat_ids. places: (P, 2) in -1..1 of map_ids. near_pixels: (Q, 3, H, W,
    C) and near_labels (Q, 3), the nearest training images of near_of.
    """

    heat_ids: NDArray[np.int64]
    heat: NDArray[np.uint8]
    map_ids: NDArray[np.int64]
    places: NDArray[np.float32]
    near_of: NDArray[np.int64]
    near_labels: NDArray[np.int64]
    near_pixels: NDArray[np.uint8]


@dataclass(frozen=True)
class ReportData:
    """Everything that the page of one run shows; what a run does not have yet is `None`."""

    name: str
    config: Mapping[str, Any]
    plan: Plan
    facts: Facts
    environment: Mapping[str, Any]
    # The lines of metrics.jsonl and timing.jsonl, in order.
    records: Sequence[Mapping[str, Any]] = ()
    timing: Sequence[Mapping[str, Any]] = ()
    evaluation: Evaluation | None = None
    # The validation split's, where the page is about the test split.
    validation: Evaluation | None = None
    # The same images by the average of several views of each, where somebody asked for it.
    averaged: Evaluation | None = None
    predictions: Predictions | None = None
    # What `vidi predict --precision` goes by: found on the validation split.
    thresholds: Sequence[Threshold] = ()
    # What was found on the images before training began: the JSON of an `Audit`.
    audit: Mapping[str, Any] | None = None
    pictures: Pictures | None = None
    explained: Explained | None = None
    # The run that it stands in for, where it learnt from its validation images as well.
    replaced: Replaced | None = None


def load(run: Run) -> ReportData:
    """Read a run directory.

    Raises:
        UsageError: the run has no plan yet.
        DamagedError: one of its files cannot be read.
    """
    judged = {split: _evaluation(run, split) for split in run.evaluated_splits()}
    split = next((split for split in _SPLITS if split in judged), None)
    plan = Plan.from_json(run.text("plan"))
    try:
        facts = Facts.model_validate_json(run.text("facts"))
        config = tomllib.loads(run.text("config"))
        environment = json.loads(run.text("environment")) if run.has_text("environment") else {}
        audit = json.loads(run.text("audit")) if run.has_text("audit") else None
        replaced = (
            Replaced.model_validate_json(run.text("replaces")) if run.has_text("replaces") else None
        )
    except (ValidationError, ValueError) as error:
        raise DamagedError(f"a file of the run cannot be read: {error}", fix=_OTHER_RUN) from error
    return ReportData(
        name=run.path.name,
        config=config,
        plan=plan,
        facts=facts,
        environment=environment,
        audit=audit,
        records=run.metrics.read(),
        timing=run.timing.read(),
        evaluation=None if split is None else judged[split],
        validation=judged.get("validation") if split == "test" else None,
        averaged=judged.get(f"{split}_tta"),
        predictions=None if split is None else _predictions(run, split),
        thresholds=_thresholds(run),
        pictures=None if split is None else _pictures(run, split),
        explained=None if split is None else _explained(run, split),
        replaced=replaced,
    )


_OTHER_RUN: Final = "the run was damaged or written by another version; train again with --out"
_JUDGE_AGAIN: Final = "vidi evaluate writes it again"


def _evaluation(run: Run, split: str) -> Evaluation:
    try:
        return Evaluation.model_validate_json(run.read_evaluation(split))
    except ValidationError as error:
        raise DamagedError(
            f"the evaluation of the {split} split is not one of this version: "
            f"{error.errors()[0]['msg']}",
            fix=_JUDGE_AGAIN,
        ) from error


def _predictions(run: Run, split: str) -> Predictions | None:
    if not run.predictions_path(split).exists():
        return None
    return Predictions.from_arrays(run.read_predictions(split), where=f"predictions/{split}.npz")


def _thresholds(run: Run) -> tuple[Threshold, ...]:
    if "validation" not in run.evaluated_splits():
        return ()
    predictions = _predictions(run, "validation")
    if predictions is None:
        return ()
    return tuple(threshold_for(predictions, wanted) for wanted in PRECISIONS)


def _explained(run: Run, split: str) -> Explained | None:
    if not run.explained_path(split).exists():
        return None
    arrays = run.read_explained(split)
    none = np.zeros(0, np.int64)
    near_of = arrays.get("near_of", none)
    pixels = arrays.get("near_pixels", np.zeros((0, 1, 1, 1), np.uint8))
    labels = arrays.get("near_labels", np.zeros((0, 1), np.int64))
    found = Explained(
        heat_ids=arrays.get("heat_ids", none),
        heat=arrays.get("heat", np.zeros((0, 1, 1), np.uint8)),
        map_ids=arrays.get("map_ids", none),
        places=arrays.get("map", np.zeros((0, 2), np.float32)),
        near_of=near_of,
        near_labels=labels,
        near_pixels=pixels.reshape(len(near_of), -1, *pixels.shape[1:]),
    )
    fits = found.heat.ndim == 3 and found.heat.dtype == np.uint8
    fits &= len(found.heat) == len(found.heat_ids) and len(labels) == len(near_of)
    if not fits or found.places.shape != (len(found.map_ids), 2) or pixels.dtype != np.uint8:
        raise DamagedError(
            f"the arrays of evaluation/{split}-explained.npz do not fit together",
            fix="vidi report RUN --explain writes it again",
        )
    return found


def _pictures(run: Run, split: str) -> Pictures | None:
    if not run.pictures_path(split).exists():
        return None
    arrays = run.read_pictures(split)
    where = f"evaluation/{split}-pictures.npz"
    try:
        ids, pixels, names = arrays["ids"], arrays["pixels"], arrays["names"]
    except KeyError as error:
        raise DamagedError(f"{where} has no {error}", fix=_JUDGE_AGAIN) from error
    fits = pixels.dtype == np.uint8 and pixels.ndim == 4 and pixels.shape[3] in (1, 3)
    if not fits or len({len(ids), len(pixels), len(names)}) != 1 or ids.dtype != np.int64:
        raise DamagedError(f"the arrays of {where} do not fit together", fix=_JUDGE_AGAIN)
    return Pictures(ids, pixels, tuple(str(name) for name in names))
