"""Every built-in keeps the contract, on any device, in any number of threads, in any batch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vidi import augment
from vidi.augment import ImageRandom, Transform, memory
from vidi.batch import Batch
from vidi.testing import check_transform

MakeBatch = Callable[..., Batch]

BUILT_IN: dict[str, Transform] = {
    "affine": augment.affine(10, 0.1, (0.9, 1.1), 5),
    "alternating_flip": augment.alternating_flip(),
    "augmix": augment.augmix(),
    "centre_crop": augment.centre_crop(24),
    "colour_jitter": augment.colour_jitter(0.4, 0.4, 0.4, 0.1),
    "compose": augment.compose([augment.horizontal_flip(), augment.mixup(0.2, 10)]),
    "cutmix": augment.cutmix(1.0, 10),
    "cutout": augment.cutout(8),
    "during": augment.during(augment.vertical_flip(), 0.4),
    "horizontal_flip": augment.horizontal_flip(),
    "mixup": augment.mixup(0.4, 10),
    "mixup_or_cutmix": augment.mixup_or_cutmix(0.4, 1.0, 10),
    "pad_crop": augment.pad_crop(32, 4),
    "pad_crop zero": augment.pad_crop(32, 4, "zero"),
    "perspective": augment.perspective(),
    "policy light": augment.policy("light", grey=False),
    "policy medium": augment.policy("medium", grey=False),
    "policy none": augment.policy("none", grey=False),
    "policy strong": augment.policy("strong", grey=True, strength=augment.rising(0.5)),
    "rand_augment": augment.rand_augment(),
    "random_blur": augment.random_blur(0.5),
    "random_erasing": augment.random_erasing(0.5),
    "random_greyscale": augment.random_greyscale(0.5),
    "random_invert": augment.random_invert(0.5),
    "random_resized_crop": augment.random_resized_crop(24),
    "random_resized_crop flip": augment.random_resized_crop(24, horizontal_flip="random"),
    "rotation": augment.rotation(20),
    "trivial_augment": augment.trivial_augment(),
    "vertical_flip": augment.vertical_flip(),
}
# These only move pixels, or mix them in whole numbers: the same on every device, bit for bit.
EXACT = (
    *("alternating_flip", "centre_crop", "compose", "cutmix", "cutout", "during"),
    *("horizontal_flip", "mixup", "mixup_or_cutmix", "pad_crop", "pad_crop zero", "policy none"),
    *("random_erasing", "random_invert", "vertical_flip"),
)
EACH = pytest.mark.parametrize("name", BUILT_IN)


def test_every_public_transform_is_checked() -> None:
    makers = {
        name
        for name in augment.__all__
        if str(getattr(getattr(augment, name), "__annotations__", {}).get("return")) == "Transform"
    }
    checked = {name.split()[0] for name in BUILT_IN}
    assert makers - checked == {"from_settings"}


@EACH
def test_built_ins_keep_the_contract(name: str) -> None:
    check_transform(BUILT_IN[name])


@EACH
@pytest.mark.parametrize("px", [32, 128])
def test_built_ins_do_the_same_on_a_device_and_never_wait_for_it(
    make_batch: MakeBatch, as_on_a_device: TorchDispatchMode, name: str, px: int
) -> None:
    transform = BUILT_IN[name]
    batch = make_batch(7, px)
    rng = ImageRandom(0, 2, batch.ids)
    # What is kept from one step to the next, tables mostly, is made in the first.
    transform(batch, ImageRandom(0, 2, batch.ids), 1.0)
    with as_on_a_device:
        there = transform(batch, rng, 1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "in_main_memory", lambda images: images is not None)
        here = transform(batch, ImageRandom(0, 2, batch.ids), 1.0)
    assert there.images.dtype == here.images.dtype
    assert there.images.is_contiguous(memory_format=torch.channels_last)
    if name in EXACT:
        assert torch.equal(there.images, here.images)
    else:
        gap = (there.images.float() - here.images.float()).abs()
        assert gap.flatten(1).mean(dim=1).max() <= 0.5
    assert torch.equal(there.targets, here.targets)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@EACH
def test_the_number_of_threads_changes_nothing(
    make_batch: MakeBatch, threads: Callable[[int], None], name: str
) -> None:
    batch = make_batch(9, 128)
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(BUILT_IN[name](batch, ImageRandom(0, 2, batch.ids), 1.0))
        assert torch.get_num_threads() == count
    for other in results[1:]:
        assert torch.equal(results[0].images, other.images)
        assert torch.equal(results[0].targets, other.targets)


def test_an_error_in_a_thread_arrives(threads: Callable[[int], None]) -> None:
    def work(number: int) -> None:
        if number == 5:
            raise ZeroDivisionError("image 5")

    threads(2)
    with pytest.raises(ZeroDivisionError, match="image 5"):
        memory.each(9, 1 << 30, work)


def wrong(**parts: Any) -> Transform:
    """A transform that puts something else into its batch."""

    def transform(batch: Batch, rng: ImageRandom, done: float) -> Batch:
        del rng, done
        old = {"images": batch.images, "targets": batch.targets, "ids": batch.ids}
        return Batch(**{**old, **{name: part(batch) for name, part in parts.items()}})

    return transform


def _in_place(batch: Batch) -> torch.Tensor:
    batch.images[0] = 0
    return batch.images


def _counting() -> Callable[[Batch], torch.Tensor]:
    calls = [0]

    def images(batch: Batch) -> torch.Tensor:
        calls[0] += 1
        return torch.full_like(batch.images, calls[0] % 2)

    return images


def _no_batch(batch: Batch, rng: ImageRandom, done: float) -> Any:
    del rng, done
    return batch.images


@pytest.mark.parametrize(
    ("transform", "complaint"),
    [
        (_no_batch, "gives a Tensor, not a Batch"),
        (wrong(images=_in_place), "changed the images that it was given"),
        (wrong(ids=lambda batch: batch.ids + 1), "changed the ids"),
        (
            wrong(images=lambda batch: batch.images + torch.randint(2, (1,)).to(torch.uint8)),
            "draws from torch's global generator",
        ),
        (wrong(images=_counting()), "something else for the same batch"),
        (wrong(images=lambda batch: batch.images / 255 - 1), "values from -0.94"),
        (wrong(images=lambda batch: batch.images * float("nan")), "values from nan to nan"),
        (wrong(images=lambda batch: batch.images.to(torch.int16)), "images are torch.int16"),
        (wrong(images=lambda batch: batch.images[:, 0]), "expected is"),
        (wrong(targets=lambda batch: batch.targets.float()), "targets are torch.float32"),
        (
            wrong(targets=lambda batch: torch.full((len(batch), 10), 0.2)),
            "do not sum to 1, or some are negative: sums from 2 to 2",
        ),
        (
            wrong(images=lambda batch: batch.images.flip(0)),
            "depends on the rest of its batch",
        ),
    ],
)
def test_a_transform_that_breaks_the_contract_is_told_how(
    transform: Transform, complaint: str
) -> None:
    with pytest.raises(AssertionError, match=complaint):
        check_transform(transform)


def test_mixing_by_another_rule_can_be_allowed() -> None:
    check_transform(wrong(images=lambda batch: batch.images.flip(0)), each_by_itself=False)


@EACH
@pytest.mark.parametrize("px", [32, 128])
def test_how_images_lie_in_memory_changes_nothing(
    make_batch: MakeBatch, name: str, px: int
) -> None:
    batch = make_batch(7, px)
    usual = BUILT_IN[name](batch, ImageRandom(0, 2, batch.ids), 1.0)
    wider = torch.zeros(7, 3, px + 2, px + 2, dtype=torch.uint8)
    wider[:, :, 1:-1, 1:-1] = batch.images
    sideways = batch.images.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    for images in (batch.images.contiguous(), wider[:, :, 1:-1, 1:-1], sideways):
        assert torch.equal(images, batch.images)
        other = Batch(images, batch.targets, batch.ids)
        out = BUILT_IN[name](other, ImageRandom(0, 2, batch.ids), 1.0)
        # torch resizes planar images in another way, which may differ by one level.
        allowed = 1 if name.startswith("random_resized_crop") else 0
        assert (out.images.int() - usual.images.int()).abs().max() <= allowed
        assert torch.equal(out.targets, usual.targets)


def test_the_function_in_the_documentation_keeps_the_contract() -> None:
    page = (Path(__file__).parents[2] / "docs" / "augment.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    module = ModuleType("mine")
    # The page is ours.
    exec(compile(code, "mine.py", "exec"), module.__dict__)
    check_transform(module.dim)
