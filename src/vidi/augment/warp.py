"""Rotation, translation, shear, scale and perspective: one 3 x 3 matrix for each image.

A matrix takes the place of a pixel in the result, in px from the middle of the image (x to the
right, y down), to the place in the source where its value comes from. Matrices multiply, so that
any chain of these costs one resampling. Without perspective the last row is 0 0 1.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from vidi.augment import memory
from vidi.augment.random import ImageRandom
from vidi.augment.transform import Transform
from vidi.batch import Batch
from vidi.errors import UsageError

Interpolation: TypeAlias = Literal["nearest", "bilinear"]

# Grey in the middle of the range, near the mean that the model subtracts. Black would be a strong
# signal in most photographs.
GREY = 128.0


def matrices(
    like: Tensor,
    rows: tuple[
        tuple[Tensor | float, Tensor | float, Tensor | float],
        tuple[Tensor | float, Tensor | float, Tensor | float],
    ],
) -> Tensor:
    """(N, 3, 3) float32 with the two rows, each entry one number or (N,), and 0 0 1 below."""
    cells = [
        cell if isinstance(cell, Tensor) else torch.full_like(like, cell)
        for row in (*rows, (0.0, 0.0, 1.0))
        for cell in row
    ]
    return torch.stack(cells, dim=1).view(-1, 3, 3)


def rotated(degrees: Tensor) -> Tensor:
    """Counter-clockwise about the middle by degrees (N,)."""
    angle = torch.deg2rad(degrees)
    cos, sin = torch.cos(angle), torch.sin(angle)
    return matrices(degrees, ((cos, -sin, 0.0), (sin, cos, 0.0)))


def translated(right_px: Tensor, down_px: Tensor) -> Tensor:
    """Moved by (N,) px."""
    return matrices(right_px, ((1.0, 0.0, -right_px), (0.0, 1.0, -down_px)))


def scaled(factor: Tensor) -> Tensor:
    """About the middle, larger for a factor (N,) above 1."""
    return matrices(factor, ((1.0 / factor, 0.0, 0.0), (0.0, 1.0 / factor, 0.0)))


def sheared(across: Tensor, down: Tensor) -> Tensor:
    """Lines pushed to the left by `across` px for each px below the middle, then columns up by
    `down` px for each px right of it; both (N,)."""
    level = matrices(across, ((1.0, across, 0.0), (0.0, 1.0, 0.0)))
    return torch.bmm(level, matrices(down, ((1.0, 0.0, 0.0), (down, 1.0, 0.0))))


def perspective_matrices(corners: Tensor, height: int, width: int) -> Tensor:
    """(N, 3, 3): the image's corners go to `corners` (N, 4, 2), x and y in px from the middle, in
    the order top left, top right, bottom right, bottom left.

    The square-to-quadrilateral map in closed form (Heckbert 1989, "Fundamentals of texture mapping
    and image warping", section 2.2.3) and its adjugate: no linear system, so nothing waits for the
    device.
    """
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = (corner.unbind(1) for corner in corners.unbind(1))
    dx1, dx2, sx = x1 - x2, x3 - x2, x0 - x1 + x2 - x3
    dy1, dy2, sy = y1 - y2, y3 - y2, y0 - y1 + y2 - y3
    across = dx1 * dy2 - dx2 * dy1
    g = (sx * dy2 - dx2 * sy) / across
    h = (dx1 * sy - sx * dy1) / across
    a, b, c = x1 - x0 + g * x1, x3 - x0 + h * x3, x0
    d, e, f = y1 - y0 + g * y1, y3 - y0 + h * y3, y0
    # The inverse up to a factor, which the division by the third coordinate takes out.
    one = torch.ones_like(g)
    adjugate = (
        *(e - f * h, c * h - b, b * f - c * e),
        *(f * g - d, a - c * g, c * d - a * f),
        *(d * h - e * g, b * g - a * h, a * e - b * d),
    )
    back = torch.stack(adjugate, dim=1).view(-1, 3, 3)
    # From the unit square to px between the outermost pixel centres.
    square = matrices(
        one,
        (
            (float(width - 1), 0.0, -(width - 1) / 2),
            (0.0, float(height - 1), -(height - 1) / 2),
        ),
    )
    return torch.bmm(square, back)


def warped(
    images: Tensor,
    matrix: Tensor,
    interpolation: Interpolation = "bilinear",
    fill: float = GREY,
    *,
    has_perspective: bool = True,
) -> Tensor:
    """images (N, C, H, W) resampled by matrix (N, 3, 3); `fill` where nothing comes from.

    has_perspective: False where every matrix has the last row 0 0 1, which saves the division.
    """
    height, width = images.shape[2:]
    device = images.device
    x = torch.arange(width, device=device, dtype=torch.float32) - (width - 1) / 2
    y = torch.arange(height, device=device, dtype=torch.float32) - (height - 1) / 2
    # (N, 3, W) and (N, 3, H): what each column and each line adds to the three coordinates.
    across = matrix[:, :, :1] * x
    down = matrix[:, :, 1:2] * y + matrix[:, :, 2:]
    grid = torch.empty(len(images), height, width, 2, device=device)
    # grid_sample counts from -1 to 1 between the outer edges.
    for row, scale in enumerate((2 / width, 2 / height)):
        torch.add(
            (across[:, row] * scale)[:, None, :],
            (down[:, row] * scale)[:, :, None],
            out=grid[..., row],
        )
    if has_perspective:
        grid /= (across[:, 2][:, None, :] + down[:, 2][:, :, None])[..., None]
    pixels = images.to(torch.float32, copy=True)
    if fill:
        # Outside is 0 for grid_sample; the shift makes it `fill`, also along the border.
        pixels -= fill
    pixels = functional.grid_sample(pixels, grid, mode=interpolation, align_corners=False)
    if fill:
        pixels += fill
    return memory.like(pixels, images)


def rotation(
    degrees: float, interpolation: Interpolation = "bilinear", fill: float = GREY
) -> Transform:
    """By a random angle of -degrees .. degrees about the middle."""

    def changed(batch: Batch, rng: ImageRandom, done: float) -> Batch:
        del done
        angle = rng.stream("rotation").uniform(-degrees, degrees)
        return _warped_batch(batch, rotated(angle), interpolation, fill)

    return changed


def affine(
    degrees: float = 0.0,
    translate: float = 0.0,
    scale: tuple[float, float] = (1.0, 1.0),
    shear_degrees: float = 0.0,
    interpolation: Interpolation = "bilinear",
    fill: float = GREY,
) -> Transform:
    """Rotated by up to `degrees`, moved by up to the share `translate` of each side, scaled by a
    factor between the two of `scale`, sheared in both directions by up to `shear_degrees`."""
    if not 0 < scale[0] <= scale[1]:
        raise UsageError(f"scale is a range above 0, not {scale[0]}..{scale[1]}")
    if not abs(shear_degrees) < 90:
        raise UsageError(f"a shear of {shear_degrees} degrees is not below 90")

    def changed(batch: Batch, rng: ImageRandom, done: float) -> Batch:
        del done
        rng = rng.stream("affine")
        height, width = batch.images.shape[2:]
        angle = rng.uniform(-degrees, degrees)
        right = rng.uniform(-translate * width, translate * width)
        down = rng.uniform(-translate * height, translate * height)
        factor = rng.uniform(*scale)
        lean = torch.tan(torch.deg2rad(rng.uniform(-shear_degrees, shear_degrees, count=2)))
        matrix = torch.bmm(sheared(lean[0], lean[1]), scaled(factor))
        matrix = torch.bmm(torch.bmm(matrix, rotated(angle)), translated(right, down))
        return _warped_batch(batch, matrix, interpolation, fill)

    return changed


def perspective(
    distortion: float = 0.5,
    p: float = 0.5,
    interpolation: Interpolation = "bilinear",
    fill: float = GREY,
) -> Transform:
    """Each corner drawn inwards by up to the share `distortion` of half a side, in a share p of the
    images."""

    def changed(batch: Batch, rng: ImageRandom, done: float) -> Batch:
        del done
        rng = rng.stream("perspective")
        chosen = rng.bernoulli(p)
        height, width = batch.images.shape[2:]
        right, down = (width - 1) / 2, (height - 1) / 2
        inwards = 1.0 - distortion * rng.uniform(count=8)
        x = torch.stack((-inwards[0], inwards[1], inwards[2], -inwards[3]), dim=1) * right
        y = torch.stack((-inwards[4], -inwards[5], inwards[6], inwards[7]), dim=1) * down
        matrix = perspective_matrices(torch.stack((x, y), dim=2), height, width)
        return _warped_batch(batch, matrix, interpolation, fill, chosen)

    return changed


def _warped_batch(
    batch: Batch,
    matrix: Tensor,
    interpolation: Interpolation,
    fill: float,
    chosen: Tensor | None = None,
) -> Batch:
    def change(images: Tensor, matrix: Tensor) -> Tensor:
        return warped(images, matrix, interpolation, fill, has_perspective=chosen is not None)

    if chosen is None:
        images = memory.for_all(change, batch.images, matrix)
    else:
        images = memory.where(chosen, change, batch.images, matrix)
    return Batch(images, batch.targets, batch.ids)
