"""Changes of pixel values. All on uint8 images (N, C, H, W) with one amount for each image.

The formulas are those of torchvision's tensor functions, but for rounding: to the nearest level
here, downwards there, which darkens a little each time. They work on images of any layout, and fast
on planar ones (see memory.planar).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from vidi.augment import memory
from vidi.augment.random import ImageRandom
from vidi.augment.transform import Transform
from vidi.batch import Batch
from vidi.errors import UsageError

# ITU-R 601 luma, as everyone uses for grey.
_LUMA = (0.2989, 0.587, 0.114)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Values times factor (N,)."""
    return memory.like(_pixels(images).mul_(_each(factor)), images)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """The distance from the mean grey of the image times factor (N,)."""
    pixels = _pixels(images)
    means = pixels.mean(dim=(2, 3))
    if images.shape[1] == 3:
        mean = means[:, 0] * _LUMA[0] + means[:, 1] * _LUMA[1] + means[:, 2] * _LUMA[2]
    else:
        mean = means.mean(dim=1)
    return memory.like(pixels.mul_(_each(factor)).add_(_each(mean * (1 - factor))), images)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Only the highest `bits` (N,), whole numbers 0..8, of each value stay."""
    mask = 256 - torch.pow(2.0, 8 - bits.to(torch.float32))
    return images & _each(mask.to(torch.uint8))


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Values from threshold (N,) on are inverted."""
    values = images.to(torch.int16)
    # -1, all bits, from the threshold on, and 0 below it: the sign of what is missing to it.
    beyond = (_each(threshold.ceil().to(torch.int16)) - 1 - values) >> 15
    return (values ^ (beyond & 255)).to(torch.uint8)


def autocontrast(images: Tensor) -> Tensor:
    """Each channel stretched to 0..255; one of a single value stays."""
    values = images.flatten(2)
    # Not aminmax, which is forty times slower than both.
    low, high = values.amin(dim=2), values.amax(dim=2)
    low, width = low.to(torch.float32), (high - low).to(torch.float32)
    scale = torch.where(width > 0, 255 / width.clamp(min=1), 1.0)
    low = torch.where(width > 0, low, 0.0)
    pixels = _pixels(images).sub_(low[:, :, None, None]).mul_(scale[:, :, None, None])
    return memory.like(pixels, images)


