"""What an ablation changes: the factors, their levels around a base, and in which order.

Pure: a plan and a config go in, settings come out. Every level changes one thing; what it would
drag along by vidi's own rules (the average of a shorter run, the parts of a batch) is pinned by
`pinned`. Factors stand in the order of how much they usually matter, so that a short budget is
spent on what matters: the learning rate first, then what decides about it, then augmentation, then
the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from vidi.config import Config
from vidi.errors import UsageError, VidiError, nearest
from vidi.facts import Facts
from vidi.plan import Plan, make


@dataclass(frozen=True)
class Level:
    """One change of the base. cost: how many times as long as the base a training takes."""

    factor: str
    level: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    cost: float = 1.0


@dataclass(frozen=True)
class LeftOut:
    """A level that cannot be tried here, and why."""

    factor: str
    level: str
    reason: str


def pinned(plan: Plan) -> dict[str, Any]:
    """Settings of the base that a change of another one must not move, and no probe either."""
    return {
        "model.name": plan.model.name,
        "model.weights": plan.model.weights,
        "model.views": plan.model.views,
        "machine.precision": plan.execution.precision,
        "machine.channels_last": plan.execution.channels_last,
        "machine.compile": plan.execution.compile,
        "machine.winograd": plan.execution.winograd,
        "machine.probe": "never",
        "data.image_px": plan.pixels.image_px,
        "train.batch_size": plan.batch_size,
        "train.accumulate": plan.accumulate,
        "train.optimizer": plan.optimizer.name,
        "train.schedule": plan.schedule.name,
        "train.warmup_fraction": plan.schedule.warmup_fraction,
        "train.ema_decay": plan.ema_decay,
    }


def levels_of(
    config: Config, plan: Plan, facts: Facts, factors: Sequence[str] = ()
) -> tuple[list[Level], list[LeftOut]]:
    """The levels to try, the most important first, and those that cannot be.

    Args:
        config: of the base, pinned. plan: what it becomes.
        factors: only these, in this order; all if empty. "schedule:step" is one level of a factor,
            by a value that it sets, or a part of its name.

    Raises:
        UsageError: a factor or a level that does not exist.
    """
    check_factors(factors)
    levels: list[Level] = []
    left_out: list[LeftOut] = []
    for name in factors or FACTORS:
        for level in _chosen(name, plan):
            try:
                other = make(config.with_settings(level.settings), facts)
            except VidiError as error:
                left_out.append(LeftOut(level.factor, level.level, error.message))
                continue
            if _decided(other) == _decided(plan):
                left_out.append(LeftOut(level.factor, level.level, "the base has it already"))
            else:
                levels.append(level)
    return levels, left_out


def check_factors(factors: Sequence[str]) -> None:
    """Raises UsageError for a factor that does not exist."""
    for asked in factors:
        name = asked.partition(":")[0]
        if name not in FACTORS:
            what = f"there is no factor '{name}'" if name else "a factor has no name"
            raise UsageError(what, fix=nearest(name, FACTORS))


def _chosen(asked: str, plan: Plan) -> list[Level]:
    name, _, part = asked.partition(":")
    levels = FACTORS[name](plan)
    if not part:
        return levels
    exactly = [each for each in levels if part in map(str, each.settings.values())]
    found = exactly or [each for each in levels if part in each.level]
    if not found:
        known = ", ".join(each.level for each in levels)
        raise UsageError(f"the factor '{name}' has no level '{part}' here", fix=f"it has: {known}")
    return found


def _decided(plan: Plan) -> dict[str, Any]:
    return plan.model_dump(exclude={"reasons"})


def _learning_rate(plan: Plan) -> list[Level]:
    base = plan.optimizer.learning_rate_per_256
    return [
        Level("learning rate", f"{name} ({base * factor:.2g})", {
            "train.learning_rate": float(f"{base * factor:.3g}")})
        for name, factor in (
            ("a third", 1 / 3), ("three times", 3.0), ("a tenth", 0.1), ("ten times", 10.0)
        )
    ]  # fmt: skip


def _optimizer(plan: Plan) -> list[Level]:
    # Each with the learning rate of vidi's table: the base's own would fit only the base.
    return [
        Level("optimizer", name, {"train.optimizer": name, "train.learning_rate": None})
        for name in ("sgd", "adamw", "adam", "muon", "muon_hyperball", "rmsprop")
        if name != plan.optimizer.name
    ]


def _schedule(plan: Plan) -> list[Level]:
    names = {
        "cosine": "cosine",
        "step": "in steps, a tenth after each third",
        "cosine_restarts": "cosine with restarts",
        "linear": "linear",
        "constant": "constant",
        "one_cycle": "one cycle",
    }
    return [
        Level(
            "schedule",
            words,
            {"train.schedule": name, "train.schedule_settings": None}
            # It begins with a rise of its own.
            | ({"train.warmup_fraction": 0.0} if name == "one_cycle" else {}),
        )
        for name, words in names.items()
        if name != plan.schedule.name
    ]


def _batch_size(plan: Plan) -> list[Level]:
    """Four times as small and as large, and three ideas of what the learning rate should do."""
    levels = []
    rate = plan.optimizer.learning_rate
    for factor in (0.25, 4.0):
        size = round(plan.batch_size * factor)
        if size < 2 or 2 * size > plan.num_train:
            continue
        ideas = (
            ("learning rate in proportion", rate * factor),
            ("learning rate kept", rate),
            ("learning rate against it", rate / factor),
        )
        for words, absolute in ideas:
            settings = {
                "train.batch_size": size,
                "train.learning_rate_scaling": "none",
                "train.learning_rate": float(f"{absolute:.4g}"),
            }
            levels.append(Level("batch size", f"{size}, {words}", settings, _COST_OF_SMALL[factor]))
    return levels


# Small batches leave more of a step to its fixed costs.
_COST_OF_SMALL: Final = {0.25: 1.5, 4.0: 1.0}


def _warm_up(plan: Plan) -> list[Level]:
    return [
        Level("warm-up", words, {"train.warmup_fraction": share})
        for words, share in (("none", 0.0), ("over 5%", 0.05), ("over 30%", 0.3))
        if share != plan.schedule.warmup_fraction
    ]


def _choices(factor: str, setting: str, now: object, words: Mapping[str, str]) -> list[Level]:
    return [Level(factor, said, {setting: name}) for name, said in words.items() if name != now]


def _mirror(plan: Plan) -> list[Level]:
    words = {"none": "none", "random": "random", "alternating": "every other epoch"}
    setting = "augment.horizontal_flip"
    return _choices("mirror images", setting, plan.augment.horizontal_flip, words)


def _crop(plan: Plan) -> list[Level]:
    words = {"none": "none", "pad": "shifted", "resized": "shifted and scaled"}
    return _choices("crop", "augment.crop", plan.augment.crop, words)


def _policy(plan: Plan) -> list[Level]:
    words = {"none": "none", "light": "light", "medium": "medium", "strong": "strong"}
    return _choices("changes of shape and colour", "augment.policy", plan.augment.policy, words)


def _switch(
    factor: str, setting: str, now: float | None, tried: Sequence[float], *, off: float = 0.0
) -> list[Level]:
    """Off, where the base has it, and some values that it does not have."""
    values = [*([off] if now not in (None, off) else []), *tried]
    return [
        Level(factor, "off" if value == off else f"{value:g}", {setting: value})
        for value in values
        if value != now
    ]


def _mixup(plan: Plan) -> list[Level]:
    return _switch("mixup", "augment.mixup_alpha", plan.augment.mixup_alpha, (0.2,))


def _cutmix(plan: Plan) -> list[Level]:
    return _switch("cutmix", "augment.cutmix_alpha", plan.augment.cutmix_alpha, (1.0,))


def _erasing(plan: Plan) -> list[Level]:
    return _switch("erasing", "augment.erase_probability", plan.augment.erase_probability, (0.25,))


def _weight_decay(plan: Plan) -> list[Level]:
    now = plan.optimizer.weight_decay
    more = float(f"{10 * now:.3g}") if now else 5e-4
    return _switch("weight decay", "train.weight_decay", now, (more,))


def _dropout(plan: Plan) -> list[Level]:
    return _switch("dropout", "model.dropout", plan.model.dropout, (0.2, 0.5))


def _label_smoothing(plan: Plan) -> list[Level]:
    return _switch("label smoothing", "train.label_smoothing", plan.label_smoothing, (0.1, 0.2))


def _average(plan: Plan) -> list[Level]:
    """The moving average over the last twentieth, and the plain one over the last quarter."""
    moving = round(1.0 - 1.0 / max(10.0, plan.horizon_steps / 20), 4)
    return [
        *_switch("average of weights", "train.ema_decay", plan.ema_decay, (moving,)),
        Level("average of weights", "plain, over the last quarter",
              {"train.ema_decay": 0.0, "train.swa_fraction": 0.25}),
    ]  # fmt: skip


def _sharpness(plan: Plan) -> list[Level]:
    levels = _switch("sharpness-aware steps", "train.sam_rho", plan.sam_rho, (0.05,))
    return [Level(one.factor, one.level, one.settings, cost=2.2) for one in levels]


def _clipping(plan: Plan) -> list[Level]:
    return _switch("gradient clipping", "train.clip_norm", plan.clip_norm, (1.0,))


def _precision(plan: Plan) -> list[Level]:
    return [
        Level("precision", name, {"machine.precision": name, "machine.winograd": False}, cost=3.0)
        for name in ("float32", "bfloat16")
        if name != plan.execution.precision
    ]


def _convolutions(plan: Plan) -> list[Level]:
    """Those of vidi.winograd round more: does it cost anything?"""
    if plan.execution.device != "cpu" or plan.execution.precision != "bfloat16":
        return []
    other = not plan.execution.winograd
    name = "by minimal filtering" if other else "torch's"
    return [Level("convolutions", name, {"machine.winograd": other}, cost=2.0)]


def _accumulation(plan: Plan) -> list[Level]:
    levels = []
    for parts in (1, 4):
        if parts != plan.accumulate and parts <= plan.batch_size:
            words = "whole batches" if parts == 1 else f"batches in {parts} parts"
            levels.append(Level("accumulation", words, {"train.accumulate": parts}, 1.3))
    return levels


def _layers(plan: Plan) -> list[Level]:
    """Only of fine-tuning: layers near the images learn less, and the head begins on its own."""
    if plan.model.weights == "none":
        return []
    levels = _switch("layer-wise decay", "train.layer_decay", plan.layer_decay, (0.75,), off=1.0)
    heads = {"with_the_rest": "with the rest", "first": "fitted first", "only": "nothing else"}
    return levels + _choices("head", "train.head", plan.head, heads)


# By name as `--factors` takes it, in the order of how much they usually matter.
FACTORS: Final[Mapping[str, Callable[[Plan], list[Level]]]] = {
    "learning_rate": _learning_rate,
    "optimizer": _optimizer,
    "schedule": _schedule,
    "batch_size": _batch_size,
    "layers": _layers,
    "mirror": _mirror,
    "crop": _crop,
    "policy": _policy,
    "weight_decay": _weight_decay,
    "label_smoothing": _label_smoothing,
    "warm_up": _warm_up,
    "average": _average,
    "dropout": _dropout,
    "mixup": _mixup,
    "cutmix": _cutmix,
    "erasing": _erasing,
    "sharpness": _sharpness,
    "clipping": _clipping,
    "precision": _precision,
    "convolutions": _convolutions,
    "accumulation": _accumulation,
}


# ---- Which runs, in which order ------------------------------------------------------------------


def least_epochs(plan: Plan) -> float:
    """Below this, learning has hardly begun, and levels are told apart by their start."""
    return 1.0 if plan.model.weights != "none" else 2.0


def decide_epochs(
    plan: Plan,
    asked: float | None,
    *,
    minutes_left: float | None,
    epoch_s: float | None,
    cost: float,
    seeds: int,
) -> tuple[float, str]:
    """How long each training is, and why.

    Args:
        plan: of the base at full length. asked: epochs that were asked for.
        minutes_left, epoch_s: the budget, and what an epoch of the base takes.
        cost: of all levels and the base together, the base being 1.
    """
    if asked is not None:
        return asked, "asked for"
    least = least_epochs(plan)
    quarter = max(least, min(5.0, round(plan.num_epochs / 4)))
    if minutes_left is None or epoch_s is None:
        return quarter, "a quarter of a full training, at most 5 epochs: effects show early"
    fitting = 60.0 * minutes_left * _PLANNED_SHARE / (epoch_s * cost * seeds)
    # In halves: nobody wants to read 2.3718 epochs.
    epochs = max(least, min(quarter, int(2 * fitting) / 2))
    if fitting < least:
        return epochs, f"the least that says anything; only {fitting:.1f} would fit for all changes"
    return epochs, f"{fitting:.1f} fit for all changes into the minutes"


# The rest is for validation, checkpoints and the page.
_PLANNED_SHARE: Final = 0.8


@dataclass(frozen=True)
class Pair:
    """One training: a level (0 is the base) with a seed."""

    level: int
    seed: int


def order(num_levels: int, seeds: int) -> list[Pair]:
    """The base first, then level by level, each with all seeds: half a level says nothing."""
    return [Pair(level, seed) for level in range(num_levels) for seed in range(seeds)]


def fits(
    level: int,
    seeds_left: int,
    *,
    base_s: Sequence[float],
    cost: float,
    left_s: float | None,
) -> bool:
    """Whether the trainings that a level still needs can be finished in the time that is left.

    base_s: seconds of the trainings of the base so far. Without one the base is begun while there
        is time, to find out, and no level is: it would have nothing to be held against.
    """
    if left_s is None:
        return True
    if not base_s:
        return level == 0 and left_s > 0
    longest = max(base_s) * (cost if level else 1.0)
    return seeds_left * longest * CAREFUL <= left_s


def forecast_s(costs: Sequence[float], seeds: int, base_s: float) -> float:
    """How long all trainings of levels with these costs take; base_s: one of the base."""
    return sum(costs) * seeds * base_s


# A machine that others use is not always as fast as it was.
CAREFUL: Final = 1.15

__all__ = [
    "CAREFUL",
    "FACTORS",
    "LeftOut",
    "Level",
    "Pair",
    "check_factors",
    "decide_epochs",
    "fits",
    "forecast_s",
    "least_epochs",
    "levels_of",
    "order",
    "pinned",
]
