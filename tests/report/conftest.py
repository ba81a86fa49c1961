"""Reports of runs that never were: everything that a page shows, made by code."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from vidi import metrics
from vidi.config import Config
from vidi.facts import DatasetFacts, Facts, Machine, Measurements, ModelFacts, StepTiming
from vidi.metrics import Predictions
from vidi.plan import make
from vidi.report import Pictures, ReportData

MakeReport = Callable[..., ReportData]

NAMES = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay")


def predictions_for(num_classes: int, n: int, *, skill: float, seed: int = 0) -> Predictions:
    """Some classes look like their neighbour; the rest is luck."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % num_classes
    logits = rng.standard_normal((n, num_classes), dtype=np.float32)
    logits[np.arange(n), labels] += skill
    logits[np.arange(n), (labels + 1) % num_classes] += 0.35 * skill * (labels % 3 == 0)
    odds = np.exp(logits)
    return Predictions(np.arange(n) + 40, labels, odds / odds.sum(axis=1, keepdims=True))


def drawn(label: int, rng: np.random.Generator, *, px: int, channels: int) -> np.ndarray:
    """A bright disc on a dark ground, in a colour that goes with the label."""
    y, x = np.mgrid[0:px, 0:px] / px - rng.uniform(0.35, 0.65, (2, 1, 1))
    inside = (x**2 + y**2 < rng.uniform(0.06, 0.12))[:, :, None]
    tint = np.array([(label * 67) % 200, (label * 131) % 200, (label * 29) % 200][:channels]) + 50
    return np.where(inside, tint, rng.integers(20, 60, (px, px, channels))).astype(np.uint8)


def learning_records(num_steps: int, every: int) -> list[dict[str, Any]]:
    """A run that learns: loss falls, accuracy rises, the learning rate is a cosine."""
    records: list[dict[str, Any]] = []
    rng = np.random.default_rng(1)
    for step in range(1, num_steps + 1):
        done = step / num_steps
        wobble = float(rng.normal(0, 0.02))
        records.append(
            {"kind": "train", "step": step, "epoch": step / every, "loss": 2.3 * 0.02**done + wobble + 0.1,
             "accuracy": 1 - 0.9 * 0.05**done + wobble / 4, "learning_rate": 0.1 * (1 - done)}
        )  # fmt: skip
        if step % every == 0:
            records.append(
                {"kind": "validation", "step": step, "epoch": step / every,
                 "accuracy": 1 - 0.9 * 0.06**done, "log_loss": 2.3 * 0.03**done + 0.12}
            )  # fmt: skip
    return records


def made_report(
    classes: Sequence[str] = NAMES,
    n: int = 360,
    *,
    skill: float = 4.5,
    px: int = 32,
    channels: int = 3,
    num_pictures: int = 60,
    file_names: Sequence[str] | None = None,
    name: str = "2026-11-22_animals_a1b2",
    pixels_for: Callable[[int, int], np.ndarray] | None = None,
    **changes: Any,
) -> ReportData:
    """A finished run on `classes`; `changes` replace fields of the ReportData."""
    num_classes = len(classes)
    dataset = DatasetFacts(
        name="animals",
        fingerprint="5f2a9c0d1e",
        classes=tuple(classes),
        counts={
            "train": tuple(120 + 17 * (label % 7) for label in range(num_classes)),
            "validation": (20,) * num_classes,
            "test": (n // num_classes,) * num_classes,
        },
        height_px=(px, px, px),
        width_px=(px, px, px),
        grey=channels == 1,
        split_rule="folders for test; validation stratified from train, 15%, seed 0",
        quarantined={"TRUNCATED": 2, "NOT_IMAGE": 1},
        ignored={"hidden": 3},
        neighbour_agreement=0.71,
    )
    machine = Machine(
        platform="Linux-6.1", processor="a processor of 2024", physical_cores=2, usable_cores=2,
        memory_bytes=16 << 30, cpu_bfloat16=True, python="3.11.9", torch="2.13.0",
    )  # fmt: skip
    steps = tuple(
        StepTiming(precision=precision, channels_last=last, batch_size=64, threads=2,
                   images_per_second=rate, rejected=rejected)
        for precision, last, rate, rejected in (
            ("float32", False, 812.4, ""), ("float32", True, 1204.1, ""),
            ("bfloat16", True, 2041.7, ""), ("bfloat16", False, 1620.3, "the loss left the tolerance"),
        )
    )  # fmt: skip
    facts = Facts(
        dataset=dataset,
        machine=machine,
        model=ModelFacts(name="small_resnet", parameters=1_204_810, multiply_adds=38_400_000),
        measured=Measurements(steps=steps, probe_s=6.2),
    )
    config = Config().with_settings({"train.epochs": 12, "train.batch_size": 64})
    predictions = predictions_for(num_classes, n, skill=skill)
    evaluation = metrics.evaluate(predictions, list(classes), n_expected=n)
    predicted = predictions.probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predicted != predictions.labels)
    worst = wrong[np.argsort(-predictions.probabilities[wrong, predicted[wrong]], kind="stable")]
    worst = worst[:num_pictures]
    rng = np.random.default_rng(0)
    pixels = [
        pixels_for(int(predictions.labels[i]), int(i))
        if pixels_for
        else drawn(int(predictions.labels[i]), rng, px=px, channels=channels)
        for i in worst
    ]
    pictures = Pictures(
        ids=predictions.ids[worst],
        pixels=np.stack(pixels) if pixels else np.zeros((0, px, px, channels), np.uint8),
        names=tuple(
            file_names[k % len(file_names)] if file_names
            else f"test/{classes[predictions.labels[i]]}/{i:05}.jpg"
            for k, i in enumerate(worst)
        ),
    )  # fmt: skip
    data = ReportData(
        name=name,
        config=config.model_dump(exclude_unset=True, mode="json"),
        plan=make(config, facts),
        facts=facts,
        environment={
            "vidi": "0.1.0", "python": "3.11.9", "threads": 2,
            "packages": {"torch": "2.13.0", "numpy": "2.4.6"},
        },
        records=learning_records(240, 20),
        timing=[
            {"step": step, "images_per_second": 1900 + 10 * (step % 7), "wait_fraction": 0.004}
            for step in range(10, 240, 10)
        ],
        evaluation=evaluation,
        predictions=predictions,
        pictures=pictures,
    )  # fmt: skip
    return dataclasses.replace(data, **changes)


@pytest.fixture(scope="session")
def make_report() -> MakeReport:
    """`make_report(classes, n, skill=..., ...)`."""
    return made_report
