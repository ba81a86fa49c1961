"""Augmentation beside torchvision v2 with a DataLoader of two workers: images a second, and ratios.

    python benchmarks/augment.py [--rounds 5] [--json out.json]

Both sides start from the same uint8 images in memory, in shuffled order, and end with a uint8 batch,
so that nothing is compared but the changing of images. They take turns; each round gives one ratio,
and the median over the rounds is shown: on a machine that others use too, ratios hold still and
rates do not.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vidi import model
from vidi.augment import ImageRandom, from_settings
from vidi.augment_settings import AugmentSettings
from vidi.batch import Batch

WORKERS = 2

# The number of an epoch -> images a second.
Epoch: TypeAlias = Callable[[int], float]
Change: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Result:
    """One comparison. Rates are medians over the rounds, in images a second."""

    name: str
    ours: float
    torchvision: float
    ratio: float
    ratios: tuple[float, ...]
    wanted: float


class Stored(Dataset[tuple[Tensor, int]]):
    """Images in memory and a change for each, as torchvision's data sets have it."""

    def __init__(self, images: Tensor, change: Change) -> None:
        self.images, self.change = images, change

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.change(self.images[index]), 0


def photographs(count: int, px: int) -> Tensor:
    """(count, 3, px, px) uint8, channels last, soft as photographs are."""
    coarse = torch.rand(64, 3, 8, 8) * 255
    images = torch.nn.functional.interpolate(coarse, (px, px), mode="bilinear").to(torch.uint8)
    rows = images.permute(0, 2, 3, 1).flatten(1).repeat(count // 64, 1)
    return rows.view(-1, px, px, 3).permute(0, 3, 1, 2)


def ours(images: Tensor, settings: AugmentSettings, batch_size: int) -> Epoch:
    transform = from_settings(settings)
    rows = images.permute(0, 2, 3, 1).flatten(1)
    px = images.shape[-1]

    def epoch(number: int) -> float:
        count = 0
        started_at = time.perf_counter()
        for ids in torch.split(torch.randperm(len(images)), batch_size):
            # Gathering a shuffled batch is part of the work, as it is in a DataLoader.
            gathered = rows.index_select(0, ids).view(-1, px, px, 3).permute(0, 3, 1, 2)
            batch = Batch(gathered, torch.zeros_like(ids), ids)
            count += len(transform(batch, ImageRandom(0, number, ids), 0.5))
        return count / (time.perf_counter() - started_at)

    return epoch


def theirs(images: Tensor, change: Change, batch_size: int) -> Epoch:
    loader = DataLoader(
        Stored(images, change),
        batch_size=batch_size,
        shuffle=True,
        num_workers=WORKERS,
        persistent_workers=True,
    )

    def epoch(number: int) -> float:
        del number
        started_at = time.perf_counter()
        count = sum(len(changed) for changed, _ in loader)
        return count / (time.perf_counter() - started_at)

    return epoch


def compare(name: str, mine: Epoch, other: Epoch, rounds: int, wanted: float) -> Result:
    # The first epoch starts workers and threads.
    mine(0)
    other(0)
    pairs = [(mine(number), other(number)) for number in range(1, rounds + 1)]
    ratios = tuple(rate / peer for rate, peer in pairs)
    return Result(
        name=name,
        ours=statistics.median(rate for rate, _ in pairs),
        torchvision=statistics.median(peer for _, peer in pairs),
        ratio=statistics.median(ratios),
        ratios=ratios,
        wanted=wanted,
    )


def run(rounds: int, threads: int) -> list[Result]:
    model.declare_missing_operators()
    from torchvision.transforms import v2  # noqa: PLC0415 - only after the line above

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    big, small = photographs(1024, 256), photographs(10_240, 32)
    flip = v2.RandomHorizontalFlip()
    cases: list[tuple[str, Tensor, int, AugmentSettings, Change, float]] = [
        (
            "224 px: resized crop, flip",
            big,
            64,
            AugmentSettings(
                image_px=224, num_classes=10, crop="resized", horizontal_flip="random"
            ),
            v2.Compose([v2.RandomResizedCrop(224, antialias=True), flip]),
            5,
        ),
        (
            "32 px: pad, crop, flip",
            small,
            256,
            AugmentSettings(
                image_px=32,
                num_classes=10,
                crop="pad",
                crop_padding_px=4,
                horizontal_flip="random",
            ),
            v2.Compose([v2.RandomCrop(32, padding=4, padding_mode="reflect"), flip]),
            20,
        ),
        (
            "224 px: resized crop, flip, RandAugment",
            big,
            64,
            AugmentSettings(
                image_px=224,
                num_classes=10,
                crop="resized",
                horizontal_flip="random",
                policy="medium",
            ),
            v2.Compose(
                [
                    v2.RandomResizedCrop(224, antialias=True),
                    flip,
                    v2.RandAugment(interpolation=v2.InterpolationMode.BILINEAR),
                ]
            ),
            1,
        ),
        (
            "32 px: pad, crop, flip, RandAugment",
            small,
            256,
            AugmentSettings(
                image_px=32,
                num_classes=10,
                crop="pad",
                crop_padding_px=4,
                horizontal_flip="random",
                policy="medium",
            ),
            v2.Compose(
                [
                    v2.RandomCrop(32, padding=4, padding_mode="reflect"),
                    flip,
                    v2.RandAugment(interpolation=v2.InterpolationMode.BILINEAR),
                ]
            ),
            1,
        ),
    ]
    results = []
    for name, images, batch_size, settings, change, wanted in cases:
        result = compare(
            name,
            ours(images, settings, batch_size),
            theirs(images, change, batch_size),
            rounds,
            wanted,
        )
        spread = f"{min(result.ratios):.1f} .. {max(result.ratios):.1f}"
        print(
            f"{name:42s} {result.ours:9,.0f}/s  torchvision {result.torchvision:7,.0f}/s  "
            f"ratio {result.ratio:5.1f} ({spread}), wanted {wanted:g}",
            flush=True,
        )
        results.append(result)
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    asked = parser.parse_args()
    results = run(asked.rounds, asked.threads)
    if asked.json:
        numbers = {"threads": asked.threads, "results": [asdict(result) for result in results]}
        asked.json.write_text(json.dumps(numbers, indent=2) + "\n")
    return 0 if all(result.ratio >= result.wanted for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
