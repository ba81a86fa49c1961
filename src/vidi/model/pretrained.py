"""Weights that a model begins with, and the pixels that they were trained on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from vidi import weights as weights_module
from vidi.errors import UsageError
from vidi.facts import WeightsFacts
from vidi.model.classifier import Classifier
from vidi.model.from_timm import is_own, pretrained_facts, timm_name
from vidi.weights import Fit, is_file_name
from vidi.zoo import IMAGENET, MODELS, Weights
from vidi.zoo.efficientnet import EfficientNet, with_our_names

# How often a download says how far it is.
_SAID_EVERY_S = 5.0


def weights_facts(name: str, weights: str) -> WeightsFacts | None:
    """The size and normalisation that come with pretrained weights; None where nothing does.

    A file of vidi's says its normalisation; of everything else in a file it is taken that it is
    like that of the published weights of that model.

    Args:
        name: of the model, as it was asked for just now.
        weights: "none", "imagenet", "hub" for a model of the hub, or the path of a file.

    Raises:
        UsageError: there are no such weights for this model.
    """
    if weights == "none":
        return None
    found = None if name in MODELS or is_own(name) else timm_name(name)
    if is_file_name(weights):
        return _facts_of_file(Path(weights), name, found)
    if weights == "hub" and name.startswith("hf-hub:"):
        return pretrained_facts(name)
    if found is None or weights != "imagenet":
        return _published(name, weights).pixels
    return pretrained_facts(found)


def _facts_of_file(path: Path, name: str, in_timm: str | None) -> WeightsFacts | None:
    weights_module.check_file(path)
    like = IMAGENET[name].pixels if name in IMAGENET else None
    if in_timm is not None:
        try:
            like = pretrained_facts(in_timm)
        except UsageError:
            like = None
    own = weights_module.normalisation(path)
    if own is None:
        return like
    mean, std = own
    if like is None:
        return WeightsFacts(mean=mean, std=std)
    return like.model_copy(update={"mean": mean, "std": std})


def fetch_weights(name: str, weights: str, say: Callable[[str], None]) -> None:
    """See to it that weights are on this machine, before anything takes time; timm fetches its own.

    Raises:
        UsageError: there are no such weights, or they cannot be downloaded.
        DamagedError: they are not what was published.
        MissingExtra: they come with a package that is not installed.
        StorageError: they cannot be kept.
    """
    source = IMAGENET.get(name) if weights == "imagenet" else None
    if source is None:
        if is_file_name(weights):
            weights_module.check_file(Path(weights))
        return
    said_at = time.monotonic()

    def watch(received: int, total: int | None) -> None:
        nonlocal said_at
        if time.monotonic() - said_at >= _SAID_EVERY_S:
            said_at = time.monotonic()
            of = "" if total is None else f" of {total / 1e6:,.0f}"
            say(f"downloading the weights of {name}: {received / 1e6:,.0f}{of} MB")

    weights_module.fetch(source.source, source.sha256, size_bytes=source.size_bytes, watch=watch)


def read_weights(name: str, weights: str) -> dict[str, Tensor]:
    """The tensors of published weights, or of a file.

    Raises:
        UsageError: there are none.
        DamagedError: they are not what was published, or cannot be read.
    """
    if is_file_name(weights):
        return weights_module.from_file(Path(weights))
    source = _published(name, weights)
    return weights_module.obtain(source.source, source.sha256, size_bytes=source.size_bytes)


def load_weights(classifier: Classifier, state: Mapping[str, Tensor]) -> Fit:
    """Into its network; what became of each tensor.

    Raises:
        UsageError: they are of another network.
        DamagedError: they hold what is not a number.
    """
    if any(name.startswith("network.") for name in state):
        # A classifier's own file. Its pixels are part of the plan: `weights_facts`.
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
            fix=f"'imagenet' is there for {having}; or give a file, or 'none'",
        )
    return source
