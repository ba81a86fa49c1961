"""`vidi fit`: one budget, one answer, whatever happens on the way."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

import vidi
from vidi import config
from vidi.cli import main
from vidi.errors import ConfigError, Interrupted, MismatchError, UsageError
from vidi.own_data import plan_of
from vidi.plan import network, pixels
from vidi.plan.budget import Trainings
from vidi.report import load_study, study_views
from vidi.run import Run
from vidi.study import Study
from vidi.train import Progress
from vidi.train.features import Extractor
from vidi.tune import answer, scratch
from vidi.tune.fitting import Doing
from vidi.tune.pretrained import greedy
from vidi.tune.work import Work

SCRATCH: dict[str, object] = {
    "model.name": "small_cnn",
    "model.weights": "none",
    "data.image_px": 16,
    "train.batch_size": 32,
    "machine.threads": 1,
}
SMALL: dict[str, object] = {
    "model.name": "efficientnet_lite0",
    "model.weights": "imagenet",
    "data.image_px": 32,
    "machine.threads": 1,
}


def three_colours(root: Path, *, number: int, px: int, tint: int, seed: int) -> Path:
    """So many pictures of each, told apart by every network."""
    rng = np.random.default_rng(seed)
    for channel, label in enumerate(("red", "green", "blue")):
        (root / label).mkdir()
        for index in range(number):
            pixels = rng.integers(0, 140, (px, px, 3), dtype=np.uint8)
            pixels[:, :, channel] += tint
            Image.fromarray(pixels).save(root / label / f"{index:03}.jpg", quality=95)
    return root


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    return three_colours(root, number=14, px=40, tint=90, seed=3)


def fit(
    data: str | Path,
    out: Path,
    settings: dict[str, object],
    *,
    show: Any = None,
    minutes: float = 3.0,
) -> Study:
    """Far more time than so few images need: it ends by itself, also on a busy machine."""
    return vidi.fit(data, minutes=minutes, settings=settings, out=out, to="none", show=show)


def noted(study: Study) -> list[str]:
    return [event["what"] for event in study.events.read() if event["event"] == "doing"]


@pytest.fixture(scope="module")
def tuned(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    return fit(photos, tmp_path_factory.mktemp("fits") / "tuned", SMALL)


def test_a_pretrained_network_gives_a_head_first_and_is_then_fine_tuned(tuned: Study) -> None:
    first, last_stages, second, *averages = tuned.trials()
    assert (first.status, second.status) == ("finished", "finished")
    assert "stage6, stage7, features, head" in last_stages.reason
    assert last_stages.last is not None
    assert last_stages.last.accuracy > 0.9
    assert "cross-validation" in first.reason or "held-out" in first.reason
    assert "epochs" in second.reason
    assert first.last is not None
    assert first.last.accuracy > 0.9
    steps = noted(tuned)
    expected = (
        "a head on kept features",
        "training the last stages from that head",
        "fine-tuning all layers from there",
    )
    places = [steps.index(each) for each in expected]
    assert places == sorted(places)
    assert [each.origin for each in averages[:2]] == [
        "fine-tuning, averaged with 30% of its start",
        "fine-tuning, averaged with 60% of its start",
    ]
    # Then each of the others with what is best so far.
    assert len(averages) == 6
    assert all("trials" in each.origin for each in averages[2:])
    assert all(each.last and each.last.accuracy > 0.9 for each in averages)


def test_an_average_lies_between_the_fine_tuning_and_its_start(tuned: Study) -> None:
    def weight(number: int) -> Any:
        checkpoint, _ = tuned.trial_run(number).newest_checkpoint()
        assert checkpoint is not None
        return safetensors.torch.load(checkpoint.read("model.safetensors"))[
            "network.classifier.1.weight"
        ]

    start = tuned.trials()[2].parameters["start"]
    between = 0.3 * weight(start) + 0.7 * weight(3)
    torch.testing.assert_close(weight(4), between)
    assert not torch.equal(weight(start), weight(3))
    members = [int(number) for number in re.findall(r"\d+", tuned.trials()[5].origin)]
    assert len(members) == 2
    torch.testing.assert_close(weight(6), (weight(members[0]) + weight(members[1])) / 2)


def averaged(worths: dict[tuple[int, ...], float]) -> tuple[tuple[int, ...], list[Any]]:
    """What is taken of three candidates whose averages are worth that, and what was asked for."""
    asked: list[Any] = []

    def worth(numbers: Any) -> float | None:
        asked.append(numbers)
        return worths.get(numbers)

    return greedy([(3, 0.90), (4, 0.89), (2, 0.85)], worth), asked


def test_an_average_takes_in_what_makes_it_no_worse() -> None:
    assert averaged({(3, 4): 0.90, (3, 4, 2): 0.92})[0] == (3, 4, 2)


def test_what_makes_an_average_worse_is_left_out_of_it() -> None:
    # The second is; the third is tried without it, and held against what is best so far.
    taken, asked = averaged({(3, 4): 0.895, (3, 2): 0.91})
    assert (taken, asked) == ((3, 2), [(3, 4), (3, 2)])
    assert averaged({(3, 4): 0.93, (3, 4, 2): 0.92})[0] == (3, 4)
    assert averaged({(3, 4): 0.80, (3, 2): 0.80})[0] == (3,)


def test_without_time_for_more_averages_the_best_so_far_stays() -> None:
    taken, asked = averaged({})
    assert (taken, asked) == ((3,), [(3, 4)])


def test_the_answer_alone_is_judged_by_the_test_images_and_once(tuned: Study) -> None:
    run = Run.open(tuned.final_path)
    assert run.evaluated_splits() == ("test", "validation")
    assert json.loads(run.read_evaluation("test"))["accuracy"] > 0.9
    assert run.report_path.exists()
    for trial in tuned.trials():
        assert "test" not in Run.open(tuned.trial_run_path(trial.number)).evaluated_splits()
    assert noted(tuned).count("judging the answer") == 1


def test_the_best_settings_plan_the_training_that_won(photos: Path, tuned: Study) -> None:
    asked = config.read(tuned.best_path)
    (event,) = [each for each in tuned.events.read() if each["event"] == "ended"]
    won = json.loads(tuned.trial_run(event["answer"]).text("plan"))
    again = json.loads(vidi.plan(photos, asked).plan.model_dump_json())
    # How fast it is computed, how often it is looked at and why are no part of what is learnt.
    for plan in (won, again):
        for name in ("execution", "reasons", "evaluate_every_steps", "head_penalty"):
            del plan[name]
    assert again == won
    first = tuned.trials()[0]
    assert asked.train.head_penalty == first.parameters["penalty"]


def test_each_trial_has_its_own_seconds(tuned: Study) -> None:
    seconds = [trial.last.seconds for trial in tuned.trials() if trial.last]
    assert min(seconds) > 0.0
    # One after another, besides what else was done.
    assert sum(seconds) < tuned.spent_s()


def test_the_study_has_a_page_that_leads_to_the_report_of_the_answer(tuned: Study) -> None:
    assert tuned.report_path.read_text().startswith("<!doctype html>")
    views = study_views(load_study(tuned))
    assert tuned.path / views["summary"]["final_report"] == Run.open(tuned.final_path).report_path
    (event,) = [each for each in tuned.events.read() if each["event"] == "ended"]
    assert views["best"]["number"] == views["trials"]["best"] == event["answer"]
    assert {each["number"] for each in views["curves"]["lines"]} >= {1, 3}
    times = {each["what"]: each["seconds"] for each in views["time"]["parts"]}
    assert times["fine-tuning all layers from there"] > 0.0
    assert sum(times.values()) <= tuned.spent_s() + 0.01


def test_the_command_says_where_the_page_is(
    photos: Path, tuned: Study, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = [f"--set={name}={json.dumps(value)}" for name, value in SMALL.items()]
    words = ["vidi", "fit", str(photos), "--minutes", "3", "--out", str(tuned.path), "--to", "none"]

    def printed(*more: str) -> str:
        monkeypatch.setattr(sys, "argv", [*words, *settings, *more])
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        assert not left.value.code
        return capfd.readouterr().out

    assert json.loads(printed("--json"))["page"] == str(tuned.report_path)
    assert f"trials:  {tuned.report_path}" in printed()


@pytest.mark.parametrize("why", ["could not be written: a bug of ours", "no time for the page"])
def test_a_page_that_cannot_be_written_is_no_reason_to_lose_the_answer(
    photos: Path, tuned: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    def fails(_: Study) -> Path:
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(answer, "write_study", fails)
    if "time" in why:
        monkeypatch.setattr(Work, "page_s", 1e9)
    # As after a kill at the very end.
    shutil.copytree(tuned.path, tmp_path / "fit")
    log = tmp_path / "fit" / "events.jsonl"
    *before, last = log.read_text().splitlines(keepends=True)
    assert '"ended"' in last
    log.write_text("".join(before))
    told: list[Any] = []
    study = fit(photos, tmp_path / "fit", SMALL, show=told.append)
    assert [line for line in told if why in str(line)]
    assert any(event["event"] == "ended" for event in study.events.read())


def test_few_held_out_images_are_said_to_tell_little(tuned: Study) -> None:
    (event,) = [each for each in tuned.events.read() if each["event"] == "few held out"]
    assert event["images"] < 10


def test_no_bundle_has_its_reason(tuned: Study) -> None:
    (event,) = [each for each in tuned.events.read() if each["event"] == "not exported"]
    assert "--to none" in event["why"]


@pytest.mark.slow
def test_a_slow_machine_gets_a_head_on_smaller_images(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crawls(self: Extractor, *_: object) -> float:
        return 0.25 * (128 / self.image_px) ** 2

    monkeypatch.setattr(Extractor, "rate", crawls)
    study = fit(photos, tmp_path / "fit", {**SMALL, "data.image_px": None})
    first = study.trials()[0]
    assert first.settings["data.image_px"] < 128
    assert Run.open(study.final_path).evaluated_splits() == ("test", "validation")
    assert noted(study).count("making the images smaller") == 1


def test_what_is_done_already_is_not_done_again(photos: Path, tuned: Study) -> None:
    said: list[object] = []
    before = tuned.events.offset
    again = fit(photos, tuned.path, SMALL, show=said.append)
    assert said == [f"already complete: {tuned.path}; to spend more minutes, give another --out"]
    assert again.events.offset == before


def test_another_request_in_the_same_place_is_refused(photos: Path, tuned: Study) -> None:
    with pytest.raises(MismatchError, match=r"train\.seed"):
        fit(photos, tuned.path, {**SMALL, "train.seed": 7})


def test_the_answer_predicts(photos: Path, tuned: Study) -> None:
    predictor = vidi.load(tuned.final_path)
    assert predictor((photos / "green" / "001.jpg").read_bytes()).label == "green"


def test_from_scratch_every_step_says_why_and_the_answer_is_exported(
    photos: Path, tmp_path: Path
) -> None:
    told: list[Any] = []
    study = vidi.fit(
        photos, minutes=1.5, settings=SCRATCH, out=tmp_path / "fit", to="torch", show=told.append
    )
    steps = [one for one in told if isinstance(one, Doing)]
    assert [one.what for one in steps][:2] == ["looking at the images", "training from scratch"]
    assert all(one.why and one.elapsed_s >= 0 and one.budget_s == 90.0 for one in steps)
    assert steps[0].accuracy is None
    assert steps[-1].accuracy is not None
    assert steps[-1].accuracy > 0.9
    run = Run.open(study.final_path)
    assert run.bundle_path("torch").exists()
    # The learning rate has been annealed to its end inside the budget.
    rates = [each["learning_rate"] for each in run.metrics.read() if each["kind"] == "train"]
    assert rates[-1] < 0.02 * max(rates)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough to choose between trainings."""
    root = tmp_path_factory.mktemp("many")
    return three_colours(root, number=80, px=16, tint=60, seed=4)


