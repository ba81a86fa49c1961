"""Models of timm, which is an extra, beside a torch with or without CUDA."""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vidi.errors import MissingExtra, UsageError, nearest
from vidi.facts import WeightsFacts
from vidi.weights import Fit
from vidi.words import first_line

# "resnet50", "vit_small_patch16_224.augreg_in1k"; no path, no module, no address.
_TIMM_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)?")
# "hf-hub:timm/resnet18.a1_in1k", with a revision after "@".
_HUB_NAME = re.compile(r"hf-hub:[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w.-]+)?")


def is_own(name: str) -> bool:
    """Whether a name stands for something of the user's, which is never taken from a file:
    `module:function`, or a model of the hub."""
    return ":" in name and not name.startswith("timm:")


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model that timm builds from a description on the Hugging Face hub, perhaps anybody's.

    Only made of a name that was asked for just now, never of one that stands in a file.

    Args:
        name: "hf-hub:OWNER/NAME".

    Raises:
        UsageError: the name is not of that form.
    """

    name: str

    def __post_init__(self) -> None:
        if not _HUB_NAME.fullmatch(self.name):
            raise UsageError(f"'{self.name}' is not of the form hf-hub:OWNER/NAME")

    def __call__(self, **asked: Any) -> nn.Module:
        return from_timm(self.name, asked, pretrained=False)


def timm_name(name: str) -> str | None:
    """What timm calls the model; None when the name is not meant for timm.

    Raises:
        MissingExtra: asked for by "timm:", and timm is not installed.
        UsageError: asked for by "timm:", and there is no such model.
    """
    asked = name.startswith("timm:")
    bare = name.removeprefix("timm:")
    if not _TIMM_NAME.fullmatch(bare):
        if asked:
            raise UsageError(
                f"'{name}' is not the name of a timm model",
                fix="names that timm lists follow 'timm:', models of the hub are hf-hub:OWNER/NAME",
            )
        return None
    if not asked and importlib.util.find_spec("timm") is None:
        return None
    timm = import_timm()
    architecture, _, tag = bare.partition(".")
    if timm.is_model(architecture) and (
        not tag or bare in timm.list_models(f"{architecture}.*", pretrained=True)
    ):
        return bare
    if asked:
        raise UsageError(f"timm has no model '{bare}'", fix=nearest(bare, timm.list_models()))
    return None


def import_timm() -> Any:
    """The module timm, also beside a torch without CUDA.

    Raises:
        MissingExtra: timm or torchvision is not installed.
    """
    declare_missing_operators()
    try:
        import timm  # noqa: PLC0415 - an extra, and slow to import
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"models of timm need a package that is not installed: {error.name}",
            fix='pip install "vidi[timm]"',
        ) from None
    return timm


@functools.cache
def declare_missing_operators() -> torch.library.Library | None:
    """Make `import torchvision` work where its compiled library cannot load.

    The torchvision of the package index is built for CUDA. Beside a torch for processors its
    library does not load, and its import fails at the first operator that it describes. Declaring
    the two that it describes is enough for everything that has nothing to do with boxes. Returns
    what holds the declarations, which have to be held; None where torchvision needs no help.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or hasattr(torch.ops.torchvision, "nms"):
        return None
    for compiled in Path(spec.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(compiled)  # type: ignore[no-untyped-call]
        except OSError:
            continue
        return None
    declared = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for operator in ("nms", "qnms"):
        schema = f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        declared.define(schema)  # type: ignore[no-untyped-call]
    return declared


def from_timm(name: str, asked: Mapping[str, Any], *, pretrained: bool) -> nn.Module:
    """A model of timm; its own code adapts stem and head, and loads its weights.

    Args:
        name: as timm calls it, or "hf-hub:OWNER/NAME".

    Raises:
        UsageError: it does not take what is asked for, or its weights cannot be had.
    """
    timm = import_timm()
    settings: dict[str, Any] = {
        "pretrained": pretrained,
        "num_classes": asked["num_classes"],
        "in_chans": asked["channels"],
    }
    if asked["dropout"] is not None:
        settings["drop_rate"] = asked["dropout"]
    if asked["stochastic_depth"] is not None:
        settings["drop_path_rate"] = asked["stochastic_depth"]
    shown = name if name.startswith("hf-hub:") else f"timm:{name}"
    try:
        # Networks of a fixed size (most transformers) have to be told; the others do not know it.
        try:
            network: nn.Module = timm.create_model(name, img_size=asked["image_px"], **settings)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            network = timm.create_model(name, **settings)
    except (TypeError, ValueError, AssertionError) as error:
        raise UsageError(
            f"model '{shown}' does not take {asked['channels']} x {asked['image_px']} x "
            f"{asked['image_px']} images or a setting: {first_line(error)}",
            fix="set data.image_px to the size that it is made for, or leave the setting out",
        ) from None
    except (RuntimeError, OSError) as error:
        raise UsageError(
            f"'{shown}' cannot be had: {first_line(error)}",
            fix="what is downloaded once stays; or train from scratch with model.weights = 'none'",
        ) from error
    return network


def pretrained_facts(name: str) -> WeightsFacts:
    """The pixels that timm's weights for a model were trained on.

    Args:
        name: as of `from_timm`.

    Raises:
        UsageError: timm has no weights for it, or its description cannot be had.
    """
    timm = import_timm()
    if name.startswith("hf-hub:"):
        try:
            found, _, _ = timm.models.load_model_config_from_hf(name.removeprefix("hf-hub:"))
        except (RuntimeError, OSError, ValueError, KeyError, AssertionError) as error:
            raise UsageError(
                f"the description of '{name}' cannot be had: {first_line(error)}",
                fix="look at the name and the network; what is downloaded once stays",
            ) from error
        config = timm.models.PretrainedCfg(**found)
    else:
        config = timm.get_pretrained_cfg(name)
        if config is None or not config.has_weights:
            raise UsageError(
                f"timm has no pretrained weights for '{name}'",
                fix="train from scratch with model.weights = 'none'; `vidi models --timm` lists "
                "those that have some",
            )
    return WeightsFacts(
        image_px=config.input_size[-1],
        mean=tuple(config.mean),
        std=tuple(config.std),
        interpolation="bilinear" if config.interpolation == "bilinear" else "bicubic",
        crop_fraction=config.crop_pct,
    )


def timm_fit(network: nn.Module, asked: Mapping[str, Any]) -> Fit:
    """What timm did with its weights: all of them loaded, but for what it says of stem and head.

    timm refuses a file that lacks a name or has another, except where the classes are others; then
    it leaves the head out, and its own models have no further names.
    """
    config: Mapping[str, Any] = getattr(network, "pretrained_cfg", {})

    def named(key: str) -> tuple[str, ...]:
        given = config.get(key) or ()
        return (given,) if isinstance(given, str) else tuple(given)

    names = tuple(network.state_dict())
    other_classes = asked["num_classes"] != config.get("num_classes")
    heads = tuple(f"{name}." for name in named("classifier")) if other_classes else ()
    replaced = tuple(name for name in names if heads and name.startswith(heads))
    channels = asked["channels"]
    reshaped = {}
    if channels != (config.get("input_size") or (3,))[0]:
        how = f"made to take {channels} channels"
        reshaped = {f"{name}.weight": how for name in named("first_conv")}
    matched = tuple(name for name in names if name not in {*replaced, *reshaped})
    return Fit(matched, missing=(), unexpected=(), reshaped=reshaped, replaced=replaced)
