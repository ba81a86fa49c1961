"""What changes in the course of a run: the size of the images, and which layers learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from vidi.config import Config
from vidi.errors import ConfigError
from vidi.facts import Facts
from vidi.plan.decisions import Decisions
from vidi.plan.length import affordable_epochs, head_s
from vidi.plan.network import OFFLINE_WEIGHTS, SMALL_NETWORKS, networks_of
from vidi.plan.values import ExecutionPlan, Head, Stage

T = TypeVar("T")


def decide_head(
    config: Config,
    facts: Facts,
    decided: Decisions,
    model_name: str,
    image_px: int,
    *,
    pretrained: bool,
) -> Head:
    """Whether the head is fitted on features before the rest learns.

    Raises:
        ConfigError: the network is not pretrained, so it has no features worth keeping.
    """
    head: Head = decided.take(
        "head",
        config.train.head,
        _head_rule(config, facts, model_name, image_px, pretrained=pretrained),
    )
    if head != "with_the_rest" and not pretrained:
        raise ConfigError(
            f"train.head = '{head}' fits the head on features, and this network has none yet: it "
            "is not pretrained",
            fix="set model.weights, or leave train.head out",
        )
    return head


# Features of more images are not kept for a head alone: 1,280 numbers of each.
_MOST_FEATURES = 100_000
# Of the minutes, what a head may take before the rest learns.
_HEAD_SHARE = 0.8


def _head_rule(
    config: Config, facts: Facts, model_name: str, image_px: int, *, pretrained: bool
) -> tuple[Head, str]:
    """A head that fits the features is a better start than random weights (Kumar et al. 2022)."""
    if not pretrained:
        return "with_the_rest", "everything learns from its start"
    images = facts.dataset.num_images
    if model_name not in OFFLINE_WEIGHTS or images("train") > _MOST_FEATURES:
        return "with_the_rest", "a warm-up keeps the features from harm"
    minutes = config.train.minutes
    if minutes is not None and head_s(facts, image_px) > _HEAD_SHARE * 60 * minutes:
        return "with_the_rest", "no time to look at every image for the head alone"
    return "first", "from random weights it would learn for an epoch what a fit has in a third"


# Sides of the images in equal parts of a run that is short for its images: 20, 26 and 32 of 32 px
# (Howard 2018, DAWNBench). Four such looks at each image are better than three whole ones, sixteen
# are as good as twelve: docs/measurements.md.
_RISING_SIDES = (20 / 32, 26 / 32, 1.0)
_RISING_BELOW_EPOCHS = 8
# Smaller images than these show too little at less.
_RISING_FROM_PX = 28


def sizes_rule(
    config: Config, facts: Facts, execution: ExecutionPlan, *, model_name: str, image_px: int
) -> tuple[tuple[int, ...], str]:
    """Sides of the images in equal parts of the run, and why they change, if they do."""
    asked = config.train
    if asked.progressive_px is not None or asked.image_px is not None:
        return asked.progressive_px or (asked.image_px or image_px,), "sizes asked for"
    whole = (image_px,)
    if (
        asked.minutes is None
        or model_name not in SMALL_NETWORKS
        or image_px < _RISING_FROM_PX
        # An accelerator is idle with small images, and a compiled step is compiled for each size.
        or execution.device != "cpu"
        or execution.compile
        or facts.measured is None
        or affordable_epochs(asked.minutes * 60, facts, whole)
        >= _RISING_BELOW_EPOCHS * networks_of(model_name)
    ):
        return whole, ""
    sizes = tuple(round(side * image_px) for side in _RISING_SIDES)
    return sizes, "smaller images at first: more looks in the same time"


def decide_stages(
    config: Config,
    facts: Facts,
    decided: Decisions,
    sizes: tuple[Sequence[int], str],
    *,
    image_px: int,
    pretrained: bool,
) -> tuple[Stage, ...]:
    """The parts of a run, in order; one, if nothing changes. `sizes`: what `sizes_rule` says.

    Raises:
        ConfigError: sizes that do not end at the size of the images, or layers that cannot stay.
    """
    asked = config.train
    num_stages = len(facts.model.stages) if facts.model is not None else None
    frozen = asked.freeze_stages or 0
    _check(config, num_stages, image_px=image_px, pretrained=pretrained)
    sides, why_sides = sizes
    shares = asked.progressive_data or (1.0,)
    thaws = [(0.0, frozen)]
    if asked.unfreeze_fraction and num_stages is not None:
        # At first only the head learns; then one stage more at a time, the last one first, until
        # those are left that never learn (Howard and Ruder 2018).
        steps = num_stages - 1 - frozen
        thaws = [
            (asked.unfreeze_fraction * number / max(1, steps), num_stages - 1 - number)
            for number in range(steps + 1)
        ]
    parts = {n / count for count in (len(sides), len(shares)) for n in range(count)}
    starts = sorted({start for start, _ in thaws} | parts)
    ends = [*starts[1:], 1.0]
    stages: list[Stage] = []
    for start, end in zip(starts, ends, strict=True):
        stage = Stage(
            until=end,
            image_px=_at(sides, start),
            frozen_stages=[count for at, count in thaws if at <= start + 1e-12][-1],
            data_share=_at(shares, start),
        )
        if stages and stages[-1].model_copy(update={"until": end}) == stage:
            # Nothing changes there.
            stages.pop()
        stages.append(stage)
    what = [
        why_sides,
        "shares of the images asked for" if asked.progressive_data else "",
        "gradual unfreezing asked for" if asked.unfreeze_fraction else "",
        f"{frozen} stages stay as they are" if frozen else "",
    ]
    decided.reasons["stages"] = "; ".join(filter(None, what)) or "nothing changes along the way"
    return tuple(stages)


def _at(values: Sequence[T], start: float) -> T:
    """Of values for equal parts of a run, that of the part which begins there or before."""
    return values[min(len(values) - 1, int(start * len(values) + 1e-9))]


def _check(config: Config, num_stages: int | None, *, image_px: int, pretrained: bool) -> None:
    asked = config.train
    sizes = asked.progressive_px
    if sizes is not None and (not sizes or sizes[-1] != image_px or list(sizes) != sorted(sizes)):
        raise ConfigError(
            f"train.progressive_px = {list(sizes)} has to rise to the size of the images, "
            f"{image_px}",
            fix=f"for example [{max(1, image_px // 2)}, {max(1, image_px * 3 // 4)}, {image_px}]",
        )
    if asked.image_px is not None and (sizes is not None or asked.image_px > image_px):
        raise ConfigError(
            f"train.image_px = {asked.image_px} is what the model sees in training, at most the "
            f"{image_px} px that it is judged at, and instead of train.progressive_px",
            fix="leave it out, or set data.image_px too",
        )
    shares = asked.progressive_data
    if shares is not None and (not shares or shares[-1] != 1.0 or list(shares) != sorted(shares)):
        raise ConfigError(
            f"train.progressive_data = {list(shares)} has to rise to 1, all of the training images",
            fix="for example [0.25, 0.5, 1.0]",
        )
    if (asked.freeze_stages or asked.unfreeze_fraction) and not pretrained:
        raise ConfigError(
            "layers that do not learn keep what they know, and this network knows nothing yet: it "
            "is not pretrained",
            fix="set model.weights, or leave train.freeze_stages and train.unfreeze_fraction out",
        )
    if num_stages is not None and asked.freeze_stages is not None:
        last = num_stages - 1
        if asked.freeze_stages > last:
            raise ConfigError(
                f"train.freeze_stages = {asked.freeze_stages}: the network has {num_stages} "
                "stages, and the last one, the head, has to learn",
                fix=f"give at most {last}",
            )
