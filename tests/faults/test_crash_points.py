"""A kill or a power loss at every single file operation of saving, rotating and resuming."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vidi.run import Checkpoint, Run

if TYPE_CHECKING:
    from tests.faults.conftest import CrashDisk, DataLoss, FailingDisk, NameLoss, PowerLost

    Losses = list[tuple[DataLoss, NameLoss]]

CONFIG = {"config": "seed = 0\n", "plan": '{"steps": 60}\n'}

# (step, version, steps to keep): rotation drops 20, then the former best; 50 is saved twice.
SAVES = ((30, 1, {10}), (40, 1, {10}), (50, 1, {30}), (50, 2, {30}))


def files_of(step: int, version: int) -> dict[str, bytes]:
    return {
        "model.safetensors": f"weights {step} {version} ".encode() * 20,
        "optimizer.safetensors": f"momentum {step} {version} ".encode() * 30,
    }


def logged_steps(step: int) -> set[int]:
    """The steps that have a record once `step` is saved."""
    return set(range(5, step + 1, 5))


def save(run: Run, step: int, version: int, keep: set[int]) -> Checkpoint:
    logged_before = {record["step"] for record in run.metrics.read()}
    for logged in sorted(logged_steps(step) - logged_before):
        run.metrics.append({"step": logged, "loss": 1 / logged})
        run.timing.append({"step": logged, "seconds": 0.5})
    return run.save_checkpoint(step, files_of(step, version), {"version": version}, keep)


def start(path: Path, disk: FailingDisk) -> None:
    """A run with two checkpoints, of which 10 is the best."""
    run = Run.create(path, texts=CONFIG, disk=disk)
    with run.lock():
        save(run, 10, 1, set())
        save(run, 20, 1, {10})


def story(path: Path, disk: CrashDisk, done: list[tuple[int, int]]) -> None:
    """Saves with a crash in between; `done` holds those that returned."""
    run = Run.open(path, disk=disk)
    with run.lock():
        for step, version, keep in SAVES:
            save(run, step, version, keep)
            done.append((step, version))


def resumed(path: Path, disk: FailingDisk | CrashDisk) -> tuple[int, int]:
    """What a resume finds, after checking that all of it is whole."""
    run = Run.open(path, disk=disk)
    with run.lock():
        checkpoint, damaged = run.newest_checkpoint()
        assert checkpoint is not None
        assert damaged == ()
        run.rewind(checkpoint)
        # No older one is half-removed.
        assert all(run.checkpoint(step).step == step for step in run.checkpoint_steps())
        version = checkpoint.state["version"]
        expected = files_of(checkpoint.step, version)
        assert {name: checkpoint.read(name) for name in checkpoint.names} == expected
        steps = sorted(logged_steps(checkpoint.step))
        assert [record["step"] for record in run.metrics.read()] == steps
        assert [record["step"] for record in run.timing.read()] == steps
    leftovers = [entry for entry in path.rglob("*") if entry.name.endswith((".tmp", ".old"))]
    assert leftovers == []
    assert Run.open(path).text("config") == CONFIG["config"]
    return checkpoint.step, version


def crashed(
    base: Path, stop_after: int, crash_disk: type[CrashDisk], power_lost: type[PowerLost]
) -> tuple[CrashDisk, list[tuple[int, int]]]:
    """The story, stopped after so many operations, in a fresh copy of `base`."""
    place = base.with_name("dying")
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(base, place)
    disk = crash_disk(place, stop_after=stop_after)
    done = [(20, 1)]
    with pytest.raises(power_lost):
        story(place, disk, done)
    return disk, done


def all_operations(base: Path, crash_disk: type[CrashDisk]) -> list[str]:
    place = base.with_name("whole")
    shutil.copytree(base, place)
    disk = crash_disk(place)
    story(place, disk, [])
    return disk.operations


def test_a_power_loss_after_any_operation_leaves_the_old_checkpoint_or_the_new_one(
    tmp_path: Path,
    crash_disk: type[CrashDisk],
    failing_disk: type[FailingDisk],
    power_lost: type[PowerLost],
    losses: Losses,
) -> None:
    base = tmp_path / "base"
    start(base, failing_disk())
    operations = all_operations(base, crash_disk)
    order = [(20, 1), *((step, version) for step, version, _keep in SAVES)]
    outcomes: dict[tuple[int, int], int] = dict.fromkeys(order, 0)
    numbers = itertools.count()

    for stop_after in range(len(operations)):
        disk, done = crashed(base, stop_after, crash_disk, power_lost)
        allowed = (done[-1], order[order.index(done[-1]) + 1])
        seen = set()
        for data, names in losses:
            fingerprint = disk.fingerprint(data, names)
            if fingerprint in seen:
                continue
            seen.add(fingerprint)
            left = tmp_path / f"left{next(numbers)}"
            disk.leave(left, data, names)
            found = resumed(left, failing_disk())
            where = f"after {stop_after}: {operations[:stop_after][-3:]}, {data=}, {names=}"
            assert found in allowed, where
            outcomes[found] += 1
            shutil.rmtree(left)

    assert len(operations) > 100
    assert sum(outcomes.values()) > 400
    # Each save was seen to take effect before it returned, or the test proves nothing.
    assert all(outcomes.values()), outcomes


def test_a_kill_while_resuming_after_a_kill_changes_nothing(
    tmp_path: Path,
    crash_disk: type[CrashDisk],
    failing_disk: type[FailingDisk],
    power_lost: type[PowerLost],
) -> None:
    base = tmp_path / "base"
    start(base, failing_disk())
    num_operations = len(all_operations(base, crash_disk))
    num_kills = 0

    for stop_after in range(0, num_operations, 6):
        disk, _done = crashed(base, stop_after, crash_disk, power_lost)
        disk.leave(tmp_path / "left", "kept", "kept")
        shutil.copytree(tmp_path / "left", tmp_path / "once")
        expected = resumed(tmp_path / "once", failing_disk())
        shutil.rmtree(tmp_path / "once")

        for stop_resume_after in itertools.count():
            again = tmp_path / "again"
            shutil.copytree(tmp_path / "left", again)
            dying = crash_disk(again, stop_after=stop_resume_after)
            try:
                resumed(again, dying)
            except power_lost:
                num_kills += 1
                dying.leave(tmp_path / "left twice", "lost", "lost")
                assert resumed(tmp_path / "left twice", failing_disk()) == expected
                shutil.rmtree(tmp_path / "left twice")
                shutil.rmtree(again)
            else:
                shutil.rmtree(again)
                break
        shutil.rmtree(tmp_path / "left")

    assert num_kills > 100


def test_a_creation_stopped_after_any_operation_is_no_run_or_a_whole_one(
    tmp_path: Path,
    crash_disk: type[CrashDisk],
    failing_disk: type[FailingDisk],
    power_lost: type[PowerLost],
    losses: Losses,
) -> None:
    num_begun = num_whole = 0
    seen = set()
    for stop_after in itertools.count():
        place = tmp_path / f"place{stop_after}"
        place.mkdir()
        disk = crash_disk(place, stop_after=stop_after)
        try:
            Run.create(place / "run", texts=CONFIG, disk=disk)
        except power_lost:
            pass
        else:
            break
        for index, (data, names) in enumerate(losses):
            if (fingerprint := disk.fingerprint(data, names)) in seen:
                continue
            seen.add(fingerprint)
            left = tmp_path / f"left{stop_after}-{index}"
            disk.leave(left, data, names)
            if Run.exists(left / "run"):
                num_whole += 1
            else:
                num_begun += 1
                Run.create(left / "run", texts=CONFIG, disk=failing_disk())
            assert Run.open(left / "run").text("plan") == CONFIG["plan"]
    assert stop_after > 20
    assert num_begun > 30
    assert num_whole > 0


@pytest.mark.parametrize("write", ["report", "evaluation", "predictions", "config"])
def test_a_result_that_is_replaced_is_the_old_or_the_new_one_after_any_power_loss(
    write: str,
    tmp_path: Path,
    crash_disk: type[CrashDisk],
    failing_disk: type[FailingDisk],
    power_lost: type[PowerLost],
    losses: Losses,
    read_tree: Callable[[Path], dict[str, bytes]],
) -> None:
    def put(run: Run, text: str) -> None:
        match write:
            case "report":
                run.write_report(text)
            case "evaluation":
                run.write_evaluation("test", text)
            case "predictions":
                numpy: Any = pytest.importorskip("numpy")
                run.write_predictions("test", {"text": numpy.array([text])})
            case "config":
                run.write_text("config", text)

    base = tmp_path / "base"
    put(Run.create(base, texts=CONFIG, disk=failing_disk()), "old" * 100)
    old = read_tree(base)
    shutil.copytree(base, tmp_path / "new")
    put(Run.open(tmp_path / "new", disk=failing_disk()), "new" * 100)
    new = read_tree(tmp_path / "new")
    assert old != new

    seen = set()
    for stop_after in itertools.count():
        place = tmp_path / f"place{stop_after}"
        shutil.copytree(base, place)
        disk = crash_disk(place, stop_after=stop_after)
        try:
            put(Run.open(place, disk=disk), "new" * 100)
        except power_lost:
            finished = False
        else:
            finished = True
        for index, (data, names) in enumerate(losses):
            left = tmp_path / f"left{stop_after}-{index}"
            disk.leave(left, data, names)
            found = {
                name: content
                for name, content in read_tree(left).items()
                if not name.endswith(".tmp")
            }
            assert found == new if finished else found in (old, new)
            seen.add("new" if found == new else "old")
        if finished:
            break
    assert seen == {"old", "new"}
    assert stop_after >= 5


def test_a_power_loss_while_a_report_is_written_leaves_the_old_page_or_the_new_one(
    tmp_path: Path,
    crash_disk: type[CrashDisk],
    failing_disk: type[FailingDisk],
    power_lost: type[PowerLost],
    losses: Losses,
) -> None:
    """FAULTS.md L8."""
    base = tmp_path / "base"
    start(base, failing_disk())
    old, new = "<p>old</p>" * 50, "<p>new</p>" * 70
    Run.open(base).write_report(old)
    whole = tmp_path / "whole"
    shutil.copytree(base, whole)
    counted = crash_disk(whole)
    Run.open(whole, disk=counted).write_report(new)
    found = set()
    for stop_after in range(len(counted.operations)):
        place = tmp_path / f"dying{stop_after}"
        shutil.copytree(base, place)
        disk = crash_disk(place, stop_after=stop_after)
        with pytest.raises(power_lost):
            Run.open(place, disk=disk).write_report(new)
        for number, (data, names) in enumerate(losses):
            left = tmp_path / f"left{stop_after}-{number}"
            disk.leave(left, data, names)
            page = (left / "report.html").read_text()
            assert page in (old, new), (counted.operations[:stop_after], data, names)
            found.add(page)
            shutil.rmtree(left)
    assert found == {old, new}
