"""How the minutes of a `fit` are spent: from counts and measured rates alone, with the reasons.

A pretrained network is used twice: a head on its kept features is an answer within seconds, and
what is left of the time goes into fine-tuning from there, if it is enough to be worth it.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from vidi.plan.network import SMALL_IMAGE_PX

# Of a time that is forecast, what is planned; the rest is for a machine that slows down.
PLANNED_SHARE: Final = 0.95
# Python's end, the last files, whatever else has no measurement.
ENDING_S: Final = 1.0
# An image judged in float32 against one whose features are computed in the measured precision: 372
# images took 5 s, the report included, where features came at 158 a second.
JUDGING_COST: Final = 1.8
REPORT_S: Final = 1.5
# Writing a bundle and proving it, on two busy cores: ONNX of EfficientNet-Lite0, 99 layers that
# learn, 16 s, of the small network, 14 layers, 5 s, most of them for its packages.
EXPORT_S: Final = {"onnx": (3.5, 0.125), "torch": (1.0, 0.07)}
# What cross-validating a bank of heads takes, in seconds for 1,000 images, 1,000 features and a
# class, on two cores.
BANK_S: Final = 0.025
BANK_MIN_S: Final = 1.5


class Counts(NamedTuple):
    """How many images there are."""

    train: int
    validation: int
    test: int


class Features(NamedTuple):
    """How the features are computed for the first answer."""

    flipped: bool
    # So many of the training images.
    num_train: int
    folds: int
    seconds: float
    reason: str


class Partly(NamedTuple):
    """A training of the last stages on what the earlier ones say, that fits into the time."""

    flipped: bool
    epochs: float
    # All of it, with what the earlier stages say.
    seconds: float
    reason: str


class Tuning(NamedTuple):
    """A fine-tuning that fits into the time."""

    image_px: int
    epochs: float
    seconds: float
    reason: str


def export_s(target: str | None, num_layers: int) -> float:
    """Seconds to write and prove a bundle of a network with so many layers that learn."""
    if target is None:
        return 0.0
    always_s, layer_s = EXPORT_S[target]
    return always_s + layer_s * num_layers


def judging_s(num_images: int, forward: float) -> float:
    """Seconds to judge so many images, and to write the report.

    forward: images a second, as features are computed.
    """
    return REPORT_S + JUDGING_COST * num_images / forward


def ending_s(counts: Counts, forward: float, *, bundle_s: float, judged: bool = True) -> float:
    """Seconds from the last update of the weights to the end of the process.

    bundle_s: for what is exported. judged: the validation images too.
    """
    images = counts.test + (counts.validation if judged else 0)
    return ENDING_S + judging_s(images, forward) + bundle_s


def bank_s(num_images: int, num_features: int, num_classes: int, folds: int) -> float:
    """Seconds to choose among the heads of a bank."""
    size = num_images * num_features * num_classes / 1e6
    return BANK_MIN_S + BANK_S * size * max(1, folds)


def needed_s(counts: Counts, forward: float, num_features: int, num_classes: int) -> float:
    """The least time in which an answer is there: a head on a few images of each class."""
    images = min(counts.train, FEWEST_A_CLASS * num_classes)
    fit_s = bank_s(images + counts.validation, num_features, num_classes, 0)
    ended_s = ending_s(counts, forward, bundle_s=0.0, judged=False)
    return (images + counts.validation) / forward + fit_s + ended_s


# Fewer images of a class than this say little about it.
FEWEST_A_CLASS: Final = 10


def features_rule(
    left_s: float,
    counts: Counts,
    forward: float,
    num_features: int,
    num_classes: int,
    *,
    image_px: int,
    bundle_s: float,
) -> Features | None:
    """How much of the data the first answer uses: all with their mirror images, all, or a part.

    Mirror images are left out where fine-tuning needs their time. None: not even a part fits.
    """
    ended_s = ending_s(counts, forward, bundle_s=0.0, judged=False)
    images = counts.train + counts.validation

    def seconds(views: int, folds: int) -> float:
        return views * images / forward + bank_s(images, num_features, num_classes, folds)

    plain_s = left_s - seconds(1, 3)
    tuned = tuning_rule(plain_s, counts, forward, image_px, bundle_s=bundle_s) is not None
    for flipped, folds, share, why in (
        (True, 5, 0.25, "mirror images seen too, five-fold cross-validation"),
        (True, 3, 0.35, "mirror images seen too, three-fold cross-validation"),
        (True, 3, 0.0 if tuned else 1.0, "mirror images seen too; no time for fine-tuning"),
        (False, 3, 1.0, "no time for mirror images"),
        (False, 0, 1.0, "no time for mirror images or cross-validation"),
    ):
        takes_s = seconds(1 + flipped, folds)
        if takes_s <= share * PLANNED_SHARE * (left_s - ended_s):
            reason = f"{takes_s:.0f} s of {left_s:.0f} s: {why}"
            return Features(flipped, counts.train, folds, takes_s, reason)
    if left_s < needed_s(counts, forward, num_features, num_classes):
        return None
    each_s = 1 / forward + BANK_S * num_features * num_classes / 1e6
    spare_s = PLANNED_SHARE * (left_s - ended_s) - BANK_MIN_S - counts.validation * each_s
    some = max(FEWEST_A_CLASS * num_classes, int(spare_s / each_s))
    some = min(some, counts.train)
    reason = f"{some:,} of {counts.train:,} training images: no time for more"
    return Features(False, some, 0, left_s - ended_s, reason)


# So many whole trainings are worth a search among settings; fewer are spent on a few that are known
# to do well, and less than two on a longer one.
SEARCHED_FROM: Final = 10.0
SEVERAL_FROM: Final = 2.0
MOST_SEVERAL: Final = 4
# Fewer held-out images than this cannot tell one training from another: each is two points.
FEW_HELD_OUT: Final = 50
# Of more images, a longer training is worth more than several short ones, until it is this long.
FEW_IMAGES: Final = 20_000


class Trainings(NamedTuple):
    """How the time of a fit from scratch is used. number: of whole trainings, for "several"."""

    kind: Literal["one", "several", "search"]
    number: int
    reason: str


def trainings_rule(
    left_s: float, seconds_per_epoch: float, counts: Counts, default_epochs: float, longest: float
) -> Trainings:
    """One training as long as fits, several, or a search.

    left_s: for all trainings together. longest: epochs after which more of them bring nothing.
    """
    epochs = default_epochs if counts.train <= FEW_IMAGES else longest
    left_s = max(0.0, left_s)
    fit = PLANNED_SHARE * left_s / (epochs * seconds_per_epoch)
    said = f"{fit:.1f} trainings of {epochs:.0f} epochs fit into {left_s:.0f} s"
    if counts.validation < FEW_HELD_OUT:
        return Trainings("one", 1, f"{said}; too few images are held out to choose between them")
    if fit >= SEARCHED_FROM:
        return Trainings("search", int(fit), f"{said}: settings are searched")
    if fit >= SEVERAL_FROM:
        number = min(int(fit), MOST_SEVERAL)
        return Trainings("several", number, f"{said}: the best of {number}")
    return Trainings("one", 1, f"{said}: one, as long as fits")


# Sizes that a head is tried at where nothing fits at the planned one, as shares of that.
SMALLER: Final = (5 / 7, 4 / 7, 3 / 7)


def smaller_px(
    left_s: float,
    opened_s: float,
    counts: Counts,
    forward: float,
    num_features: int,
    num_classes: int,
    *,
    image_px: int,
) -> int | None:
    """The largest size at which a head on a part of the images fits, where none fits at `image_px`.

    opened_s: what decoding takes at most, since that has to be done again. None: nothing fits.
    """
    for share in SMALLER:
        px = max(PX_STEP, round(share * image_px / PX_STEP) * PX_STEP)
        rate = forward * (image_px / px) ** 2
        least_s = opened_s + needed_s(counts, rate, num_features, num_classes)
        # Below that a network leaves strides out, and is no faster.
        if SMALL_IMAGE_PX <= px < image_px and least_s <= PLANNED_SHARE * left_s:
            return px
    return None


# An image through the last stages, forward, backward and update, takes so many times a forward pass
# of the whole network (EfficientNet-Lite0 at 224 px, its last two stages).
LAST_STAGES_COST: Final = 1.25
LAST_STAGES_FEWEST: Final = 1.0
LAST_STAGES_MOST: Final = 8.0
# Of few images more looks: fewer steps of Adam at the full learning rate end where they happen to
# be (30 images, 8 updates: from 100 % to 25 to 75 %; 100 updates: 100 %).
LAST_STAGES_IMAGES: Final = 3200
# What earlier stages say of all images is kept while it is no more of the machine's memory, and of
# this where the system does not say how much there is.
KEPT_SHARE: Final = 1 / 8
UNKNOWN_MEMORY_BYTES: Final = 8 << 30


def last_stages_rule(
    left_s: float,
    counts: Counts,
    forward: float,
    *,
    bundle_s: float,
    kept_bytes: int,
    memory_bytes: int,
) -> Partly | None:
    """The training of the last stages that fits into what is left after the first answer.

    kept_bytes: what one view of each image takes. memory_bytes: of the machine, 0 where it is
    not known. None where the time is too short, or the memory.
    """
    ended_s = ending_s(counts, forward, bundle_s=bundle_s)
    most = max(LAST_STAGES_MOST, LAST_STAGES_IMAGES / counts.train)
    most_bytes = KEPT_SHARE * (memory_bytes or UNKNOWN_MEMORY_BYTES)
    for flipped in (True, False):
        views = 1 + flipped
        kept_s = views * counts.train / forward
        spare_s = PLANNED_SHARE * (left_s - ended_s) - kept_s
        epoch_s = LAST_STAGES_COST * counts.train / forward
        epochs = min(spare_s / epoch_s, most)
        if epochs >= LAST_STAGES_FEWEST * views and views * kept_bytes <= most_bytes:
            seconds = kept_s + epochs * epoch_s
            seen = "images and their mirror images" if flipped else "images"
            reason = f"{epochs:.1f} looks at all {seen} fit into {seconds:.0f} s"
            return Partly(flipped, epochs, seconds, reason)
    return None


# An image through forward, backward and update takes so many times a forward pass in inference:
# EfficientNet-Lite0 trains at 60 images/s of 160 px (`vidi.model.classifier`), and computes 156
# features a second at 224 px, which is 306 at 160.
UPDATE_COST: Final = 5.0
# Looked at fewer times than this, fine-tuning is not tried. It is the answer only where held-out
# images like it better than the head that it starts from.
FEWEST_EPOCHS: Final = 0.6
# More looks than these bring more at the next size up.
ENOUGH_EPOCHS: Final = 3.0
MOST_EPOCHS: Final = 20.0
# Sizes to train at, as shares of the size that is judged: random crops show things larger than
# they are judged, so training at less fits (Touvron et al. 2019), and it is cheaper.
SHARES: Final = (6 / 7, 5 / 7)
# Sizes are multiples of this: what networks divide their maps by.
PX_STEP: Final = 32


def tuning_rule(
    left_s: float,
    counts: Counts,
    forward: float,
    image_px: int,
    *,
    bundle_s: float,
    fewest: float = FEWEST_EPOCHS,
) -> Tuning | None:
    """The fine-tuning that fits into what is left after the first answer.

    fewest: epochs; None where the time is too short for that many.
    """
    spare_s = PLANNED_SHARE * (left_s - ending_s(counts, forward, bundle_s=bundle_s))
    found = None
    for share in SHARES:
        px = max(PX_STEP, round(share * image_px / PX_STEP) * PX_STEP)
        rate = forward * (image_px / px) ** 2 / UPDATE_COST
        epochs = spare_s * rate / counts.train
        last = px == PX_STEP or share == SHARES[-1]
        if epochs >= (fewest if last else ENOUGH_EPOCHS):
            epochs = min(epochs, MOST_EPOCHS)
            takes_s = epochs * counts.train / rate
            found = Tuning(
                px, epochs, takes_s, f"{epochs:.1f} epochs at {px} px fit into {spare_s:.0f} s"
            )
            break
    return found
