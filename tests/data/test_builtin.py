"""Data sets by name: found where they lie, or downloaded from a server that may fail."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import os
import shutil
import struct
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import scipy.io
from PIL import Image

from vidi import download
from vidi.data import builtin, open_dataset
from vidi.data.builtin import Published
from vidi.data_source import BUILT_IN
from vidi.errors import DamagedError, DataError, UsageError


class Server(http.server.BaseHTTPRequestHandler):
    files: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[str]] = []
    breaks: ClassVar[bool] = False

    def do_GET(self) -> None:
        Server.asked.append(self.path)
        content = Server.files.get(self.path.rpartition("/")[2])
        if content is None:
            self.send_error(404)
            return
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : start + 50] if Server.breaks else content[start:])

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """Nothing lies on this machine; the address of a server that has what a test gives it."""
    Server.files, Server.asked, Server.breaks = {}, [], False
    monkeypatch.setattr(builtin, "places", lambda: [tmp_path / "data"])
    monkeypatch.setattr(download, "_PAUSES_S", ())
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{made.server_address[1]}"
    made.shutdown()
    made.server_close()
    thread.join()


def serve(monkeypatch: pytest.MonkeyPatch, server: str, name: str, files: dict[str, bytes]) -> None:
    """`name` is downloaded from here, with these contents by the names of the real files."""
    known = builtin.BUILT_IN[name]
    Server.files = dict(files)
    published = tuple(
        Published(
            f"{server}/{file.name}",
            len(files.get(file.name, b"")),
            hashlib.sha256(files.get(file.name, b"")).hexdigest(),
        )
        for file in known.files
    )
    monkeypatch.setitem(builtin.BUILT_IN, name, known._replace(files=published))


def idx(array: np.ndarray) -> bytes:
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return gzip.compress(head + array.astype(np.uint8).tobytes())


def idx_files(count: int = 40) -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    made = {}
    for split, n in (("train", count), ("t10k", count // 2)):
        made[f"{split}-images-idx3-ubyte.gz"] = idx(rng.integers(0, 256, (n, 28, 28)))
        made[f"{split}-labels-idx1-ubyte.gz"] = idx(np.arange(n) % 10)
    return made


def test_the_names_are_these() -> None:
    assert set(BUILT_IN) == {"digits", *builtin.BUILT_IN}
    assert set(BUILT_IN) == {
        "digits", "mnist", "fashion-mnist", "kmnist", "cifar10", "cifar100", "svhn", "imagenette",
        "emnist-balanced", "emnist-byclass", "emnist-bymerge", "emnist-digits", "emnist-letters",
        "emnist-mnist",
    }  # fmt: skip
    for known in builtin.BUILT_IN.values():
        for file in known.files:
            assert len(file.sha256) == 64
            assert file.size_bytes > 1000


def test_a_set_is_downloaded_once_and_kept(
    server: str, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    serve(monkeypatch, server, "fashion-mnist", idx_files())
    said: list[str] = []
    dataset = open_dataset("fashion-mnist", say=said.append)
    assert dataset.name == "fashion-mnist"
    assert dataset.classes[9] == "ankle boot"
    assert dataset.num_expected("test") == 20
    assert any("downloading" in line for line in said)
    assert len(Server.asked) == 4
    open_dataset("fashion-mnist")
    assert len(Server.asked) == 4
    assert [entry.name for entry in (cache / "datasets").iterdir()] == ["fashion-mnist"]


def test_a_download_that_breaks_is_continued_by_the_same_command(
    server: str, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    serve(monkeypatch, server, "mnist", idx_files())
    Server.breaks = True
    with pytest.raises(UsageError, match="ended after 50 of") as caught:
        open_dataset("mnist")
    assert "VIDI_DATA" in caught.value.fix
    assert not (cache / "datasets" / "mnist").exists()
    Server.breaks = False
    assert len(open_dataset("mnist")) == 60


def emnist_archive(*, inner: str = "gzip") -> bytes:
    """Two of the six sets, as they are published: one zip file of gzipped files."""
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for part, first, count in (("letters", 1, 26), ("digits", 0, 10)):
            for split, n in (("train", 4 * count), ("test", count)):
                images = rng.integers(0, 256, (n, 28, 28))
                stem = f"{inner}/emnist-{part}-{split}"
                archive.writestr(f"{stem}-images-idx3-ubyte.gz", idx(images))
                labels = np.arange(n) % count + first
                archive.writestr(f"{stem}-labels-idx1-ubyte.gz", idx(labels))
            codes = range(65, 91) if part == "letters" else range(48, 58)
            lines = "".join(f"{first + n} {code} {code + 32}\n" for n, code in enumerate(codes))
            archive.writestr(f"{inner}/emnist-{part}-mapping.txt", lines)
        archive.writestr(f"{inner}/../../outside.txt", b"x")
    return buffer.getvalue()


def test_the_sets_of_emnist_come_in_one_archive_and_have_names_of_characters(
    server: str, monkeypatch: pytest.MonkeyPatch, cache: Path, tmp_path: Path
) -> None:
    serve(monkeypatch, server, "emnist-letters", {"gzip.zip": emnist_archive()})
    dataset = open_dataset("emnist-letters")
    assert dataset.name == "emnist-letters"
    assert dataset.classes == tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    assert dataset.num_expected("test") == 26
    assert dataset.counts("test") == (1,) * 26
    # The archive is fetched once for all six.
    digits = open_dataset("emnist-digits")
    assert digits.classes == tuple("0123456789")
    assert Server.asked == ["/gzip.zip"]
    assert sorted(each.name for each in (cache / "datasets").iterdir()) == ["emnist"]
    assert not list(tmp_path.rglob("outside.txt"))


def test_an_archive_of_emnist_that_is_none_is_refused(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for content in (b"PK\3\4 and nothing else", emnist_archive(inner="other")):
        serve(monkeypatch, server, "emnist-letters", {"gzip.zip": content})
        with pytest.raises(DamagedError, match=r"cannot be unpacked|has no folder"):
            open_dataset("emnist-letters")
        for path in (Path(os.environ["VIDI_CACHE"]) / "datasets").glob("*"):
            shutil.rmtree(path)


def test_a_file_with_other_contents_is_refused(
    server: str, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    serve(monkeypatch, server, "kmnist", idx_files())
    Server.files["train-labels-idx1-ubyte.gz"] = idx(np.arange(40) % 7)
    with pytest.raises(DamagedError, match="not the one that was published"):
        open_dataset("kmnist")
    assert not (cache / "datasets" / "kmnist").exists()


def test_a_server_without_the_file_is_quoted(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, server, "svhn", {})
    with pytest.raises(UsageError, match="answers 404"):
        open_dataset("svhn")


@pytest.mark.parametrize("place", ["fashion-mnist", "FashionMNIST/raw"])
@pytest.mark.usefixtures("server")
def test_what_lies_on_the_machine_needs_no_network(tmp_path: Path, place: str) -> None:
    folder = tmp_path / "data" / place
    folder.mkdir(parents=True)
    for name, data in idx_files().items():
        (folder / name).write_bytes(data)
    assert open_dataset("fashion-mnist").num_expected("test") == 20
    assert Server.asked == []


def test_places_are_named_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDI_DATA", f"{tmp_path / 'a'}:{tmp_path / 'b'}")
    assert builtin.places()[:2] == [tmp_path / "a", tmp_path / "b"]


def archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def cifar_files() -> dict[str, bytes]:
    rng = np.random.default_rng(0)

    def records(count: int) -> bytes:
        data = rng.integers(0, 256, (count, 3073), dtype=np.uint8)
        data[:, 0] = np.arange(count) % 10
        return data.tobytes()

    files = {f"cifar-10-batches-bin/data_batch_{n}.bin": records(20) for n in range(1, 6)}
    files["cifar-10-batches-bin/test_batch.bin"] = records(20)
    files["cifar-10-batches-bin/batches.meta.txt"] = "\n".join("abcdefghij").encode()
    return files


def test_an_archive_is_unpacked_whole(
    server: str, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    packed = archive(cifar_files())
    serve(monkeypatch, server, "cifar10", {"cifar-10-binary.tar.gz": packed})
    assert open_dataset("cifar10").num_expected("test") == 20
    assert len(list((cache / "datasets" / "cifar10").iterdir())) == 7


@pytest.mark.parametrize("damage", ["cut", "climbs", "empty", "no archive"])
def test_a_bad_archive_leaves_nothing_behind(
    server: str, monkeypatch: pytest.MonkeyPatch, cache: Path, damage: str
) -> None:
    """J10"""
    packed = archive(cifar_files())
    files = {
        "cut": packed[:-5000],
        "climbs": archive({"cifar-10-batches-bin/../../../evil": b"x"}),
        "empty": archive({"other/file": b"x"}),
        "no archive": b"<html>" * 100,
    }
    serve(monkeypatch, server, "cifar10", {"cifar-10-binary.tar.gz": files[damage]})
    with pytest.raises((DamagedError, DataError)):
        open_dataset("cifar10")
    assert not (cache / "datasets" / "cifar10").exists()
    assert not list(cache.rglob("*evil*"))


def test_imagenette_has_words_for_its_numbers(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "JPEG")
    files = {
        f"imagenette2-320/{split}/{number}/{n}.JPEG": buffer.getvalue()
        for split in ("train", "val")
        for number in ("n01440764", "n03888257")
        for n in range(3)
    }
    serve(monkeypatch, server, "imagenette", {"imagenette2-320.tgz": archive(files)})
    dataset = open_dataset("imagenette")
    assert dataset.classes == ("tench", "parachute")
    assert dataset.num_expected("validation") == 6


@pytest.mark.usefixtures("server")
def test_svhn_is_read_from_its_matlab_files(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "svhn"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (32, 32, 3, 20), dtype=np.uint8)
    for split in ("train", "test"):
        labels = (np.arange(20) % 10 + 1).reshape(-1, 1)
        scipy.io.savemat(folder / f"{split}_32x32.mat", {"X": images, "y": labels})
    dataset = open_dataset("svhn")
    assert dataset.classes == tuple("0123456789")
    assert dataset.labels[:10].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    pixels = dataset.source.pixels(2)
    assert pixels is not None
    assert (pixels == images[:, :, :, 2]).all()
    (folder / "train_32x32.mat").write_bytes(b"not MATLAB" * 50)
    with pytest.raises(DamagedError, match="no MATLAB file"):
        open_dataset("svhn")
