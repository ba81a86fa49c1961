"""The plan's values: plain, frozen, with JSON in and out."""

from __future__ import annotations

import math
from typing import Any, Final, Literal

from pydantic import ValidationError

from vidi.augment_settings import AugmentSettings, WholeViews
from vidi.errors import DamagedError
from vidi.facts import Frozen, Precision, Sharding, Where
from vidi.image import PixelContract
from vidi.plan.feeding import Build, Place, Sampling
from vidi.plan.length import longest_epochs, step_cost
from vidi.plan.network import networks_of

FORMAT = 1

Head = Literal["with_the_rest", "first", "only"]

# Where a plan says what a setting of the config became, where that has another name there.
_PLACES: Final = {
    "data.image_px": "pixels.image_px",
    "train.epochs": "num_epochs",
    "train.imbalance": "loss.imbalance",
    "train.learning_rate": "optimizer.learning_rate_per_256",
    "train.loss": "loss.name",
    "train.momentum": "optimizer.momentum",
    "train.optimizer": "optimizer.name",
    "train.schedule": "schedule.name",
    "train.warmup_fraction": "schedule.warmup_fraction",
    "train.weight_decay": "optimizer.weight_decay",
}


class ModelPlan(Frozen):
    """Which network is built, and from which weights."""

    name: str
    weights: str
    num_classes: int
    dropout: float | None
    stochastic_depth: float | None
    # Batch-norm statistics stay those of the pretrained weights while fine-tuning.
    freeze_batch_norm: bool
    # In evaluation the network sees these of each image, and says the mean.
    views: WholeViews = "plain"


class OptimizerPlan(Frozen):
    """What updates the weights. `learning_rate` is the peak for the run's own batch size."""

    name: str
    learning_rate: float
    # The same for 256 images, as it is asked for.
    learning_rate_per_256: float
    momentum: float
    weight_decay: float


class SchedulePlan(Frozen):
    """The learning rate as a share of its peak, over the share of the run that is done."""

    name: str
    warmup_fraction: float
    # Of the schedule's function in vidi.schedule.
    settings: dict[str, float | tuple[float, ...]]


class LossPlan(Frozen):
    """What is made smaller; `vidi.loss.Loss` computes it."""

    name: Literal["cross_entropy", "bce", "focal"]
    # What is done about classes with few images.
    imbalance: Literal["none", "weighted", "logit_adjustment", "focal"]
    focal_gamma: float
    # What an image of each class counts, and what is added to its logit in training.
    class_weights: tuple[float, ...] | None
    log_prior: tuple[float, ...] | None


class Stage(Frozen):
    """A part of a run in which nothing changes but the weights and the learning rate."""

    # Where it ends, a share of the run.
    until: float
    # Side of the images that the model sees in it.
    image_px: int
    # That many of the network's stages, from the input on, do not learn.
    frozen_stages: int
    # The share of the training images that are learnt from in it, of every class alike.
    data_share: float = 1.0


