"""Augmentation: batched, on the images' device, with random numbers that belong to each image.

A transform is a function `(batch, rng, done) -> batch`; see `transform.Transform`.
"""

from __future__ import annotations

from vidi.augment.crop import (
    alternating_flip,
    centre_crop,
    horizontal_flip,
    pad_crop,
    random_resized_crop,
    vertical_flip,
)
from vidi.augment.plan import from_settings
from vidi.augment.random import ImageRandom, partners
from vidi.augment.transform import Transform, compose

__all__ = [
    "ImageRandom",
    "Transform",
    "alternating_flip",
    "centre_crop",
    "compose",
    "from_settings",
    "horizontal_flip",
    "pad_crop",
    "partners",
    "random_resized_crop",
    "vertical_flip",
]
