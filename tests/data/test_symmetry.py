"""Whether mirroring keeps the class is measured on the images themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vidi.data import PixelStore, measure_symmetry, open_dataset, open_store
from vidi.image import PixelContract


def contract(px: int) -> PixelContract:
    return PixelContract(
        image_px=px,
        store_px=px,
        channels=1,
        resize="crop",
        interpolation="bilinear",
        mean=(0.5,),
        std=(0.5,),
    )


def test_digits_do_not_survive_the_mirror() -> None:
    dataset = open_dataset("digits")
    store = open_store(dataset, contract(8))
    plain, mirrored = measure_symmetry(store, dataset.labels, dataset.indices("train"))
    assert plain > 0.97
    assert mirrored < 0.5
    assert (plain, mirrored) == measure_symmetry(store, dataset.labels, dataset.indices("train"))


def test_blobs_do() -> None:
    """Two textures that differ in their rows and not in left and right."""
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 2
    rows = np.where(labels[:, None] == 1, np.linspace(0, 200, 16), np.linspace(200, 0, 16))
    images = rows[:, :, None, None] + rng.uniform(0, 55, (400, 16, 16, 1))
    store = PixelStore(images.astype(np.uint8), contract(16), (), Path())
    plain, mirrored = measure_symmetry(store, labels, np.arange(400))
    assert plain > 0.97
    assert mirrored > 0.97


def test_constant_images_divide_by_nothing() -> None:
    """F9"""
    store = PixelStore(np.full((10, 16, 16, 1), 7, np.uint8), contract(16), (), Path())
    for share in measure_symmetry(store, np.arange(10) % 2, np.arange(10)):
        assert 0.0 <= share <= 1.0