class ExecutionPlan(Frozen):
    """How one step is computed; it changes the speed, and the result only by rounding."""

    device: Literal["cpu", "cuda", "mps", "xpu"]
    precision: Precision
    channels_last: bool
    compile: bool
    # The compiled step is recorded once and played as a whole.
    cuda_graphs: bool = False
    # The optimizer's fused kernel; None: as it fits the weights (vidi.optim).
    fused: bool | None = None
    augment_on: Where = "device"
    # 3 x 3 convolutions by `vidi.winograd`, in training.
    winograd: bool = False
    # Activations are computed a second time in the backward pass instead of kept.
    recompute: bool
    keep_memory: bool
    deterministic: bool
    threads: int
    loader_threads: int
    # Where decoded pixels wait, and whether all are decoded before the first step.
    store: Place = "disk"
    build: Build = "before"
    # Processes that share each batch; each has a copy of the model, or a part of it.
    world_size: int
    sharding: Sharding = "none"
    sync_batch_norm: bool
    timeout_s: float


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
    loss: LossPlan
    label_smoothing: float
    ema_decay: float
    # The average moves after so many steps, as far as it would have in all of them.
    ema_every_steps: int
    # Last share of the run whose weights are averaged, all alike; 0 where none is.
    swa_fraction: float
    # Radius of sharpness-aware minimisation; 0 where there is none.
    sam_rho: float
    # Learning rate of each of the network's stages as a share of the next one's.
    layer_decay: float
    head: Head
    # Of a head that is fitted on features; None: what held-out images like best.
    head_penalty: float | None = None
    stages: tuple[Stage, ...]
    clip_norm: float | None
    num_train: int
    sampling: Sampling = "each"
    # Where the schedule ends; the learning-rate curve depends on this alone.
    horizon_steps: int
    # Where this run stops: at the horizon, or before it when a search stops it early.
    last_step: int
    evaluate_every_steps: int
    log_every_steps: int
    checkpoint_every_s: float
    patience_evaluations: int | None
    # Steps at which a search looks at the run: there it is validated, logged and saved, whether it
    # stops there or not, so that stopping leaves no trace.
    rungs: tuple[int, ...] = ()
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
        epochs = longest_epochs(pretrained=pretrained, networks=networks_of(self.model.name))
        return epochs * self.steps_per_epoch

    @property
    def num_epochs(self) -> float:
        return self.horizon_steps / self.steps_per_epoch

    @property
    def micro_batch_size(self) -> int:
        """Images that go through the model at once, in each process."""
        return math.ceil(self.local_batch_size / self.accumulate)

    @property
    def local_batch_size(self) -> int:
        """Images of a batch that one process gets."""
        return self.batch_size // self.execution.world_size

    @property
    def batch_size_each(self) -> int:
        """Images of a batch that one network learns from: several may share it."""
        return max(1, self.batch_size // networks_of(self.model.name))

    @property
    def averaged_from_step(self) -> int:
        """From this step on the weights go into their average."""
        if not self.swa_fraction:
            return 0
        return math.floor((1.0 - self.swa_fraction) * self.horizon_steps)

    def stage_at(self, step: int) -> Stage:
        """What holds at that step."""
        for stage in self.stages:
            if step < self.end_of(stage):
                return stage
        return self.stages[-1]

    def start_of(self, stage: Stage) -> int:
        """The first step that is in that stage."""
        number = self.stages.index(stage)
        return self.end_of(self.stages[number - 1]) if number else 0

    def end_of(self, stage: Stage) -> int:
        """The first step that is no longer in that stage."""
        return round(stage.until * self.horizon_steps)

    def work(self, first: int, last: int) -> float:
        """What the steps from `first` to `last` take, in steps of the last stage: those with
        smaller images take less."""
        full_px = self.stages[-1].image_px
        return sum(
            step_cost(stage.image_px, full_px)
            * max(0, min(last, self.end_of(stage)) - max(first, self.start_of(stage)))
            for stage in self.stages
        )

    def steps_for(self, work: float, step: int) -> int:
        """How many more steps a run may have that stands at `step` and has so much work left, when
        its stages are parts of the run as it will be then."""
        if len(self.stages) == 1:
            return int(work)
        fits, too_many = 0, max(1, self.longest_steps - step + 1)
        while too_many - fits > 1:
            steps = (fits + too_many) // 2
            longer = self.model_copy(update={"horizon_steps": step + steps})
            if longer.work(step, step + steps) <= work:
                fits = steps
            else:
                too_many = steps
        return fits

    def decisions(self) -> list[tuple[str, str, str]]:
        """(name, value, reason) of every decision, in the order they were taken."""
        return [(name, shown(self._value(name)), why) for name, why in self.reasons.items()]

    def _value(self, name: str) -> Any:
        value: Any = self
        for part in name.split("."):
            value = getattr(value, part)
        return value

    def setting(self, name: str) -> Any:
        """What was decided for a setting of the config, such as "train.learning_rate"; None where
        a plan does not say, or leaves it to the network."""
        try:
            return self._value(_PLACES.get(name, name.removeprefix("train.")))
        except AttributeError:
            return None

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


def shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, tuple):
        parts = [shown(part) for part in value]
        return ", ".join(parts if len(parts) <= 4 else [*parts[:3], "..."])
    if isinstance(value, Stage):
        frozen = f", {value.frozen_stages} stages frozen" if value.frozen_stages else ""
        part = f" on {value.data_share:.0%} of the images" if value.data_share < 1.0 else ""
        return f"to {value.until:.0%} at {value.image_px} px{part}{frozen}"
    if isinstance(value, dict):
        return ", ".join(f"{name} = {shown(part)}" for name, part in value.items()) or "its own"
    return str(value)
