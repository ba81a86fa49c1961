"""The planned augmentation as one transform."""

from __future__ import annotations

from vidi.augment.crop import (
    alternating_flip,
    centre_crop,
    horizontal_flip,
    pad_crop,
    random_resized_crop,
    vertical_flip,
)
from vidi.augment.mix import mixup_or_cutmix, random_erasing
from vidi.augment.policy import policy, rising
from vidi.augment.transform import Transform, compose
from vidi.augment_settings import AugmentSettings

# A policy starts at half strength and is at full strength after a third of training.
_POLICY_RAMP = (1 / 3, 0.5)


def from_settings(settings: AugmentSettings) -> Transform:
    """All that the settings ask for, in this order: crop, flips, policy, erasing, mixing."""
    steps: list[Transform] = []
    match settings.crop:
        case "none":
            steps.append(centre_crop(settings.image_px))
        case "pad":
            steps.append(pad_crop(settings.image_px, settings.crop_padding_px))
        case "resized":
            steps.append(
                random_resized_crop(
                    settings.image_px,
                    settings.crop_scale,
                    settings.crop_ratio,
                    horizontal_flip=settings.horizontal_flip,
                )
            )
    # A centre crop to the size that the images have already hands them on as they are; after the
    # others the images are ours to write on.
    ours = settings.crop != "none"
    if settings.crop != "resized":
        match settings.horizontal_flip:
            case "none":
                pass
            case "random":
                steps.append(horizontal_flip(in_place=ours))
            case "alternating":
                steps.append(alternating_flip(in_place=ours))
    if settings.vertical_flip:
        steps.append(vertical_flip(in_place=ours))
    if settings.policy != "none":
        until, start = _POLICY_RAMP
        steps.append(policy(settings.policy, grey=settings.grey, strength=rising(until, start)))
    if settings.erase_probability > 0:
        steps.append(random_erasing(settings.erase_probability, in_place=ours))
    if settings.mixup_alpha > 0 or settings.cutmix_alpha > 0:
        steps.append(
            mixup_or_cutmix(settings.mixup_alpha, settings.cutmix_alpha, settings.num_classes)
        )
    return compose(steps)
