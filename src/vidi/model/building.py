"""A model by its name: from the zoo, from timm, or your own."""

from __future__ import annotations

import importlib.util
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vidi.config import load
from vidi.errors import UsageError, nearest
from vidi.model.classifier import Classifier
from vidi.model.from_timm import HubModel, from_timm, timm_fit, timm_name
from vidi.model.pretrained import load_weights, read_weights
from vidi.words import first_line
from vidi.zoo import MODELS


def build(
    name: str | Callable[..., nn.Module],
    *,
    num_classes: int,
    image_px: int,
    channels: int,
    mean: Sequence[float],
    std: Sequence[float],
    dropout: float | None = None,
    stochastic_depth: float | None = None,
    weights: str | None = None,
    saved: Mapping[str, Tensor] | None = None,
) -> Classifier:
    """A model with initial or pretrained weights, on the processor.

    Its random initial values come from torch's global generator.

    Args:
        name: of the zoo (`vidi models` lists them), `timm:NAME` or a name that only timm knows,
            `module:function`, or the function itself: it is called with `num_classes`, and with
            `image_px`, `channels`, `dropout` and `stochastic_depth` where it has such arguments.
        image_px: side of the images, in pixels.
        channels: 1 for grey, 3 for colour; others work too.
        mean, std: of each channel, in 0..1.
        dropout, stochastic_depth: None leaves them at what the model has by itself.
        weights: None, "imagenet", or the path of a file: .safetensors, or a checkpoint of torch;
            "hub" for a `HubModel`.
        saved: of a classifier like this one, whose weights will be put into it by the caller: only
            what they say of its layers is used, and `weights` are not looked for.

    Raises:
        UsageError: no such model or weights, or a size, channel or class count that cannot be.
    """
    _check_request(num_classes=num_classes, channels=channels, mean=mean, std=std)
    asked = {
        "num_classes": num_classes,
        "image_px": image_px,
        "channels": channels,
        "dropout": dropout,
        "stochastic_depth": stochastic_depth,
    }
    shown = name if isinstance(name, str) else name_of(name)
    in_timm = name.name if isinstance(name, HubModel) else None
    if isinstance(name, str) and name not in MODELS:
        in_timm = timm_name(name)
        if in_timm is not None:
            shown = f"timm:{in_timm}"
        elif ":" not in name:
            raise _unknown(name)
    by_timm = in_timm is not None and saved is None
    by_timm = by_timm and weights == ("hub" if isinstance(name, HubModel) else "imagenet")
    state = saved
    if saved is None and weights is not None and not by_timm:
        state = read_weights(shown, weights)
    if shown in MODELS:
        network = _from_zoo(shown, asked, state)
    elif in_timm is not None:
        network = from_timm(in_timm, asked, pretrained=by_timm)
    elif isinstance(name, str) and name.startswith("hf-hub:"):
        raise UsageError(
            f"'{name}' is not taken from a file or a plan: it may be anybody's",
            fix=f"name it on the command line: --model {name}",
        )
    else:
        network = _from_function(load(name) if isinstance(name, str) else name, asked, shown)
    classifier = Classifier(
        network, name=shown, mean=mean, std=std, image_px=image_px, num_classes=num_classes
    )
    if shown not in MODELS:
        _check_logits(classifier)
    if by_timm:
        classifier.fit = timm_fit(network, asked)
    elif saved is None and state is not None:
        classifier.fit = load_weights(classifier, state)
    return classifier


def own(name: str) -> Callable[..., nn.Module]:
    """The network that a name asked for just now stands for: `module:function`, `hf-hub:...`.

    Raises:
        ConfigError, UsageError: there is no such.
    """
    return HubModel(name) if name.startswith("hf-hub:") else load(name)


def check_name(name: str) -> None:
    """Whether `build` knows it; nothing is built, and `module:function` is taken as it is.

    Raises:
        UsageError, MissingExtra: as `build`.
    """
    if name.startswith("hf-hub:"):
        HubModel(name)
    elif name not in MODELS and timm_name(name) is None and ":" not in name:
        raise _unknown(name)


def _unknown(name: str) -> UsageError:
    fix = nearest(name, MODELS)
    if importlib.util.find_spec("timm") is None:
        fix += '; names of timm need pip install "vidi[timm]"'
    return UsageError(f"there is no model '{name}'", fix=fix)


