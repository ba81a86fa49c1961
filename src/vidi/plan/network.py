"""Which network, and from which weights."""

from __future__ import annotations

from typing import NamedTuple

from vidi.augment_settings import AugmentSettings, WholeViews
from vidi.config import Config
from vidi.facts import SPLITS, DatasetFacts, Facts

# A pretrained network that reduces 224 px by 32 has nothing left of images smaller than this: they
# are shown to it enlarged, or learnt from scratch at their own size.
SMALL_IMAGE_PX = 96
# Of how many px they are then. Below so many, and without colour, they show signs rather than
# things, which ImageNet's weights know nothing of.
ENLARGED_PX = 128
_THINGS_FROM_PX = 24


class Choice(NamedTuple):
    """The network, before its facts can be looked up."""

    name: str
    weights: str
    reason: str


class Small(NamedTuple):
    """Of the small network: how many times as wide, and how many of them answer together."""

    width: int = 1
    networks: int = 1


# In the order of what a pass over all images takes.
SMALL_NETWORKS = {
    "small_cnn": Small(),
    "small_cnn_x2": Small(2),
    "small_cnn_x2_mean2": Small(2, 2),
    "small_cnn_x3": Small(3),
    "small_cnn_x3_mean2": Small(3, 2),
    "small_cnn_x4": Small(4),
}


def networks_of(name: str) -> int:
    """How many networks share a batch, each learning from its own part of it."""
    return SMALL_NETWORKS.get(name, Small()).networks


# What more time is used for, in this order. Of few images the mean of two networks is ahead of one
# that is as much wider, of many behind it; an accelerator is idle with narrow ones.
_WITH_TIME = ("small_cnn_x2", "small_cnn_x3", "small_cnn_x4")
_WITH_TIME_FEW_IMAGES = ("small_cnn_x2", "small_cnn_x2_mean2", "small_cnn_x3_mean2")
_FEW_IMAGES = 20_000
# A wider network that sees each image so often is ahead of a narrow one in the same time; the
# fastest CIFAR-10 recipes need about as many passes (Jordan 2024).
_PASSES_WORTH_WIDTH = 9
# Of fewer images a wider network learns no more: digits, in docs/measurements.md.
_IMAGES_WORTH_WIDTH = 10_000
# Floating-point operations a second before anything was measured: of a core with bfloat16, of one
# without, and of an accelerator.
_GUESSED_RATES = (130e9, 50e9, 20e12)
# The same of a core with bfloat16 and vidi.winograd: wide networks do 300e9, narrow ones 170e9.
_GUESSED_WINOGRAD_RATE = 240e9


def choose_model(config: Config, facts: Facts) -> Choice:
    """Which network and weights: the first decision, because its facts are needed for the rest."""
    asked, dataset = config.model, facts.dataset
    short_px = min(dataset.height_px[1], dataset.width_px[1])
    shown_small = (config.data.image_px or SMALL_IMAGE_PX) < SMALL_IMAGE_PX
    small = shown_small or short_px < SMALL_IMAGE_PX
    signs = small and (short_px < _THINGS_FROM_PX or dataset.grey)
    if asked.name is not None:
        offline = asked.name in OFFLINE_WEIGHTS and not (shown_small or signs)
        weights = "imagenet" if offline else "hub" if asked.name.startswith("hf-hub:") else "none"
        return Choice(asked.name, asked.weights or weights, "asked for")
    if small and asked.weights in (None, "none"):
        why = ""
        if asked.weights is None and not (shown_small or signs):
            why = _worth_tuning(config, facts, short_px)
        if not why:
            name, why = _small_network(config, facts, short_px)
            why = f"images of {short_px} px are learnt faster from scratch, by a small network{why}"
            return Choice(name, "none", why)
    else:
        why = f"photos ({short_px} px): start from ImageNet weights that need no network"
    return Choice("efficientnet_lite0", asked.weights or "imagenet", why)


def is_enlarged(dataset: DatasetFacts, *, pretrained: bool) -> bool:
    """Whether the images are shown larger than they are, because the weights know nothing else."""
    return pretrained and max(dataset.height_px[1], dataset.width_px[1]) < SMALL_IMAGE_PX


