"""How long a run is, and how often it is validated."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vidi.config import Config
from vidi.facts import Facts, Measurements
from vidi.words import count


def horizon_rule(
    config: Config,
    facts: Facts,
    batch_size: int,
    sides: Sequence[int],
    *,
    pretrained: bool,
    networks: int = 1,
    before_s: float = 0.0,
) -> tuple[int, str]:
    """How many updates: what was asked, or what the time allows, or enough to converge.

    sides: of the images in equal parts of the run, in px; steps are measured at the last.
    networks: that share a batch. before_s: what comes before the first step.
    """
    num_train = facts.dataset.num_images("train")
    steps_per_epoch = max(1, num_train // batch_size)
    if config.train.epochs is not None:
        steps = max(1, round(config.train.epochs * steps_per_epoch))
        return (
            steps,
            f"asked for {epochs_of(config.train.epochs)} of {count(steps_per_epoch, 'step')}",
        )
    # Past this many looks at each image, more training from scratch brings nothing.
    longest = longest_epochs(pretrained=pretrained, networks=networks)
    if config.train.minutes is not None and facts.measured is not None:
        budget_s = config.train.minutes * 60
        epochs = affordable_epochs(budget_s - before_s, facts, sides)
        why = f"{epochs:.1f} epochs fit into {budget_s:,.0f} s"
        why += f" at {facts.measured.training_images_per_second or 0.0:,.0f} images/s"
        return max(1, math.floor(min(epochs, longest) * steps_per_epoch)), why
    # About 1,500 updates for a small data set, 15 looks at each image for a large one.
    epochs = min(60, max(15, math.ceil(1_500 / (steps_per_epoch * networks))))
    epochs = 5 if pretrained else epochs * networks
    return (
        epochs * steps_per_epoch,
        f"{epochs_of(epochs)}: neither epochs nor minutes were asked for",
    )


def epochs_of(number: float) -> str:
    """1 epoch, 2.5 epochs."""
    return f"{number:g} epoch" + ("" if number == 1 else "s")


def longest_epochs(*, pretrained: bool, networks: int = 1) -> int:
    """networks: that share a batch, so that each of them sees an image so much more seldom."""
    return 20 if pretrained else 200 * networks


# Share of a time budget that is planned; the rest is for a machine that turns out slower than its
# probe, for checkpoints, and for the report.
_PLANNED_SHARE = 0.93


# Of a step, what takes as long for smaller images: steps of the small network at 20, 26 and 32 px
# take 0.72 of three at 32 px, and their pixels are 0.68 of those.
_SAME_FOR_ALL_SIDES = 0.1


def step_cost(image_px: int, measured_px: int) -> float:
    """What a step takes, in steps at the size that was measured."""
    return _SAME_FOR_ALL_SIDES + (1.0 - _SAME_FOR_ALL_SIDES) * (image_px / measured_px) ** 2


def affordable_epochs(budget_s: float, facts: Facts, sides: Sequence[int]) -> float:
    """How many epochs fit into a time, judging included, by what was measured.

    sides: of the images in equal parts of the run, in px.
    """
    measured, dataset = facts.measured, facts.dataset
    assert measured is not None
    training, forward = _rates(measured)
    training_s = dataset.num_images("train") / training
    training_s *= sum(step_cost(side, sides[-1]) for side in sides) / len(sides)
    # Validation after every epoch, or more seldom when it would take more than its share.
    evaluation_s = min(dataset.num_images("validation") / forward, _EVALUATION_SHARE * training_s)
    final_s = (dataset.num_images("validation") + dataset.num_images("test")) / forward
    left_s = _PLANNED_SHARE * budget_s - measured.spent_s - final_s
    return max(0.0, left_s) / (training_s + evaluation_s)


# Pixels a second and core of a pretrained network without a backward pass, before anything was
# measured: 70 photos of 224 px on a core with bfloat16.
_GUESSED_FORWARD = 70.0 * 224**2


def head_s(facts: Facts, image_px: int) -> float:
    """Seconds that a head takes that is fitted on the features of all images, and their mirrors."""
    images = facts.dataset.num_images
    rate = facts.measured and facts.measured.judging_images_per_second
    rate = rate or _GUESSED_FORWARD * facts.machine.usable_cores / image_px**2
    return 2 * (images("train") + images("validation")) / rate


def _rates(measured: Measurements) -> tuple[float, float]:
    """Images a second of training, at the size that was measured, and of judging."""
    # Where every way is out, the training says why.
    training, judging = measured.training_images_per_second, measured.judging_images_per_second
    return training or 1.0, judging or 1.0


# Share of the training time that may go into validating along the way.
_EVALUATION_SHARE = 0.05


def evaluation_share(facts: Facts) -> float:
    """What a validation takes, in epochs; 0 where nothing was measured."""
    measured = facts.measured
    if measured is None:
        return 0.0
    training, forward = _rates(measured)
    images = facts.dataset.num_images
    return images("validation") / forward / (images("train") / training)


def evaluate_every_rule(horizon: int, steps_per_epoch: int, share: float = 0.0) -> tuple[int, str]:
    """Steps between two validations. share: what one takes, in epochs."""
    epochs = horizon / steps_per_epoch
    number, why = max(1, math.ceil(epochs / 40)), "about 40 points on the curve"
    if (seldom := math.ceil(share / _EVALUATION_SHARE)) > number:
        number, why = seldom, f"one takes {share:.0%} of the time of an epoch"
    every = number * steps_per_epoch
    if every >= horizon:
        return max(1, horizon), "once, at the end"
    if number == 1:
        return every, "after every epoch"
    return every, f"every {number} epochs: {why}"
