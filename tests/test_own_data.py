"""Whatever looks at a run again sees the images that it was trained on, or says that it does not.

The data are as people have them: copies of pictures, which the audit puts on one side of the cuts,
and a file that is broken.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vidi
from vidi.data import Audit
from vidi.errors import DataError, MismatchError, UsageError
from vidi.run import Run

SETTINGS = {"train.epochs": 1, "model.name": "small_cnn", "machine.threads": 1}


def draw(path: Path, seed: int, channel: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 200, (5, 5, 3), dtype=np.uint8)
    pixels[:, :, channel] += 55
    Image.fromarray(pixels).resize((16, 16), Image.Resampling.BICUBIC).save(path, quality=95)


def mixed(root: Path) -> Path:
    """Without split folders; a third of the pictures twice, and one file cut in half."""
    for channel, label in enumerate(("red", "green", "blue")):
        for number in range(24):
            draw(root / label / f"{number:02}.jpg", 100 * channel + number, channel)
        for number in range(8):
            shutil.copyfile(root / label / f"{number:02}.jpg", root / label / f"{number:02} b.jpg")
    whole = (root / "red/20.jpg").read_bytes()
    (root / "red/broken.jpg").write_bytes(whole[: len(whole) // 2])
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("own")
    return vidi.train(mixed(root / "photos"), settings=SETTINGS, out=root / "run")


@pytest.fixture
def run(trained: Run, tmp_path: Path) -> Run:
    """A copy of its own: commands write into a run."""
    return Run.open(shutil.copytree(trained.path, tmp_path / "run"))


def photos_of(trained: Run) -> Path:
    return trained.path.parent / "photos"


def test_the_data_of_these_tests_are_cut_anew_by_what_the_audit_found(trained: Run) -> None:
    found = Audit.from_json(trained.text("audit"))
    assert found.recut
    assert len(found.same) == 24
    assert found.quarantined == {"TRUNCATED": 1}
    uncut = vidi.train(
        photos_of(trained), settings=SETTINGS | {"data.build": "alongside"},
        out=trained.path.parent / "alongside",
    )  # fmt: skip
    before = uncut.read_predictions("test")["ids"]
    assert not np.array_equal(before, trained.read_predictions("test")["ids"])


def test_a_run_with_copies_and_a_broken_file_is_judged_again_as_before(run: Run) -> None:
    before = run.read_predictions("test")
    vidi.evaluate(run)
    after = run.read_predictions("test")
    assert np.array_equal(before["ids"], after["ids"])
    assert np.array_equal(before["probabilities"], after["probabilities"])


def test_a_run_with_copies_and_a_broken_file_is_exported(run: Run) -> None:
    bundle = vidi.export(run)
    about = bundle.about
    assert about.parity.n == len(run.read_predictions("validation")["ids"])
    assert about.parity.label_agreement == 1.0


def test_a_run_with_copies_and_a_broken_file_has_suspects(run: Run, trained: Run) -> None:
    for split in ("validation", "test"):
        arrays = run.read_predictions(split)
        # A model that is sure of the wrong class of everything: all of them are in doubt.
        arrays["probabilities"][:] = 0.01
        arrays["probabilities"][np.arange(len(arrays["ids"])), (arrays["labels"] + 1) % 3] = 0.98
        run.write_predictions(split, arrays)
    doubts = vidi.suspects(run)
    assert doubts
    for doubt in doubts:
        assert (photos_of(trained) / doubt.file).is_file()
        assert Path(doubt.file).parent.name == doubt.label
        assert doubt.split in ("validation", "test")


def test_a_run_with_copies_and_a_broken_file_is_explained(run: Run) -> None:
    vidi.report(run, explain=True)
    near = run.read_explained("test")
    held_out = set(run.read_predictions("test")["ids"].tolist())
    assert not held_out & set(near.get("near_ids", np.zeros(0)).ravel().tolist())
    assert set(near["map_ids"].tolist()) == held_out


def test_a_run_with_copies_and_a_broken_file_is_compared(run: Run, trained: Run) -> None:
    (comparison,) = vidi.compare(trained, run)
    assert comparison.n == len(run.read_predictions("test")["ids"])


def test_a_run_with_copies_and_a_broken_file_is_continued(run: Run, trained: Run) -> None:
    before = run.read_predictions("test")["ids"]
    vidi.train(photos_of(trained), settings=SETTINGS | {"train.epochs": 2}, out=run.path)
    assert np.array_equal(before, run.read_predictions("test")["ids"])


def test_runs_that_decode_in_other_ways_are_looked_at_again_too(
    trained: Run, tmp_path: Path
) -> None:
    for name, value in (("data.build", "alongside"), ("data.store", "stream")):
        run = vidi.train(
            photos_of(trained), settings=SETTINGS | {name: value}, out=tmp_path / value
        )
        n_evaluated = vidi.evaluate(run).n_evaluated
        assert n_evaluated == len(run.read_predictions("test")["ids"])
        vidi.suspects(run)
        vidi.report(run, explain=True)


def looks(run: Run, data: Path | str | None = None) -> dict[str, Callable[[], object]]:
    return {
        "evaluate": lambda: vidi.evaluate(run, data),
        "export": lambda: vidi.export(run, data=data),
        "suspects": lambda: vidi.suspects(run, data=data),
        "explain": lambda: vidi.report(run, explain=True, data=data),
    }


@pytest.mark.parametrize("what", ["evaluate", "export", "suspects", "explain"])
def test_data_that_have_moved_are_asked_for_and_then_taken(
    what: str, trained: Run, run: Run, tmp_path: Path
) -> None:
    moved = shutil.copytree(photos_of(trained), tmp_path / "photos")
    text = run.text("environment").replace(str(photos_of(trained)), str(tmp_path / "gone"))
    run.write_text("environment", text)
    with pytest.raises(DataError, match="not where they were in training") as refused:
        looks(run)[what]()
    assert "--data" in refused.value.fix or "vidi evaluate" in refused.value.fix
    looks(run, moved)[what]()


@pytest.mark.parametrize("what", ["evaluate", "export", "suspects", "explain"])
@pytest.mark.parametrize("change", ["edited", "added", "class"])
def test_data_that_have_changed_are_refused(
    what: str, change: str, trained: Run, run: Run, tmp_path: Path
) -> None:
    photos = shutil.copytree(photos_of(trained), tmp_path / "photos")
    run.write_text(
        "environment", run.text("environment").replace(str(photos_of(trained)), str(photos))
    )
    predictions = run.read_predictions("test")["probabilities"]
    if change == "edited":
        draw(photos / "red/03.jpg", 999, 0)
    elif change == "added":
        draw(photos / "red/new.jpg", 999, 0)
    else:
        (photos / "red").rename(photos / "crimson")
    with pytest.raises(MismatchError, match=r"is not what .* was trained on"):
        looks(run)[what]()
    assert np.array_equal(predictions, run.read_predictions("test")["probabilities"])


def test_a_name_that_stands_in_a_run_is_never_imported(
    trained: Run, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """J3: whoever made the run chose that name."""
    (tmp_path / "planted.py").write_text(
        "from pathlib import Path\n"
        f"Path({str(tmp_path / 'ran')!r}).touch()\n"
        "from vidi.data import open_dataset\n"
        "photos = 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    text = run.text("environment").replace(str(photos_of(trained)), "planted:photos")
    run.write_text("environment", text)
    for what, look in looks(run).items():
        with pytest.raises(UsageError, match="names in files are not imported") as refused:
            look()
        assert "planted:photos" in refused.value.fix, what
    assert not (tmp_path / "ran").exists()
    assert "planted" not in sys.modules


def test_folds_of_one_data_set_are_asked_for_by_config(trained: Run, tmp_path: Path) -> None:
    seen: list[int] = []
    runs = []
    for number in range(3):
        settings = SETTINGS | {"data.folds": 3, "data.fold": number + 1, "data.test_fraction": 0.0}
        run = vidi.train(photos_of(trained), settings=settings, out=tmp_path / str(number))
        seen += run.read_predictions("validation")["ids"].tolist()
        runs.append(run)
    # Every readable image is judged exactly once, by a network that has not seen it.
    assert len(seen) == len(set(seen)) == 96
    found = Audit.from_json(runs[0].text("audit"))
    for run in runs:
        held_out = set(run.read_predictions("validation")["ids"].tolist())
        for rows in found.same:
            assert len(held_out & set(rows)) in (0, len(rows))
    judged_in = {doubt.file for doubt in vidi.suspects(*runs)}
    assert judged_in <= {
        str(path.relative_to(photos_of(trained))) for path in photos_of(trained).rglob("*.jpg")
    }
