"""How images get to the model: which, how often, and where their pixels wait."""

from __future__ import annotations

from typing import Literal

from vidi.config import Config
from vidi.facts import DatasetFacts, Facts, Sharding
from vidi.image import PixelContract
from vidi.plan.decisions import Decisions

Sampling = Literal["each", "balanced", "weighted"]
Place = Literal["disk", "memory", "device", "stream"]
Build = Literal["before", "alongside"]

# Seconds that one core needs for a million pixels of a photo: decoding, shrinking and writing.
# Measured on 400 x 533 px (docs/measurements.md); a guess is enough for what it decides.
_DECODE_S_PER_MEGAPIXEL = 0.012
# Below this, decoding first is simpler to follow and disturbs no measurement.
_WORTH_ALONGSIDE_S = 60.0
# Pixels may take this share of what is free on the disk, of the memory, of an accelerator's memory.
_DISK_SHARE, _MEMORY_SHARE, _DEVICE_SHARE = 0.8, 0.4, 0.3
# Above this many times as many images in one class as in another, the reason says so.
_IMBALANCED = 5


def decide_sampling(config: Config, dataset: DatasetFacts, decided: Decisions) -> Sampling:
    """How often an image comes up in an epoch."""
    rule: tuple[Sampling, str] = ("each", "every image once an epoch")
    counts = [count for count in dataset.counts["train"] if count]
    if dataset.weighted:
        rule = ("weighted", "the table has a column of weights")
    elif max(counts) > _IMBALANCED * min(counts):
        rule = (
            "each",
            f"every image once an epoch, though one class has {max(counts) / min(counts):.0f} times"
            " as many as another: loss.imbalance says what is done; 'balanced' would draw classes "
            "equally often instead",
        )
    return decided.take("sampling", config.train.sampling, rule)


def decide_place(
    config: Config, facts: Facts, pixels: PixelContract, device: str, decided: Decisions
) -> Place:
    """Where decoded pixels wait for their batch."""
    dataset = facts.dataset
    num_images = sum(dataset.num_images(split) for split in dataset.counts)
    size = num_images * pixels.store_px**2 * pixels.channels
    shown = f"{size / 1e9:.2g} GB decoded"
    free = facts.cache_free_bytes
    rule: tuple[Place, str] = ("disk", f"{shown}: fits on the disk, shared by all runs")
    accelerators = {one.kind: one.memory_bytes for one in facts.machine.accelerators}
    if device in accelerators and size <= _DEVICE_SHARE * accelerators[device]:
        rule = ("device", f"{shown}: fits into the memory of the accelerator")
    elif dataset.decoded:
        rule = ("memory", "the data are pixels already, and in memory")
    elif free is not None and size > _DISK_SHARE * free:
        if size <= _MEMORY_SHARE * facts.machine.memory_bytes:
            rule = ("memory", f"{shown}: too much for the disk of the cache, fits into memory")
        else:
            rule = ("stream", f"{shown}: too much for disk and memory, so decoded in every epoch")
    return decided.take("execution.store", config.data.store, rule)


def decide_build(
    config: Config,
    facts: Facts,
    place: Place,
    threads: int,
    decided: Decisions,
    *,
    sharding: Sharding = "none",
) -> Build:
    """Whether decoding is over before the first step."""
    dataset = facts.dataset
    num_images = sum(dataset.num_images(split) for split in dataset.counts)
    megapixels = num_images * dataset.height_px[1] * dataset.width_px[1] / 1e6
    estimate_s = megapixels * _DECODE_S_PER_MEGAPIXEL / threads
    rule: tuple[Build, str]
    if place not in ("disk", "device"):
        rule = ("before", "nothing is written")
    elif config.data.unreadable == "stop":
        rule = ("before", "a file that cannot be read is to stop the run, so all are read first")
    elif sharding == "full":
        rule = ("before", "processes that share a model need batches of one size")
    elif dataset.decoded or estimate_s < _WORTH_ALONGSIDE_S:
        rule = ("before", "decoding takes less than a minute")
    else:
        rule = ("alongside", f"decoding takes about {estimate_s / 60:.0f} min: training starts now")
    return decided.take("execution.build", config.data.build, rule)
