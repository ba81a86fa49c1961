"""Tar shards in WebDataset's layout: here, in an object store, damaged and hostile."""

from __future__ import annotations

import http.server
import io
import json
import tarfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from vidi.data import Dataset, audit, open_dataset, open_store
from vidi.errors import DamagedError, DataError, UnreadableImage, UsageError
from vidi.facts import SPLITS
from vidi.image import PixelContract

Member = tuple[str, bytes]


def jpeg(seed: int) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((24, 24)).save(buffer, "JPEG")
    return buffer.getvalue()


def pack(members: Iterable[Member]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def samples(first: int, count: int) -> Iterator[Member]:
    for number in range(first, first + count):
        yield f"{number:06d}.jpg", jpeg(number)
        yield f"{number:06d}.cls", str(number % 3).encode()
        yield f"{number:06d}.json", json.dumps({"id": number}).encode()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "flowers"
    folder.mkdir()
    (folder / "train-000000.tar").write_bytes(pack(samples(0, 30)))
    (folder / "train-000001.tar").write_bytes(pack(samples(30, 30)))
    (folder / "val-000000.tar").write_bytes(pack(samples(60, 9)))
    return folder


def rows_of(dataset: Dataset) -> list[tuple[str, int, str, bytes]]:
    return [
        (dataset.name_of(row), int(dataset.labels[row]), SPLITS[dataset.split[row]],
         dataset.read(row))
        for row in range(len(dataset))
    ]  # fmt: skip


def test_samples_have_their_label_split_and_bytes(root: Path) -> None:
    dataset = open_dataset(root)
    assert dataset.name == "flowers"
    assert dataset.classes == ("0", "1", "2")
    expected = [
        (f"{shard}/{n:06d}.jpg", n % 3, split, jpeg(n))
        for shard, split, first, last in (
            ("train-000000.tar", "train", 0, 30),
            ("train-000001.tar", "train", 30, 60),
            ("val-000000.tar", "validation", 60, 69),
        )
        for n in range(first, last)
    ]
    assert rows_of(dataset) == expected
    assert open_dataset(root).fingerprint == dataset.fingerprint


def test_names_of_classes_lie_beside_the_shards(root: Path) -> None:
    (root / "classes.txt").write_text("rose\nlily\ntulip\n")
    dataset = open_dataset(root)
    assert dataset.classes == ("lily", "rose", "tulip")
    assert [dataset.classes[label] for label in dataset.labels[:3]] == ["rose", "lily", "tulip"]


@pytest.mark.parametrize(
    ("pattern", "count"),
    [("train-{000000..000001}.tar", 60), ("train-*.tar", 60), ("train-000001.tar", 30)],
)
def test_a_pattern_names_shards(root: Path, pattern: str, count: int) -> None:
    assert len(open_dataset(str(root / pattern))) == count


def test_a_shard_of_a_range_that_is_missing_is_named(root: Path) -> None:
    with pytest.raises(DataError, match=r"train-000002\.tar"):
        open_dataset(str(root / "train-{000000..000002}.tar"))


@pytest.mark.parametrize("pattern", ["x-{9..1}.tar", "x-{0..9999999999}.tar"])
def test_a_range_that_is_none_is_refused(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(DataError, match="no range"):
        open_dataset(str(tmp_path / pattern))


def test_labels_may_be_folders_or_json(tmp_path: Path) -> None:
    members = [(f"{name}/{n}.jpg", jpeg(n)) for n, name in enumerate(["cat", "dog"] * 6)]
    (tmp_path / "a.tar").write_bytes(pack(members))
    assert open_dataset(tmp_path / "a.tar").classes == ("cat", "dog")
    members = [
        member
        for n in range(12)
        for member in ((f"{n}.png.jpg", jpeg(n)), (f"{n}.json", b'{"label": "%d"}' % (n % 2)))
    ]
    (tmp_path / "b.tar").write_bytes(pack(members))
    assert open_dataset(tmp_path / "b.tar").classes == ("0", "1")


def test_what_cannot_be_used_is_listed(tmp_path: Path) -> None:
    """P9"""
    members = [
        *samples(0, 12),
        ("a.heic", b"x"), ("a.cls", b"1"),
        ("b.jpg", jpeg(50)),
        ("c.jpg", jpeg(51)), ("c.json", b"{"),
        ("d.txt", b"no image"),
    ]  # fmt: skip
    buffer = io.BytesIO(pack(members))
    with tarfile.open(fileobj=buffer, mode="a") as tar:
        link = tarfile.TarInfo("e.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    (tmp_path / "s.tar").write_bytes(buffer.getvalue())
    dataset = open_dataset(tmp_path / "s.tar")
    assert len(dataset) == 12
    assert sorted((each.path, each.reason) for each in dataset.quarantined) == [
        ("s.tar/a.heic", "UNSUPPORTED"),
        ("s.tar/b.jpg", "NO_LABEL"),
        ("s.tar/c.jpg", "NO_LABEL"),
        ("s.tar/e.jpg", "SPECIAL_FILE"),
    ]
    assert [each.reason for each in dataset.ignored] == ["NO_IMAGE"]


def test_a_shard_that_ends_early_keeps_what_is_whole(root: Path) -> None:
    path = root / "train-000001.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    dataset = open_dataset(root)
    assert 30 + 9 < len(dataset) < 69
    assert any(each.reason == "TRUNCATED" for each in dataset.quarantined)
    for row in range(len(dataset)):
        assert dataset.read(row).startswith(b"\xff\xd8")


@pytest.mark.parametrize("content", [b"", b"\xff" * 2000, b"PK\x03\x04" * 300])
def test_what_is_no_tar_file_is_said(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises((DamagedError, DataError)):
        open_dataset(tmp_path / "x.tar")


def test_a_compressed_shard_is_refused_with_the_way_out(root: Path) -> None:
    (root / "a.tar.gz").write_bytes(b"x")
    with pytest.raises(DataError, match="compressed") as caught:
        open_dataset(root / "a.tar.gz")
    assert "gunzip" in caught.value.fix


def test_a_shard_that_shrinks_is_noticed_when_it_is_read(root: Path) -> None:
    dataset = open_dataset(root)
    (root / "val-000000.tar").write_bytes(b"short")
    with pytest.raises(UnreadableImage) as caught:
        dataset.read(68)
    assert caught.value.reason == "TRUNCATED"


def test_an_index_is_kept_and_a_changed_shard_is_read_again(root: Path, cache: Path) -> None:
    open_dataset(root)
    kept = sorted((cache / "shards").iterdir())
    assert len(kept) == 3
    for path in kept:
        path.write_bytes(path.read_bytes()[:-1])
    assert len(open_dataset(root)) == 69
    (root / "val-000000.tar").write_bytes(pack(samples(60, 3)))
    assert len(open_dataset(root)) == 63


def test_an_audit_reads_shards_like_files(root: Path) -> None:
    (root / "test-000000.tar").write_bytes(pack([*samples(3, 1), *samples(80, 4)]))
    _, report = audit(open_dataset(root))
    assert len(report.leaked["test"]) == 1
    assert report.num_used == 74


# Through fsspec -----------------------------------------------------------------------------------


@pytest.fixture
def store(root: Path) -> Iterator[Any]:
    """The shards in fsspec's store in memory."""
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    for path in root.iterdir():
        memory.pipe(f"/bucket/{path.name}", path.read_bytes())
    yield memory
    memory.rm("/bucket", recursive=True)


@pytest.mark.parametrize("name", ["*.tar", "train-{000000..000001}.tar"])
@pytest.mark.usefixtures("store")
def test_shards_in_an_object_store_are_those_on_the_disk(root: Path, name: str) -> None:
    there = open_dataset(f"memory://bucket/{name}")
    here = open_dataset(str(root / name))
    assert rows_of(there) == rows_of(here)


def test_an_object_that_is_gone_is_said(store: Any) -> None:
    dataset = open_dataset("memory://bucket/*.tar")
    store.rm("/bucket/val-000000.tar")
    with pytest.raises(UnreadableImage) as caught:
        dataset.read(68)
    assert caught.value.reason == "MISSING"
    with pytest.raises(DataError, match=r"nothing\.tar cannot be read"):
        open_dataset("memory://bucket/nothing.tar")


@pytest.mark.parametrize(
    ("address", "error"),
    [("nosuch://x/a.tar", DataError), ("https://x/images.zip", UsageError)],
)
def test_addresses_that_cannot_be_are_refused(address: str, error: type[Exception]) -> None:
    pytest.importorskip("fsspec")
    with pytest.raises(error):
        open_dataset(address)


def test_a_store_is_built_from_shards(root: Path) -> None:
    contract = PixelContract(
        image_px=16, store_px=16, channels=3, resize="squash", interpolation="bilinear",
        mean=(0.5,) * 3, std=(0.5,) * 3,
    )  # fmt: skip
    dataset = open_dataset(root)
    store = open_store(dataset, contract)
    assert store.unreadable == ()
    assert len(store) == 69
    assert open_dataset(root).source.known_digests() is not None


# Over HTTP, and in a bucket -----------------------------------------------------------------------


class Ranges(http.server.BaseHTTPRequestHandler):
    """A file server that gives parts; `fails` of its answers break off, or are errors."""

    protocol_version = "HTTP/1.1"
    folder: ClassVar[Path]
    asked: ClassVar[list[tuple[str, str]]] = []
    fails: ClassVar[int] = 0

    def do_HEAD(self) -> None:
        self._answer(send=False)

    def do_GET(self) -> None:
        self._answer(send=True)

    def _answer(self, *, send: bool) -> None:
        asked = self.headers.get("Range", "")
        Ranges.asked.append((self.path, asked))
        path = Ranges.folder / self.path.lstrip("/")
        if not path.is_file() or Ranges.fails > 0:
            Ranges.fails -= 1
            self.send_error(503 if path.is_file() else 404)
            return
        whole = path.read_bytes()
        first, last = 0, len(whole) - 1
        if asked:
            begin, _, end = asked.removeprefix("bytes=").partition("-")
            first, last = int(begin), min(int(end or last), last)
        part = whole[first : last + 1]
        self.send_response(206 if asked else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part)))
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(whole)}")
        self.end_headers()
        if send:
            self.wfile.write(part)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def web(root: Path) -> Iterator[str]:
    """The address of a server that has the shards."""
    pytest.importorskip("aiohttp")
    pytest.importorskip("fsspec")
    Ranges.folder, Ranges.asked, Ranges.fails = root, [], 0
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Ranges)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_shards_on_a_web_server_are_those_on_the_disk(root: Path, web: str) -> None:
    (root / "classes.txt").write_text("rose\nlily\ntulip\n")
    there = open_dataset(f"{web}/train-{{000000..000001}}.tar")
    here = open_dataset(str(root / "train-{000000..000001}.tar"))
    assert there.classes == here.classes == ("lily", "rose", "tulip")
    assert rows_of(there) == rows_of(here)
    store = open_store(there, PIXELS)
    assert np.array_equal(store.images, open_store(here, PIXELS).images)


