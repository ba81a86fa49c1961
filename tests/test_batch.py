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
    for name in ("images", "targets", "ids"):
        assert torch.equal(getattr(again, name), getattr(whole, name))
