"""Training as a whole: it learns, and however it is stopped, it ends with the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import vidi
from vidi import storage
from vidi.augment import ImageRandom
from vidi.batch import Batch
from vidi.errors import Interrupted, MismatchError, StorageError, TrainingError
from vidi.run import Run
from vidi.train import Progress
from vidi.winograd import has_winograd

SETTINGS: dict[str, object] = {
    "train.epochs": 3,
    "model.name": "mlp",
    "train.batch_size": 64,
    "machine.threads": 1,
    "machine.channels_last": True,
}


def train(out: Path, *, show: Any = None, data: Any = "digits", **changes: object) -> Run:
    settings = {**SETTINGS, **{key.replace("__", "."): value for key, value in changes.items()}}
    return vidi.train(data, settings=settings, out=out, show=show)


def digest(run: Path) -> dict[str, str]:
    """SHA-256 of everything in a run that must not depend on how often it was stopped."""
    newest = max((run / "checkpoints").iterdir())
    files = [*newest.iterdir(), run / "metrics.jsonl", run / "plan.json"]
    files += [*(run / "predictions").iterdir(), *(run / "evaluation").iterdir()]
    return {
        str(path.relative_to(run)): hashlib.sha256(_stable(path)).hexdigest()
        for path in files
        if path.name != "manifest.json"
    }


def _stable(path: Path) -> bytes:
    """`state.json` says where the log of seconds ended, which differs between any two runs."""
    if path.name == "state.json":
        state = json.loads(path.read_text())
        del state["timing_offset"]
        return json.dumps(state).encode()
    return path.read_bytes()


def stop_at(step: int, phase: str = "train") -> Callable[[object], None]:
    """A display that sends Ctrl-C when it is shown that step."""

    def show(what: object) -> None:
        if isinstance(what, Progress) and (what.step, what.phase) == (step, phase):
            os.kill(os.getpid(), signal.SIGINT)

    return show


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A run that was never stopped; made once for each set of settings."""
    made: dict[str, Path] = {}

    def run(**changes: object) -> Path:
        key = json.dumps(changes, sort_keys=True)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("whole") / "run"
            train(made[key], **changes)
        return made[key]

    return run


