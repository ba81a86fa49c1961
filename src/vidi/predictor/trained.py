"""A run directory, or a file of torch.export, as a network."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vidi.augment import best_kind
from vidi.augment_settings import ViewKind
from vidi.bundle import OperatingPoint
from vidi.data.resample import fast_resize
from vidi.errors import DamagedError, UsageError
from vidi.facts import Facts
from vidi.metrics import PRECISIONS, Predictions, fit_temperature, threshold_for
from vidi.model import Classifier
from vidi.own_data import plan_of, replaced_of
from vidi.plan import Plan
from vidi.predictor.predictor import NO_VIEWS, WITHOUT_VIEWS, Predictor
from vidi.restore import trained_model
from vidi.run import Run


@final
class Answering(nn.Module):
    """Pixels in; logits, features, and where the network allows it a heat map out.

    The heat is Grad-CAM (Selvaraju et al. 2017) of the first class. Where features are the mean or
    the maximum over the last maps, and the head is linear, its gradients are the head's weights, so
    that it is one product and needs no backward pass.
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier.eval()
        self.maps = _last_maps(self.classifier)
        self.outputs: tuple[str, ...] = ("logits", "features")
        if not _has_head(classifier):
            self.outputs = ("logits",)
        elif self.maps is not None:
            self.outputs = ("logits", "features", "heat")

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """images (N, C, H, W) uint8 -> logits (N, K), features (N, F), heat (N, h, w)."""
        if len(self.outputs) == 1:
            return (self.classifier(images),)
        seen: list[Tensor] = []
        handles = [
            self.classifier.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        ]
        if self.maps is not None:
            module = self.classifier.network.get_submodule(self.maps)
            handles.append(module.register_forward_hook(lambda _, __, maps: seen.append(maps)))
        try:
            logits = self.classifier.one_view(images)
        finally:
            for handle in handles:
                handle.remove()
        logits = self.classifier.all_views(images, logits)
        if self.maps is None:
            return logits, seen[0]
        maps, features = seen
        weights = self.classifier.head.weight[logits.argmax(dim=1)]
        heat = torch.relu((maps * weights[:, :, None, None]).sum(dim=1))
        return logits, features, heat


def _has_head(classifier: Classifier) -> bool:
    try:
        return isinstance(classifier.head, nn.Linear)
    except UsageError:
        return False


def _last_maps(classifier: Classifier) -> str | None:
    """The module whose maps, averaged or maximised over the places, are what the head sees."""
    if not _has_head(classifier):
        return None
    found: dict[str, Tensor] = {}
    handles = [
        module.register_forward_hook(lambda _, __, out, name=name: found.update({name: out}))
        for name, module in classifier.network.named_modules()
        if name
    ]
    generator = torch.Generator().manual_seed(0)
    shape = (2, classifier.channels, classifier.image_px, classifier.image_px)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    images = images.to(classifier.scale.device)
    try:
        with torch.no_grad():
            features = classifier.features(images)
            # `embed` of some networks is a method of its own: only what a whole pass calls counts.
            found.clear()
            classifier.one_view(images)
    finally:
        for handle in handles:
            handle.remove()
    for name, maps in reversed(found.items()):
        if not isinstance(maps, Tensor) or maps.ndim != 4 or features.ndim != 2:
            continue
        if maps.shape[:2] != features.shape or maps.shape[2] * maps.shape[3] == 1:
            continue
        for pooled in (maps.mean((2, 3)), maps.amax((2, 3))):
            if torch.allclose(pooled, features, rtol=1e-4, atol=1e-5):
                return name
    return None


@final
class TrainedNetwork:
    """A classifier on the processor, as `vidi.predictor.Network`."""

    def __init__(self, classifier: Classifier) -> None:
        self._module = Answering(classifier.to("cpu"))
        self.outputs = self._module.outputs

    def __call__(
        self, pixels: NDArray[np.uint8], outputs: Sequence[str]
    ) -> tuple[NDArray[np.float32], ...]:
        with torch.inference_mode():
            if tuple(outputs) == ("logits",):
                return (_numbers(self._module.classifier(_tensor(pixels))),)
            found = self._module(_tensor(pixels))
        named = dict(zip(self.outputs, found, strict=True))
        return tuple(_numbers(named[name]) for name in outputs)


