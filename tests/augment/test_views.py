"""Several views of an image, and what a model says about them on average."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch

from vidi.augment import average_probabilities, best_kind, views
from vidi.augment_settings import AugmentSettings, Flip, ViewKind
from vidi.batch import Batch
from vidi.errors import UsageError

MakeBatch = Callable[..., Batch]


def test_plain_is_the_middle_and_flip_adds_its_mirror_image(
    make_batch: MakeBatch, v2: ModuleType
) -> None:
    images = make_batch(3, 20).images
    middle = v2.functional.center_crop(images, [16, 16])
    (plain,) = views(images, "plain", 16)
    assert torch.equal(plain, middle)
    both = views(images, "flip", 16)
    assert torch.equal(both[0], middle)
    assert torch.equal(both[1], v2.functional.horizontal_flip(middle))
    assert len(both) == 2


def test_five_and_ten_crops_are_torchvisions(make_batch: MakeBatch, v2: ModuleType) -> None:
    images = make_batch(2, 20).images
    top_left, top_right, bottom_left, bottom_right, middle = v2.functional.five_crop(
        images, [16, 16]
    )
    expected = [middle, top_left, top_right, bottom_left, bottom_right]
    five, ten = views(images, "five", 16), views(images, "ten", 16)
    assert len(five) == 5
    assert len(ten) == 10
    for ours, theirs in zip(five, expected, strict=True):
        assert torch.equal(ours, theirs)
        assert ours.is_contiguous(memory_format=torch.channels_last)
    for ours, theirs in zip(ten, [*expected, *(view.flip(3) for view in expected)], strict=True):
        assert torch.equal(ours, theirs)


def test_shifted_views_are_moved_by_a_pixel_with_their_edges_mirrored(
    make_batch: MakeBatch,
) -> None:
    images = make_batch(2, 9).images
    middle, down, up = views(images, "shift", 9)
    assert torch.equal(middle, images)
    assert torch.equal(down[:, :, 1:, 1:], images[:, :, :-1, :-1])
    assert torch.equal(up[:, :, :-1, :-1], images[:, :, 1:, 1:])
    around = torch.nn.functional.pad(images.float(), (1, 1, 1, 1), mode="reflect")
    assert torch.equal(down.float(), around[:, :, :-2, :-2])
    assert torch.equal(up.float(), around[:, :, 2:, 2:])
    both = views(images, "shift_flip", 9)
    assert len(both) == 6
    assert torch.equal(both[4], down.flip(3))


def test_views_that_would_not_differ_or_fit_are_refused(make_batch: MakeBatch) -> None:
    images = make_batch(1, 16).images
    with pytest.raises(UsageError, match="all five crops of 16 px are the same"):
        views(images, "five", 16)
    with pytest.raises(UsageError, match="views of 17 px do not fit into images of 16 x 16 px"):
        views(images, "plain", 17)


@pytest.mark.parametrize(
    ("flip", "store_px", "kind"),
    [("none", 8, None), ("random", 8, "flip"), ("none", 10, "five"), ("alternating", 10, "ten")],
)
def test_the_views_are_those_that_training_showed(
    flip: Flip, store_px: int, kind: str | None
) -> None:
    settings = AugmentSettings(image_px=8, num_classes=3, horizontal_flip=flip)
    assert best_kind(settings, store_px) == kind
    shifted = settings.model_copy(update={"crop": "pad", "crop_padding_px": 1})
    more = {None: "shift", "flip": "shift_flip"}
    assert best_kind(shifted, store_px) == more.get(kind, kind)
    fewer: dict[ViewKind | None, ViewKind | None] = {"flip": None, "ten": "five"}
    assert best_kind(settings, store_px, own="flip") == fewer.get(kind, kind)
    if store_px == 8:
        assert best_kind(shifted, store_px, own="shift") == kind
        assert best_kind(shifted, store_px, own="shift_flip") is None


def test_probabilities_are_averaged_and_not_logits() -> None:
    sure, unsure = torch.tensor([[10.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    mean = average_probabilities([sure, unsure])
    assert mean.tolist() == [pytest.approx([0.75, 0.25], abs=1e-4)]
    assert average_probabilities([sure.to(torch.bfloat16)]).dtype == torch.float32
    with pytest.raises(UsageError, match="no view"):
        average_probabilities([])
