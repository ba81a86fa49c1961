"""A trained run to a callable: bytes of an image in, what is on it out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from vidi.augment import ViewKind, average_probabilities, best_kind, views
from vidi.errors import UsageError
from vidi.facts import Facts
from vidi.image import PixelContract, prepare
from vidi.model import Classifier
from vidi.plan import Plan
from vidi.restore import build_model, load_best
from vidi.run import Run


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model says about one image.

    label: the most probable class.
    probability: of that class, 0 to 1.
    top: all (class, probability) pairs, the most probable first.
    """

    label: str
    probability: float
    top: tuple[tuple[str, float], ...]


@final
class Predictor:
    """`predictor(data) -> Prediction`, on the processor, in float32, as the test numbers were made.

    The pixels go the same way as in training: `image.prepare`, then the views of `kind`, of which
    the plain one is the centre crop.
    """

    def __init__(
        self,
        classifier: Classifier,
        pixels: PixelContract,
        classes: Sequence[str],
        *,
        kind: ViewKind = "plain",
    ) -> None:
        self.classes = tuple(classes)
        self._pixels = pixels
        self._kind = kind
        self._model = classifier.to("cpu").eval()

    def __call__(self, data: bytes) -> Prediction:
        """What is on one encoded image.

        Raises:
            UnreadableImage: not an image, damaged, or of a format that is not accepted.
        """
        return self._prediction(self.probabilities([data])[0])

    def probabilities(self, images: Sequence[bytes]) -> Any:
        """(N, K) float32, one row for each encoded image.

        Raises:
            UnreadableImage: one of them cannot be read.
        """
        pixels = [torch.from_numpy(prepare(data, self._pixels)) for data in images]
        # (N, H, W, C) as decoded; the model takes (N, C, H, W) and keeps the memory as it is.
        batch: Tensor = torch.stack(pixels).permute(0, 3, 1, 2)
        with torch.inference_mode():
            seen = views(batch, self._kind, self._pixels.image_px)
            return average_probabilities([self._model(view) for view in seen]).numpy()

    def _prediction(self, probabilities: Any) -> Prediction:
        order = (-probabilities).argsort(kind="stable")
        top = tuple((self.classes[index], float(probabilities[index])) for index in order)
        return Prediction(label=top[0][0], probability=top[0][1], top=top)


def load(
    path: str | Path, *, model: Callable[..., nn.Module] | None = None, tta: bool = False
) -> Predictor:
    """The predictor of a run directory, with the weights that validated best.

    Args:
        path: what `vidi train` wrote.
        model: your own network, if it trained one; names in files are never imported.
        tta: average over several views of each image, those that `vidi evaluate --tta` judges.

    Raises:
        UsageError: not a run, nothing trained yet, `model` is missing, or no views to average.
        DamagedError: a file of the run does not match its checksum.
    """
    run = Run.open(path)
    plan = Plan.from_json(run.text("plan"), origin=f"{run.path}: plan.json")
    facts = Facts.model_validate_json(run.text("facts"))
    on_processor = plan.execution.model_copy(update={"device": "cpu"})
    # The run's own weights are loaded below; the pretrained ones they began with are not needed.
    unloaded = plan.model.model_copy(update={"weights": "none"})
    plan = plan.model_copy(update={"execution": on_processor, "model": unloaded})
    classifier = build_model(plan, model)
    load_best(run, classifier)
    kind = view_kind(plan) if tta else "plain"
    return Predictor(classifier, plan.pixels, facts.dataset.classes, kind=kind)


def view_kind(plan: Plan) -> ViewKind:
    """The views that this model was trained for.

    Raises:
        UsageError: it saw no mirror images and nothing but the middle.
    """
    kind = best_kind(plan.augment, plan.pixels.store_px)
    if kind is None:
        raise UsageError(
            "this model was trained on images as they are: there are no views to average",
            fix="mirror images change what these pictures show (see `vidi plan`); go without --tta",
        )
    return kind


def image_files(paths: Sequence[Path]) -> Iterator[Path]:
    """The files given, and those with an image's ending below the folders given, in order.

    Raises:
        UsageError: a path that does not exist.
    """
    for path in paths:
        if path.is_dir():
            found = sorted(
                entry
                for entry in path.rglob("*")
                if entry.suffix.lower() in _ENDINGS and entry.is_file()
            )
            if not found:
                raise UsageError(
                    f"no images in {path}", fix=f"endings looked for: {' '.join(sorted(_ENDINGS))}"
                )
            yield from found
        elif path.exists():
            yield path
        else:
            raise UsageError(f"no such file: {path}")


_ENDINGS = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
)