def test_an_image_is_read_from_its_place_and_not_with_its_shard(root: Path, web: str) -> None:
    dataset = open_dataset(f"{web}/train-000000.tar")
    Ranges.asked.clear()
    assert dataset.read(7) == jpeg(7)
    ((path, part),) = Ranges.asked
    begin, end = map(int, part.removeprefix("bytes=").split("-"))
    assert path == "/train-000000.tar"
    assert end - begin + 1 == len(jpeg(7)) < (root / "train-000000.tar").stat().st_size


def test_a_web_server_that_fails_is_asked_again_and_then_said(root: Path, web: str) -> None:
    dataset = open_dataset(f"{web}/train-000000.tar")
    Ranges.fails = 2
    assert dataset.read(3) == jpeg(3)
    Ranges.fails = 99
    with pytest.raises(UnreadableImage) as caught:
        dataset.read(3)
    assert caught.value.reason == "READ_ERROR"
    Ranges.fails = 0
    with pytest.raises(DataError, match=r"nothing\.tar cannot be read"):
        open_dataset(f"{web}/nothing.tar")
    assert root.is_dir()


def test_shards_in_a_bucket_are_those_on_the_disk(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """s3:// goes to whatever fsspec has for it: here a store in memory that says what S3 says."""
    registry = pytest.importorskip("fsspec.registry")
    memory = pytest.importorskip("fsspec.implementations.memory")

    class Bucket(memory.MemoryFileSystem):  # type: ignore[misc, name-defined]
        protocol = "s3"
        store: ClassVar[dict[str, Any]] = {}
        pseudo_dirs: ClassVar[list[str]] = [""]
        cachable = False

        def info(self, path: str, **more: Any) -> dict[str, Any]:
            known = super().info(path, **more)
            return {**known, "ETag": f'"{known["size"]}"', "created": None}

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            stripped = str(path).removeprefix("s3://").strip("/")
            return f"/{stripped}" if stripped else ""

    monkeypatch.setitem(registry._registry, "s3", Bucket)
    bucket = Bucket()
    for path in root.iterdir():
        bucket.pipe(f"/flowers/{path.name}", path.read_bytes())
    for name in ("*.tar", "train-{000000..000001}.tar"):
        there, here = open_dataset(f"s3://flowers/{name}"), open_dataset(str(root / name))
        assert rows_of(there) == rows_of(here)


PIXELS = PixelContract(
    image_px=16,
    store_px=16,
    channels=3,
    resize="crop",
    interpolation="bilinear",
    mean=(0.5,) * 3,
    std=(0.5,) * 3,
)
