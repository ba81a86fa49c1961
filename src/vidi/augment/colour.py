"""Changes of pixel values. All on uint8 images (N, C, H, W) with one amount for each image.

A change that looks at one value at a time is a table of 256 values for each image, whatever its
formula, and costs one look-up. The formulas are those of torchvision's tensor functions, but for
rounding: to the nearest level here, downwards there, which darkens a little each time.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vidi.augment import memory
from vidi.augment.random import ImageRandom
from vidi.augment.transform import Transform
from vidi.batch import Batch
from vidi.errors import UsageError

# ITU-R 601 luma, as everyone uses for grey.
_LUMA = (0.2989, 0.587, 0.114)


def look_up(images: Tensor, tables: Tensor) -> Tensor:
    """Each value v of image n and channel c becomes tables[n, c, v].

    images (N, C, H, W) uint8; tables (N, C, 256) uint8, or (N, 1, 256) for all channels.
    """
    values = _cells(images, per_channel=tables.shape[1] > 1)
    found = tables.reshape(-1).index_select(0, values.view(-1))
    return memory.like_rows(found.view(len(images), -1), images)


def _cells(images: Tensor, *, per_channel: bool) -> Tensor:
    """(N, C * H * W) int32 in the order of memory: v + 256 * (n * C + c), the number of the cell
    that a value falls into; v + 256 * n when not per_channel."""
    count, channels, height, width = images.shape
    device = images.device
    per_image = 256 * channels if per_channel else 256
    first = torch.arange(count, device=device, dtype=torch.int32)[:, None] * per_image
    cells = memory.rows(images).to(torch.int32)
    if not per_channel:
        return cells.add_(first)
    offsets = torch.arange(channels, device=device, dtype=torch.int32) * 256
    if memory.layout(images) == torch.channels_last:
        # A whole line at a time: adding three numbers in turn would not be vectorised.
        offsets = offsets.repeat(width)
        lines = cells.view(count, height, width * channels)
        lines.add_(first[:, :, None] + offsets)
    else:
        cells.view(count, channels, height * width).add_((first + offsets)[:, :, None])
    return cells


def histogram(images: Tensor) -> Tensor:
    """(N, C, 256) int64: how often each value stands in each channel."""
    count, channels = images.shape[:2]
    cells = _cells(images, per_channel=True).view(-1)
    if memory.in_main_memory(images):
        counts = torch.bincount(cells, minlength=count * channels * 256)
    else:
        counts = torch.zeros(count * channels * 256, dtype=torch.int64, device=images.device)
        counts.scatter_add_(0, cells.long(), torch.ones_like(cells, dtype=torch.int64))
    return counts.view(count, channels, 256)


def _levels(images: Tensor) -> Tensor:
    """(256,) float32: 0, 1, ... 255."""
    return torch.arange(256, dtype=torch.float32, device=images.device)


def _table(values: Tensor) -> Tensor:
    return values.round().clamp(0, 255).to(torch.uint8)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Values times factor (N,)."""
    return look_up(images, _table(_levels(images) * factor[:, None, None]))


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """The distance from the mean grey of the image times factor (N,)."""
    mean = _mean_grey(images)[:, None, None]
    return look_up(images, _table((_levels(images) - mean) * factor[:, None, None] + mean))


def _mean_grey(images: Tensor) -> Tensor:
    """(N,) float32."""
    count, channels = images.shape[:2]
    pixels = images.to(torch.float32)
    if memory.layout(images) == torch.channels_last:
        means = pixels.permute(0, 2, 3, 1).reshape(count, -1, channels).mean(dim=1)
    else:
        means = pixels.mean(dim=(2, 3))
    if channels != 3:
        return means.mean(dim=1)
    return means[:, 0] * _LUMA[0] + means[:, 1] * _LUMA[1] + means[:, 2] * _LUMA[2]


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Only the highest `bits` (N,), 0..8, of each value stay."""
    step = torch.pow(2.0, 8 - bits.to(torch.float32))[:, None, None]
    return look_up(images, _table((_levels(images) / step).floor() * step))


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Values from threshold (N,) on are inverted."""
    levels = _levels(images)
    return look_up(
        images, _table(torch.where(levels >= threshold[:, None, None], 255 - levels, levels))
    )


