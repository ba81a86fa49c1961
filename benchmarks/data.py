"""The input side against the bare decoder and against torchvision, on the same files.

    python benchmarks/data.py speed PHOTOS CIFAR [--repeats N] [--store-px N] [--only first]
    python benchmarks/data.py waits DATA [DATA ...] [--steps N]

PHOTOS and CIFAR are image folders with a `train` folder (clothing-dataset-small and CIFAR-10 as
JPEG files in docs/measurements.md). All contenders take turns in one process, use two threads or
two worker processes, and read from a warm file cache; medians of the ratios. The bars:

    first pass       0.6 of two threads of bare JPEG decoding in memory, 1.6 times ImageFolder
    later epochs     5 times ImageFolder with a random resized crop to 224 px and a flip
    CIFAR-10         20 times ImageFolder with pad, crop and flip

`waits` trains on each of DATA as `vidi train` would, with an empty cache and so with the pixels
decoded alongside, and says which share of the time the step waited for a batch. The bar: 2 %.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import simplejpeg
import torch

from vidi import augment, model, probe
from vidi.augment import ImageRandom, Transform
from vidi.augment_settings import AugmentSettings
from vidi.config import Config, DataConfig
from vidi.data import Dataset, Loader, PixelStore, open_dataset, open_store
from vidi.image import PixelContract
from vidi.run import Run
from vidi.train.loop import loop
from vidi.train.prepare import Extensions, build_job, build_state, prepare

THREADS = 2


def contract(px: int, store_px: int, resize: Literal["crop", "squash"] = "crop") -> PixelContract:
    return PixelContract(
        image_px=px,
        store_px=store_px,
        channels=3,
        resize=resize,
        interpolation="bilinear",
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )


def seconds(work: Callable[[], Any]) -> float:
    started_at = time.perf_counter()
    work()
    return time.perf_counter() - started_at


def drain(batches: Iterable[Any]) -> None:
    for _ in batches:
        pass


def bare_decoding(dataset: Dataset) -> Callable[[], None]:
    """Every file decoded at full size out of memory; the pixels are thrown away."""
    files = [dataset.read(index) for index in range(len(dataset))]

    def share(first: int) -> None:
        for number in range(first, len(files), THREADS):
            simplejpeg.decode_jpeg(files[number], "RGB")

    def work() -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            drain(pool.map(share, range(THREADS)))

    return work


def first_pass(dataset: Dataset, pixels: PixelContract) -> Callable[[], None]:
    def work() -> None:
        with tempfile.TemporaryDirectory() as folder:
            open_store(dataset, pixels, cache_dir=Path(folder), threads=THREADS)

    return work


def image_folder(root: Path, transform: Any, batch_size: int) -> Callable[[], None]:
    """torchvision's, over the training folder, by two worker processes."""
    from torchvision.datasets import ImageFolder  # noqa: PLC0415 (after the missing operators)

    folder = ImageFolder(str(root), transform)
    loader = torch.utils.data.DataLoader(
        folder, batch_size, shuffle=True, num_workers=THREADS, persistent_workers=True
    )
    # The workers start here, not in the measurement.
    next(iter(loader))
    return lambda: drain(loader)


def epoch(
    dataset: Dataset, store: PixelStore, transform: Transform, batch_size: int
) -> Callable[[], None]:
    loader = Loader(
        store,
        dataset.labels,
        dataset.indices("train"),
        batch_size=batch_size,
        shuffle=True,
    )

    def work() -> None:
        for batch in loader.batches(0):
            transform(batch, ImageRandom(0, 0, batch.ids), 0.5)

    return work


def compare(
    name: str, contenders: dict[str, Callable[[], None]], count: dict[str, int], n: int
) -> None:
    """Rates of all, and vidi's against each of the others, taking turns."""
    times: dict[str, list[float]] = {who: [] for who in contenders}
    for turn in range(n + 1):
        for who, work in contenders.items():
            elapsed_s = seconds(work)
            if turn or n == 1:
                times[who].append(elapsed_s)
    print(f"\n{name}")
    for who in contenders:
        rate = count[who] / statistics.median(times[who])
        ratios = [
            (count["vidi"] / a) / (count[who] / b)
            for a, b in zip(times["vidi"], times[who], strict=True)
        ]
        print(f"  {who:<24}{rate:>10,.0f} images/s    vidi: {statistics.median(ratios):.2f} times")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("speed")
    one.add_argument("photos", type=Path)
    one.add_argument("cifar", type=Path)
    one.add_argument("--repeats", type=int, default=3)
    one.add_argument("--store-px", type=int, nargs="+", default=[160, 256])
    one.add_argument("--only", choices=["first", "later", "cifar"], help="one of the comparisons")
    one.set_defaults(measure=speed)
    one = commands.add_parser("waits")
    one.add_argument("data", type=Path, nargs="+")
    one.add_argument("--steps", type=int, default=60)
    one.set_defaults(measure=waits)
    asked = parser.parse_args()
    asked.measure(asked)


