"""decided: every number of a run, nothing left open, each with its reason.

`make(config, facts)` is pure: no torch, no files, no clock. Every rule of thumb of vidi stands in
this file, with its source or with the measurement in docs/measurements.md that chose it.

It is called more than once while a run is prepared, each time with more facts (what the decoded
pixels say, what the probe measured). What an earlier call decided for the pixels stays, because
those rules read only the facts that were there from the start.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import ValidationError

from vidi.augment_settings import AugmentSettings
from vidi.config import Config
from vidi.errors import ConfigError, DamagedError, DataError
from vidi.facts import Accelerator, DatasetFacts, Facts, Frozen, Machine, Precision, StepTiming
from vidi.image import PixelContract

FORMAT = 1

# Images smaller than this are trained from scratch at their own size: a pretrained network that
# reduces 224 px by 32 has nothing left of them. The rule is checked in docs/measurements.md.
SMALL_IMAGE_PX = 96

T = TypeVar("T")


class ModelPlan(Frozen):
    """Which network is built, and from which weights."""

    name: str
    weights: str
    num_classes: int
    dropout: float | None
    stochastic_depth: float | None
    # Batch-norm statistics stay those of the pretrained weights while fine-tuning.
    freeze_batch_norm: bool


class OptimizerPlan(Frozen):
    """What updates the weights. `learning_rate` is the peak for the run's own batch size."""

    name: str
    learning_rate: float
    momentum: float
    weight_decay: float


class SchedulePlan(Frozen):
    """The learning rate as a share of its peak, over the share of the run that is done."""

    name: str
    warmup_fraction: float


class ExecutionPlan(Frozen):
    """How one step is computed; it changes the speed, and the result only by rounding."""

    device: Literal["cpu", "cuda", "mps", "xpu"]
    precision: Precision
    channels_last: bool
    threads: int
    loader_threads: int


class Plan(Frozen):
    """Everything that a run will do. Two equal plans on equal machines give equal weights."""

    format: int = FORMAT
    seed: int
    pixels: PixelContract
    model: ModelPlan
    augment: AugmentSettings
    optimizer: OptimizerPlan
    schedule: SchedulePlan
    batch_size: int
    accumulate: int
    evaluation_batch_size: int
    label_smoothing: float
    ema_decay: float
    clip_norm: float | None
    num_train: int
    # Where the schedule ends; the learning-rate curve depends on this alone.
    horizon_steps: int
    # Where this run stops: at the horizon, or before it when a search stops it early.
    last_step: int
    evaluate_every_steps: int
    log_every_steps: int
    checkpoint_every_s: float
    patience_evaluations: int | None
    execution: ExecutionPlan
    # Dotted name of a decision -> why it is what it is.
    reasons: dict[str, str]

    @property
    def steps_per_epoch(self) -> int:
        return max(1, self.num_train // self.batch_size)

    @property
    def longest_steps(self) -> int:
        """Training longer than this brings nothing."""
        pretrained = self.model.weights != "none"
        return _longest_epochs(pretrained=pretrained) * self.steps_per_epoch

    @property
    def num_epochs(self) -> float:
        return self.horizon_steps / self.steps_per_epoch

    @property
    def micro_batch_size(self) -> int:
        return math.ceil(self.batch_size / self.accumulate)

    def decisions(self) -> list[tuple[str, str, str]]:
        """(name, value, reason) of every decision, in the order they were taken."""
        return [(name, _shown(self._value(name)), why) for name, why in self.reasons.items()]

    def _value(self, name: str) -> Any:
        value: Any = self
        for part in name.split("."):
            value = getattr(value, part)
        return value

    @staticmethod
    def from_json(text: str, *, origin: str = "plan.json") -> Plan:
        """A plan that a run directory holds.

        Raises:
            DamagedError: not a plan of this version.
        """
        try:
            return Plan.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise DamagedError(
                f"{origin} is not a plan that this version reads: {place}: {first['msg']}",
                fix="give another --out, or use the version that wrote it (environment.json)",
            ) from None


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, tuple):
        return ", ".join(_shown(part) for part in value)
    return str(value)


class Choice(NamedTuple):
    """The network, before its facts can be looked up."""

    name: str
    weights: str
    reason: str


