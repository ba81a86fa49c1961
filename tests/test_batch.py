"""Batches cut and joined hold the same images in the same order."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from vidi.batch import Batch, joined


@given(count=st.integers(1, 40), size=st.integers(1, 50))
def test_what_is_split_and_joined_is_what_it_was(count: int, size: int) -> None:
    ids = torch.arange(count)
    whole = Batch(torch.randint(0, 256, (count, 1, 2, 3)).to(torch.uint8), ids % 3, ids)
    parts = whole.split(size)
    assert [len(part) for part in parts[:-1]] == [size] * (len(parts) - 1)
    again = joined(parts)
    assert again.repeats is None
    for name in ("images", "targets", "ids"):
        assert torch.equal(getattr(again, name), getattr(whole, name))


def test_parts_of_given_sizes_keep_their_repeats() -> None:
    ids = torch.tensor([4, 4, 7, 4])
    repeats = torch.tensor([0, 1, 0, 2])
    whole = Batch(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), ids, ids, repeats)
    first, second = whole.split([1, 3])
    assert (len(first), len(second)) == (1, 3)
    assert torch.equal(joined([first, second]).keys, whole.keys)
    assert len(torch.unique(whole.keys)) == 4
