"""Whatever bytes a data set is made of: it opens, or it is refused in words, and soon."""

from __future__ import annotations

import contextlib
import io
import struct
import tarfile
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from vidi.config import DataConfig
from vidi.data import open_dataset
from vidi.errors import UnreadableImage, VidiError

# Examples that were cut, flipped or padded from a sound file reach deeper than noise does.
BOUNDED = settings(
    max_examples=60, deadline=20_000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

JPEG = b"\xff\xd8\xff\xe0" + bytes(200) + b"\xff\xd9"


def damaged(sound: bytes) -> st.SearchStrategy[bytes]:
    """The sound bytes with a cut, a changed stretch, or both."""

    def damage(cut: int, at: int, patch: bytes) -> bytes:
        start = at % max(1, len(sound))
        return (sound[:start] + patch + sound[start + len(patch) :])[: cut % (len(sound) + 1)]

    numbers = st.integers(0, 1 << 20)
    return st.builds(
        damage, st.one_of(st.just(len(sound)), numbers), numbers, st.binary(max_size=9)
    )


def opens_or_is_refused(path: Path, kind: str, content: bytes) -> None:
    path.write_bytes(content)
    try:
        dataset = open_dataset(path if path.is_file() else path.parent, DataConfig(format=kind))
    except VidiError:
        return
    assert len(dataset.classes) >= 2
    for row in range(0, len(dataset), max(1, len(dataset) // 3)):
        with contextlib.suppress(UnreadableImage):
            dataset.read(row)


TABLE = b"image,label,split,weight\n" + b"".join(
    b"%d.jpg,%s,%s,1.5\n" % (n, b"cat" if n % 2 else b"dog", b"train" if n % 3 else b"test")
    for n in range(12)
)
LINES = b"".join(
    b'{"image": "%d.jpg", "label": %d, "group": "g%d"}\n' % (n, n % 2, n // 3) for n in range(12)
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tables")
    for number in range(12):
        (folder / f"{number}.jpg").write_bytes(JPEG)
    return folder


@BOUNDED
@given(content=st.one_of(damaged(TABLE), st.binary(max_size=300)))
def test_a_csv_of_any_bytes(pictures: Path, content: bytes) -> None:
    opens_or_is_refused(pictures / "t.csv", "table", content)


HALF = b'{"image": "\\ud800.jpg", "label": "a"}\n{"image": "x.jpg", "label": "\\udfff"}\n'


@BOUNDED
@example(content=LINES + HALF)
@given(content=st.one_of(damaged(LINES), st.binary(max_size=300)))
def test_json_lines_of_any_bytes(pictures: Path, content: bytes) -> None:
    opens_or_is_refused(pictures / "t.jsonl", "table", content)


@BOUNDED
@given(
    rows=st.lists(st.tuples(st.text(max_size=12), st.text(max_size=6)), min_size=1, max_size=8),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_plain_tables_are_read_as_the_csv_module_reads_them(
    pictures: Path, rows: list[tuple[str, str]], end: str
) -> None:
    """The fast way and the slow way give the same rows; a quote asks for the slow one."""
    plain = "".join(
        f"{image},{label}{end}"
        for image, label in rows
        if not set(image + label) & set(',"\r\n;\t|\0')
        and image + label == (image + label).encode("utf-8", "replace").decode()
    )
    head, sound = f"image,label{end}", f"0.jpg,a{end}1.jpg,b{end}"

    def seen(text: str) -> list[tuple[str, object]]:
        (pictures / "p.csv").write_bytes(text.encode())
        dataset = open_dataset(pictures / "p.csv")
        found: list[tuple[str, object]] = [
            (each.path, each.message) for each in dataset.quarantined + dataset.ignored
        ]
        return found + [(dataset.name_of(n), int(dataset.labels[n])) for n in range(len(dataset))]

    assert seen(head + plain + sound) == seen(head + plain + sound.replace("0.jpg", '"0.jpg"'))


def shard() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number in range(6):
            for name, data in ((f"{number}.jpg", JPEG), (f"{number}.cls", b"%d" % (number % 2))):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


SHARD = shard()


@BOUNDED
@given(content=st.one_of(damaged(SHARD), st.binary(max_size=2000)))
def test_a_shard_of_any_bytes(tmp_path: Path, content: bytes) -> None:
    opens_or_is_refused(tmp_path / "s.tar", "shards", content)


def idx(count: int) -> bytes:
    return struct.pack(">BBBB3I", 0, 0, 8, 3, count, 4, 4) + bytes(range(16)) * count


@BOUNDED
@given(images=damaged(idx(20)), gzipped=st.booleans())
def test_idx_files_of_any_bytes(tmp_path: Path, images: bytes, gzipped: bool) -> None:
    labels = struct.pack(">BBBBI", 0, 0, 8, 1, 20) + bytes([0, 1] * 10)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(labels)
    content = b"\x1f\x8b" + images if gzipped else images
    opens_or_is_refused(tmp_path / "train-images-idx3-ubyte", "idx", content)


@BOUNDED
@given(
    content=damaged(np.tile(np.r_[np.uint8(1), np.zeros(3072, np.uint8)], 4).tobytes()),
    names=st.one_of(st.just(b"a\nb\nc\n"), st.binary(max_size=40)),
)
def test_cifar_files_of_any_bytes(tmp_path: Path, content: bytes, names: bytes) -> None:
    (tmp_path / "batches.meta.txt").write_bytes(names)
    (tmp_path / "test_batch.bin").write_bytes(bytes(3073) + b"\x01" + bytes(3072))
    path = tmp_path / "data_batch_1.bin"
    path.write_bytes(content)
    try:
        dataset = open_dataset(tmp_path, DataConfig(format="cifar"))
    except VidiError:
        return
    assert len(dataset) >= 2


def parquet(*, holds_bytes: bool) -> bytes:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    images = [JPEG] * 12 if holds_bytes else [f"{number}.jpg" for number in range(12)]
    table = pa.table({"image": images, "label": [number % 2 for number in range(12)]})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=5)
    return buffer.getvalue()


@BOUNDED
@given(data=st.data(), holds_bytes=st.booleans())
def test_a_parquet_file_of_any_bytes(
    pictures: Path, data: st.DataObject, holds_bytes: bool
) -> None:
    content = data.draw(st.one_of(damaged(parquet(holds_bytes=holds_bytes)), st.binary()))
    opens_or_is_refused(pictures / "t.parquet", "parquet", content)


CELL = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.floats(), st.text(max_size=5),
    st.binary(max_size=5), st.lists(st.integers(0, 3), max_size=2),
)  # fmt: skip


@BOUNDED
@example(images=["a.png"] * 4, labels=[b"cat", b"dog", b"\xff", None], split=[None] * 4)
@example(images=["a.png"] * 4, labels=[date(2026, 1, 1)] * 2 + [None] * 2, split=[None] * 4)
@given(
    images=st.lists(CELL, min_size=4, max_size=4),
    labels=st.lists(CELL, min_size=4, max_size=4),
    split=st.lists(st.one_of(st.none(), st.sampled_from(["train", "Test", "x"])), min_size=4,
                   max_size=4),
)  # fmt: skip
def test_parquet_columns_of_any_kind(
    pictures: Path, images: list[object], labels: list[object], split: list[object]
) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    buffer = io.BytesIO()
    try:
        pq.write_table(pa.table({"image": images, "label": labels, "split": split}), buffer)
    except (pa.ArrowException, TypeError, OverflowError):
        # No column can hold such cells together.
        return
    opens_or_is_refused(pictures / "c.parquet", "parquet", buffer.getvalue())
