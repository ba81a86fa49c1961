"""A bundle or a run to a callable: an image in, what is on it out.

An ONNX bundle needs numpy, Pillow and onnxruntime; torch is imported only for what was made with
it: a run directory, or a bundle of torch.export.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from vidi.bundle import Bundle, is_bundle
from vidi.errors import DamagedError, UsageError
from vidi.image import DECODER_VERSION
from vidi.predictor.predictor import Answers, Image, Network, Prediction, Predictor

if TYPE_CHECKING:
    from torch import nn

    from vidi.predictor.onnx import OnnxNetwork

__all__ = ["Answers", "Image", "Network", "Prediction", "Predictor", "load", "of_bundle"]


def load(
    path: str | Path,
    *,
    model: Callable[..., nn.Module] | None = None,
    tta: bool = False,
    calibrated: bool = False,
    abstain_below: float = 0.0,
    trusted: bool = False,
) -> Predictor:
    """The predictor of a bundle, or of a run directory with the weights that validated best.

    Args:
        path: what `vidi export` or `vidi train` wrote.
        model: your own network, if a run trained one; names in files are never imported.
        calibrated: divide the logits by the temperature that was fitted on validation images. The
            order of the classes stays; without it probabilities are those that were evaluated.
        tta: average over several views of each image, those that `vidi evaluate --tta` judges.
        abstain_below: predictions with a lower probability of their first class say `abstained`.
        trusted: load a bundle of torch.export, whose file can run code; only one of your own.

    Raises:
        UsageError: neither a bundle nor a run, nothing trained yet, `model` is missing, or there
            are no views to average.
        MissingExtra: the bundle needs onnxruntime.
        DamagedError: a byte of it changed.
    """
    path = Path(path)
    if is_bundle(path):
        if model is not None:
            raise UsageError("a bundle carries its network", fix="leave model out")
        predictor = of_bundle(Bundle.open(path), trusted=trusted)
    else:
        from vidi.predictor.trained import of_run  # torch

        predictor = of_run(path, model)
    return predictor.configured(calibrated=calibrated, tta=tta, abstain_below=abstain_below)


def of_bundle(bundle: Bundle, *, trusted: bool = False, threads: int | None = None) -> Predictor:
    """The predictor of a bundle that was verified.

    Raises:
        UsageError: one of torch.export, without `trusted`.
        MissingExtra: it needs onnxruntime.
        DamagedError: its model cannot be loaded.
    """
    about = bundle.about
    network: Network
    if about.target == "torch":
        if not trusted:
            raise UsageError(
                f"{bundle.path} is a bundle of torch.export; loading such a file can run code that "
                "is in it",
                fix="if you made it yourself: --trusted, trusted=True, or export --to onnx",
            )
        from vidi.predictor.trained import ExportedNetwork  # torch

        network = ExportedNetwork(bundle.model, about.outputs)
    else:
        from vidi.predictor.onnx import OnnxNetwork  # onnxruntime

        network = OnnxNetwork(bundle.model, where=str(bundle.path), threads=threads)
        _check_fits(network, bundle)
    return Predictor(
        network,
        about.pixels,
        about.classes,
        origin=bundle.digest,
        temperature=about.temperature,
        thresholds=about.thresholds,
        notes=_notes(about.decoder),
        num_features=about.num_features,
        best_views=about.views,
    )


def _check_fits(network: OnnxNetwork, bundle: Bundle) -> None:
    """The graph is the one that is described: the same outputs, as many classes."""
    if set(network.outputs) != set(bundle.about.outputs):
        raise DamagedError(f"{bundle.path}: the model gives {', '.join(network.outputs)}")
    if network.num_classes != len(bundle.about.classes):
        raise DamagedError(
            f"{bundle.path}: {len(bundle.about.classes)} classes are named, the model has "
            f"{network.num_classes}"
        )


def _notes(decoder: str) -> tuple[str, ...]:
    if decoder == DECODER_VERSION:
        return ()
    return (
        f"the parity of this bundle was proven with another decoder ({decoder}; here it is "
        f"{DECODER_VERSION}): pixels may differ by a grey level",
    )
