"""The loop: forward, backward, step, log, validate, save, in that order. It yields.

The caller owns printing, early stopping, pruning and the clock: it may break out at any `Progress`
and call `save`. Every number that is logged is a pure function of the plan and the data, so a run
that was stopped anywhere and continued writes the same bytes as one that never stopped.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from vidi import optim
from vidi.augment import ImageRandom, Transform
from vidi.batch import Batch, joined
from vidi.data import Loader
from vidi.errors import StorageError, TrainingError
from vidi.evaluate import predict
from vidi.metrics import quick_scores
from vidi.plan import Plan
from vidi.run import Run
from vidi.step import StepSettings, train_step
from vidi.train.state import Best, State, Window

# An update whose loss or gradient is not finite is left out; so many in a row are not bad luck.
MAX_CONSECUTIVE_SKIPS = 10
# A disk that refuses so many saves in a row will refuse the next one too.
MAX_FAILED_SAVES = 3


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


def loop(plan: Plan, job: Job, state: State, run: Run) -> Generator[Progress]:
    """Train from where `state` is to `plan.last_step`, yielding after every step and every batch
    of a validation.

    Raises:
        TrainingError: the loss stays non-finite.
        StorageError: three checkpoints in a row could not be written.
    """
    settings = StepSettings(
        precision=plan.execution.precision,
        label_smoothing=plan.label_smoothing,
        micro_batch_size=plan.micro_batch_size,
        clip_norm=plan.clip_norm,
        seed=plan.seed,
    )
    watch = _Watch(plan, job.train, state)
    saver = _Saver(run, plan)
    while True:
        if _validation_is_due(plan, job, state):
            yield from _validate(plan, job, state, run, watch)
            yield from saver.save_now(state, watch)
        if state.step >= plan.last_step:
            yield from saver.save_last(state, watch)
            return
        batches = _varied(plan, job, *divmod(state.step, plan.steps_per_epoch))
        try:
            for batch in batches:
                done = state.step / plan.horizon_steps
                optim.set_learning_rate(state.optimizer, job.schedule(done))
                if not state.model.training:
                    state.model.train()
                result = train_step(state.model, state.optimizer, batch, settings, state.step)
                state.step += 1
                watch.at(state.step)
                if result.finite:
                    state.consecutive_skips = 0
                    state.window.loss_sum += result.loss_sum
                    state.window.correct += result.correct
                    state.window.num_images += result.num_images
                else:
                    _skip(state, batch, plan)
                if state.average is not None and state.step % plan.ema_every_steps == 0:
                    state.average.update(state.model, plan.ema_every_steps)
                if state.step % plan.log_every_steps == 0 or state.step == plan.last_step:
                    _log(plan, job, state, run, watch)
                yield watch.progress("train", state)
                if _validation_is_due(plan, job, state) or state.step >= plan.last_step:
                    break
                yield from saver.save_when_due(state, watch)
        finally:
            batches.close()


def _varied(plan: Plan, job: Job, epoch: int, start: int) -> Generator[Batch]:
    """The augmented batches of an epoch from number `start` on, on the device of the model.

    Small batches are augmented several at a time, because each operation takes longer to begin than
    to do. What is done together depends on a batch's number alone, so that it does not matter where
    a run was interrupted.
    """
    batches = job.train.batches(epoch, start)
    number = start
    try:
        while True:
            first = number - number % job.augment_together
            together = list(itertools.islice(batches, first + job.augment_together - number))
            if not together:
                return
            done = (epoch * plan.steps_per_epoch + first) / plan.horizon_steps
            for some in _mixable(together):
                whole = _to_device(joined(some), job.device)
                rng = ImageRandom(plan.seed, epoch, whole.keys)
                yield from job.augment(whole, rng, done).split([len(batch) for batch in some])
            number += len(together)
    finally:
        batches.close()


def _mixable(batches: list[Batch]) -> list[list[Batch]]:
    """All together, or each alone where an odd number (images are missing that could not be
    decoded) would pair images of two batches, which may not be together after an interruption."""
    if any(len(batch) % 2 for batch in batches[:-1]):
        return [[batch] for batch in batches]
    return [batches]


def save(state: State, run: Run) -> None:
    """Write the state as a checkpoint, durably, before returning.

    Raises:
        StorageError: it could not be written; earlier checkpoints are as they were.
    """
    keep = () if state.best is None else (state.best.step,)
    saved = run.save_checkpoint(state.step, state.files(), state.counters(), keep_steps=keep)
    state.notes += saved.notices


def _validation_is_due(plan: Plan, job: Job, state: State) -> bool:
    if job.validation is None:
        return False
    due = state.step % plan.evaluate_every_steps == 0 or state.step == plan.last_step
    return due and state.step > 0 and state.evaluated_step != state.step


def _validate(plan: Plan, job: Job, state: State, run: Run, watch: _Watch) -> Iterator[Progress]:
    assert job.validation is not None
    started_at = time.perf_counter()
    model = state.model if state.average is None else state.average.model
    predictions = None
    for part in predict(
        model, job.validation, plan.pixels.image_px, plan.execution.precision, job.device
    ):
        predictions = part
        yield watch.progress("validate", state)
    assert predictions is not None
    accuracy, log_loss = quick_scores(predictions)
    before = state.best
    if math.isfinite(log_loss):
        state.best = Best.after(before, state.step, accuracy, log_loss, len(predictions))
    is_best = state.best is not None and (
        before is None or state.best.top_accuracy > before.top_accuracy
    )
    state.evaluations_since_best = 0 if is_best else state.evaluations_since_best + 1
    state.evaluated_step = state.step
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


def _log(plan: Plan, job: Job, state: State, run: Run, watch: _Watch) -> None:
    """Read the sums from the device; the one place of a normal step that waits for it."""
    window = state.window
    count = max(1, window.num_images)
    watch.loss, watch.accuracy = float(window.loss_sum) / count, float(window.correct) / count
    done = (state.step - 1) / plan.horizon_steps
    run.metrics.append(
        {
            "kind": "train",
            "step": state.step,
            "epoch": state.step / plan.steps_per_epoch,
            "loss": watch.loss if window.num_images else None,
            "accuracy": watch.accuracy if window.num_images else None,
            "learning_rate": plan.optimizer.learning_rate * job.schedule(done),
        }
    )
    run.timing.append({"step": state.step, **watch.lap()})
    state.window = Window.empty(job.device)


def _skip(state: State, batch: Batch, plan: Plan) -> None:
    state.skipped_steps += 1
    state.consecutive_skips += 1
    ids = ", ".join(str(number) for number in batch.ids[:8].tolist())
    state.notes.append(
        f"step {state.step}: the loss or a gradient was not finite, the update was left out "
        f"(images {ids}, ...)"
    )
    if state.consecutive_skips > MAX_CONSECUTIVE_SKIPS:
        raise TrainingError(
            f"training diverged: {state.consecutive_skips} updates in a row had a loss or gradient "
            f"that is not finite, up to step {state.step} (images {ids}, ...)",
            fix=f"lower the learning rate (it is {plan.optimizer.learning_rate:g}): "
            "--set train.learning_rate=..., or set train.clip_norm=1.0",
        )


def _to_device(batch: Batch, device: torch.device) -> Batch:
    if device.type == "cpu":
        return batch
    return Batch(
        batch.images.to(device, non_blocking=True),
        batch.targets.to(device, non_blocking=True),
        batch.ids.to(device, non_blocking=True),
        None if batch.repeats is None else batch.repeats.to(device, non_blocking=True),
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
        steps = state.step - self._first_step
        elapsed_s = time.perf_counter() - self._started_at
        per_step_s = elapsed_s / steps if steps else 0.0
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
            remaining_s=per_step_s * (plan.last_step - state.step),
            validation=self.validation,
            best=state.best,
            notes=(*new, *notes),
        )


class _Saver:
    """Checkpoints by the clock and after validations; a failed one is said and counted."""

    def __init__(self, run: Run, plan: Plan) -> None:
        self._run = run
        self._every_s = plan.checkpoint_every_s
        self._last_at = time.perf_counter()
        self._failures = 0
        self._saved_step = -1

    def save_when_due(self, state: State, watch: _Watch) -> Iterator[Progress]:
        if time.perf_counter() - self._last_at >= self._every_s:
            yield from self.save_now(state, watch)

    def save_last(self, state: State, watch: _Watch) -> Iterator[Progress]:
        if self._saved_step != state.step:
            yield from self.save_now(state, watch)

    def save_now(self, state: State, watch: _Watch) -> Iterator[Progress]:
        started_at = time.perf_counter()
        try:
            save(state, self._run)
        except StorageError as error:
            self._failures += 1
            if self._failures >= MAX_FAILED_SAVES:
                raise StorageError(
                    f"{self._failures} checkpoints in a row could not be written: {error.message}",
                    fix="free or repair the disk; then the same command continues",
                ) from error
            yield watch.progress("save", state, f"checkpoint not written: {error.message}")
        else:
            self._failures = 0
            self._saved_step = state.step
        self._last_at = time.perf_counter()
        watch.pause(self._last_at - started_at)
