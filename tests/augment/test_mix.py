"""Erasing, mixup and cutmix: what is taken from where, and that the targets say the same."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from vidi.augment import (
    ImageRandom,
    cutmix,
    cutout,
    mixup,
    mixup_or_cutmix,
    partners,
    random_erasing,
)
from vidi.augment.mix import beta_quantile, painted, soft_targets
from vidi.batch import Batch
from vidi.errors import UsageError

MakeBatch = Callable[..., Batch]
# Small images are mixed as a batch, large ones by themselves.
SIZES = pytest.mark.parametrize("px", [16, 128])


def rng_for(batch: Batch) -> ImageRandom:
    return ImageRandom(0, 0, batch.ids)


def plain_batch(count: int, px: int = 16) -> Batch:
    """Image n is of the single value 2 n, and class n."""
    values = (torch.arange(count) * 2).to(torch.uint8)
    images = values[:, None, None, None].expand(count, 3, px, px)
    return Batch(
        images.contiguous(memory_format=torch.channels_last),
        torch.arange(count),
        torch.arange(count),
    )


@SIZES
@pytest.mark.parametrize("in_place", [True, False])
def test_erasing_paints_one_box_as_torchvision_does(
    make_batch: MakeBatch, v2: ModuleType, px: int, in_place: bool
) -> None:
    batch = make_batch(30, px)
    given = Batch(batch.images.clone(), batch.targets, batch.ids)
    out = random_erasing(0.6, value=7.0, in_place=in_place)(given, rng_for(batch), 0.0).images
    areas = []
    for image, erased in zip(batch.images, out, strict=True):
        changed = (image != erased).any(dim=0)
        if changed.any():
            rows, columns = changed.any(dim=1).nonzero(), changed.any(dim=0).nonzero()
            top, left = int(rows[0]), int(columns[0])
            height, width = int(rows[-1]) - top + 1, int(columns[-1]) - left + 1
            paint = torch.full((3, 1, 1), 7, dtype=torch.uint8)
            expected = v2.functional.erase(image, top, left, height, width, paint)
            assert torch.equal(erased, expected)
            areas.append(height * width / px**2)
    assert 10 < len(areas) < 26
    assert 0.01 < min(areas) < max(areas) < 0.37
    assert torch.equal(given.images, out if in_place else batch.images)


def test_cutout_loses_what_is_outside() -> None:
    batch = plain_batch(100)
    images = cutout(6, value=255.0)(batch, rng_for(batch), 0.0).images
    areas = (images[:, 0] == 255).flatten(1).sum(dim=1)
    # From a quarter in a corner (3 x 3) to all of it.
    assert int(areas.min()) < 15
    assert int(areas.max()) == 36
    stream = rng_for(batch).stream("cutout")
    stream.bernoulli(1.0)
    middle_y, middle_x = stream.integers(16), stream.integers(16)
    numbers = torch.arange(100)
    assert (images[numbers, 0, middle_y, middle_x] == 255).all()


@SIZES
@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_mixup_blends_neighbours_and_their_targets_alike(
    make_batch: MakeBatch, px: int, alpha: float
) -> None:
    batch = make_batch(9, px)
    out = mixup(alpha, 10)(batch, rng_for(batch), 0.0)
    other = partners(9, torch.device("cpu"))
    assert out.images.dtype == torch.uint8
    share = out.targets[torch.arange(9), batch.targets]
    assert torch.allclose(out.targets[torch.arange(9), batch.targets[other]], 1 - share)
    assert torch.allclose(out.targets.sum(dim=1), torch.ones(9))
    own = share[:, None, None, None]
    expected = batch.images * own + batch.images[other] * (1 - own)
    assert (out.images - expected).abs().max() <= 0.5 + 1e-4


@SIZES
def test_mixup_of_floats_gives_floats(make_batch: MakeBatch, px: int) -> None:
    batch = make_batch(4, px)
    floats = Batch(batch.images.float(), batch.targets, batch.ids)
    out = mixup(1.0, 10)(floats, rng_for(batch), 0.0)
    whole = mixup(1.0, 10)(batch, rng_for(batch), 0.0)
    assert out.images.dtype == torch.float32
    assert (out.images - whole.images).abs().max() <= 0.5 + 1e-4
    assert torch.equal(out.targets, whole.targets)


def test_shares_of_mixup_have_the_beta_distribution() -> None:
    batch = plain_batch(2000, px=1)
    batch = Batch(batch.images, batch.targets % 2, batch.ids)
    out = mixup(0.4, 2)(batch, rng_for(batch), 0.0)
    share = out.targets[torch.arange(2000), batch.targets].double().numpy()
    # Rounded to 1/128, hence the jitter.
    share = share + (np.random.default_rng(0).random(2000) - 0.5) / 128
    gap = stats.kstest(share, stats.beta(0.4, 0.4).cdf).statistic
    assert gap < 0.06


@SIZES
def test_cutmix_takes_one_box_and_counts_its_area(px: int) -> None:
    batch = plain_batch(41, px)
    out = cutmix(1.0, 41)(batch, rng_for(batch), 0.0)
    other = partners(41, torch.device("cpu"))
    shares = []
    for number, image in enumerate(out.images):
        from_other = (image == batch.images[other[number]]).all(dim=0)
        from_own = (image == batch.images[number]).all(dim=0)
        assert (from_own ^ from_other).all()
        rows, columns = from_other.any(dim=1), from_other.any(dim=0)
        assert torch.equal(from_other, rows[:, None] & columns)
        area = float(from_other.float().mean())
        assert float(out.targets[number, other[number]]) == pytest.approx(area, abs=1e-6)
        assert float(out.targets[number, number]) == pytest.approx(1 - area, abs=1e-6)
        shares.append(area)
    assert min(shares) < 0.1
    assert max(shares) > 0.6


@SIZES
def test_each_image_is_mixed_in_one_of_the_two_ways(px: int) -> None:
    batch = plain_batch(40, px)
    out = mixup_or_cutmix(1.0, 1.0, 40)(batch, rng_for(batch), 0.0)
    own = batch.images[:, :1, :1, :1]
    other = batch.images[partners(40, torch.device("cpu"))][:, :1, :1, :1]
    cut = ((out.images == own) | (out.images == other)).flatten(1).all(dim=1)
    chosen = rng_for(batch).stream("mix").bernoulli(0.5)
    # Values of neighbours are 2 apart, so a blend can also round to one of them, but not both.
    assert cut[chosen].all()
    blends = out.images[~chosen]
    assert (blends == blends[:, :1, :1, :1]).all()
    assert 10 < int(chosen.sum()) < 30


def test_soft_targets_can_be_mixed_again() -> None:
    batch = plain_batch(6)
    once = mixup(1.0, 6)(batch, rng_for(batch), 0.0)
    twice = cutmix(1.0, 6)(once, rng_for(batch), 0.0)
    assert torch.allclose(twice.targets.sum(dim=1), torch.ones(6))
    with pytest.raises(UsageError, match="targets of 6 classes, where 7 are expected"):
        soft_targets(once.targets, 7)


def test_a_lone_image_stays_as_it_is() -> None:
    batch = plain_batch(1)
    out = mixup_or_cutmix(0.4, 1.0, 3)(batch, rng_for(batch), 0.0)
    assert torch.equal(out.images, batch.images)
    assert out.targets.tolist() == [[1.0, 0.0, 0.0]]


@settings(max_examples=30)
@given(alpha=st.floats(0.05, 40), place=st.floats(1e-6, 1 - 1e-6))
def test_beta_numbers_are_the_quantiles_of_the_distribution(alpha: float, place: float) -> None:
    ours = float(beta_quantile(torch.tensor([place]), alpha)[0])
    exact = stats.beta.ppf(float(torch.tensor(place)), alpha, alpha)
    assert ours == pytest.approx(exact, abs=2e-4)


def test_nothing_to_mix_is_refused() -> None:
    for alphas in ((0.0, 0.0), (-1.0, 1.0)):
        with pytest.raises(UsageError, match="alpha above 0"):
            mixup_or_cutmix(*alphas, 10)


def test_painting_takes_a_box_for_each_image() -> None:
    images = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    boxes = torch.tensor([[0, 1, 2, 3], [2, 2, 2, 4]]).T
    out: Tensor = painted(images, boxes, 9.0)
    assert out[0].nonzero().tolist() == [[0, y, x] for y in (0, 1) for x in (1, 2)]
    assert not out[1].any()
