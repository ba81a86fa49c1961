"""The directory of a search: what it holds survives, and what differs is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

import vidi
from vidi.config import Config
from vidi.errors import DamagedError, InUseError, MismatchError, StorageError, UsageError
from vidi.storage import DISK, Disk, NewerFormatError
from vidi.study import Rung, Study, Trial

ASKED = {"seed": 0, "minutes": 3.0, "space": {"train.learning_rate": {"low": 0.1, "high": 1.0}}}
CONFIG = Config().with_settings({"train.epochs": 4})


def made(path: Path) -> Study:
    return Study.create(path, kind="tune", config=CONFIG, asked=ASKED)


def test_a_new_study_is_there_when_opened(tmp_path: Path) -> None:
    made(tmp_path / "s")
    study = vidi.Study.open(tmp_path / "s")
    assert (study.kind, study.asked, study.config) == ("tune", ASKED, CONFIG)
    assert study.trials() == ()
    assert not (tmp_path / "s" / "lock").exists()


def test_only_free_places_become_studies(tmp_path: Path) -> None:
    made(tmp_path / "s")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "photo.jpg").touch()
    (tmp_path / "file").touch()
    for name, words in (("s", "already"), ("full", "photo.jpg"), ("file", "is a file")):
        with pytest.raises(UsageError, match=words):
            made(tmp_path / name)
    with pytest.raises(UsageError, match="not a study"):
        Study.open(tmp_path / "nothing")


def test_a_creation_that_was_killed_is_done_anew(tmp_path: Path) -> None:
    made(tmp_path / "s")
    (tmp_path / "s" / "study.json").unlink()
    made(tmp_path / "s")
    assert Study.open(tmp_path / "s").asked == ASKED


def test_trials_come_back_as_they_were_written(tmp_path: Path) -> None:
    study = made(tmp_path / "s")
    first = Trial(1, {"train.learning_rate": 0.1, "train.progressive_px": [16, 32]})
    second = Trial(2, {}, status="failed", reason="it diverged", retries=2).with_rung(
        Rung(10, 1 / 3, None, 0.1)
    )
    with study.lock():
        study.write_trial(second)
        study.write_trial(first)
        study.write_trial(replace(first, status="running"))
    assert Study.open(study.path).trials() == (replace(first, status="running"), second)


@settings(max_examples=50, deadline=None)
@given(
    steps=some.lists(some.integers(1, 5), max_size=8),
    accuracy=some.floats(0, 1),
    seconds=some.floats(0, 1e6),
)
def test_rungs_ascend_and_the_last_word_counts(
    steps: list[int], accuracy: float, seconds: float
) -> None:
    trial = Trial(1, {})
    for step in sorted(steps):
        trial = trial.with_rung(Rung(step, accuracy / step, 0.5, seconds))
    assert [rung.step for rung in trial.rungs] == sorted(set(steps))
    assert trial.last == (trial.rungs[-1] if steps else None)


def test_a_study_is_worked_in_by_one_process(tmp_path: Path) -> None:
    study = made(tmp_path / "s")
    code = (
        "import sys\nfrom vidi.study import Study\nfrom vidi.errors import InUseError\n"
        "try:\n    with Study.open(sys.argv[1]).lock(): pass\n"
        "except InUseError as error: print(error)\n"
    )
    with study.lock():
        done = subprocess.run(
            [sys.executable, "-c", code, str(study.path)],
            capture_output=True,
            text=True,
            check=True,
        )
    assert f"in use by process {os.getpid()}" in done.stdout
    with Study.open(study.path).lock(), pytest.raises(InUseError), study.lock():
        pass


def test_other_requests_are_refused_by_name(tmp_path: Path) -> None:
    study = made(tmp_path / "s")
    space = {"train.learning_rate": {"low": 0.1, "high": 2.0}}
    with study.lock():
        with pytest.raises(MismatchError, match=r"space\.train\.learning_rate\.high was 1\.0"):
            study.go_on(CONFIG, {**ASKED, "space": space}, kind="tune")
        with pytest.raises(MismatchError, match=r"train\.epochs was 4\.0, now 5\.0"):
            study.go_on(
                CONFIG.with_settings({"train.epochs": 5}),
                ASKED,
                kind="tune",
                may_change={"minutes"},
            )
        with pytest.raises(MismatchError, match="vidi tune"):
            study.go_on(CONFIG, ASKED, kind="ablate")
        with pytest.raises(MismatchError, match=r"minutes was 3\.0, now 9\.0"):
            study.go_on(CONFIG, {**ASKED, "minutes": 9.0}, kind="tune")
        study.go_on(CONFIG, {**ASKED, "minutes": 9.0}, kind="tune", may_change={"minutes"})
    assert Study.open(study.path).asked["minutes"] == 9.0


def test_what_the_machine_may_use_can_change(tmp_path: Path) -> None:
    study = made(tmp_path / "s")
    with study.lock():
        study.go_on(CONFIG.with_settings({"machine.threads": 2}), ASKED, kind="tune")


def trials_or_why(study: Study) -> tuple[Trial, ...] | str:
    try:
        return study.trials()
    except DamagedError as error:
        return str(error)


def test_every_changed_byte_of_a_trial_is_found_and_named(tmp_path: Path) -> None:
    study = made(tmp_path / "s")
    trial = Trial(1, {"train.learning_rate": 0.25}, rungs=(Rung(3, 0.5, 0.7, 1.5),))
    with study.lock():
        study.write_trial(trial)
    path = study.path / "trials" / "0001.json"
    good = path.read_bytes()
    for place in range(len(good)):
        for bad in (good[:place], good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :]):
            path.write_bytes(bad)
            found = trials_or_why(study)
            # White space between the values is not part of what was said.
            assert found == (trial,) or "0001.json" in found, place
    path.write_bytes(good)
    assert study.trials() == (trial,)


def test_torn_events_are_cut_off_and_the_next_one_is_sound(tmp_path: Path) -> None:
    study = made(tmp_path / "s")
    with study.lock():
        study.note("suggested", trial=1, why="the default")
        study.note("judged", trial=1, accuracy=0.5)
    path = study.path / "events.jsonl"
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for length in range(first, len(whole)):
        path.write_bytes(whole[:length])
        again = Study.open(study.path)
        with again.lock():
            again.note("judged", trial=2)
        assert [event.get("trial") for event in again.events.read()] == [1, 2]


def test_newer_and_foreign_files_say_so(tmp_path: Path) -> None:
    study = made(tmp_path / "s")
    record = json.loads((study.path / "study.json").read_text())
    (study.path / "study.json").write_text(json.dumps({**record, "format": 2, "vidi": "9.0"}))
    with pytest.raises(NewerFormatError, match=r"vidi 9\.0"):
        Study.open(study.path)
    (study.path / "study.json").write_text(json.dumps({"kind": "else"}))
    with pytest.raises(DamagedError):
        Study.open(study.path)


class Stopping:
    """A disk that gives up at one of its operations, as a kill there would."""

    def __init__(self, after: int) -> None:
        self._left = after

    def __getattr__(self, name: str) -> Any:
        def operation(*given: Any, **named: Any) -> Any:
            if name in ("write", "fsync", "rename", "fsync_dir"):
                self._left -= 1
                if self._left < 0:
                    raise OSError(5, "stopped")
            return getattr(DISK, name)(*given, **named)

        return operation


def test_a_write_that_stops_anywhere_leaves_the_old_or_the_new_trial(tmp_path: Path) -> None:
    before, after = Trial(1, {}), Trial(1, {}, status="finished", rungs=(Rung(1, 1.0, 0.0, 1.0),))
    with made(tmp_path / "s").lock():
        pass
    seen = set()
    for count in range(12):
        study = Study.open(tmp_path / "s")
        with study.lock():
            study.write_trial(before)
        study = Study.open(tmp_path / "s", disk=cast("Disk", Stopping(count)))
        try:
            with study.lock():
                study.write_trial(after)
        except StorageError:
            pass
        (found,) = Study.open(tmp_path / "s").trials()
        assert found in (before, after)
        seen.add(found.status)
    assert seen == {before.status, after.status}


def test_results_lie_where_they_are_looked_for(tmp_path: Path) -> None:
    study = made(tmp_path / "s")
    study.write_best(CONFIG)
    study.write_report("<html></html>")
    assert (study.path / "best.toml").read_text() == CONFIG.to_toml()
    assert study.report_path.read_text() == "<html></html>"
    assert study.database_url == f"sqlite:///{study.path}/study.db"
    with pytest.raises(UsageError, match="not a run"):
        study.trial_run(1)


@given(times=some.lists(some.floats(0.0, 1e7), min_size=1, max_size=4))
@settings(max_examples=20)
def test_how_long_was_worked_in_it_is_known_as_of_the_last_time(
    times: list[float], tmp_path_factory: pytest.TempPathFactory
) -> None:
    study = made(tmp_path_factory.mktemp("studies") / "s")
    assert study.spent_s() == 0.0
    for seconds in times:
        study.keep_spent(seconds)
    assert Study.open(study.path).spent_s() == pytest.approx(times[-1], abs=1e-3)


def test_a_time_that_cannot_be_read_counts_as_none(tmp_path: Path) -> None:
    study = made(tmp_path / "s")
    (study.path / "spent_s").write_bytes(b"\xff")
    assert study.spent_s() == 0.0


def test_the_best_settings_can_say_what_settings_cannot(tmp_path: Path) -> None:
    study = made(tmp_path / "s")
    with study.lock():
        study.write_best(CONFIG, about=["what a training cannot repeat"])
    assert study.best_path.read_text().startswith("# what a training cannot repeat\n")
    assert vidi.config.read(study.best_path) == CONFIG


def test_a_trial_that_is_taken_back_leaves_nothing(tmp_path: Path) -> None:
    study = made(tmp_path / "s")
    with study.lock():
        for number in (1, 2):
            study.write_trial(Trial(number, {}))
        study.trial_run_path(1).mkdir()
        study.discard_trial(1)
    assert [one.number for one in study.trials()] == [2]
    assert sorted(entry.name for entry in (study.path / "trials").iterdir()) == ["0002.json"]