def equalize(images: Tensor) -> Tensor:
    """Each channel's histogram made flat, by the rule of Pillow and torchvision; a channel of one
    value stays."""
    count, channels = images.shape[:2]
    # Each channel of each image has 256 cells of its own, so that one count and one look-up do.
    first = torch.arange(count * channels, device=images.device, dtype=torch.int32) * 256
    cells = memory.planar(images).to(torch.int32).add_(first.view(count, channels, 1, 1)).view(-1)
    num_cells = count * channels * 256
    if memory.in_main_memory(images):
        counts = torch.bincount(cells, minlength=num_cells)
    else:
        # bincount asks the device for the largest value.
        counts = torch.zeros(num_cells, dtype=torch.int64, device=images.device)
        counts.scatter_add_(0, cells.long(), torch.ones_like(cells, dtype=torch.int64))
    counts = counts.view(-1, 256)
    levels = torch.arange(256, device=images.device)
    highest = torch.where(counts > 0, levels, 0).amax(dim=1, keepdim=True)
    step = (counts.sum(dim=1, keepdim=True) - counts.gather(1, highest)) // 255
    before = counts.cumsum(dim=1) - counts
    flat = (before + step // 2) // step.clamp(min=1)
    table = torch.where(step > 0, flat, levels).clamp_(0, 255).to(torch.uint8)
    return table.view(-1).index_select(0, cells).view(images.shape)


def invert(images: Tensor) -> Tensor:
    """255 minus each value."""
    return 255 - images


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """The distance of each pixel from its grey times factor (N,); nothing to do for one channel."""
    if images.shape[1] != 3:
        return images
    pixels = _pixels(images)
    grey = _grey(pixels).mul_(_each(1 - factor))
    return memory.like(pixels.mul_(_each(factor)).add_(grey), images)


def greyscale(images: Tensor) -> Tensor:
    """All three channels the grey of the pixel."""
    if images.shape[1] != 3:
        return images
    return memory.like(_grey(_pixels(images)), images).expand_as(images)


def hue(images: Tensor, shift: Tensor) -> Tensor:
    """Hue turned by shift (N,) of the colour circle, -0.5..0.5; saturation and value stay.

    Through HSV and back (Smith 1978), in the short form with one expression for each channel.
    """
    if images.shape[1] != 3:
        return images
    red, green, blue = _pixels(images).unbind(dim=1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    # Sixths of the circle. A grey has no hue: its chroma is 0, and so it stays.
    safe = chroma.clamp(min=1e-6)
    sixths = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    sixths = sixths.add_(6 * shift[:, None, None])
    channels = []
    for position in (5, 3, 1):
        k = torch.remainder(sixths + position, 6)
        channels.append(value - torch.minimum(k, 4 - k).clamp_(0, 1).mul_(chroma))
    return memory.like(torch.stack(channels, dim=1), images)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """The distance from a slightly blurred image times factor (N,): 0 is blurred, 1 the image, 2
    sharper. The outermost pixels stay, as in Pillow."""
    height, width = images.shape[2:]
    if min(height, width) < 3:
        return images
    pixels = _pixels(images)
    # Each pixel five times, its eight neighbours once: the sum of 3 x 3 and four times the middle.
    # Sums of slices, for a convolution with a kernel for each channel is slow in this layout.
    lines = pixels[:, :, :-2] + pixels[:, :, 1:-1]
    lines.add_(pixels[:, :, 2:])
    blurred = lines[..., :-2] + lines[..., 1:-1]
    inside = pixels[:, :, 1:-1, 1:-1]
    blurred.add_(lines[..., 2:]).add_(inside, alpha=4).mul_(_each((1 - factor) / 13))
    inside.mul_(_each(factor)).add_(blurred)
    return memory.like(pixels, images)


def _pixels(images: Tensor) -> Tensor:
    """A float32 copy, to write over."""
    return images.to(torch.float32, copy=True)


def _each(amount: Tensor) -> Tensor:
    """(N, 1, 1, 1), to meet images."""
    return amount[:, None, None, None]


def _grey(pixels: Tensor) -> Tensor:
    """(N, 1, H, W) of float pixels (N, 3, H, W)."""
    red, green, blue = pixels.split_with_sizes((1, 1, 1), dim=1)
    return (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])


def blur(images: Tensor, sigma_px: Tensor, radius_px: int) -> Tensor:
    """Gaussian of sigma_px (N,), cut off at radius_px, mirrored at the edges."""
    height, width = images.shape[2:]
    radius_px = min(radius_px, height - 1, width - 1)
    away = torch.arange(-radius_px, radius_px + 1, device=images.device, dtype=torch.float32)
    weights = torch.exp(-0.5 * (away / sigma_px[:, None]) ** 2)
    weights = (weights / weights.sum(dim=1, keepdim=True))[:, :, None, None, None]
    pixels = _pixels(images)
    for dim, size in ((2, height), (3, width)):
        around = functional.pad(pixels, _sides(dim, radius_px), mode="reflect")
        pixels = around.narrow(dim, 0, size) * weights[:, 0]
        for k in range(1, 2 * radius_px + 1):
            pixels = pixels.addcmul_(around.narrow(dim, k, size), weights[:, k])
    return memory.like(pixels, images)


def _sides(dim: int, padding_px: int) -> tuple[int, int, int, int]:
    return (0, 0, padding_px, padding_px) if dim == 2 else (padding_px, padding_px, 0, 0)


def colour_jitter(
    brightness_by: float = 0.0,
    contrast_by: float = 0.0,
    saturation_by: float = 0.0,
    hue_by: float = 0.0,
) -> Transform:
    """Brightness, contrast and saturation each times a factor of 1 - by .. 1 + by (not below 0),
    then the hue turned by -hue_by .. hue_by (at most 0.5) of the circle, in this order."""
    if min(brightness_by, contrast_by, saturation_by) < 0 or not 0 <= hue_by <= 0.5:
        raise UsageError(
            "colour jitter takes amounts from 0 on, and for the hue from 0 to 0.5, not "
            f"{brightness_by}, {contrast_by}, {saturation_by} and {hue_by}"
        )

    def jittered(batch: Batch, rng: ImageRandom, done: float) -> Batch:
        del done
        rng = rng.stream("colour_jitter")
        amounts = rng.uniform(-1.0, 1.0, count=4)
        images = check_uint8(batch.images)
        changes = (
            (brightness, brightness_by, 1.0),
            (contrast, contrast_by, 1.0),
            (saturation, saturation_by, 1.0),
            (hue, hue_by, 0.0),
        )
        for (change, by, middle), amount in zip(changes, amounts, strict=True):
            if by > 0:
                factor = middle + by * amount
                images = memory.for_all(change, images, factor.clamp(min=0.0 if middle else -0.5))
        return Batch(images, batch.targets, batch.ids)

    return jittered


def random_greyscale(p: float) -> Transform:
    """Without colour, in a share p of the images."""

    def changed(batch: Batch, rng: ImageRandom, done: float) -> Batch:
        del done
        chosen = rng.stream("greyscale").bernoulli(p)
        images = memory.where(chosen, greyscale, check_uint8(batch.images))
        return Batch(images, batch.targets, batch.ids)

    return changed


def random_invert(p: float) -> Transform:
    """255 minus each value, in a share p of the images."""

    def changed(batch: Batch, rng: ImageRandom, done: float) -> Batch:
        del done
        chosen = rng.stream("invert").bernoulli(p)
        return Batch(
            memory.where(chosen, invert, check_uint8(batch.images)), batch.targets, batch.ids
        )

    return changed


def random_blur(p: float, sigma_px: tuple[float, float] = (0.1, 2.0)) -> Transform:
    """Gaussian blur of a sigma between the two, in a share p of the images; cut off at 3 sigma."""
    low, high = sigma_px
    if not 0 < low <= high:
        raise UsageError(f"sigma_px is a range above 0, not {low}..{high}")
    radius_px = max(1, math.ceil(3 * high))

    def blurred(batch: Batch, rng: ImageRandom, done: float) -> Batch:
        del done
        rng = rng.stream("blur")
        chosen, sigma = rng.bernoulli(p), rng.uniform(low, high)

        def change(images: Tensor, sigma_px: Tensor) -> Tensor:
            return blur(images, sigma_px, radius_px)

        images = memory.where(chosen, change, check_uint8(batch.images), sigma)
        return Batch(images, batch.targets, batch.ids)

    return blurred


def check_uint8(images: Tensor) -> Tensor:
    """The images, which must be uint8."""
    if images.dtype != torch.uint8:
        raise UsageError(
            f"changes of pixel values work on uint8 images, not on {images.dtype}",
            fix="put your own transform that makes floats after these",
        )
    return images