def autocontrast(images: Tensor) -> Tensor:
    """Each channel stretched to 0..255; one of a single value stays."""
    present = histogram(images) > 0
    low = present.to(torch.uint8).argmax(dim=2, keepdim=True)
    high = 255 - present.flip(2).to(torch.uint8).argmax(dim=2, keepdim=True)
    levels = _levels(images)
    stretched = (levels - low) * (255 / (high - low).clamp(min=1))
    return look_up(images, _table(torch.where(high > low, stretched, levels)))


def equalize(images: Tensor) -> Tensor:
    """Each channel's histogram made flat, by the rule of Pillow and torchvision; a channel of one
    value stays."""
    counts = histogram(images)
    levels = torch.arange(256, device=images.device)
    highest = torch.where(counts > 0, levels, 0).amax(dim=2, keepdim=True)
    step = (counts.sum(dim=2, keepdim=True) - counts.gather(2, highest)) // 255
    before = counts.cumsum(dim=2) - counts
    flat = (before + step // 2) // step.clamp(min=1)
    return look_up(images, torch.where(step > 0, flat, levels).clamp(0, 255).to(torch.uint8))


def invert(images: Tensor) -> Tensor:
    """255 minus each value."""
    return 255 - images


def _grey(pixels: Tensor) -> Tensor:
    """(N, 1, H, W) of float pixels (N, 3, H, W)."""
    weights = pixels.new_tensor(_LUMA) if memory.in_main_memory(pixels) else None
    if weights is not None and memory.layout(pixels) == torch.channels_last:
        return (pixels.permute(0, 2, 3, 1) @ weights)[:, None]
    red, green, blue = pixels.unbind(dim=1)
    return (red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2])[:, None]


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """The distance of each pixel from its grey times factor (N,); nothing to do for one channel."""
    if images.shape[1] != 3:
        return images
    pixels = images.to(torch.float32)
    share = factor[:, None, None, None]
    return memory.like(_grey(pixels) * (1 - share) + pixels * share, images)


def greyscale(images: Tensor) -> Tensor:
    """All three channels the grey of the pixel."""
    if images.shape[1] != 3:
        return images
    return memory.like(_grey(images.to(torch.float32)), images).expand_as(images)


def hue(images: Tensor, shift: Tensor) -> Tensor:
    """Hue turned by shift (N,) of the colour circle, -0.5..0.5; saturation and value stay.

    Through HSV and back (Smith 1978), in the short form with one expression for each channel.
    """
    if images.shape[1] != 3:
        return images
    red, green, blue = images.to(torch.float32).unbind(dim=1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    # Sixths of the circle. A grey has no hue: its chroma is 0, and so it stays.
    safe = chroma.clamp(min=1e-6)
    sixths = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    sixths = sixths + 6 * shift[:, None, None]
    channels = []
    for position in (5, 3, 1):
        k = torch.remainder(sixths + position, 6)
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return memory.like(torch.stack(channels, dim=1), images)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """The distance from a slightly blurred image times factor (N,): 0 is blurred, 1 the image, 2
    sharper. The outermost pixels stay, as in Pillow."""
    channels, height, width = images.shape[1:]
    if min(height, width) < 3:
        return images
    pixels = images.to(torch.float32)
    kernel = pixels.new_full((channels, 1, 3, 3), 1 / 13)
    kernel[:, :, 1, 1] = 5 / 13
    inside = pixels[..., 1:-1, 1:-1]
    blurred = F.conv2d(pixels, kernel, groups=channels)
    share = factor[:, None, None, None]
    out = images.clone(memory_format=memory.layout(images))
    out[..., 1:-1, 1:-1] = memory.like(blurred + (inside - blurred) * share, images)
    return out


def blur(images: Tensor, sigma_px: Tensor, radius_px: int) -> Tensor:
    """Gaussian of sigma_px (N,), cut off at radius_px, mirrored at the edges."""
    height, width = images.shape[2:]
    radius_px = min(radius_px, height - 1, width - 1)
    away = torch.arange(-radius_px, radius_px + 1, device=images.device, dtype=torch.float32)
    weights = torch.exp(-0.5 * (away / sigma_px[:, None]) ** 2)
    weights = (weights / weights.sum(dim=1, keepdim=True))[:, :, None, None, None]
    pixels = images.to(torch.float32)
    for dim, size in ((2, height), (3, width)):
        around = F.pad(pixels, _sides(dim, radius_px), mode="reflect")
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
