"""What a report shows beyond numbers: heat, a map, what is alike; and the data of each part."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vidi
from vidi import explain as explaining
from vidi.cli import main
from vidi.report import load, views_of
from vidi.run import Run


@pytest.fixture(scope="module")
def explained(shipped: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The small run, with one picture kept whatever it got wrong, explained."""
    path = shutil.copytree(shipped.run, tmp_path_factory.mktemp("explained") / "run")
    run = Run.open(path)
    ids = run.read_predictions("test")["ids"][:4]
    rng = np.random.default_rng(0)
    run.write_pictures(
        "test",
        {
            "ids": ids,
            "pixels": rng.integers(0, 256, (4, 20, 20, 3), dtype=np.uint8),
            "names": np.array([f"{i}.jpg" for i in range(4)]),
        },
    )
    vidi.report(run, explain=True)
    return run


def test_heat_map_and_neighbours_are_in_the_report(explained: Run) -> None:
    views = views_of(load(explained))
    items = views["mistakes"]["items"]
    assert len(items) == 4
    assert all(item["heat"].startswith("data:image/png;base64,") for item in items)
    assert all(len(item["near"]) == explaining.NEIGHBOURS for item in items)
    points = views["map"]["points"]
    assert len(points) == len(explained.read_predictions("test")["ids"])
    assert all(-1 <= point["x"] <= 1 and -1 <= point["y"] <= 1 for point in points)
    assert {point["id"] for point in points} == set(
        explained.read_predictions("test")["ids"].tolist()
    )
    assert explained.report_path.stat().st_size < 1 << 20


def test_neighbours_are_training_images(explained: Run) -> None:
    arrays = explained.read_explained("test")
    held_out = set(explained.read_predictions("test")["ids"].tolist())
    held_out |= set(explained.read_predictions("validation")["ids"].tolist())
    assert not held_out & set(arrays["near_ids"].ravel().tolist())


def test_what_is_covered_counts_where_there_are_no_maps() -> None:
    """A network that looks at one corner only: covering that corner costs all of its answer."""

    class Corner:
        outputs = ("logits",)

        def __call__(self, pixels: Any, outputs: Any) -> Any:
            del outputs
            seen = pixels[:, :, :4, :4].astype(np.float32).mean(axis=(1, 2, 3))
            return (np.stack([seen, np.zeros_like(seen)], axis=1),)

    pixels = np.full((2, 3, 14, 14), 250, np.uint8)
    heat = explaining._heat(Corner(), pixels)  # type: ignore[arg-type]
    assert heat.shape == (2, 7, 7)
    assert (heat[:, :2, :2] == 255).all()
    assert heat.sum() == heat[:, :2, :2].sum()


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """`command("show", run)`: exit code, output, errors."""

    def run(*words: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vidi", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        captured = capfd.readouterr()
        return int(left.value.code or 0), captured.out, captured.err

    return run


def test_each_part_is_shown_as_json(explained: Run, command: Command) -> None:
    status, names, _ = command("show", explained.path)
    assert status == 0
    assert {"summary", "mistakes", "suspects", "map", "trust"} <= set(names.split())
    for name in names.split():
        assert json.loads(command("show", explained.path, name, "--json")[1])
    status, _, error = command("show", explained.path, "mistake")
    assert status == 2
    assert "mistakes" in error


def test_pictures_are_no_text(explained: Run, command: Command) -> None:
    assert "base64" in command("show", explained.path, "mistakes", "--json")[1]
    status, told, _ = command("show", explained.path, "mistakes")
    assert status == 0
    assert "(a picture)" in told
    assert "base64" not in told


def test_doubts_of_a_model_that_guesses_say_little(
    explained: Run, command: Command, tmp_path: Path
) -> None:
    path = shutil.copytree(explained.path, tmp_path / "run")
    status, _, error = command("suspects", path)
    assert (status, "no better than" in error) == (0, False)
    run = Run.open(path)
    about = json.loads(run.read_evaluation("test"))
    run.write_evaluation("test", json.dumps(about | {"accuracy": about["majority_accuracy"]}))
    status, _, error = command("suspects", path)
    assert status == 0
    assert "no better than always naming the largest class" in error


def test_a_report_without_explanations_stays_as_it_was(shipped: Any) -> None:
    views = views_of(load(Run.open(shipped.run)))
    assert "map" not in views
    assert all(item["heat"] is None for item in views["mistakes"]["items"])
