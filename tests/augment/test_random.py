"""Random numbers are pure functions of (seed, epoch, id, stream, draw), and look random."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vidi.augment import ImageRandom, partners
from vidi.augment.random import mixed
from vidi.errors import UsageError

MANY = torch.arange(100_000)


def numbers(rng: ImageRandom) -> Tensor:
    """A mixed bag of draws, (5, N)."""
    child = rng.stream("child")
    return torch.stack(
        (
            rng.uniform(),
            rng.stream("other").uniform(-1, 1),
            child.integers(10).float(),
            child.bernoulli(0.3).float(),
            rng.uniform(),
        )
    )


@given(
    ids=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=40),
    cut=st.integers(0, 40),
    seed=st.integers(0, 2**70),
)
def test_numbers_do_not_depend_on_the_rest_of_the_batch(
    ids: list[int], cut: int, seed: int
) -> None:
    cut = min(cut, len(ids))
    whole = torch.tensor(ids)
    together = numbers(ImageRandom(seed, 3, whole))
    first = numbers(ImageRandom(seed, 3, whole[:cut]))
    second = numbers(ImageRandom(seed, 3, whole[cut:]))
    assert torch.equal(together, torch.cat((first, second), dim=1))
    backwards = numbers(ImageRandom(seed, 3, whole.flip(0)))
    assert torch.equal(together, backwards.flip(1))


def test_many_draws_at_once_are_the_same_as_one_after_the_other() -> None:
    at_once = ImageRandom(0, 0, torch.arange(5))
    single = ImageRandom(0, 0, torch.arange(5))
    at_once.uniform()
    single.uniform()
    rows = at_once.uniform(count=20)
    assert torch.equal(rows, torch.stack([single.uniform() for _ in range(20)]))
    assert torch.equal(at_once.bits(), single.bits())


def test_numbers_are_the_same_in_every_version() -> None:
    # Golden: a change here changes every training run, and belongs under "numerics".
    rng = ImageRandom(7, 2, torch.tensor([0, 1, 2**40]))
    assert rng.stream("crop").integers(1000).tolist() == [308, 809, 628]
    assert rng.bits().tolist() == [-139565150226054314, 6854418324620691046, -5889602182916532876]


def splitmix64(state: int) -> int:
    """The published algorithm on Python's integers."""
    mask = 2**64 - 1
    z = state & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


@given(st.integers(-(2**63), 2**63 - 1))
def test_the_tensor_hash_is_the_published_one(value: int) -> None:
    hashed = int(mixed(torch.tensor([value]))[0])
    assert hashed % 2**64 == splitmix64(value)


def test_seeds_epochs_ids_streams_and_draws_all_give_other_numbers() -> None:
    ids = torch.arange(1000)
    rng = ImageRandom(0, 0, ids)
    draws = [
        rng.bits(),
        rng.bits(),
        rng.stream("a").bits(),
        rng.stream("a").bits(),
        rng.stream("b").bits(),
        rng.stream("a").stream("b").bits(),
        rng.in_every_epoch().bits(),
        ImageRandom(1, 0, ids).bits(),
        ImageRandom(0, 1, ids).bits(),
        ImageRandom(1, 1, ids).bits(),
    ]
    everything = torch.cat(draws)
    assert len(set(everything.tolist())) == len(everything)


def test_adding_a_stream_does_not_move_another() -> None:
    alone = ImageRandom(0, 0, MANY[:10]).stream("flip").uniform()
    rng = ImageRandom(0, 0, MANY[:10])
    rng.stream("colour").uniform()
    rng.uniform()
    assert torch.equal(rng.stream("flip").uniform(), alone)


def test_numbers_in_every_epoch_stay() -> None:
    early = ImageRandom(0, 0, MANY).in_every_epoch().stream("a").bits()
    late = ImageRandom(0, 9, MANY).in_every_epoch().stream("a").bits()
    assert torch.equal(early, late)


