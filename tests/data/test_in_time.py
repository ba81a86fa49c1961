"""D28: a read that never comes back costs one image and the time limit, not the run."""

from __future__ import annotations

import sys
import threading
import time
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vidi
from vidi.config import DataConfig
from vidi.data import Dataset, open_dataset, open_store
from vidi.data.in_time import each_in_time
from vidi.errors import DataError
from vidi.image import PixelContract

CONTRACT = PixelContract(
    image_px=8,
    store_px=8,
    channels=3,
    resize="squash",
    interpolation="bilinear",
    mean=(0.0,) * 3,
    std=(1.0,) * 3,
)
LIMIT_S = 0.25
QUICK = {
    "data.read_limit_s": LIMIT_S,
    "train.epochs": 1,
    "model.name": "mlp",
    "machine.threads": 1,
}


class Stuck:
    """120 images, of which some are on a server that does not answer until the test is over."""

    classes = ("dark", "bright")

    def __init__(self, stuck: set[int]) -> None:
        self.labels: Sequence[Any] = [number % 2 for number in range(120)]
        self.stuck = stuck
        self.over = threading.Event()

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> np.ndarray[Any, Any]:
        if index in self.stuck:
            self.over.wait(60)
        rng = np.random.default_rng(index)
        return rng.integers(0, 100, (8, 8, 3), dtype=np.uint8) + np.uint8(100 * (index % 2))


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stuck]:
    """As the data `far:away`."""
    images = Stuck({7, 50})
    module = types.ModuleType("far")
    module.away = images  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "far", module)
    yield images
    images.over.set()


def opened(images: Stuck) -> Dataset:
    return open_dataset(images, DataConfig(read_limit_s=LIMIT_S))


@pytest.mark.parametrize("how", ["before", "alongside", "stream", "memory"])
def test_a_store_leaves_out_what_is_not_read_in_time(stuck: Stuck, how: str) -> None:
    place: Any = how if how in ("stream", "memory") else "disk"
    build: Any = "alongside" if how == "alongside" else "before"
    store = open_store(opened(stuck), CONTRACT, place=place, build=build)
    pixels, good = store.take(np.arange(120))
    store.close()
    assert np.flatnonzero(~good).tolist() == [7, 50]
    assert (pixels[[7, 50]] == CONTRACT.background).all()
    assert [(row.id, row.reason) for row in store.unreadable] == [(7, "TIMEOUT"), (50, "TIMEOUT")]
    assert np.array_equal(pixels[8], stuck.read(8))


def test_what_comes_back_too_late_changes_nothing(stuck: Stuck) -> None:
    store = open_store(opened(stuck), CONTRACT, place="memory")
    before = store.images.copy()
    stuck.over.set()
    for thread in threading.enumerate():
        if thread.name == "vidi-rows":
            thread.join(5)
    assert np.array_equal(before, store.images)


def test_a_run_goes_on_without_what_is_not_read_in_time(stuck: Stuck, tmp_path: Path) -> None:
    said: list[str] = []
    run = vidi.train(
        "far:away", settings=QUICK, out=tmp_path / "run", show=lambda line: said.append(str(line))
    )
    assert any("TIMEOUT" in line and "0.25 s" in line for line in said), said
    judged = {
        int(row) for split in ("validation", "test") for row in run.read_predictions(split)["ids"]
    }
    assert not judged & stuck.stuck


def test_an_audit_says_what_is_not_read_in_time(stuck: Stuck) -> None:
    found = vidi.audit("far:away", settings={"data.read_limit_s": LIMIT_S})
    assert found.quarantined == {"TIMEOUT": 2}
    assert found.num_used == 118
    assert stuck.stuck


def test_a_server_that_has_died_ends_in_words(stuck: Stuck) -> None:
    dataset = opened(stuck)
    stuck.stuck |= set(range(60, 120))
    with pytest.raises(DataError, match="were not read within") as refused:
        open_store(dataset, CONTRACT, place="memory")
    assert "data.read_limit_s" in refused.value.fix


def test_errors_waiting_and_stopping() -> None:
    done: list[int] = []
    late: list[int] = []
    assert each_in_time(done.append, range(5), late.append, limit_s=1.0)
    assert done == [0, 1, 2, 3, 4]

    def fails(row: int) -> None:
        raise ValueError(row)

    with pytest.raises(ValueError, match="3"):
        each_in_time(fails, [3], late.append, limit_s=1.0)
    # Waiting for leave to go on is not being late.
    pause = threading.Event()
    threading.Timer(0.5, pause.set).start()
    assert each_in_time(done.append, [9], late.append, limit_s=0.1, may_go=lambda: pause.wait(5))
    assert done[-1] == 9
    assert not each_in_time(done.append, [10], late.append, limit_s=0.1, may_go=lambda: False)
    assert done[-1] == 9
    assert not late


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that pass only where a test says so."""
    now = [0.0]
    monkeypatch.setattr("vidi.data.in_time.time", types.SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_what_is_done_between_two_rows_has_no_limit(clock: list[float]) -> None:
    def rows() -> Iterator[int]:
        for row in range(3):
            yield row
            clock[0] += 1000.0
            time.sleep(0.1)

    done: list[int] = []
    late: list[int] = []
    assert each_in_time(done.append, rows(), late.append, limit_s=0.04)
    assert (done, late) == ([0, 1, 2], [])


def test_the_rows_after_a_late_one_are_worked_on_once(clock: list[float]) -> None:
    comes_back = threading.Event()
    begun: list[int] = []
    back: list[threading.Thread] = []

    def work(row: int) -> None:
        begun.append(row)
        if row == 1:
            back.append(threading.current_thread())
            clock[0] += 1000.0
            comes_back.wait(60)

    late: list[int] = []
    assert each_in_time(work, iter(range(5)), late.append, limit_s=1.0)
    comes_back.set()
    back[0].join(60)
    assert not back[0].is_alive()
    assert begun == [0, 1, 2, 3, 4]
    assert late == [1]
