"""What is built from a plan."""

from __future__ import annotations

import pytest

import vidi
from vidi.train.prepare import build_optimizer


def shrink_per_step(batch_size: int) -> float:
    """The largest share of a weight that one update takes away at the peak."""
    prepared = vidi.plan(
        "digits", settings={"train.batch_size": batch_size, "train.learning_rate": 0.1}
    )
    optimizer = build_optimizer(prepared.plan, prepared.model)
    return float(max(group["lr"] * group["weight_decay"] for group in optimizer.param_groups))


def test_a_batch_half_as_large_takes_half_of_the_weight_decay_in_an_update() -> None:
    assert shrink_per_step(64) == pytest.approx(shrink_per_step(128) / 2)