def decided_as(kind: str, number: int) -> Any:
    """Instead of the rule, which asks how fast this machine is."""
    return lambda *_: Trainings(kind, number, "as the test asks")  # type: ignore[arg-type]


MANY: dict[str, object] = {
    **SCRATCH,
    "train.batch_size": 128,
    "data.validation_fraction": 0.25,
    # One way to compute a step: its speed has to be known, which way is fastest says nothing here.
    "machine.precision": "float32",
    "machine.channels_last": True,
    "machine.compile": False,
    "machine.fused": True,
    "machine.keep_memory": True,
    "machine.loader_threads": 1,
}


# What is learnt is learnt soon, and with this rate nothing is.
SOON: dict[str, object] = {**MANY, "train.patience_epochs": 4}
IDLE: dict[str, object] = {"train.learning_rate": 1e-9}


@pytest.mark.parametrize("better", [1, 2])
def test_of_several_trainings_the_best_is_kept_and_compared_with_the_default(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, better: int
) -> None:
    tried: list[Any] = [({}, "the default"), (dict(IDLE), "another")]
    if better == 2:
        tried = [(dict(IDLE), "the default"), ({}, "another")]
    monkeypatch.setattr(scratch, "trainings_rule", decided_as("several", 2))
    monkeypatch.setattr(scratch, "_portfolio", lambda *_: tried)
    told: list[Any] = []
    study = fit(many, tmp_path / "fit", SOON, minutes=5.0, show=told.append)
    assert [trial.status for trial in study.trials()] == ["finished", "finished"]
    (event,) = [each for each in study.events.read() if each["event"] == "ended"]
    assert event["answer"] == better
    compared = [each for each in study.events.read() if each["event"] == "compared"]
    said = [line for line in told if str(line).startswith("another against the default: better")]
    assert [each["trial"] for each in compared] == ([2] if better == 2 else [])
    assert [each["why"] for each in compared] == said


