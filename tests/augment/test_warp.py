"""Warps: torchvision's, to within one grey level on average."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

from vidi.augment import ImageRandom, affine, perspective, rotation, warp
from vidi.batch import Batch
from vidi.errors import UsageError

MakeBatch = Callable[..., Batch]
INTERPOLATIONS = pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])


def numbers(images: Tensor, value: float) -> Tensor:
    return torch.full((len(images),), value)


def mean_gap(ours: Tensor, theirs: Tensor) -> float:
    assert ours.dtype == theirs.dtype == torch.uint8
    return float((ours.float() - theirs.float()).abs().flatten(1).mean(dim=1).max())


@INTERPOLATIONS
@pytest.mark.parametrize("degrees", [-135.0, -17.0, 0.0, 5.0, 90.0])
def test_rotation_is_torchvisions(
    make_batch: MakeBatch, v2: ModuleType, degrees: float, interpolation: warp.Interpolation
) -> None:
    images = make_batch().images
    ours = warp.warped(images, warp.rotated(numbers(images, degrees)), interpolation, 0.0)
    mode = v2.InterpolationMode(interpolation)
    # Without a fill; with one, torchvision applies the share of the outside twice to edge pixels.
    expected = v2.functional.rotate(images, degrees, mode)
    assert mean_gap(ours, expected) <= 1
    if degrees == 0.0:
        assert torch.equal(ours, images)


@INTERPOLATIONS
@pytest.mark.parametrize("fill", [0.0, 128.0])
@pytest.mark.parametrize(
    ("degrees", "move", "scale", "shear"),
    [
        (0.0, (5.0, -3.0), 1.0, (0.0, 0.0)),
        (0.0, (0.0, 0.0), 1.3, (0.0, 0.0)),
        (0.0, (0.0, 0.0), 1.0, (17.0, 0.0)),
        (0.0, (0.0, 0.0), 1.0, (0.0, -25.0)),
        (30.0, (4.0, 7.0), 0.8, (-10.0, 12.0)),
    ],
)
def test_affine_is_torchvisions(
    make_batch: MakeBatch,
    v2: ModuleType,
    degrees: float,
    move: tuple[float, float],
    scale: float,
    shear: tuple[float, float],
    fill: float,
    interpolation: warp.Interpolation,
) -> None:
    images = make_batch().images
    across, down = (numbers(images, math.tan(math.radians(angle))) for angle in shear)
    matrix = warp.sheared(across, down)
    matrix = torch.bmm(matrix, warp.scaled(numbers(images, scale)))
    # torchvision counts clockwise here, and counter-clockwise in rotate.
    matrix = torch.bmm(matrix, warp.rotated(numbers(images, -degrees)))
    matrix = torch.bmm(matrix, warp.translated(*(numbers(images, px) for px in move)))
    expected = v2.functional.affine(
        images,
        degrees,
        list(move),
        scale,
        list(shear),
        v2.InterpolationMode(interpolation),
        fill=fill or None,
    )
    assert mean_gap(warp.warped(images, matrix, interpolation, fill), expected) <= 1


@INTERPOLATIONS
@pytest.mark.parametrize(
    "corners",
    [
        [(0, 0), (47, 0), (47, 47), (0, 47)],
        [(6, 3), (40, 0), (47, 44), (2, 40)],
        [(-5, -5), (60, 4), (45, 45), (5, 50)],
    ],
)
def test_perspective_is_torchvisions(
    make_batch: MakeBatch,
    v2: ModuleType,
    corners: list[tuple[float, float]],
    interpolation: warp.Interpolation,
) -> None:
    images = make_batch(noise=0.0).images
    middle = (torch.tensor(corners, dtype=torch.float32) - 23.5).expand(len(images), 4, 2)
    ours = warp.warped(images, warp.perspective_matrices(middle, 48, 48), interpolation, 0.0)
    expected = v2.functional.perspective(
        images,
        [[0, 0], [47, 0], [47, 47], [0, 47]],
        [list(corner) for corner in corners],
        v2.InterpolationMode(interpolation),
    )
    # torchvision takes the corners of pixels for their middles, half a pixel beside.
    inside = (slice(None), slice(None), slice(8, -8), slice(8, -8))
    assert mean_gap(ours[inside], expected[inside]) <= 2.5
    if corners[0] == (0, 0):
        assert (ours.int() - images.int()).abs().max() <= 1


def test_corners_go_where_they_are_sent() -> None:
    generator = torch.Generator().manual_seed(0)
    square = torch.tensor([[-9.5, -4.5], [9.5, -4.5], [9.5, 4.5], [-9.5, 4.5]])
    corners = square + 4 * torch.rand(50, 4, 2, generator=generator)
    matrix = warp.perspective_matrices(corners, height=10, width=20)
    places = torch.cat((corners, torch.ones(50, 4, 1)), dim=2) @ matrix.transpose(1, 2)
    back = places[..., :2] / places[..., 2:]
    assert torch.allclose(back, square.expand(50, 4, 2), atol=1e-3)


@pytest.mark.parametrize("px", [16, 128])
@pytest.mark.parametrize(
    "transform",
    [
        rotation(20),
        affine(10, 0.1, (0.9, 1.1), 8),
        perspective(0.4, p=0.5),
    ],
)
def test_random_warps_differ_between_images_and_epochs(
    make_batch: MakeBatch, transform: Callable[..., Batch], px: int
) -> None:
    images = make_batch(1, px).images.expand(12, -1, -1, -1).clone()
    batch = Batch(images, torch.zeros(12, dtype=torch.int64), torch.arange(12))
    first = transform(batch, ImageRandom(0, 0, batch.ids), 0.0).images
    second = transform(batch, ImageRandom(0, 1, batch.ids), 0.0).images
    kinds = {bytes(image.contiguous().flatten().tolist()) for image in (*first, *second)}
    assert len(kinds) >= 10
    # And they are small changes: the middle stays about where it was.
    at = px // 2
    gap = (first[:, :, at, at].float() - images[:, :, at, at].float()).abs()
    assert gap.mean() < 40


def test_a_rotation_is_within_its_range(make_batch: MakeBatch) -> None:
    batch = make_batch(40, 24)
    out = rotation(20, fill=0.0)(batch, ImageRandom(0, 0, batch.ids), 0.0)
    angle = ImageRandom(0, 0, batch.ids).stream("rotation").uniform(-20, 20)
    assert angle.min() < -10 < 10 < angle.max()
    assert torch.equal(out.images, warp.warped(batch.images, warp.rotated(angle), "bilinear", 0.0))


def test_senseless_ranges_are_refused() -> None:
    with pytest.raises(UsageError, match="scale is a range above 0"):
        affine(scale=(0.0, 1.0))
    with pytest.raises(UsageError, match="90 degrees is not below 90"):
        affine(shear_degrees=90)
