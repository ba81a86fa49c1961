"""Pixels that are not there yet: decoded alongside, in memory, or each time; always the same."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vidi
from vidi.config import DataConfig
from vidi.data import Loader, PixelStore, open_dataset, open_store
from vidi.errors import DataError, MismatchError
from vidi.image import PixelContract, prepare
from vidi.plan import Build, Place

Make = Callable[[Path, dict[str, int]], Path]

CONTRACT = PixelContract(
    image_px=12,
    store_px=16,
    channels=3,
    resize="crop",
    interpolation="bilinear",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)
BAD = DataConfig(max_unreadable_fraction=0.2)
WAYS: list[tuple[Place, Build]] = [
    ("disk", "alongside"),
    ("memory", "before"),
    ("memory", "alongside"),
    ("device", "alongside"),
    ("stream", "before"),
]


@pytest.fixture
def root(tmp_path: Path, make_folder: Make) -> Path:
    """Of its 21 images, two cannot be decoded."""
    folder = make_folder(tmp_path / "d", {"a": 12, "b": 9})
    (folder / "a" / "003.jpg").write_bytes(b"")
    (folder / "b" / "001.jpg").write_bytes((folder / "b" / "001.jpg").read_bytes()[:300])
    return folder


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Decoding takes 50 ms; the times at which an image was begun."""
    began_at: list[float] = []

    def slowly(*arguments: Any, **more: Any) -> Any:
        began_at.append(time.perf_counter())
        time.sleep(0.05)
        return prepare(*arguments, **more)

    monkeypatch.setattr("vidi.image.prepare", slowly)
    return began_at


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images a block, so that a store of a few images is built in several."""
    monkeypatch.setattr("vidi.data.filling.BLOCK_BYTES", 2 * 16 * 16 * 3)


def batches(root: Path, store: PixelStore, **options: Any) -> list[tuple[list[int], int]]:
    dataset = open_dataset(root, BAD)
    loader = Loader(store, dataset.labels, np.arange(21), batch_size=5, seed=1, **options)
    return [
        (batch.ids.tolist(), int(batch.images.long().sum()))
        for epoch in range(2)
        for batch in loader.batches(epoch)
    ]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(("place", "build"), WAYS)
@pytest.mark.parametrize("threads", [1, 3])
def test_every_way_gives_the_same_batches(
    root: Path, place: Place, build: Build, threads: int, tmp_path: Path
) -> None:
    """P3: and all leave out the same rows, the ones that cannot be decoded (P9)."""
    plain = open_store(open_dataset(root, BAD), CONTRACT, cache_dir=tmp_path / "other")
    expected = batches(root, plain, shuffle=True)
    assert sum(len(ids) for ids, _ in expected) == 2 * 19
    store = open_store(open_dataset(root, BAD), CONTRACT, place=place, build=build)
    assert batches(root, store, shuffle=True, threads=threads) == expected
    store.finish()
    assert store.unreadable == plain.unreadable
    assert (store.images == plain.images).all()
    store.close()


@pytest.mark.usefixtures("small_blocks")
def test_what_was_built_alongside_is_a_store_like_any_other(root: Path, cache: Path) -> None:
    store = open_store(open_dataset(root, BAD), CONTRACT, build="alongside")
    store.finish()
    assert store.complete
    again = open_store(open_dataset(root, BAD), CONTRACT, build="alongside")
    assert again.complete
    assert again.path == store.path
    assert [folder.name for folder in (cache / "stores").iterdir()] == [store.path.name]


@pytest.mark.usefixtures("small_blocks")
def test_a_batch_does_not_wait_for_the_others(root: Path, slow: list[float]) -> None:
    store = open_store(open_dataset(root, BAD), CONTRACT, build="alongside", threads=1)
    dataset = open_dataset(root, BAD)
    loader = Loader(store, dataset.labels, np.arange(21)[::-1].copy(), batch_size=5, prefetch=1)
    batch = next(loader.batches(0))
    assert len(slow) < 21
    assert not store.complete
    assert batch.ids.tolist() == [20, 19, 18, 17, 16]
    store.close()


@pytest.mark.usefixtures("small_blocks")
def test_a_store_that_is_closed_early_leaves_nothing(
    root: Path, cache: Path, slow: list[float], no_more_threads: Callable[[], None]
) -> None:
    store = open_store(open_dataset(root, BAD), CONTRACT, build="alongside")
    store.take(np.arange(2))
    store.close()
    assert len(slow) < 21
    assert list((cache / "stores").iterdir()) == []
    no_more_threads()


@pytest.mark.usefixtures("small_blocks")
def test_a_pause_stops_the_work_in_the_background(root: Path, slow: list[float]) -> None:
    store = open_store(open_dataset(root, BAD), CONTRACT, build="alongside", threads=2)
    with store.pause():
        paused_at = time.perf_counter()
        time.sleep(0.3)
        begun = [at for at in slow if at > paused_at]
    store.finish()
    assert not begun
    assert len(slow) >= 19
    store.close()


@pytest.mark.parametrize(("place", "build"), [("stream", "before"), ("disk", "alongside")])
@pytest.mark.usefixtures("slow")
def test_a_file_that_is_changed_meanwhile_stops_the_run(
    root: Path, place: Place, build: Build
) -> None:
    """D23"""
    dataset = open_dataset(root, BAD)
    assert dataset.fingerprint
    store = open_store(dataset, CONTRACT, place=place, build=build, threads=1)
    shutil.copy(root / "b" / "002.jpg", root / "b" / "008.jpg")
    with pytest.raises(MismatchError, match=r"b/008\.jpg was changed after the run had begun"):
        store.take(np.array([20]))
    store.close()


@pytest.mark.usefixtures("small_blocks")
def test_a_disk_that_fills_up_alongside_costs_only_the_store(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = open_store(open_dataset(root, BAD), CONTRACT, cache_dir=cache / "other")

    def no_space(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", no_space)
    store = open_store(open_dataset(root, BAD), CONTRACT, build="alongside")
    assert batches(root, store, shuffle=True) == batches(root, plain, shuffle=True)
    assert not store.complete
    store.close()
    assert list((cache / "stores").iterdir()) == []


@pytest.mark.parametrize(("place", "build"), [("stream", "before"), ("memory", "alongside")])
def test_too_many_bad_files_stop_also_later(root: Path, place: Place, build: Build) -> None:
    """D29"""
    dataset = open_dataset(root, DataConfig(max_unreadable_fraction=0.05))
    with pytest.raises(DataError, match="2 of 21 images cannot be decoded"):  # noqa: PT012
        store = open_store(dataset, CONTRACT, place=place, build=build)
        for ids in np.arange(21).reshape(7, 3):
            store.take(ids)
        store.finish()


def test_a_batch_of_which_nothing_can_be_decoded(root: Path) -> None:
    """D30: words in training; evaluation goes on, and says how many it was over."""
    for number in range(5):
        (root / "a" / f"{number:03d}.jpg").write_bytes(b"text")
    dataset = open_dataset(root, DataConfig(max_unreadable_fraction=0.5))
    store = open_store(dataset, CONTRACT, place="stream")
    kept = list(Loader(store, dataset.labels, np.arange(10), batch_size=5).batches(0))
    assert [batch.ids.tolist() for batch in kept] == [[5, 6, 7, 8, 9]]
    loader = Loader(store, dataset.labels, np.arange(5), batch_size=5, shuffle=True)
    with pytest.raises(DataError, match="none of the 5 images"):
        list(loader.batches(0))


def test_pixels_that_are_in_memory_at_the_right_size_are_used_as_they_are(cache: Path) -> None:
    dataset = open_dataset("digits")
    contract = CONTRACT.model_copy(
        update={"image_px": 8, "store_px": 8, "channels": 1, "mean": (0.5,), "std": (0.5,)}
    )
    store = open_store(dataset, contract)
    assert store.complete
    first = dataset.source.pixels(0)
    assert first is not None
    assert np.shares_memory(store.images, first)
    assert not cache.exists()


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("stop_at", [0, 3, 8])
def test_a_disk_that_fills_while_training_goes_on_costs_the_store_and_not_the_run(
    root: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    count = 0
    write = os.pwrite

    def full(descriptor: int, data: Any, offset: int) -> int:
        nonlocal count
        count += 1
        if count > stop_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    said: list[str] = []
    dataset = open_dataset(root, BAD)
    store = open_store(dataset, CONTRACT, build="alongside", threads=1, say=said.append)
    for _ in range(2):
        store.finish()
        pixels, good = store.take(np.arange(21))
    store.close()
    monkeypatch.undo()
    whole = open_store(dataset, CONTRACT, place="memory")
    assert (pixels == whole.images).all()
    assert (good == whole.take(np.arange(21))[1]).all()
    (line,) = said
    assert "No space left on device" in line
    assert "decoded again in every epoch" in line


def test_a_run_ends_well_on_a_disk_that_filled(
    tmp_path: Path, make_folder: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(tmp_path / "d", {"a": 40, "b": 40})

    write = os.pwrite

    def full(descriptor: int, data: Any, offset: int) -> int:
        if len(data) < 700:
            # A lock, not pixels.
            return write(descriptor, data, offset)
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "pwrite", full)
    said: list[str] = []
    settings = {
        "train.epochs": 2, "model.name": "mlp", "machine.threads": 1, "data.build": "alongside"
    }  # fmt: skip
    run = vidi.train(
        folder, settings=settings, out=tmp_path / "run", show=lambda line: said.append(str(line))
    )
    assert any("Disk quota exceeded" in line for line in said), said
    assert len(run.read_predictions("test")["ids"]) == 16
    assert not list((tmp_path / "cache" / "stores").glob("*/pixels"))
