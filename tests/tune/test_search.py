"""A search keeps its word whatever its workers, its disk and its user do."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

import optuna
import pytest

import vidi
from vidi import storage
from vidi.config import Config, parse
from vidi.errors import (
    ConfigError,
    DamagedError,
    DataError,
    Interrupted,
    InUseError,
    MismatchError,
    StorageError,
    TrainingError,
    UsageError,
)
from vidi.plan import make
from vidi.report import load_study, study_views
from vidi.space import choice, log_uniform
from vidi.study import Study, Trial
from vidi.tune import foreman

from . import conftest
from .conftest import FACTS, Imagined, Killed

SPACE = {
    "train.learning_rate": log_uniform(1e-3, 1.0),
    "train.label_smoothing": choice(0.0, 0.1),
}
COMMON: dict[str, Any] = {
    "settings": {"model.name": "mlp", "train.epochs": 9, "train.batch_size": 64},
    "space": SPACE,
    "trials": 9,
}


def searched(out: Path, **changes: Any) -> Study:
    return vidi.tune("made up", out=out, **{**COMMON, **changes})


def told(trials: tuple[Trial, ...]) -> list[Any]:
    """What must not depend on kills."""
    return [
        (one.number, one.settings, one.status, [(r.step, r.accuracy) for r in one.rungs])
        for one in trials
    ]


def test_a_search_ends_with_an_answer(tmp_path: Path, imagined: Imagined) -> None:
    study = searched(tmp_path / "s")
    trials = study.trials()
    assert len(trials) == 9
    assert {one.status for one in trials} == {"paused", "finished"}
    assert len(imagined.advanced) == len(set(imagined.advanced))
    finished = [one for one in trials if one.status == "finished"]
    best = max(finished, key=lambda one: one.rungs[-1].accuracy)
    config = parse(study.best_path.read_text())
    assert config.train.learning_rate == best.settings.get("train.learning_rate")
    assert config.train.epochs == 9
    assert vidi.Run.exists(study.final_path)
    assert study.report_path.exists()
    kinds = [event["event"] for event in study.events.read()]
    assert kinds[0] == "began"
    assert kinds[-1] == "ended"


def test_the_default_is_brought_to_its_end_whatever_it_is_worth(
    tmp_path: Path, imagined: Imagined
) -> None:
    settings = {**COMMON["settings"], "train.learning_rate": 1e-3}
    default, *others = searched(tmp_path / "s", settings=settings, workers=2).trials()
    assert (default.settings, default.status, len(default.rungs)) == ({}, "finished", 3)
    # What it was worth on its way is known as well: others are compared with it there.
    assert len({rung.accuracy for rung in default.rungs}) == 3
    assert default.rungs[0].accuracy < max(one.rungs[0].accuracy for one in others)
    del imagined


def test_dashboards_see_every_trial(tmp_path: Path, with_database: Imagined) -> None:
    del with_database
    study = searched(tmp_path / "s")
    shown = optuna.load_study(study_name="s", storage=study.database_url)
    states = [one.state.name for one in shown.trials]
    ours = {"finished": "COMPLETE", "paused": "PRUNED"}
    assert states == [ours[one.status] for one in study.trials()]
    for one, trial in zip(shown.trials, study.trials(), strict=True):
        assert list(one.intermediate_values.values()) == [rung.accuracy for rung in trial.rungs]


def test_a_damaged_database_is_named_and_made_again(
    tmp_path: Path, with_database: Imagined
) -> None:
    imagined = with_database
    study = searched(tmp_path / "s")
    good = len(optuna.load_study(study_name="s", storage=study.database_url).trials)
    data = study.database_path.read_bytes()
    lines: list[str] = []
    for damage in (data[: len(data) // 2], b"no database at all" * 999, data[:100]):
        study.database_path.write_bytes(damage)
        lines.clear()
        searched(tmp_path / "s", show=lines.append)
        assert any("study.db is damaged" in line for line in lines)
        shown = optuna.load_study(study_name="s", storage=study.database_url)
        assert len(shown.trials) == good
    assert len(imagined.advanced) == len(set(imagined.advanced))


def test_studies_of_one_name_share_a_database_server(
    tmp_path: Path, with_database: Imagined
) -> None:
    del with_database
    url = f"sqlite:///{tmp_path / 'server.db'}"
    foreign = optuna.create_study(study_name="s", storage=url)
    lines: list[str] = []
    for folder, trials in (("a", 2), ("b", 3), ("a", 4)):
        searched(tmp_path / folder / "s", trials=trials, storage_url=url, show=lines.append)
    names = [line.rpartition(" ")[2] for line in lines if line.startswith("the database shows")]
    assert names[0] == names[2] != names[1]
    shown = {one.study_name: one.n_trials for one in optuna.get_all_study_summaries(storage=url)}
    assert shown == {foreign.study_name: 0, names[1]: 3, names[2]: 4}


def test_kills_at_any_moment_lose_nothing_and_change_no_suggestion(
    tmp_path: Path, imagined: Imagined
) -> None:
    whole = told(searched(tmp_path / "whole").trials())
    random = Random(11)
    for attempt in range(4):
        imagined.advanced.clear()
        left = 0

        def maybe(message: Mapping[str, Any]) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            del message

        imagined.misdeed = maybe
        for _ in range(200):
            left = random.randrange(3, 8)
            try:
                searched(tmp_path / f"killed{attempt}")
            except Killed:
                continue
            break
        else:
            raise AssertionError("it never ends")
        assert told(Study.open(tmp_path / f"killed{attempt}").trials()) == whole
        assert len(imagined.advanced) == len(set(imagined.advanced))


def test_more_trials_go_on_where_the_search_ended(tmp_path: Path, imagined: Imagined) -> None:
    before = searched(tmp_path / "s").trials()
    imagined.advanced.clear()
    said: list[object] = []
    after = searched(tmp_path / "s", trials=12, show=said.append).trials()
    assert len(after) == 12
    assert any("look number 2 at the test images" in str(line) for line in said)
    assert [one.settings for one in after[:9]] == [one.settings for one in before]
    assert len(imagined.advanced) == len(set(imagined.advanced))


def test_a_trial_that_was_deleted_is_tried_anew(tmp_path: Path, imagined: Imagined) -> None:
    study = searched(tmp_path / "s", sampler="random")
    before = study.trials()
    record = study.path / "trials" / "0004.json"
    record.write_bytes(record.read_bytes()[:-20])
    with pytest.raises(DamagedError, match="0004") as caught:
        searched(tmp_path / "s", sampler="random")
    assert "delete it with its folder" in caught.value.fix
    record.unlink()
    shutil.rmtree(study.trial_run_path(4))
    imagined.advanced.clear()
    after = searched(tmp_path / "s", sampler="random").trials()
    assert [one.settings for one in after] == [one.settings for one in before]
    assert {name for name, _ in imagined.advanced} == {"0004"}


def test_the_sampler_is_told_of_the_default_and_the_starts(
    tmp_path: Path, imagined: Imagined
) -> None:
    settings = {"model.name": "resnet18", "model.weights": "none", "train.epochs": 9}
    study = searched(tmp_path / "s", space=None, settings=settings, trials=5)
    starts = study.trials()[:4]
    assert all(one.parameters["train.optimizer"] for one in starts)
    assert [one.parameters["train.label_smoothing"][0] for one in starts] == [0.1] * 4
    assert starts[2].parameters["train.learning_rate (optimizer = sgd)"][0] == 0.5
    del imagined


def test_another_request_is_refused_by_name(tmp_path: Path, imagined: Imagined) -> None:
    searched(tmp_path / "s")
    imagined.sent.clear()
    for changes, words in (
        ({"space": {**SPACE, "train.learning_rate": log_uniform(1e-3, 2.0)}}, "learning_rate"),
        ({"space": {**SPACE, "train.momentum": choice(0.8, 0.9)}}, r"train\.momentum"),
        ({"seed": 1}, "seed was 0, now 1"),
        ({"sampler": "random"}, "sampler"),
        ({"settings": {"train.epochs": 4}}, r"train\.epochs"),
    ):
        with pytest.raises(MismatchError, match=words):
            searched(tmp_path / "s", **changes)
    assert not imagined.sent


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trials": None}, "how long"),
        ({"trials": 0}, "more than none"),
        ({"minutes": -1.0}, "more than none"),
        ({"sampler": "tpee"}, "did you mean 'tpe'"),
        ({"promotion": "ahsa"}, "did you mean 'asha'"),
        ({"workers": 0}, "workers"),
        ({"settings": {"train.minutes": 3}}, "length of one training"),
        ({"space": "nothing.toml"}, "cannot read the space"),
        ({"space": lambda config, _: config, "sampler": "grid"}, "whole space"),
    ],
)
def test_requests_that_cannot_be_are_refused_before_anything_is_made(
    tmp_path: Path, imagined: Imagined, changes: Mapping[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        searched(tmp_path / "s", **changes)
    assert not (tmp_path / "s").exists()
    assert not imagined.sent


def test_two_searches_do_not_work_in_one_study(tmp_path: Path, imagined: Imagined) -> None:
    searched(tmp_path / "s")
    del imagined
    with Study.open(tmp_path / "s").lock(), pytest.raises(InUseError):
        searched(tmp_path / "s")


def failing(error: str, number: str = "0003") -> Callable[[Mapping[str, Any]], Any]:
    def misdeed(message: Mapping[str, Any]) -> Any:
        if message["do"] == "advance" and Path(message["path"]).name == number:
            told_ = {"error": error, "message": f"{error} in it", "fix": "", "exit_code": 6}
            return {"kind": "failed", **told_}
        return None

    return misdeed


@pytest.mark.parametrize("error", ["TrainingError", "OutOfMemory", "ConfigError", "RuntimeError"])
def test_a_trial_that_fails_is_written_down_and_the_search_goes_on(
    tmp_path: Path, imagined: Imagined, error: str
) -> None:
    imagined.misdeed = failing(error)
    trials = searched(tmp_path / "s").trials()
    assert len(trials) == 9
    assert (trials[2].status, trials[2].reason) == ("failed", f"{error} in it")
    assert all(one.status != "failed" for one in trials if one.number != 3)


def test_a_search_whose_trials_all_fail_gives_up(tmp_path: Path, imagined: Imagined) -> None:
    def misdeed(message: Mapping[str, Any]) -> Any:
        return failing("TrainingError", Path(message.get("path", "")).name)(message)

    imagined.misdeed = misdeed
    with pytest.raises(TrainingError, match="all 5 trials failed") as caught:
        searched(tmp_path / "s")
    assert caught.value.exit_code == 6


def test_a_worker_that_dies_costs_its_trial_a_retry(tmp_path: Path, imagined: Imagined) -> None:
    deaths = {"0002": 2, "0004": 3}

    def misdeed(message: Mapping[str, Any]) -> Any:
        name = Path(message.get("path", "")).name
        if message["do"] == "advance" and deaths.get(name, 0) > 0:
            deaths[name] -= 1
            return {"kind": "died", "message": "its process was killed"}
        return None

    imagined.misdeed = misdeed
    trials = searched(tmp_path / "s").trials()
    assert (trials[1].status, trials[1].retries) in (("paused", 2), ("finished", 2))
    assert (trials[3].status, trials[3].retries) == ("failed", 2)
    assert "3 times" in trials[3].reason
    assert len(trials) == 9
    # Every new process opens the data first.
    assert len([one for one in imagined.sent if one["do"] == "open"]) == 1 + 5


def dying(*names: str) -> Callable[[Mapping[str, Any]], Any]:
    """The first process of each of these trials dies."""
    left = set(names)

    def misdeed(message: Mapping[str, Any]) -> Any:
        name = Path(message.get("path", "")).name
        if message["do"] == "advance" and name in left:
            left.remove(name)
            return {"kind": "died", "message": "its process was killed"}
        return None

    return misdeed


@pytest.mark.parametrize("names", [("0001", "0002"), ("0001", "0002", "0003")])
def test_several_workers_that_die_at_once_are_all_replaced(
    tmp_path: Path, imagined: Imagined, names: tuple[str, ...]
) -> None:
    imagined.misdeed = dying(*names)
    trials = searched(tmp_path / "s", workers=3).trials()
    assert len(trials) == 9
    assert [one.number for one in trials if one.retries] == [int(name) for name in names]
    assert len(sent(imagined, "open")) == 3 + len(names)


def test_the_others_go_on_without_a_worker_that_cannot_open_the_data(
    tmp_path: Path, imagined: Imagined
) -> None:
    opened = 0

    def misdeed(message: Mapping[str, Any]) -> Any:
        nonlocal opened
        if message["do"] == "open":
            opened += 1
            if opened > 2:
                return {"kind": "died", "message": "its process was killed"}
        return None

    imagined.misdeed = misdeed
    lines: list[str] = []
    assert len(searched(tmp_path / "s", workers=3, show=lines.append).trials()) == 9
    assert any("worker 3 cannot open the data" in line for line in lines)
    opened = 9
    with pytest.raises(TrainingError, match="cannot open the data"):
        searched(tmp_path / "other", workers=3)


def test_a_worker_that_opens_the_data_for_ever_is_replaced(
    tmp_path: Path, imagined: Imagined, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreman, "OPENING_TIMEOUT_S", 0.5)
    silent = ["silence"]
    imagined.misdeed = lambda message: silent.pop() if silent and message["do"] == "open" else None
    assert len(searched(tmp_path / "s", trials=2).trials()) == 2
    assert imagined.killed == [0]


def test_a_trial_that_tells_nothing_is_ended(tmp_path: Path, imagined: Imagined) -> None:
    def misdeed(message: Mapping[str, Any]) -> Any:
        hangs = message["do"] == "advance" and Path(message["path"]).name == "0002"
        return "silence" if hangs else None

    imagined.misdeed = misdeed
    trials = searched(tmp_path / "s", timeout_s=2.0).trials()
    assert imagined.killed == [0]
    assert trials[1].status == "failed"
    assert "told nothing" in trials[1].reason
    assert len(trials) == 9


def test_on_a_full_disk_the_oldest_losers_make_room(tmp_path: Path, imagined: Imagined) -> None:
    full = 2

    def misdeed(message: Mapping[str, Any]) -> Any:
        nonlocal full
        if message["do"] == "advance" and Path(message["path"]).name == "0008" and full:
            full -= 1
            said = {"error": "StorageError", "message": "no space left", "fix": ""}
            return {"kind": "failed", "exit_code": 74, **said}
        return None

    imagined.misdeed = misdeed
    lines: list[str] = []
    study = searched(tmp_path / "s", show=lines.append)
    assert len(study.trials()) == 9
    gone = [line for line in lines if "were let go" in line]
    assert len(gone) == 2
    empty = [
        one.number for one in study.trials() if not study.trial_run(one.number).checkpoint_steps()
    ]
    assert len(empty) == 2
    assert all(study.trials()[number - 1].status == "paused" for number in empty)


def test_room_is_made_for_the_answer(tmp_path: Path, imagined: Imagined) -> None:
    full = 2

    def misdeed(message: Mapping[str, Any]) -> Any:
        nonlocal full
        if message["do"] == "finish" and full:
            full -= 1
            said = {"error": "StorageError", "message": "no space left", "fix": ""}
            return {"kind": "failed", "exit_code": 74, **said}
        return None

    imagined.misdeed = misdeed
    lines: list[str] = []
    study = searched(tmp_path / "s", show=lines.append)
    assert len([line for line in lines if "were let go" in line]) == 2
    assert vidi.Run.exists(study.final_path)
    full = 99
    with pytest.raises(StorageError, match="no space left"):
        searched(tmp_path / "other")


def test_a_disk_that_stays_full_ends_the_search(tmp_path: Path, imagined: Imagined) -> None:
    imagined.misdeed = failing("StorageError", "0001")
    with pytest.raises(StorageError):
        searched(tmp_path / "s")


def test_a_result_that_could_not_be_written_is_found_again(
    tmp_path: Path, imagined: Imagined, monkeypatch: pytest.MonkeyPatch
) -> None:
    del imagined
    real, broken = storage.write_file, True

    def write(path: Path, *rest: Any, **more: Any) -> Any:
        if broken and path.name == "0002.json" and b"judged" in rest[0]:
            raise StorageError("no space left")
        return real(path, *rest, **more)

    monkeypatch.setattr(storage, "write_file", write)
    with pytest.raises(StorageError):
        searched(tmp_path / "s")
    broken = False
    trials = searched(tmp_path / "s").trials()
    assert len(trials) == 9
    assert all(one.rungs for one in trials)


@pytest.mark.parametrize("name", ["events.jsonl", "study.json", "best.toml", "report.html"])
def test_room_is_made_for_whatever_a_search_writes(
    tmp_path: Path, imagined: Imagined, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    del imagined
    out, refused = tmp_path / "s", False

    def checked(path: Path) -> None:
        """Refuses from the eighth trial on, until a checkpoint has gone; then locks, too."""
        nonlocal refused
        full = len(list((out / "trials").glob("*.json"))) > 7 and all(
            list(folder.iterdir()) for folder in (out / "trials").glob("*/checkpoints")
        )
        if full and (path.name == name or (refused and path.name == "lock")):
            refused = True
            raise StorageError("no space left")

    write, append, acquire = storage.write_file, storage.LineLog.append, storage.Lock.acquire

    def write_checked(path: Path, *rest: Any, **more: Any) -> None:
        checked(path)
        write(path, *rest, **more)

    def append_checked(log: storage.LineLog, line: str) -> None:
        checked(log.path)
        append(log, line)

    def acquire_checked(lock: storage.Lock) -> None:
        checked(lock._path)
        acquire(lock)

    monkeypatch.setattr(storage, "write_file", write_checked)
    monkeypatch.setattr(storage.LineLog, "append", append_checked)
    monkeypatch.setattr(storage.Lock, "acquire", acquire_checked)
    lines: list[str] = []
    study = searched(out, show=lines.append)
    assert len([line for line in lines if "were let go" in line]) == 1
    assert study.final_path.exists()
    assert events(study, "ended")


def test_ctrl_c_finishes_the_best_so_far(tmp_path: Path, imagined: Imagined) -> None:
    def misdeed(message: Mapping[str, Any]) -> Any:
        if message["do"] == "advance" and message["rung"] == 1:
            os.kill(os.getpid(), signal.SIGINT)
            return "silence"
        return None

    imagined.misdeed = misdeed
    with pytest.raises(Interrupted, match="everything is saved") as caught:
        searched(tmp_path / "s")
    assert caught.value.status == 130
    (finish,) = [one for one in imagined.sent if one["do"] == "finish"]
    # The learning rate falls over a few more steps.
    assert 0 < finish["last_step"] < 90
    study = Study.open(tmp_path / "s")
    assert vidi.Run.exists(study.final_path)
    imagined.misdeed = lambda _: None
    assert len(searched(tmp_path / "s").trials()) == 9


def test_ctrl_c_while_the_data_are_opened_again_ends_it_at_once(
    tmp_path: Path, imagined: Imagined
) -> None:
    searched(tmp_path / "s")

    def misdeed(message: Mapping[str, Any]) -> Any:
        del message
        os.kill(os.getpid(), signal.SIGINT)
        return "silence"

    imagined.misdeed = misdeed
    with pytest.raises(Interrupted) as caught:
        searched(tmp_path / "s", trials=12)
    assert caught.value.status == 130


def test_after_ctrl_c_the_answer_is_made_by_somebody_who_has_the_data(
    tmp_path: Path, imagined: Imagined, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a machine that is gone nothing can be saved.
    monkeypatch.setattr(imagined, "stop", imagined.kill)

    def misdeed(message: Mapping[str, Any]) -> Any:
        if message["do"] == "advance" and Path(message["path"]).name == "0004":
            os.kill(os.getpid(), signal.SIGINT)
            return "silence"
        return None

    imagined.misdeed = misdeed
    with pytest.raises(Interrupted):
        searched(tmp_path / "s")
    assert [one["do"] for one in imagined.sent[-2:]] == ["open", "finish"]
    assert vidi.Run.exists(tmp_path / "s" / "final")


def test_sigterm_only_saves(tmp_path: Path, imagined: Imagined) -> None:
    def misdeed(message: Mapping[str, Any]) -> Any:
        if message["do"] == "advance" and Path(message["path"]).name == "0004":
            os.kill(os.getpid(), signal.SIGTERM)
            return "silence"
        return None

    imagined.misdeed = misdeed
    with pytest.raises(Interrupted) as caught:
        searched(tmp_path / "s")
    assert caught.value.status == 143
    assert not vidi.Run.exists(tmp_path / "s" / "final")


def test_several_workers_are_all_busy(tmp_path: Path, imagined: Imagined) -> None:
    study = searched(tmp_path / "s", workers=3)
    assert imagined.most_at_work == 3
    assert len(study.trials()) == 9
    assert len(imagined.advanced) == len(set(imagined.advanced))
    # They share the cores.
    advance = next(one for one in imagined.sent if one["do"] == "advance")
    assert parse(advance["config"]).machine.threads == 1
    assert parse(study.best_path.read_text()).machine.threads is None


def test_other_images_are_refused(tmp_path: Path, imagined: Imagined) -> None:
    searched(tmp_path / "s")

    def misdeed(message: Mapping[str, Any]) -> Any:
        if message["do"] == "open":
            answer = json.loads(json.dumps(imagined._done(message)))
            answer["facts"]["dataset"]["fingerprint"] = "other"
            return answer
        return None

    imagined.misdeed = misdeed
    with pytest.raises(MismatchError, match="other images"):
        searched(tmp_path / "s", trials=12)


def test_data_that_do_not_allow_it_say_so(tmp_path: Path, imagined: Imagined) -> None:
    said = {"kind": "failed", "error": "DataError", "message": "one class", "fix": ""}
    imagined.misdeed = lambda _: {**said, "exit_code": 3}
    with pytest.raises(DataError, match="one class"):
        searched(tmp_path / "s")


def test_a_config_is_given_to_all_trials(tmp_path: Path, imagined: Imagined) -> None:
    config = Config().with_settings({"train.optimizer": "adamw"})
    searched(tmp_path / "s", config=config, trials=3)
    told_ = [parse(one["config"]) for one in imagined.sent if one["do"] == "advance"]
    assert {one.train.optimizer for one in told_} == {"adamw"}
    assert {one.train.schedule for one in told_} == {"trapezoid"}


def test_an_optimizer_without_a_schedule_keeps_to_its_own_rule(
    tmp_path: Path, imagined: Imagined
) -> None:
    asked = {**COMMON["settings"], "train.optimizer": "adamw_schedule_free"}
    searched(tmp_path / "asked", settings=asked, trials=2)
    space = {**SPACE, "train.optimizer": choice("adamw", "adamw_schedule_free")}
    searched(tmp_path / "searched", space=space)
    told_ = [parse(one["config"]) for one in imagined.sent if one["do"] in ("time", "advance")]
    schedules = {one.train.optimizer: make(one, FACTS).schedule.name for one in told_}
    assert schedules == {
        "adamw_schedule_free": "constant",
        "adamw": "trapezoid",
        None: "trapezoid",
    }


def test_settings_that_a_trial_cannot_have_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.learning_rte"):
        searched(tmp_path / "s", space={"train.learning_rte": log_uniform(0.1, 1.0)})


def test_a_time_too_short_for_anything_says_how_much_is_needed(
    tmp_path: Path, imagined: Imagined
) -> None:
    def misdeed(message: Mapping[str, Any]) -> Any:
        if message["do"] != "advance":
            return None
        said = {"step": 1, "accuracy": None, "log_loss": None, "seconds": 0.1, "finished": False}
        return {"kind": "done", "result": said}

    imagined.misdeed = misdeed
    with pytest.raises(UsageError, match="too short") as caught:
        searched(tmp_path / "s", minutes=0.01)
    assert "--minutes 0." in caught.value.fix


OPEN_LENGTH: dict[str, object] = {"model.name": "mlp", "train.batch_size": 64}


def lengths(imagined: Imagined) -> set[float | None]:
    return {parse(one["config"]).train.epochs for one in sent(imagined, "advance")}


def test_with_more_time_than_was_too_short_trials_are_longer(
    tmp_path: Path, imagined: Imagined
) -> None:
    def misdeed(message: Mapping[str, Any]) -> Any:
        if message["do"] != "advance":
            return None
        answer = dict(imagined._done(message))
        return {**answer, "result": {**answer["result"], "accuracy": None, "finished": False}}

    imagined.misdeed = misdeed
    with pytest.raises(UsageError, match="too short"):
        searched(tmp_path / "s", settings=OPEN_LENGTH, minutes=0.05)
    (before,) = lengths(imagined)
    imagined.misdeed = lambda _: None
    imagined.sent.clear()
    study = searched(tmp_path / "s", settings=OPEN_LENGTH, minutes=60, trials=2)
    (after,) = lengths(imagined)
    assert before is not None
    assert after is not None
    assert after > 2 * before
    run = study.trial_run(1)
    assert parse(run.text("config")).train.epochs == after


def test_trials_that_were_judged_keep_their_length_and_it_is_said(
    tmp_path: Path, imagined: Imagined
) -> None:
    lines: list[str] = []
    searched(tmp_path / "s", settings=OPEN_LENGTH, minutes=0.1, trials=2, show=lines.append)
    assert not [line for line in lines if "another --out" in line]
    searched(tmp_path / "s", settings=OPEN_LENGTH, minutes=60, trials=4, show=lines.append)
    assert len(lengths(imagined)) == 1
    (said,) = [line for line in lines if "another --out" in line]
    assert "so that all can be compared" in said


def test_time_after_the_last_thing_that_happened_counts(tmp_path: Path, imagined: Imagined) -> None:
    def misdeed(message: Mapping[str, Any]) -> Any:
        if message["do"] == "advance" and Path(message["path"]).name == "0002":
            time.sleep(1.0)
            raise Killed
        return None

    imagined.misdeed = misdeed
    with pytest.raises(Killed):
        searched(tmp_path / "s", minutes=60)
    before = sent(imagined, "advance")[-1]["deadline_s"]
    imagined.misdeed = lambda _: None
    imagined.sent.clear()
    searched(tmp_path / "s", minutes=60)
    assert sent(imagined, "advance")[0]["deadline_s"] < before - 0.9


def test_a_request_that_the_data_refuse_leaves_no_folder(
    tmp_path: Path, imagined: Imagined
) -> None:
    def misdeed(message: Mapping[str, Any]) -> Any:
        if message["do"] != "open":
            return None
        why = {"error": "DataError", "message": "one class only", "fix": "", "exit_code": 3}
        return {"kind": "failed", **why}

    imagined.misdeed = misdeed
    with pytest.raises(DataError, match="one class only"):
        searched(tmp_path / "s")
    assert list(tmp_path.iterdir()) == []
    # What has trials is never taken away.
    imagined.misdeed = lambda _: None
    searched(tmp_path / "s", trials=3)
    imagined.misdeed = misdeed
    with pytest.raises(DataError, match="one class only"):
        searched(tmp_path / "s", trials=5)
    assert len(Study.open(tmp_path / "s").trials()) == 3


def test_names_in_a_space_are_looked_up_before_the_data_are_opened(
    tmp_path: Path, imagined: Imagined
) -> None:
    space = {
        "train.optimizer": choice("sgd", "adamw"),
        "train.learning_rate": log_uniform(0.01, 1.0),
    }
    searched(tmp_path / "s", space=space)
    tried = imagined.sent[0]["tried"]
    assert tried == [["train.optimizer", "sgd"], ["train.optimizer", "adamw"]]


def test_few_images_to_choose_by_are_said(
    tmp_path: Path, imagined: Imagined, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    searched(tmp_path / "enough", show=lines.append)
    assert not [line for line in lines if "luck" in line]
    counts = {"train": (640, 640), "validation": (3, 3), "test": (100, 100)}
    few = FACTS.model_copy(update={"dataset": FACTS.dataset.model_copy(update={"counts": counts})})
    monkeypatch.setattr(conftest, "FACTS", few)
    searched(tmp_path / "few", show=lines.append)
    (said,) = [line for line in lines if "luck" in line]
    assert "6 validation images" in said
    assert "16.7 points" in said
    del imagined


# ---- What the answer gained ----------------------------------------------------------------------

# Everything that is suggested does better than the default.
BETTER = {"train.learning_rate": log_uniform(0.09, 0.11)}


@pytest.mark.parametrize(
    ("right", "verdict"), [(190, "better"), (152, "cannot tell"), (110, "worse")]
)
def test_the_answer_is_held_against_the_default_image_by_image(
    tmp_path: Path, imagined: Imagined, right: int, verdict: str
) -> None:
    imagined.right = {"0001": 150, "final": right}
    lines: list[str] = []
    study = searched(tmp_path / "s", space=BETTER, show=lines.append)
    (event,) = events(study, "compared")
    assert (event["trial"], event["verdict"]) == (study.decided["answer"], verdict)
    assert event["why"] in lines
    assert f"{(right - 150) / 2:+.2f} points on 200 images" in event["why"]
    noise = [line for line in lines if "inside the noise" in line]
    assert len(noise) == (verdict == "cannot tell")
    titles = [each["title"] for each in study_views(load_study(study))["summary"]["tried"]]
    assert ("The gain is inside the noise" in titles) == (verdict == "cannot tell")
    assert ("Better than the first by more than chance" in titles) == (verdict == "better")


def test_a_default_that_is_the_answer_is_held_against_nothing(
    tmp_path: Path, imagined: Imagined
) -> None:
    study = searched(tmp_path / "s", space={"train.learning_rate": log_uniform(0.9, 1.0)})
    assert study.decided["answer"] == 1
    assert not events(study, "compared")
    assert not sent(imagined, "answers")


def test_what_cannot_be_compared_is_an_answer_all_the_same(
    tmp_path: Path, imagined: Imagined
) -> None:
    def misdeed(message: Mapping[str, Any]) -> Any:
        if message["do"] != "answers":
            return None
        why = {"error": "UsageError", "message": "no checkpoint", "fix": "", "exit_code": 2}
        return {"kind": "failed", **why}

    imagined.misdeed = misdeed
    lines: list[str] = []
    study = searched(tmp_path / "s", space=BETTER, show=lines.append)
    assert "not compared with the default: no checkpoint" in lines
    assert vidi.Run.exists(study.final_path)
    assert not events(study, "compared")


def test_what_a_search_does_besides_its_trials_takes_its_time_too(
    tmp_path: Path, imagined: Imagined
) -> None:
    del imagined
    study = searched(tmp_path / "s")
    parts = study_views(load_study(study))["time"]["parts"]
    besides = {"opened the data", "timed the first steps", "made the answer"}
    assert besides <= {each["what"] for each in parts}


# ---- Training once more on the validation images -------------------------------------------------


def sent(imagined: Imagined, what: str) -> list[Mapping[str, Any]]:
    return [message for message in imagined.sent if message["do"] == what]


def events(study: Study, name: str) -> list[dict[str, Any]]:
    return [event for event in study.events.read() if event["event"] == name]


def test_the_answer_is_trained_again_where_that_was_asked_for(
    tmp_path: Path, imagined: Imagined
) -> None:
    study = searched(tmp_path / "s", retrain=True)
    (finish,) = sent(imagined, "finish")
    assert finish["splits"] == ["validation"]
    (again,) = sent(imagined, "retrain")
    assert again["source"] == finish["path"]
    assert again["config"] == finish["config"]
    assert vidi.Run.open(study.final_path).has_text("replaces")
    assert not study.retrained_path.exists()
    assert "data.learn_validation=true" in study.best_path.read_text()
    assert events(study, "retrained")


def test_without_asking_nothing_is_trained_again(tmp_path: Path, imagined: Imagined) -> None:
    study = searched(tmp_path / "s")
    (finish,) = sent(imagined, "finish")
    assert finish["splits"] == ["validation", "test"]
    assert not sent(imagined, "retrain")
    assert "learn_validation" not in study.best_path.read_text()


@pytest.mark.parametrize("retrain", [False, True])
def test_a_search_that_is_over_is_not_judged_again(
    tmp_path: Path, imagined: Imagined, retrain: bool
) -> None:
    study = searched(tmp_path / "s", retrain=retrain)
    imagined.sent.clear()
    lines: list[str] = []
    searched(tmp_path / "s", show=lines.append)
    assert not sent(imagined, "finish")
    assert any("was judged before" in line for line in lines)
    assert vidi.Run.open(study.final_path).has_text("replaces") == retrain


def test_a_search_that_is_over_is_trained_again_when_that_is_asked_for_later(
    tmp_path: Path, imagined: Imagined
) -> None:
    study = searched(tmp_path / "s")
    searched(tmp_path / "s", retrain=True)
    assert sent(imagined, "retrain")
    assert vidi.Run.open(study.final_path).has_text("replaces")


def test_what_cannot_be_trained_again_is_the_answer_as_it_was(
    tmp_path: Path, imagined: Imagined
) -> None:
    def misdeed(message: Mapping[str, Any]) -> Any:
        if message["do"] != "retrain":
            return None
        return {
            "kind": "failed",
            "error": "TrainingError",
            "message": "it diverged",
            "fix": "",
            "exit_code": 6,
        }

    imagined.misdeed = misdeed
    lines: list[str] = []
    study = searched(tmp_path / "s", retrain=True, show=lines.append)
    assert sent(imagined, "conclude")
    assert vidi.Run.exists(study.final_path)
    assert not vidi.Run.open(study.final_path).has_text("replaces")
    assert [event["why"] for event in events(study, "not retrained")] == ["it diverged"]
    assert any("not trained again" in line and "it diverged" in line for line in lines)
    assert "learn_validation" not in study.best_path.read_text()


def test_without_time_for_it_the_reason_is_said(tmp_path: Path, imagined: Imagined) -> None:
    def misdeed(message: Mapping[str, Any]) -> Any:
        if message["do"] != "advance":
            return None
        answer = dict(imagined._done(message))
        # Slower than any hour allows, whatever the machine.
        answer["result"] = {**answer["result"], "seconds": 1e6}
        return answer

    imagined.misdeed = misdeed
    study = searched(tmp_path / "s", retrain=True, minutes=60, trials=1, promotion="none")
    (event,) = events(study, "not retrained")
    assert event["why"].startswith("it would take 1")
    assert not sent(imagined, "retrain")
    (finish,) = sent(imagined, "finish")
    assert finish["splits"] == ["validation", "test"]


def test_a_signal_stops_the_retraining_and_the_best_is_the_answer(
    tmp_path: Path, imagined: Imagined
) -> None:
    def misdeed(message: Mapping[str, Any]) -> Any:
        if message["do"] == "retrain":
            os.kill(os.getpid(), signal.SIGINT)
            return "silence"
        return None

    imagined.misdeed = misdeed
    with pytest.raises(Interrupted):
        searched(tmp_path / "s", retrain=True)
    study = Study.open(tmp_path / "s")
    assert [one["splits"] for one in sent(imagined, "finish")][-1] == ["validation", "test"]
    assert not vidi.Run.open(study.final_path).has_text("replaces")


def test_without_test_images_nothing_would_be_left_to_judge_by(
    tmp_path: Path, imagined: Imagined, monkeypatch: pytest.MonkeyPatch
) -> None:
    del imagined
    counts = {**FACTS.dataset.counts, "test": (0, 0)}
    dataset = FACTS.dataset.model_copy(update={"counts": counts})
    monkeypatch.setattr(conftest, "FACTS", FACTS.model_copy(update={"dataset": dataset}))
    with pytest.raises(UsageError, match="retrained"):
        searched(tmp_path / "s", retrain=True)
    assert not (tmp_path / "s").exists()


# ---- Rungs that differ by more than steps --------------------------------------------------------


def test_workers_are_told_by_what_rungs_differ(tmp_path: Path, imagined: Imagined) -> None:
    searched(tmp_path / "s", fidelity="data_share", retrain=True)
    for what in ("advance", "finish", "retrain"):
        assert {one["fidelity"] for one in sent(imagined, what)} == {"data_share"}
    with pytest.raises(MismatchError, match="fidelity"):
        searched(tmp_path / "s", fidelity="steps", retrain=True)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"fidelity": "images"}, "'images'"),
        ({"fidelity": "image_px", "promotion": "none"}, "no rungs"),
        (
            {
                "fidelity": "data_share",
                "settings": {**COMMON["settings"], "train.progressive_data": (0.5, 1.0)},
            },
            r"train\.progressive_data is asked for",
        ),
    ],
)
def test_rungs_that_cannot_differ_so_are_refused(
    tmp_path: Path, imagined: Imagined, asked: dict[str, Any], words: str
) -> None:
    del imagined
    with pytest.raises(UsageError, match=words):
        searched(tmp_path / "s", **asked)
    assert not (tmp_path / "s").exists()


def test_the_best_of_smaller_images_is_a_recipe_that_has_them(tmp_path: Path) -> None:
    study = vidi.tune(
        "digits",
        settings={
            "model.name": "small_cnn",
            "train.epochs": 4,
            "train.batch_size": 128,
            "machine.threads": 1,
        },
        space={"train.learning_rate": log_uniform(0.01, 0.1)},
        fidelity="image_px",
        trials=1,
        out=tmp_path / "s",
    )
    recipe = parse(study.best_path.read_text()).train.progressive_px
    assert recipe is not None
    assert recipe[0] == 8
    assert recipe[-1] == 16
    assert vidi.Run.open(study.final_path).evaluated_splits() == ("test", "validation")


def test_the_default_answers_every_validation_image_as_the_answer_does(tmp_path: Path) -> None:
    """With a rate at which nothing is learnt the default cannot be the answer."""
    study = vidi.tune(
        "digits",
        settings={
            "model.name": "mlp",
            "train.learning_rate": 1e-9,
            "train.epochs": 2,
            "machine.probe": "never",
            "machine.threads": 1,
        },
        space={"train.learning_rate": log_uniform(0.1, 0.2)},
        trials=2,
        promotion="none",
        out=tmp_path / "s",
    )
    (event,) = events(study, "compared")
    assert (event["trial"], event["verdict"]) == (2, "better")
    kept = study.trial_run(1).read_predictions("validation")
    right = kept["probabilities"].argmax(1) == kept["labels"]
    first = study.trials()[0].last
    assert first is not None
    assert right.mean() == pytest.approx(first.accuracy)
