"""Crops and flips: where the pixels come from changes, their values (but for resizing) do not."""

from __future__ import annotations

import math
from typing import Final, Literal, TypeAlias

import torch
from torch import Tensor

from vidi.augment import memory
from vidi.augment.random import ImageRandom
from vidi.augment.transform import Transform
from vidi.augment_settings import Flip
from vidi.batch import Batch
from vidi.errors import UsageError

Border: TypeAlias = Literal["reflect", "zero"]

# How often a box that does not fit is drawn again before the middle is taken: the number that
# everyone uses since the first published implementation. Eight in ten fit at the first attempt.
_ATTEMPTS: Final = 10
_RESIZE: Final = torch.ops.aten._upsample_bilinear2d_aa.out


def centre_crop(image_px: int) -> Transform:
    """The middle square; where the margin is odd, the extra line stays at the bottom or right."""

    def cropped(batch: Batch, rng: ImageRandom, done: float) -> Batch:
        del rng, done
        height, width = batch.images.shape[-2:]
        _check_room(height, width, image_px)
        if (height, width) == (image_px, image_px):
            return batch
        top, left = (height - image_px) // 2, (width - image_px) // 2
        images = batch.images[..., top : top + image_px, left : left + image_px]
        # A view of the larger images would make every later step slower than this copy.
        return _with(batch, images.contiguous(memory_format=memory.layout(batch.images)))

    return cropped


def pad_crop(image_px: int, padding_px: int, border: Border = "reflect") -> Transform:
    """A random window of image_px squared out of the images with `padding_px` more on each side.

    border "reflect" mirrors the image outwards without repeating its edge (as in airbench, Jordan
    2024, arXiv 2404.00498: better than black on CIFAR-10), "zero" is black.
    """

    def cropped(batch: Batch, rng: ImageRandom, done: float) -> Batch:
        del done
        height, width = batch.images.shape[-2:]
        _check_room(height + 2 * padding_px, width + 2 * padding_px, image_px)
        if border == "reflect" and padding_px >= min(height, width):
            raise UsageError(
                f"an image of {width} x {height} px cannot be mirrored {padding_px} px outwards",
                fix="pad less, or with border 'zero'",
            )
        rng = rng.stream("pad_crop")
        top = rng.integers(height + 2 * padding_px - image_px + 1)
        left = rng.integers(width + 2 * padding_px - image_px + 1)
        images = _windows(batch.images, top, left, image_px, padding_px, border)
        return _with(batch, images)

    return cropped


def random_resized_crop(
    image_px: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    *,
    horizontal_flip: Flip = "none",
) -> Transform:
    """A random box of each image, resized to image_px squared (bilinear, antialiased).

    scale: the box's area as a share of the image's, equally likely between the two. ratio: its
    width divided by its height, equally likely on a logarithmic scale. A box that does not fit is
    drawn again, up to ten times; then the middle is taken, as large as `ratio` allows (Szegedy et
    al. 2014, arXiv 1409.4842). horizontal_flip: the same as horizontal_flip() or alternating_flip()
    afterwards, in less time.
    """

    def cropped(batch: Batch, rng: ImageRandom, done: float) -> Batch:
        del done
        height, width = batch.images.shape[-2:]
        boxes = random_boxes(rng.stream("random_resized_crop"), (height, width), scale, ratio)
        mirrored = None
        if horizontal_flip == "random":
            mirrored = _random_flips(rng, 0.5)
        elif horizontal_flip == "alternating":
            mirrored = _alternating_flips(rng)
        return _with(batch, resized_boxes(batch.images, boxes, image_px, mirrored))

    return cropped