# Of more images, all splits together, what a network from scratch learns has not been compared:
# docs/measurements.md.
_FEW_TO_ENLARGE = 25_000
# Images a second of a core while the pretrained network learns enlarged ones, before anything was
# measured: with bfloat16, and without.
_GUESSED_TUNING_RATES = (45.0, 15.0)
# In less time than so many looks at every image would take, there is none for its features.
_LOOKS_WORTH_TUNING = 1.2


def _on_accelerator(config: Config, facts: Facts) -> bool:
    return bool(facts.machine.accelerators) and config.machine.device != "cpu"


def _worth_tuning(config: Config, facts: Facts, short_px: int) -> str:
    """Why a pretrained network is ahead on small images, in that time; empty where it is not."""
    # Of all splits: in which of them an image is may still change, when copies are found.
    num_images = sum(facts.dataset.num_images(split) for split in SPLITS)
    if num_images >= _FEW_TO_ENLARGE:
        return ""
    if config.train.minutes is not None and not _on_accelerator(config, facts):
        core = _GUESSED_TUNING_RATES[0 if facts.machine.cpu_bfloat16 else 1]
        rate = facts.machine.usable_cores * core
        if config.train.minutes * 60 * rate < _LOOKS_WORTH_TUNING * num_images:
            return ""
    return f"{num_images:,} images of {short_px} px say less than ImageNet's weights: enlarged"


def _small_network(config: Config, facts: Facts, image_px: int) -> tuple[str, str]:
    """The one that makes the most of the time: each image is still seen several times."""
    minutes, num_train = config.train.minutes, facts.dataset.num_images("train")
    if minutes is None or num_train < _IMAGES_WORTH_WIDTH:
        return "small_cnn", ""
    bfloat16, plain, accelerator = _GUESSED_RATES
    machine = facts.machine
    names = _WITH_TIME
    if _on_accelerator(config, facts):
        rate = accelerator
    else:
        if num_train < _FEW_IMAGES:
            names = _WITH_TIME_FEW_IMAGES
        core = bfloat16 if machine.cpu_bfloat16 else plain
        if machine.winograd and config.machine.winograd is not False:
            core = _GUESSED_WINOGRAD_RATE
        rate = machine.usable_cores * core
    chosen, why = "small_cnn", ""
    for name in names:
        width, networks = SMALL_NETWORKS[name]
        # Forward and backward, each multiply-add two operations.
        work = 6 * networks * _multiply_adds(32 * width, image_px, num_train)
        passes = rate * minutes * 60 / work
        if passes >= _PASSES_WORTH_WIDTH:
            chosen = name
            several = f", the mean of {networks}" if networks > 1 else ""
            why = f", {width} times as wide{several}: time for about {passes:,.0f} passes"
    return chosen, why


def _multiply_adds(width: int, image_px: int, num_images: int) -> float:
    """Of one pass of the small network over colour images: its 3 x 3 convolutions."""
    total, inputs, px = 0.0, 24, image_px - 1
    for outputs in (width, 4 * width, 4 * width):
        total += 9 * inputs * outputs * px**2
        px = max(1, px // 2)
        total += 9 * outputs**2 * px**2
        inputs = outputs
    return total * num_images


def views_rule(name: str, augment: AugmentSettings) -> tuple[WholeViews, str]:
    """Which views of an image the answer is the mean over; docs/measurements.md."""
    if name not in SMALL_NETWORKS:
        return "plain", "an image is looked at once; --tta looks at other views of it, too"
    flipped, shifted = augment.horizontal_flip != "none", augment.shifts
    match flipped, shifted:
        case True, True:
            return "shift_flip", "six looks are cheap for a small network, and avoid 1 error in 10"
        case True, False:
            return "flip", "a second look is cheap for a small network, and avoids 1 error in 15"
        case False, True:
            return "shift", "three looks are cheap for a small network"
        case _:
            return "plain", "training shows nothing but the image itself"


# Pretrained weights that come with vidi's own dependencies.
OFFLINE_WEIGHTS = frozenset({"efficientnet_lite0"})


def weights_rule(choice: Choice) -> tuple[str, str]:
    if choice.weights == "none":
        return "none", "from scratch"
    return (
        choice.weights,
        "fine-tuning needs a hundredth of the data and time of training from scratch",
    )
