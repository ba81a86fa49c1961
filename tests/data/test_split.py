"""Held-out images: exact in number, stable in membership, and never all of a class."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vidi.data.split import stratified


def names(row: int) -> str:
    return f"image {row}"


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
    out = stratified(labels, names, fraction=fraction, seed=seed)
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
    first = stratified(labels, names, fraction=0.2, seed=1)
    order = rng.permutation(200)
    moved = stratified(labels[order], lambda row: names(int(order[row])), fraction=0.2, seed=1)
    assert (first[order] == moved).all()
    assert (first != stratified(labels, names, fraction=0.2, seed=2)).any()


def test_few_images_change_sides_when_others_are_added() -> None:
    labels = np.arange(1000) % 4
    before = stratified(labels, names, fraction=0.2, seed=0)
    after = stratified(np.arange(1040) % 4, names, fraction=0.2, seed=0)[:1000]
    assert (before != after).mean() < 0.03
