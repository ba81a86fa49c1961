"""The proof: real files, from their bytes to a label, through training's code and the bundle's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from vidi.bundle import Parity, Quantised
from vidi.data import Dataset, Loader, PixelStore
from vidi.errors import MismatchError
from vidi.evaluate import predict
from vidi.export.quantise import CALIBRATION_IMAGES
from vidi.facts import Split
from vidi.metrics import Predictions
from vidi.model import Classifier
from vidi.plan import Plan
from vidi.predictor import Predictor

# Probabilities of float32 models: sums in another order differ in the sixth digit.
TOLERANCE: Final = 1e-4
# Share of images: what rounding to 8 bits may cost.
ACCURACY_TOLERANCE: Final = 0.01
# Files of the proof; a difference in one file of a hundred is seen with 99.9 % by 700 of them.
MOST_FILES: Final = 700
_BATCH: Final = 32


@dataclass(frozen=True)
class Sample:
    """Some files of a held-out split, and what the trained model says about them."""

    dataset: Dataset
    split: Split
    trained: Predictions


def sampled(
    dataset: Dataset, store: PixelStore, classifier: Classifier, plan: Plan, split: Split
) -> Sample:
    """At most 700 files, evenly over the split, predicted by the code that evaluates training."""
    ids = dataset.indices(split)
    ids = ids[np.linspace(0, len(ids) - 1, min(len(ids), MOST_FILES)).astype(np.int64)]
    loader = Loader(
        store,
        dataset.labels,
        ids,
        batch_size=_BATCH,
        seed=plan.seed,
        shuffle=False,
        drop_last=False,
        threads=1,
    )
    trained = None
    for part in predict(classifier, loader, plan.pixels.image_px, "float32", torch.device("cpu")):
        trained = part
    assert trained is not None, "a split is never empty"
    return Sample(dataset, split, trained)


def compare(
    sample: Sample, predictor: Predictor, *, exact: bool
) -> tuple[Parity, Quantised | None]:
    """What both say about every file of the sample.

    exact: every probability within 1e-4 and every label the same; otherwise the accuracy may fall
    by one point.

    Raises:
        MismatchError: outside of that; the file is named.
    """
    trained = sample.trained.probabilities
    shipped = _shipped(sample, predictor)
    differences = np.abs(shipped - trained).max(axis=1)
    # NaN is a difference too.
    differences = np.where(np.isfinite(differences), differences, 1.0)
    labels, answers = trained.argmax(axis=1), shipped.argmax(axis=1)
    worst = int(differences.argmax())
    if exact:
        _refuse(sample, differences, labels != answers)
    right = sample.trained.labels
    before, after = float((labels == right).mean()), float((answers == right).mean())
    parity = Parity(
        split=sample.split,
        n=len(right),
        label_agreement=float((labels == answers).mean()),
        largest_difference=float(differences[worst]),
        worst_file=_name(sample, worst),
        tolerance=TOLERANCE if exact else ACCURACY_TOLERANCE,
        accuracy_trained=before,
        accuracy_bundle=after,
    )
    if exact:
        return parity, None
    if before - after > ACCURACY_TOLERANCE:
        lost = np.flatnonzero((labels == right) & (answers != right))
        files = ", ".join(_name(sample, int(each)) for each in lost[:3])
        raise MismatchError(
            f"8 bits cost too much: accuracy {before:.1%} before, {after:.1%} after, on "
            f"{len(right):,} {sample.split} images; lost are {files}, ...",
            fix="export --to onnx; or train a model with wider layers",
        )
    quality = Quantised(
        calibration_images=min(CALIBRATION_IMAGES, len(sample.dataset.indices("train"))),
        accuracy_before=before,
        accuracy_after=after,
    )
    return parity, quality


def _shipped(sample: Sample, predictor: Predictor) -> NDArray[np.float32]:
    """From the bytes of each file, as `vidi predict` would."""
    parts = []
    ids = sample.trained.ids.tolist()
    for start in range(0, len(ids), _BATCH):
        data = [sample.dataset.read(number) for number in ids[start : start + _BATCH]]
        parts.append(predictor.probabilities(data))
    return np.concatenate(parts)


def _refuse(
    sample: Sample, differences: NDArray[np.float32], other_label: NDArray[np.bool_]
) -> None:
    outside = (differences > TOLERANCE) | other_label
    if not outside.any():
        return
    first = int(np.where(outside, differences, -1.0).argmax())
    raise MismatchError(
        f"the bundle says something else than the trained model about {_name(sample, first)}: a "
        f"probability differs by {differences[first]:.2g}, at most {TOLERANCE:g} is allowed; so it "
        f"does for {int(outside.sum()):,} of {len(outside):,} files. Nothing was written",
        fix="please report it with that file; vidi predict RUN works as trained",
    )


def _name(sample: Sample, position: int) -> str:
    return sample.dataset.name_of(int(sample.trained.ids[position]))
