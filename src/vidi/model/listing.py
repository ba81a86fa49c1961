"""The models that there are, for `vidi models`."""

from __future__ import annotations

import fnmatch
import inspect
from dataclasses import dataclass

import torch

from vidi import weights as weights_module
from vidi.model.counting import multiply_adds
from vidi.model.from_timm import import_timm
from vidi.zoo import IMAGENET, MODELS


@dataclass(frozen=True, slots=True)
class Listing:
    """One line of `vidi models`; None: not known without building or downloading it.

    Args:
        parameters: how many numbers it learns, with a head for ImageNet's 1,000 classes, or for 10
            where nobody trains it on ImageNet.
        multiply_adds: of one image at `image_px`, forward.
        image_px: the side of the images that it is made for.
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
    name and tag ("timm:resnet50.a1_in1k").

    Raises:
        MissingExtra: timm is asked for and not installed.
    """
    pattern = filter if any(sign in filter for sign in "*?[") else f"*{filter}*"
    zoo = [_listing(name) for name in MODELS if fnmatch.fnmatchcase(name, pattern)]
    if not timm:
        return tuple(zoo)
    names = import_timm().list_pretrained()
    return (
        *zoo,
        *(_timm_listing(name) for name in names if fnmatch.fnmatchcase(f"timm:{name}", pattern)),
    )


def _listing(name: str) -> Listing:
    spec, published = MODELS[name], IMAGENET.get(name)
    with torch.device("meta"):
        network = spec.build().eval()
        channels = inspect.signature(spec.build).parameters["channels"].default
        images = torch.zeros(1, channels, spec.image_px, spec.image_px)
        cost = multiply_adds(network, images)
    return Listing(
        name=name,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        multiply_adds=cost,
        image_px=spec.image_px,
        accuracy=published.accuracy if published else None,
        licence=published.licence if published else None,
        at_hand=published is not None and weights_module.is_at_hand(published.source),
    )


def _timm_listing(name: str) -> Listing:
    published = import_timm().get_pretrained_cfg(name)
    return Listing(
        name=f"timm:{name}",
        parameters=None,
        multiply_adds=None,
        image_px=published.input_size[-1],
        accuracy=None,
        licence=published.license,
        at_hand=_in_hub_cache(published.hf_hub_id, published.hf_hub_filename),
    )


def _in_hub_cache(repository: str | None, file: str | None) -> bool:
    """Whether huggingface_hub, which timm loads weights with, has them on this machine."""
    if repository is None:
        return False
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 - comes with timm

    names = (file,) if file else ("model.safetensors", "pytorch_model.bin")
    return any(isinstance(try_to_load_from_cache(repository, name), str) for name in names)
