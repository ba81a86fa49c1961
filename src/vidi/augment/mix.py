"""Parts of an image taken away, and images mixed with one another."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from vidi.augment import memory
from vidi.augment.crop import random_shapes
from vidi.augment.random import ImageRandom, partners
from vidi.augment.transform import Transform
from vidi.augment.warp import GREY
from vidi.batch import Batch
from vidi.errors import UsageError

# Shares are counted in 1/128, so that uint8 images mix exactly in 16 bits (255 * 128 < 2**15), the
# same on every device, and three times as fast as in float32.
_PARTS = 128
# Points of the table that turns a uniform number into a beta number.
_QUANTILES = 4097


def random_erasing(
    p: float,
    scale: tuple[float, float] = (0.02, 1 / 3),
    ratio: tuple[float, float] = (0.3, 10 / 3),
    value: float = GREY,
    *,
    in_place: bool = False,
) -> Transform:
    """A random box painted over with `value`, in a share p of the images (Zhong et al. 2017, arXiv
    1708.04896).

    scale: the box's area as a share of the image's; ratio: its width divided by its height. Where
    none of ten boxes fits, the image stays. in_place: for use after a transform that always makes
    new images; saves a copy.
    """

    def erased(batch: Batch, rng: ImageRandom, done: float) -> Batch:
        del done
        rng = rng.stream("random_erasing")
        chosen = rng.bernoulli(p)
        height, width = batch.images.shape[2:]
        heights, widths, found = random_shapes(rng, (height, width), scale, ratio)
        top, left = rng.integers(height - heights + 1), rng.integers(width - widths + 1)
        boxes = torch.stack((top, left, top + heights, left + widths)) * (chosen & found)
        images = painted(batch.images, boxes, value, in_place=in_place)
        return Batch(images, batch.targets, batch.ids)

    return erased


def cutout(
    side_px: int, p: float = 1.0, value: float = GREY, *, in_place: bool = False
) -> Transform:
    """A square of side_px about a random pixel painted over with `value`; the part of it that is
    outside the image is lost (DeVries and Taylor 2017, arXiv 1708.04552). in_place: as above."""

    def cut(batch: Batch, rng: ImageRandom, done: float) -> Batch:
        del done
        rng = rng.stream("cutout")
        chosen = rng.bernoulli(p)
        height, width = batch.images.shape[2:]
        top = rng.integers(height) - side_px // 2
        left = rng.integers(width) - side_px // 2
        boxes = torch.stack(
            (
                top.clamp(min=0),
                left.clamp(min=0),
                (top + side_px).clamp(max=height),
                (left + side_px).clamp(max=width),
            )
        )
        images = painted(batch.images, boxes * chosen, value, in_place=in_place)
        return Batch(images, batch.targets, batch.ids)

    return cut


def painted(images: Tensor, boxes: Tensor, value: float, *, in_place: bool = False) -> Tensor:
    """images with a box of each painted over; boxes (4, N) int64: top, left, bottom, right (the
    last two are outside)."""
    if not memory.in_main_memory(images):
        paint = torch.full((), round(value), dtype=images.dtype, device=images.device)
        return torch.where(_inside(boxes, images), paint, images)
    out = images if in_place else images.clone()
    for number, (top, left, bottom, right) in enumerate(boxes.T.tolist()):
        if bottom > top and right > left:
            out[number, :, top:bottom, left:right] = round(value)
    return out


def _inside(boxes: Tensor, images: Tensor) -> Tensor:
    """(N, 1, H, W) bool: which pixels are in the box of their image."""
    height, width = images.shape[2:]
    top, left, bottom, right = boxes[:, :, None]
    y = torch.arange(height, device=images.device)
    x = torch.arange(width, device=images.device)
    rows, columns = (y >= top) & (y < bottom), (x >= left) & (x < right)
    inside: Tensor = rows[:, None, :, None] & columns[:, None, None, :]
    return inside


def mixup(alpha: float, num_classes: int) -> Transform:
    """Each image blended with its neighbour (`random.partners`), and the targets alike.

    The image keeps a share from a Beta(alpha, alpha) distribution, drawn for each image, rounded to
    1/128; targets become (N, num_classes) float32 (Zhang et al. 2017, arXiv 1710.09412).
    """
    return mixup_or_cutmix(alpha, 0.0, num_classes)


def cutmix(alpha: float, num_classes: int) -> Transform:
    """A box of each image's neighbour (`random.partners`) put in its place, and targets by area.

    The box has a share of the area from a Beta(alpha, alpha) distribution, the proportions of the
    image, and its middle anywhere; what is outside is cut off, and what is left counts. Targets
    become (N, num_classes) float32 (Yun et al. 2019, arXiv 1905.04899).
    """
    return mixup_or_cutmix(0.0, alpha, num_classes)


def mixup_or_cutmix(mixup_alpha: float, cutmix_alpha: float, num_classes: int) -> Transform:
    """For each image one or the other, equally likely; an alpha of 0 leaves that one out."""
    if mixup_alpha < 0 or cutmix_alpha < 0 or max(mixup_alpha, cutmix_alpha) == 0:
        raise UsageError(
            f"mixing needs an alpha above 0, not {mixup_alpha:g} for mixup and {cutmix_alpha:g} "
            "for cutmix",
            fix="leave the transform out to mix nothing",
        )
    cut_probability = 0.5 if mixup_alpha > 0 and cutmix_alpha > 0 else float(cutmix_alpha > 0)

    def mixed(batch: Batch, rng: ImageRandom, done: float) -> Batch:
        del done
        images = batch.images
        height, width = images.shape[2:]
        partner = partners(len(batch), images.device)
        rng = rng.stream("mix")
        cut = rng.bernoulli(cut_probability)
        share, place_y, place_x = rng.uniform(), rng.uniform(), rng.uniform()

        own = torch.full_like(share, _PARTS)
        if mixup_alpha > 0:
            blend = (beta_quantile(share, mixup_alpha) * _PARTS).round()
            own = torch.where(cut, own, blend)
        boxes = torch.zeros(4, len(batch), dtype=torch.int64, device=images.device)
        if cutmix_alpha > 0:
            side = torch.sqrt(1 - beta_quantile(share, cutmix_alpha)) / 2
            boxes = (
                torch.stack(
                    (
                        ((place_y - side) * height).round().clamp(min=0),
                        ((place_x - side) * width).round().clamp(min=0),
                        ((place_y + side) * height).round().clamp(max=height),
                        ((place_x + side) * width).round().clamp(max=width),
                    )
                ).to(torch.int64)
                * cut
            )
        area = (boxes[2] - boxes[0]) * (boxes[3] - boxes[1])
        kept = torch.where(cut, 1.0 - area / (height * width), own / _PARTS)[:, None]
        targets = soft_targets(batch.targets, num_classes)
        targets = targets * kept + targets.index_select(0, partner) * (1.0 - kept)
        return Batch(_mixed_images(images, own, boxes), targets, batch.ids)

    return mixed


def _mixed_images(images: Tensor, own: Tensor, boxes: Tensor) -> Tensor:
    """own / 128 of each image and the rest of its neighbour, then the box of the neighbour.

    own (N,) float32, whole numbers; boxes (4, N): top, left, bottom, right.
    """
    partner = partners(len(images), images.device)
    if not (memory.in_main_memory(images) and memory.large(images)):
        others = memory.like_rows(memory.rows(images).index_select(0, partner), images)
        out = _blended(images, others, own)
        if memory.in_main_memory(images):
            _paste(out, images, boxes)
            return out
        return torch.where(_inside(boxes, images), others, out)
    out = torch.empty_like(images)
    partner_of: list[int] = partner.tolist()
    blends: list[bool] = (own < _PARTS).tolist()
    table: list[list[int]] = boxes.T.tolist()

    def one(number: int) -> None:
        this, other = (slice(k, k + 1) for k in (number, partner_of[number]))
        if blends[number]:
            out[this] = _blended(images[this], images[other], own[this])
        else:
            out[this] = images[this]
            top, left, bottom, right = table[number]
            box = (slice(None), slice(top, bottom), slice(left, right))
            out[number][box] = images[partner_of[number]][box]

    memory.each(len(images), images.numel(), one)
    return out


def _paste(out: Tensor, images: Tensor, boxes: Tensor) -> None:
    """The box of each image's neighbour, in place."""
    numbers = partners(len(images), images.device).tolist()
    for number, (top, left, bottom, right) in enumerate(boxes.T.tolist()):
        if bottom > top and right > left:
            box = (slice(None), slice(top, bottom), slice(left, right))
            out[number][box] = images[numbers[number]][box]


