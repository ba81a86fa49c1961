"""The page of a study: what its parts say, and how it looks in a real browser."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vidi
from vidi.cli import main
from vidi.config import Config, parse
from vidi.effects import BASE, trial_number
from vidi.errors import UsageError
from vidi.facts import DatasetFacts
from vidi.report import StudyData, load_study, render_study, study_views
from vidi.report.importance import axes_of, importances
from vidi.space import choice, log_uniform, uniform
from vidi.study import Rung, Study, Trial

# FAULTS.md L1: each must be shown as the text that it is.
PAYLOADS = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "</style><script>alert(4)</script>",
    "javascript:alert(7)",
    "{{7*7}}{% raw %}${alert(8)}",
    "line\u2028break",
    "<svg onload=alert(9)>",
    "__proto__",
    "constructor",
    "n" * 255,
)

RUNGS = (100, 300, 900)
OPTIMIZERS = ("sgd", "adamw", "adam")


def made_search(
    path: Path,
    count: int = 40,
    *,
    seed: int = 0,
    texts: Sequence[str] = ("suggested by tpe",),
    best: bool = True,
) -> Study:
    """A search by successive halving: a third of the trials goes on at each rung."""
    rng = np.random.default_rng(seed)
    asked = {"space": {"train.learning_rate": "log_uniform(0.0001, 1.0)"}, "seed": seed}
    config = Config().with_settings({"train.epochs": 6})
    study = Study.create(path, kind="tune", config=config, asked=asked)
    drawn: list[tuple[float, dict[str, Any]]] = []
    for _ in range(count):
        settings: dict[str, Any] = {
            "train.learning_rate": float(10 ** rng.uniform(-4, 0)),
            "train.weight_decay": float(10 ** rng.uniform(-5, -2)),
            "train.optimizer": OPTIMIZERS[rng.integers(3)],
            "train.batch_size": int(2 ** rng.integers(5, 9)),
            "model.dropout": float(rng.uniform(0, 0.5)),
        }
        if settings["train.optimizer"] == "sgd":
            settings["train.momentum"] = float(rng.uniform(0.5, 0.99))
        off = (math.log10(settings["train.learning_rate"]) + 1.3) ** 2
        quality = 0.9 - 0.06 * off - 0.03 * (settings["train.optimizer"] == "adam")
        drawn.append((quality + float(rng.normal(0, 0.01)), settings))
    order = sorted(range(count), key=lambda k: -drawn[k][0])
    with study.lock():
        study.decide(shares=[1 / 9, 1 / 3, 1.0])
        study.note("begun", why=texts[0])
        study.note("measured", seconds=4.2, why="the training step")
        for number, (quality, settings) in enumerate(drawn, start=1):
            place = order.index(number - 1)
            reached = 3 if place < count // 9 + 1 else 2 if place < count // 3 else 1
            rungs = tuple(
                Rung(
                    step,
                    max(0.1, min(0.99, quality - 0.25 * 0.5 ** (k + 1))),
                    None if number == 3 else 2.4 - 2 * quality,
                    0.05 * step,
                )
                for k, step in enumerate(RUNGS[:reached])
            )
            failed = number == count
            study.write_trial(
                Trial(
                    number,
                    settings,
                    status="failed" if failed else "finished" if reached == 3 else "paused",
                    origin=texts[number % len(texts)],
                    reason="the loss was not finite at step 12" if failed else "",
                    rungs=() if failed else rungs,
                    retries=int(number == 5),
                )
            )
            study.note("judged", trial=number, why=texts[number % len(texts)])
        if best:
            study.write_best(config.with_settings(drawn[order[0]][1]))
    return study


LEVELS: tuple[tuple[str, str, dict[str, Any], float], ...] = (
    ("schedule", "step", {"train.schedule": "step"}, -0.004),
    ("schedule", "cosine with restarts", {"train.schedule": "cosine_restarts"}, -0.031),
    ("schedule", "constant", {"train.schedule": "constant"}, -0.052),
    ("batch size", "32, learning rate scaled", {"train.batch_size": 32}, 0.012),
    ("batch size", "512, learning rate scaled", {"train.batch_size": 512}, -0.06),
    ("optimizer", "adamw", {"train.optimizer": "adamw"}, 0.001),
    ("mirror images", "random", {"augment.horizontal_flip": "random"}, 0.028),
    ("accumulation", "in 4 parts", {"train.accumulate": 4}, 0.0),
    ("dropout", "0.3", {"model.dropout": 0.3}, -0.008),
)


def made_ablation(
    path: Path,
    *,
    seeds: int = 3,
    finished_levels: int = 8,
    names: Sequence[str] = (),
    noise: float = 0.004,
    spoilt: float = 0.0,
) -> Study:
    """An ablation whose last levels were not tried; `names` replace those of levels."""
    rng = np.random.default_rng(1)
    levels = [{"factor": "", "level": "the base", "settings": {}}] + [
        {
            "factor": factor,
            "level": names[k % len(names)] if names else level,
            "settings": settings,
        }
        for k, (factor, level, settings, _) in enumerate(LEVELS)
    ]
    asked = {"levels": levels, "seeds": seeds, "base": {"network": "small_cnn", "epochs": 3}}
    study = Study.create(path, kind="ablate", config=Config(), asked=asked)
    luck = rng.normal(0, 0.006, seeds)
    with study.lock():
        for level in range(finished_levels + 1):
            for seed in range(seeds):
                gain = LEVELS[level - 1][3] if level else 0.0
                exact = level == 0 or gain == 0.0
                own = 0.0 if exact else float(rng.normal(0, noise))
                accuracy = round(0.71 + gain + float(luck[seed]) + own - spoilt * (seed == 1), 4)
                study.write_trial(
                    Trial(
                        trial_number(level, seed, seeds),
                        {**levels[level]["settings"], "train.seed": seed},  # type: ignore[dict-item]
                        status="finished",
                        origin=f"{levels[level]['factor']}: {levels[level]['level']}"
                        if level
                        else BASE,
                        rungs=(Rung(240, accuracy, 1.6 - accuracy, 6.0 + level / 10),),
                    )
                )
        study.note("not started", why="no time was left", level=finished_levels + 1)
    return study


def facts(n_validation: int = 400) -> DatasetFacts:
    return DatasetFacts(
        name="animals", fingerprint="5f2a", classes=("ant", "bee"),
        counts={"train": (900, 900), "validation": (n_validation // 2,) * 2, "test": (0, 0)},
        height_px=(32, 32, 32), width_px=(32, 32, 32), grey=False, split_rule="stratified",
    )  # fmt: skip


def loaded(study: Study, n_validation: int = 400) -> StudyData:
    """As it is read, with the data set of its runs, which were never made."""
    return dataclasses.replace(load_study(study), dataset=facts(n_validation))


# ------------------------------------------------------------------------------- what the parts say


def test_the_first_screen_says_how_good_how_sure_what_was_tried_and_what_next(
    tmp_path: Path,
) -> None:
    summary = study_views(loaded(made_search(tmp_path / "s")))["summary"]
    best = max(
        trial.last.accuracy
        for trial in Study.open(tmp_path / "s").trials()
        if trial.last and trial.last.step == RUNGS[-1]
    )
    judged = summary["judged"]
    assert judged["accuracy"] == pytest.approx(best, abs=1e-4)
    assert judged["interval"][0] < best < judged["interval"][1]
    assert "chose it among 39 trials" in judged["sentence"]
    titles = [each["title"] for each in summary["tried"]]
    assert titles[0] == "40 trials, 5 to the end"
    assert any("may be as good" in title for title in titles)
    assert "1 trial failed" in titles
    assert summary["steps"][0]["command"] == "vidi train DATA --config best.toml"


def test_a_winner_that_stands_out_is_told_from_one_that_was_lucky(tmp_path: Path) -> None:
    for accuracies, wanted in (((0.9, 0.5, 0.5), "stands out"), ((0.9, 0.89, 0.5), "1 of 2")):
        study = Study.create(
            tmp_path / str(accuracies[1]), kind="tune", config=Config(), asked={"seed": 0}
        )
        with study.lock():
            for number, accuracy in enumerate(accuracies, start=1):
                study.write_trial(
                    Trial(number, {}, status="finished", rungs=(Rung(10, accuracy, 1.0, 1.0),))
                )
        tried = study_views(loaded(study))["summary"]["tried"]
        assert any(wanted in each["title"] for each in tried), tried


def test_trials_are_compared_where_half_of_them_were_judged(tmp_path: Path) -> None:
    views = study_views(load_study(made_search(tmp_path / "s")))
    assert views["trials"]["compared"] == "11% of the training"
    assert views["importance"]["compared"] == "11% of the training"
    for row in views["trials"]["rows"]:
        assert (row["score"] is None) == (row["status"] == "failed")
        assert row["score"] is None or row["score"] <= row["accuracy"]


def test_rungs_count_who_came_and_who_went_on(tmp_path: Path) -> None:
    study = made_search(tmp_path / "s")
    rungs = study_views(load_study(study))["rungs"]
    after = ["11% of the training", "33% of the training", "the whole training"]
    assert [row["after"] for row in rungs["rows"]] == after
    reached = [row["reached"] for row in rungs["rows"]]
    assert [row["went_on"] for row in rungs["rows"]] == [*reached[1:], 0]
    seconds = sum(trial.last.seconds for trial in study.trials() if trial.last)
    assert sum(row["seconds"] for row in rungs["rows"]) == pytest.approx(seconds, rel=1e-3)
    # In these trials nothing overtakes anything.
    assert [each["kept"] for each in rungs["order"]] == [1.0, 1.0]


def written(path: Path, trials: Sequence[Trial], *, kind: Any = "tune", **decided: Any) -> Study:
    study = Study.create(path, kind=kind, config=Config(), asked={"seed": 0})
    with study.lock():
        study.decide(**decided)
        for trial in trials:
            study.write_trial(trial)
    return study


def test_trials_with_other_batches_are_compared_after_equal_shares_of_their_training(
    tmp_path: Path,
) -> None:
    def rungs(steps: Sequence[int], *accuracies: float) -> tuple[Rung, ...]:
        return tuple(
            Rung(step, accuracy, 0.5, step / 10)
            for step, accuracy in zip(steps, accuracies, strict=False)
        )

    small, large = (400, 1200, 3600), (100, 300, 900)
    trials = (
        # After a third it has had more updates than the others have in the end.
        Trial(1, {"train.batch_size": 32}, status="paused", rungs=rungs(small, 0.8, 0.95)),
        Trial(2, {"train.batch_size": 128}, status="finished", rungs=rungs(large, 0.7, 0.8, 0.9)),
        Trial(3, {"train.batch_size": 128}, status="paused", rungs=rungs(large, 0.6)),
    )
    views = study_views(loaded(written(tmp_path / "s", trials, shares=[1 / 9, 1 / 3, 1.0])))
    assert views["trials"]["best"] == 2
    assert views["summary"]["tried"][0]["title"] == "3 trials, 1 to the end"
    assert views["summary"]["judged"]["accuracy"] == 0.9
    rows = views["rungs"]["rows"]
    assert [(row["reached"], row["went_on"], row["best"]) for row in rows] == [
        (3, 2, 0.8), (2, 1, 0.95), (1, 0, 0.9),
    ]  # fmt: skip
    assert [row["seconds"] for row in rows] == [60.0, 100.0, 60.0]
    assert views["trials"]["compared"] == "33% of the training"
    assert [row["score"] for row in views["trials"]["rows"]] == [0.95, 0.8, None]
    # No update is the same share of all of them.
    assert views["curves"]["rungs"] == [900]


def test_a_rung_that_a_trial_was_not_looked_at_is_none_that_it_reached(tmp_path: Path) -> None:
    end = Rung(900, 0.9, 0.5, 9.0)
    trials = (
        # As a search writes down a trial that went on to its end at once.
        Trial(1, {}, status="finished", rungs=(Rung(100, 0.6, 0.5, 1.0), end, end)),
        Trial(2, {}, status="paused", rungs=(Rung(100, 0.5, 0.5, 1.0), Rung(300, 0.7, 0.5, 3.0))),
    )
    study = written(tmp_path / "s", trials, shares=[1 / 9, 1 / 3, 1.0])
    rows = study_views(loaded(study))["rungs"]["rows"]
    assert [(row["reached"], row["best"]) for row in rows] == [(2, 0.6), (1, 0.7), (1, 0.9)]


def test_a_head_without_an_update_can_be_the_best_of_a_fit(tmp_path: Path) -> None:
    trials = (
        Trial(1, {}, status="finished", rungs=(Rung(0, 0.9, 0.3, 2.0),)),
        Trial(3, {}, status="finished", rungs=(Rung(50, 0.8, 0.4, 20.0),)),
    )
    views = study_views(loaded(written(tmp_path / "s", trials, kind="fit")))
    assert views["trials"]["best"] == 1
    assert views["trials"]["compared"] == "the whole training"
    assert [row["score"] for row in views["trials"]["rows"]] == [0.9, 0.8]
    assert "rungs" not in views


def test_the_answer_that_the_study_wrote_down_is_its_best(tmp_path: Path) -> None:
    trials = [
        Trial(number, {}, status="finished", rungs=(Rung(10, accuracy, 1.0, 1.0),))
        for number, accuracy in ((1, 0.9), (2, 0.8))
    ]
    for answer in (1, 2):
        study = written(tmp_path / str(answer), trials, answer=answer)
        assert study_views(loaded(study))["trials"]["best"] == answer
    assert study_views(loaded(written(tmp_path / "none", trials)))["trials"]["best"] == 1


def test_the_best_settings_can_be_trained_as_they_stand(tmp_path: Path) -> None:
    study = made_search(tmp_path / "s")
    view = study_views(load_study(study))["best"]
    best = next(trial for trial in study.trials() if trial.number == view["number"])
    config = parse(view["toml"])
    assert config.train.learning_rate == best.settings["train.learning_rate"]
    assert config == parse(study.best_path.read_text())


def test_time_is_added_up_by_what_it_was_spent_on(tmp_path: Path) -> None:
    study = made_search(tmp_path / "s")
    time = study_views(load_study(study))["time"]
    seconds = {each["what"]: each["seconds"] for each in time["parts"]}
    stopped = [trial for trial in study.trials() if trial.status == "paused"]
    expected = sum(trial.last.seconds for trial in stopped if trial.last)
    assert seconds["trials that were stopped early"] == pytest.approx(expected, rel=1e-3)
    assert seconds["measured"] == 4.2
    assert time["events"][1]["about"] == "the training step; seconds 4.2"


def test_the_time_of_a_fit_is_told_by_what_it_was_doing(tmp_path: Path) -> None:
    trials = [Trial(1, {}, status="finished", rungs=(Rung(0, 0.9, 0.3, 4.0),))]
    study = written(tmp_path / "s", trials, kind="fit")
    with study.lock():
        study.note("doing", what="looking at the images", why="", spent_s=1.0)
        study.note("doing", what="fine-tuning", why="", spent_s=5.0)
        study.note("started", trial=1, spent_s=5.5)
        study.note("doing", what="judging", why="", spent_s=25.0)
        study.keep_spent(28.0)
    parts = study_views(load_study(study))["time"]["parts"]
    assert {each["what"]: each["seconds"] for each in parts} == {
        "fine-tuning": 20.0, "looking at the images": 4.0, "judging": 3.0,
    }  # fmt: skip


@pytest.fixture(scope="module")
def searched_digits(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return vidi.tune(
        "digits",
        settings={
            "model.name": "mlp",
            "train.epochs": 4,
            "machine.probe": "never",
            "machine.threads": 1,
        },
        space={
            "train.learning_rate": log_uniform(0.01, 1.0),
            "train.batch_size": choice(32, 64),
            "train.label_smoothing": uniform(0.0, 0.2),
        },
        trials=14,
        out=tmp_path_factory.mktemp("searched") / "s",
    )


def test_the_settings_of_a_real_search_have_their_importance(searched_digits: Study) -> None:
    """Its first trial, the default, names none of them."""
    assert searched_digits.trials()[0].settings == {}
    views = study_views(load_study(searched_digits))
    found = views["importance"]
    assert found["trials"] == 14
    assert {each["name"] for each in found["shares"]} == {
        "train.learning_rate", "train.batch_size", "train.label_smoothing",
    }  # fmt: skip
    assert found["apart"] == []
    first = views["trials"]["rows"][0]
    assert first["settings"] == {}
    names = [axis["name"] for axis in views["slices"]["axes"]]
    decided = dict(zip(names, first["values"], strict=True))
    plan = json.loads(searched_digits.trial_run(1).text("plan"))
    assert decided["train.learning_rate"] == plan["optimizer"]["learning_rate_per_256"]
    assert decided["train.label_smoothing"] == plan["label_smoothing"]


def test_a_real_search_says_where_its_time_went(searched_digits: Study) -> None:
    time = study_views(load_study(searched_digits))["time"]
    seconds = {each["what"]: each["seconds"] for each in time["parts"]}
    for part in ("opened the data", "timed the first steps", "made the answer"):
        assert seconds[part] > 0.0
    assert seconds["trials that were stopped early"] > 0.0
    assert sum(seconds.values()) < searched_digits_took_s(searched_digits)


def searched_digits_took_s(study: Study) -> float:
    """From the first to the last thing that was noted, and opening the data before."""
    events = study.events.read()
    opened = next(each for each in events if each["event"] == "opened the data")
    return float(events[-1]["at"] - opened["at"] + opened["seconds"])


def test_a_search_whose_best_lie_at_the_edge_asks_for_a_wider_range(tmp_path: Path) -> None:
    study = Study.create(tmp_path / "s", kind="tune", config=Config(), asked={"seed": 0})
    with study.lock():
        for number in range(1, 13):
            study.write_trial(
                Trial(
                    number,
                    {"train.learning_rate": 10.0 ** (-number / 2)},
                    status="finished",
                    rungs=(Rung(10, 0.9 - 0.05 * number, 1.0, 1.0),),
                )
            )
    steps = study_views(loaded(study))["summary"]["steps"]
    widen = next(each for each in steps if each["title"] == "Widen learning rate")
    assert "upper end" in widen["detail"]


def test_a_study_without_trials_and_one_without_results_have_a_page(tmp_path: Path) -> None:
    empty = Study.create(tmp_path / "e", kind="fit", config=Config(), asked={"minutes": 1})
    views = study_views(load_study(empty))
    assert views["summary"]["judged"] is None
    assert set(views) == {"summary", "time", "trials"}
    with empty.lock():
        empty.write_trial(Trial(1, {"train.seed": 1}, status="running"))
    assert "1 trial not finished" in render_study(load_study(empty))


def test_nothing_of_the_machine_stands_in_the_page(tmp_path: Path) -> None:
    study = made_search(tmp_path / "s", texts=["/home/anna/secret/photos.csv was read"], best=False)
    with study.lock():
        study.write_best(Config().with_settings({"model.weights": "/home/anna/w.safetensors"}))
    page = render_study(load_study(study))
    assert "photos.csv was read" in page
    assert "/home/anna" not in page
    assert str(tmp_path) not in page


def test_scripts_and_styles_stay_small(tmp_path: Path) -> None:
    page = render_study(load_study(made_search(tmp_path / "s")))
    parts = re.findall(r"<(?:script|style)(?: type=\"module\")?>(.*?)</", page, re.DOTALL)
    assert len(gzip.compress("".join(parts).encode())) <= 100_000


def test_a_thousand_trials_are_a_page_of_two_megabytes_at_most(tmp_path: Path) -> None:
    base = load_study(made_search(tmp_path / "s"))
    many = [dataclasses.replace(base.trials[k % 39], number=k + 1) for k in range(1000)]
    curves: dict[int, Any] = {
        k + 1: [(step, step / 9000 + k / 1e4) for step in range(10, 900, 5)] for k in range(1000)
    }
    data = dataclasses.replace(base, trials=many, curves=curves)
    assert study_views(data)["curves"]["left_out"] == 600
    assert len(render_study(data).encode()) <= 2e6


# -------------------------------------------------------------------------------------- importance


def searched(count: int, seed: int = 0) -> tuple[list[dict[str, Any]], list[float]]:
    """One setting decides, one matters a little, one not at all."""
    rng = np.random.default_rng(seed)
    settings: list[dict[str, Any]] = [
        {"rate": float(10 ** rng.uniform(-4, 0)), "kind": "abc"[rng.integers(3)],
         "idle": float(rng.uniform())}
        for _ in range(count)
    ]  # fmt: skip
    scores = [
        -abs(math.log10(each["rate"]) + 2)
        + 0.4 * (each["kind"] == "b")
        + float(rng.normal(0, 0.05))
        for each in settings
    ]
    return settings, scores


def test_importance_finds_what_mattered_and_says_how_sure_it_is() -> None:
    settings, scores = searched(60)
    found = importances(settings, scores, axes_of(settings))
    assert found is not None
    assert found.shares[0].name == "rate"
    assert found.shares[0].share > 0.6
    assert {each.name: each.share for each in found.shares}["idle"] < 0.1
    assert all(0 <= each.low <= each.high <= 1 for each in found.shares)
    assert found.predicted > 0.6


def test_importance_of_pure_luck_is_said_to_be_none() -> None:
    settings, _ = searched(60)
    luck = list(np.random.default_rng(1).normal(size=60))
    found = importances(settings, luck, axes_of(settings))
    assert found is not None
    assert found.predicted < 0.2


@pytest.mark.parametrize("count", [0, 1, 9])
def test_few_trials_have_no_importance(count: int) -> None:
    settings, scores = searched(count)
    assert importances(settings, scores, axes_of(settings)) is None


def test_equal_trials_have_no_importance() -> None:
    settings, _ = searched(20)
    assert importances(settings, [0.5] * 20, axes_of(settings)) is None


def test_axes_are_numbers_on_their_scale_or_choices() -> None:
    settings = [
        {"rate": 10.0**-k, "share": 0.1 * k, "flag": k % 2 == 0, "sizes": (32, 64) if k else None,
         "same": 5}
        for k in range(4)
    ]  # fmt: skip
    axes = {axis.name: axis for axis in axes_of(settings)}
    assert axes["rate"].scale == "log"
    assert axes["share"].scale == "linear"
    assert axes["flag"].choices == ("no", "yes")
    assert axes["sizes"].choices == ("32, 64", "none")
    assert "same" not in axes


# --------------------------------------------------------------------------------------- ablations


def test_an_ablation_says_what_helps_what_hurts_and_what_was_not_tried(tmp_path: Path) -> None:
    views = study_views(loaded(made_ablation(tmp_path / "a")))
    rows = {f"{row['factor']}: {row['level']}": row for row in views["effects"]["rows"]}
    assert rows["mirror images: random"]["verdict"] == "helps"
    assert rows["schedule: constant"]["verdict"] == "hurts"
    assert rows["optimizer: adamw"]["verdict"] == "cannot tell"
    assert rows["accumulation: in 4 parts"]["verdict"] == "no difference at all"
    assert rows["dropout: 0.3"]["difference"] is None
    summary = views["summary"]
    assert summary["headline"]["largest"][0]["name"] == "mirror images: random"
    assert any(each["title"] == "1 change not tried" for each in summary["tried"])
    assert summary["steps"][0]["command"] == "vidi train DATA --set augment.horizontal_flip=random"
    # A wider statement for all of them at once, and the honest count of false alarms.
    row = rows["mirror images: random"]
    assert row["wide"][0] < row["interval"][0] < row["difference"] < row["interval"][1]
    assert views["effects"]["by_chance"] == pytest.approx(8 * 0.05)


def test_an_ablation_of_pure_luck_finds_nothing(tmp_path: Path) -> None:
    study = made_ablation(tmp_path / "a", noise=0.2)
    views = study_views(loaded(study))
    verdicts = {row["verdict"] for row in views["effects"]["rows"]}
    assert verdicts == {"cannot tell", "no difference at all"}
    assert views["summary"]["headline"]["largest"] == []


def test_a_base_that_seeds_spoil_is_said_first(tmp_path: Path) -> None:
    steady = study_views(loaded(made_ablation(tmp_path / "a")))["summary"]["tried"]
    spoilt = study_views(loaded(made_ablation(tmp_path / "b", spoilt=0.4)))["summary"]["tried"]
    assert spoilt[0]["title"] == "The base itself is unsteady"
    assert "The base itself is unsteady" not in [each["title"] for each in steady]


# ------------------------------------------------------------------------------------ the commands


def test_report_and_show_take_a_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    study = made_search(tmp_path / "s", 12)

    def command(*words: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", ["vidi", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        assert not left.value.code
        return capfd.readouterr().out

    assert command("report", study.path).strip() == str(study.report_path)
    assert study.report_path.read_text().startswith("<!doctype html>")
    assert "rungs" in command("show", study.path).split()
    shown = json.loads(command("show", study.path, "rungs", "--json"))
    assert shown == study_views(load_study(study))["rungs"]
    with pytest.raises(UsageError, match="is a study"):
        vidi.report(study.path, explain=True)


def test_a_part_of_a_report_is_text_without_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    study = made_search(tmp_path / "s", 12)
    for view, shown in study_views(load_study(study)).items():
        monkeypatch.setattr(sys, "argv", ["vidi", "show", str(study.path), view])
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        assert not left.value.code
        text = capfd.readouterr().out
        assert text.strip()
        assert not text.startswith(("{", "["))
        assert all(str(name) in text for name in shown)


# ------------------------------------------------------------------------------------- in a browser


def opened(browser: Any, page: Path, data: StudyData, **how: Any) -> float:
    page.write_bytes(render_study(data).encode("utf-8"))
    seconds: float = browser.open(page, **how)
    return seconds


def assert_quiet(browser: Any) -> None:
    assert browser.dialogs == []
    assert browser.errors == []
    assert browser.requests == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["search", "ablation"])
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 390, 1280])
def test_every_part_is_drawn_and_nothing_is_wider_than_the_screen(
    browser: Any, tmp_path: Path, kind: str, *, width: int, dark: bool
) -> None:
    make = made_search if kind == "search" else made_ablation
    opened(browser, tmp_path / "r.html", loaded(make(tmp_path / "s")), width=width, dark=dark)
    assert_quiet(browser)
    empty = browser.run(
        "[...document.querySelectorAll('main .view')].filter((e) => e.clientHeight < 40).length"
    )
    assert empty == 0
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert not any("could not be drawn" in text for text in browser.texts(".note"))
    # What a forgotten value looks like.
    (text,) = browser.texts("main")
    assert not re.search(r"\b(?:null|undefined|NaN)\b", text)
    image = np.asarray(Image.open(io.BytesIO(browser.picture())).convert("L"))
    assert image.shape[1] == width
    assert (np.median(image) < 60) == dark


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["search", "ablation"])
def test_hostile_names_are_text_wherever_they_stand(
    browser: Any, tmp_path: Path, kind: str
) -> None:
    if kind == "search":
        data = loaded(made_search(tmp_path / "s", texts=PAYLOADS))
        trials = [
            dataclasses.replace(
                trial,
                settings={**trial.settings, PAYLOADS[k % len(PAYLOADS)]: PAYLOADS[k % 7], "b": k},
                reason=PAYLOADS[k % len(PAYLOADS)],
            )
            for k, trial in enumerate(data.trials)
        ]
        data = dataclasses.replace(data, trials=trials, best_toml="\n".join(PAYLOADS))
    else:
        data = loaded(made_ablation(tmp_path / "s", names=PAYLOADS))
    hostile = data.dataset.model_copy(update={"name": PAYLOADS[0]}) if data.dataset else None
    data = dataclasses.replace(data, name=PAYLOADS[2], dataset=hostile)
    opened(browser, tmp_path / "r.html", data)
    browser.run("document.querySelectorAll('.sort').forEach((button) => button.click())")
    browser.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    browser.run(
        "document.querySelectorAll('main *').forEach("
        "(e) => e.dispatchEvent(new MouseEvent('mouseover')))"
    )
    assert_quiet(browser)
    assert browser.count("script:not([type]), script[type=module]") == 1
    assert browser.count("base, iframe, object, embed, form, template, b, i, img") == 0
    assert browser.count("a:not([href^='#'])") == 0
    for part in ("#trials", "#time") if kind == "search" else ("#effects", "#trials"):
        (text,) = browser.texts(part)
        for payload in PAYLOADS[:7]:
            assert payload in text, (part, payload)
    assert browser.run("document.title").startswith(PAYLOADS[2])


@pytest.mark.slow
def test_a_trial_without_an_update_is_drawn(browser: Any, tmp_path: Path) -> None:
    study = Study.create(tmp_path / "s", kind="fit", config=Config(), asked={"seed": 0})
    with study.lock():
        study.write_trial(Trial(1, {}, status="finished", rungs=(Rung(0, 0.9, 0.3, 2.0),)))
    opened(browser, tmp_path / "r.html", loaded(study))
    assert_quiet(browser)


@pytest.mark.slow
def test_a_trial_is_chosen_by_keyboard_and_by_pointer(browser: Any, tmp_path: Path) -> None:
    opened(browser, tmp_path / "r.html", loaded(made_search(tmp_path / "s")))
    before = browser.texts("#curves .picked-text")
    browser.run("document.querySelector('#curves select').focus()")
    browser.press("ArrowDown", 40)
    after = browser.texts("#curves .picked-text")
    assert after != before
    browser.run(
        "document.querySelector('#curves .curve:not(.chosen)').dispatchEvent(new Event('click'))"
    )
    assert browser.texts("#curves .picked-text") != after
    assert_quiet(browser)


@pytest.mark.slow
def test_a_thousand_trials_open_in_seconds(browser: Any, tmp_path: Path) -> None:
    base = load_study(made_search(tmp_path / "s"))
    many = [dataclasses.replace(base.trials[k % 39], number=k + 1) for k in range(1000)]
    data = dataclasses.replace(base, trials=many)
    assert opened(browser, tmp_path / "r.html", data) <= 3
    assert_quiet(browser)