def test_the_default_is_tried_first_then_other_random_numbers(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch, "trainings_rule", decided_as("several", 2))

    def stop(what: object) -> None:
        if isinstance(what, Doing) and "training 2 of 2" in what.why:
            os.kill(os.getpid(), signal.SIGINT)

    study = fit(many, tmp_path / "fit", SOON, minutes=5.0, show=stop)
    first, second = study.trials()
    assert (first.origin, list(first.settings)) == ("the default", ["train.minutes"])
    assert second.settings["train.seed"] == 1


@pytest.mark.slow
def test_small_pictures_are_enlarged_and_what_is_left_is_for_a_network_from_scratch(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixels, "ENLARGED_PX", 32)
    machine = {name: value for name, value in MANY.items() if name.startswith("machine")}
    study = fit(photos, tmp_path / "fit", {**machine, "machine.threads": 1})
    head, *_, last = study.trials()
    first, second = (plan_of(study.trial_run(one.number)) for one in (head, last))
    assert (first.model.name, first.model.weights) == ("efficientnet_lite0", "imagenet")
    assert (first.pixels.image_px, first.pixels.store_px) == (32, 32)
    assert last.origin == "a small network from scratch"
    assert (second.model.name, second.model.weights) == ("small_cnn", "none")
    assert second.pixels.image_px == 40
    assert last.status == "finished"
    assert noted(study).index("training from scratch, too") > noted(study).index(
        "fine-tuning all layers from there"
    )
    assert Run.open(study.final_path).evaluated_splits()


