"""Everything that was left open, decided from facts alone."""

from __future__ import annotations

import math

from vidi.config import Config
from vidi.errors import ConfigError, DataError
from vidi.facts import DatasetFacts, Facts
from vidi.plan.augmenting import decide_augmentation
from vidi.plan.decisions import Decisions
from vidi.plan.execution import (
    accumulate_rule,
    decide_device,
    decide_execution,
    evaluation_batch_size,
    fastest,
)
from vidi.plan.feeding import decide_sampling
from vidi.plan.length import evaluate_every_rule, evaluation_share, head_s, horizon_rule
from vidi.plan.loss import decide_loss
from vidi.plan.network import choose_model, networks_of, views_rule, weights_rule
from vidi.plan.optimizing import (
    batch_size_rule,
    decide_average,
    decide_optimizer,
    decide_schedule,
    ema_every_rule,
)
from vidi.plan.pixels import decide_pixels
from vidi.plan.sharding import check_sharding
from vidi.plan.stages import decide_head, decide_stages, sizes_rule
from vidi.plan.values import ModelPlan, Plan


def make(config: Config, facts: Facts) -> Plan:
    """Decide everything that `config` leaves open, from `facts` alone.

    Raises:
        ConfigError: settings that contradict each other or this machine.
        DataError: too few classes or images to train on.
    """
    dataset, train = facts.dataset, config.train
    _check_data(dataset)
    decided = Decisions()
    choice = choose_model(config, facts)
    pretrained = choice.weights != "none"

    model = ModelPlan(
        name=decided.take("model.name", None, (choice.name, choice.reason)),
        weights=decided.take("model.weights", config.model.weights, weights_rule(choice)),
        num_classes=dataset.num_classes,
        dropout=config.model.dropout,
        stochastic_depth=config.model.stochastic_depth,
        freeze_batch_norm=pretrained,
    )
    pixels = decide_pixels(config, facts, decided, model.name, pretrained=pretrained)
    num_train = dataset.num_images("train")
    device = decide_device(config, facts, decided)
    batch_size = _batch_size(config, facts, decided, device, model.name, pretrained=pretrained)
    execution = decide_execution(
        config,
        facts,
        pixels,
        decided,
        batch_size=batch_size,
        frozen_norms=model.freeze_batch_norm,
    )
    sampling = decide_sampling(config, dataset, decided)
    local_batch_size = batch_size // execution.world_size
    accumulate = decided.take(
        "accumulate", train.accumulate, accumulate_rule(fastest(facts, config), local_batch_size)
    )
    if accumulate > local_batch_size:
        raise ConfigError(
            f"train.accumulate = {accumulate} cuts a batch of {local_batch_size} into less than an "
            "image",
            fix=f"give at most {local_batch_size}",
        )
    if local_batch_size % accumulate:
        part = math.ceil(local_batch_size / accumulate)
        decided.reasons["accumulate"] += f"; {local_batch_size} images as parts of {part}, the " + (
            "last one smaller; each image counts alike"
        )
    head = decide_head(config, facts, decided, model.name, pixels.image_px, pretrained=pretrained)
    optimizer = decide_optimizer(
        config,
        decided,
        batch_size,
        model_name=model.name,
        num_train=num_train,
        pretrained=pretrained,
        sharding=execution.sharding,
    )
    schedule = decide_schedule(
        config, dataset, decided, optimizer=optimizer.name, pretrained=pretrained
    )
    sizes = sizes_rule(config, facts, execution, model_name=model.name, image_px=pixels.image_px)
    horizon = decided.take(
        "horizon_steps",
        None,
        (0, "only the head is fitted")
        if head == "only"
        else horizon_rule(
            config,
            facts,
            batch_size,
            sizes[0],
            pretrained=pretrained,
            networks=networks_of(model.name),
            before_s=head_s(facts, pixels.image_px) if head == "first" else 0.0,
        ),
    )
    steps_per_epoch = max(1, num_train // batch_size)
    evaluate_every = decided.take(
        "evaluate_every_steps",
        None,
        evaluate_every_rule(horizon, steps_per_epoch, evaluation_share(facts)),
    )
    patience = None
    if train.patience_epochs is not None:
        if not dataset.num_images("validation"):
            raise ConfigError(
                "train.patience_epochs waits for validation to get better, and no image is held "
                "out for it",
                fix="leave it out, or set data.validation_fraction",
            )
        patience = max(1, math.ceil(train.patience_epochs * steps_per_epoch / evaluate_every))
        decided.reasons["patience_evaluations"] = "asked for, in epochs"
    augment = decide_augmentation(
        config, dataset, pixels, decided, model_name=model.name, pretrained=pretrained
    )
    looks = decided.take("model.views", config.model.views, views_rule(model.name, augment))
    loss = decide_loss(config, dataset, decided, sampling)
    average = decide_average(config, decided, horizon)

    plan = Plan(
        seed=train.seed,
        pixels=pixels,
        model=model.model_copy(update={"views": looks}),
        augment=augment,
        optimizer=optimizer,
        schedule=schedule,
        batch_size=batch_size,
        accumulate=accumulate,
        evaluation_batch_size=evaluation_batch_size(execution, pixels),
        loss=loss,
        label_smoothing=decided.take(
            "label_smoothing",
            train.label_smoothing,
            (0.1, "keeps confidence honest; Szegedy et al. 2016"),
        ),
        ema_decay=average.ema_decay,
        ema_every_steps=decided.take(
            "ema_every_steps",
            None,
            (1, "each counts alike") if average.swa_fraction else ema_every_rule(average.ema_decay),
        ),
        swa_fraction=average.swa_fraction,
        sam_rho=decided.take("sam_rho", train.sam_rho, (0.0, "it takes twice the time")),
        layer_decay=decided.take("layer_decay", train.layer_decay, (1.0, "all learn alike")),
        head=head,
        head_penalty=train.head_penalty,
        stages=decide_stages(
            config, facts, decided, sizes, image_px=pixels.image_px, pretrained=pretrained
        ),
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
    check_sharding(plan)
    return plan


def _batch_size(
    config: Config,
    facts: Facts,
    decided: Decisions,
    device: str,
    model_name: str,
    *,
    pretrained: bool,
) -> int:
    """Images of one update, over all processes."""
    num_train, processes = facts.dataset.num_images("train"), facts.machine.processes
    asked = config.train.batch_size
    size = decided.take(
        "batch_size", asked, batch_size_rule(model_name, num_train, device, pretrained=pretrained)
    )
    if size > num_train:
        size = num_train
        decided.reasons["batch_size"] = f"there are only {num_train} training images"
    if size < processes:
        raise ConfigError(
            f"a batch of {size} images cannot be shared by {processes} processes",
            fix=f"give train.batch_size = {processes} or more, or start fewer processes",
        )
    if size % processes:
        size -= size % processes
        decided.reasons["batch_size"] += f"; made a multiple of {processes} processes"
    return size


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
    if plan.evaluate_every_steps == plan.horizon_steps:
        # It was to be validated once, at its end.
        every = evaluate_every_rule(last_step, plan.steps_per_epoch)[0]
    return plan.model_copy(update={**steps, "evaluate_every_steps": every, "reasons": reasons})


def annealed(plan: Plan, step: int, last_step: int) -> Plan:
    """The same plan with a learning rate that falls to zero from `step` on and ends at `last_step`.

    For a run that stands at `step` on the flat part of its curve and has no time for all of it:
    what is behind it stays as it was ("anneal on a branch", Hu et al. 2024, MiniCPM; Haegele et al.
    2024).
    """
    assert step < last_step, (step, last_step)
    risen = plan.schedule.warmup_fraction * plan.horizon_steps
    if plan.schedule.name != "trapezoid" or step < risen:
        # Another curve is squeezed as a whole.
        return retimed(plan, last_step)
    settings = {"decay_fraction": 0.2, **plan.schedule.settings}
    fall = float(settings["decay_fraction"]) * (plan.horizon_steps - risen)  # type: ignore[arg-type]
    # Where it has begun to fall already, it goes on from the value that it has.
    now = min(1.0, (plan.horizon_steps - step) / fall)
    fraction = (last_step - step) / now / (last_step - risen)
    schedule = plan.schedule.model_copy(
        update={
            "warmup_fraction": risen / last_step,
            "settings": {**settings, "decay_fraction": min(1.0, fraction)},
        }
    )
    reasons = {
        **plan.reasons,
        "horizon_steps": f"{plan.horizon_steps} by the plan; annealed from step {step} on",
    }
    return plan.model_copy(
        update={
            "schedule": schedule,
            "horizon_steps": last_step,
            "last_step": last_step,
            "evaluate_every_steps": last_step,
            "rungs": tuple(rung for rung in plan.rungs if rung <= step),
            "reasons": reasons,
        }
    )


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
