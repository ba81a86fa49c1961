"""Crops and flips: equal to torchvision's to the last bit; resizing to within a grey level."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vidi.augment import (
    ImageRandom,
    alternating_flip,
    centre_crop,
    horizontal_flip,
    pad_crop,
    random_resized_crop,
    vertical_flip,
)
from vidi.augment.crop import flipped_where, random_boxes, resized_boxes
from vidi.batch import Batch
from vidi.errors import UsageError

MakeBatch = Callable[..., Batch]
LAYOUTS = pytest.mark.parametrize("channels_last", [True, False])
# Small images are changed as a batch, large ones by themselves.
SIZES = pytest.mark.parametrize("px", [16, 128])


def rng_for(batch: Batch, epoch: int = 0) -> ImageRandom:
    return ImageRandom(0, epoch, batch.ids)


@LAYOUTS
@pytest.mark.parametrize(("px", "crop_px"), [(33, 32), (32, 32), (17, 8), (8, 7)])
def test_centre_crop_is_torchvisions(
    make_batch: MakeBatch, v2: ModuleType, px: int, crop_px: int, channels_last: bool
) -> None:
    batch = make_batch(3, px, channels_last=channels_last)
    out = centre_crop(crop_px)(batch, rng_for(batch), 0.0)
    # torchvision rounds half a pixel to the even number; we always leave it at the end.
    top = (px - crop_px) // 2
    assert torch.equal(out.images, v2.functional.crop(batch.images, top, top, crop_px, crop_px))


@LAYOUTS
@pytest.mark.parametrize(("border", "mode"), [("reflect", "reflect"), ("zero", "constant")])
def test_pad_crop_is_torchvisions(
    make_batch: MakeBatch, v2: ModuleType, border: str, mode: str, channels_last: bool
) -> None:
    batch = make_batch(40, 20, channels_last=channels_last)
    out = pad_crop(18, 3, border)(batch, rng_for(batch), 0.0)  # type: ignore[arg-type]
    drawn = rng_for(batch).stream("pad_crop")
    top, left = drawn.integers(9).tolist(), drawn.integers(9).tolist()
    padded = v2.functional.pad(batch.images, [3], padding_mode=mode)
    for number, image in enumerate(padded):
        expected = v2.functional.crop(image, top[number], left[number], 18, 18)
        assert torch.equal(out.images[number], expected)
    assert set(top) == set(left) == set(range(9))


@SIZES
@LAYOUTS
@pytest.mark.parametrize(
    ("flip", "name", "function"),
    [
        (horizontal_flip, "horizontal_flip", "horizontal_flip"),
        (vertical_flip, "vertical_flip", "vertical_flip"),
    ],
)
def test_flips_are_torchvisions(
    make_batch: MakeBatch,
    v2: ModuleType,
    flip: Callable[..., Callable[..., Batch]],
    name: str,
    function: str,
    px: int,
    channels_last: bool,
) -> None:
    batch = make_batch(24, px, channels_last=channels_last)
    out = flip(0.5)(batch, rng_for(batch), 0.0)
    chosen = rng_for(batch).stream(name).bernoulli(0.5).tolist()
    assert 4 < sum(chosen) < 20
    for number, image in enumerate(batch.images):
        expected = getattr(v2.functional, function)(image) if chosen[number] else image
        assert torch.equal(out.images[number], expected)


@SIZES
def test_flips_in_place_give_the_same(make_batch: MakeBatch, px: int) -> None:
    batch = make_batch(9, px)
    chosen = torch.arange(9) % 3 == 0
    for dim in (2, 3):
        expected = flipped_where(batch.images, chosen, dim)
        images = batch.images.clone()
        assert torch.equal(flipped_where(images, chosen, dim, in_place=True), expected)
        assert torch.equal(images, expected)


def test_alternating_flips_show_both_sides_in_any_two_epochs(make_batch: MakeBatch) -> None:
    batch = make_batch(64, 8)
    epochs = [alternating_flip()(batch, rng_for(batch, epoch), 0.0).images for epoch in range(4)]
    mirrored = [(images != batch.images).flatten(1).any(dim=1) for images in epochs]
    assert 16 < int(mirrored[0].sum()) < 48
    assert torch.equal(mirrored[0], ~mirrored[1])
    assert torch.equal(mirrored[0], mirrored[2])
    assert torch.equal(mirrored[1], mirrored[3])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "box", [(0, 0, 48, 48), (5, 9, 20, 30), (20, 1, 28, 47), (47, 47, 1, 1), (3, 4, 24, 24)]
)
def test_resized_crop_is_torchvisions(
    make_batch: MakeBatch,
    v2: ModuleType,
    as_on_a_device: torch.utils._python_dispatch.TorchDispatchMode,
    box: tuple[int, int, int, int],
    channels: int,
) -> None:
    images = make_batch(2, 48, channels).images
    expected = v2.functional.resized_crop(images, *box, [24, 24], antialias=True).float()
    boxes = torch.tensor(box)[:, None].expand(4, 2)
    with as_on_a_device:
        by_products = resized_boxes(images, boxes, 24)
    assert by_products.is_contiguous(memory_format=torch.channels_last)
    # torch's kernel rounds twice, in between and at the end.
    assert (by_products.float() - expected).abs().max() <= 1
    assert (by_products.float() - expected).abs().mean() < 0.3


@LAYOUTS
def test_random_resized_crop_is_torchvisions_for_the_drawn_boxes(
    make_batch: MakeBatch, v2: ModuleType, channels_last: bool
) -> None:
    batch = make_batch(10, 40, channels_last=channels_last)
    out = random_resized_crop(24, (0.2, 1.0))(batch, rng_for(batch), 0.0)
    stream = rng_for(batch).stream("random_resized_crop")
    boxes = random_boxes(stream, (40, 40), (0.2, 1.0), (3 / 4, 4 / 3))
    for number, box in enumerate(boxes.T.tolist()):
        expected = v2.functional.resized_crop(batch.images[number], *box, [24, 24], antialias=True)
        assert torch.equal(out.images[number], expected)


@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    scale=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)),
    ratio=st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)),
    seed=st.integers(0, 1000),
)
def test_boxes_lie_inside_the_image(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], seed: int
) -> None:
    low_to_high = (tuple(sorted(scale)), tuple(sorted(ratio)))
    rng = ImageRandom(seed, 0, torch.arange(20))
    boxes = random_boxes(rng, (height, width), *low_to_high)  # type: ignore[arg-type]
    top, left, box_height, box_width = boxes
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (box_height >= 1).all()
    assert (box_width >= 1).all()
    assert (top + box_height <= height).all()
    assert (left + box_width <= width).all()


def test_boxes_have_the_distribution_of_torchvisions(v2: ModuleType) -> None:
    count = 4000
    ours = random_boxes(
        ImageRandom(0, 0, torch.arange(count)), (100, 120), (0.08, 1.0), (3 / 4, 4 / 3)
    ).double()
    crop = v2.RandomResizedCrop(50)
    image = torch.zeros(3, 100, 120)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = [crop.make_params([image]) for _ in range(count)]
    theirs = torch.tensor(
        [[box[key] for box in drawn] for key in ("top", "left", "height", "width")],
        dtype=torch.float64,
    )
    for mine, other in zip(ours, theirs, strict=True):
        # Kolmogorov-Smirnov, for one error in 10,000.
        places = torch.arange(121)
        gap = (mine[:, None] <= places).double().mean(0) - (other[:, None] <= places).double().mean(
            0
        )
        assert gap.abs().max() < 2.23 * math.sqrt(2 / count)


def test_a_shape_that_never_fits_gives_the_largest_middle() -> None:
    rng = ImageRandom(0, 0, torch.arange(3))
    assert random_boxes(rng, (10, 100), (1.0, 1.0), (1.0, 1.0)).T.tolist() == [[0, 45, 10, 10]] * 3
    assert random_boxes(rng, (90, 10), (1.0, 1.0), (1.0, 2.0)).T.tolist() == [[40, 0, 10, 10]] * 3


def test_what_cannot_be_cut_is_refused(make_batch: MakeBatch) -> None:
    batch = make_batch(1, 8)
    with pytest.raises(UsageError, match="crop of 9 px does not fit into images of 8 x 8 px"):
        centre_crop(9)(batch, rng_for(batch), 0.0)
    with pytest.raises(UsageError, match="crop of 13 px"):
        pad_crop(13, 2)(batch, rng_for(batch), 0.0)
    with pytest.raises(UsageError, match="mirrored 8 px outwards"):
        pad_crop(8, 8)(batch, rng_for(batch), 0.0)
