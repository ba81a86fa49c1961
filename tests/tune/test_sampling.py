"""Suggestions are functions of what is known, and of nothing else."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import optuna
import pytest

from vidi.config import Config
from vidi.errors import ConfigError, UsageError
from vidi.plan import make
from vidi.space import Space, choice, integer, log_uniform, uniform
from vidi.study import Rung, Trial
from vidi.tune.sampling import (
    SAMPLERS,
    Sampler,
    Suggestion,
    Wish,
    comparable,
    parameters_of,
    suggest,
)

from .conftest import FACTS

SPACE = Space.of(
    {
        "train.optimizer": choice("sgd", "adamw"),
        "train.learning_rate": [
            log_uniform(0.03, 1.5).when("train.optimizer", "sgd"),
            log_uniform(3e-4, 1e-2).when("train.optimizer", "adamw"),
        ],
        "train.momentum": uniform(0.5, 0.9).when("train.optimizer", "sgd"),
        "train.progressive_px": choice([16, 32], [32]),
    }
)


def worth(found: Suggestion) -> float:
    """A learning rate of 0.1 is best."""
    return 1 - abs(math.log10(found.settings["train.learning_rate"]) + 1) / 5


def searched(sampler: Sampler, count: int, seed: int = 0, space: Space = SPACE) -> list[Trial]:
    trials: list[Trial] = []
    for number in range(1, count + 1):
        found = suggest(space, Config(), Wish(sampler, seed, count), trials, number)
        if found is None:
            break
        rungs = [Rung(1, worth(found) / 2, 0.5, 1.0)]
        if number % 3 == 0:
            rungs.append(Rung(2, worth(found), 0.5, 1.0))
        # As they are read back from the disk.
        settings, parameters = json.loads(json.dumps([found.settings, found.parameters]))
        status: Any = "finished" if number % 3 == 0 else "paused"
        trials.append(Trial(number, settings, status, rungs=tuple(rungs), parameters=parameters))
    return trials


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "gp"])
def test_suggestions_are_in_the_space_and_the_same_again(sampler: Sampler) -> None:
    trials = searched(sampler, 12)
    assert len(trials) == 12
    for trial in trials:
        Config().with_settings(trial.settings)
        optimizer = trial.settings["train.optimizer"]
        assert ("train.momentum" in trial.settings) == (optimizer == "sgd")
        rate = trial.settings["train.learning_rate"]
        assert 0.03 <= rate <= 1.5 if optimizer == "sgd" else 3e-4 <= rate <= 1e-2
    # Asked again, with only what was known then, as after a kill.
    for number in (1, 6, 12):
        again = suggest(SPACE, Config(), Wish(sampler, 0, 12), trials[: number - 1], number)
        assert again is not None
        assert json.loads(json.dumps(again.settings)) == trials[number - 1].settings
    assert [one.settings for one in trials] != [one.settings for one in searched(sampler, 12, 1)]


def test_gaussian_processes_suggest_the_same_again() -> None:
    trials = searched("gp", 6)
    again = suggest(SPACE, Config(), Wish("gp", 0, 6), trials[:5], 6)
    assert again is not None
    assert json.loads(json.dumps(again.settings)) == trials[5].settings


def test_tpe_learns_where_it_is_good() -> None:
    def mean(trials: list[Trial]) -> float:
        return sum(one.rungs[0].accuracy for one in trials) / len(trials)

    assert mean(searched("tpe", 40)[-10:]) > mean(searched("random", 40)[-10:])


def test_a_grid_has_every_combination_once_and_an_end() -> None:
    space = Space.of(
        {
            "train.optimizer": choice("sgd", "adamw"),
            "train.momentum": uniform(0.5, 0.9).when("train.optimizer", "sgd"),
            "train.freeze_stages": integer(0, 2),
        }
    )
    found: list[str] = []
    while one := suggest(space, Config(), Wish("grid", 3), [], len(found) + 1):
        found.append(json.dumps(one.settings, sort_keys=True))
    # 4 points of the momentum of sgd and adamw without it, for each of 3 numbers of stages.
    assert len(found) == len(set(found)) == 15


def test_a_function_makes_the_config_itself() -> None:
    def own(config: Config, trial: optuna.Trial) -> Config:
        size = trial.suggest_categorical("size", ["small", "large"])
        return config.with_settings({"train.batch_size": 32 if size == "small" else 128})

    trials: list[Trial] = []
    for number in range(1, 15):
        found = suggest(own, Config(), Wish("tpe", 0), trials, number)
        assert found is not None
        assert set(found.settings) == {"train.batch_size"}
        value = 1.0 if found.settings["train.batch_size"] == 32 else 0.0
        rungs = (Rung(1, value, 0.0, 1.0),)
        trials.append(
            Trial(number, found.settings, "finished", rungs=rungs, parameters=found.parameters)
        )
    assert [one.settings["train.batch_size"] for one in trials[-3:]] == [32, 32, 32]
    with pytest.raises(UsageError, match="whole space"):
        suggest(own, Config(), Wish("grid", 0), [], 1)
    with pytest.raises(ConfigError, match="returned NoneType"):
        suggest(lambda *_: None, Config(), Wish("tpe", 0), [], 1)  # type: ignore[arg-type]


WIDE = Space.of(
    {
        "train.optimizer": choice("sgd", "adamw"),
        "train.learning_rate": [
            log_uniform(0.03, 1.5).when("train.optimizer", "sgd"),
            log_uniform(3e-4, 1e-2).when("train.optimizer", "adamw"),
        ],
        "train.label_smoothing": uniform(0.0, 0.2),
        "augment.cutmix_alpha": choice(0.0, 1.0),
    }
)
ASKED = Config().with_settings(
    {"model.name": "resnet18", "model.weights": "none", "augment.cutmix_alpha": 1.0}
)


def test_samplers_are_told_of_trials_that_they_did_not_suggest() -> None:
    told = parameters_of(WIDE, ASKED, FACTS, "gp")
    assert {name: value for name, (value, _) in told.items()} == {
        "train.optimizer": "sgd",
        "train.learning_rate (optimizer = sgd)": make(ASKED, FACTS).optimizer.learning_rate_per_256,
        "train.label_smoothing": 0.1,
        "augment.cutmix_alpha": 1.0,
    }
    # What the space cannot give is nothing that could be learnt from.
    other = ASKED.with_settings({"train.label_smoothing": 0.5})
    assert "train.label_smoothing" not in parameters_of(WIDE, other, FACTS, "tpe")
    assert parameters_of(WIDE, other, FACTS, "gp") == {}
    assert parameters_of(lambda config, _: config, ASKED, FACTS, "tpe") == {}


@pytest.mark.parametrize("sampler", ["tpe", "gp", "cmaes"])
def test_a_start_that_does_well_is_learnt_from(sampler: Sampler) -> None:
    wish, known = Wish(sampler, 0, 40), searched(sampler, 12, space=WIDE)[1:]
    rungs = (Rung(1, 0.99, 0.1, 1.0),)
    parameters = parameters_of(WIDE, ASKED, FACTS, sampler)
    start = Trial(1, {}, "finished", rungs=rungs, parameters=parameters)
    told = suggest(WIDE, ASKED, wish, [start, *known], 13)
    assert told != suggest(WIDE, ASKED, wish, [replace(start, parameters={}), *known], 13)


def test_trials_are_compared_where_enough_have_come() -> None:
    def trial(number: int, *accuracies: float) -> Trial:
        rungs = tuple(Rung(n, value, 0.0, 1.0) for n, value in enumerate(accuracies))
        return Trial(number, {}, "paused", rungs=rungs, parameters={"a": [1, {}]})

    assert comparable([trial(1, 0.1), trial(2, 0.2, 0.5)]) == {1: 0.1, 2: 0.2}
    assert comparable([trial(1, 0.1, 0.4), trial(2, 0.2, 0.5), trial(3, 0.3)]) == {1: 0.4, 2: 0.5}
    assert comparable([]) == {}


def test_an_unknown_sampler_is_refused() -> None:
    with pytest.raises(UsageError, match="no sampler 'tpee'"):
        suggest(SPACE, Config(), Wish("tpee", 0), [], 1)  # type: ignore[arg-type]
