"""A disk that is full, read-only, broken, over quota, gone or lying, at any operation of a save."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vidi.errors import StorageError
from vidi.run import Run

if TYPE_CHECKING:
    from tests.faults.conftest import FailingDisk

HERE = Path(__file__).parent
FILES = {"model.safetensors": b"weights" * 100, "optimizer.safetensors": b"momentum" * 100}
NEWER = {"model.safetensors": b"newer", "optimizer.safetensors": b""}
WRITING = frozenset({"create", "open_append", "write", "fsync", "mkdir", "rename", "fsync_dir"})

WORDS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "quota",
    errno.EIO: "input/output error",
    errno.EROFS: "read-only",
    errno.EACCES: "permission denied",
}


@pytest.fixture
def base(tmp_path: Path, failing_disk: type[FailingDisk]) -> Path:
    """A run with the checkpoints 10, 20 and 30, of which the next save lets two go."""
    path = tmp_path / "base"
    run = Run.create(path, texts={"config": "seed = 0\n"}, disk=failing_disk())
    with run.lock():
        for step in (10, 20, 30):
            run.metrics.append({"step": step})
            run.save_checkpoint(step, FILES, {"step": step}, keep_steps=(10,))
    return path


def copy_of(base: Path, name: str) -> Path:
    place = base.with_name(name)
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(base, place)
    return place


def once(number: int, at: int) -> Callable[[int, str], int | None]:
    return lambda index, _kind: number if index == at else None


def from_then_on(number: int, at: int) -> Callable[[int, str], int | None]:
    """What writes fails; removing works, as it does on a full disk."""
    return lambda index, kind: number if index >= at and kind in WRITING else None


def num_operations(base: Path, step: int, failing_disk: type[FailingDisk]) -> int:
    disk = failing_disk()
    run = Run.open(copy_of(base, "counted"), disk=disk)
    with run.lock():
        run.save_checkpoint(step, NEWER, {})
    return len(disk.operations)


@pytest.mark.parametrize("step", [40, 30], ids=["new step", "same step again"])
def test_a_save_that_fails_anywhere_leaves_the_earlier_checkpoints_as_they_were(
    step: int,
    base: Path,
    disk_error: int,
    failing_disk: type[FailingDisk],
    read_tree: Callable[[Path], dict[str, bytes]],
) -> None:
    num_failed = num_saved = 0
    for failing in range(num_operations(base, step, failing_disk)):
        place = copy_of(base, "failing")
        before = read_tree(place / "checkpoints")
        disk = failing_disk(once(disk_error, failing))
        run = Run.open(place, disk=disk)
        with run.lock():
            error = None
            try:
                saved = run.save_checkpoint(step, NEWER, {})
            except StorageError as raised:
                error = raised
            if error is not None:
                num_failed += 1
                assert WORDS[disk_error] in error.message
                assert error.fix
                assert read_tree(place / "checkpoints") == before
            else:
                # The new one was whole already: only an old one could not be removed, at first or
                # at all.
                num_saved += 1
                assert step == 30 or "could not be removed" in saved.notices[0]
                assert run.checkpoint(step).read("model.safetensors") == b"newer"
            # The disk works again.
            assert run.save_checkpoint(50, FILES, {"step": 50}).notices == ()
            newest, damaged = run.newest_checkpoint()
        assert newest is not None
        assert newest.step == 50
        assert damaged == ()
        assert not [name for name in read_tree(place) if ".tmp" in name or ".old" in name]
    assert num_failed >= 15
    assert num_saved >= 5


def test_a_disk_that_stays_broken_costs_nothing_that_was_saved(
    base: Path,
    disk_error: int,
    failing_disk: type[FailingDisk],
    read_tree: Callable[[Path], dict[str, bytes]],
) -> None:
    for failing in range(15):
        place = copy_of(base, "failing")
        before = read_tree(place / "checkpoints")
        disk = failing_disk(from_then_on(disk_error, failing))
        run = Run.open(place, disk=disk)
        with run.lock():
            for step in (40, 50, 60):
                with pytest.raises(StorageError, match=WORDS[disk_error]):
                    run.save_checkpoint(step, FILES, {"step": step})
            after = read_tree(place / "checkpoints")
        assert {name: after.get(name) for name in before} == before
        newest, damaged = Run.open(place).newest_checkpoint()
        assert newest is not None
        assert (newest.step, damaged) == (30, ())


def test_what_could_not_be_flushed_is_dropped_and_never_flushed_again(
    base: Path, failing_disk: type[FailingDisk]
) -> None:
    flushes = 0

    def fails(_index: int, kind: str) -> int | None:
        nonlocal flushes
        flushes += kind == "fsync"
        return errno.EIO if kind == "fsync" and flushes == 4 else None

    disk = failing_disk(fails)
    run = Run.open(base, disk=disk)
    with run.lock():
        with pytest.raises(StorageError, match="input/output error"):
            run.save_checkpoint(40, FILES, {})
        assert flushes == 4
        first = set(disk.created)
        assert not any(path.exists() for path in first)
        run.save_checkpoint(40, FILES, {})
    second = set(disk.created) - first
    assert second
    assert not {path.parent for path in first} & {path.parent for path in second}


def test_a_disk_that_gives_back_other_bytes_is_found_before_old_checkpoints_go(
    base: Path,
    failing_disk: type[FailingDisk],
    read_tree: Callable[[Path], dict[str, bytes]],
) -> None:
    before = read_tree(base / "checkpoints")
    run = Run.open(base, disk=failing_disk(corrupts=True))
    with run.lock(), pytest.raises(StorageError, match="gives back something else"):
        run.save_checkpoint(40, FILES, {})
    assert read_tree(base / "checkpoints") == before


def test_a_run_that_is_deleted_while_it_trains_is_made_again_once(
    base: Path, failing_disk: type[FailingDisk]
) -> None:
    run = Run.open(base, disk=failing_disk())
    with run.lock():
        run.metrics.append({"step": 31})
        shutil.rmtree(base)
        run.metrics.append({"step": 32})
        saved = run.save_checkpoint(40, FILES, {"step": 40})
        assert "was deleted during the training" in saved.notices[0]
        run.metrics.append({"step": 41})
        assert run.save_checkpoint(50, FILES, {}).notices == ()

        again = Run.open(base)
        assert again.text("config") == "seed = 0\n"
        assert again.checkpoint_steps() == (40, 50)
        # Nothing of the log was lost: the file was still open.
        assert [record["step"] for record in again.metrics.read()] == [10, 20, 30, 31, 32, 41]
        assert again.checkpoint(40).metrics_offset < again.checkpoint(50).metrics_offset

        shutil.rmtree(base)
        with pytest.raises(StorageError, match="twice"):
            run.save_checkpoint(60, FILES, {})


def test_a_deleted_run_whose_place_is_taken_by_a_file_says_so(
    base: Path, failing_disk: type[FailingDisk]
) -> None:
    run = Run.open(base, disk=failing_disk())
    with run.lock():
        shutil.rmtree(base)
        base.write_text("a file")
        with pytest.raises(StorageError, match="cannot make the folder"):
            run.save_checkpoint(40, FILES, {})
        base.unlink()


def test_a_full_disk_leaves_no_half_line_in_the_log(
    tmp_path: Path, failing_disk: type[FailingDisk]
) -> None:
    full = False
    disk = failing_disk(
        lambda _index, kind: errno.ENOSPC if full and kind in ("write", "truncate") else None
    )
    run = Run.create(tmp_path / "run", texts={"config": ""}, disk=disk)
    run.metrics.append({"step": 1})
    full = True
    for _ in range(2):
        with pytest.raises(StorageError, match="the disk is full"):
            run.metrics.append({"step": 2})
    assert run.metrics.read() == [{"step": 1}]
    full = False
    run.metrics.append({"step": 3})
    assert run.metrics.read() == [{"step": 1}, {"step": 3}]


# ---- Real disks ----------------------------------------------------------------------------------


def on_a_small_disk(place: Path, options: str, what: str, **environment: str) -> dict[str, Any]:
    """What tests/faults/on_disk.py says, run on a disk in memory of its own."""
    place.mkdir()
    script = 'mount -t tmpfs -o "$1" small "$2" || exit 77; exec "$3" "$4" "$2" "$5"'
    program = (sys.executable, HERE / "on_disk.py", what)
    child = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", options, place, *program],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=60,
        check=False,
    )
    if child.returncode == 77 or "unshare" in child.stderr:
        pytest.skip(f"this machine lets us mount nothing: {child.stderr.strip()}")
    assert child.returncode == 0, child.stderr
    found: dict[str, Any] = json.loads(child.stdout)
    return found


def test_a_really_full_disk_keeps_the_last_checkpoint_that_fitted(tmp_path: Path) -> None:
    found = on_a_small_disk(tmp_path / "disk", "size=3m", "fill")
    assert len(found["errors"]) == 3
    assert all("the disk is full" in error for error in found["errors"])
    assert (found["newest"], found["bytes"]) == (30, 1_600_000)
    assert found["damaged"] == []
    # The half of a checkpoint that did fit is gone.
    assert found["entries"] == ["step-000020", "step-000030"]


def test_a_disk_without_room_for_one_more_file_says_that(tmp_path: Path) -> None:
    found = on_a_small_disk(tmp_path / "disk", "size=30m,nr_inodes=40", "files")
    assert len(found["errors"]) == 3
    assert all("no inodes left" in error for error in found["errors"])
    assert found["newest"] == 10
    assert found["entries"] == ["step-000010"]


def test_a_read_only_disk_can_be_read_but_not_worked_on(tmp_path: Path) -> None:
    found = on_a_small_disk(tmp_path / "disk", "size=30m", "read-only")
    assert len(found["errors"]) == 1
    assert "the disk is read-only" in found["errors"][0]
    assert (found["newest"], found["damaged"]) == (10, [])


def test_nothing_passes_through_the_temporary_folder(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "does not exist")
    found = on_a_small_disk(
        tmp_path / "disk", "size=30m", "save", TMPDIR=nowhere, TEMP=nowhere, TMP=nowhere
    )
    assert found["errors"] == []
    assert found["newest"] == 20


# Of one save: fsync is metrics, timing, model, state, manifest, their folder, the folder above it;
# write is model, state, manifest.
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        *((f"fsync:error=EIO:when={call}", "input/output error") for call in (1, 3, 5, 6, 7)),
        *((f"write:error=ENOSPC:when={call}", "the disk is full") for call in (1, 2, 3)),
        ("write:error=EDQUOT:when=1", "quota"),
        ("fsync:error=EDQUOT:when=4", "quota"),
        ("rename:error=EROFS:when=1", "read-only"),
        ("mkdir:error=EACCES:when=1", "permission denied"),
    ],
)
def test_an_error_from_the_kernel_itself_is_told_and_costs_nothing(
    fault: str,
    words: str,
    tmp_path: Path,
    failing_disk: type[FailingDisk],
    read_tree: Callable[[Path], dict[str, bytes]],
) -> None:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    run = Run.create(tmp_path / "run", texts={"config": ""}, disk=failing_disk())
    with run.lock():
        run.save_checkpoint(10, FILES, {})
    before = read_tree(run.path / "checkpoints")
    call = fault.partition(":")[0]
    inject = ("-e", f"trace={call}", "-e", f"inject={fault}")
    program = (sys.executable, HERE / "on_disk.py", tmp_path, "save")
    child = subprocess.run(
        [strace, "-f", "-qq", "-o", os.devnull, *inject, *program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )
    if "ptrace" in child.stderr.lower():
        pytest.skip(f"this machine lets us trace nothing: {child.stderr.strip()}")
    assert child.returncode == 0, child.stderr
    found = json.loads(child.stdout)
    assert words in found["errors"][0]
    assert read_tree(run.path / "checkpoints") == before