def _blended(images: Tensor, others: Tensor, own: Tensor) -> Tensor:
    """own / 128 of images and the rest of others; own (N,) float32, whole numbers."""
    weight = own[:, None, None, None]
    if images.dtype != torch.uint8:
        return others.lerp(images, weight.to(images.dtype) / _PARTS)
    share = weight.to(torch.int16)
    mix = images.to(torch.int16).mul_(share).addcmul_(others.to(torch.int16), _PARTS - share)
    return mix.add_(_PARTS // 2).bitwise_right_shift_(7).to(torch.uint8)


def soft_targets(targets: Tensor, num_classes: int) -> Tensor:
    """(N, num_classes) float32: one 1 in each row for class numbers (N,); soft ones as they are."""
    if targets.ndim == 2:
        if targets.shape[1] != num_classes:
            raise UsageError(
                f"targets of {targets.shape[1]} classes, where {num_classes} are expected"
            )
        return targets
    rows = torch.zeros(len(targets), num_classes, device=targets.device)
    return rows.scatter_(1, targets[:, None], 1.0)


def beta_quantile(uniform: Tensor, alpha: float) -> Tensor:
    """Numbers of the Beta(alpha, alpha) distribution from uniform ones (any shape), to about 1e-4.

    By a table of the inverse of its integral, so that one draw is enough (rejection would need a
    number of draws that differs from image to image) and no device is waited for.
    """
    mirrored = torch.minimum(uniform, 1 - uniform)
    table = _beta_table(alpha, uniform.device)
    # The table runs over the lower half of the distribution, 0 .. 1/2, evenly in its square root:
    # finer where it is steep.
    place = torch.sqrt(2 * mirrored) * (_QUANTILES - 1)
    low = place.floor().clamp(0, _QUANTILES - 2)
    index = low.to(torch.int64)
    left, right = table[index], table[index + 1]
    lower = left + (right - left) * (place - low)
    return torch.where(uniform < 0.5, lower, 1 - lower)


@cache
def _beta_table(alpha: float, device: torch.device) -> Tensor:
    """(_QUANTILES,) float32: x with integral(0..x) = k**2 / (_QUANTILES - 1)**2 / 2 at place k."""
    # By x = t**(1/power) the density x**(alpha - 1) (1 - x)**(alpha - 1) loses its pole at 0.
    power = min(alpha, 1.0)
    t = torch.linspace(0, 1, 200_001, dtype=torch.float64) * 0.5**power
    x = t ** (1 / power)
    # dx = x**(1 - power) dt / power
    density = x ** (alpha - power) * (1 - x) ** (alpha - 1)
    if alpha > 1:
        density = torch.exp((alpha - 1) * (torch.log(x * (1 - x)) + 2 * math.log(2)))
    steps = (density[1:] + density[:-1]) / 2
    integral = torch.cat((steps.new_zeros(1), steps.cumsum(0)))
    integral = integral / integral[-1]
    wanted = (torch.arange(_QUANTILES, dtype=torch.float64) / (_QUANTILES - 1)) ** 2
    right = torch.searchsorted(integral, wanted).clamp(1, len(t) - 1)
    gap = integral[right] - integral[right - 1]
    share = torch.where(gap > 0, (wanted - integral[right - 1]) / gap.clamp(min=1e-300), 0.0)
    place = t[right - 1] + (t[right] - t[right - 1]) * share.clamp(0, 1)
    table: Tensor = place ** (1 / power)
    return table.to(torch.float32).to(device)
