"""Models of timm, which is an extra, beside a torch with or without CUDA."""

from __future__ import annotations

import functools
import importlib.util
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vidi.errors import MissingExtra, UsageError, nearest
from vidi.weights import is_file_name

# "resnet50", "vit_small_patch16_224.augreg_in1k"; no path, no module, no address.
_TIMM_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)?")


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
                fix="names from the network are not taken here, only those that timm lists",
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


def from_timm(name: str, asked: dict[str, Any], weights: str | None) -> nn.Module:
    """A model of timm; its own code adapts stem and head, and loads its weights."""
    timm = import_timm()
    if weights not in (None, "imagenet") and not is_file_name(weights):
        raise UsageError(
            f"there are no weights '{weights}' for model 'timm:{name}'",
            fix="give 'imagenet' or a file",
        )
    settings: dict[str, Any] = {
        "pretrained": weights == "imagenet",
        "num_classes": asked["num_classes"],
        "in_chans": asked["channels"],
    }
    if asked["dropout"] is not None:
        settings["drop_rate"] = asked["dropout"]
    if asked["stochastic_depth"] is not None:
        settings["drop_path_rate"] = asked["stochastic_depth"]
    try:
        # Networks of a fixed size (most transformers) have to be told; the others do not know it.
        try:
            network: nn.Module = timm.create_model(name, img_size=asked["image_px"], **settings)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            network = timm.create_model(name, **settings)
    except TypeError as error:
        raise UsageError(f"model 'timm:{name}' does not take a setting: {error}") from None
    except (RuntimeError, OSError) as error:
        raise UsageError(
            f"the weights of 'timm:{name}' cannot be had: {str(error).splitlines()[0]}",
            fix="timm downloads them once; or train from scratch with model.weights = 'none'",
        ) from error
    return network
