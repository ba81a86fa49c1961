"""What an ablation tries, in which order, and how long: tables of a pure function."""

from __future__ import annotations

from typing import Any

import pytest

from vidi.config import Config
from vidi.errors import UsageError
from vidi.facts import DatasetFacts, Facts, Machine
from vidi.plan import Plan, make
from vidi.tune.factors import FACTORS, Pair, decide_epochs, fits, levels_of, order, pinned


def facts(num_train: int = 6000) -> Facts:
    dataset = DatasetFacts(
        name="things", fingerprint="5f", classes=("a", "b"), grey=False, split_rule="folders",
        counts={"train": (num_train // 2,) * 2, "validation": (300, 300), "test": (300, 300)},
        height_px=(32, 32, 32), width_px=(32, 32, 32),
    )  # fmt: skip
    machine = Machine(
        platform="Linux", processor="one", physical_cores=2, usable_cores=2,
        memory_bytes=16 << 30, cpu_bfloat16=True, python="3.11", torch="2.13",
    )  # fmt: skip
    return Facts(dataset=dataset, machine=machine)


def based(settings: dict[str, Any] | None = None, num_train: int = 6000) -> tuple[Config, Plan]:
    asked = Config().with_settings({"train.epochs": 3, "model.weights": "none", **(settings or {})})
    config = asked.with_settings(pinned(make(asked, facts(num_train))))
    return config, make(config, facts(num_train))


def named(settings: dict[str, Any] | None = None, *factors: str) -> dict[str, dict[str, Any]]:
    config, plan = based(settings)
    levels, _ = levels_of(config, plan, facts(), factors)
    return {f"{each.factor}: {each.level}": dict(each.settings) for each in levels}


def test_the_most_important_comes_first_and_every_level_differs_from_the_base() -> None:
    config, plan = based()
    levels, left_out = levels_of(config, plan, facts())
    seen = list(dict.fromkeys(each.factor for each in levels))
    assert seen[:4] == ["learning rate", "optimizer", "schedule", "batch size"]
    assert seen[-1] == "accumulation"
    for each in levels:
        other = make(config.with_settings(each.settings), facts())
        assert other.model_dump(exclude={"reasons"}) != plan.model_dump(exclude={"reasons"}), each
    assert len({(each.factor, each.level) for each in levels}) == len(levels)
    assert all(each.reason for each in left_out)


@pytest.mark.parametrize("factor", [name for name in FACTORS if name != "batch_size"])
def test_a_level_changes_one_thing_and_nothing_that_rules_would_drag_along(factor: str) -> None:
    config, plan = based()
    together = {"schedule", "optimizer", "augment", "model", "execution", "stages", "loss"}
    for each in levels_of(config, plan, facts(), [factor])[0]:
        other = make(config.with_settings(each.settings), facts())
        before, after = (one.model_dump(exclude={"reasons"}) for one in (plan, other))
        changed = {name for name in before if before[name] != after[name]}
        # Two averages are one thing, and its rule for looking at every step goes with it.
        changed -= {"swa_fraction", "ema_every_steps"} if "ema_decay" in changed else set()
        assert len(changed) == 1 or changed <= {"swa_fraction", "ema_every_steps"}, (each, changed)
        for part in changed & together - {"stages", "loss"}:
            fields = {name for name in before[part] if before[part][name] != after[part][name]}
            # An optimizer brings its own learning rate, a crop its own padding.
            assert len(fields) == 1 or part in ("optimizer", "schedule", "augment"), (each, fields)


def test_batch_sizes_come_with_three_ideas_of_the_learning_rate() -> None:
    levels = named(None, "batch_size")
    _, plan = based()
    rate = plan.optimizer.learning_rate
    large = plan.batch_size * 4
    for words, factor in (("in proportion", 4.0), ("kept", 1.0), ("against it", 0.25)):
        settings = levels[f"batch size: {large}, learning rate {words}"]
        config = based()[0].with_settings(settings)
        assert make(config, facts()).optimizer.learning_rate == pytest.approx(rate * factor, 1e-3)
        assert make(config, facts()).ema_decay == plan.ema_decay


def test_what_the_base_has_is_switched_off_and_what_it_lacks_switched_on() -> None:
    assert "mixup: 0.2" in named(None, "mixup")
    assert "mixup: off" in named({"augment.mixup_alpha": 0.3}, "mixup")
    assert named({"train.label_smoothing": 0.1}, "label_smoothing").keys() == {
        "label smoothing: off",
        "label smoothing: 0.2",
    }
    assert "mirror images: none" in named({"augment.horizontal_flip": "random"}, "mirror")
    assert "mirror images: random" not in named({"augment.horizontal_flip": "random"}, "mirror")


def test_layers_are_a_factor_of_fine_tuning_only() -> None:
    assert named(None, "layers") == {}
    assert "head: with the rest" in named({"model.weights": "imagenet"}, "layers")


def test_what_the_plan_refuses_is_left_out_with_its_reason() -> None:
    config, plan = based({"train.batch_size": 3})
    levels, left_out = levels_of(config, plan, facts(), ["accumulation"])
    assert not [each for each in levels if each.settings["train.accumulate"] > 3]
    config, plan = based({"train.swa_fraction": 0.3})
    levels, left_out = levels_of(config, plan, facts(), ["average"])
    assert any("two averages" in each.reason for each in left_out)


def test_one_level_can_be_asked_for_by_value_or_by_words() -> None:
    assert set(named(None, "optimizer:adam")) == {"optimizer: adam"}
    assert set(named(None, "schedule:step", "batch_size:512")) == {
        "schedule: in steps, a tenth after each third",
        "batch size: 512, learning rate in proportion",
        "batch size: 512, learning rate kept",
        "batch size: 512, learning rate against it",
    }
    assert len(named(None, "batch_size:against")) == 2
    config, plan = based()
    with pytest.raises(UsageError, match="no level 'steep'"):
        levels_of(config, plan, facts(), ["schedule:steep"])


def test_an_unknown_factor_is_refused_with_the_nearest_one() -> None:
    config, plan = based()
    with pytest.raises(UsageError, match="no factor 'optimiser'") as refused:
        levels_of(config, plan, facts(), ["optimiser"])
    assert "optimizer" in refused.value.fix


@pytest.mark.parametrize(
    ("asked", "minutes", "epoch_s", "cost", "epochs"),
    [
        (7.0, 1.0, 10.0, 10.0, 7.0),  # asked for
        (None, None, None, 10.0, 5.0),  # a quarter of 60 epochs, at most 5
        (None, 30.0, 2.0, 40.0, 5.0),  # more would fit, and is not needed
        (None, 10.0, 2.0, 40.0, 2.0),  # 2.0 fit
        (None, 15.0, 2.0, 40.0, 3.0),
        (None, 1.0, 2.0, 40.0, 2.0),  # the least that says anything
    ],
)
def test_the_length_of_a_training(
    asked: float | None,
    minutes: float | None,
    epoch_s: float | None,
    cost: float,
    epochs: float,
) -> None:
    plan = make(Config().with_settings({"model.weights": "none"}), facts())
    found, why = decide_epochs(
        plan, asked, minutes_left=minutes, epoch_s=epoch_s, cost=cost, seeds=3
    )
    assert found == epochs
    assert why


def test_the_base_comes_first_and_levels_are_whole() -> None:
    assert order(3, 2) == [Pair(0, 0), Pair(0, 1), Pair(1, 0), Pair(1, 1), Pair(2, 0), Pair(2, 1)]


@pytest.mark.parametrize(
    ("level", "seeds_left", "base_s", "cost", "left_s", "wanted"),
    [
        (1, 3, [10.0, 12.0], 1.0, 42.0, True),
        (1, 3, [10.0, 12.0], 1.0, 41.0, False),
        (1, 1, [10.0, 12.0], 1.0, 14.0, True),
        (1, 3, [10.0], 2.2, 60.0, False),
        (0, 3, [], 1.0, 1.0, True),  # nothing is known yet, so it is found out
        (0, 3, [], 1.0, -1.0, False),
        (0, 2, [10.0], 1.0, 22.0, False),
        (1, 3, [], 1.0, 100.0, False),  # there is nothing to hold it against
        (1, 3, [10.0], 1.0, None, True),  # no budget
        (1, 3, [10.0], 1.0, -1.0, False),
    ],
)
def test_what_cannot_be_finished_is_not_begun(
    level: int,
    seeds_left: int,
    base_s: list[float],
    cost: float,
    left_s: float | None,
    *,
    wanted: bool,
) -> None:
    assert fits(level, seeds_left, base_s=base_s, cost=cost, left_s=left_s) == wanted
