"""Augmentation beside torchvision v2 with a DataLoader of two workers: images a second, and ratios.

    python benchmarks/augment.py [--rounds 5] [--json out.json]

Both sides start from the same uint8 images in memory and end with a uint8 batch, so that little is
compared but the changing of images. What gathering a shuffled batch costs is in benchmarks/data.py.
They take turns; each round gives one ratio, and the median over the rounds is shown: on a machine
that others use too, ratios hold still and rates do not. Processor time (of all threads and
processes) is shown too: what augmentation takes from training where both share the cores.
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

import psutil
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vidi import model
from vidi.augment import ImageRandom, from_settings
from vidi.augment_settings import AugmentSettings
from vidi.batch import Batch

WORKERS = 2

# Goes through the epoch of that number and returns how many images it saw.
Epoch: TypeAlias = Callable[[int], int]
Change: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Result:
    """One comparison. Rates are medians over the rounds, in images a second."""

    name: str
    ours: float
    torchvision: float
    ratio: float
    ratios: tuple[float, ...]
    # Processor time of one image, in us, and how many times more torchvision takes.
    ours_cpu_us: float
    torchvision_cpu_us: float
    cpu_ratio: float
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

    def epoch(number: int) -> int:
        count = 0
        for ids in torch.split(torch.arange(len(images)), batch_size):
            first = int(ids[0])
            batch = Batch(images[first : first + len(ids)], torch.zeros_like(ids), ids)
            count += len(transform(batch, ImageRandom(0, number, ids), 0.5))
        return count

    return epoch


def theirs(images: Tensor, change: Change, batch_size: int) -> Epoch:
    loader = DataLoader(
        Stored(images, change),
        batch_size=batch_size,
        shuffle=True,
        num_workers=WORKERS,
        persistent_workers=True,
    )

    def epoch(number: int) -> int:
        del number
        return sum(len(changed) for changed, _ in loader)

    return epoch


def measured(epoch: Epoch, number: int) -> tuple[float, float]:
    """Images a second, and processor time of one image in us."""
    cpu_started_s, started_at = cpu_s(), time.perf_counter()
    count = epoch(number)
    elapsed_s = time.perf_counter() - started_at
    return count / elapsed_s, (cpu_s() - cpu_started_s) / count * 1e6


def cpu_s() -> float:
    """Processor time so far, of this process and of those that it started."""
    here = psutil.Process()
    times = [process.cpu_times() for process in (here, *here.children(recursive=True))]
    return sum(spent.user + spent.system for spent in times)


def compare(name: str, mine: Epoch, other: Epoch, rounds: int, wanted: float) -> Result:
    # The first epoch starts workers and threads.
    mine(0)
    other(0)
    pairs = [(measured(mine, number), measured(other, number)) for number in range(1, rounds + 1)]
    ratios = tuple(ours[0] / theirs[0] for ours, theirs in pairs)
    return Result(
        name=name,
        ours=statistics.median(ours[0] for ours, _ in pairs),
        torchvision=statistics.median(theirs[0] for _, theirs in pairs),
        ratio=statistics.median(ratios),
        ratios=ratios,
        ours_cpu_us=statistics.median(ours[1] for ours, _ in pairs),
        torchvision_cpu_us=statistics.median(theirs[1] for _, theirs in pairs),
        cpu_ratio=statistics.median(theirs[1] / ours[1] for ours, theirs in pairs),
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
            AugmentSettings(image_px=224, num_classes=10, crop="resized", horizontal_flip="random"),
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
            f"{name:40s} {result.ours:8,.0f}/s  torchvision {result.torchvision:6,.0f}/s  "
            f"ratio {result.ratio:5.1f} ({spread}), wanted {wanted:g}\n"
            f"{'':40s} {result.ours_cpu_us:8,.1f} us of processor time, torchvision "
            f"{result.torchvision_cpu_us:,.1f}: ratio {result.cpu_ratio:.1f}",
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