@pytest.mark.slow
def test_small_pictures_are_learnt_from_scratch_where_there_is_no_time_for_more(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "_LOOKS_WORTH_TUNING", 1e9)
    machine = {name: value for name, value in MANY.items() if name.startswith("machine")}
    study = fit(photos, tmp_path / "fit", machine, minutes=1.0)
    first = plan_of(study.trial_run(1))
    assert (first.model.name, first.model.weights) == ("small_cnn", "none")
    assert first.pixels.image_px == 40


def test_a_search_brings_the_default_to_its_end_and_ctrl_c_ends_it_with_the_best(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch, "trainings_rule", decided_as("search", 20))

    def stop(what: object) -> None:
        if isinstance(what, str) and what.startswith("trial 3 "):
            os.kill(os.getpid(), signal.SIGINT)

    study = fit(many, tmp_path / "fit", MANY, show=stop, minutes=20.0)
    trials = study.trials()
    assert [trial.status for trial in trials][:1] == ["finished"]
    assert trials[0].origin == "the default"
    assert len(trials) == 3
    assert all(trial.last is not None for trial in trials)
    assert Run.open(study.final_path).evaluated_splits() == ("test", "validation")
    assert config.read(study.best_path).train.minutes is None


def test_a_search_leaves_an_optimizer_without_a_schedule_without_one(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch, "trainings_rule", decided_as("search", 20))

    def stop(what: object) -> None:
        if isinstance(what, str) and what.startswith("trial 1 "):
            os.kill(os.getpid(), signal.SIGINT)

    settings = {**MANY, "train.optimizer": "adamw_schedule_free"}
    study = fit(many, tmp_path / "fit", settings, show=stop, minutes=20.0)
    assert study.trials()[0].last is not None
    assert plan_of(study.trial_run(1)).schedule.name == "constant"


