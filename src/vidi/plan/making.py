"""Everything that was left open, decided from facts alone."""

from __future__ import annotations

import math

from vidi.config import Config
from vidi.errors import ConfigError, DataError
from vidi.facts import DatasetFacts, Facts
from vidi.plan.augmenting import decide_augmentation
from vidi.plan.decisions import Decisions
from vidi.plan.execution import decide_execution, evaluation_batch_size
from vidi.plan.feeding import decide_sampling
from vidi.plan.length import evaluate_every_rule, horizon_rule
from vidi.plan.network import choose_model, weights_rule
from vidi.plan.optimizing import (
    batch_size_rule,
    decide_optimizer,
    ema_every_rule,
    ema_rule,
    warmup_rule,
)
from vidi.plan.pixels import decide_pixels
from vidi.plan.values import ModelPlan, Plan, SchedulePlan


def make(config: Config, facts: Facts) -> Plan:
    """Decide everything that `config` leaves open, from `facts` alone.

    Raises:
        ConfigError: settings that contradict each other or this machine.
        DataError: too few classes or images to train on.
    """
    dataset, train = facts.dataset, config.train
    _check_data(dataset)
    decided = Decisions()
    choice = choose_model(config, dataset)
    pretrained = choice.weights != "none"

    model = ModelPlan(
        name=decided.take("model.name", None, (choice.name, choice.reason)),
        weights=decided.take("model.weights", config.model.weights, weights_rule(choice)),
        num_classes=dataset.num_classes,
        dropout=config.model.dropout,
        stochastic_depth=config.model.stochastic_depth,
        freeze_batch_norm=pretrained,
    )
    pixels = decide_pixels(config, facts, decided, pretrained=pretrained)
    execution = decide_execution(config, facts, pixels, decided)
    sampling = decide_sampling(config, dataset, decided)
    num_train = dataset.num_images("train")
    batch_size = decided.take(
        "batch_size",
        train.batch_size,
        batch_size_rule(num_train, execution.device, pretrained=pretrained),
    )
    if batch_size > num_train:
        batch_size = num_train
        decided.reasons["batch_size"] = f"there are only {num_train} training images"
    accumulate = decided.take("accumulate", train.accumulate, (1, "the batch fits"))
    if accumulate > batch_size:
        raise ConfigError(
            f"train.accumulate = {accumulate} cuts a batch of {batch_size} into less than an image",
            fix=f"give at most {batch_size}",
        )
    optimizer = decide_optimizer(config, decided, batch_size, pretrained=pretrained)
    schedule = SchedulePlan(
        name=decided.take(
            "schedule.name",
            train.schedule,
            ("cosine", "ends at zero without a further setting; Loshchilov and Hutter 2017"),
        ),
        warmup_fraction=decided.take(
            "schedule.warmup_fraction", train.warmup_fraction, warmup_rule(pretrained)
        ),
    )
    horizon = decided.take(
        "horizon_steps", None, horizon_rule(config, facts, batch_size, pretrained)
    )
    steps_per_epoch = max(1, num_train // batch_size)
    evaluate_every = decided.take(
        "evaluate_every_steps", None, evaluate_every_rule(horizon, steps_per_epoch)
    )
    patience = None
    if train.patience_epochs is not None:
        patience = max(1, math.ceil(train.patience_epochs * steps_per_epoch / evaluate_every))
        decided.reasons["patience_evaluations"] = "asked for, in epochs"

    ema_decay = decided.take("ema_decay", train.ema_decay, ema_rule(horizon))
    return Plan(
        seed=train.seed,
        pixels=pixels,
        model=model,
        augment=decide_augmentation(config, dataset, pixels, decided, pretrained=pretrained),
        optimizer=optimizer,
        schedule=schedule,
        batch_size=batch_size,
        accumulate=accumulate,
        evaluation_batch_size=evaluation_batch_size(execution, pixels),
        label_smoothing=decided.take(
            "label_smoothing",
            train.label_smoothing,
            (0.1, "keeps confidence honest; Szegedy et al. 2016"),
        ),
        ema_decay=ema_decay,
        ema_every_steps=decided.take("ema_every_steps", None, ema_every_rule(ema_decay)),
        clip_norm=train.clip_norm,
        num_train=num_train,
        sampling=sampling,
        horizon_steps=horizon,
        last_step=horizon,
        evaluate_every_steps=evaluate_every,
        log_every_steps=max(1, min(50, horizon // 100)),
        checkpoint_every_s=decided.take(
            "checkpoint_every_s",
            config.checkpoint.every_s,
            (30.0, "a kill costs at most this much work"),
        ),
        patience_evaluations=patience,
        execution=execution,
        reasons=decided.reasons,
    )


def retimed(plan: Plan, last_step: int) -> Plan:
    """The same plan with another end, when the machine is not as fast as it was measured.

    The learning rate is a function of the share that is done, so the curve is squeezed or
    stretched: it moves at once to where the other run would be, and still ends at its end.
    """
    reasons = {
        **plan.reasons,
        "horizon_steps": f"{plan.horizon_steps} by the first measurement, then by the clock",
    }
    steps = {"horizon_steps": last_step, "last_step": last_step}
    every = min(plan.evaluate_every_steps, last_step)
    return plan.model_copy(update={**steps, "evaluate_every_steps": every, "reasons": reasons})


def _check_data(dataset: DatasetFacts) -> None:
    with_images = [
        name for name, count in zip(dataset.classes, dataset.counts["train"], strict=True) if count
    ]
    if len(with_images) < 2:
        found = f"only the class '{with_images[0]}'" if with_images else "no class"
        raise DataError(
            f"{dataset.name}: {found} has training images, and a classifier tells classes apart",
            fix="give one folder for each of two or more classes",
        )
