"""Changes of pixel values: torchvision's, to within one grey level on average."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

from vidi.augment import (
    ImageRandom,
    colour,
    colour_jitter,
    random_blur,
    random_greyscale,
    random_invert,
)
from vidi.batch import Batch
from vidi.errors import UsageError

MakeBatch = Callable[..., Batch]
FACTORS = (0.0, 0.3, 0.9, 1.0, 1.4, 1.9)


def amounts(images: Tensor, value: float) -> Tensor:
    return torch.full((len(images),), value)


def assert_near(ours: Tensor, theirs: Tensor, most: float = 1.0) -> None:
    """Within one level on average over each image, and nowhere far (where torchvision rounds
    downwards, a level is lost at every pixel)."""
    assert ours.dtype == theirs.dtype == torch.uint8
    gap = (ours.float() - theirs.float()).abs()
    assert gap.flatten(1).mean(dim=1).max() <= most
    assert gap.max() <= 3


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "sharpness"])
def test_factors_are_torchvisions(
    make_batch: MakeBatch,
    v2: ModuleType,
    name: str,
    factor: float,
    channels_last: bool,
    channels: int,
) -> None:
    images = make_batch(4, 30, channels, channels_last=channels_last).images
    expected = getattr(v2.functional, f"adjust_{name}")(images, factor)
    ours = getattr(colour, name)(images, amounts(images, factor))
    assert_near(ours, expected)
    if factor == 1.0:
        assert torch.equal(ours, images)


@pytest.mark.parametrize("shift", [-0.5, -0.2, 0.0, 0.05, 0.5])
def test_hue_is_torchvisions(make_batch: MakeBatch, v2: ModuleType, shift: float) -> None:
    images = make_batch(4, 30).images
    assert_near(colour.hue(images, amounts(images, shift)), v2.functional.adjust_hue(images, shift))


@pytest.mark.parametrize("bits", range(9))
def test_posterize_is_torchvisions(make_batch: MakeBatch, v2: ModuleType, bits: int) -> None:
    images = make_batch().images
    assert torch.equal(
        colour.posterize(images, amounts(images, bits)), v2.functional.posterize(images, bits)
    )


@pytest.mark.parametrize("threshold", [0.0, 1.0, 127.5, 128.0, 255.0])
def test_solarize_is_torchvisions(make_batch: MakeBatch, v2: ModuleType, threshold: float) -> None:
    images = make_batch().images
    assert torch.equal(
        colour.solarize(images, amounts(images, threshold)),
        v2.functional.solarize(images, threshold),
    )


def odd_pictures(make_batch: MakeBatch, channels_last: bool) -> Tensor:
    """Also some of one value, of two, and with a narrow range."""
    images = make_batch(6, 30, channels_last=channels_last).images.clone()
    images[1] = 77
    images[2, :, :10] = 0
    images[2, :, 10:] = 1
    images[3] = images[3] // 8 + 100
    images[4, 1] = 255
    return images


@pytest.mark.parametrize("channels_last", [True, False])
def test_equalize_is_torchvisions(
    make_batch: MakeBatch, v2: ModuleType, channels_last: bool
) -> None:
    images = odd_pictures(make_batch, channels_last)
    assert torch.equal(colour.equalize(images), v2.functional.equalize(images))


@pytest.mark.parametrize("channels_last", [True, False])
def test_autocontrast_is_torchvisions(
    make_batch: MakeBatch, v2: ModuleType, channels_last: bool
) -> None:
    images = odd_pictures(make_batch, channels_last)
    assert_near(colour.autocontrast(images), v2.functional.autocontrast(images))


def test_invert_and_greyscale_are_torchvisions(make_batch: MakeBatch, v2: ModuleType) -> None:
    images = make_batch().images
    assert torch.equal(colour.invert(images), v2.functional.invert(images))
    expected = v2.functional.rgb_to_grayscale(images, num_output_channels=3)
    assert_near(colour.greyscale(images), expected)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 2.5])
def test_blur_is_torchvisions(make_batch: MakeBatch, v2: ModuleType, sigma: float) -> None:
    images = make_batch(4, 30).images
    ours = colour.blur(images, amounts(images, sigma), 4)
    assert_near(ours, v2.functional.gaussian_blur(images, [9, 9], [sigma, sigma]), most=0.1)


def test_each_image_has_its_own_amount(make_batch: MakeBatch) -> None:
    images = make_batch(3).images
    many = colour.brightness(images, torch.tensor([0.5, 1.0, 1.5]))
    for number, factor in enumerate((0.5, 1.0, 1.5)):
        one = images[number : number + 1]
        assert torch.equal(many[number : number + 1], colour.brightness(one, amounts(one, factor)))


@pytest.mark.parametrize("px", [16, 128])
def test_colour_jitter_is_the_four_changes_in_their_order(make_batch: MakeBatch, px: int) -> None:
    batch = make_batch(5, px)
    out = colour_jitter(0.4, 0.3, 0.5, 0.1)(batch, ImageRandom(0, 0, batch.ids), 0.0)
    drawn = ImageRandom(0, 0, batch.ids).stream("colour_jitter").uniform(-1, 1, count=4)
    expected = colour.brightness(batch.images, 1 + 0.4 * drawn[0])
    expected = colour.contrast(expected, 1 + 0.3 * drawn[1])
    expected = colour.saturation(expected, 1 + 0.5 * drawn[2])
    expected = colour.hue(expected, 0.1 * drawn[3])
    assert torch.equal(out.images, expected)


@pytest.mark.parametrize("px", [16, 128])
@pytest.mark.parametrize(
    ("transform", "stream", "change"),
    [
        (random_greyscale(0.5), "greyscale", colour.greyscale),
        (random_invert(0.5), "invert", colour.invert),
    ],
)
def test_a_share_of_the_images_is_changed(
    make_batch: MakeBatch,
    transform: Callable[..., Batch],
    stream: str,
    change: Callable[[Tensor], Tensor],
    px: int,
) -> None:
    batch = make_batch(16, px)
    out = transform(batch, ImageRandom(0, 0, batch.ids), 0.0)
    chosen = ImageRandom(0, 0, batch.ids).stream(stream).bernoulli(0.5)
    assert 2 < int(chosen.sum()) < 14
    expected = torch.where(chosen[:, None, None, None], change(batch.images), batch.images)
    assert torch.equal(out.images, expected)


def test_blur_strength_is_drawn_for_each_image(make_batch: MakeBatch) -> None:
    batch = make_batch(8, 30)
    out = random_blur(1.0, (0.2, 3.0))(batch, ImageRandom(0, 0, batch.ids), 0.0)
    stream = ImageRandom(0, 0, batch.ids).stream("blur")
    stream.bernoulli(1.0)
    assert torch.equal(out.images, colour.blur(batch.images, stream.uniform(0.2, 3.0), 9))


def test_floats_and_senseless_amounts_are_refused(make_batch: MakeBatch) -> None:
    batch = make_batch(2)
    floats = Batch(batch.images.float(), batch.targets, batch.ids)
    with pytest.raises(UsageError, match=r"uint8 images, not on torch\.float32"):
        colour_jitter(0.4)(floats, ImageRandom(0, 0, batch.ids), 0.0)
    with pytest.raises(UsageError, match=r"hue from 0 to 0\.5"):
        colour_jitter(hue_by=0.6)
    with pytest.raises(UsageError, match=r"range above 0, not 0\.0\.\.1\.0"):
        random_blur(0.5, (0.0, 1.0))
