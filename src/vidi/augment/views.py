"""Several views of each image, to average what a model says about them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vidi.augment import memory
from vidi.augment_settings import AugmentSettings, ViewKind, WholeViews
from vidi.errors import UsageError


def views(images: Tensor, kind: ViewKind, image_px: int) -> list[Tensor]:
    """Each (N, C, image_px, image_px), in the type of the images (N, C, H, W).

    "plain": the middle. "flip": the middle and its mirror image. "shift": the middle, and that
    moved by a pixel down and to the right, and up and to the left, the edges mirrored outwards
    (Jordan 2024). "five": the middle and the four corners. "shift_flip", "ten": those of "shift" or
    "five" and their mirror images (Krizhevsky et al. 2012).

    Raises:
        UsageError: the images are smaller than image_px, or so little larger that corners would
            show the same.
    """
    height, width = images.shape[2:]
    if min(height, width) < image_px:
        raise UsageError(
            f"views of {image_px} px do not fit into images of {width} x {height} px",
            fix="store the images larger",
        )
    if kind in ("five", "ten") and max(height, width) == image_px:
        raise UsageError(
            f"in images of {width} x {height} px all {kind} crops of {image_px} px are the same",
            fix="use the views 'flip', or store the images larger",
        )
    down, across = height - image_px, width - image_px
    places = [(down // 2, across // 2)]
    if kind in ("five", "ten"):
        places += [(0, 0), (0, across), (down, 0), (down, across)]
    parts = [
        images[:, :, top : top + image_px, left : left + image_px].contiguous(
            memory_format=memory.layout(images)
        )
        for top, left in places
    ]
    match kind:
        case "five":
            return parts
        case "ten":
            return parts + [view.flip(3) for view in parts]
        case _:
            return whole_views(parts[0], kind)


def whole_views(images: Tensor, kind: WholeViews) -> list[Tensor]:
    """As `views`, of images (N, C, H, W) of any shape and nothing cut off; the first are they."""
    found = [images]
    if kind in ("shift", "shift_flip"):
        found += [_moved(images, by) for by in (1, -1)]
    if kind in ("flip", "shift_flip"):
        found += [view.flip(3) for view in found]
    return found


def _moved(images: Tensor, by: int) -> Tensor:
    """By a pixel down and to the right, or up and to the left for -1; the edges are mirrored."""
    for axis in (2, 3):
        last = images.shape[axis] - 1
        order = torch.arange(-by, last + 1 - by, device=images.device).abs()
        images = images.index_select(axis, last - (last - order).abs())
    return images


def best_kind(
    settings: AugmentSettings, store_px: int, *, own: WholeViews = "plain"
) -> ViewKind | None:
    """The most views that show the model nothing it was not trained on; None where there are none.

    Mirror images where training mirrored; corners where images are stored larger than they are
    seen, else a shift by a pixel where training shifted. The model looks at its `own` views by
    itself.
    """
    flipped = settings.horizontal_flip != "none" and own not in ("flip", "shift_flip")
    if store_px > settings.image_px:
        return "ten" if flipped else "five"
    if settings.shifts and own not in ("shift", "shift_flip"):
        return "shift_flip" if flipped else "shift"
    return "flip" if flipped else None


def average_probabilities(logits: Sequence[Tensor]) -> Tensor:
    """(N, classes) float32, rows sum to 1: the mean of the views' probabilities, from their logits
    (N, classes) each."""
    if not logits:
        raise UsageError("there is no view to average")
    return torch.stack([view.to(torch.float32).softmax(dim=1) for view in logits]).mean(dim=0)
