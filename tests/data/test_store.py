"""Pixels are decoded once, kept outside of the user's folder, shared, and checked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image

from vidi.config import DataConfig
from vidi.data import Dataset, PixelStore, open_dataset, open_store
from vidi.data.resample import fast_resize, torch_agrees
from vidi.errors import DataError, StorageError
from vidi.image import PixelContract, exact_resize, prepare

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


@pytest.fixture
def root(tmp_path: Path, make_folder: Make) -> Path:
    return make_folder(tmp_path / "d", {"a": 12, "b": 9})


def refuse_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise AssertionError(arguments)

    monkeypatch.setattr("vidi.image.prepare", refuse)


def same(store: PixelStore, dataset: Dataset) -> bool:
    rows = [prepare(dataset.read(i), store.contract) for i in range(len(dataset))]
    return bool((store.images == np.stack(rows)).all())


def test_every_row_is_what_prepare_gives(root: Path) -> None:
    dataset = open_dataset(root)
    seen: list[tuple[int, int]] = []
    store = open_store(dataset, CONTRACT, threads=3, progress=lambda n, of: seen.append((n, of)))
    assert store.images.shape == (21, 16, 16, 3)
    assert store.images.dtype == np.uint8
    assert same(store, dataset)
    assert seen[-1] == (21, 21)
    assert store.unreadable == ()


@pytest.mark.parametrize("store_px", [150, 256])
def test_rows_that_take_several_writes_are_whole(root: Path, store_px: int) -> None:
    contract = CONTRACT.model_copy(update={"store_px": store_px})
    assert same(open_store(open_dataset(root), contract), open_dataset(root))


def test_the_second_time_nothing_is_decoded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_store(open_dataset(root), CONTRACT)
    refuse_decoding(monkeypatch)
    monkeypatch.setattr("vidi.data.files.read_bytes", None)
    again = open_store(open_dataset(root), CONTRACT)
    assert (again.images == first.images).all()
    # Labels, splits, and what only the model needs to know do not decode again either.
    other = CONTRACT.model_copy(update={"image_px": 9, "mean": (0.1, 0.2, 0.3)})
    assert open_store(open_dataset(root, DataConfig(split_seed=3)), other).path == first.path


def test_a_copy_elsewhere_shares_the_store(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_store(open_dataset(root), CONTRACT)
    shutil.copytree(root, tmp_path / "copy" / "d")
    copy = open_dataset(tmp_path / "copy" / "d")
    assert copy.fingerprint
    refuse_decoding(monkeypatch)
    assert open_store(copy, CONTRACT).path == first.path


@pytest.mark.parametrize(
    "change",
    [{"store_px": 20}, {"resize": "squash"}, {"interpolation": "nearest"}, {"background": 1}],
)
def test_another_contract_is_another_store(root: Path, change: dict[str, Any]) -> None:
    dataset = open_dataset(root)
    other = CONTRACT.model_copy(update=change)
    assert open_store(dataset, other).path != open_store(dataset, CONTRACT).path


def test_a_changed_file_is_seen(root: Path) -> None:
    """D32: the same name, the same size, the same time."""
    before = open_store(open_dataset(root), CONTRACT)
    path = root / "a" / "000.jpg"
    status = path.stat()
    other = (root / "b" / "000.jpg").read_bytes()
    path.write_bytes(other[: status.st_size].ljust(status.st_size, b"\0"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    dataset = open_dataset(root, DataConfig(max_unreadable_fraction=0.5))
    after = open_store(dataset, CONTRACT)
    assert after.path != before.path
    assert (after.images[0] != before.images[0]).any()


def test_a_damaged_store_is_built_again_and_the_source_is_not_touched(root: Path) -> None:
    """D31"""
    dataset = open_dataset(root)
    store = open_store(dataset, CONTRACT)
    whole = store.images.copy()
    for name in ("pixels", "manifest"):
        for damage in ("flip", "cut", "gone"):
            path = store.path / name
            data = bytearray(path.read_bytes())
            if damage == "flip":
                data[len(data) // 2] ^= 1
                path.write_bytes(bytes(data))
            elif damage == "cut":
                path.write_bytes(bytes(data[:-1]))
            else:
                path.unlink()
            again = open_store(open_dataset(root), CONTRACT)
            assert (again.images == whole).all(), (name, damage)
    assert same(again, dataset)


def test_rows_are_mapped_so_that_the_file_never_changes(root: Path) -> None:
    store = open_store(open_dataset(root), CONTRACT)
    store.images[:] = 0
    assert open_store(open_dataset(root), CONTRACT).images.any()


def test_bad_files_are_listed_and_their_rows_are_background(root: Path) -> None:
    (root / "a" / "001.jpg").write_bytes(b"")
    dataset = open_dataset(root, DataConfig(max_unreadable_fraction=0.1))
    store = open_store(dataset, CONTRACT)
    (bad,) = store.unreadable
    assert dataset.name_of(bad.id) == "a/001.jpg"
    assert bad.reason == "EMPTY"
    assert (store.images[bad.id] == CONTRACT.background).all()
    assert open_store(
        open_dataset(root, DataConfig(max_unreadable_fraction=0.1)), CONTRACT
    ) is not (store)


def test_too_many_bad_files_stop_with_the_top_reasons(root: Path) -> None:
    """D29, D30"""
    for number in range(3):
        (root / "a" / f"{number:03d}.jpg").write_bytes(b"text")
    (root / "b" / "000.jpg").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(DataError, match=r"4 of 21.*3 NOT_IMAGE, e\.g\. a/000\.jpg; 1 EMPTY"):
            open_store(open_dataset(root), CONTRACT)


def test_one_bad_file_stops_when_that_was_asked(root: Path) -> None:
    (root / "a" / "001.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="exclude"):
        open_store(open_dataset(root, DataConfig(unreadable="stop")), CONTRACT)


def test_a_file_that_vanishes_is_missing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """D21"""
    monkeypatch.setattr("vidi.data.files.RETRY_S", (0.01, 0.02))
    dataset = open_dataset(root, DataConfig(max_unreadable_fraction=0.1))
    (root / "b" / "003.jpg").unlink()
    (bad,) = open_store(dataset, CONTRACT).unreadable
    assert bad.reason == "MISSING"


def test_a_file_that_fails_twice_and_then_reads_is_used(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D22"""
    from vidi.data import files  # noqa: PLC0415 (to wrap what it had)

    expected = open_store(open_dataset(root), CONTRACT).images.copy()
    monkeypatch.setattr(files, "RETRY_S", (0.01, 0.02))
    whole, failures = files._read_once, {b"000.jpg": 2, b"003.jpg": 1}

    def flaky(path: bytes) -> bytes:
        name = path.split(b"/")[-1]
        if failures.get(name, 0):
            failures[name] -= 1
            raise OSError(116, "Stale file handle")
        return whole(path)

    monkeypatch.setattr(files, "_read_once", flaky)
    os.utime(root / "a" / "000.jpg")
    store = open_store(open_dataset(root), CONTRACT)
    assert store.unreadable == ()
    assert (store.images == expected).all()
    assert not any(failures.values())