def _check_request(
    *, num_classes: int, channels: int, mean: Sequence[float], std: Sequence[float]
) -> None:
    if num_classes < 2:
        raise UsageError(
            f"num_classes = {num_classes}: a classifier tells two or more classes apart"
        )
    if channels < 1:
        raise UsageError(f"channels = {channels}: an image has at least one")
    if len(mean) != channels or len(std) != channels:
        raise UsageError(
            f"mean has {len(mean)} and std {len(std)} numbers for images of {channels} channels"
        )
    if not all(math.isfinite(value) for value in (*mean, *std)) or min(std) <= 0.0:
        raise UsageError(f"mean = {tuple(mean)}, std = {tuple(std)}: std has to be above zero")


def _from_zoo(name: str, asked: dict[str, Any], state: Mapping[str, Tensor] | None) -> nn.Module:
    """`state`: weights that will be loaded into it, whose first filters it has to have."""
    spec = MODELS[name]
    if asked["image_px"] < spec.min_image_px:
        raise UsageError(
            f"'{name}' takes images from {spec.min_image_px} px on, not {asked['image_px']} px",
            fix=f"set data.image_px to {spec.min_image_px} or more",
        )
    known = inspect.signature(spec.build).parameters
    for setting in ("dropout", "stochastic_depth"):
        if asked[setting] is not None and setting not in known:
            raise UsageError(f"model '{name}' has no {setting.replace('_', ' ')} to set")
    given = {key: value for key, value in asked.items() if key in known and value is not None}
    if state is not None and "small_kernel" in known:
        # The kernel of the weights stays; from scratch, a small image gets a smaller one.
        filters = state.get("network.conv1.weight", state.get("conv1.weight"))
        small = filters is not None and filters.shape[-1] == 3
        given["small_kernel"] = 3 if small else 7
    return spec.build(**given)


def _from_function(function: Any, asked: dict[str, Any], name: str) -> nn.Module:
    if not callable(function):
        raise UsageError(
            f"'{name}' is a {type(function).__name__}, not a function that builds a model"
        )
    known = inspect.signature(function).parameters
    for setting in ("dropout", "stochastic_depth"):
        if asked[setting] is not None and setting not in known:
            raise UsageError(f"'{name}' takes no argument '{setting}', which was asked for")
    given = {
        key: value
        for key, value in asked.items()
        if key in known and value is not None and key != "num_classes"
    }
    if "num_classes" in known:
        network = function(num_classes=asked["num_classes"], **given)
    elif known:
        network = function(asked["num_classes"], **given)
    else:
        raise UsageError(f"'{name}' takes no number of classes", fix="def tiny(num_classes: int)")
    if not isinstance(network, nn.Module):
        raise UsageError(f"'{name}' gives a {type(network).__name__}, not a torch.nn.Module")
    return network


def name_of(function: Callable[..., nn.Module]) -> str:
    """The name that `own` finds it by, if it stands at the top of a module."""
    if isinstance(function, HubModel):
        return function.name
    module = getattr(function, "__module__", type(function).__module__)
    return f"{module}:{getattr(function, '__qualname__', type(function).__qualname__)}"


def _check_logits(classifier: Classifier) -> None:
    """Two blank images through a network that is not ours, before any training starts."""
    size = classifier.image_px
    images = torch.zeros(2, classifier.channels, size, size, dtype=torch.uint8)
    was_training = classifier.training
    classifier.eval()
    try:
        with torch.no_grad():
            logits = classifier(images)
    # A network of somebody else's: whatever goes wrong in it is told in a line.
    except Exception as error:
        fix = "set data.image_px to the size that it is made for"
        if classifier.channels == 1:
            fix = "it may ask for colour: set data.channels = 3"
        raise UsageError(
            f"'{classifier.name}' fails on images of {classifier.channels} x {size} x {size}: "
            f"{first_line(error)}",
            fix=fix,
        ) from error
    finally:
        classifier.train(was_training)
    expected = (2, classifier.num_classes)
    if not isinstance(logits, Tensor) or tuple(logits.shape) != expected:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UsageError(
            f"'{classifier.name}' gives {got} for two images, not logits of shape {expected}"
        )


def start_from(classifier: Classifier, images: Callable[[], Tensor]) -> bool:
    """Let a network compute what it does not learn from some training images; False: nothing to.

    Called once, before the first step; a few thousand images are enough. The first layer of
    "small_cnn" is computed so. It is part of the state dict.

    Args:
        images: gives (N, C, H, W) in 0..255, as the model sees them, not augmented; only asked
            when there is something to compute.
    """
    whiten = getattr(classifier.network, "whiten", None)
    if whiten is None:
        return False
    whiten(classifier.normalise(images()))
    return True
