"""The recipe that won, learnt from the validation images as well."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import vidi
from vidi.config import Config
from vidi.errors import DataError, UsageError
from vidi.own_data import own_dataset, plan_of, replaced_of
from vidi.predictor.trained import calibration
from vidi.run import Run
from vidi.train.finish import fitted_temperature
from vidi.train.prepare import Extensions
from vidi.train.retrain import retrain

CONFIG = Config().with_settings(
    {
        "model.name": "mlp",
        "train.epochs": 2.5,
        "train.batch_size": 64,
        "machine.threads": 1,
        "machine.probe": "never",
    }
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return vidi.train("digits", CONFIG, out=tmp_path_factory.mktemp("runs") / "source")


@pytest.fixture(scope="module")
def again(source: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    path = tmp_path_factory.mktemp("runs") / "again"
    lines: list[object] = []
    return retrain(path, "digits", source, CONFIG, Extensions(), name="trial 3", tell=lines.append)


def test_it_learns_from_both_and_is_judged_by_the_same_test_images(source: Run, again: Run) -> None:
    before, now = own_dataset(source), own_dataset(again)
    both = np.concatenate([before.indices("train"), before.indices("validation")])
    assert (now.indices("train") == np.sort(both)).all()
    assert not len(now.indices("validation"))
    assert (now.indices("test") == before.indices("test")).all()
    assert again.evaluated_splits() == ("test",)
    judged = again.read_predictions("test")["ids"]
    assert (np.sort(judged) == before.indices("test")).all()


def test_it_has_the_recipe_and_as_many_epochs(source: Run, again: Run) -> None:
    before, now = plan_of(source), plan_of(again)
    of_the_number = {"num_train", "horizon_steps", "last_step", "evaluate_every_steps"}
    of_the_number |= {"patience_evaluations", "rungs", "reasons"}
    assert before.model_dump(exclude=of_the_number) == now.model_dump(exclude=of_the_number)
    assert now.num_train == before.num_train + 180
    assert now.num_epochs == pytest.approx(before.num_epochs, abs=1 / now.steps_per_epoch)
    newest, _ = again.newest_checkpoint()
    assert newest is not None
    assert newest.step == now.horizon_steps > before.horizon_steps


def test_its_temperature_is_that_of_the_run_it_stands_in_for(source: Run, again: Run) -> None:
    ours = fitted_temperature(source)
    assert ours is not None
    assert calibration(again) == (ours.value, ())
    evaluation = json.loads(again.read_evaluation("test"))
    assert evaluation["calibration"]["temperature"]["value"] == ours.value
    assert evaluation["calibration"]["temperature"]["fitted_on"] == "the validation of trial 3"
    replaced = replaced_of(again)
    assert replaced is not None
    assert replaced.n == 180


def test_its_report_says_so_and_that_of_others_does_not(source: Run, again: Run) -> None:
    title = "Learnt from the validation images as well"
    assert title in again.report_path.read_text()
    assert title not in source.report_path.read_text()


def test_it_can_be_judged_again_like_any_run(again: Run) -> None:
    before = json.loads(again.read_evaluation("test"))["accuracy"]
    assert vidi.evaluate(again).accuracy == before


def test_nothing_is_retrained_that_could_not_be_judged(tmp_path: Path) -> None:
    whole = vidi.train(
        "digits",
        CONFIG.with_settings({"data.test_fraction": 0.0, "train.epochs": 1}),
        out=tmp_path / "whole",
    )
    config = CONFIG.with_settings({"data.test_fraction": 0.0})
    with pytest.raises(DataError, match="left to judge"):
        retrain(tmp_path / "a", "digits", whole, config, Extensions(), name="a", tell=print)
    nothing = vidi.train(
        "digits",
        CONFIG.with_settings({"data.validation_fraction": 0.0, "train.epochs": 1}),
        out=tmp_path / "nothing",
    )
    with pytest.raises(UsageError, match="has not judged"):
        retrain(tmp_path / "b", "digits", nothing, CONFIG, Extensions(), name="b", tell=print)
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()