def chi_squared(cells: Tensor, num_cells: int) -> float:
    """How many standard deviations the cell counts are from even."""
    counts = torch.bincount(cells, minlength=num_cells).double()
    expected = len(cells) / num_cells
    statistic = ((counts - expected) ** 2 / expected).sum().item()
    return (statistic - (num_cells - 1)) / math.sqrt(2 * (num_cells - 1))


def test_every_bit_is_even_and_independent_of_every_other() -> None:
    bits = ImageRandom(0, 0, MANY).bits()
    planes = torch.stack([(bits >> k) & 1 for k in range(64)]).double()
    correlation = torch.corrcoef(planes)
    correlation.fill_diagonal_(0)
    # 5.5 standard deviations for about 2,000 pairs.
    assert correlation.abs().max() < 5.5 / math.sqrt(len(MANY))
    assert (planes.mean(dim=1) - 0.5).abs().max() < 5 * 0.5 / math.sqrt(len(MANY))


@pytest.mark.parametrize("seed", range(3))
def test_uniform_is_uniform_and_pairs_fill_the_square(seed: int) -> None:
    rng = ImageRandom(seed, 0, MANY)
    here, there = rng.uniform(), rng.uniform()
    neighbour = here.roll(1)
    later = ImageRandom(seed, 1, MANY).uniform()
    other_seed = ImageRandom(seed + 1, 0, MANY).uniform()
    elsewhere = ImageRandom(seed, 0, MANY).stream("a").uniform()
    assert here.min() >= 0
    assert here.max() < 1
    assert abs(chi_squared((here * 1000).long(), 1000)) < 5
    for second in (there, neighbour, later, other_seed, elsewhere):
        cells = (here * 32).long() * 32 + (second * 32).long()
        assert abs(chi_squared(cells, 32 * 32)) < 5


def test_sparse_and_structured_ids_are_as_good_as_any() -> None:
    for ids in (MANY * 2**20, MANY * 1000, MANY - 50_000, MANY * 0x9E3779B9):
        values = ImageRandom(0, 0, ids).uniform()
        assert abs(chi_squared((values * 1000).long(), 1000)) < 5


def test_draws_of_one_image_are_independent() -> None:
    values = ImageRandom(0, 0, torch.arange(200)).uniform(count=2000)
    correlation = torch.corrcoef(values.T.double())
    correlation.fill_diagonal_(0)
    assert correlation.abs().max() < 5.5 / math.sqrt(2000)


def test_integers_fill_their_range_evenly_also_where_each_image_has_its_own() -> None:
    rng = ImageRandom(0, 0, MANY)
    assert abs(chi_squared(rng.integers(9), 9)) < 5
    ranges = torch.where(MANY % 2 == 0, 3, 2**31)
    values = rng.integers(ranges)
    assert (values < ranges).all()
    assert (values >= 0).all()
    assert abs(chi_squared(values[::2], 3)) < 5
    assert abs(chi_squared(values[1::2] >> 21, 1024)) < 5


def test_bernoulli_has_its_probability_and_both_ends_are_certain() -> None:
    rng = ImageRandom(0, 0, MANY)
    assert not rng.bernoulli(0.0).any()
    assert rng.bernoulli(1.0).all()
    assert rng.bernoulli(0.3).float().mean().item() == pytest.approx(0.3, abs=0.007)


def test_normal_is_normal() -> None:
    values = ImageRandom(0, 0, MANY).normal().double()
    cells = (torch.special.ndtr(values) * 500).long()
    assert abs(chi_squared(cells, 500)) < 5


def test_ids_that_are_not_one_integer_each_are_refused() -> None:
    with pytest.raises(UsageError, match=r"float32 of shape \(3,\)"):
        ImageRandom(0, 0, torch.rand(3))
    with pytest.raises(UsageError, match=r"int64 of shape \(3, 1\)"):
        ImageRandom(0, 0, torch.zeros(3, 1, dtype=torch.int64))


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, []), (1, [0]), (2, [1, 0]), (3, [1, 0, 1]), (6, [1, 0, 3, 2, 5, 4])],
)
def test_neighbours_are_partners(count: int, expected: list[int]) -> None:
    assert partners(count, torch.device("cpu")).tolist() == expected
