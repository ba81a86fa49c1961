"""How an image becomes what the model sees."""

from __future__ import annotations

from typing import Literal

from vidi.config import Config
from vidi.facts import DatasetFacts, Facts
from vidi.image import PixelContract
from vidi.plan.decisions import Decisions
from vidi.plan.network import ENLARGED_PX, SMALL_IMAGE_PX, SMALL_NETWORKS, is_enlarged

# Up to this size images are shifted by padding; larger ones are cropped and scaled.
SMALL_CROP_PX = 48

# The small network halves its maps three times; images below this are scaled up, so that there is
# something left to halve and a shift can be less than a pixel of theirs. On digits (8 px) it takes
# away half of the errors. Other networks get what the images have: an MLP has nothing from more.
TINY_IMAGE_PX = 16


def decide_pixels(
    config: Config, facts: Facts, decided: Decisions, model_name: str, *, pretrained: bool
) -> PixelContract:
    asked, dataset, weights = config.data, facts.dataset, facts.weights
    median_h, median_w = dataset.height_px[1], dataset.width_px[1]
    enlarged = is_enlarged(dataset, pretrained=pretrained)
    if enlarged:
        size_rule = (ENLARGED_PX, "small images are enlarged; docs/measurements.md")
    elif pretrained and weights is not None and weights.image_px is not None:
        size_rule = (weights.image_px, "the size that the weights were trained at")
    elif max(median_h, median_w) < TINY_IMAGE_PX and model_name in SMALL_NETWORKS:
        size_rule = (TINY_IMAGE_PX, "tiny images are shown larger; see docs/measurements.md")
    elif max(median_h, median_w) <= SMALL_IMAGE_PX:
        size_rule = (max(median_h, median_w), "the size of the images")
    else:
        size_rule = (SMALL_IMAGE_PX, "from scratch, larger images cost more than they bring")
    image_px = decided.take("pixels.image_px", asked.image_px, size_rule)

    same_size = (
        dataset.height_px[0] == dataset.height_px[2] and dataset.width_px[0] == dataset.width_px[2]
    )
    exact = same_size and median_h == median_w == image_px
    resize = decided.take("pixels.resize", asked.resize, _resize_rule(dataset, exact=exact))
    # Photos: room around the crop. 8/7 is the 256 to 224 px of AlexNet and all that followed it.
    fraction = weights.crop_fraction if pretrained and weights is not None else 7 / 8
    if enlarged:
        store_rule = image_px, "no margin: small images show nothing but their thing"
    elif exact or image_px <= SMALL_CROP_PX:
        store_rule = image_px, "no margin: small images are shifted, not cropped"
    elif resize == "pad":
        store_rule = image_px, "no margin: padded images are shown whole"
    else:
        store_rule = round(image_px / fraction), "a margin for random crops"
    store_px = decided.take("pixels.store_px", None, store_rule)
    channels_rule: tuple[Literal[1, 3], str] = (3, "colour")
    if pretrained and weights is not None and len(weights.mean) == 1:
        channels_rule = (1, "the weights take grey")
    elif pretrained:
        channels_rule = (3, "the weights take colour")
    elif dataset.grey:
        channels_rule = (1, "no image has colour")
    channels = decided.take("pixels.channels", asked.channels, channels_rule)
    if pretrained and weights is not None and len(weights.mean) == channels:
        mean, std = weights.mean, weights.std
        why = "what the weights were trained with"
    else:
        # Batch norm takes out what is left; fixed numbers need no pass over the data.
        mean, std = (0.5,) * channels, (0.25,) * channels
        why = "fixed: the first normalisation layer takes out the rest"
    decided.reasons["pixels.mean"] = decided.reasons["pixels.std"] = why
    interpolation_rule = (
        (weights.interpolation, "what the weights were trained with")
        if pretrained and weights is not None
        else ("bilinear", "with antialiasing; cheap and close to bicubic")
    )
    return PixelContract(
        image_px=image_px,
        store_px=store_px,
        channels=channels,
        resize=resize,
        interpolation=decided.take("pixels.interpolation", asked.interpolation, interpolation_rule),
        mean=mean,
        std=std,
    )


def _resize_rule(
    dataset: DatasetFacts, *, exact: bool
) -> tuple[Literal["crop", "pad", "squash"], str]:
    """Cut, fill up or distort, by the shapes that there are."""
    if exact:
        return "squash", "the images are square and of this size: nothing is changed"
    (low_h, height, high_h), (low_w, width, high_w) = dataset.height_px, dataset.width_px
    middle = max(height, width) / max(1, min(height, width))
    # Older facts have no quartiles of the aspect.
    _, aspect, longest = dataset.aspect or (middle, middle, middle)
    typical = f"the typical image is {width} x {height} px"
    if aspect <= _CROP_ASPECT and longest <= _LONGEST_ASPECT:
        return "crop", f"{typical}: little is cut off"
    if low_h == high_h and low_w == high_w and middle <= _LONGEST_ASPECT:
        return "squash", f"all are {width} x {height} px: distorted alike, and nothing is cut off"
    if aspect <= _LONGEST_ASPECT:
        return "crop", f"{typical}: less than half is cut off"
    return "pad", f"{typical}, {aspect:.1f} times as long as wide: a crop loses half of it"


# Longer side over shorter: up to the first, a centre crop loses at most a third of an image; from
# the second on, half of it and more.
_CROP_ASPECT, _LONGEST_ASPECT = 1.5, 2.0