def choose_model(config: Config, dataset: DatasetFacts) -> Choice:
    """Which network and weights: the first decision, because its facts are needed for the rest."""
    asked = config.model
    short_px = min(dataset.height_px[1], dataset.width_px[1])
    small = min(short_px, config.data.image_px or short_px) < SMALL_IMAGE_PX
    if asked.name is not None:
        weights = asked.weights or (
            "imagenet" if asked.name in _OFFLINE_WEIGHTS and not small else "none"
        )
        return Choice(asked.name, weights, "asked for")
    if small:
        return Choice(
            "small_resnet",
            asked.weights or "none",
            f"images of {short_px} px are learnt faster from scratch, by a small network",
        )
    return Choice(
        "efficientnet_lite0",
        asked.weights or "imagenet",
        f"photos ({short_px} px): start from ImageNet weights that need no network",
    )


# Pretrained weights that come with vidi's own dependencies.
_OFFLINE_WEIGHTS = frozenset({"efficientnet_lite0"})


class _Decisions:
    """Takes what was asked, else what a rule gives, and keeps the reason."""

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}

    def take(self, name: str, asked: T | None, rule: tuple[T, str]) -> T:
        value, reason = rule
        if asked is not None:
            value, reason = asked, "asked for"
        self.reasons[name] = reason
        return value


