"""Times the real training step for each way of computing it that this machine allows."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import nn

from vidi.batch import Batch
from vidi.facts import Machine, Measurements, Precision, StepTiming
from vidi.step import StepSettings, autocast, train_step

# A candidate's loss after the warm-up may differ from float32's by this share. Rounding of
# bfloat16 moves it by less than a percent; a broken kernel moves it by much more.
LOSS_TOLERANCE = 0.05
WARM_UP_STEPS = 3
# A candidate that is this much slower than the best so far after two timed steps is given up.
HOPELESS = 1.4


class Candidate(NamedTuple):
    """One way of computing the step."""

    precision: Precision
    channels_last: bool


def candidates(device: str, machine: Machine) -> tuple[Candidate, ...]:
    """What is worth timing here, the likeliest first; float32 leads, the others are held to it."""
    found = [Candidate("float32", True)]
    native = {accelerator.kind: accelerator.bfloat16 for accelerator in machine.accelerators}
    if native.get(device, machine.cpu_bfloat16 if device == "cpu" else False):  # type: ignore[call-overload]
        found.append(Candidate("bfloat16", True))
    return (*found, Candidate("float32", False))


def measure(
    model: nn.Module,
    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    batches: Sequence[Batch],
    settings: StepSettings,
    tries: Sequence[Candidate],
    *,
    limit_s: float,
) -> Measurements:
    """Time `train_step` for each candidate on copies of `model`, which is left as it is.

    Args:
        model: on its device, in training mode.
        make_optimizer: builds the run's optimizer for a copy of the model.
        batches: a few real batches of the run's size, on the device; used in turn.
        settings: of the step; the candidate replaces `precision`.
        tries: the candidates, float32 first.
        limit_s: stop starting candidates after so long.
    """
    started_at = time.perf_counter()
    timings: list[StepTiming] = []
    reference_loss: float | None = None
    best_s = float("inf")
    for candidate in tries:
        if timings and time.perf_counter() - started_at > limit_s:
            break
        memory_format = torch.channels_last if candidate.channels_last else torch.contiguous_format
        trial = copy.deepcopy(model).to(memory_format=memory_format)  # type: ignore[call-overload]
        optimizer = make_optimizer(trial)
        trial_settings = _with_precision(settings, candidate.precision)
        share_s = limit_s / len(tries)
        loss, step_s = _time_steps(
            trial, optimizer, batches, trial_settings, share_s=share_s, best_s=best_s
        )
        reference_loss = loss if reference_loss is None else reference_loss
        off = abs(loss - reference_loss) / max(abs(reference_loss), 1e-6)
        # Written so that a loss that is not a number is rejected as well.
        rejected = "" if off <= LOSS_TOLERANCE else f"its loss is {off:.0%} off float32's"
        if not rejected:
            best_s = min(best_s, step_s)
        timings.append(
            StepTiming(
                precision=candidate.precision,
                channels_last=candidate.channels_last,
                batch_size=len(batches[0]),
                threads=torch.get_num_threads(),
                images_per_second=len(batches[0]) / step_s,
                rejected=rejected,
            )
        )
    forward = _time_forward(model, batches, timings)
    return Measurements(
        steps=tuple(timings),
        evaluation_images_per_second=forward,
        probe_s=time.perf_counter() - started_at,
    )


def _with_precision(settings: StepSettings, precision: Precision) -> StepSettings:
    return StepSettings(
        precision=precision,
        label_smoothing=settings.label_smoothing,
        micro_batch_size=settings.micro_batch_size,
        clip_norm=settings.clip_norm,
        seed=settings.seed,
    )


def _time_steps(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    settings: StepSettings,
    *,
    share_s: float,
    best_s: float,
) -> tuple[float, float]:
    """(loss per image after the warm-up, median seconds of a step)."""
    started_at = time.perf_counter()
    for step in range(WARM_UP_STEPS):
        result = train_step(model, optimizer, batches[step % len(batches)], settings, step)
    loss = float(result.loss_sum) / result.num_images
    times: list[float] = []
    step = WARM_UP_STEPS
    while len(times) < 3 or (time.perf_counter() - started_at < share_s and len(times) < 30):
        step_at = time.perf_counter()
        train_step(model, optimizer, batches[step % len(batches)], settings, step)
        _wait(batches[0])
        times.append(time.perf_counter() - step_at)
        step += 1
        if len(times) >= 2 and min(times) > HOPELESS * best_s:
            break
    return loss, statistics.median(times)


def _time_forward(
    model: nn.Module, batches: Sequence[Batch], timings: Sequence[StepTiming]
) -> float:
    best = max(
        (timing for timing in timings if not timing.rejected),
        key=lambda timing: timing.images_per_second,
        default=timings[0],
    )
    memory_format = torch.channels_last if best.channels_last else torch.contiguous_format
    trial = copy.deepcopy(model).to(memory_format=memory_format).eval()  # type: ignore[call-overload]
    times: list[float] = []
    with torch.inference_mode(), autocast(batches[0].images.device, best.precision):
        for turn in range(5):
            batch = batches[turn % len(batches)]
            started_at = time.perf_counter()
            trial(batch.images)
            _wait(batch)
            times.append(time.perf_counter() - started_at)
    return len(batches[0]) / statistics.median(times[2:])


def _wait(batch: Batch) -> None:
    if batch.images.device.type != "cpu":
        torch.accelerator.synchronize()