def waits(asked: argparse.Namespace) -> None:
    """The share of a training that is spent waiting for batches, decoding alongside and after."""
    for data in asked.data:
        with tempfile.TemporaryDirectory() as folder:
            config = Config().with_settings(
                {
                    "data.cache_dir": f"{folder}/cache",
                    "data.build": "alongside",
                    "train.epochs": 1.0,
                    "checkpoint.every_s": 1e6,
                }
            )
            prepared = prepare(data, config, Extensions(), say=print, started_at=time.monotonic())
            plan = prepared.plan
            state = build_state(plan, prepared.model)
            job = build_job(plan, config, prepared.dataset, prepared.store, Extensions())
            for what in ("decoding alongside", "all decoded"):
                last = min(state.step + asked.steps, plan.steps_per_epoch - 1)
                part = plan.model_copy(update={"last_step": last, "evaluate_every_steps": 10**9})
                job = dataclasses.replace(job, validation=None)
                texts = {"config": config.to_toml(), "plan": part.model_dump_json()}
                run = Run.create(Path(folder) / what.replace(" ", "-"), texts=texts)
                with run.lock(), contextlib.closing(loop(part, job, state, run)) as steps:
                    rates = [(one.images_per_second, one.wait_fraction) for one in steps]
                rate, waited = rates[-1]
                print(
                    f"{data.name}: {plan.model.name}, batch {plan.batch_size}, {what}: "
                    f"{rate:,.0f} images/s, waits {waited:.2%}",
                    flush=True,
                )
                prepared.store.finish()
            prepared.store.close()


def speed(asked: argparse.Namespace) -> None:
    """First pass and later epochs beside torchvision."""
    probe.keep_memory()
    torch.set_num_threads(THREADS)
    model.declare_missing_operators()
    from torchvision.transforms import v2  # noqa: PLC0415 (after the missing operators)

    parts = {"first": first_passes, "later": later_epochs, "cifar": cifar_epochs}
    with tempfile.TemporaryDirectory() as cache:
        for name, part in parts.items():
            if asked.only in (None, name):
                part(asked, v2, Path(cache))


def first_passes(asked: argparse.Namespace, v2: Any, cache: Path) -> None:
    photos = open_dataset(asked.photos, DataConfig(cache_dir=str(cache), validation_fraction=0.0))
    trained = len(photos.indices("train"))
    for store_px in asked.store_px:
        resized = [v2.Resize(store_px), v2.CenterCrop(store_px), v2.PILToTensor()]
        compare(
            f"first pass over {len(photos)} photos to {store_px} px",
            {
                "vidi": first_pass(photos, contract(store_px, store_px)),
                "two decoding threads": bare_decoding(photos),
                "ImageFolder": image_folder(asked.photos / "train", v2.Compose(resized), 64),
            },
            {"vidi": len(photos), "two decoding threads": len(photos), "ImageFolder": trained},
            asked.repeats,
        )


def later_epochs(asked: argparse.Namespace, v2: Any, cache: Path) -> None:
    photos = open_dataset(asked.photos, DataConfig(cache_dir=str(cache), validation_fraction=0.0))
    trained = len(photos.indices("train"))
    crops = augment.from_settings(
        AugmentSettings(image_px=224, num_classes=10, crop="resized", horizontal_flip="random")
    )
    cropped = [v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), v2.PILToTensor()]
    store = open_store(photos, contract(224, 256), cache_dir=cache, threads=THREADS)
    compare(
        "later epochs: 224 px random resized crops and flips",
        {
            "vidi": epoch(photos, store, crops, 64),
            "ImageFolder": image_folder(asked.photos / "train", v2.Compose(cropped), 64),
        },
        {"vidi": trained, "ImageFolder": trained},
        asked.repeats,
    )


def cifar_epochs(asked: argparse.Namespace, v2: Any, cache: Path) -> None:
    cifar = open_dataset(asked.cifar, DataConfig(cache_dir=str(cache), validation_fraction=0.0))
    store = open_store(cifar, contract(32, 32), cache_dir=cache, threads=THREADS)
    shifts = augment.from_settings(
        AugmentSettings(
            image_px=32,
            num_classes=10,
            crop="pad",
            crop_padding_px=4,
            horizontal_flip="random",
        )
    )
    shifted = [v2.RandomCrop(32, 4), v2.RandomHorizontalFlip(), v2.PILToTensor()]
    small = len(cifar.indices("train"))
    compare(
        "later epochs: CIFAR-10, pad, crop and flip",
        {
            "vidi": epoch(cifar, store, shifts, 512),
            "ImageFolder": image_folder(asked.cifar / "train", v2.Compose(shifted), 512),
        },
        {"vidi": small, "ImageFolder": small},
        asked.repeats,
    )


if __name__ == "__main__":
    main()
