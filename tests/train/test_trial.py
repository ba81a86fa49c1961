"""A trial stops at rungs and goes on, and no byte of it tells."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vidi.augment import ImageRandom
from vidi.batch import Batch
from vidi.config import Config
from vidi.errors import ConfigError, MismatchError, StorageError, UsageError
from vidi.run import Run
from vidi.train.loop import Progress
from vidi.train.prepare import Extensions, part_of_training
from vidi.train.trial import Shared, advance, conclude, copy_run, shorten

CONFIG = Config().with_settings(
    {
        "model.name": "mlp",
        "train.epochs": 3,
        "train.batch_size": 64,
        "train.schedule": "trapezoid",
        "train.ema_decay": 0.95,
        "machine.threads": 1,
        "machine.probe": "never",
    }
)
RUNGS = (1 / 9, 1 / 3)


@pytest.fixture(scope="module")
def shared() -> Iterator[Shared]:
    with Shared("digits", CONFIG) as opened:
        yield opened


def digest(path: Path) -> dict[str, str]:
    newest = max((path / "checkpoints").iterdir())
    files = [*newest.glob("*.safetensors"), path / "metrics.jsonl", path / "plan.json"]
    found = {one.name: hashlib.sha256(one.read_bytes()).hexdigest() for one in files}
    state = json.loads((newest / "state.json").read_text())
    # The log of seconds differs between any two runs.
    del state["timing_offset"]
    return {**found, "state": hashlib.sha256(json.dumps(state).encode()).hexdigest()}


def test_stopping_at_rungs_leaves_no_trace(tmp_path: Path, shared: Shared) -> None:
    whole = advance(tmp_path / "whole", shared, CONFIG, rungs=RUNGS)
    first, second = (round(share * whole.horizon_steps) for share in RUNGS)
    steps = [
        advance(tmp_path / "parts", shared, CONFIG, rungs=RUNGS, last_step=step)
        for step in (first, second)
    ]
    with Shared("digits", CONFIG) as another_process:
        last = advance(tmp_path / "parts", another_process, CONFIG)
    assert [one.step for one in steps] == [first, second]
    assert not steps[1].finished
    assert last.finished
    assert (last.accuracy, last.log_loss) == (whole.accuracy, whole.log_loss)
    assert digest(tmp_path / "parts") == digest(tmp_path / "whole")


def test_a_rung_that_was_reached_is_read_and_not_run_again(tmp_path: Path, shared: Shared) -> None:
    seen: list[Progress] = []

    def tell(what: Any) -> None:
        if isinstance(what, Progress):
            seen.append(what)

    first = advance(tmp_path / "t", shared, CONFIG, rungs=RUNGS, last_step=7, tell=tell)
    assert seen
    seen.clear()
    again = advance(tmp_path / "t", shared, CONFIG, last_step=7, tell=tell)
    assert not seen
    assert (again.step, again.accuracy) == (first.step, first.accuracy)


def test_a_deadline_stops_between_rungs_and_nothing_is_lost(tmp_path: Path, shared: Shared) -> None:
    cut = advance(tmp_path / "t", shared, CONFIG, rungs=RUNGS, deadline=time.monotonic())
    assert (cut.step, cut.accuracy, cut.finished) == (1, None, False)
    whole = advance(tmp_path / "whole", shared, CONFIG, rungs=RUNGS)
    assert advance(tmp_path / "t", shared, CONFIG).accuracy == whole.accuracy
    assert digest(tmp_path / "t") == digest(tmp_path / "whole")


def test_trials_judge_validation_and_leave_the_test_images_alone(
    tmp_path: Path, shared: Shared
) -> None:
    advance(tmp_path / "t", shared, CONFIG)
    assert Run.open(tmp_path / "t").evaluated_splits() == ()
    copy_run(tmp_path / "t", tmp_path / "final")
    with pytest.raises(UsageError, match="exists already"):
        copy_run(tmp_path / "t", tmp_path / "final")
    run = conclude(tmp_path / "final", shared, CONFIG)
    assert run.evaluated_splits() == ("test", "validation")
    assert run.report_path.exists()
    judged_at = run.evaluation_path("test").stat().st_mtime_ns
    conclude(tmp_path / "final", shared, CONFIG)
    assert run.evaluation_path("test").stat().st_mtime_ns == judged_at


def test_a_copy_that_finds_no_room_leaves_nothing(
    tmp_path: Path, shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    advance(tmp_path / "t", shared, CONFIG, rungs=RUNGS, last_step=7)

    def full(source: str, target: str) -> None:
        del source
        Path(target).touch()
        raise OSError(errno.ENOSPC, "No space left on device", target)

    monkeypatch.setattr(shutil, "copy2", full)
    with pytest.raises(StorageError, match="the disk is full"):
        copy_run(tmp_path / "t", tmp_path / "final")
    assert [entry.name for entry in tmp_path.iterdir()] == ["t"]


def test_what_is_not_finished_cannot_be_the_answer(tmp_path: Path, shared: Shared) -> None:
    advance(tmp_path / "t", shared, CONFIG, rungs=RUNGS, last_step=7)
    with pytest.raises(UsageError, match="not finished"):
        conclude(tmp_path / "t", shared, CONFIG)


def test_a_shortened_trial_ends_earlier_with_its_learning_rate_at_zero(
    tmp_path: Path, shared: Shared
) -> None:
    first = advance(tmp_path / "t", shared, CONFIG, rungs=RUNGS, last_step=19)
    before = Run.open(tmp_path / "t").metrics.read()
    shorten(tmp_path / "t", 30)
    result = advance(tmp_path / "t", shared, CONFIG)
    assert (result.step, result.finished, first.horizon_steps) == (30, True, 57)
    records = Run.open(tmp_path / "t").metrics.read()
    assert records[: len(before)] == before
    rates = {one["step"]: one["learning_rate"] for one in records if one["kind"] == "train"}
    assert rates[20] == pytest.approx(rates[19])
    falls = [rates[step] - rates[step + 1] for step in range(20, 30)]
    assert max(falls) == pytest.approx(min(falls))
    assert rates[30] == pytest.approx(rates[20] / 11)
    with pytest.raises(UsageError, match="already"):
        shorten(tmp_path / "t", 25)


def test_sizes_and_models_may_differ_and_splits_may_not(tmp_path: Path, shared: Shared) -> None:
    small = CONFIG.with_settings({"data.image_px": 12, "model.name": "lenet5", "train.epochs": 1})
    assert advance(tmp_path / "small", shared, small).finished
    ours = shared.prepared(CONFIG).dataset.indices("validation")
    assert (shared.prepared(small).dataset.indices("validation") == ours).all()
    with pytest.raises(ConfigError, match="split_seed"):
        advance(tmp_path / "other", shared, CONFIG.with_settings({"data.split_seed": 1}))
    minutes = Config().with_settings({"train.minutes": 1})
    with pytest.raises(ConfigError, match=r"train\.epochs"):
        advance(tmp_path / "other", shared, minutes)


def test_another_trial_is_not_continued(tmp_path: Path, shared: Shared) -> None:
    advance(tmp_path / "t", shared, CONFIG, rungs=RUNGS, last_step=7)
    with pytest.raises(MismatchError, match=r"train\.label_smoothing"):
        advance(tmp_path / "t", shared, CONFIG.with_settings({"train.label_smoothing": 0.0}))


def test_without_validation_images_there_is_nothing_to_search_by() -> None:
    with pytest.raises(ConfigError, match="validation"):
        Shared("digits", CONFIG.with_settings({"data.validation_fraction": 0.0}))


@pytest.mark.parametrize(
    ("setting", "value", "nearest"),
    [
        ("model.name", "resnet19", "resnet18"),
        ("train.optimizer", "adamww", "adamw"),
        ("train.schedule", "cosin", "cosine"),
    ],
)
def test_names_of_nothing_are_refused_before_the_data_are_opened(
    tmp_path: Path, setting: str, value: str, nearest: str
) -> None:
    # There are no data, and that is not what is said.
    with pytest.raises(UsageError, match=f"there is no .* '{value}'") as caught:
        Shared(tmp_path / "nothing", Config().with_settings({setting: value}))
    assert nearest in caught.value.fix


def test_what_was_counted_for_another_trial_is_what_would_be_counted(
    shared: Shared,
) -> None:
    other = CONFIG.with_settings({"train.seed": 5})
    shared.prepared(CONFIG)
    kept = shared.prepared(other).facts.model
    with Shared("digits", CONFIG) as fresh:
        assert fresh.prepared(other).facts.model == kept
    small = CONFIG.with_settings({"data.image_px": 12, "model.name": "lenet5"})
    counted = shared.prepared(small).facts.model
    assert counted is not None
    assert counted != kept


def test_weights_that_were_drawn_before_are_those_that_would_be_drawn(
    tmp_path: Path, shared: Shared
) -> None:
    other = CONFIG.with_settings({"train.label_smoothing": 0.2, "train.epochs": 1})
    advance(tmp_path / "first", shared, CONFIG, rungs=RUNGS, last_step=7)
    advance(tmp_path / "second", shared, other)
    with Shared("digits", CONFIG) as another_process:
        advance(tmp_path / "alone", another_process, other)
    assert digest(tmp_path / "second") == digest(tmp_path / "alone")


# ---- Rungs that are cheaper than their steps -----------------------------------------------------

SMALLER = CONFIG.with_settings(
    {"model.name": "small_cnn", "train.epochs": 2, "train.progressive_px": (8, 12, 16)}
)
FEWER = CONFIG.with_settings({"train.progressive_data": (1 / 9, 1 / 3, 1 / 3, *(1.0,) * 6)})


@pytest.mark.parametrize(("config", "rungs"), [(SMALLER, (1 / 3,)), (FEWER, RUNGS)])
def test_what_is_promoted_from_a_cheaper_rung_goes_on_as_if_it_had_gone_straight_through(
    tmp_path: Path, shared: Shared, config: Config, rungs: tuple[float, ...]
) -> None:
    whole = advance(tmp_path / "whole", shared, config, rungs=rungs)
    for number in range(len(rungs)):
        first = advance(tmp_path / "parts", shared, config, rungs=rungs, rung=number)
        assert first.accuracy is not None
        # In the middle of a stage too.
        advance(tmp_path / "parts", shared, config, deadline=time.monotonic())
    with Shared("digits", config) as another_process:
        last = advance(tmp_path / "parts", another_process, config)
    assert (last.accuracy, last.log_loss) == (whole.accuracy, whole.log_loss)
    assert digest(tmp_path / "parts") == digest(tmp_path / "whole")


def test_a_part_of_the_images_has_all_classes_alike_and_lies_in_every_larger_one(
    shared: Shared,
) -> None:
    dataset = shared.dataset
    third, half = (set(part_of_training(dataset, share).tolist()) for share in (1 / 3, 1 / 2))
    whole = dataset.indices("train")
    assert third < half < set(whole.tolist())
    for share, part in ((1 / 3, third), (1 / 2, half)):
        counts = np.bincount(dataset.labels[sorted(part)])
        expected = share * np.bincount(dataset.labels[whole])
        assert abs(counts - expected).max() <= 1


def test_a_stage_learns_from_its_part_alone(tmp_path: Path) -> None:
    seen: dict[int, set[int]] = {}

    def look(batch: Batch, rng: ImageRandom, done: float) -> Batch:
        del rng
        stage = sum(round(57 * done) >= round(57 * share) for share in RUNGS)
        seen.setdefault(stage, set()).update(batch.ids.tolist())
        return batch

    with Shared("digits", FEWER, Extensions(transforms=(look,))) as own:
        assert advance(tmp_path / "t", own, FEWER).horizon_steps == 57
        parts = [set(part_of_training(own.dataset, s).tolist()) for s in (*RUNGS, 1.0)]
    assert seen[0] <= parts[0]
    assert seen[1] <= parts[1]
    assert len(seen[1]) > 0.9 * len(parts[1])
    assert len(seen[2]) > len(parts[1])


def test_a_network_of_one_size_cannot_begin_with_smaller_images(
    tmp_path: Path, shared: Shared
) -> None:
    config = CONFIG.with_settings({"train.progressive_px": (4, 8)})
    with pytest.raises(ConfigError, match="cannot take images of 4 px"):
        advance(tmp_path / "t", shared, config, rungs=(1 / 2,))