CASES: Mapping[str, dict[str, object]] = {
    "dropout": {},
    "two loader threads": {"machine__loader_threads": 2},
    "bfloat16": {"machine__precision": "bfloat16"},
    "batch norm, average, accumulation": {
        "model__name": "small_cnn", "train__ema_decay": 0.99, "train__accumulate": 2,
        "train__epochs": 2,
    },
    "own convolutions": {
        "model__name": "small_cnn", "machine__precision": "bfloat16", "machine__winograd": True,
        "train__epochs": 2,
    },
    "adamw, mixup, erasing": {
        "train__optimizer": "adamw", "augment__mixup_alpha": 0.2,
        "augment__erase_probability": 0.25, "augment__horizontal_flip": "random",
    },
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_stopped_run_continues_as_if_it_had_not_stopped(
    case: str, whole: Callable[..., Path], tmp_path: Path
) -> None:
    changes = CASES[case]
    if changes.get("machine__winograd") and not has_winograd():
        pytest.skip("no convolutions of vidi's own on this machine")
    out = tmp_path / "run"
    # In the middle of the first epoch, twice in the second, and while it validates after it.
    for moment in ((7, "train"), (25, "train"), (31, "train"), (38, "validate")):
        with pytest.raises(Interrupted) as stopped:
            train(out, show=stop_at(*moment), **changes)
        assert stopped.value.status == 130
        assert f"step {moment[0]}" in stopped.value.message
    train(out, **changes)
    assert digest(out) == digest(whole(**changes))


def test_loader_threads_change_nothing(whole: Callable[..., Path]) -> None:
    one, two = digest(whole()), digest(whole(machine__loader_threads=2))
    assert one.pop("plan.json") != two.pop("plan.json")
    assert one == two


def unchanged(batch: Batch, rng: ImageRandom, done: float) -> Batch:
    """Somebody's own transform: batches are then augmented one at a time."""
    del rng, done
    return batch


def test_batches_augmented_together_are_those_augmented_one_at_a_time(tmp_path: Path) -> None:
    logs = []
    for transforms in ((), (unchanged,)):
        out = tmp_path / f"{len(transforms)}"
        settings = {**SETTINGS, "augment.erase_probability": 0.25, "augment.mixup_alpha": 0.2}
        # Its strength grows with each group of batches, not with each batch.
        settings["augment.policy"] = "none"
        vidi.train("digits", settings=settings, out=out, transforms=transforms)
        logs.append((out / "metrics.jsonl").read_bytes())
    assert logs[0] == logs[1]


def child(out: Path, **changes: object) -> list[str]:
    """The command of a training in a process of its own, that starts quickly and has many saves."""
    words = [sys.executable, "-m", "vidi", "train", "digits", "--out", str(out)]
    settings = {**SETTINGS, "checkpoint.every_s": 0.05, **changes}
    for name, value in settings.items():
        words += ["--set", f"{name}={json.dumps(value)}"]
    return words


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves_first_and_the_same_command_continues(
    signal_number: signal.Signals, tmp_path: Path
) -> None:
    command = child(tmp_path / "run", **{"train.epochs": 400})
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    _wait_for(lambda: any((tmp_path / "run" / "checkpoints").glob("step-*")))
    process.send_signal(signal_number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + signal_number
    assert "same command" in err
    steps = Run.open(tmp_path / "run").checkpoint_steps()
    assert f"step {steps[-1]} of" in err


def test_a_second_signal_stops_at_once_and_leaves_a_valid_run(tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(child(out, **{"train.epochs": 400}), stderr=subprocess.DEVNULL)
    _wait_for(lambda: any((out / "checkpoints").glob("step-*")))
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    checkpoint, damaged = Run.open(out).newest_checkpoint()
    assert checkpoint is not None
    assert damaged == ()


@pytest.mark.slow
def test_kills_at_random_moments_change_nothing(tmp_path: Path) -> None:
    """SIGKILL at random, saves included; each run is continued until it ends by itself.

    40 kills, or as many as `make soak KILLS=1000` says.
    """
    epochs: dict[str, object] = {"train.epochs": 60}
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    subprocess.run(child(straight, **epochs), check=True, capture_output=True)
    rng = random.Random(5)
    wanted, kills = int(os.environ.get("VIDI_KILLS", "40")), 0
    while kills < wanted:
        shutil.rmtree(killed, ignore_errors=True)
        kills += _killed_until_done(killed, rng, wanted - kills, epochs)
        assert digest(killed) == digest(straight), f"after {kills} kills"


def _killed_until_done(
    killed: Path, rng: random.Random, most: int, epochs: dict[str, object]
) -> int:
    """How often a run was killed, `most` times at most, before it came to its end."""
    kills = 0
    while True:
        before = _newest(killed)
        process = subprocess.Popen(child(killed, **epochs), stderr=subprocess.PIPE, text=True)
        if kills >= most:
            pass
        elif kills % 4 == 3:
            # While it starts; the others come soon after its first save.
            time.sleep(rng.uniform(0.2, 2.0))
        else:
            while process.poll() is None and _newest(killed) == before:
                time.sleep(0.01)
            time.sleep(rng.uniform(0.0, 0.4))
        if kills < most and process.poll() is None:
            process.kill()
            process.communicate()
            kills += 1
            continue
        _, err = process.communicate()
        assert process.returncode == 0, err
        return kills


def _newest(run: Path) -> str:
    return max((path.name for path in (run / "checkpoints").glob("step-*")), default="")


def _wait_for(condition: Callable[[], bool], limit_s: float = 60.0) -> None:
    started_at = time.monotonic()
    while not condition():
        assert time.monotonic() - started_at < limit_s, "waited too long"
        time.sleep(0.02)


# What a continued run refuses.


def test_other_settings_are_refused_by_name_unless_forced(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(out, show=stop_at(5))
    with pytest.raises(MismatchError) as refused:
        train(out, train__learning_rate=0.5, train__batch_size=32)
    assert "train.batch_size" in refused.value.message
    assert "train.learning_rate" in refused.value.message
    settings = {**SETTINGS, "train.learning_rate": 0.5}
    run = vidi.train("digits", settings=settings, out=out, force_resume=True)
    state = run.newest_checkpoint()[0]
    assert state is not None
    assert any("by force" in note for note in state.state["notes"])


def test_more_epochs_are_allowed_and_noted(tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(out, train__epochs=1)
    run = train(out, train__epochs=2)
    checkpoint, _ = run.newest_checkpoint()
    assert checkpoint is not None
    assert checkpoint.step == 38
    assert any("lengthened" in note for note in checkpoint.state["notes"])


def test_threads_may_change(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(out, show=stop_at(5))
    train(out, machine__loader_threads=2)


@pytest.mark.parametrize("change", ["edited", "added", "removed", "class renamed"])
def test_changed_data_are_refused(
    change: str, tmp_path: Path, picture_folder: Callable[..., Path]
) -> None:
    photos = picture_folder("photos", a=40, b=40)
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(out, data=photos, show=stop_at(1))
    first = photos / "a" / "000.jpg"
    if change == "edited":
        # Another picture of the very same size.
        other = bytearray(first.read_bytes())
        other[-40:-20] = bytes(20)
        first.write_bytes(bytes(other))
    elif change == "added":
        shutil.copy(first, photos / "a" / "new.jpg")
    elif change == "removed":
        first.unlink()
    else:
        (photos / "a").rename(photos / "c")
    with pytest.raises(MismatchError, match="classes" if "class" in change else "data"):
        train(out, data=photos)


def test_data_in_another_place_are_the_same_data(
    tmp_path: Path, picture_folder: Callable[..., Path]
) -> None:
    photos = picture_folder("photos", a=40, b=40)
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(out, data=photos, show=stop_at(1))
    moved = tmp_path / "elsewhere" / "photos"
    moved.parent.mkdir()
    shutil.copytree(photos, moved, copy_function=shutil.copyfile)
    shutil.rmtree(photos)
    train(out, data=moved)


def test_the_data_are_only_read(tmp_path: Path, picture_folder: Callable[..., Path]) -> None:
    photos = picture_folder("photos", a=40, b=40)
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in photos.rglob("*")}
    train(tmp_path / "run", data=photos)
    assert {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in photos.rglob("*")} == before


# Damage and full disks.


def test_a_damaged_newest_checkpoint_is_passed_over(
    whole: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    for step in (10, 25):
        with pytest.raises(Interrupted):
            train(out, show=stop_at(step))
    newest = max((out / "checkpoints").glob("step-*"))
    weights = newest / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    weights.write_bytes(bytes(damaged))
    said: list[object] = []
    train(out, show=said.append)
    assert any("damaged, passed over" in line for line in said if isinstance(line, str))
    ours, straight = digest(out), digest(whole())
    state = "checkpoints/step-000057/state.json"
    # The state keeps a note of what happened; everything that was learnt is equal.
    assert ours.pop(state) != straight.pop(state)
    assert ours == straight


def test_a_disk_that_is_full_stops_the_run_with_74_after_three_saves(tmp_path: Path) -> None:
    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    subprocess.run(child(tmp_path / "fill the cache"), check=True, capture_output=True)
    done = subprocess.run(
        child(tmp_path / "run"), preexec_fn=limited, capture_output=True, text=True, check=False
    )
    assert done.returncode == 74, done.stderr
    assert "checkpoint not written" in done.stderr
    assert "Traceback" not in done.stderr


def test_one_failed_save_costs_nothing(
    whole: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = storage.write_folder, []

    def failing(path: Path, *rest: Any, **more: Any) -> Any:
        calls.append(path)
        if len(calls) == 2:
            raise StorageError("no space left on the disk")
        return write(path, *rest, **more)

    monkeypatch.setattr(storage, "write_folder", failing)
    said: list[str] = []

    def show(what: object) -> None:
        if isinstance(what, Progress):
            said.extend(what.notes)

    train(tmp_path / "run", show=show)
    assert any("no space left" in note for note in said)
    assert digest(tmp_path / "run") == digest(whole())


# Numbers that are not finite, and the user's own functions.


def test_a_step_with_a_bad_number_is_left_out_and_counted(tmp_path: Path) -> None:
    def poison(batch: Batch, rng: ImageRandom, done: float) -> Batch:
        del rng
        bad = batch.images.float()
        if 0.2 < done < 0.22:
            bad = bad * float("nan")
        return Batch(bad, batch.targets, batch.ids)

    run = vidi.train("digits", settings=SETTINGS, out=tmp_path / "run", transforms=(poison,))
    checkpoint, _ = run.newest_checkpoint()
    assert checkpoint is not None
    assert checkpoint.state["skipped_steps"] == 1
    assert any("not finite" in note for note in checkpoint.state["notes"])
    assert json.loads(run.read_evaluation("test"))["accuracy"] > 0.5


def test_a_run_that_diverges_stops_with_advice_and_a_finite_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="learning rate"):
        train(tmp_path / "run", train__learning_rate=1e20)
    checkpoints = list((tmp_path / "run" / "checkpoints").glob("step-*"))
    for folder in checkpoints:
        import safetensors.torch  # noqa: PLC0415

        tensors = safetensors.torch.load((folder / "model.safetensors").read_bytes())
        assert all(bool(torch.isfinite(t).all()) for t in tensors.values())


def test_an_error_in_the_users_own_function_keeps_what_was_learnt(tmp_path: Path) -> None:
    def broken(batch: Batch, rng: ImageRandom, done: float) -> Batch:
        del rng
        if done > 0.3:
            raise ZeroDivisionError("mine")
        return batch

    with pytest.raises(ZeroDivisionError):
        vidi.train("digits", settings=SETTINGS, out=tmp_path / "run", transforms=(broken,))
    assert Run.open(tmp_path / "run").checkpoint_steps()[-1] == 18


def test_your_own_network_is_trained_and_has_to_be_given_again_to_predict(
    tmp_path: Path, picture_folder: Callable[..., Path]
) -> None:
    def tiny(num_classes: int) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, num_classes))

    run = vidi.train(
        "digits",
        settings={"train.epochs": 1, "machine.threads": 1},
        out=tmp_path / "run",
        model=tiny,
    )
    picture = (picture_folder("p", a=1) / "a" / "000.jpg").read_bytes()
    assert 0 <= vidi.load(run.path, model=tiny)(picture).probability <= 1
    with pytest.raises(vidi.VidiError, match="your own network"):
        vidi.load(run.path)


def test_early_stopping_stops_early_and_is_then_complete(tmp_path: Path) -> None:
    settings = {**SETTINGS, "train.epochs": 60, "train.patience_epochs": 4, "train.batch_size": 64}
    said: list[object] = []
    run = vidi.train("digits", settings=settings, out=tmp_path / "run", show=said.append)
    assert any("stopping early" in line for line in said if isinstance(line, str))
    steps = run.checkpoint_steps()
    vidi.train("digits", settings=settings, out=tmp_path / "run", show=said.append)
    assert any("already complete" in line for line in said if isinstance(line, str))
    assert run.checkpoint_steps() == steps


def test_what_is_predicted_equals_what_was_judged(
    tmp_path: Path, picture_folder: Callable[..., Path]
) -> None:
    """From bytes to probabilities, through training's evaluation and through the predictor."""
    photos = picture_folder("photos", px=23, a=30, b=30, c=30)
    run = train(tmp_path / "run", data=photos, model__name="small_cnn", data__image_px=16)
    judged = run.read_predictions("test")
    predictor = vidi.load(run.path)
    names = sorted(str(path.relative_to(photos)) for path in photos.rglob("*.jpg"))
    from vidi.data import open_dataset  # noqa: PLC0415

    dataset = open_dataset(photos)
    for number, probabilities in zip(judged["ids"], judged["probabilities"], strict=True):
        name = dataset.name_of(int(number))
        assert name in names
        ours = predictor.probabilities([(photos / name).read_bytes()])[0]
        assert abs(ours - probabilities).max() < 1e-5


@pytest.mark.slow
def test_minutes_are_kept_though_the_machine_is_slower_than_measured(tmp_path: Path) -> None:
    def dawdle(batch: Batch, rng: ImageRandom, done: float) -> Batch:
        del rng, done
        time.sleep(0.05)
        return batch

    started_at = time.monotonic()
    settings = {**SETTINGS, "train.minutes": 0.3}
    del settings["train.epochs"]
    run = vidi.train("digits", settings=settings, out=tmp_path / "run", transforms=(dawdle,))
    assert time.monotonic() - started_at < 0.3 * 60 * 1.1
    checkpoint, _ = run.newest_checkpoint()
    assert checkpoint is not None
    assert any(
        re.search("slower than planned: .* when its time does", note)
        for note in checkpoint.state["notes"]
    )
    # The schedule came to its end all the same.
    rates = [line["learning_rate"] for line in run.metrics.read() if line["kind"] == "train"]
    assert rates[-1] < 0.01 * max(rates)


@pytest.mark.parametrize(
    "ways",
    [{"data__store": "stream"}, {"data__store": "memory"}, {"data__build": "alongside"}],
    ids=lambda ways: str(*ways.values()),
)
def test_where_pixels_wait_changes_nothing_and_a_stop_neither(
    tmp_path: Path, picture_folder: Callable[..., Path], ways: dict[str, object]
) -> None:
    """Also with a file that cannot be decoded, which shows only on the way in some of them."""
    photos = picture_folder("photos", a=40, b=40)
    (photos / "a" / "007.jpg").write_bytes((photos / "a" / "007.jpg").read_bytes()[:400])
    changes = {"data__cache_dir": str(tmp_path / "cache"), "train__batch_size": 8, **ways}
    train(tmp_path / "whole", data=photos, **changes)
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(Interrupted):
        train(tmp_path / "stopped", data=photos, show=stop_at(5), **changes)
    run = train(tmp_path / "stopped", data=photos, **changes)
    assert digest(tmp_path / "whole") == digest(tmp_path / "stopped")
    facts = json.loads(run.text("facts"))["dataset"]
    assert facts["quarantined"] == {"TRUNCATED": 1}
    assert (
        sum(facts["counts"]["train"] + facts["counts"]["validation"]) + sum(facts["counts"]["test"])
        == 79
    )


@pytest.mark.parametrize("policy", ["light", "strong"])
def test_policies_mixing_and_balanced_draws_train_and_continue(
    tmp_path: Path, picture_folder: Callable[..., Path], policy: str
) -> None:
    """The same bytes through a stop with everything that draws random numbers switched on."""
    photos = picture_folder("photos", a=40, b=12)
    changes = {
        "augment__policy": policy,
        "augment__mixup_alpha": 0.2,
        "augment__cutmix_alpha": 1.0,
        "augment__erase_probability": 0.2,
        "train__sampling": "balanced",
        "train__batch_size": 8,
    }
    whole = train(tmp_path / "whole", data=photos, **changes)
    assert "asked for" in json.loads(whole.text("plan"))["reasons"]["augment.policy"]
    with pytest.raises(Interrupted):
        train(tmp_path / "stopped", data=photos, show=stop_at(6), **changes)
    train(tmp_path / "stopped", data=photos, **changes)
    assert digest(tmp_path / "whole") == digest(tmp_path / "stopped")


def test_weighted_draws_need_weights(tmp_path: Path) -> None:
    with pytest.raises(vidi.VidiError, match="no weights"):
        train(tmp_path / "run", train__sampling="weighted")


def test_the_weights_of_a_table_decide_how_often_images_come(
    tmp_path: Path, picture_folder: Callable[..., Path]
) -> None:
    photos = picture_folder("photos", a=40, b=40)
    rows = ["path,label,weight"]
    rows += [f"{path.relative_to(photos)},{path.parent.name},{3 if path.parent.name == 'a' else 1}"
             for path in sorted(photos.rglob("*.jpg"))]  # fmt: skip
    (photos / "rows.csv").write_text("\n".join(rows))
    run = train(tmp_path / "run", data=photos / "rows.csv", train__batch_size=8)
    plan = json.loads(run.text("plan"))
    assert plan["sampling"] == "weighted"
    assert plan["reasons"]["sampling"] == "the table has a column of weights"


def test_long_decoding_says_how_far_it_is(
    tmp_path: Path, picture_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["vidi.own_data"], "DECODING_SAID_EVERY_S", 0.0)
    said: list[object] = []
    photos = picture_folder("photos", a=20, b=20)
    changes = {"data__cache_dir": str(tmp_path / "cache"), "train__epochs": 1.0}
    train(tmp_path / "run", data=photos, show=said.append, **changes)
    assert "decoded 40 of 40 images" in said
