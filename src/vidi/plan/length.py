"""How long a run is, and how often it is validated."""

from __future__ import annotations

import math

from vidi.config import Config
from vidi.facts import Facts
from vidi.words import count


def horizon_rule(
    config: Config, facts: Facts, batch_size: int, pretrained: bool
) -> tuple[int, str]:
    """How many updates: what was asked, or what the time allows, or enough to converge."""
    num_train = facts.dataset.num_images("train")
    steps_per_epoch = max(1, num_train // batch_size)
    if config.train.epochs is not None:
        steps = max(1, round(config.train.epochs * steps_per_epoch))
        return (
            steps,
            f"asked for {epochs_of(config.train.epochs)} of {count(steps_per_epoch, 'step')}",
        )
    # Past this many looks at each image, more training from scratch brings nothing.
    longest = longest_epochs(pretrained=pretrained)
    if config.train.minutes is not None and facts.measured is not None:
        epochs, why = _affordable_epochs(config.train.minutes * 60, facts)
        epochs = min(epochs, longest)
        return max(1, math.floor(epochs * steps_per_epoch)), why
    # About 1,500 updates for a small data set, 15 looks at each image for a large one.
    epochs = 5 if pretrained else min(60, max(15, math.ceil(1_500 / steps_per_epoch)))
    return (
        epochs * steps_per_epoch,
        f"{epochs_of(epochs)}: neither epochs nor minutes were asked for",
    )


def epochs_of(number: float) -> str:
    """1 epoch, 2.5 epochs."""
    return f"{number:g} epoch" + ("" if number == 1 else "s")


def longest_epochs(*, pretrained: bool) -> int:
    return 20 if pretrained else 200


# Share of a time budget that is planned; the rest is for a machine that turns out slower than its
# probe, for checkpoints, and for the report.
_PLANNED_SHARE = 0.93


def _affordable_epochs(budget_s: float, facts: Facts) -> tuple[float, str]:
    measured, dataset = facts.measured, facts.dataset
    assert measured is not None
    best = max(
        (step.images_per_second for step in measured.steps if not step.rejected), default=1.0
    )
    forward = measured.evaluation_images_per_second or 3 * best
    training_s = dataset.num_images("train") / best
    # Validation after every epoch, or more seldom when it would take more than its share.
    evaluation_s = min(dataset.num_images("validation") / forward, _EVALUATION_SHARE * training_s)
    final_s = (dataset.num_images("validation") + dataset.num_images("test")) / forward
    left_s = _PLANNED_SHARE * budget_s - measured.spent_s - final_s
    epochs = max(0.0, left_s) / (training_s + evaluation_s)
    return epochs, (f"{epochs:.1f} epochs fit into {budget_s:,.0f} s at {best:,.0f} images/s")


# Share of the training time that may go into validating along the way.
_EVALUATION_SHARE = 0.05


def evaluate_every_rule(horizon: int, steps_per_epoch: int) -> tuple[int, str]:
    epochs = horizon / steps_per_epoch
    every = max(1, math.ceil(epochs / 40)) * steps_per_epoch
    if every >= horizon:
        return max(1, horizon), "once, at the end"
    if every == steps_per_epoch:
        return every, "after every epoch"
    return every, f"every {every // steps_per_epoch} epochs: about 40 points on the curve"
