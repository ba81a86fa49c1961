"""Tables of changes: each image gets what was drawn for it."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from vidi.augment import (
    GENTLE,
    POLICIES,
    RANDAUGMENT,
    TRIVIALAUGMENT_WIDE,
    Change,
    ImageRandom,
    Transform,
    augmix,
    during,
    policy,
    rand_augment,
    rising,
    steady,
    trivial_augment,
)
from vidi.augment.policy import changed
from vidi.batch import Batch
from vidi.errors import UsageError

MakeBatch = Callable[..., Batch]


def rng_for(batch: Batch) -> ImageRandom:
    return ImageRandom(0, 0, batch.ids)


def all_by(images: Tensor, change: Change, magnitude: float, sign: int) -> Tensor:
    count = len(images)
    return changed(
        images,
        (change,),
        torch.zeros(count, dtype=torch.int64),
        torch.full((count,), magnitude),
        torch.full((count,), sign),
        "nearest",
        0.0,
    )


def by_torchvision(v2: ModuleType, images: Tensor, change: Change, amount: float) -> Any:
    """The same change by torchvision; the shear about the middle, as ours."""
    functional = v2.functional
    degrees = float(torch.rad2deg(torch.atan(torch.tensor(amount))))
    px = amount * images.shape[-1]
    match change.kind:
        case "identity":
            return images
        case "shear_x":
            return functional.affine(images, 0.0, [0, 0], 1.0, [degrees, 0.0])
        case "shear_y":
            return functional.affine(images, 0.0, [0, 0], 1.0, [0.0, degrees])
        case "translate_x":
            return functional.affine(images, 0.0, [px, 0], 1.0, [0.0, 0.0])
        case "translate_y":
            return functional.affine(images, 0.0, [0, px], 1.0, [0.0, 0.0])
        case "rotate":
            return functional.rotate(images, amount)
        case "posterize":
            return functional.posterize(images, 8 - round(amount))
        case "solarize":
            return functional.solarize(images, (1 - amount) * 255)
        case "autocontrast" | "equalize":
            return getattr(functional, change.kind)(images)
        case _:
            return getattr(functional, f"adjust_{change.kind}")(images, 1 + amount)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("magnitude", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("change", RANDAUGMENT, ids=lambda change: change.kind)
def test_each_change_is_torchvisions(
    make_batch: MakeBatch, v2: ModuleType, change: Change, magnitude: float, sign: int
) -> None:
    images = make_batch().images
    one_way = change.kind in ("posterize", "solarize")
    amount = magnitude * change.full * (1 if one_way else sign)
    ours = all_by(images, change, magnitude, sign)
    gap = ours.float() - by_torchvision(v2, images, change, amount).float()
    assert gap.abs().flatten(1).mean(dim=1).max() <= 1


@pytest.mark.parametrize("px", [16, 128])
def test_a_batch_of_all_changes_is_the_same_as_one_image_after_the_other(
    make_batch: MakeBatch, px: int
) -> None:
    table = TRIVIALAUGMENT_WIDE
    images = make_batch(2 * len(table), px).images
    which = torch.arange(len(images)) % len(table)
    magnitude = torch.linspace(0.2, 1, len(images))
    sign = torch.where(torch.arange(len(images)) < len(table), 1, -1)
    before = images.clone()
    together = changed(images, table, which, magnitude, sign)
    assert torch.equal(images, before)
    for number in range(len(images)):
        this = slice(number, number + 1)
        alone = changed(images[this], table, which[this], magnitude[this], sign[this])
        assert torch.equal(together[this], alone)


@pytest.mark.parametrize("table", [RANDAUGMENT, TRIVIALAUGMENT_WIDE, GENTLE])
def test_every_line_of_a_table_comes_up_equally_often(table: tuple[Change, ...]) -> None:
    ids = torch.arange(7000)
    stream = ImageRandom(0, 0, ids).stream("changes")
    counts = torch.bincount(stream.integers(len(table)), minlength=len(table)).double()
    expected = len(ids) / len(table)
    assert (counts - expected).abs().max() < 5 * expected**0.5


def test_rand_augment_is_its_changes_one_after_the_other(make_batch: MakeBatch) -> None:
    batch = make_batch(20, 24)
    out = rand_augment(3, 0.5)(batch, rng_for(batch), 0.0)
    stream = rng_for(batch).stream("changes")
    images = batch.images
    for _ in range(3):
        which = stream.integers(len(RANDAUGMENT))
        magnitude = stream.uniform(0.5, 0.5)
        sign = stream.integers(2) * 2 - 1
        assert (magnitude == 0.5).all()
        images = changed(images, RANDAUGMENT, which, magnitude, sign)
    assert torch.equal(out.images, images)


def test_trivial_augment_draws_how_much(make_batch: MakeBatch) -> None:
    one = make_batch(1, 24).images.expand(200, -1, -1, -1)
    images = one.contiguous(memory_format=torch.channels_last)
    batch = Batch(images, torch.zeros(200, dtype=torch.int64), torch.arange(200))
    only = (Change("brightness", 0.9),)
    out = trivial_augment(only)(batch, rng_for(batch), 0.0).images.float()
    factors = out.flatten(1).mean(dim=1) / images.float().flatten(1).mean(dim=1)
    assert factors.min() < 0.3
    assert factors.max() > 1.5
    near_one = ((factors > 0.9) & (factors < 1.1)).float().mean()
    assert 0.05 < near_one < 0.2


def test_strength_rises_with_training(make_batch: MakeBatch) -> None:
    batch = make_batch(30, 24)
    gaps = []
    for done in (0.0, 0.25, 0.5, 0.75):
        transform = trivial_augment((Change("brightness", 0.9),), strength=rising(until=0.5))
        out = transform(batch, rng_for(batch), done).images
        gaps.append(float((out.float() - batch.images.float()).abs().mean()))
    assert gaps[0] == 0
    assert 0 < gaps[1] < gaps[2]
    assert gaps[2] == gaps[3]


@pytest.mark.parametrize(("done", "expected"), [(0.0, 0.25), (0.2, 0.55), (0.5, 1.0), (1.0, 1.0)])
def test_a_ramp_is_a_straight_line_up_to_its_end(done: float, expected: float) -> None:
    assert rising(0.5, start=0.25)(done) == pytest.approx(expected)
    assert steady(done) == 1.0


def test_a_transform_can_be_for_a_part_of_training_only(make_batch: MakeBatch) -> None:
    batch = make_batch(4)

    def black(batch: Batch, rng: ImageRandom, done: float) -> Batch:
        del rng, done
        return Batch(torch.zeros_like(batch.images), batch.targets, batch.ids)

    def on(transform: Transform, done: float) -> bool:
        return not transform(batch, rng_for(batch), done).images.any()

    early = during(black, stop=0.9)
    assert [on(early, done) for done in (0.0, 0.89, 0.9, 1.0)] == [True, True, False, False]
    late = during(black, start=0.5)
    assert [on(late, done) for done in (0.0, 0.49, 0.5, 1.0)] == [False, False, True, True]


def test_augmix_stays_near_its_image_and_varies(make_batch: MakeBatch) -> None:
    one = make_batch(1, 32, noise=0.0).images.expand(40, -1, -1, -1)
    images = one.contiguous(memory_format=torch.channels_last)
    batch = Batch(images, torch.zeros(40, dtype=torch.int64), torch.arange(40))
    out = augmix()(batch, rng_for(batch), 0.0).images
    gaps = (out.float() - images.float()).abs().flatten(1).mean(dim=1)
    assert len({float(gap) for gap in gaps}) > 35
    assert gaps.max() < 80
    # Weights sum to 1: where nothing is changed, nothing changes but by rounding.
    still = augmix(magnitude=0.0, table=(Change("rotate", 30.0),))
    unchanged = still(batch, rng_for(batch), 0.0).images
    assert (unchanged.int() - images.int()).abs().max() <= 1


@pytest.mark.parametrize("name", ["light", "medium", "strong"])
def test_policies_get_stronger_in_their_order(make_batch: MakeBatch, name: str) -> None:
    batch = make_batch(200, 24)
    out = policy(name, grey=False)(batch, rng_for(batch), 1.0).images  # type: ignore[arg-type]
    gap = float((out.float() - batch.images.float()).abs().mean())
    low, high = {"light": (1, 12), "medium": (12, 35), "strong": (25, 70)}[name]
    assert low < gap < high


def test_policy_none_changes_nothing(make_batch: MakeBatch) -> None:
    batch = make_batch(3)
    assert policy("none", grey=False)(batch, rng_for(batch), 1.0) is batch


def test_a_policy_for_grey_images_leaves_colour_out(make_batch: MakeBatch) -> None:
    grey = make_batch(300, 16, 1, noise=0.0).images.expand(-1, 3, -1, -1)
    images = grey.contiguous(memory_format=torch.channels_last)
    batch = Batch(images, torch.zeros(300, dtype=torch.int64), torch.arange(300))
    for name in POLICIES:
        out = policy(name, grey=True)(batch, rng_for(batch), 1.0).images
        assert torch.equal(out[:, 0], out[:, 1])
    # On one channel too, where the table's colour has nothing to hold on to.
    one = Batch(images[:, :1].contiguous(), batch.targets, batch.ids)
    assert policy("strong", grey=True)(one, rng_for(one), 1.0).images.shape == one.images.shape


def test_an_empty_table_and_a_senseless_ramp_are_refused() -> None:
    with pytest.raises(UsageError, match="a table of no changes"):
        rand_augment(table=())
    with pytest.raises(UsageError, match=r"ramp from 0 at 0 to 1 at 1\.5 leaves the range"):
        rising(1.5)
