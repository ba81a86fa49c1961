"""What is kept between runs: it can be seen, it stays within bounds, and it can go at any time."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from vidi import image
from vidi.data import list_stores, open_dataset, open_store, prune
from vidi.image import PixelContract

Make = Callable[[Path, dict[str, int]], Path]
DAY_S = 86_400


def store_of(
    folder: Path, make_folder: Make, name: str, *, unused_days: float = 0.0, px: int = 16
) -> Path:
    """A store of a few images that was used so long ago."""
    contract = PixelContract(
        image_px=12,
        store_px=px,
        channels=3,
        resize="crop",
        interpolation="bilinear",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
    root = make_folder(folder / name, {"a": 3, "b": 2 + len(name)})
    path = open_store(open_dataset(root), contract).path
    used_at = time.time() - unused_days * DAY_S
    for file in path.iterdir():
        os.utime(file, (used_at, used_at))
    return path


def names(cache: Path) -> list[str]:
    return [store.name for store in list_stores(cache)]


def test_stores_are_listed_with_what_they_are_of(
    tmp_path: Path, cache: Path, make_folder: Make
) -> None:
    assert list_stores(cache) == []
    store_of(tmp_path, make_folder, "old", unused_days=3)
    store_of(tmp_path, make_folder, "newer", px=24)
    newer, old = list_stores(cache)
    assert (newer.name, newer.rows, newer.store_px, newer.channels) == ("newer", 10, 24, 3)
    assert (old.name, old.rows, old.state) == ("old", 8, "usable")
    assert newer.num_bytes >= 10 * 24 * 24 * 3
    assert time.time() - old.used_at == pytest.approx(3 * DAY_S, abs=60)


def test_using_a_store_keeps_it(tmp_path: Path, cache: Path, make_folder: Make) -> None:
    store_of(tmp_path, make_folder, "photos", unused_days=50)
    store_of(tmp_path / "again", make_folder, "photos")
    assert prune(cache, unused_days=30) == []


def test_what_was_not_used_goes(tmp_path: Path, cache: Path, make_folder: Make) -> None:
    store_of(tmp_path, make_folder, "old", unused_days=50)
    store_of(tmp_path, make_folder, "newer")
    assert [store.name for store in prune(cache, unused_days=30)] == ["old"]
    assert names(cache) == ["newer"]


def test_beyond_a_size_what_was_not_used_for_longest_goes_first(
    tmp_path: Path, cache: Path, make_folder: Make
) -> None:
    for days, name in enumerate(("a", "bb", "ccc", "dddd")):
        store_of(tmp_path, make_folder, name, unused_days=days)
    sizes = {store.name: store.num_bytes for store in list_stores(cache)}
    removed = prune(cache, unused_days=30, max_bytes=sizes["a"] + sizes["bb"] + 1)
    assert [store.name for store in removed] == ["dddd", "ccc"]
    assert names(cache) == ["a", "bb"]


def test_damaged_stores_and_those_of_another_decoder_go(
    tmp_path: Path, cache: Path, make_folder: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = store_of(tmp_path, make_folder, "damaged")
    with monkeypatch.context() as patch:
        patch.setattr(image, "DECODER_VERSION", "0")
        store_of(tmp_path, make_folder, "older")
    store_of(tmp_path, make_folder, "good")
    (damaged / "manifest").write_bytes(b"{")
    states = {store.name: store.state for store in list_stores(cache)}
    assert states == {"good": "usable", "older": "other decoder", "": "damaged"}
    assert len(prune(cache, unused_days=30)) == 2
    assert names(cache) == ["good"]


def test_what_a_killed_build_left_goes_and_a_living_one_stays(cache: Path) -> None:
    """B9"""
    dead = _process_that_is_gone()
    stores = cache / "stores"
    left = stores / f".building-{socket.gethostname()}-{dead}-abc"
    alive = stores / f".building-{socket.gethostname()}-{os.getpid()}-abc"
    elsewhere = stores / ".building-another.computer-7-abc"
    for folder in (left, alive, elsewhere):
        folder.mkdir(parents=True)
        (folder / "pixels").write_bytes(b"0" * 100)
    assert [store.path for store in prune(cache, unused_days=30)] == [left]
    assert sorted(stores.iterdir()) == sorted([alive, elsewhere])


def _process_that_is_gone() -> int:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return child


def test_a_new_store_makes_room_for_itself(
    tmp_path: Path, cache: Path, make_folder: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache takes at most half of what would be free without it."""
    store_of(tmp_path, make_folder, "old", unused_days=9)
    store_of(tmp_path, make_folder, "newer", unused_days=1)
    total = sum(store.num_bytes for store in list_stores(cache))
    # Room for one of them and the next.
    usage = SimpleNamespace(free=int(1.2 * total))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    store_of(tmp_path, make_folder, "next")
    assert sorted(names(cache)) == ["newer", "next"]


def test_a_run_keeps_its_store_though_it_was_removed(
    tmp_path: Path, cache: Path, make_folder: Make
) -> None:
    root = make_folder(tmp_path / "d", {"a": 3, "b": 3})
    contract = PixelContract(
        image_px=12,
        store_px=16,
        channels=1,
        resize="squash",
        interpolation="bilinear",
        mean=(0.5,),
        std=(0.5,),
    )
    store = open_store(open_dataset(root), contract)
    before = store.images.copy()
    prune(cache, unused_days=0, max_bytes=0)
    assert names(cache) == []
    assert (store.images == before).all()
