"""A run directory: what is saved is found again, what is damaged is passed over and named."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, final

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidi import __version__, storage
from vidi.errors import DamagedError, InUseError, StorageError, UsageError
from vidi.run import BackgroundSaver, Run, default_run_path
from vidi.storage import Buffer, LocalDisk

TEXTS = {"config": "seed = 0\n", "plan": '{"steps": 10}\n', "facts": "{}\n", "environment": "{}\n"}
FILES = {"model.safetensors": b"weights" * 100, "ema.safetensors": b"average" * 100}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", texts=TEXTS)


@pytest.fixture
def trained(run: Run) -> Run:
    """A run with checkpoints of the steps 10, 20 and 30 (10 is the best) and a log."""
    with run.lock():
        for step in (10, 20, 30):
            run.metrics.append({"step": step, "loss": 1 / step})
            run.timing.append({"step": step, "seconds": 0.1})
            run.save_checkpoint(step, FILES, {"step": step}, keep_steps=(10,))
    return run


def checkpoint_path(run: Run, step: int) -> Path:
    return run.path / "checkpoints" / f"step-{step:06d}"


def names_in(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


# ---- Create and open -----------------------------------------------------------------------------


def test_a_created_run_is_opened_with_its_texts(run: Run) -> None:
    again = Run.open(run.path)
    assert {name: again.text(name) for name in TEXTS} == TEXTS
    assert (run.path / "config.toml").read_text() == TEXTS["config"]
    assert run.config_path == run.path / "config.toml"
    assert names_in(run.path) == [
        "checkpoints",
        "config.toml",
        "environment.json",
        "facts.json",
        "metrics.jsonl",
        "plan.json",
        "run.json",
        "timing.jsonl",
    ]
    assert again.newest_checkpoint() == (None, ())
    assert again.metrics.read() == []


def test_a_run_is_for_its_owners_eyes(run: Run) -> None:
    assert run.path.stat().st_mode & 0o077 == 0


def test_a_text_is_replaced_and_an_unknown_one_refused(run: Run) -> None:
    run.write_text("plan", '{"steps": 20}\n')
    assert run.text("plan") == Run.open(run.path).text("plan") == '{"steps": 20}\n'
    with pytest.raises(UsageError, match="no text 'plans'") as raised:
        run.text("plans")
    assert "config, plan, facts, environment" in raised.value.fix
    with pytest.raises(UsageError, match="without its config"):
        Run.create(run.path / "x", texts={"plan": ""})
    with pytest.raises(UsageError, match=r"config.toml cannot hold '\\udce9'"):
        run.write_text("config", os.fsdecode(b"caf\xe9"))


def test_a_text_that_was_never_written_is_missed_by_name(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", texts={"config": ""})
    assert not run.has_text("facts")
    with pytest.raises(UsageError, match=r"has no facts\.json"):
        run.text("facts")


def test_a_run_is_created_in_an_empty_folder_or_an_empty_disk(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    Run.create(tmp_path, texts=TEXTS)
    assert Run.exists(tmp_path)


@pytest.mark.parametrize("make", ["file", "run", "foreign", "orphans"])
def test_a_run_is_not_created_over_anything(make: str, tmp_path: Path, trained: Run) -> None:
    place = tmp_path / "place"
    match make:
        case "file":
            place.touch()
            words = "is a file"
        case "run":
            place = trained.path
            words = "is a run already"
        case "foreign":
            place.mkdir()
            (place / "thesis\n.tex").touch()
            words = r"is not empty: thesis\\n\.tex"
        case "orphans":
            place = trained.path
            (place / "run.json").unlink()
            words = "has checkpoints but no run.json"
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match=words) as raised:
        Run.create(place, texts=TEXTS)
    assert raised.value.fix
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("make", "words", "fix"),
    [
        ("nothing", "does not exist", "did you mean .*/run?"),
        ("file", "it is a file", "directory"),
        ("empty", "it is empty", "vidi train"),
        ("images", "a folder of images", "vidi train takes it"),
        ("bundle", "it is a bundle", "vidi predict"),
        ("study", "it is a study", "trials"),
        ("above", "it is a folder of 1 runs", "name one: .*/run"),
        ("checkpoint", "it is a part of one", "the run itself: .*/run"),
        ("other", "it has no run.json", "vidi train made"),
    ],
)
def test_what_is_no_run_is_called_what_it_looks_like(
    make: str, words: str, fix: str, tmp_path: Path, trained: Run
) -> None:
    place = tmp_path / "rum"
    match make:
        case "file":
            place.touch()
        case "above":
            place = tmp_path
        case "checkpoint":
            place = checkpoint_path(trained, 10)
        case "nothing":
            pass
        case _:
            place.mkdir()
    match make:
        case "images":
            (place / "cats").mkdir()
            (place / "cats" / "1.JPG").touch()
        case "bundle":
            (place / "bundle.json").touch()
        case "study":
            (place / "study.db").touch()
        case "other":
            (place / "letter.txt").touch()
    with pytest.raises(UsageError, match=words) as raised:
        Run.open(place)
    assert re.search(fix, raised.value.fix)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"kind": "vidi run", "format": 7, "vidi": "9.1"}', "format 7, written by vidi 9.1"),
        ('{"kind": "vidi study", "format": 1}', "is not the run.json of a vidi run"),
        ("{", "run.json is damaged"),
        ("[]", "is not the run.json"),
    ],
)
def test_a_run_of_a_later_vidi_or_a_damaged_one_is_refused(text: str, words: str, run: Run) -> None:
    (run.path / "run.json").write_text(text)
    with pytest.raises(DamagedError, match=words) as raised:
        Run.open(run.path)
    if "9.1" in words:
        assert f"this is vidi {__version__}" in raised.value.message
        assert "9.1" in raised.value.fix


def test_a_text_that_is_a_link_or_no_text_is_damage(run: Run) -> None:
    (run.path / "plan.json").write_bytes(b"\xff\xfe")
    with pytest.raises(DamagedError, match=r"plan.json is damaged: not UTF-8"):
        Run.open(run.path)
    (run.path / "plan.json").unlink()
    (run.path / "plan.json").symlink_to("/etc/hostname")
    with pytest.raises(DamagedError, match="symbolic link"):
        Run.open(run.path)


@pytest.mark.parametrize(
    "name",
    [
        "with space",
        "new\nline",
        "-leading dash",
        "Blüten-花-🌸",
        "e\u0301 \u202e",
        "'\"$(x)`",
        os.fsdecode(b"caf\xe9"),
        "n" * 255,
        "/".join(["d" * 200] * 15),
    ],
    ids=lambda name: ascii(name[:12]),
)
def test_a_run_may_have_any_path(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    run = Run.create(path, texts=TEXTS)
    with run.lock():
        run.metrics.append({"step": 1})
        run.save_checkpoint(1, FILES, {})
        run.save_checkpoint(1, FILES, {"again": True})
    run.write_report("<html>")
    run.write_predictions("test", {"ids": np.arange(3)})
    again = Run.open(path)
    newest, damaged = again.newest_checkpoint()
    assert newest is not None
    assert newest.read("model.safetensors") == FILES["model.safetensors"]
    assert (newest.state, damaged) == ({"again": True}, ())
    damage(newest.path / "model.safetensors")
    with pytest.raises(DamagedError) as raised:
        again.newest_checkpoint()
    assert all(line.isprintable() for line in str(raised.value).splitlines())


# ---- Logs ----------------------------------------------------------------------------------------


def test_records_come_back_with_every_float_exact(run: Run) -> None:
    records: list[dict[str, object]] = [
        {"step": 1, "loss": 0.1 + 0.2, "rates": [1e-300, -0.0, 2**70]},
        {"step": 2},
    ]
    for record in records:
        run.metrics.append(record)
    assert Run.open(run.path).metrics.read() == records
    assert (run.path / "metrics.jsonl").read_bytes().count(b"\n") == 2


def test_equal_records_are_equal_bytes_in_any_order_of_keys(run: Run) -> None:
    run.metrics.append({"a": 1, "b": 2.5})
    first = run.metrics.offset
    run.metrics.append({"b": 2.5, "a": 1})
    data = run.metrics.path.read_bytes()
    assert data[:first] == data[first:]


def test_a_record_with_nan_is_refused_by_name_and_not_written(run: Run) -> None:
    with pytest.raises(UsageError, match="loss is nan"):
        run.metrics.append({"step": 1, "loss": float("nan")})
    assert run.metrics.read() == []


def test_a_damaged_line_in_the_middle_is_named(run: Run) -> None:
    run.metrics.path.write_text('{"step": 1}\n{"step": \n{"step": 3}\n')
    with pytest.raises(DamagedError, match=r"metrics.jsonl, line 2, is damaged"):
        run.metrics.read()
    run.metrics.path.write_text("3\n")
    with pytest.raises(DamagedError, match=r"line 1, is damaged: no JSON object"):
        run.metrics.read()


def test_a_log_cut_anywhere_after_the_checkpoint_is_rewound_to_it(trained: Run) -> None:
    whole = trained.metrics.path.read_bytes()
    newest, _ = trained.newest_checkpoint()
    assert newest is not None
    assert newest.metrics_offset == len(whole)
    more = b'{"step":31}\n{"step":32}\n'
    for cut in range(len(more) + 1):
        trained.metrics.path.write_bytes(whole + more[:cut])
        run = Run.open(trained.path)
        with run.lock():
            run.rewind(newest)
            run.metrics.append({"step": 31})
        assert [record["step"] for record in run.metrics.read()] == [10, 20, 30, 31]


def test_a_log_that_is_shorter_than_its_checkpoint_says_is_damage(trained: Run) -> None:
    newest, _ = trained.newest_checkpoint()
    trained.metrics.path.write_bytes(b"")
    with trained.lock(), pytest.raises(DamagedError, match="has 0 bytes, but"):
        trained.rewind(newest)


# ---- Checkpoints ---------------------------------------------------------------------------------


def test_a_checkpoint_comes_back_as_it_was_saved(run: Run) -> None:
    with run.lock():
        state = {"best": 0.1 + 0.2, "rng": [2**127, -1], "none": None, "pair": (1, 2)}
        saved = run.save_checkpoint(7, FILES, state)
    found = Run.open(run.path).checkpoint(7)
    assert found == saved
    assert found.state == {**state, "pair": [1, 2]}
    assert found.names == tuple(sorted(FILES))
    assert {name: found.read(name) for name in found.names} == FILES
    assert found.path.name == "step-000007"
    with pytest.raises(UsageError, match="no file 'optimizer'"):
        found.read("optimizer")


@settings(max_examples=25, deadline=None)
@given(
    state=st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False), max_size=5)
)
def test_every_float_of_the_state_is_kept_exactly(
    tmp_path_factory: pytest.TempPathFactory, state: dict[str, float]
) -> None:
    run = Run.create(tmp_path_factory.mktemp("run") / "run", texts=TEXTS)
    with run.lock():
        run.save_checkpoint(0, {}, state)
    found = run.checkpoint(0).state
    assert {key: value.hex() for key, value in found.items()} == {
        key: value.hex() for key, value in state.items()
    }


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"bytes", np.float32(1)])
def test_a_state_that_json_cannot_hold_is_refused_before_anything_is_written(
    value: object, trained: Run
) -> None:
    before = names_in(trained.path / "checkpoints")
    with trained.lock(), pytest.raises(UsageError, match=r"state\.optimizer\.lr is "):
        trained.save_checkpoint(40, FILES, {"optimizer": {"lr": value}})
    assert names_in(trained.path / "checkpoints") == before


def test_the_newest_two_are_kept_and_the_best(run: Run) -> None:
    with run.lock():
        for step in (10, 20, 30, 40, 1_000_000):
            run.save_checkpoint(step, FILES, {}, keep_steps={20})
        assert run.checkpoint_steps() == (20, 40, 1_000_000)
        run.save_checkpoint(1_000_010, FILES, {}, keep_steps={40})
        assert run.checkpoint_steps() == (40, 1_000_000, 1_000_010)
    with pytest.raises(UsageError, match="no checkpoint of step 20") as raised:
        run.checkpoint(20)
    assert "40, 1000000, 1000010" in raised.value.fix


def test_the_checkpoint_that_was_just_saved_is_never_let_go(trained: Run) -> None:
    with trained.lock():
        trained.save_checkpoint(5, FILES, {})
    assert trained.checkpoint_steps() == (5, 20, 30)


def test_the_newest_is_the_one_of_the_highest_step_whatever_the_clock_said(trained: Run) -> None:
    for step, mtime in ((10, 3e9), (20, 2e9), (30, 1e9)):
        for path in (checkpoint_path(trained, step), *checkpoint_path(trained, step).iterdir()):
            os.utime(path, (mtime, mtime))
    newest, damaged = trained.newest_checkpoint()
    assert newest is not None
    assert (newest.step, damaged) == (30, ())
    assert trained.checkpoint_steps() == (10, 20, 30)


def test_a_step_that_is_saved_again_takes_the_place_of_the_earlier(trained: Run) -> None:
    with trained.lock():
        trained.save_checkpoint(30, {"model.safetensors": b"new"}, {"second": True}, (10,))
    newest, _ = trained.newest_checkpoint()
    assert newest is not None
    assert newest.read("model.safetensors") == b"new"
    assert names_in(trained.path / "checkpoints") == ["step-000010", "step-000020", "step-000030"]


def test_damaged_checkpoints_are_passed_over_named_and_put_aside(trained: Run) -> None:
    damage(checkpoint_path(trained, 30) / "model.safetensors")
    (checkpoint_path(trained, 20) / "ema.safetensors").unlink()
    (trained.path / "checkpoints" / ".0123.tmp").mkdir()
    with trained.lock():
        newest, damaged = trained.newest_checkpoint()
    assert newest is not None
    assert newest.step == 10
    assert len(damaged) == 2
    assert re.search(
        r"000030: model\.safetensors has changed.*kept as step-000030\.bad", damaged[0]
    )
    assert re.search(r"000020: ema\.safetensors is missing.*kept as step-000020\.bad", damaged[1])
    assert names_in(trained.path / "checkpoints") == [
        "step-000010",
        "step-000020.bad",
        "step-000030.bad",
    ]
    with trained.lock():
        # Said once.
        assert trained.newest_checkpoint() == (newest, ())
        trained.save_checkpoint(30, FILES, {})
        damage(checkpoint_path(trained, 30) / "manifest.json")
        _, damaged = trained.newest_checkpoint()
    assert "kept as step-000030.bad2" in damaged[0]


def test_a_reader_without_the_lock_changes_nothing(trained: Run) -> None:
    damage(checkpoint_path(trained, 30) / "model.safetensors")
    (trained.path / "checkpoints" / ".0123.tmp").mkdir()
    before = names_in(trained.path / "checkpoints")
    newest, damaged = Run.open(trained.path).newest_checkpoint()
    assert newest is not None
    assert newest.step == 20
    assert "model.safetensors has changed" in damaged[0]
    assert names_in(trained.path / "checkpoints") == before


def test_when_every_checkpoint_is_damaged_all_are_listed_and_nothing_is_touched(
    trained: Run,
) -> None:
    damage(checkpoint_path(trained, 30) / "model.safetensors")
    (checkpoint_path(trained, 20) / "manifest.json").write_bytes(b"")
    (checkpoint_path(trained, 10) / "extra").touch()
    before = sorted(trained.path.rglob("*"))
    with trained.lock(), pytest.raises(DamagedError, match="every checkpoint of") as raised:
        trained.newest_checkpoint()
    assert raised.value.exit_code == 4
    message = raised.value.message
    for words in ("model.safetensors has changed", "manifest.json is damaged", "extra is not in"):
        assert words in message
    assert "nothing was deleted" in raised.value.fix
    assert sorted(trained.path.rglob("*")) == before


def test_any_damage_to_the_newest_makes_the_one_before_it_the_newest(trained: Run) -> None:
    rng = random.Random(0)
    folder = checkpoint_path(trained, 30)
    num_found = 0
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for at in sorted(rng.sample(range(len(whole)), 40)):
            flipped = bytearray(whole)
            flipped[at] ^= 1 << rng.randrange(8)
            for data in (bytes(flipped), whole[:at]):
                path.write_bytes(data)
                newest, damaged = trained.newest_checkpoint()
                assert newest is not None
                assert newest.step == 20
                assert path.name in damaged[0]
                num_found += 1
        path.write_bytes(whole)
    assert num_found == 4 * 40 * 2
    assert trained.checkpoint(30).step == 30


def rewrite_state(path: Path, **changes: object) -> None:
    """As a later version, or somebody who knows the rules, would write it."""
    manifest = storage.verify_folder(path)
    files = {name: storage.read_member(path, name, manifest) for name in manifest.files}
    files["state.json"] = storage.dump_json(json.loads(files["state.json"]) | changes, indent=1)
    storage.write_folder(path, files)


def test_a_checkpoint_of_a_later_format_stops_and_names_both_versions(trained: Run) -> None:
    rewrite_state(checkpoint_path(trained, 30), format=2, vidi="9.1")
    with trained.lock():
        for ask in (trained.newest_checkpoint, lambda: trained.checkpoint(30)):
            with pytest.raises(DamagedError, match=r"format 2, written by vidi 9\.1") as raised:
                ask()
            assert f"this is vidi {__version__}, which reads format 1" in raised.value.message
    # It is whole: a later vidi will want it.
    assert checkpoint_path(trained, 30).is_dir()


@pytest.mark.parametrize(
    "changes", [{"step": 31}, {"state": 3}, {"metrics_offset": None}, {"state": None}]
)
def test_a_state_file_with_other_contents_is_damage(
    changes: Mapping[str, object], trained: Run
) -> None:
    rewrite_state(checkpoint_path(trained, 30), **changes)
    with pytest.raises(DamagedError):
        trained.checkpoint(30)
    newest, damaged = trained.newest_checkpoint()
    assert newest is not None
    assert newest.step == 20
    assert len(damaged) == 1


def test_links_out_of_the_run_are_not_followed(trained: Run, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    shutil.copytree(checkpoint_path(trained, 30), outside)
    (trained.path / "checkpoints" / "step-000040").symlink_to(outside)
    newest, damaged = trained.newest_checkpoint()
    assert newest is not None
    assert newest.step == 30
    assert "is not a folder" in damaged[0]
    (trained.path / "checkpoints").rename(tmp_path / "moved")
    (trained.path / "checkpoints").symlink_to(tmp_path / "moved")
    with pytest.raises(DamagedError, match="is a symbolic link, which is not followed"):
        trained.newest_checkpoint()


def test_a_checkpoint_that_a_trainer_lets_go_while_it_is_read_is_no_damage(
    trained: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    verify = storage.verify_folder

    def rotated_meanwhile(folder: Path) -> storage.Manifest:
        if folder.name == "step-000030" and folder.exists():
            shutil.copytree(folder, folder.with_name("step-000040"))
            rewrite_state(folder.with_name("step-000040"), step=40)
            shutil.rmtree(folder)
        return verify(folder)

    monkeypatch.setattr(storage, "verify_folder", rotated_meanwhile)
    newest, damaged = trained.newest_checkpoint()
    assert newest is not None
    assert (newest.step, damaged) == (40, ())


def test_a_checkpoint_that_may_not_be_read_is_no_damage(trained: Run) -> None:
    if shutil.which("setpriv") is None or os.geteuid() != 0:
        pytest.skip("needs setpriv and root, to become somebody else")
    for path in (trained.path, *trained.path.parents):
        path.chmod(path.stat().st_mode | 0o055)
    (checkpoint_path(trained, 30) / "model.safetensors").chmod(0)
    program = "import sys; from vidi.run import Run; Run.open(sys.argv[1]).newest_checkpoint()"
    nobody = ("setpriv", "--reuid", "65534", "--clear-groups")
    child = subprocess.run(
        [*nobody, sys.executable, "-c", program, trained.path],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "StorageError: cannot read" in child.stderr
    assert "permission denied" in child.stderr


def test_going_back_to_an_earlier_checkpoint_lets_the_later_ones_go(trained: Run) -> None:
    with trained.lock():
        trained.rewind(trained.checkpoint(20))
        newest, _ = trained.newest_checkpoint()
        assert newest is not None
        assert newest.step == 20
        assert [record["step"] for record in trained.metrics.read()] == [10, 20]
        assert [record["step"] for record in trained.timing.read()] == [10, 20]
        trained.rewind(None)
        assert trained.newest_checkpoint() == (None, ())
        assert trained.metrics.read() == trained.timing.read() == []


def test_saving_without_the_lock_is_a_mistake_of_the_caller(run: Run) -> None:
    with pytest.raises(AssertionError, match=r"with run\.lock"):
        run.save_checkpoint(1, FILES, {})


# ---- Lock ----------------------------------------------------------------------------------------


@pytest.fixture
def trainer(trained: Run) -> Iterator[subprocess.Popen[str]]:
    """Another process that works in the run."""
    program = (
        "import sys; from vidi.run import Run\n"
        "with Run.open(sys.argv[1]).lock(): print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, trained.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "locked\n"
        yield child
        child.kill()


def test_a_run_in_use_is_refused_until_its_trainer_is_killed(
    trained: Run, trainer: subprocess.Popen[str]
) -> None:
    with pytest.raises(InUseError, match=f"in use by process {trainer.pid} on host") as raised:
        trained.lock().__enter__()
    assert raised.value.exit_code == 5
    # Reading needs no lock.
    assert Run.open(trained.path).newest_checkpoint()[0] is not None
    trainer.kill()
    trainer.wait()
    with trained.lock():
        trained.save_checkpoint(40, FILES, {})


def test_a_save_stops_when_somebody_else_took_the_run_over(run: Run) -> None:
    with run.lock():
        record = json.loads((run.path / "lock").read_bytes())
        (run.path / "lock").write_text(json.dumps(record | {"host": "other.example"}))
        with pytest.raises(InUseError, match=r"other\.example"):
            run.save_checkpoint(1, FILES, {})
    assert run.checkpoint_steps() == ()


def test_a_run_can_be_locked_again_and_again_and_keeps_no_file_open(run: Run) -> None:
    def num_open() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a path made of descriptors

    before = num_open()
    for step in range(20):
        with run.lock():
            run.metrics.append({"step": step})
            run.save_checkpoint(step, FILES, {})
    assert num_open() == before
    assert names_in(run.path).count("lock") == 0


# ---- Saving in the background --------------------------------------------------------------------


@final
class GatedDisk:
    """A disk whose files wait at the gate while it is closed, or break while `error` is set."""

    def __init__(self) -> None:
        self._disk = LocalDisk()
        self.gate = threading.Event()
        self.gate.set()
        self.error: int | None = None
        self.inside = 0
        self.most_inside = 0

    def create(self, path: Path) -> int:
        return self._disk.create(path)

    def open_append(self, path: Path) -> int:
        return self._disk.open_append(path)

    def write(self, descriptor: int, data: Buffer) -> None:
        self._disk.write(descriptor, data)

    def truncate(self, descriptor: int, size: int) -> None:
        self._disk.truncate(descriptor, size)

    def fsync(self, descriptor: int) -> None:
        assert os.fstat(descriptor)

    def close(self, descriptor: int) -> None:
        self._disk.close(descriptor)

    def mkdir(self, path: Path, mode: int = 0o777) -> None:
        """Every save makes one folder first."""
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        assert self.gate.wait(30)
        if self.error is not None:
            self.inside -= 1
            raise OSError(self.error, os.strerror(self.error))
        self._disk.mkdir(path, mode)

    def rename(self, source: Path, target: Path) -> None:
        if target.name.startswith("step-"):
            self.inside -= 1
        self._disk.rename(source, target)

    def unlink(self, path: Path) -> None:
        self._disk.unlink(path)

    def rmdir(self, path: Path) -> None:
        self._disk.rmdir(path)

    def fsync_dir(self, path: Path) -> None:
        assert path.is_dir()


@pytest.fixture
def disk() -> GatedDisk:
    return GatedDisk()


@pytest.fixture
def gated(trained: Run, disk: GatedDisk) -> Run:
    return Run.open(trained.path, disk=disk)


def test_a_save_goes_on_beside_the_training_and_is_taken_when_it_is_done(
    gated: Run, disk: GatedDisk
) -> None:
    with gated.lock(), BackgroundSaver(gated) as saver:
        disk.gate.clear()
        offset = gated.metrics.offset
        state = {"step": 40}
        assert saver.start(40, FILES, state, {10})
        # What happens from here on is not in the checkpoint.
        state["step"] = 41
        gated.metrics.append({"step": 41})
        assert saver.busy
        assert saver.take() is None
        disk.gate.set()
        saved = saver.wait()
        assert saved is not None
        assert (saved.step, saved.state, saved.metrics_offset) == (40, {"step": 40}, offset)
        assert saver.take() is None
    assert gated.checkpoint_steps() == (10, 30, 40)
    assert gated.checkpoint(40) == saved


def test_saves_never_overlap_and_a_skipped_one_is_counted(gated: Run, disk: GatedDisk) -> None:
    with gated.lock(), BackgroundSaver(gated) as saver:
        disk.gate.clear()
        assert saver.start(40, FILES, {})
        assert not saver.start(50, FILES, {})
        assert not saver.start(60, FILES, {})
        assert saver.num_skipped == 2
        disk.gate.set()
        assert saver.wait() is not None
        assert saver.start(70, FILES, {})
        assert (saver.close() or gated.checkpoint(0)).step == 70
    assert saver.num_skipped == 2
    assert gated.checkpoint_steps() == (40, 70)


def test_a_save_in_the_foreground_waits_for_the_one_in_the_background(
    gated: Run, disk: GatedDisk
) -> None:
    with gated.lock(), BackgroundSaver(gated) as saver:
        disk.gate.clear()
        saver.start(40, FILES, {})
        while disk.inside == 0:
            time.sleep(0.001)
        threading.Timer(0.05, disk.gate.set).start()
        gated.save_checkpoint(50, FILES, {})
        assert disk.most_inside == 1
    assert gated.checkpoint_steps() == (40, 50)


def test_a_failed_save_in_the_background_is_told_once_and_the_next_one_works(
    gated: Run, disk: GatedDisk
) -> None:
    with gated.lock(), BackgroundSaver(gated) as saver:
        disk.error = errno.ENOSPC
        saver.start(40, FILES, {})
        while saver.busy:
            time.sleep(0.001)
        with pytest.raises(StorageError, match="the disk is full"):
            saver.start(50, FILES, {})
        assert not saver.busy
        disk.error = None
        assert saver.start(50, FILES, {})
        disk.error = None
        assert saver.wait() is not None
        disk.error = errno.EIO
        saver.start(60, FILES, {})
        with pytest.raises(StorageError, match="input/output"):
            saver.close()
    assert gated.checkpoint_steps() == (30, 50)


def test_leaving_by_an_error_waits_for_the_save_and_tells_that_error(
    gated: Run, disk: GatedDisk
) -> None:
    def train() -> None:
        with gated.lock(), BackgroundSaver(gated) as saver:
            disk.gate.clear()
            saver.start(40, FILES, {})
            threading.Timer(0.05, disk.gate.set).start()
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        train()
    assert gated.checkpoint_steps() == (30, 40)


# ---- Results -------------------------------------------------------------------------------------


def arrays() -> dict[str, np.ndarray[Any, Any]]:
    return {
        "ids": np.arange(5),
        "probabilities": np.linspace(0, 1, 15, dtype=np.float32).reshape(5, 3),
        "classes": np.array(["cat", "Hündin", ""]),
        "nothing": np.zeros((0, 3), np.uint8),
    }


@pytest.mark.parametrize("kind", ["predictions", "pictures"])
def test_arrays_come_back_as_they_were_written(kind: str, run: Run) -> None:
    write = run.write_predictions if kind == "predictions" else run.write_pictures
    read = run.read_predictions if kind == "predictions" else run.read_pictures
    path = write("test", arrays())
    found = read("test")
    assert list(found) == list(arrays())
    for name, array in arrays().items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    first = path.read_bytes()
    write("test", arrays())
    assert path.read_bytes() == first
    assert path.suffix == ".npz"
    with np.load(path, allow_pickle=False) as file:
        np.testing.assert_array_equal(file["ids"], arrays()["ids"])


def test_python_objects_are_neither_written_nor_read(run: Run) -> None:
    objects = np.array([{"a": 1}, None], dtype=object)
    with pytest.raises(UsageError, match="array 'ids' holds Python objects"):
        run.write_predictions("test", {"ids": objects})
    with pytest.raises(UsageError, match="cannot be the name of an array"):
        run.write_predictions("test", {"../x": np.zeros(1)})
    path = run.predictions_path("test")
    path.parent.mkdir(exist_ok=True)
    np.savez(path, ids=objects)
    with pytest.raises(DamagedError, match=r"test\.npz is damaged: Object arrays"):
        run.read_predictions("test")
    np.savez_compressed(path, ids=np.zeros(1_000_000))
    with pytest.raises(DamagedError, match="compressed"):
        run.read_predictions("test")


def test_damaged_arrays_are_never_read_as_other_arrays(run: Run) -> None:
    path = run.write_predictions("test", {"ids": np.arange(40), "labels": np.ones(7)})
    whole = path.read_bytes()
    rng = random.Random(0)
    num_found = 0
    for at in range(0, len(whole), 3):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << rng.randrange(8)
        for data in (bytes(flipped), whole[:at]):
            path.write_bytes(data)
            try:
                found = run.read_predictions("test")
            except DamagedError:
                num_found += 1
            else:
                # A byte of the container that says nothing about the contents.
                np.testing.assert_array_equal(found["ids"], np.arange(40))
                np.testing.assert_array_equal(found["labels"], np.ones(7))
    assert num_found > len(whole) / 3


def test_evaluations_and_the_report_are_replaced_whole(run: Run) -> None:
    assert run.evaluated_splits() == ()
    for text in ('{"accuracy": 0.5}', '{"accuracy": 0.75}'):
        run.write_evaluation("test", text)
        run.write_report(f"<html>{text}")
    run.write_evaluation("validation", "{}")
    run.write_pictures("test", {"ids": np.arange(2)})
    assert run.read_evaluation("test") == '{"accuracy": 0.75}'
    assert run.evaluated_splits() == ("test", "validation")
    assert run.report_path.read_text() == '<html>{"accuracy": 0.75}'
    assert run.evaluation_path("test") == run.path / "evaluation" / "test.json"


def test_results_that_are_not_there_are_missed_by_name(run: Run) -> None:
    for read in (run.read_predictions, run.read_evaluation, run.read_pictures):
        with pytest.raises(UsageError, match="test") as raised:
            read("test")
        assert "vidi evaluate" in raised.value.fix


@pytest.mark.parametrize("split", ["", "../x", "a/b", "Test", ".test", "a\n", "x" * 65])
def test_a_split_whose_name_is_no_file_name_is_refused(split: str, run: Run) -> None:
    with pytest.raises(UsageError, match="cannot be the name of a split"):
        run.write_evaluation(split, "{}")


# ---- Names ---------------------------------------------------------------------------------------

NOW = datetime(2026, 11, 22, 9, 30)


def test_a_run_is_named_after_day_and_data_set(tmp_path: Path) -> None:
    path = default_run_path(tmp_path, "Oxford Flowers (102)", NOW)
    assert path.parent == tmp_path
    assert re.fullmatch(r"2026-11-22_oxford-flowers-102_[0-9a-f]{4}", path.name)


def test_the_same_name_at_the_same_time_is_another_path_once_it_is_taken(tmp_path: Path) -> None:
    paths = []
    for _ in range(5):
        paths.append(default_run_path(tmp_path, "flowers", NOW))
        paths[-1].mkdir()
    assert len(set(paths)) == 5


@settings(deadline=None)
@given(st.text(st.characters(codec=None), max_size=300))
def test_any_name_makes_a_plain_one(name: str) -> None:
    path = default_run_path("runs", name, NOW)
    assert re.fullmatch(r"2026-11-22_[a-z0-9]([a-z0-9-]*[a-z0-9])?_[0-9a-f]{4}", path.name)
    assert len(path.name) < 64