def random_boxes(
    rng: ImageRandom,
    size: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Tensor:
    """(4, N) int64: top, left, height and width of a random box in each image.

    size: height and width of the images; scale, ratio: as for random_resized_crop.
    """
    height, width = size
    heights, widths, found = random_shapes(rng, size, scale, ratio)
    middle_height, middle_width = _largest(height, width, ratio)
    heights = torch.where(found, heights, middle_height)
    widths = torch.where(found, widths, middle_width)
    top, left = rng.integers(height - heights + 1), rng.integers(width - widths + 1)
    top = torch.where(found, top, (height - middle_height) // 2)
    left = torch.where(found, left, (width - middle_width) // 2)
    return torch.stack((top, left, heights, widths))


def random_shapes(
    rng: ImageRandom,
    size: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[Tensor, Tensor, Tensor]:
    """Height and width, (N,) int64, of a random box that fits, and whether one was found, (N,)."""
    height, width = size
    areas = rng.uniform(*scale, count=_ATTEMPTS) * (height * width)
    ratios = rng.uniform(math.log(ratio[0]), math.log(ratio[1]), count=_ATTEMPTS).exp()
    widths = (areas * ratios).sqrt().round().to(torch.int64)
    heights = (areas / ratios).sqrt().round().to(torch.int64)
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first = fits.to(torch.uint8).argmax(dim=0, keepdim=True)
    return heights.gather(0, first)[0], widths.gather(0, first)[0], fits.any(dim=0)


def _largest(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int]:
    """Height and width of the largest box of an allowed ratio."""
    if width / height < ratio[0]:
        return max(1, min(height, round(width / ratio[0]))), width
    if width / height > ratio[1]:
        return height, max(1, min(width, round(height * ratio[1])))
    return height, width


def resized_boxes(
    images: Tensor, boxes: Tensor, image_px: int, mirrored: Tensor | None = None
) -> Tensor:
    """A box of each image, resized to image_px squared: bilinear, antialiased, edges kept.

    images (N, C, H, W), uint8 or float; boxes (4, N) int64: top, left, height, width; mirrored
    (N,) bool: which of the results have left and right exchanged.
    In main memory by torch's fixed-point kernel, one image after the other; on an accelerator all
    at once by matrix products. The two agree to within one grey level.
    """
    if not memory.in_main_memory(images):
        resized = _resized_by_products(images, boxes, image_px)
        return resized if mirrored is None else flipped_where(resized, mirrored, 3)
    count, channels = images.shape[:2]
    size = [image_px, image_px]
    out = torch.empty(
        (count, channels, *size), dtype=images.dtype, memory_format=memory.layout(images)
    )
    # All that is quick is done here and now. The threads then have one long call for each image:
    # with several short ones, waiting for one another takes them half as long as the work.
    stride, start = images.stride(), images.storage_offset()
    sources = [
        images.as_strided(
            (1, channels, height, width),
            stride,
            start + number * stride[0] + top * stride[2] + left * stride[3],
        )
        for number, (top, left, height, width) in enumerate(boxes.T.tolist())
    ]
    targets = torch.split(out, 1)
    turn = [False] * count if mirrored is None else mirrored.tolist()

    def resize(number: int) -> None:
        target = targets[number]
        # What functional.interpolate calls, which cannot be told where to write.
        _RESIZE(sources[number], size, False, None, None, out=target)
        if turn[number]:
            target.copy_(target.flip(3))

    memory.each(count, out.numel(), resize)
    return out


def _resized_by_products(images: Tensor, boxes: Tensor, image_px: int) -> Tensor:
    top, left, box_height, box_width = boxes
    count, channels, height, width = images.shape
    down = _weights(top, box_height, height, image_px)
    across = _weights(left, box_width, width, image_px)
    pixels = images.permute(0, 2, 3, 1).to(down.dtype).reshape(count, height, width * channels)
    pixels = torch.bmm(down, pixels).view(count, image_px, width, channels)
    pixels = pixels.transpose(1, 2).reshape(count, width, image_px * channels)
    pixels = torch.bmm(across, pixels).view(count, image_px, image_px, channels)
    resized = memory.like(pixels.permute(0, 3, 2, 1), images)
    return memory.in_layout_of(resized, images)


def _weights(start: Tensor, length: Tensor, size: int, image_px: int) -> Tensor:
    """(N, image_px, size) float32: what share each of `size` lines has in each line of the result.

    start, length: (N,) int64, the lines that are resized. A triangle as wide as a line of the
    result (at least as one line of the source), cut off at the box and normed to 1.
    """
    device = start.device
    step = (length.to(torch.float32) / image_px)[:, None, None]
    lines = torch.arange(size, device=device, dtype=torch.float32)
    centres = (torch.arange(image_px, device=device, dtype=torch.float32)[:, None] + 0.5) * step
    away = (lines - start[:, None, None] + 0.5 - centres) / step.clamp(min=1.0)
    weights = (1.0 - away.abs()).clamp(min=0.0)
    inside = (lines >= start[:, None, None]) & (lines < (start + length)[:, None, None])
    weights = weights * inside
    return weights / weights.sum(dim=2, keepdim=True)


def horizontal_flip(p: float = 0.5, *, in_place: bool = False) -> Transform:
    """Left and right exchanged, in a share p of the images.

    in_place: for use after a transform that always makes new images; saves a copy.
    """

    def flipped(batch: Batch, rng: ImageRandom, done: float) -> Batch:
        del done
        images = flipped_where(batch.images, _random_flips(rng, p), 3, in_place=in_place)
        return _with(batch, images)

    return flipped


def alternating_flip(*, in_place: bool = False) -> Transform:
    """Left and right exchanged in every second epoch; in which, is drawn once for each image.

    Two epochs in a row always show both sides, where random flips show the same one twice half of
    the time (Jordan 2024, arXiv 2404.00498). in_place: as for horizontal_flip.
    """

    def flipped(batch: Batch, rng: ImageRandom, done: float) -> Batch:
        del done
        images = flipped_where(batch.images, _alternating_flips(rng), 3, in_place=in_place)
        return _with(batch, images)

    return flipped


def vertical_flip(p: float = 0.5, *, in_place: bool = False) -> Transform:
    """Top and bottom exchanged, in a share p of the images. in_place: as for horizontal_flip."""

    def flipped(batch: Batch, rng: ImageRandom, done: float) -> Batch:
        del done
        chosen = rng.stream("vertical_flip").bernoulli(p)
        return _with(batch, flipped_where(batch.images, chosen, 2, in_place=in_place))

    return flipped


def _random_flips(rng: ImageRandom, p: float) -> Tensor:
    return rng.stream("horizontal_flip").bernoulli(p)


def _alternating_flips(rng: ImageRandom) -> Tensor:
    first = rng.in_every_epoch().stream("alternating_flip").integers(2)
    return (first + rng.epoch) % 2 == 1


def flipped_where(images: Tensor, chosen: Tensor, dim: int, *, in_place: bool = False) -> Tensor:
    """images (N, C, H, W) with dimension `dim` reversed where chosen (N,) bool.

    in_place: images may be overwritten, which saves a copy in main memory.
    """
    if not memory.in_main_memory(images):
        return torch.where(chosen[:, None, None, None], images.flip(dim), images)
    where = chosen.nonzero().squeeze(1)
    if not len(where):
        return images
    out = images if in_place else images.clone(memory_format=memory.layout(images))
    if memory.large(images):
        numbers = where.tolist()

        def flip(k: int) -> None:
            number = numbers[k]
            out[number] = images[number : number + 1].flip(dim)[0]

        memory.each(len(numbers), len(numbers) * images[0].numel(), flip)
    else:
        turned = memory.like_rows(memory.rows(images).index_select(0, where), images).flip(dim)
        memory.write_rows(out, where, turned)
    return out


def _windows(
    images: Tensor, top: Tensor, left: Tensor, image_px: int, padding_px: int, border: Border
) -> Tensor:
    """image_px squared out of each image (N, C, H, W) with padding_px more on each side.

    top, left (N,) int64: where each window starts, counted in the padded image. Lines get longer by
    the padding; lines above and below are not made but looked up. Every piece of a line is a row of
    one overlapping view, numbered by where it starts, so that one index_select copies whole pieces:
    ten times faster than indexing pixels. The result is channels_last in memory.
    """
    count, channels, height, width = images.shape
    line_px = width + 2 * padding_px
    num_lines = count * height
    # One line more, which stays black.
    lines = images.new_empty(num_lines + 1, line_px, channels)
    lines[-1] = 0
    inside = lines[:-1].view(count, height, line_px, channels)
    inside[:, :, padding_px : padding_px + width].copy_(images.permute(0, 2, 3, 1))
    if border == "zero":
        lines[:, :padding_px] = 0
        lines[:, line_px - padding_px :] = 0
    else:
        for k in range(padding_px):
            lines[:, padding_px - 1 - k] = lines[:, padding_px + 1 + k]
            lines[:, line_px - padding_px + k] = lines[:, line_px - padding_px - 2 - k]

    first_line = torch.arange(count, device=top.device)[:, None] * height
    y = top[:, None] + (torch.arange(image_px, device=top.device) - padding_px)
    if border == "zero":
        line = torch.where((y >= 0) & (y < height), first_line + y, num_lines)
    else:
        # Mirrored at 0 and at height - 1, which are not repeated.
        y = y.abs()
        line = first_line + torch.minimum(y, 2 * (height - 1) - y)
    pieces = lines.as_strided(
        (lines.shape[0] * line_px - image_px + 1, image_px * channels), (channels, 1)
    )
    cut = pieces.index_select(0, (line * line_px + left[:, None]).view(-1))
    return cut.view(count, image_px, image_px, channels).permute(0, 3, 1, 2)


def _with(batch: Batch, images: Tensor) -> Batch:
    return Batch(images, batch.targets, batch.ids)


def _check_room(height: int, width: int, image_px: int) -> None:
    if min(height, width) < image_px:
        raise UsageError(
            f"a crop of {image_px} px does not fit into images of {width} x {height} px",
            fix="store the images larger, or ask for a smaller image_px",
        )
