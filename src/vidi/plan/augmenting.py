"""How training images are varied."""

from __future__ import annotations

from typing import Literal

from vidi.augment_settings import AugmentSettings, Flip, Policy
from vidi.config import Config
from vidi.facts import DatasetFacts
from vidi.image import PixelContract
from vidi.plan.decisions import Decisions
from vidi.plan.network import SMALL_NETWORKS, is_enlarged
from vidi.plan.pixels import SMALL_CROP_PX


def decide_augmentation(
    config: Config,
    dataset: DatasetFacts,
    pixels: PixelContract,
    decided: Decisions,
    *,
    model_name: str,
    pretrained: bool,
) -> AugmentSettings:
    asked, num_train = config.augment, dataset.num_images("train")
    margin = pixels.store_px > pixels.image_px
    padded = pixels.resize == "pad" and pixels.image_px > SMALL_CROP_PX
    crop_rule: tuple[Literal["none", "pad", "resized"], str] = ("pad", "small images are shifted")
    enlarged = is_enlarged(dataset, pretrained=pretrained) and pixels.image_px > SMALL_CROP_PX
    if margin or padded or enlarged:
        crop_rule = ("resized", "photos are cropped and scaled; Szegedy et al. 2015")
    crop = decided.take("augment.crop", asked.crop, crop_rule)
    padding = decided.take(
        "augment.crop_padding_px",
        asked.crop_padding_px,
        (max(1, round(pixels.image_px / 14)), "a fourteenth of the side: 2 of 28, 1 of 16")
        if crop == "pad"
        else (0, "only the crop 'pad' pads"),
    )
    scale_min = decided.take(
        "augment.crop_scale",
        asked.crop_scale_min,
        (0.5, "milder than ImageNet's 0.08, for shorter runs")
        if pretrained
        else (0.35, "milder than ImageNet's 0.08"),
    )
    return AugmentSettings(
        image_px=pixels.image_px,
        crop=crop,
        crop_padding_px=padding if crop == "pad" else 0,
        crop_scale=(scale_min, 1.0),
        horizontal_flip=decided.take(
            "augment.horizontal_flip",
            asked.horizontal_flip,
            _alternated(_flip_rule(dataset), model_name),
        ),
        vertical_flip=decided.take(
            "augment.vertical_flip", asked.vertical_flip, (False, "up is up in most pictures")
        ),
        policy=decided.take(
            "augment.policy", asked.policy, _policy_rule(num_train, pretrained=pretrained)
        ),
        grey=dataset.grey,
        mixup_alpha=decided.take("augment.mixup_alpha", asked.mixup_alpha, _MIXING_RULE),
        cutmix_alpha=decided.take("augment.cutmix_alpha", asked.cutmix_alpha, _MIXING_RULE),
        erase_probability=decided.take(
            "augment.erase_probability",
            asked.erase_probability,
            _erasing_rule(num_train, pretrained=pretrained),
        ),
        num_classes=dataset.num_classes,
    )


# Below so many training images a network from scratch learns them by heart, and varying them more
# pays; measured on digits (docs/measurements.md). Whether it pays in runs of minutes on more images
# has not been measured, so there it is asked for, never assumed.
FEW_IMAGES = 4_000


def _policy_rule(num_train: int, *, pretrained: bool) -> tuple[Policy, str]:
    if not pretrained and num_train < FEW_IMAGES:
        return "light", f"{num_train:,} images are soon known by heart"
    return "none", "crops and flips only; light, medium and strong are there to be asked for"


def _erasing_rule(num_train: int, *, pretrained: bool) -> tuple[float, str]:
    if not pretrained and num_train < FEW_IMAGES:
        return 0.25, "no part of so few images may be relied on; Zhong et al. 2017"
    return _MIXING_RULE


_MIXING_RULE = (0.0, "left out; it pays in long runs, and is there to be asked for")


def _flip_rule(dataset: DatasetFacts) -> tuple[Flip, str]:
    """Mirror images are safe where a mirrored query still finds neighbours of its own class."""
    plain, flipped = dataset.neighbour_agreement, dataset.neighbour_agreement_flipped
    if plain is None or flipped is None:
        return "random", "not measured; a mirror image of most things shows the same thing"
    chance = 1 / dataset.num_classes
    kept = (flipped - chance) / max(plain - chance, 1e-9)
    numbers = f"nearest neighbours agree for {plain:.0%} of the images, {flipped:.0%} when mirrored"
    if plain - chance < 0.1:
        return "random", f"{numbers}: too few to tell, and mirror images of most things are fine"
    if kept < 0.85:
        return "none", f"{numbers}: mirroring changes what they show"
    return "random", f"{numbers}: mirroring changes little"


def _alternated(rule: tuple[Flip, str], model_name: str) -> tuple[Flip, str]:
    """For the small network, whose runs are a few looks at each image: both sides of each."""
    flip, why = rule
    if flip == "random" and model_name in SMALL_NETWORKS:
        return "alternating", f"{why}; both sides in turn, Jordan 2024"
    return rule
