"""Schedules equal torch's at every epoch, stay in [0, 1], and say what is wrong with a setting."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from vidi import schedule
from vidi.errors import UsageError
from vidi.schedule import Plateau, PlateauState
from vidi.testing import check_schedule

PEAK = 0.4


def torch_curve(
    make: Callable[[torch.optim.Optimizer], Any], epochs: int, peak: float = PEAK
) -> list[float]:
    """The multiplier of `peak` that torch's scheduler gives in each epoch."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = make(optimizer)
    rates = []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"] / peak)
        optimizer.step()
        scheduler.step()
    return rates


def our_curve(made: schedule.Schedule, epochs: int) -> list[float]:
    return [made(epoch / epochs) for epoch in range(epochs)]


CASES: list[tuple[str, dict[str, Any], Callable[[torch.optim.Optimizer, int], Any]]] = [
    ("constant", {}, lambda o, n: lr_scheduler.ConstantLR(o, factor=1.0, total_iters=n)),
    ("step", {"every_fraction": 1 / 3}, lambda o, n: lr_scheduler.StepLR(o, n // 3, gamma=0.1)),
    (
        "step",
        {"every_fraction": 1 / 6, "factor": 0.5},
        lambda o, n: lr_scheduler.StepLR(o, n // 6, gamma=0.5),
    ),
    (
        "multistep",
        {"milestones": (0.3, 0.8)},
        lambda o, n: lr_scheduler.MultiStepLR(o, [n * 3 // 10, n * 8 // 10], gamma=0.1),
    ),
    (
        "exponential",
        {"final_fraction": 0.02},
        lambda o, n: lr_scheduler.ExponentialLR(o, gamma=0.02 ** (1 / n)),
    ),
    ("cosine", {}, lambda o, n: lr_scheduler.CosineAnnealingLR(o, T_max=n)),
    (
        "cosine",
        {"final_fraction": 0.05},
        lambda o, n: lr_scheduler.CosineAnnealingLR(o, T_max=n, eta_min=0.05 * PEAK),
    ),
    (
        "cosine_restarts",
        {"first_fraction": 1 / 3},
        lambda o, n: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=n // 3),
    ),
    (
        "cosine_restarts",
        {"first_fraction": 0.1, "growth": 2, "final_fraction": 0.01},
        lambda o, n: lr_scheduler.CosineAnnealingWarmRestarts(
            o, T_0=n // 10, T_mult=2, eta_min=0.01 * PEAK
        ),
    ),
    ("linear", {}, lambda o, n: lr_scheduler.LinearLR(o, 1.0, 0.0, total_iters=n)),
    (
        "linear",
        {"final_fraction": 0.1},
        lambda o, n: lr_scheduler.LinearLR(o, 1.0, 0.1, total_iters=n),
    ),
    (
        "polynomial",
        {"power": 2.0},
        lambda o, n: lr_scheduler.PolynomialLR(o, total_iters=n, power=2.0),
    ),
    (
        "trapezoid",
        {"decay_fraction": 0.2},
        lambda o, n: lr_scheduler.SequentialLR(
            o,
            [
                lr_scheduler.ConstantLR(o, 1.0),
                lr_scheduler.LinearLR(o, 1.0, 0.0, total_iters=n // 5),
            ],
            milestones=[n * 4 // 5],
        ),
    ),
]


@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step()`:UserWarning")
@pytest.mark.parametrize("epochs", [30, 90, 300])
@pytest.mark.parametrize(("name", "settings", "reference"), CASES)
def test_every_schedule_equals_torch_at_every_epoch(
    name: str,
    settings: dict[str, Any],
    reference: Callable[[torch.optim.Optimizer, int], Any],
    epochs: int,
) -> None:
    expected = torch_curve(lambda optimizer: reference(optimizer, epochs), epochs)
    assert our_curve(schedule.make(name, **settings), epochs) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("steps", [20, 101, 400])
def test_one_cycle_equals_torch_at_every_step(steps: int) -> None:
    expected = torch_curve(
        lambda optimizer: lr_scheduler.OneCycleLR(optimizer, max_lr=PEAK, total_steps=steps + 1),
        steps,
    )
    # torch puts the peak at step 0.3 * total - 1 of the steps 0 ... total - 1.
    rise = (0.3 * (steps + 1) - 1) / steps
    made = schedule.make("one_cycle", rise_fraction=rise)
    assert our_curve(made, steps) == pytest.approx(expected, abs=1e-9)


@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step()`:UserWarning")
@pytest.mark.parametrize("epochs", [20, 100])
def test_warm_up_equals_torch_linear_then_the_schedule(epochs: int) -> None:
    warmup = epochs // 5
    expected = torch_curve(
        lambda optimizer: lr_scheduler.SequentialLR(
            optimizer,
            [
                lr_scheduler.LinearLR(optimizer, 0.1, 1.0, total_iters=warmup),
                lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs - warmup),
            ],
            milestones=[warmup],
        ),
        epochs,
    )
    made = schedule.make("cosine", warmup_fraction=warmup / epochs, warmup_start=0.1)
    assert our_curve(made, epochs) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("warmup_fraction", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("name", schedule.SCHEDULES)
def test_every_schedule_passes_the_check_for_your_own(name: str, warmup_fraction: float) -> None:
    check_schedule(schedule.make(name, warmup_fraction=warmup_fraction))


@given(
    name=st.sampled_from(sorted(schedule.SCHEDULES)),
    warmup_fraction=st.floats(0.0, 0.99),
    done=st.floats(0.0, 1.0),
)
def test_no_schedule_leaves_the_unit_interval(
    name: str, warmup_fraction: float, done: float
) -> None:
    assert 0.0 <= schedule.make(name, warmup_fraction=warmup_fraction)(done) <= 1.0


@pytest.mark.parametrize("name", ["cosine", "linear", "polynomial", "trapezoid", "exponential"])
def test_a_falling_schedule_starts_at_the_peak_and_ends_at_its_final_fraction(name: str) -> None:
    made = schedule.make(name, final_fraction=0.25)
    values = [made(done / 100) for done in range(101)]
    assert values[0] == 1.0
    assert values[-1] == pytest.approx(0.25)
    assert all(later <= earlier for earlier, later in itertools.pairwise(values))


def test_steps_and_restarts_happen_exactly_at_their_epoch_whatever_the_rounding() -> None:
    for epochs in range(3, 400, 3):
        stepped = schedule.make("step", every_fraction=1 / 3)
        third, two_thirds = epochs // 3 / epochs, 2 * (epochs // 3) / epochs
        assert stepped(third) == pytest.approx(0.1)
        assert stepped(two_thirds) == pytest.approx(0.01)
        restarted = schedule.make("cosine_restarts", first_fraction=1 / 3)
        assert restarted(third) == pytest.approx(1.0)
        assert restarted(two_thirds) == pytest.approx(1.0)


def test_your_own_function_gets_a_warm_up_too() -> None:
    made = schedule.make(lambda done: 1.0 - done / 2, warmup_fraction=0.5)
    assert made(0.25) == pytest.approx(0.5)
    assert made(0.5) == pytest.approx(1.0)
    assert made(1.0) == pytest.approx(0.5)


def test_an_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'cosine'"):
        schedule.make("cosin")


def test_an_unknown_setting_offers_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'every_fraction'"):
        schedule.make("step", every_fractoin=0.2)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("cosine", {"warmup_fraction": 1.0}),
        ("cosine", {"warmup_fraction": float("nan")}),
        ("cosine", {"final_fraction": 1.5}),
        ("exponential", {"final_fraction": 0.0}),
        ("step", {"every_fraction": 0.0}),
        ("multistep", {"milestones": (0.5, 1.2)}),
        ("constant", {"final_fraction": 0.1}),
    ],
)
def test_a_setting_out_of_its_range_is_refused(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        schedule.make(name, **settings)


SCORES = [0.1, 0.3, 0.3, 0.3, 0.29, 0.31, 0.31, 0.2, 0.1, 0.1, 0.1, 0.4, 0.1, 0.1, 0.1, 0.1, 0.1]


@pytest.mark.parametrize("better", ["higher", "lower"])
@pytest.mark.parametrize("cooldown", [0, 2])
def test_plateau_equals_torch_at_every_evaluation(better: Any, cooldown: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    reference = lr_scheduler.ReduceLROnPlateau(
        optimizer,
        mode="max" if better == "higher" else "min",
        factor=0.5,
        patience=2,
        cooldown=cooldown,
    )
    rule = Plateau(factor=0.5, patience=2, cooldown=cooldown, better=better)
    state = PlateauState()
    for score in SCORES * 3:
        reference.step(score)
        state = rule.after(state, score)
        assert state.multiplier * PEAK == pytest.approx(optimizer.param_groups[0]["lr"])
    assert state.multiplier < 1.0


def test_a_score_that_is_not_a_number_is_never_the_best() -> None:
    state = Plateau(patience=1).after(PlateauState(), float("nan"))
    assert state.best is None
    assert Plateau(patience=1).after(state, 0.5).best == 0.5
    assert Plateau(patience=1).after(state, float("inf")).best is None


def test_the_memory_of_plateau_survives_json() -> None:
    state = Plateau(patience=0).after(PlateauState(best=0.7), 0.1)
    assert PlateauState(**json.loads(json.dumps(dataclasses.asdict(state)))) == state


CALLS = itertools.count()


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (lambda done: done * 2, "not in"),
        (lambda done: torch.tensor(done), "not a plain number"),
        (lambda done: next(CALLS) / 1e6 + done * 0, "more than `done`"),
    ],
)
def test_the_check_says_what_is_wrong_with_a_schedule(wrong: Any, sentence: str) -> None:
    with pytest.raises(AssertionError, match=sentence):
        check_schedule(wrong)