@final
class ExportedNetwork:
    """A file of torch.export. Loading one can run code that is in it."""

    def __init__(self, model: bytes, outputs: Sequence[str]) -> None:
        try:
            self._module: Any = torch.export.load(io.BytesIO(model)).module()
        # torch's reader raises whatever its parsers tripped over.
        except Exception as error:
            raise DamagedError(f"torch.export cannot load the model: {error}") from None
        self.outputs = tuple(outputs)

    def __call__(
        self, pixels: NDArray[np.uint8], outputs: Sequence[str]
    ) -> tuple[NDArray[np.float32], ...]:
        with torch.inference_mode():
            found = self._module(_tensor(pixels))
        named = dict(zip(self.outputs, found, strict=True))
        return tuple(_numbers(named[name]) for name in outputs)


def _tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """(N, C, H, W), with the channels innermost in memory, as decoders give it."""
    rows = np.ascontiguousarray(np.moveaxis(pixels, 1, 3))
    return torch.from_numpy(rows if rows.flags.writeable else rows.copy()).permute(0, 3, 1, 2)


def _numbers(values: Tensor) -> NDArray[np.float32]:
    numbers: NDArray[np.float32] = values.float().numpy()
    return numbers


def of_run(path: Path, model: Callable[..., nn.Module] | None) -> Predictor:
    """The predictor of a run directory, with the weights that validated best.

    Raises:
        UsageError: not a run, nothing trained yet, or `model` is missing.
        DamagedError: a file of the run does not match its checksum.
    """
    run = Run.open(path)
    plan, facts, classifier, step = restored(run, model)
    temperature, thresholds = calibration(run)
    network = TrainedNetwork(classifier)
    return Predictor(
        network,
        plan.pixels,
        facts.dataset.classes,
        origin=f"{facts.dataset.fingerprint} step {step}",
        temperature=temperature,
        thresholds=thresholds,
        resize=fast_resize,
        best_views=best_views(plan) or "plain",
        num_features=classifier.num_features if "features" in network.outputs else 0,
    )


def restored(
    run: Run, model: Callable[..., nn.Module] | None = None
) -> tuple[Plan, Facts, Classifier, int]:
    """The network of a run on the processor, with its best weights, and the step they are of."""
    plan = plan_of(run)
    facts = Facts.model_validate_json(run.text("facts"))
    on_processor = plan.execution.model_copy(update={"device": "cpu"})
    plan = plan.model_copy(update={"execution": on_processor})
    classifier, step = trained_model(run, plan, model)
    return plan, facts, classifier.eval(), step


def best_views(plan: Plan) -> ViewKind | None:
    """The most views that a model of this plan was trained for, besides those that it looks at by
    itself."""
    return best_kind(plan.augment, plan.pixels.store_px, own=plan.model.views)


def view_kind(plan: Plan) -> ViewKind:
    """The views that this model was trained for.

    Raises:
        UsageError: there are none but those that it looks at by itself.
    """
    kind = best_views(plan)
    if kind is None:
        raise UsageError(NO_VIEWS, fix=WITHOUT_VIEWS)
    return kind


def calibration(run: Run) -> tuple[float, tuple[OperatingPoint, ...]]:
    """The temperature and the thresholds that the validation images of a run give.

    A run that learnt from them has the temperature of the run it stands in for, and no thresholds.
    """
    if replaced := replaced_of(run):
        return replaced.temperature.value, ()
    if "validation" not in run.evaluated_splits():
        return 1.0, ()
    predictions = Predictions.from_arrays(run.read_predictions("validation"))
    temperature = fit_temperature(predictions).value
    scaled = predictions.scaled(temperature)
    points = []
    for wanted in PRECISIONS:
        raw, calibrated = threshold_for(predictions, wanted), threshold_for(scaled, wanted)
        points.append(
            OperatingPoint(
                wanted=wanted,
                threshold=raw.threshold,
                calibrated_threshold=calibrated.threshold,
                coverage=raw.coverage,
                accuracy=raw.accuracy,
                n=raw.n,
            )
        )
    return temperature, tuple(points)
