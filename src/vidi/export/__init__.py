"""A run -> a bundle that provably says what was trained."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import vidi
from vidi.bundle import FORMAT, TARGETS, Bundle, BundleFile, Description, Target
from vidi.data import Dataset, PixelStore
from vidi.errors import UsageError, nearest
from vidi.export.graph import folded, to_onnx, to_torch
from vidi.export.parity import compare, sampled
from vidi.export.quantise import CALIBRATION_IMAGES, quantised
from vidi.export.versions import require, versions
from vidi.facts import Split
from vidi.image import DECODER_VERSION
from vidi.own_data import own_data
from vidi.plan import Plan
from vidi.predictor import Network, Predictor
from vidi.predictor.trained import Answering, ExportedNetwork, best_views, calibration, restored
from vidi.run import Run
from vidi.storage import sha256

__all__ = ["export"]

_MODEL_FILE = {"onnx": "model.onnx", "torch": "model.pt2", "onnx-int8": "model.onnx"}


def export(
    run: str | Path | Run,
    *,
    to: str = "onnx",
    data: str | Path | None = None,
    out: str | Path | None = None,
    model: Callable[..., nn.Module] | None = None,
    show: Callable[[Any], None] | None = None,
) -> Bundle:
    """Write a bundle of a run's best weights, and prove on real files that it says the same.

    Files of the validation split go from their bytes to a label, once through the code that
    trained and once through the bundle as it lies on disk.

    Args:
        to: "onnx" for any machine without torch; "torch" for torch.export; "onnx-int8" with
            weights and activations of 8 bits, calibrated on training images.
        data: where the data of the run are now; where they were when it was trained if left out.
        out: the folder of the bundle; inside the run if left out.
        model: your own network, if the run trained one.

    Raises:
        UsageError: no such target, not a run, nothing trained yet.
        MissingExtra: onnx and its friends are not installed.
        MismatchError: the data are not those of the run, or the bundle says something else than
            was trained; the file is named, and nothing is written.
        StorageError: the disk gave up; an earlier bundle there is as it was.
    """
    target = _target(to)
    if target != "torch":
        require("onnx", "onnxruntime", "onnxscript")
    tell = show or (lambda _: None)
    opened = run if isinstance(run, Run) else Run.open(Path(run))
    plan, facts, classifier, step = restored(opened, model)
    dataset, store, _ = own_data(opened, data, say=tell)
    sample = sampled(dataset, store, classifier, plan, _held_out(dataset))
    tell(f"exporting {plan.model.name}, step {step}, to {target}")
    answering = Answering(folded(classifier))
    packed, network = _packed(target, answering, dataset, store, plan)
    temperature, thresholds = calibration(opened)
    predictor = Predictor(network, plan.pixels, facts.dataset.classes)
    parity, quality = compare(sample, predictor, exact=target != "onnx-int8")
    name = _MODEL_FILE[target]
    about = Description(
        format=FORMAT,
        target=target,
        files=(BundleFile(name=name, num_bytes=len(packed), sha256=sha256(packed)),),
        classes=facts.dataset.classes,
        pixels=plan.pixels,
        decoder=DECODER_VERSION,
        temperature=temperature,
        thresholds=thresholds,
        outputs=network.outputs,
        num_features=classifier.num_features if "features" in network.outputs else 0,
        views=best_views(plan) or "plain",
        data_fingerprint=facts.dataset.fingerprint,
        dataset=facts.dataset.name,
        model=plan.model.name,
        run=opened.path.absolute().name,
        step=step,
        versions={"vidi": vidi.__version__, "python": platform.python_version()} | versions(target),
        parity=parity,
        quantised=quality,
    )
    return Bundle.write(Path(out) if out else opened.bundle_path(target), about, packed)


def _target(to: str) -> Target:
    for target in TARGETS:
        if target == to:
            return target
    raise UsageError(f"nothing is exported to '{to}'", fix=nearest(to, TARGETS))


def _held_out(dataset: Dataset) -> Split:
    for split in ("validation", "test"):
        if len(dataset.indices(split)):
            return split
    return "train"


def _packed(
    target: Target, answering: Answering, dataset: Dataset, store: PixelStore, plan: Plan
) -> tuple[bytes, Network]:
    """The model file, and what computes with those very bytes."""
    torch.set_num_threads(plan.execution.threads)
    if target == "torch":
        packed = to_torch(answering)
        return packed, ExportedNetwork(packed, answering.outputs)
    packed = to_onnx(answering)
    if target == "onnx-int8":
        train = dataset.indices("train")
        packed = quantised(packed, store, train[:: max(1, len(train) // CALIBRATION_IMAGES)], plan)
    from vidi.predictor.onnx import OnnxNetwork  # onnxruntime

    return packed, OnnxNetwork(packed, where=_MODEL_FILE[target])
