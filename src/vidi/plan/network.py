"""Which network, and from which weights."""

from __future__ import annotations

from typing import NamedTuple

from vidi.config import Config
from vidi.facts import DatasetFacts

# Images smaller than this are trained from scratch at their own size: a pretrained network that
# reduces 224 px by 32 has nothing left of them. The rule is checked in docs/measurements.md.
SMALL_IMAGE_PX = 96


class Choice(NamedTuple):
    """The network, before its facts can be looked up."""

    name: str
    weights: str
    reason: str


def choose_model(config: Config, dataset: DatasetFacts) -> Choice:
    """Which network and weights: the first decision, because its facts are needed for the rest."""
    asked = config.model
    short_px = min(dataset.height_px[1], dataset.width_px[1])
    small = min(short_px, config.data.image_px or short_px) < SMALL_IMAGE_PX
    if asked.name is not None:
        weights = asked.weights or (
            "imagenet" if asked.name in _OFFLINE_WEIGHTS and not small else "none"
        )
        return Choice(asked.name, weights, "asked for")
    if small:
        return Choice(
            "small_resnet",
            asked.weights or "none",
            f"images of {short_px} px are learnt faster from scratch, by a small network",
        )
    return Choice(
        "efficientnet_lite0",
        asked.weights or "imagenet",
        f"photos ({short_px} px): start from ImageNet weights that need no network",
    )


# Pretrained weights that come with vidi's own dependencies.
_OFFLINE_WEIGHTS = frozenset({"efficientnet_lite0"})


def weights_rule(choice: Choice) -> tuple[str, str]:
    if choice.weights == "none":
        return "none", "from scratch"
    return (
        choice.weights,
        "fine-tuning needs a hundredth of the data and time of training from scratch",
    )