@pytest.mark.slow
def test_a_search_trains_its_best_settings_for_longer_within_the_time(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch, "trainings_rule", decided_as("search", 20))
    told: list[Any] = []
    study = fit(many, tmp_path / "fit", MANY, minutes=1.0, show=told.append)
    *searched, last = study.trials()
    assert last.origin.endswith("for longer")
    assert last.status == "finished"
    assert searched
    assert not any(name in last.settings for name in ("train.epochs", "train.schedule"))
    # It is given what is left after the search, and no more.
    begun = next(
        one for one in told if isinstance(one, Doing) and one.what.endswith("settings longer")
    )
    longer_s = 60.0 * last.settings["train.minutes"]
    assert 0.0 < longer_s < begun.budget_s - begun.elapsed_s
    # Its learning rate has fallen to its end, wherever its time was over.
    rates = [
        each["learning_rate"]
        for each in study.trial_run(last.number).metrics.read()
        if each["kind"] == "train"
    ]
    assert rates[-1] < 0.05 * max(rates)


def test_ctrl_c_ends_with_the_best_so_far(
    photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def stop(what: object) -> None:
        if isinstance(what, Progress) and what.phase == "train" and what.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    study = fit(photos, tmp_path / "fit", SMALL, show=stop)
    assert "the best so far is judged" in capfd.readouterr().err
    assert Run.open(study.final_path).evaluated_splits() == ("test", "validation")
    assert study.trials()[2].reason == "stopped by a signal"
    assert any(event["event"] == "ended" for event in study.events.read())


@pytest.mark.slow
def test_a_fit_that_was_killed_goes_on_and_its_clock_too(photos: Path, tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    spent_s = 0.0

    def kill(what: object) -> None:
        nonlocal spent_s
        if isinstance(what, Progress) and what.phase == "train" and what.step == 5:
            study = Study.open(tmp_path / "fit")
            noted_s = max(float(event.get("spent_s", 0.0)) for event in study.events.read())
            # The clock goes on between what is noted, and is on the disk.
            while (spent_s := study.spent_s()) <= noted_s:
                time.sleep(0.05)
            raise Killed

    with pytest.raises(Killed):
        fit(photos, tmp_path / "fit", SMALL, show=kill)
    before = Study.open(tmp_path / "fit")
    first_trial = before.trials()[0]
    assert [trial.status for trial in before.trials()] == ["finished", "finished", "running"]
    told: list[Any] = []
    after = fit(photos, tmp_path / "fit", SMALL, show=told.append)
    first = next(one for one in told if isinstance(one, Doing))
    assert first.elapsed_s > spent_s - 0.01
    assert first_trial == after.trials()[0]
    for done_once in ("a head on kept features", "training the last stages from that head"):
        assert noted(after).count(done_once) == 1
    assert after.trials()[2].status == "finished"


@pytest.mark.slow
def test_a_signal_before_there_is_an_answer_leaves_something_to_continue(
    photos: Path, tmp_path: Path
) -> None:
    def stop(what: object) -> None:
        if isinstance(what, Doing) and what.what == "a head on kept features":
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted) as caught:
        fit(photos, tmp_path / "fit", SMALL, show=stop)
    assert caught.value.status == 128 + signal.SIGTERM
    # In one line: that there is nothing, and how to go on.
    assert "no answer yet" in str(caught.value)
    assert str(tmp_path / "fit") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert fit(photos, tmp_path / "fit", SMALL).final_path.exists()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "settings"), [("SIGINT", SCRATCH), ("SIGTERM", SMALL)])
