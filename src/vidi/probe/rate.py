"""The learning-rate range test: raise the rate until the loss leaves, and see where it fell."""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from html import escape
from typing import NamedTuple

import torch
from torch import nn

from vidi import optim
from vidi.batch import Batch
from vidi.step import StepSettings, train_step

# The test is over when the smoothed loss is so many times its lowest value.
DIVERGED = 2.0
SMOOTHING = 0.9


class RangeTest(NamedTuple):
    """What the rates did; one entry a step.

    losses: smoothed. suggestion: where the loss falls fastest, as a peak for the run's own batch
    size; None where it never fell. per_256: the same as `train.learning_rate` wants it.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    suggestion: float | None
    per_256: float | None


def range_test(
    model: nn.Module,
    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    batches: Iterable[Batch],
    settings: StepSettings,
    *,
    low: float,
    high: float,
    steps: int,
    scale: float,
    limit_s: float,
) -> RangeTest:
    """Train a copy of `model` while the rate rises from `low` to `high` (Smith 2017).

    The model, its statistics and torch's random numbers are as before when this returns.

    Args:
        make_optimizer: builds the run's optimizer for the copy.
        batches: augmented batches of the run, on the device.
        low, high: peak rates for the run's batch size, above 0.
        steps: as many, if the batches last.
        scale: the run's peak rate divided by its `train.learning_rate`, which is for 256 images.
        limit_s: stop after so long.
    """
    started_at = time.perf_counter()
    trial = copy.deepcopy(model).train()
    optimizer = make_optimizer(trial)
    base = optimizer.param_groups[0]["base_learning_rate"]
    rates: list[float] = []
    losses: list[float] = []
    average, settings = 0.0, replace(settings, guard="host")
    state = torch.default_generator.get_state()
    device_states = None
    if torch.cuda.is_available():
        device_states = torch.cuda.get_rng_state_all()
    try:
        for step, batch in enumerate(itertools.islice(batches, steps)):
            rate = low * (high / low) ** (step / max(1, steps - 1))
            optim.set_learning_rate(optimizer, rate / base)
            result = train_step(trial, optimizer, batch, settings, step)
            loss = float(result.loss_sum) / result.num_images
            average = SMOOTHING * average + (1.0 - SMOOTHING) * loss
            smooth = average / (1.0 - SMOOTHING ** (step + 1))
            if not math.isfinite(smooth) or (losses and smooth > DIVERGED * min(losses)):
                break
            rates.append(rate)
            losses.append(smooth)
            if time.perf_counter() - started_at > limit_s:
                break
    finally:
        torch.default_generator.set_state(state)
        if device_states is not None:
            torch.cuda.set_rng_state_all(device_states)
    found = _steepest(rates, losses)
    return RangeTest(tuple(rates), tuple(losses), found, None if found is None else found / scale)


def _steepest(rates: list[float], losses: list[float]) -> float | None:
    """The rate at which the loss falls fastest, over a tenth of the test; None if it does not."""
    reach = max(1, len(rates) // 10)
    falls = [
        (losses[index + reach] - losses[index], index) for index in range(len(rates) - 2 * reach)
    ]
    if not falls or min(falls)[0] >= 0.0:
        return None
    return rates[min(falls)[1] + reach // 2]


def picture(test: RangeTest, title: str) -> str:
    """The test as an SVG image: the loss over the rate, on a logarithmic axis."""
    width, height, left, bottom = 640, 360, 64, 48
    rates, losses = test.rates or (1.0,), test.losses or (0.0,)
    low, high = math.log10(rates[0]), math.log10(max(rates[-1], rates[0] * 1.001))
    floor, top = min(losses), max(max(losses), min(losses) + 1e-6)

    def x(rate: float) -> float:
        return left + (width - left - 16) * (math.log10(rate) - low) / (high - low)

    def y(loss: float) -> float:
        return height - bottom - (height - bottom - 40) * (loss - floor) / (top - floor)

    curve = " ".join(f"{x(r):.1f},{y(v):.1f}" for r, v in zip(rates, losses, strict=True))
    marks = [
        f'<text x="{x(10.0**power):.0f}" y="{height - bottom + 18}" text-anchor="middle">'
        f"1e{power}</text>"
        for power in range(math.ceil(low), math.floor(high) + 1)
    ]
    marks += [
        f'<text x="{left - 8}" y="{y(value) + 4:.0f}" text-anchor="end">{value:.2f}</text>'
        for value in (floor, top)
    ]
    if test.suggestion is not None:
        at = x(test.suggestion)
        marks.append(
            f'<line x1="{at:.1f}" y1="36" x2="{at:.1f}" y2="{height - bottom}" stroke="#c60" '
            f'stroke-dasharray="4"/><text x="{at + 6:.1f}" y="48" fill="#c60">'
            f"{test.suggestion:.2g}</text>"
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="13">'
        '<rect width="100%" height="100%" fill="#fff"/>'
        f'<text x="{left}" y="24">{escape(title)}</text>'
        f'<line x1="{left}" y1="{height - bottom}" x2="{width - 16}" y2="{height - bottom}" '
        'stroke="#888"/>'
        f'<polyline points="{curve}" fill="none" stroke="#06c" stroke-width="2"/>'
        f"{''.join(marks)}"
        f'<text x="{(left + width) // 2}" y="{height - 8}" text-anchor="middle">learning rate'
        "</text></svg>\n"
    )
