"""One reduction of each tensor finds whatever is not a number."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vidi.finite import all_finite


@given(
    sizes=st.lists(st.integers(0, 50), min_size=1, max_size=6).filter(any),
    value=st.sampled_from([float("nan"), float("inf"), float("-inf")]),
    data=st.data(),
)
def test_one_bad_number_anywhere_is_found(
    sizes: list[int], value: float, data: st.DataObject
) -> None:
    tensors = [torch.randn(size) for size in sizes]
    assert bool(all_finite(tensors))
    where = data.draw(st.sampled_from([i for i, size in enumerate(sizes) if size]))
    tensors[where][data.draw(st.integers(0, sizes[where] - 1))] = value
    assert not bool(all_finite(tensors))


def test_infinities_of_both_signs_do_not_cancel() -> None:
    assert not bool(all_finite([torch.tensor([float("inf"), float("-inf")])]))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_order_in_memory_does_not_matter(layout: torch.memory_format) -> None:
    filters = torch.randn(4, 3, 3, 3).to(memory_format=layout)
    assert bool(all_finite([filters]))
    filters[3, 2, 2, 2] = float("nan")
    assert not bool(all_finite([filters]))
