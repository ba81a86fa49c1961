"""Runs against one another, and their doubtful labels, by the commands."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest

import vidi
from vidi.cli import main
from vidi.errors import MismatchError, UsageError
from vidi.run import Run


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    def run(*words: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", ["vidi", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        captured = capfd.readouterr()
        assert not left.value.code, captured.err
        return captured.out

    return run


@pytest.fixture(scope="module")
def other(shipped: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the same images that has learnt less."""
    settings = {"train.epochs": 1, "model.name": "mlp", "machine.threads": 1}
    out = tmp_path_factory.mktemp("other") / "run"
    return vidi.train(shipped.photos, settings=settings, out=out).path


def test_a_run_is_no_better_than_itself(command: Any, shipped: Any) -> None:
    (found,) = vidi.compare(shipped.run, shipped.run)
    assert found.verdict == "cannot tell"
    assert found.difference == 0.0
    assert found.images_to_tell is None
    assert "cannot tell" in command("compare", shipped.run, shipped.run)


def test_runs_are_compared_image_by_image(command: Any, shipped: Any, other: Path) -> None:
    (found,) = json.loads(command("compare", shipped.run, other, "--json"))
    ours, theirs = (
        json.loads(Run.open(run).read_evaluation("test")) for run in (shipped.run, other)
    )
    assert found["accuracy_a"] == ours["accuracy"]
    assert found["accuracy_b"] == theirs["accuracy"]
    assert found["n"] == ours["n_evaluated"]
    assert found["verdict"] in ("better", "worse", "cannot tell")
    if found["verdict"] == "cannot tell" and found["difference"]:
        assert str(found["images_to_tell"]) in found["sentence"].replace(",", "")


def test_other_images_and_one_run_are_refused(
    shipped: Any, picture_folder: Any, tmp_path: Path
) -> None:
    settings = {"train.epochs": 1, "model.name": "mlp", "machine.threads": 1}
    photos = picture_folder("other", red=12, green=12, blue=12)
    stranger = vidi.train(photos, settings=settings, out=tmp_path / "run")
    with pytest.raises(MismatchError, match="same images"):
        vidi.compare(shipped.run, stranger)
    photos = picture_folder("fewer", red=12, purple=12)
    fewer = vidi.train(photos, settings=settings, out=tmp_path / "fewer-run")
    with pytest.raises(MismatchError, match="missing: blue, green; new: purple") as refused:
        vidi.compare(shipped.run, fewer)
    assert "the same data" in refused.value.fix
    with pytest.raises(UsageError, match="alone"):
        vidi.compare(shipped.run)
    with pytest.raises(UsageError, match="same split"):
        vidi.compare(shipped.run, shipped.run, split="train")


def test_a_wrong_label_is_found_and_its_table_can_be_trained_on(
    command: Any, picture_folder: Any, tmp_path: Path
) -> None:
    photos = picture_folder("photos", red=40, green=40)
    for number in range(0, 40, 8):
        (photos / "red" / f"{number:03}.jpg").rename(photos / "green" / f"wrong{number:03}.jpg")
    settings = {"train.epochs": 15, "model.name": "mlp", "machine.threads": 1}
    runs = [
        vidi.train(
            photos, settings=settings | {"data.split_seed": seed}, out=tmp_path / f"run{seed}"
        ).path
        for seed in (0, 1, 2)
    ]
    found = [doubt for run in runs for doubt in vidi.suspects(run)]
    wrong = [doubt for doubt in found if "wrong" in doubt.file]
    assert wrong
    assert {(doubt.label, doubt.suggested) for doubt in wrong} == {("green", "red")}
    assert len(wrong) >= len(found) / 2, found
    table = tmp_path / "tables" / "suspects.csv"
    table.parent.mkdir()
    first = next(run for run in runs if vidi.suspects(run))
    command("suspects", first, "--csv", table)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["suggested"] for row in rows[: len(vidi.suspects(first))]] == [
        doubt.suggested for doubt in vidi.suspects(first)
    ]
    assert len({(table.parent / row["image"]).resolve(strict=True) for row in rows}) == 80
    # Corrected by hand, it is what the next run is trained on, split as before.
    for row in rows:
        row["label"] = "red" if "wrong" in row["image"] else row["label"]
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    again = vidi.train(table, settings=settings, out=tmp_path / "again")
    facts = json.loads(again.text("facts"))["dataset"]
    assert {name: sum(count) for name, count in facts["counts"].items()} == {
        name: sum(count)
        for name, count in json.loads(Run.open(first).text("facts"))["dataset"]["counts"].items()
    }
    assert [sum(of_class) for of_class in zip(*facts["counts"].values(), strict=True)] == [40, 40]
    assert json.loads(again.read_evaluation("test"))["accuracy"] == 1.0
    listed = json.loads(command("suspects", first, "--json"))
    assert [each["file"] for each in listed] == [doubt.file for doubt in vidi.suspects(first)]
