"""The JSON of each part of the page: what `vidi show RUN VIEW --json` prints and the page reads."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vidi.facts import SPLITS
from vidi.label_errors import label_suspects
from vidi.metrics import CalibrationBin, Evaluation, Interval, Predictions, Threshold, wilson
from vidi.report.data import Explained, Pictures, ReportData
from vidi.report.findings import findings, steps
from vidi.words import between, public, relative, share, without_places

View = dict[str, Any]

# Points of one curve: more than a screen has columns.
_CURVE_POINTS: Final = 800
# A picture's longer side: sharp at 150 CSS pixels on most screens, about 8 kB as JPEG.
_PICTURE_PX: Final = 208
# A neighbour among the training images, and doubtful labels that anybody reads.
_NEAR_PX: Final = 96
_MOST_SUSPECTS: Final = 500
# Below this PNG is about as small, and has no artefacts to explain.
_LOSSLESS_PX: Final = 64


def views_of(data: ReportData) -> dict[str, View]:
    """All parts by name. Numbers are rounded to five digits; nothing is NaN."""
    judged = data.evaluation
    made: dict[str, View] = {"summary": _summary(data)}
    if judged is not None:
        made["mistakes"] = _mistakes(data, judged)
        made["confusion"] = _confusion(judged)
        made["classes"] = _classes(judged)
        made["trust"] = _trust(judged, data)
        if data.predictions is not None and len(data.predictions):
            made["suspects"] = _suspects(data, judged, data.predictions)
            if data.explained is not None and len(data.explained.map_ids) > 1:
                made["map"] = _map(judged, data.predictions, data.explained)
    made["curves"] = _curves(data)
    made["plan"] = _plan(data)
    made["data"] = _data(data)
    made["environment"] = _environment(data)
    return made


def _summary(data: ReportData) -> View:
    judged = data.evaluation
    view: View = {
        "run": data.name,
        "dataset": without_places(data.facts.dataset.name),
        "model": data.plan.model.name,
        "parameters": data.facts.model.parameters if data.facts.model else None,
        "findings": [dataclasses.asdict(each) for each in findings(data)],
        "steps": [dataclasses.asdict(each) for each in steps(data)],
        "judged": None,
    }
    if judged is not None:
        view["judged"] = {
            "split": judged.split,
            "accuracy": _short(judged.accuracy),
            "interval": _ends(judged.accuracy_interval),
            "n": judged.n_evaluated,
            "n_right": round(judged.accuracy * judged.n_evaluated),
            "majority": _short(judged.majority_accuracy),
            "sentence": (
                # A confidence interval: about the model, not about the next batch of images.
                f"On ever more images like these it would settle somewhere from "
                f"{between(judged.accuracy_interval)}; such a range holds 19 times out of 20."
            ),
            "figures": [*_figures(judged), *_averaged(data.averaged)],
        }
    return view


def _averaged(averaged: Evaluation | None) -> list[View]:
    """Beside the plain number, never in its place."""
    if averaged is None:
        return []
    return [
        {
            "label": "Averaged views",
            "value": _short(averaged.accuracy),
            "interval": _ends(averaged.accuracy_interval),
            "hint": "accuracy of the mean over several views of each image (--tta)",
            "share": True,
        }
    ]


def _figures(judged: Evaluation) -> list[View]:
    worst = judged.worst_class
    shown: list[View] = [
        {
            "label": "Macro F1",
            "value": _short(judged.macro_f1),
            "interval": _ends(judged.intervals["macro_f1"]),
            "hint": "every class counts the same",
        },
        {
            "label": "Worst class",
            "value": _short(worst.accuracy),
            "interval": _ends(worst.accuracy_interval),
            "hint": worst.name,
            "share": True,
        },
        {
            "label": "Calibration error",
            "value": _short(judged.ece),
            "hint": f"a perfect model shows up to {share(judged.ece_noise)} here",
            "share": True,
        },
        {
            "label": "Log loss",
            "value": _short(judged.log_loss),
            "interval": _ends(judged.intervals["log_loss"]),
            "hint": "0 is certain and right",
        },
    ]
    if len(judged.classes) > 5:
        shown.insert(
            1,
            {
                "label": "Among the first five",
                "value": _short(judged.top5_accuracy),
                "interval": _ends(judged.top5_interval),
                "hint": f"of {len(judged.classes):,} classes",
                "share": True,
            },
        )
    extra = [{"label": name, "value": _short(value)} for name, value in judged.extra.items()]
    return shown + extra


def _mistakes(data: ReportData, judged: Evaluation) -> View:
    n_wrong = judged.n_evaluated - round(judged.accuracy * judged.n_evaluated)
    view: View = {"classes": list(judged.classes), "n_wrong": n_wrong, "items": []}
    if data.pictures is None or data.predictions is None:
        return view
    position = {int(number): i for i, number in enumerate(data.predictions.ids)}
    heat, near = _heat_of(data.explained), _near_of(data.explained)
    for i, number in enumerate(data.pictures.ids):
        row = position.get(int(number))
        if row is None:
            continue
        probabilities = data.predictions.probabilities[row]
        label = int(data.predictions.labels[row])
        highest = np.argsort(-probabilities, kind="stable")[:5]
        view["items"].append(
            {
                "id": int(number),
                "name": relative(data.pictures.names[i]),
                "heat": heat.get(int(number)),
                "near": near.get(int(number), []),
                "picture": picture(data.pictures.pixels[i]),
                "label": label,
                "predicted": int(highest[0]),
                "own": _short(float(probabilities[label])),
                "top": [[int(each), _short(float(probabilities[each]))] for each in highest],
            }
        )
    view["items"].sort(key=lambda item: (-item["top"][0][1], item["name"]))
    view["side_px"] = _longer_side(data.pictures)
    return view


def _heat_of(explained: Explained | None) -> dict[int, str]:
    """A small picture to lay over each: the more orange, the more it spoke for the answer."""
    if explained is None:
        return {}
    made = {}
    for number, heat in zip(explained.heat_ids.tolist(), explained.heat, strict=True):
        tint = np.zeros((*heat.shape, 4), np.uint8)
        tint[..., 0] = 255
        tint[..., 1] = 160 - (160 * heat.astype(np.uint16) // 255).astype(np.uint8)
        tint[..., 3] = (200 * heat.astype(np.uint16) // 255).astype(np.uint8)
        made[number] = _encoded(Image.fromarray(tint), lossless=True)
    return made


def _near_of(explained: Explained | None) -> dict[int, list[View]]:
    if explained is None:
        return {}
    return {
        number: [
            {"label": int(label), "picture": picture(pixels, _NEAR_PX)}
            for label, pixels in zip(labels, images, strict=True)
        ]
        for number, labels, images in zip(
            explained.near_of.tolist(), explained.near_labels, explained.near_pixels, strict=True
        )
    }


def _suspects(data: ReportData, judged: Evaluation, predictions: Predictions) -> View:
    finite = np.flatnonzero(np.isfinite(predictions.probabilities).all(axis=1))
    found = label_suspects(predictions.take(finite))[:_MOST_SUSPECTS] if len(finite) else ()
    names = {}
    if data.pictures is not None:
        names = dict(zip(data.pictures.ids.tolist(), data.pictures.names, strict=True))
    return {
        "classes": list(judged.classes),
        "n": judged.n_evaluated,
        "rows": [
            {
                "id": each.id,
                "name": relative(names[each.id]) if each.id in names else None,
                "label": each.label,
                "suggested": each.suggested,
                "own": _short(each.probability_of_label),
                "other": _short(each.probability_of_suggested),
            }
            for each in found
        ],
    }


def _map(judged: Evaluation, predictions: Predictions, explained: Explained) -> View:
    position = {int(number): i for i, number in enumerate(predictions.ids)}
    points = []
    for number, (x, y) in zip(explained.map_ids.tolist(), explained.places.tolist(), strict=True):
        row = position.get(number)
        if row is None:
            continue
        probabilities = predictions.probabilities[row]
        points.append(
            {
                "id": number,
                "x": round(x, 3),
                "y": round(y, 3),
                "label": int(predictions.labels[row]),
                "predicted": int(probabilities.argmax()),
                "sure": round(float(probabilities.max()), 3),
            }
        )
    return {"classes": list(judged.classes), "points": points}


def _longer_side(pictures: Pictures) -> int:
    height, width = pictures.pixels.shape[1:3]
    return int(min(_PICTURE_PX, max(height, width)))


def picture(pixels: NDArray[np.uint8], most_px: int = _PICTURE_PX) -> str:
    """A data: address of the pixels (H, W, 1 or 3), made again from nothing but them."""
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    image.thumbnail((most_px, most_px))
    return _encoded(image, lossless=max(image.size) <= _LOSSLESS_PX)


def _encoded(image: Image.Image, *, lossless: bool) -> str:
    buffer = io.BytesIO()
    if lossless:
        image.save(buffer, "PNG", optimize=True)
    else:
        image.save(buffer, "JPEG", quality=82, optimize=True)
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"data:image/{'png' if lossless else 'jpeg'};base64,{encoded}"


def _confusion(judged: Evaluation) -> View:
    confusion = np.array(judged.confusion)
    label, predicted = np.nonzero(confusion)
    return {
        "classes": list(judged.classes),
        # Only the cells that are not empty: label, prediction, count, one after the other.
        "cells": np.stack([label, predicted, confusion[label, predicted]], axis=1).ravel().tolist(),
    }


def _classes(judged: Evaluation) -> View:
    taken_for: dict[int, tuple[int, int]] = {}
    confusion = np.array(judged.confusion)
    np.fill_diagonal(confusion, 0)
    for label in np.flatnonzero(confusion.sum(axis=1)):
        other = int(confusion[label].argmax())
        taken_for[int(label)] = (other, int(confusion[label, other]))
    return {
        "rows": [
            {
                "name": score.name,
                "n": score.n,
                "predicted": score.predicted,
                "correct": score.correct,
                "recall": _short(score.recall),
                "recall_interval": _ends(score.recall_interval),
                "precision": _short(score.precision),
                "f1": _short(score.f1),
                "auc": _short(score.auc),
                "average_precision": _short(score.average_precision),
                "taken_for": taken_for.get(label),
            }
            for label, score in enumerate(judged.per_class)
        ],
        "averages": {
            name: {"value": _short(getattr(judged, name)), "interval": _ends(interval)}
            for name, interval in judged.intervals.items()
            if name.startswith(("macro", "weighted"))
        },
        "macro_classes": judged.macro_classes,
        "macro_auc": _short(judged.macro_auc),
        "macro_average_precision": _short(judged.macro_average_precision),
        "curves": [
            {
                "label": curve.label,
                "recall": _shorts(curve.pr_recall),
                "precision": _shorts(curve.pr_precision),
                "false_positive_rate": _shorts(curve.false_positive_rate),
                "true_positive_rate": _shorts(curve.recall),
            }
            for curve in judged.curves
        ],
        "notes": list(judged.notes),
    }


def _trust(judged: Evaluation, data: ReportData) -> View:
    calibration = judged.calibration
    return {
        "run": data.name,
        "thresholds": [_operating_point(each, judged, data) for each in data.thresholds],
        "split": judged.split,
        "n": judged.n_evaluated,
        "accuracy": _short(judged.accuracy),
        "mean_confidence": _short(judged.mean_confidence),
        "ece": _short(judged.ece),
        "ece_noise": _short(judged.ece_noise),
        "binning": judged.ece_binning,
        "brier": _short(judged.brier),
        "reliability": _bins(judged.reliability),
        "temperature": None
        if calibration is None
        else {
            "value": _short(calibration.temperature.value),
            "fitted_on": calibration.temperature.fitted_on,
            "ece": _short(calibration.ece),
            "reliability": _bins(calibration.reliability),
        },
        "coverage": [
            {
                "threshold": _short(point.threshold),
                "coverage": _short(point.coverage),
                "n": point.n,
                "accuracy": _short(point.accuracy),
                "interval": _ends(point.accuracy_interval),
            }
            for point in judged.coverage
        ],
    }


def _operating_point(found: Threshold, judged: Evaluation, data: ReportData) -> View:
    """A threshold as it was found, and what it gives on the images that the page is about."""
    point: View = {
        "wanted": found.wanted,
        "threshold": _short(found.threshold),
        "coverage": _short(found.coverage),
        "accuracy": _short(found.accuracy),
        "here": None,
    }
    said = data.predictions
    if found.threshold is None or said is None or judged.split == "validation":
        return point
    answered = said.probabilities.max(axis=1) >= found.threshold
    n = int(answered.sum())
    right = int((said.probabilities.argmax(axis=1) == said.labels)[answered].sum())
    return point | {
        "here": {
            "coverage": _short(n / len(said)),
            "accuracy": _short(right / n) if n else None,
            "interval": _ends(wilson(right, n)),
        }
    }


def _bins(reliability: Sequence[CalibrationBin]) -> list[View]:
    return [
        {
            "low": _short(each.low),
            "high": _short(each.high),
            "n": each.n,
            "confidence": _short(each.confidence),
            "accuracy": _short(each.accuracy),
            "interval": _ends(each.accuracy_interval),
        }
        for each in reliability
        if each.n
    ]


def _curves(data: ReportData) -> View:
    trained = [each for each in data.records if each.get("kind") == "train"]
    validated = [each for each in data.records if each.get("kind") == "validation"]
    steps_per_epoch = data.plan.steps_per_epoch
    best = None
    if validated:
        best = max(validated, key=lambda each: (each["accuracy"], -(each["log_loss"] or 0)))["step"]
    return {
        "train": _columns(trained, ("step", "loss", "accuracy", "learning_rate")),
        "validation": _columns(validated, ("step", "log_loss", "accuracy")),
        "timing": _columns(data.timing, ("step", "images_per_second", "wait_fraction")),
        "steps_per_epoch": steps_per_epoch,
        "label_smoothing": data.plan.label_smoothing,
        "best_step": best,
    }


def _columns(records: Iterable[Mapping[str, Any]], names: Sequence[str]) -> View:
    """One list a name, each at most 800 long: neighbouring records are averaged."""
    rows = list(records)
    size = max(1, -(-len(rows) // _CURVE_POINTS))
    groups = [rows[start : start + size] for start in range(0, len(rows), size)]
    return {name: [_mean(each.get(name) for each in group) for group in groups] for name in names}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _short(sum(known) / len(known)) if known else None


def _plan(data: ReportData) -> View:
    measured = data.facts.measured
    return {
        "decisions": [
            {"name": name, "value": without_places(value), "reason": without_places(reason)}
            for name, value, reason in data.plan.decisions()
        ],
        "measured": [step.model_dump(mode="json") for step in (measured.steps if measured else ())],
        "probe_s": _short(measured.probe_s) if measured else None,
        "num_epochs": _short(data.plan.num_epochs),
        "last_step": data.plan.last_step,
        "horizon_steps": data.plan.horizon_steps,
        "config": public(data.config),
    }


def _data(data: ReportData) -> View:
    dataset = data.facts.dataset
    present = [split for split in SPLITS if any(dataset.counts.get(split, ()))]
    return {
        "name": without_places(dataset.name),
        "fingerprint": dataset.fingerprint,
        "split_rule": without_places(dataset.split_rule),
        "splits": present,
        "classes": list(dataset.classes),
        "counts": {split: list(dataset.counts[split]) for split in present},
        "height_px": list(dataset.height_px),
        "width_px": list(dataset.width_px),
        "grey": dataset.grey,
        "quarantined": dataset.quarantined,
        "ignored": dataset.ignored,
        "neighbour_agreement": _short(dataset.neighbour_agreement),
        "found": _found(data.audit),
    }


def _found(audit: Mapping[str, Any] | None) -> list[View] | None:
    """The findings of the audit that a training begins with; None where there was none."""
    if audit is None:
        return None
    return [
        {
            "severity": str(each["severity"]),
            "message": without_places(str(each["message"])),
            "example": [
                without_places(relative(str(name)))
                for name in (each["groups"][0] if each["groups"] else each["paths"])[:2]
            ],
        }
        for each in audit["findings"]
    ]


def _environment(data: ReportData) -> View:
    # Where the data lay on this machine stays on this machine.
    kept = {name: each for name, each in data.environment.items() if name != "data"}
    return {
        "environment": public(kept),
        "machine": public(data.facts.machine.model_dump(mode="json")),
        "model": public(data.facts.model.model_dump(mode="json")) if data.facts.model else None,
    }


def _short(value: float | None) -> Any:
    """Five digits are more than any interval here carries, and half the bytes."""
    return None if value is None else float(f"{value:.5g}")


def _shorts(values: Iterable[float]) -> list[Any]:
    return [_short(value) for value in values]


def _ends(interval: Interval | None) -> list[Any] | None:
    return None if interval is None else _shorts(interval)