def make(config: Config, facts: Facts) -> Plan:
    """Decide everything that `config` leaves open, from `facts` alone.

    Raises:
        ConfigError: settings that contradict each other or this machine.
        DataError: too few classes or images to train on.
    """
    dataset, train = facts.dataset, config.train
    _check_data(dataset)
    decided = _Decisions()
    choice = choose_model(config, dataset)
    pretrained = choice.weights != "none"

    model = ModelPlan(
        name=decided.take("model.name", None, (choice.name, choice.reason)),
        weights=decided.take("model.weights", config.model.weights, _weights_rule(choice)),
        num_classes=dataset.num_classes,
        dropout=config.model.dropout,
        stochastic_depth=config.model.stochastic_depth,
        freeze_batch_norm=pretrained,
    )
    pixels = _pixels(config, facts, decided, pretrained=pretrained)
    execution = _execution(config, facts, decided)
    num_train = dataset.num_images("train")
    batch_size = decided.take(
        "batch_size",
        train.batch_size,
        _batch_size_rule(num_train, execution.device, pretrained=pretrained),
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
    optimizer = _optimizer(config, decided, batch_size, pretrained=pretrained)
    schedule = SchedulePlan(
        name=decided.take(
            "schedule.name",
            train.schedule,
            ("cosine", "ends at zero without a further setting; Loshchilov and Hutter 2017"),
        ),
        warmup_fraction=decided.take(
            "schedule.warmup_fraction", train.warmup_fraction, _warmup_rule(pretrained)
        ),
    )
    horizon = decided.take(
        "horizon_steps", None, _horizon_rule(config, facts, batch_size, pretrained)
    )
    steps_per_epoch = max(1, num_train // batch_size)
    evaluate_every = decided.take(
        "evaluate_every_steps", None, _evaluate_every_rule(horizon, steps_per_epoch)
    )
    patience = None
    if train.patience_epochs is not None:
        patience = max(1, math.ceil(train.patience_epochs * steps_per_epoch / evaluate_every))
        decided.reasons["patience_evaluations"] = "asked for, in epochs"

    return Plan(
        seed=train.seed,
        pixels=pixels,
        model=model,
        augment=_augment(config, dataset, pixels, decided, pretrained=pretrained),
        optimizer=optimizer,
        schedule=schedule,
        batch_size=batch_size,
        accumulate=accumulate,
        evaluation_batch_size=_evaluation_batch_size(execution, pixels),
        label_smoothing=decided.take(
            "label_smoothing",
            train.label_smoothing,
            (0.1, "keeps confidence honest; Szegedy et al. 2016"),
        ),
        ema_decay=decided.take("ema_decay", train.ema_decay, _ema_rule(horizon)),
        clip_norm=train.clip_norm,
        num_train=num_train,
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


def _weights_rule(choice: Choice) -> tuple[str, str]:
    if choice.weights == "none":
        return "none", "from scratch"
    return (
        choice.weights,
        "fine-tuning needs a hundredth of the data and time of training from scratch",
    )


def _pixels(
    config: Config, facts: Facts, decided: _Decisions, *, pretrained: bool
) -> PixelContract:
    asked, dataset, weights = config.data, facts.dataset, facts.weights
    median_h, median_w = dataset.height_px[1], dataset.width_px[1]
    if pretrained and weights is not None:
        size_rule = (weights.image_px, "the size that the weights were trained at")
    elif max(median_h, median_w) <= SMALL_IMAGE_PX:
        size_rule = (max(median_h, median_w), "the size of the images")
    else:
        size_rule = (SMALL_IMAGE_PX, "from scratch, larger images cost more than they bring")
    image_px = decided.take("pixels.image_px", asked.image_px, size_rule)

    same_size = (
        dataset.height_px[0] == dataset.height_px[2] and dataset.width_px[0] == dataset.width_px[2]
    )
    exact = same_size and median_h == median_w == image_px
    # Photos: room around the crop. 8/7 is the 256 to 224 px of AlexNet and all that followed it.
    fraction = weights.crop_fraction if pretrained and weights is not None else 7 / 8
    if exact or image_px <= 48:
        store_rule = image_px, "no margin: small images are shifted, not cropped"
    else:
        store_rule = round(image_px / fraction), "a margin for random crops"
    store_px = decided.take("pixels.store_px", None, store_rule)

    aspect = max(median_h, median_w) / max(1, min(median_h, median_w))
    if exact:
        resize_rule: tuple[Literal["crop", "pad", "squash"], str] = (
            "squash",
            "the images are square",
        )
    elif aspect <= 2.0:
        resize_rule = (
            "crop",
            f"the typical image is {median_w} x {median_h} px: little is cut off",
        )
    else:
        resize_rule = (
            "pad",
            f"the typical image is {median_w} x {median_h} px: a crop loses half of it",
        )
    channels_rule: tuple[Literal[1, 3], str] = (3, "colour")
    if pretrained:
        channels_rule = (3, "the weights take colour")
    elif dataset.grey:
        channels_rule = (1, "no image has colour")
    channels = decided.take("pixels.channels", asked.channels, channels_rule)
    if pretrained and weights is not None and len(weights.mean) == channels:
        mean, std = weights.mean, weights.std
        why = "what the weights were trained with"
    else:
        # Batch norm takes out what is left; fixed numbers need no pass over the data.
        mean, std = (0.5,) * channels, (0.25,) * channels
        why = "fixed: the first normalisation layer takes out the rest"
    decided.reasons["pixels.mean"] = decided.reasons["pixels.std"] = why
    interpolation_rule = (
        (weights.interpolation, "what the weights were trained with")
        if pretrained and weights is not None
        else ("bilinear", "with antialiasing; cheap and close to bicubic")
    )
    return PixelContract(
        image_px=image_px,
        store_px=store_px,
        channels=channels,
        resize=decided.take("pixels.resize", asked.resize, resize_rule),
        interpolation=decided.take("pixels.interpolation", asked.interpolation, interpolation_rule),
        mean=mean,
        std=std,
    )


def _execution(config: Config, facts: Facts, decided: _Decisions) -> ExecutionPlan:
    asked, machine = config.machine, facts.machine
    available = {accelerator.kind: accelerator for accelerator in machine.accelerators}
    if asked.device not in (None, "cpu") and asked.device not in available:
        names = ", ".join(["cpu", *available])
        raise ConfigError(
            f"machine.device = '{asked.device}': torch sees no such device here",
            fix=f"this machine has {names}; `vidi doctor` says more",
        )
    device_rule: tuple[Literal["cpu", "cuda", "mps", "xpu"], str] = ("cpu", "no accelerator found")
    if available:
        kind = next(iter(available))
        device_rule = (kind, f"{available[kind].name}")
    device = decided.take("execution.device", asked.device, device_rule)
    if asked.precision == "float16" and device == "cpu":
        raise ConfigError(
            "machine.precision = 'float16' does not work on a processor",
            fix="use bfloat16 or float32, or leave it open: it is measured",
        )
    accelerator = None if device == "cpu" else available[device]
    best = _fastest(facts, config)
    precision = decided.take(
        "execution.precision", asked.precision, _precision_rule(best, accelerator)
    )
    channels_last = decided.take("execution.channels_last", asked.channels_last, _layout_rule(best))
    threads = decided.take(
        "execution.threads",
        asked.threads,
        (machine.usable_cores, f"this process may use {machine.usable_cores} cores"),
    )
    loader_threads = decided.take(
        "execution.loader_threads", asked.loader_threads, _loader_threads_rule(device, machine)
    )
    return ExecutionPlan(
        device=device,
        precision=precision,
        channels_last=channels_last,
        threads=threads,
        loader_threads=loader_threads,
    )


def _fastest(facts: Facts, config: Config) -> StepTiming | None:
    """The fastest measured candidate that agrees with what was asked for."""
    asked = config.machine
    steps = facts.measured.steps if facts.measured else ()
    fitting = [
        step
        for step in steps
        if not step.rejected
        and asked.precision in (None, step.precision)
        and asked.channels_last in (None, step.channels_last)
    ]
    return max(fitting, key=lambda step: step.images_per_second, default=None)


def _precision_rule(
    best: StepTiming | None, accelerator: Accelerator | None
) -> tuple[Precision, str]:
    if best is not None:
        return best.precision, f"measured fastest: {best.images_per_second:,.0f} images/s"
    if accelerator is not None and accelerator.bfloat16:
        return "bfloat16", "the device multiplies it at twice the rate or more"
    return "float32", "not measured: the run is too short for it to matter"


def _layout_rule(best: StepTiming | None) -> tuple[bool, str]:
    if best is not None:
        return best.channels_last, f"measured fastest: {best.images_per_second:,.0f} images/s"
    return True, "convolutions read it without a copy"


def _loader_threads_rule(device: str, machine: Machine) -> tuple[int, str]:
    if device == "cpu":
        return 1, "decoded pixels are gathered far faster than a processor trains"
    return min(4, machine.usable_cores), "gathering keeps ahead of the accelerator"


def _batch_size_rule(num_train: int, device: str, *, pretrained: bool) -> tuple[int, str]:
    if pretrained:
        if device == "cpu":
            return 16, "on a processor, larger batches fall out of its caches"
        return 64, "enough for an accelerator, small enough for many updates"
    if num_train < 4_000:
        return 64, f"{num_train:,} images: many updates matter more than speed"
    if num_train < 20_000:
        return 128, "a good trade between updates and speed for small images"
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
    "muon": (0.02, "sqrt"),
}
_FINE_TUNING_RATE = 6e-4


def _optimizer(
    config: Config, decided: _Decisions, batch_size: int, *, pretrained: bool
) -> OptimizerPlan:
    asked = config.train
    name = decided.take(
        "optimizer.name",
        asked.optimizer,
        ("adamw", "steady while fine-tuning; Loshchilov and Hutter 2019")
        if pretrained
        else ("sgd", "with Nesterov momentum: the best known for convolutions from scratch"),
    )
    if pretrained and name == "adamw":
        base, scaling = _FINE_TUNING_RATE, "sqrt"
    else:
        base, scaling = _LEARNING_RATES.get(name, (1e-3, "none"))
    scaling = asked.learning_rate_scaling or scaling
    base = asked.learning_rate or base
    factor = {"linear": batch_size / 256, "sqrt": math.sqrt(batch_size / 256), "none": 1.0}[scaling]
    why = "asked for" if asked.learning_rate is not None else "the table of plan.py"
    decided.reasons["optimizer.learning_rate"] = (
        f"{base:g} for 256 images ({why}), scaled to {batch_size} by rule '{scaling}'"
    )
    return OptimizerPlan(
        name=name,
        learning_rate=base * factor,
        momentum=decided.take("optimizer.momentum", asked.momentum, (0.9, "Sutskever et al. 2013")),
        weight_decay=decided.take(
            "optimizer.weight_decay",
            asked.weight_decay,
            (0.05, "as DeiT and ConvNeXt fine-tune") if pretrained else (5e-4, "as ResNets train"),
        ),
    )


def _warmup_rule(pretrained: bool) -> tuple[float, str]:
    if pretrained:
        return 0.1, "a new head sends large gradients at first"
    return 0.15, "large learning rates need a start"


def _horizon_rule(
    config: Config, facts: Facts, batch_size: int, pretrained: bool
) -> tuple[int, str]:
    """How many updates: what was asked, or what the time allows, or enough to converge."""
    num_train = facts.dataset.num_images("train")
    steps_per_epoch = max(1, num_train // batch_size)
    if config.train.epochs is not None:
        steps = max(1, round(config.train.epochs * steps_per_epoch))
        return steps, f"asked for {config.train.epochs:g} epochs of {steps_per_epoch} steps"
    # Past this many looks at each image, more training from scratch brings nothing.
    longest = _longest_epochs(pretrained=pretrained)
    if config.train.minutes is not None and facts.measured is not None:
        epochs, why = _affordable_epochs(config.train.minutes * 60, facts)
        epochs = min(epochs, longest)
        return max(1, math.floor(epochs * steps_per_epoch)), why
    # About 1,500 updates for a small data set, 15 looks at each image for a large one.
    epochs = 5 if pretrained else min(60, max(15, math.ceil(1_500 / steps_per_epoch)))
    return epochs * steps_per_epoch, f"{epochs} epochs: neither epochs nor minutes were asked for"


def _longest_epochs(*, pretrained: bool) -> int:
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
    return epochs, (
        f"{epochs:.1f} epochs fit into {budget_s / 60:g} minutes at {best:,.0f} images/s"
    )


# Share of the training time that may go into validating along the way.
_EVALUATION_SHARE = 0.05


def _evaluate_every_rule(horizon: int, steps_per_epoch: int) -> tuple[int, str]:
    epochs = horizon / steps_per_epoch
    every = max(1, math.ceil(epochs / 40)) * steps_per_epoch
    if every >= horizon:
        return horizon, "once, at the end"
    if every == steps_per_epoch:
        return every, "after every epoch"
    return every, f"every {every // steps_per_epoch} epochs: about 40 points on the curve"


def _ema_rule(horizon: int) -> tuple[float, str]:
    if horizon < 400:
        return 0.0, "too short a run for an average"
    decay = 1 - 1 / max(50.0, min(1000.0, horizon / 20))
    return decay, "an average over the last twentieth of the run"


def _evaluation_batch_size(execution: ExecutionPlan, pixels: PixelContract) -> int:
    if execution.device != "cpu":
        return 256
    return 16 if pixels.image_px > SMALL_IMAGE_PX else 250


def _augment(
    config: Config,
    dataset: DatasetFacts,
    pixels: PixelContract,
    decided: _Decisions,
    *,
    pretrained: bool,
) -> AugmentSettings:
    asked = config.augment
    margin = pixels.store_px > pixels.image_px
    crop_rule: tuple[Literal["none", "pad", "resized"], str] = ("pad", "small images are shifted")
    if margin:
        crop_rule = ("resized", "photos are cropped and scaled; Szegedy et al. 2015")
    crop = decided.take("augment.crop", asked.crop, crop_rule)
    padding = decided.take(
        "augment.crop_padding_px",
        asked.crop_padding_px,
        (max(1, round(pixels.image_px / 14)), "a fourteenth of the side: 2 of 28, 1 of 8"),
    )
    scale_min = decided.take(
        "augment.crop_scale",
        asked.crop_scale_min,
        (0.5, "milder than ImageNet's 0.08, for shorter runs")
        if pretrained
        else (0.35, "milder than ImageNet's 0.08"),
    )
    return AugmentSettings(
        image_px=pixels.image_px,
        crop=crop,
        crop_padding_px=padding if crop == "pad" else 0,
        crop_scale=(scale_min, 1.0),
        horizontal_flip=decided.take(
            "augment.horizontal_flip", asked.horizontal_flip, _flip_rule(dataset)
        ),
        vertical_flip=decided.take(
            "augment.vertical_flip", asked.vertical_flip, (False, "up is up in most pictures")
        ),
        policy=asked.policy or "none",
        grey=dataset.grey,
        mixup_alpha=asked.mixup_alpha or 0.0,
        cutmix_alpha=asked.cutmix_alpha or 0.0,
        erase_probability=asked.erase_probability or 0.0,
        num_classes=dataset.num_classes,
    )


def _flip_rule(dataset: DatasetFacts) -> tuple[Literal["none", "random", "alternating"], str]:
    """Mirror images are safe where a mirrored query still finds neighbours of its own class."""
    plain, flipped = dataset.neighbour_agreement, dataset.neighbour_agreement_flipped
    if plain is None or flipped is None:
        return "random", "not measured; a mirror image of most things shows the same thing"
    chance = 1 / dataset.num_classes
    kept = (flipped - chance) / max(plain - chance, 1e-9)
    numbers = f"nearest neighbours agree for {plain:.0%} of the images, {flipped:.0%} when mirrored"
    if plain - chance < 0.1:
        return "random", f"{numbers}: too few to tell, and mirror images of most things are fine"
    if kept < 0.85:
        return "none", f"{numbers}: mirroring changes what they show"
    return "random", f"{numbers}: mirroring changes little"