def test_what_a_signal_stops_without_ending_it_goes_on(
    number: str, settings: dict[str, object], photos: Path, tmp_path: Path
) -> None:
    """Ctrl-C before there is any answer, and a signal that is not Ctrl-C."""

    def stop(what: object) -> None:
        if isinstance(what, Progress) and what.phase == "train" and what.step == 2:
            os.kill(os.getpid(), getattr(signal, number))

    with pytest.raises(Interrupted, match="the same command goes on"):
        fit(photos, tmp_path / "fit", settings, show=stop)
    assert Study.open(tmp_path / "fit").trials()[-1].status == "running"
    study = fit(photos, tmp_path / "fit", settings, minutes=1.0)
    assert all(trial.status == "finished" for trial in study.trials())
    assert Run.open(study.final_path).evaluated_splits() == ("test", "validation")


def test_too_short_a_time_says_what_is_needed(photos: Path, tmp_path: Path) -> None:
    for name, settings in (("fit", SMALL), ("other", SCRATCH)):
        with pytest.raises(UsageError, match="too short") as caught:
            fit(photos, tmp_path / name, settings, minutes=0.01)
        assert "--minutes" in caught.value.fix


@pytest.mark.parametrize("minutes", [0.0, -1.0, float("nan")])
def test_no_time_at_all_is_refused(minutes: float, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="above zero"):
        vidi.fit("digits", minutes=minutes, out=tmp_path / "fit")
    assert not (tmp_path / "fit").exists()


def test_a_length_of_training_is_not_for_the_user_to_set(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="by its minutes"):
        fit("digits", tmp_path / "fit", {"train.epochs": 3})


def test_the_answer_from_scratch_is_trained_again_on_its_validation_images_too(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch, "trainings_rule", decided_as("one", 1))
    # Fitting the time is not what is tested: it takes no time, and there is enough for it.
    monkeypatch.setattr(answer, "training_s", lambda *_: 0.0)
    study = vidi.fit(many, minutes=5.0, settings=MANY, out=tmp_path / "f", to="none", retrain=True)
    final, first = Run.open(study.final_path), study.trial_run(1)
    assert final.evaluated_splits() == ("test",)
    assert "test" not in first.evaluated_splits()
    before, now = (json.loads(run.text("facts"))["dataset"]["counts"] for run in (first, final))
    assert sum(now["train"]) == sum(before["train"]) + sum(before["validation"])
    assert now["test"] == before["test"]
    assert "learn_validation" in study.best_path.read_text()
