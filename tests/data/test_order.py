"""Which image comes when, how often, and in which process."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vidi.augment import ImageRandom
from vidi.data import Loader, PixelStore, balanced_weights, order_of, part_of
from vidi.data.order import draws_of
from vidi.errors import UsageError
from vidi.image import PixelContract

# Class 0 has 90 images, class 1 has 9, class 2 has 1.
LABELS = np.repeat([0, 1, 2], [90, 9, 1])


def make(**options: Any) -> Loader:
    contract = PixelContract(
        image_px=1,
        store_px=1,
        channels=1,
        resize="crop",
        interpolation="nearest",
        mean=(0.5,),
        std=(0.5,),
    )
    images = np.arange(100, dtype=np.uint8)[:, None, None, None]
    store = PixelStore(images, contract, (), Path())
    options = {"batch_size": 10, "seed": 3, "shuffle": True, **options}
    return Loader(store, LABELS, options.pop("ids", np.arange(100)), **options)


def ids_of(loader: Loader, epoch: int = 0) -> list[list[int]]:
    return [batch.ids.tolist() for batch in loader.batches(epoch)]


def test_balanced_draws_show_every_class_equally_often() -> None:
    loader = make(weights=balanced_weights(LABELS))
    labels = np.concatenate([batch.targets.numpy() for batch in loader.batches(0)])
    assert sorted(np.bincount(labels)) == [33, 33, 34]
    # Over the epochs every image of the frequent class has its turn.
    seen = {row for epoch in range(12) for ids in ids_of(loader, epoch) for row in ids}
    assert len(seen) > 95


@given(st.integers(0, 10), st.integers(0, 5))
def test_each_row_comes_as_often_as_its_weight_says(seed: int, epoch: int) -> None:
    weights = np.arange(1, 41, dtype=np.float64)
    places, _ = draws_of(weights, np.zeros(40, np.int64), seed=seed, epoch=epoch)
    assert len(places) == 40
    share = weights / weights.sum() * 40
    counts = np.bincount(places, minlength=40)
    assert (np.abs(counts - share) < 1).all()


def test_over_epochs_weights_are_met_exactly() -> None:
    weights = np.array([1.0, 2.0, 5.0, 2.0])
    total = np.zeros(4)
    for epoch in range(2_000):
        places, _ = draws_of(weights, np.arange(4), seed=0, epoch=epoch)
        total += np.bincount(places, minlength=4)
    assert np.abs(total / 8_000 - weights / 10).max() < 0.01


def test_weighted_draws_are_the_same_for_ever() -> None:
    """A golden value: another order would break every run that somebody wants to repeat."""
    drawn = draws_of(np.arange(1.0, 9.0), np.array([0, 1] * 4), seed=5, epoch=2)
    assert drawn.places.tolist() == GOLDEN_PLACES
    assert drawn.repeats.tolist() == GOLDEN_REPEATS


GOLDEN_PLACES = [0, 5, 6, 7, 2, 4, 7, 3]
GOLDEN_REPEATS = [0, 0, 0, 1, 0, 0, 0, 0]


def test_a_repeated_image_is_varied_in_another_way() -> None:
    """The same image twice in an epoch has other random numbers the second time."""
    loader = make(weights=balanced_weights(LABELS), batch_size=100)
    (batch,) = loader.batches(0)
    rare = batch.ids == 99
    assert int(rare.sum()) > 30
    numbers = ImageRandom(0, 0, batch.keys).uniform()[rare]
    assert len(torch.unique(numbers)) == len(numbers)
    # An image that comes once keeps its own numbers.
    (plain,) = make(batch_size=100).batches(0)
    assert torch.equal(plain.keys, plain.ids)


@pytest.mark.parametrize("weights", [np.ones(99), np.zeros(100), np.full(100, np.nan)])
def test_weights_that_make_no_sense_are_refused(weights: Any) -> None:
    with pytest.raises(UsageError, match="above 0"):
        make(weights=weights)


@given(num=st.integers(0, 500), world_size=st.integers(1, 9))
def test_parts_of_a_batch_are_the_batch(num: int, world_size: int) -> None:
    rows = np.arange(num)
    parts = [rows[part_of(num, rank, world_size)] for rank in range(world_size)]
    assert np.concatenate(parts).tolist() == rows.tolist()
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 2
    assert all(part[0] % 2 == 0 for part in parts if len(part))


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_ranks_share_the_same_global_order(world_size: int, weighted: bool) -> None:
    """P3: joined, the parts of every batch are the batch that one process would have had."""
    weights = balanced_weights(LABELS) if weighted else None
    whole = ids_of(make(weights=weights), epoch=4)
    parts = [
        ids_of(make(weights=weights, rank=rank, world_size=world_size), epoch=4)
        for rank in range(world_size)
    ]
    assert [list(itertools.chain(*batch)) for batch in zip(*parts, strict=True)] == whole


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_evaluation_over_ranks_is_over_each_image_once(world_size: int) -> None:
    """P10: 41 images, batches of 10, and a last batch of 1: nothing is padded or left out."""
    seen = [
        row
        for rank in range(world_size)
        for ids in ids_of(make(shuffle=False, ids=np.arange(41), rank=rank, world_size=world_size))
        for row in ids
    ]
    assert sorted(seen) == list(range(41))


def test_the_first_epochs_are_not_alike() -> None:
    assert order_of(50, seed=0, epoch=0).tolist() != order_of(50, seed=0, epoch=1).tolist()