def test_a_pipe_that_takes_the_place_of_a_file_does_not_block(root: Path) -> None:
    dataset = open_dataset(root, DataConfig(max_unreadable_fraction=0.1))
    (root / "a" / "000.jpg").unlink()
    os.mkfifo(root / "a" / "000.jpg")
    (bad,) = open_store(dataset, CONTRACT).unreadable
    assert bad.reason == "SPECIAL_FILE"


def test_a_full_disk_is_said_and_leaves_nothing_behind(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B9, G5: before it starts where the size is known to be too large, and in the middle."""
    dataset = open_dataset(root)
    full = SimpleNamespace(free=100)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: full)
        with pytest.raises(StorageError, match="VIDI_CACHE"):
            open_store(dataset, CONTRACT)

    def no_space(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", no_space)
        with pytest.raises(StorageError, match="No space left"):
            open_store(dataset, CONTRACT)
    assert list((cache / "stores").iterdir()) == []
    assert same(open_store(dataset, CONTRACT), dataset)


def slow_decoding(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    def slowly(*arguments: Any, **more: Any) -> Any:
        time.sleep(seconds)
        return prepare(*arguments, **more)

    monkeypatch.setattr("vidi.image.prepare", slowly)


def test_an_interrupt_ends_the_build_at_once(
    root: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_more_threads: Callable[[], None],
) -> None:
    def interrupt(_done: int, _of: int) -> None:
        raise KeyboardInterrupt

    slow_decoding(monkeypatch, 0.1)
    with pytest.raises(KeyboardInterrupt):
        open_store(open_dataset(root), CONTRACT, progress=interrupt)
    assert list((cache / "stores").iterdir()) == []
    no_more_threads()


def test_two_processes_may_build_the_same_store(root: Path, cache: Path) -> None:
    code = (
        "import sys; from vidi.data import *; from vidi.image import PixelContract\n"
        "c = PixelContract.model_validate_json(sys.argv[2])\n"
        "s = open_store(open_dataset(sys.argv[1]), c); print(s.path, int(s.images.sum()))\n"
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(root), CONTRACT.model_dump_json()],
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    said = {child.communicate()[0] for child in children}
    assert [child.returncode for child in children] == [0, 0]
    assert len(said) == 1
    assert len(list((cache / "stores").iterdir())) == 1


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_the_fast_resize_gives_the_numbers_of_the_exact_one(
    interpolation: Literal["nearest", "bilinear", "bicubic"],
) -> None:
    """P12: what was trained on is what a bundle without torch sees."""
    assert torch_agrees()
    rng = np.random.default_rng(0)
    for _ in range(150):
        height, width, to_height, to_width = np.exp(rng.uniform(0.7, 5.5, 4)).astype(int).tolist()
        shape = (height, width, int(rng.integers(1, 5)))
        pixels = rng.integers(0, 256, shape, dtype=np.uint8)
        expected = exact_resize(pixels, to_height, to_width, interpolation)
        assert (fast_resize(pixels, to_height, to_width, interpolation) == expected).all()


def test_arrays_and_files_make_the_same_store() -> None:
    dataset = open_dataset("digits")
    contract = PixelContract(
        image_px=8,
        store_px=12,
        channels=1,
        resize="crop",
        interpolation="bicubic",
        mean=(0.5,),
        std=(0.5,),
    )
    store = open_store(dataset, contract)
    for index in (0, 99, 1796):
        assert (store.images[index] == prepare(dataset.read(index), contract)).all()


def test_where_a_picture_was_taken_is_not_kept(root: Path, cache: Path) -> None:
    """L4: pixels only."""
    exif = Image.Exif()
    exif.get_ifd(0x8825)[29] = "1999:12:31"
    exif[270] = "SECRET-PLACE"
    path = root / "a" / "000.jpg"
    Image.open(path).save(path, exif=exif)
    assert b"SECRET-PLACE" in path.read_bytes()
    open_store(open_dataset(root), CONTRACT)
    kept = [file.read_bytes() for file in cache.rglob("*") if file.is_file()]
    assert kept
    assert not any(word in data for data in kept for word in (b"SECRET-PLACE", b"1999:12:31"))
