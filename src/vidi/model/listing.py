"""The models that there are, for `vidi models`."""

from __future__ import annotations

import fnmatch
import inspect
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from vidi import weights as weights_module
from vidi.model.counting import multiply_adds
from vidi.model.from_timm import import_timm
from vidi.zoo import IMAGENET, MODELS


@dataclass(frozen=True, slots=True)
class Listing:
    """One line of `vidi models`; None: not known without building or downloading it.

    Args:
        parameters: how many numbers it learns, with a head for ImageNet's 1,000 classes, or for 10
            where nobody trains it on ImageNet; of timm's weights, with their own head.
        multiply_adds: of one image at `image_px`, forward.
        image_px: the side of the images that the weights, or without weights the network, are for.
        accuracy: top-1 on ImageNet with the published weights, as a share.
        licence: of those weights.
        at_hand: they need no network.
    """

    name: str
    parameters: int | None
    multiply_adds: int | None
    image_px: int | None
    accuracy: float | None
    licence: str | None
    at_hand: bool


def list_models(filter: str = "", *, timm: bool = False) -> tuple[Listing, ...]:
    """Models whose names contain `filter` or match it as a pattern; no weight is allocated.

    The zoo's first; with `timm` also those that timm has pretrained weights for, each under its
    name and tag ("timm:resnet50.a1_in1k"); what those cost is counted where they are few.

    Raises:
        MissingExtra: timm is asked for and not installed.
    """
    pattern = filter if any(sign in filter for sign in "*?[") else f"*{filter}*"
    zoo = [_listing(name) for name in MODELS if fnmatch.fnmatchcase(name, pattern)]
    if not timm:
        return tuple(zoo)
    names = [
        name
        for name in import_timm().list_pretrained()
        if fnmatch.fnmatchcase(f"timm:{name}", pattern)
    ]
    return (*zoo, *(_timm_listing(name, counted=len(names) <= _MOST_COUNTED) for name in names))


# Building one of timm's networks takes up to a second; it has 1,700 sets of weights.
_MOST_COUNTED = 40


def _listing(name: str) -> Listing:
    spec, published = MODELS[name], IMAGENET.get(name)
    image_px = published.pixels.image_px if published else None
    if image_px is None:
        image_px = spec.image_px
    with torch.device("meta"):
        network = spec.build().eval()
        channels = inspect.signature(spec.build).parameters["channels"].default
        images = torch.zeros(1, channels, image_px, image_px)
        cost = multiply_adds(network, images)
    return Listing(
        name=name,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        multiply_adds=cost,
        image_px=image_px,
        accuracy=published.accuracy if published else None,
        licence=published.licence if published else None,
        at_hand=published is not None and weights_module.is_at_hand(published.source),
    )


def _timm_listing(name: str, *, counted: bool) -> Listing:
    published = import_timm().get_pretrained_cfg(name)
    parameters, cost = _timm_costs(name, published.input_size) if counted else (None, None)
    return Listing(
        name=f"timm:{name}",
        parameters=parameters,
        multiply_adds=cost,
        image_px=published.input_size[-1],
        accuracy=None,
        licence=published.license,
        at_hand=_in_hub_cache(published.hf_hub_id, published.hf_hub_filename),
    )


def _timm_costs(name: str, shape: tuple[int, int, int]) -> tuple[int | None, int | None]:
    """Parameters and multiply-adds; None for what cannot be counted without memory for it."""
    parameters = None
    # Whatever a network of somebody else's cannot do on tensors without values.
    try:
        with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
            network = import_timm().create_model(name, pretrained=False).eval()
            parameters = sum(parameter.numel() for parameter in network.parameters())
            network(torch.zeros(1, *shape))
    except Exception:
        return parameters, None
    return parameters, counter.get_total_flops() // 2


def _in_hub_cache(repository: str | None, file: str | None) -> bool:
    """Whether huggingface_hub, which timm loads weights with, has them on this machine."""
    if repository is None:
        return False
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 - comes with timm

    names = (file,) if file else ("model.safetensors", "pytorch_model.bin")
    return any(isinstance(try_to_load_from_cache(repository, name), str) for name in names)
