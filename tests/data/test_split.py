"""Held-out images: exact in number, stable in membership, and never all of a class."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidi.data.hashing import Hashes, draws, hash_texts
from vidi.data.split import (
    DEFAULT_RULE,
    TEST,
    TRAIN,
    VALIDATION,
    complete,
    folds,
    stratified,
)


def hashes(count: int) -> Hashes:
    names = [f"image {row}".encode() for row in range(count)]
    return hash_texts(b"".join(names), np.cumsum([len(name) for name in names]))


def order(count: int, seed: int = 0) -> Hashes:
    return draws(hashes(count), seed)


@given(
    counts=st.lists(st.integers(0, 60), min_size=1, max_size=12),
    fraction=st.floats(0.0, 0.99),
    seed=st.integers(0, 5),
)
@settings(max_examples=200, deadline=None)
def test_the_share_is_exact_and_every_class_keeps_an_image(
    counts: list[int], fraction: float, seed: int
) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    out = stratified(labels, order(len(labels), seed), fraction=fraction)
    room = sum(max(count - 1, 0) for count in counts)
    assert out.sum() == min(int(len(labels) * fraction + 0.5), room)
    for number, count in enumerate(counts):
        mine = int(out[labels == number].sum())
        assert mine <= max(count - 1, 0)
        # No class is more than one image away from its share, unless others had none to give.
        if fraction < 0.5 and min(counts) > 1:
            assert abs(mine - count * fraction) <= 1.0


def test_who_is_held_out_depends_on_the_seed_and_not_on_the_order_of_rows() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200)
    first = stratified(labels, order(200, 1), fraction=0.2)
    moved = rng.permutation(200)
    again = stratified(labels[moved], order(200, 1)[moved], fraction=0.2)
    assert (first[moved] == again).all()
    assert (first != stratified(labels, order(200, 2), fraction=0.2)).any()


def test_few_images_change_sides_when_others_are_added() -> None:
    before = stratified(np.arange(1000) % 4, order(1000), fraction=0.2)
    after = stratified(np.arange(1040) % 4, order(1040), fraction=0.2)[:1000]
    assert (before != after).mean() < 0.03


@pytest.mark.parametrize(
    ("num_images", "num_classes", "held_out", "said_share"),
    [
        (2_000, 10, 200, "10%"),
        (25_000, 10, 2_500, "10%"),
        (60_000, 10, 2_500, "4%"),
        (60_000, 500, 5_000, "8%"),
        (400_000, 10, 2_500, "0.6%"),
    ],
)
def test_a_tenth_is_held_out_to_choose_by_and_no_more_than_tells(
    num_images: int, num_classes: int, held_out: int, said_share: str
) -> None:
    labels = np.arange(num_images) % num_classes
    # A test that is given: none is cut.
    given_splits = np.where(np.arange(num_images + 10) < num_images, TRAIN, TEST).astype(np.int8)
    labels = np.append(labels, np.arange(10) % num_classes)
    split, said = complete(given_splits, labels, hashes(num_images + 10), DEFAULT_RULE)
    assert (split == VALIDATION).sum() == held_out
    assert f"validation {said_share} of training" in said


@given(
    sizes=st.lists(st.integers(1, 12), min_size=3, max_size=40),
    singles=st.integers(0, 80),
    fraction=st.floats(0.05, 0.5),
    seed=st.integers(0, 3),
)
@settings(max_examples=100, deadline=None)
def test_groups_stay_on_one_side(
    sizes: list[int], singles: int, fraction: float, seed: int
) -> None:
    groups = np.concatenate([np.repeat(np.arange(len(sizes)), sizes), np.full(singles, -1)])
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, len(groups))
    labels[:3] = (0, 1, 2)
    out = stratified(labels, order(len(labels), seed), fraction=fraction, groups=groups)
    for group in range(len(sizes)):
        assert len(set(out[groups == group].tolist())) == 1
    for number in np.unique(labels):
        assert not out[labels == number].all()
    # As exact as the groups allow: no further off than the largest group and rounding.
    wanted = len(labels) * fraction
    assert out.sum() <= wanted + max(sizes) + 3
    if singles > 3 * wanted:
        assert out.sum() >= wanted - 3


def test_groups_of_any_size_are_held_out_as_often_as_images() -> None:
    """Else the held-out images would be the ones without near duplicates: the hard ones."""
    groups = np.concatenate([np.repeat(np.arange(100), 5), np.full(500, -1)])
    labels = np.concatenate([np.repeat(np.arange(100) % 2, 5), np.arange(500) % 2])
    out = stratified(labels, order(1000), fraction=0.2, groups=groups)
    assert out.sum() == 200
    assert 60 <= out[:500].sum() <= 140


@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    count=st.integers(2, 5),
    seed=st.integers(0, 3),
)
@settings(max_examples=100, deadline=None)
def test_folds_are_even_and_stratified(counts: list[int], count: int, seed: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    if len(labels) < count:
        return
    fold = folds(labels, order(len(labels), seed), count)
    assert set(fold.tolist()) <= set(range(count))
    for number in range(len(counts)):
        sizes = np.bincount(fold[labels == number], minlength=count)
        assert sizes.max() - sizes.min() <= 1
    assert np.ptp(np.bincount(fold, minlength=count)) <= len(counts)


def test_folds_keep_groups_together() -> None:
    groups = np.concatenate([np.repeat(np.arange(20), 4), np.full(40, -1)])
    labels = np.concatenate([np.repeat(np.arange(20) % 2, 4), np.arange(40) % 2])
    fold = folds(labels, order(120), 5, groups=groups)
    for group in range(20):
        assert len(set(fold[groups == group].tolist())) == 1
    assert np.bincount(fold).tolist() == [24] * 5


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=60))
@settings(max_examples=100, deadline=None)
def test_the_hash_of_a_name_does_not_depend_on_its_neighbours(names: list[bytes]) -> None:
    ends = np.cumsum([len(name) for name in names])
    together = hash_texts(b"".join(names), ends)
    alone = [int(hash_texts(name, np.array([len(name)]))[0]) for name in names]
    assert together.tolist() == alone
    assert len(set(alone)) == len(set(names))


def test_a_long_list_of_names_is_hashed_in_pieces_like_a_short_one() -> None:
    names = [f"folder/{number}.jpg".encode() for number in range(200_000)]
    whole = hash_texts(b"".join(names), np.cumsum([len(name) for name in names]))
    tail = names[150_000:]
    part = hash_texts(b"".join(tail), np.cumsum([len(name) for name in tail]))
    assert (whole[150_000:] == part).all()
    assert len(np.unique(whole)) == 200_000
    # As many ones as zeros in every bit: what decides who is held out is fair.
    bits = np.unpackbits(draws(whole, 3).view(np.uint8)).reshape(200_000, 64).mean(axis=0)
    assert np.abs(bits - 0.5).max() < 0.01
