"""Batches: the same ones in the same order, whoever prepares them."""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidi.augment import ImageRandom, from_settings
from vidi.augment_settings import AugmentSettings
from vidi.batch import Batch
from vidi.data import Loader, PixelStore, order_of
from vidi.errors import DataError
from vidi.image import PixelContract

LABELS = np.arange(100) % 7


@pytest.fixture(scope="module")
def store() -> PixelStore:
    contract = PixelContract(
        image_px=4,
        store_px=4,
        channels=3,
        resize="crop",
        interpolation="bilinear",
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
    images = np.broadcast_to(np.arange(100, dtype=np.uint8)[:, None, None, None], (100, 4, 4, 3))
    return PixelStore(images.copy(), contract, (), Path())


def make(store: PixelStore, **options: Any) -> Loader:
    options = {"batch_size": 8, "seed": 3, "shuffle": True, **options}
    return Loader(store, LABELS, options.pop("ids", np.arange(100)), **options)


def ids_of(batches: list[Batch]) -> list[list[int]]:
    return [batch.ids.tolist() for batch in batches]


def test_a_batch_holds_the_pixels_and_labels_of_its_ids(store: PixelStore) -> None:
    for batch in make(store).batches(0):
        assert batch.images.shape[1:] == (3, 4, 4)
        assert batch.images.dtype == torch.uint8
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert (batch.images[:, 0, 0, 0] == batch.ids).all()
        assert (batch.targets == torch.from_numpy(LABELS)[batch.ids]).all()
        assert batch.targets.dtype == batch.ids.dtype == torch.int64


def test_an_epoch_is_every_image_once(store: PixelStore) -> None:
    loader = make(store, ids=np.arange(10, 73))
    seen = [i for batch in ids_of(list(loader.batches(0))) for i in batch]
    assert sorted(seen) == list(range(10, 73))
    assert loader.num_batches == 8
    assert len(make(store, ids=np.arange(10, 73), drop_last=True).__dict__) > 0
    assert make(store, ids=np.arange(10, 73), drop_last=True).num_batches == 7


def test_epochs_and_seeds_have_different_orders(store: PixelStore) -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        return ids_of(list(make(store, seed=seed).batches(epoch)))

    assert order(3, 0) == order(3, 0)
    assert order(3, 0) != order(3, 1)
    assert order(3, 0) != order(4, 0)
    assert ids_of(list(make(store, shuffle=False).batches(5)))[0] == list(range(8))


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("prefetch", [1, 4])
def test_the_order_does_not_depend_on_threads_or_prefetch(
    store: PixelStore, threads: int, prefetch: int
) -> None:
    """P3"""
    expected = ids_of(list(make(store).batches(2)))
    loader = make(store, threads=threads, prefetch=prefetch)
    assert ids_of(list(loader.batches(2))) == expected


@given(start=st.integers(0, 13))
@settings(max_examples=14, deadline=None)
def test_starting_in_the_middle_continues_the_same_order(start: int) -> None:
    """C1, C3"""
    contract = PixelContract(
        image_px=1,
        store_px=1,
        channels=1,
        resize="crop",
        interpolation="nearest",
        mean=(0.5,),
        std=(0.5,),
    )
    tiny = PixelStore(np.zeros((100, 1, 1, 1), np.uint8), contract, (), Path())
    whole = ids_of(list(make(tiny).batches(1)))
    assert ids_of(list(make(tiny).batches(1, start))) == whole[start:]


def test_the_order_is_the_same_for_ever() -> None:
    """A golden value: another order would break every run that somebody wants to repeat."""
    assert order_of(10, seed=0, epoch=0).tolist() == GOLDEN
    assert sorted(order_of(1000, seed=2**40, epoch=7)) == list(range(1000))


GOLDEN = [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]


def test_a_set_smaller_than_a_batch_is_not_dropped(store: PixelStore) -> None:
    """E17"""
    loader = make(store, ids=np.arange(5), drop_last=True)
    assert loader.num_batches == 1
    assert sorted(ids_of(list(loader.batches(0)))[0]) == list(range(5))


def test_no_images_is_an_error(store: PixelStore) -> None:
    with pytest.raises(DataError, match="no images"):
        make(store, ids=np.arange(0))


def test_leaving_early_stops_the_threads(
    store: PixelStore, no_more_threads: Callable[[], None]
) -> None:
    batches = make(store, threads=4).batches(0)
    next(batches)
    batches.close()
    no_more_threads()


def test_an_error_in_a_thread_reaches_the_consumer() -> None:
    contract = PixelContract(
        image_px=1,
        store_px=1,
        channels=1,
        resize="crop",
        interpolation="nearest",
        mean=(0.5,),
        std=(0.5,),
    )
    small = PixelStore(np.zeros((3, 1, 1, 1), np.uint8), contract, (), Path())
    loader = Loader(small, LABELS, np.array([0, 99]), batch_size=1)
    with pytest.raises(IndexError):
        list(loader.batches(0))


def test_waiting_is_counted(store: PixelStore) -> None:
    loader = make(store)
    began_at = time.perf_counter()
    list(loader.batches(0))
    assert 0.0 < loader.wait_s <= time.perf_counter() - began_at


def test_batches_that_are_kept_are_not_overwritten(store: PixelStore) -> None:
    kept = list(make(store, threads=2).batches(0))
    for batch in kept:
        assert (batch.images[:, 0, 0, 0] == batch.ids).all()


@pytest.mark.slow
def test_memory_does_not_grow_over_epochs() -> None:
    """Less than 1 MB for 1,000 steps, with augmentation as training has it."""
    contract = PixelContract(
        image_px=32,
        store_px=32,
        channels=3,
        resize="crop",
        interpolation="bilinear",
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
    images = np.random.default_rng(0).integers(0, 256, (2_560, 32, 32, 3), dtype=np.uint8)
    store = PixelStore(images, contract, (), Path())
    labels = np.arange(2_560) % 10
    loader = Loader(store, labels, np.arange(2_560), batch_size=64, shuffle=True, threads=2)
    settings = AugmentSettings(
        image_px=32, num_classes=10, crop="pad", crop_padding_px=4, policy="medium", mixup_alpha=0.2
    )
    transform = from_settings(settings)

    def steps(epochs: range) -> int:
        for epoch in epochs:
            for batch in loader.batches(epoch):
                transform(batch, ImageRandom(0, epoch, batch.keys), 0.5)
        gc.collect()
        return psutil.Process().memory_info().rss

    # The allocator takes and returns a few megabytes now and then; a leak grows in every part.
    resident = [steps(range(15 * part, 15 * part + 15)) for part in range(6)]
    grown = sorted(after - before for before, after in itertools.pairwise(resident))
    assert grown[2] < 600 / 1_000 * 2**20
