"""Augmentation: batched, on the images' device, with random numbers that belong to each image.

A transform is a function `(batch, rng, done) -> batch`; see `transform.Transform`.
"""

from __future__ import annotations

from vidi.augment.colour import (
    colour_jitter,
    random_blur,
    random_greyscale,
    random_invert,
)
from vidi.augment.crop import (
    alternating_flip,
    centre_crop,
    horizontal_flip,
    pad_crop,
    random_resized_crop,
    vertical_flip,
)
from vidi.augment.mix import cutmix, cutout, mixup, mixup_or_cutmix, random_erasing
from vidi.augment.plan import from_settings
from vidi.augment.policy import (
    AUGMIX,
    GENTLE,
    POLICIES,
    RANDAUGMENT,
    TRIVIALAUGMENT_WIDE,
    Change,
    augmix,
    during,
    policy,
    rand_augment,
    rising,
    steady,
    trivial_augment,
)
from vidi.augment.random import ImageRandom, partners
from vidi.augment.sheet import contact_sheet
from vidi.augment.transform import Transform, compose
from vidi.augment.views import average_probabilities, best_kind, views, whole_views
from vidi.augment.warp import affine, perspective, rotation

__all__ = [
    "AUGMIX",
    "GENTLE",
    "POLICIES",
    "RANDAUGMENT",
    "TRIVIALAUGMENT_WIDE",
    "Change",
    "ImageRandom",
    "Transform",
    "affine",
    "alternating_flip",
    "augmix",
    "average_probabilities",
    "best_kind",
    "centre_crop",
    "colour_jitter",
    "compose",
    "contact_sheet",
    "cutmix",
    "cutout",
    "during",
    "from_settings",
    "horizontal_flip",
    "mixup",
    "mixup_or_cutmix",
    "pad_crop",
    "partners",
    "perspective",
    "policy",
    "rand_augment",
    "random_blur",
    "random_erasing",
    "random_greyscale",
    "random_invert",
    "random_resized_crop",
    "rising",
    "rotation",
    "steady",
    "trivial_augment",
    "vertical_flip",
    "views",
    "whole_views",
]
