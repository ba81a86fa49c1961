"""What is built from a plan."""

from __future__ import annotations

from pathlib import Path

import pytest

import vidi
from vidi import probe
from vidi.facts import Measurements, StepTiming
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


def one_way(rate: float) -> StepTiming:
    return StepTiming(
        precision="float32", channels_last=True, batch_size=64, threads=1, images_per_second=rate
    )


@pytest.mark.parametrize("ways", [1, 2])
def test_a_measurement_that_had_time_for_one_way_only_is_not_believed_the_next_time(
    ways: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = Measurements(
        steps=tuple(one_way(10.0 + number) for number in range(ways)),
        evaluation_images_per_second=50.0,
        probe_s=4.0,
    )
    monkeypatch.setattr(probe, "measure", lambda *_, **__: measured)
    settings = {
        "model.name": "mlp",
        "train.minutes": 1.0,
        "data.cache_dir": str(tmp_path),
    }
    vidi.plan("digits", settings=settings)
    lines: list[str] = []
    vidi.plan("digits", settings=settings, show=lambda line: lines.append(str(line)))
    assert any("was measured before" in line for line in lines) == (ways > 1)
