"""The loop: forward, backward, step, log, validate, save, in that order. It yields.

The caller owns printing, early stopping, pruning and the clock: it may break out at any `Progress`
and call `save`. Every number that is logged is a pure function of the plan and the data, so a run
that was stopped anywhere and continued writes the same bytes as one that never stopped.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from vidi import memory, model, optim
from vidi.augment import ImageRandom, Transform
from vidi.batch import Batch, joined
from vidi.data import Loader
from vidi.errors import OutOfMemory, TrainingError
from vidi.evaluate import predict
from vidi.metrics import quick_scores
from vidi.plan import Plan
from vidi.run import Run
from vidi.schedule import Plateau
from vidi.shards import gathered
from vidi.step import (
    StepResult,
    StepSettings,
    autocast,
    rehearse,
    seed_step,
    train_step,
)
from vidi.train.gathering import together
from vidi.train.ranks import ALONE, Ranks, wrapped
from vidi.train.saving import Saver, save
from vidi.train.state import Best, State, Window

__all__ = ["Job", "Progress", "Validation", "loop", "save"]

# An update whose loss or gradient is not finite is left out; so many in a row are not bad luck.
MAX_CONSECUTIVE_SKIPS = 10
# So many batches tell the statistics of weights that no step has trained; schedulefree's advice
# is fifty, and on twenty the variance of a filter is known to about two percent.
STATISTICS_BATCHES = 20
# Epochs of a part of the images are numbered from multiples of this on; no run has so many.
OF_A_PART = 1_000_000


@dataclass(frozen=True)
class Job:
    """The built, fixed half of a run."""

    train: Loader
    # None where no image is held out to choose by.
    validation: Loader | None
    augment: Transform
    # So many batches are augmented at a time; see `_varied`.
    augment_together: int
    schedule: Callable[[float], float]
    device: torch.device
    # Lowers the learning rate when validation stops getting better, where that is the schedule.
    plateau: Plateau | None = None
    # The processes that share each batch; the loaders give this one its part.
    ranks: Ranks = ALONE
    # Share of the training images -> loader of that part, for stages that learn from a part.
    parts: Mapping[float, Loader] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Validation:
    """How the current weights do on the images that are held out to choose by."""

    step: int
    accuracy: float
    log_loss: float
    is_best: bool


@dataclass(frozen=True, slots=True)
class Progress:
    """One moment of a run. The losses are of the last log line, not of this step."""

    phase: Literal["train", "validate", "save"]
    step: int
    last_step: int
    epoch: float
    loss: float | None
    accuracy: float | None
    learning_rate: float
    images_per_second: float
    wait_fraction: float
    remaining_s: float
    validation: Validation | None
    best: Best | None
    # New lines for the user: a skipped update, a failed save.
    notes: tuple[str, ...] = ()


def loop(plan: Plan, job: Job, state: State, run: Run | None) -> Generator[Progress]:
    """Train from where `state` is to `plan.last_step`, yielding after every step and every batch
    of a validation.

    Args:
        run: where it is written down; None in every process but the first.

    Raises:
        TrainingError: the loss stays non-finite.
        StorageError: three checkpoints in a row could not be written.
        OutOfMemory: not even one image fits.
    """
    with Saver(run, plan.checkpoint_every_s, job.ranks) as saver:
        yield from _steps(plan, job, state, run, saver)


def _steps(plan: Plan, job: Job, state: State, run: Run | None, saver: Saver) -> Iterator[Progress]:
    settings = replace(StepSettings.of(plan), micro_batch_size=state.training_limit.num_images)
    watch = _Watch(plan, job.train, state)
    network, stage = _network(plan, job, state), plan.stage_at(state.step)
    rehearsed = job.ranks.alone or state.is_sharded
    while True:
        if _validation_is_due(plan, job, state):
            yield from _validate(plan, job, state, run, watch)
            # What validates best is kept, so the checkpoint of this very step is needed.
            yield from _saved(saver, state, watch, now=True)
        if state.step >= plan.last_step:
            if job.validation is None:
                _settle_average(plan, job, state)
            yield from _saved(saver, state, watch, wait=True)
            return
        if plan.stage_at(state.step) != stage:
            stage = plan.stage_at(state.step)
            network = _network(plan, job, state)
        batches = _varied(plan, job, state.step)
        try:
            for batch in batches:
                done = state.step / plan.horizon_steps
                optim.set_learning_rate(state.optimizer, _multiplier(job, state, done))
                if not state.model.training:
                    state.model.train()
                if not rehearsed:
                    settings = _rehearsed(network, state, batch, settings)
                    rehearsed = True
                result, settings = _step_that_fits(network, state, batch, settings)
                state.step += 1
                watch.at(state.step)
                if result.finite is False:
                    _skip(state, batch)
                else:
                    _count(state, result)
                if _average_is_due(plan, state):
                    assert state.average is not None
                    state.average.update(state.model, plan.ema_every_steps)
                if _log_is_due(plan, state):
                    _log(plan, job, state, run, watch)
                    _check_scale(state)
                if state.consecutive_skips > MAX_CONSECUTIVE_SKIPS:
                    _back_to_a_checkpoint(state, saver, plan, batch)
                yield watch.progress("train", state)
                if (
                    _validation_is_due(plan, job, state)
                    or state.step >= plan.last_step
                    or state.step == plan.end_of(stage)
                ):
                    break
                yield from _saved(saver, state, watch)
        finally:
            batches.close()


def _network(plan: Plan, job: Job, state: State) -> Any:
    """What a step calls: the model, with the layers frozen that are in this stage of the run,
    compiled and shared with other processes where that is planned."""
    if any(part.frozen_stages for part in plan.stages):
        model.freeze(state.model, plan.stage_at(state.step).frozen_stages)
    network = wrapped(state.model, job.ranks, job.device)
    # Compiled code is found again when the loop begins anew on the same model.
    if not plan.execution.compile:
        return network
    return torch.compile(
        network, mode="reduce-overhead" if plan.execution.cuda_graphs else "default"
    )


def _rehearsed(
    network: nn.Module, state: State, batch: Batch, settings: StepSettings
) -> StepSettings:
    """The settings with as many images at once as fit, tried before gradients are shared."""
    while True:
        try:
            rehearse(network, state.optimizer, batch, settings, state.step)
        except (RuntimeError, MemoryError) as error:
            state.optimizer.zero_grad(set_to_none=True)
            state.notes.append(state.training_limit.halve(error, what="training"))
        else:
            return settings
        memory.release()
        settings = replace(settings, micro_batch_size=state.training_limit.num_images)


class _Place(NamedTuple):
    """Where a step lies: in which epoch of which loader, and at which batch of it."""

    loader: Loader
    epoch: int
    start: int


def _place(plan: Plan, job: Job, step: int) -> _Place:
    """A pure function of the plan, so that it does not matter where a run was interrupted."""
    stage = plan.stage_at(step)
    if stage.data_share == 1.0:
        return _Place(job.train, *divmod(step, plan.steps_per_epoch))
    loader = job.parts[stage.data_share]
    epoch, start = divmod(step - plan.start_of(stage), loader.num_batches)
    # Numbers of their own, or an image would be varied as it will be later.
    return _Place(loader, OF_A_PART * (1 + plan.stages.index(stage)) + epoch, start)


def _varied(plan: Plan, job: Job, step: int) -> Generator[Batch]:
    """The augmented batches of an epoch from that step on, on the device of the model.

    Where they are augmented is the plan's choice; the random numbers belong to the images.

    Small batches are augmented several at a time, because each operation takes longer to begin than
    to do. What is done together depends on a batch's number alone, so that it does not matter where
    a run was interrupted.
    """
    loader, epoch, start = _place(plan, job, step)
    batches = loader.batches(epoch, start)
    number, first_step = start, step - start
    try:
        while True:
            first = number - number % job.augment_together
            together = list(itertools.islice(batches, first + job.augment_together - number))
            if not together:
                return
            done = (first_step + first) / plan.horizon_steps
            for some in _mixable(together):
                whole = joined(some)
                if plan.execution.augment_on == "device":
                    whole = whole.to(job.device)
                rng = ImageRandom(plan.seed, epoch, whole.keys)
                varied = job.augment(whole, rng, done).to(job.device)
                yield from varied.split([len(batch) for batch in some])
            number += len(together)
    finally:
        batches.close()


def _mixable(batches: list[Batch]) -> list[list[Batch]]:
    """All together, or each alone where an odd number (images are missing that could not be
    decoded) would pair images of two batches, which may not be together after an interruption."""
    if any(len(batch) % 2 for batch in batches[:-1]):
        return [[batch] for batch in batches]
    return [batches]


def _average_is_due(plan: Plan, state: State) -> bool:
    return (
        state.average is not None
        and not state.is_schedule_free
        and state.step % plan.ema_every_steps == 0
        and state.step > plan.averaged_from_step
    )


def _settle_average(plan: Plan, job: Job, state: State) -> None:
    """What a schedule-free optimizer averages, with statistics of its own, before it is judged.

    A function of the plan and the step alone, so that it does not matter when a run was stopped.
    """
    if not state.is_schedule_free:
        return
    assert state.average is not None
    state.average.follow(state.model, state.optimizer, state.step)
    seed_step(plan.seed, state.step, job.device)
    batches = _varied(plan, job, 0)
    try:
        with autocast(job.device, plan.execution.precision):
            optim.measure_statistics(
                state.average.model,
                (
                    part.images
                    for batch in itertools.islice(batches, STATISTICS_BATCHES)
                    for part in batch.split(state.training_limit.num_images)
                ),
            )
    finally:
        batches.close()


def _multiplier(job: Job, state: State, done: float) -> float:
    """The learning rate as a share of its peak."""
    return job.schedule(done) * state.plateau.multiplier


def _step_that_fits(
    network: nn.Module, state: State, batch: Batch, settings: StepSettings
) -> tuple[StepResult, StepSettings]:
    """One update; where memory runs out, the same one with fewer images at once.

    What was computed before memory ran out is let go. Only the running statistics of batch norms
    have seen it.

    Raises:
        OutOfMemory: not even one image fits.
    """
    while True:
        try:
            result = train_step(
                network, state.optimizer, batch, settings, state.step, scaler=state.scaler
            )
        except (RuntimeError, MemoryError) as error:
            if state.is_sharded and memory.is_out_of_memory(error):
                # The others wait in the middle of this very pass.
                raise OutOfMemory(
                    f"step {state.step}: out of memory with "
                    f"{settings.micro_batch_size} images at once",
                    fix="begin anew with batches in more parts, --set train.accumulate=..., or "
                    "with smaller ones",
                ) from error
            state.optimizer.zero_grad(set_to_none=True)
            state.notes.append(
                f"step {state.step}: {state.training_limit.halve(error, what='training')}"
            )
        else:
            return result, settings
        # Here, where the error and with it the frames that hold the activations are gone.
        memory.release()
        settings = replace(settings, micro_batch_size=state.training_limit.num_images)


def _count(state: State, result: StepResult) -> None:
    """Add a step to the sums of the log line; no value is read from the device."""
    window = state.window
    window.loss_sum += result.loss_sum
    window.correct += result.correct
    window.num_images += result.num_images
    window.num_steps += 1
    if isinstance(result.finite, bool):
        state.consecutive_skips = 0
    else:
        skipped = (~result.finite).float()
        window.skipped = skipped if window.skipped is None else window.skipped + skipped


def _log_is_due(plan: Plan, state: State) -> bool:
    last = state.step == plan.last_step or state.step in plan.rungs
    return last or state.step % plan.log_every_steps == 0


def _validation_is_due(plan: Plan, job: Job, state: State) -> bool:
    if job.validation is None:
        return False
    due = (
        state.step % plan.evaluate_every_steps == 0
        or state.step == plan.last_step
        or state.step in plan.rungs
    )
    begun = state.step > 0 or plan.last_step == 0
    return due and begun and state.evaluated_step != state.step


def _validate(
    plan: Plan, job: Job, state: State, run: Run | None, watch: _Watch
) -> Iterator[Progress]:
    assert job.validation is not None
    started_at = time.perf_counter()
    _settle_average(plan, job, state)
    average = state.average
    judged = state.model if average is None or not average.num_steps else average.model
    job.ranks.same_buffers(judged)
    predictions = None
    with gathered(judged):
        for part in predict(
            judged,
            job.validation,
            plan.pixels.image_px,
            plan.execution.precision,
            job.device,
            limit=state.evaluation_limit,
            note=state.notes.append,
        ):
            predictions = part
            yield watch.progress("validate", state)
    predictions = together(predictions, job.ranks, plan.model.num_classes)
    accuracy, log_loss = quick_scores(predictions)
    before = state.best
    if math.isfinite(log_loss):
        state.best = Best.after(before, state.step, accuracy, log_loss, len(predictions))
    is_best = state.best is not None and (
        before is None or state.best.top_accuracy > before.top_accuracy
    )
    state.evaluations_since_best = 0 if is_best else state.evaluations_since_best + 1
    state.evaluated_step = state.step
    if job.plateau is not None:
        before_fall = state.plateau.multiplier
        state.plateau = job.plateau.after(state.plateau, accuracy)
        if state.plateau.multiplier != before_fall:
            state.notes.append(
                f"step {state.step}: no better for long, so the learning rate falls to "
                f"{state.plateau.multiplier:.3g} of the schedule's"
            )
    if run is not None:
        run.metrics.append(
            {
                "kind": "validation",
                "step": state.step,
                "epoch": state.step / plan.steps_per_epoch,
                "accuracy": accuracy,
                "log_loss": log_loss if math.isfinite(log_loss) else None,
            }
        )
    watch.pause(time.perf_counter() - started_at)
    watch.validation = Validation(state.step, accuracy, log_loss, is_best)
    yield watch.progress("validate", state)


def _log(plan: Plan, job: Job, state: State, run: Run | None, watch: _Watch) -> None:
    """Read the sums from the device; the one place of a normal step that waits for it."""
    window = state.window
    if window.skipped is not None:
        _read_skips(state, plan)
    loss_sum, correct, num_images = window.loss_sum, window.correct, float(window.num_images)
    if not job.ranks.alone:
        sums = job.ranks.sums(torch.stack([loss_sum, correct, loss_sum.new_tensor(num_images)]))
        loss_sum, correct, num_images = sums[0], sums[1], float(sums[2])
        # What one process learnt about memory, all know when the run is continued.
        state.training_limit.num_images = job.ranks.smallest(state.training_limit.num_images)
    count = max(1.0, num_images)
    watch.loss, watch.accuracy = float(loss_sum) / count, float(correct) / count
    done = (state.step - 1) / plan.horizon_steps
    if run is not None:
        run.metrics.append(
            {
                "kind": "train",
                "step": state.step,
                "epoch": state.step / plan.steps_per_epoch,
                "loss": watch.loss if num_images else None,
                "accuracy": watch.accuracy if num_images else None,
                "learning_rate": plan.optimizer.learning_rate * _multiplier(job, state, done),
            }
        )
        run.timing.append({"step": state.step, **watch.lap()})
    state.window = Window.empty(job.device)


def _check_scale(state: State) -> None:
    """float16 needs gradients to be scaled up; a scale below 1 says that it cannot hold them."""
    if state.scaler is not None and state.scaler.get_scale() < 1.0:
        raise TrainingError(
            f"float16 cannot hold the gradients at step {state.step}: their scale fell below 1",
            fix="--set machine.precision=bfloat16, or float32",
        )


def _read_skips(state: State, plan: Plan) -> None:
    """What the device left out since the last log line."""
    assert state.window.skipped is not None
    skipped = int(state.window.skipped)
    state.skipped_steps += skipped
    # Not finite all the way: the count goes on; else it was bad luck.
    everything = skipped == state.window.num_steps
    state.consecutive_skips = state.consecutive_skips + skipped if everything else 0
    if skipped:
        # Their images count in neither sum.
        state.window.num_images -= skipped * plan.local_batch_size
        state.notes.append(
            f"up to step {state.step}: the loss or a gradient was not finite in {skipped} updates, "
            "which were left out"
        )


def _skip(state: State, batch: Batch) -> None:
    state.skipped_steps += 1
    state.consecutive_skips += 1
    ids = ", ".join(str(number) for number in batch.ids[:8].tolist())
    state.notes.append(
        f"step {state.step}: the loss or a gradient was not finite, the update was left out "
        f"(images {ids}, ...)"
    )


def _back_to_a_checkpoint(state: State, saver: Saver, plan: Plan, batch: Batch) -> None:
    """Weights and optimizer as they were at the newest checkpoint; the run goes on from here, so
    that the batches that broke it are not met again.

    Raises:
        TrainingError: there is none, or it has been done too often.
    """
    ids = ", ".join(str(number) for number in batch.ids[:8].tolist())
    skips = state.consecutive_skips
    if not saver.roll_back(state):
        raise TrainingError(
            f"training diverged: {skips} updates in a row had a loss or gradient "
            f"that is not finite, up to step {state.step} (images {ids}, ...)",
            fix=f"lower the learning rate (it is {plan.optimizer.learning_rate:g}): "
            "--set train.learning_rate=..., or set train.clip_norm=1.0",
        )


class _Watch:
    """Rates and what was last seen; nothing here changes a result."""

    def __init__(self, plan: Plan, loader: Loader, state: State) -> None:
        self._plan = plan
        self._loader = loader
        self._started_at = time.perf_counter()
        self._paused_s = 0.0
        self._first_step = state.step
        self._first_wait_s = loader.wait_s
        self._notes_seen = len(state.notes)
        self._step = state.step
        self._lap = (state.step, 0.0, loader.wait_s)
        self.loss: float | None = None
        self.accuracy: float | None = None
        self.validation: Validation | None = None

    def at(self, step: int) -> None:
        """Training is at this step now."""
        self._step = step

    def lap(self) -> dict[str, float]:
        """Rates since the last lap."""
        step, training_s, wait_s = self._lap
        self._lap = (self._step, self._training_s, self._loader.wait_s)
        elapsed_s = max(1e-9, self._training_s - training_s)
        return {
            "images_per_second": (self._step - step) * self._plan.batch_size / elapsed_s,
            "wait_fraction": min(1.0, (self._loader.wait_s - wait_s) / elapsed_s),
        }

    def pause(self, seconds: float) -> None:
        """Time that is not training: validations and saves."""
        self._paused_s += seconds

    @property
    def _training_s(self) -> float:
        return max(1e-9, time.perf_counter() - self._started_at - self._paused_s)

    @property
    def images_per_second(self) -> float:
        return (self._step - self._first_step) * self._plan.batch_size / self._training_s

    @property
    def wait_fraction(self) -> float:
        return min(1.0, (self._loader.wait_s - self._first_wait_s) / self._training_s)

    def progress(
        self, phase: Literal["train", "validate", "save"], state: State, *notes: str
    ) -> Progress:
        plan = self._plan
        done = plan.work(self._first_step, state.step)
        elapsed_s = time.perf_counter() - self._started_at
        new = tuple(state.notes[self._notes_seen :])
        self._notes_seen = len(state.notes)
        return Progress(
            phase=phase,
            step=state.step,
            last_step=plan.last_step,
            epoch=state.step / plan.steps_per_epoch,
            loss=self.loss,
            accuracy=self.accuracy,
            learning_rate=state.optimizer.param_groups[0]["lr"],
            images_per_second=self.images_per_second,
            wait_fraction=self.wait_fraction,
            remaining_s=elapsed_s / done * plan.work(state.step, plan.last_step) if done else 0.0,
            validation=self.validation,
            best=state.best,
            notes=(*new, *notes),
        )


def _saved(
    saver: Saver, state: State, watch: _Watch, *, now: bool = False, wait: bool = False
) -> Iterator[Progress]:
    """Save when it is time, or now; what went wrong is yielded."""
    started_at = time.perf_counter()
    notes = saver.save(state, now=now, wait=wait)
    if notes is None:
        return
    watch.pause(time.perf_counter() - started_at)
    if notes:
        yield watch.progress("save", state, *notes)
