"""How the weights are updated: batch, optimizer, learning rate, average."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

from vidi import schedule
from vidi.config import Config
from vidi.errors import ConfigError, UsageError
from vidi.facts import DatasetFacts, Sharding
from vidi.plan.decisions import Decisions
from vidi.plan.network import SMALL_NETWORKS, Small, networks_of
from vidi.plan.values import OptimizerPlan, SchedulePlan


def batch_size_rule(
    model_name: str, num_train: int, device: str, *, pretrained: bool
) -> tuple[int, str]:
    networks = networks_of(model_name)
    size, why = _batch_size_of_one(model_name, num_train, device, pretrained=pretrained)
    if networks > 1:
        return size * networks, f"{size} for each of the {networks} networks: {why}"
    return size, why


def _batch_size_of_one(
    model_name: str, num_train: int, device: str, *, pretrained: bool
) -> tuple[int, str]:
    if pretrained:
        if device == "cpu":
            return 16, "on a processor, larger batches fall out of its caches"
        return 64, "enough for an accelerator, small enough for many updates"
    if num_train < 4_000:
        return 64, f"{num_train:,} images: many updates matter more than speed"
    if num_train < 20_000:
        return 128, "a good trade between updates and speed for small images"
    width, networks = SMALL_NETWORKS.get(model_name, Small())
    if width > 1 and networks == 1:
        return 512, "a wide network's optimizer takes long, so fewer updates"
    return 256, f"{num_train:,} images: updates enough, so the faster step wins"


# Peak learning rate for 256 images, and how it follows the batch size: linearly for SGD (Goyal et
# al. 2017), with the square root for adaptive methods (Malladi et al. 2022). The fine-tuning rate
# is 1.5e-4 at 16 images; see docs/measurements.md.
_LEARNING_RATES: dict[str, tuple[float, Literal["linear", "sqrt", "none"]]] = {
    "sgd": (0.2, "linear"),
    "adamw": (1e-3, "sqrt"),
    "adam": (1e-3, "sqrt"),
    "nadam": (1e-3, "sqrt"),
    "rmsprop": (1e-3, "sqrt"),
    "adagrad": (1e-2, "sqrt"),
    "adadelta": (1.0, "none"),
    "muon": (0.03, "sqrt"),
    # How far filters turn in a step.
    "muon_hyperball": (0.12, "sqrt"),
    "sgd_schedule_free": (2.0, "linear"),
    "adamw_schedule_free": (2.5e-3, "sqrt"),
}
# Optimizers that average instead of lowering the learning rate (Defazio et al. 2024); as in
# vidi.optim, which needs torch.
SCHEDULE_FREE = ("sgd_schedule_free", "adamw_schedule_free")
_FINE_TUNING_RATE = 6e-4


def optimizer_rule(
    model_name: str, *, pretrained: bool, sharding: Sharding = "none"
) -> tuple[str, str]:
    if pretrained:
        return "adamw", "steady while fine-tuning; Loshchilov and Hutter 2019"
    if sharding == "none" and model_name in SMALL_NETWORKS:
        return "muon_hyperball", "learns small images several times as fast as SGD; Jordan 2024"
    return "sgd", "with Nesterov momentum: the best known for convolutions from scratch"


def weight_decay_rule(name: str, num_train: int, *, pretrained: bool) -> tuple[float, str]:
    """Stated for 256 images an update, and not for a learning rate; see `vidi.optim`."""
    if pretrained:
        return 0.05, "as DeiT and ConvNeXt fine-tune"
    if name == "muon_hyperball":
        return 0.0, "filters keep their norm, and what is left has little to lose"
    if name == "muon":
        return 0.5, "keeps the filters from growing, and with it the learning rate its meaning"
    if num_train < 4_000:
        return 2e-3, f"{num_train:,} images: four times what ResNets train with"
    if num_train < 20_000:
        return 1e-3, f"{num_train:,} images: twice what ResNets train with"
    return 5e-4, "as ResNets train"


def decide_optimizer(
    config: Config,
    decided: Decisions,
    batch_size: int,
    *,
    model_name: str,
    num_train: int,
    pretrained: bool,
    sharding: Sharding,
) -> OptimizerPlan:
    asked = config.train
    if asked.optimizer == "lbfgs":
        raise ConfigError(
            "train.optimizer = 'lbfgs' needs all images at once; it fits heads on kept features",
            fix="set train.head = 'only' for that, or use adamw or sgd",
        )
    name = decided.take(
        "optimizer.name",
        asked.optimizer,
        optimizer_rule(model_name, pretrained=pretrained, sharding=sharding),
    )
    if pretrained and name == "adamw":
        base, scaling = _FINE_TUNING_RATE, "sqrt"
    else:
        base, scaling = _LEARNING_RATES.get(name, (1e-3, "none"))
    scaling = asked.learning_rate_scaling or scaling
    base = asked.learning_rate or base
    # What one of several networks learns from at a time.
    each = batch_size / networks_of(model_name) / 256
    factor = {"linear": each, "sqrt": math.sqrt(each), "none": 1.0}[scaling]
    why = "asked for" if asked.learning_rate is not None else "the table of vidi.plan"
    decided.reasons["optimizer.learning_rate"] = (
        f"{base:g} for 256 images ({why}), scaled to {256 * each:g} by rule '{scaling}'"
    )
    return OptimizerPlan(
        name=name,
        learning_rate=base * factor,
        learning_rate_per_256=base,
        momentum=decided.take("optimizer.momentum", asked.momentum, _momentum_rule(name)),
        weight_decay=decided.take(
            "optimizer.weight_decay",
            asked.weight_decay,
            weight_decay_rule(name, num_train, pretrained=pretrained),
        ),
    )


def _momentum_rule(optimizer: str) -> tuple[float, str]:
    if optimizer == "muon_hyperball":
        return 0.6, "an orthogonal update is steady by itself; Jordan 2024"
    if optimizer == "muon":
        return 0.95, "Jordan et al. 2024, Muon"
    if optimizer in ("adagrad", "adadelta", "lbfgs"):
        return 0.0, f"{optimizer} has none"
    return 0.9, "Sutskever et al. 2013"


def decide_schedule(
    config: Config,
    dataset: DatasetFacts,
    decided: Decisions,
    *,
    optimizer: str,
    pretrained: bool,
) -> SchedulePlan:
    """The learning rate's curve, for the optimizer that was decided on.

    Raises:
        ConfigError: it follows the validation, and nothing is validated; or it does not take its
            settings.
    """
    asked = config.train
    rule = "cosine", "ends at zero without a further setting; Loshchilov and Hutter 2017"
    if optimizer == "muon_hyperball":
        rule = "linear", "how far the filters turn falls evenly to nothing; Jordan 2024"
    if optimizer in SCHEDULE_FREE:
        rule = "constant", f"{optimizer} averages instead of lowering it; Defazio et al. 2024"
        if asked.schedule not in (None, "constant"):
            raise ConfigError(
                f"train.optimizer = '{optimizer}' does without a schedule, and "
                f"train.schedule = '{asked.schedule}' is one",
                fix="leave train.schedule out, or use adamw or sgd",
            )
    name = decided.take("schedule.name", asked.schedule, rule)
    if name == "plateau" and not dataset.num_images("validation"):
        raise ConfigError(
            "train.schedule = 'plateau' follows the validation, and no image is held out for it",
            fix="set data.validation_fraction, or use 'cosine'",
        )
    settings = decided.take(
        "schedule.settings", asked.schedule_settings, ({}, "as the schedule is defined")
    )
    warmup = decided.take(
        "schedule.warmup_fraction",
        asked.warmup_fraction,
        (0.0, "one_cycle begins with a rise of its own")
        if name == "one_cycle"
        else warmup_rule(optimizer, pretrained=pretrained),
    )
    if ":" not in name:
        # Now, not when a run has been made of it.
        try:
            own: dict[str, Any] = dict(settings)
            schedule.make(name, warmup_fraction=warmup, **own)
        except UsageError as error:
            raise ConfigError(f"train.schedule_settings: {error.message}", fix=error.fix) from error
    return SchedulePlan(name=name, warmup_fraction=warmup, settings=settings)


class AveragePlan(NamedTuple):
    """At most one of them is above 0."""

    ema_decay: float
    swa_fraction: float


def decide_average(config: Config, decided: Decisions, horizon: int) -> AveragePlan:
    """Which average of the weights is kept beside them.

    Raises:
        ConfigError: two were asked for.
    """
    asked = config.train
    if asked.ema_decay and asked.swa_fraction:
        raise ConfigError(
            "train.ema_decay and train.swa_fraction are two averages, and one is kept",
            fix="leave one of them out, or set it to 0",
        )
    if asked.optimizer in SCHEDULE_FREE:
        for setting, value in (
            ("ema_decay", asked.ema_decay),
            ("swa_fraction", asked.swa_fraction),
        ):
            if value:
                raise ConfigError(
                    f"train.optimizer = '{asked.optimizer}' averages the weights itself, and "
                    f"train.{setting} is another average",
                    fix=f"leave train.{setting} out, or use adamw or sgd",
                )
        why = f"{asked.optimizer} averages the weights itself"
        decided.reasons |= {"swa_fraction": why, "ema_decay": why}
        return AveragePlan(0.0, 0.0)
    swa = decided.take(
        "swa_fraction",
        asked.swa_fraction,
        (0.0, "asked for only; the moving average is vidi's choice"),
    )
    rule = (0.0, "the plain average is kept instead") if swa else ema_rule(horizon)
    return AveragePlan(decided.take("ema_decay", asked.ema_decay, rule), swa)


def warmup_rule(optimizer: str, *, pretrained: bool) -> tuple[float, str]:
    if pretrained:
        return 0.1, "a new head sends large gradients at first"
    if optimizer == "muon_hyperball":
        return 0.0, "a step is never longer than the learning rate says, whatever the gradient"
    return 0.15, "large learning rates need a start"


def ema_rule(horizon: int) -> tuple[float, str]:
    if horizon < 400:
        return 0.0, "too short a run for an average"
    decay = 1 - 1 / max(50.0, min(1000.0, horizon / 20))
    return decay, "an average over the last twentieth of the run"


def ema_every_rule(decay: float) -> tuple[int, str]:
    """Of an average over 20 steps or more, every fourth tells as much as all of them."""
    if decay < 0.95:
        return 1, "a short average looks at every step"
    return 4, "of so many steps every fourth tells as much, and the step stays cheap"
