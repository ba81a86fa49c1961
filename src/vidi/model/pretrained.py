"""Weights that a model begins with, and the pixels that they were trained on."""

from __future__ import annotations

from pathlib import Path

from vidi import weights as weights_module
from vidi.errors import UsageError
from vidi.facts import WeightsFacts
from vidi.model.classifier import Classifier
from vidi.model.from_timm import import_timm, timm_name
from vidi.weights import Fit, is_file_name
from vidi.zoo import IMAGENET, MODELS, Weights
from vidi.zoo.efficientnet import EfficientNet, with_our_names


def weights_facts(name: str, weights: str) -> WeightsFacts | None:
    """The size and normalisation that come with pretrained weights; None for "none".

    A file does not say its own. It is taken to be like the published weights of that model; None
    where there are none.

    Raises:
        UsageError: there are no such weights for this model.
    """
    if weights == "none":
        return None
    if is_file_name(weights):
        return IMAGENET[name].pixels if name in IMAGENET else None
    found = None if name in MODELS else timm_name(name)
    if found is None or weights != "imagenet":
        return _published(name, weights).pixels
    config = import_timm().get_pretrained_cfg(found)
    if config is None or not config.has_weights:
        raise UsageError(f"timm has no pretrained weights for '{found}'")
    return WeightsFacts(
        image_px=config.input_size[-1],
        mean=config.mean,
        std=config.std,
        interpolation="bilinear" if config.interpolation == "bilinear" else "bicubic",
        crop_fraction=config.crop_pct,
    )


def load_weights(classifier: Classifier, weights: str) -> Fit:
    """Into its network, from a file or as "imagenet"; what became of each tensor.

    Raises:
        UsageError: there are none, or they are of another network.
        DamagedError: they are not what was published, or cannot be read.
    """
    if is_file_name(weights):
        state = weights_module.from_file(Path(weights))
    else:
        source = _published(classifier.name, weights)
        state = weights_module.obtain(source.source, source.sha256, size_bytes=source.size_bytes)
    if any(name.startswith("network.") for name in state):
        # A classifier's own file. Its pixels are not taken over: this one was given its own.
        pixels = {"scale", "shift"}
        state = {
            name.removeprefix("network."): tensor
            for name, tensor in state.items()
            if name not in pixels
        }
    elif isinstance(classifier.network, EfficientNet):
        state = with_our_names(state)
    return weights_module.fit(classifier.network, state, head_name=classifier.head_name)


def _published(name: str, weights: str) -> Weights:
    source = IMAGENET.get(name) if weights == "imagenet" else None
    if source is None:
        having = ", ".join(IMAGENET)
        raise UsageError(
            f"there are no weights '{weights}' for model '{name}'",
            fix=f"'imagenet' is there for {having}; or leave model.weights at 'none'",
        )
    return source
