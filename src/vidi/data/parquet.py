"""Parquet tables of paths or of the bytes of images, among them those of Hugging Face.

Columns go by name as in other tables (`table.COLUMNS`). An image is a path (text), bytes, or a
struct of `bytes` and `path`. Numbers of a label become names where the file carries them, as the
files of Hugging Face do.

The bytes of one image lie in a row group with those of some hundred others, which are read and
unpacked together; reading in order is fast, reading at random is not, so train from a store.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vidi.config import DataConfig
from vidi.data import split as splits
from vidi.data.cache import Digests, cache_folder
from vidi.data.dataset import Dataset, Source
from vidi.data.files import Names
from vidi.data.named import Named, keys_of_places
from vidi.data.table import Batch, Rows, choose_columns, files_under, json_cell
from vidi.errors import DamagedError, DataError, MissingExtra, UnreadableImage

# Row groups in memory: one for each of some threads that read in order.
_KEPT_GROUPS: Final = 6


def is_parquet(path: Path) -> bool:
    return path.suffix.lower() in (".parquet", ".pq")


def parquets_of(folder: Path) -> list[tuple[Path, int]]:
    """Files named after splits, as Hugging Face names them: `data/train-00000-of-00002.parquet` or
    `train/0000.parquet`; -1 stands for a split that no name says."""
    found = []
    for path in sorted([*folder.glob("*.parquet"), *folder.glob("*/*.parquet")]):
        word = path.stem.split("-")[0].split("_")[0].lower()
        number = splits.SPLIT_NAMES.get(word, splits.SPLIT_NAMES.get(path.parent.name.lower(), -1))
        if path.is_file():
            found.append((path, number))
    return found


def open_parquet(path: Path, asked: DataConfig) -> Dataset:
    """One file, or a folder of them. Raises DataError, DamagedError, MissingExtra."""
    folder = path if path.is_dir() else path.parent
    files = parquets_of(path) if path.is_dir() else [(path, -1)]
    rows = Rows()
    groups: list[_Group] = []
    places: list[NDArray[np.int64]] = []
    holds_bytes = set[bool]()
    for file, number in files:
        reader = _opened(file)
        table = _Table(file, reader)
        holds_bytes.add(table.holds_bytes)
        line = 1
        for group in range(reader.num_row_groups):
            columns = table.columns(group)
            count = len(columns["label"])
            if table.holds_bytes:
                where = os.path.relpath(file, folder)
                columns["image"] = [f"{where}/{line + row:08d}" for row in range(count)]
            taken = rows.add(file.name, Batch(range(line, line + count), columns), number)
            mine = np.stack([np.full(len(taken), len(groups)), np.asarray(taken)], axis=1)
            places.append(mine.astype(np.int64))
            groups.append(_Group(file, group, table.image))
            line += count
    if len(holds_bytes) > 1:
        raise DataError(f"{path} mixes files of paths and files of images")
    name = folder.resolve().name if path.is_dir() else path.stem
    if holds_bytes == {False}:
        return rows.dataset(name, asked, files_under(folder, asked), folder=folder)
    cells_of = np.concatenate(places) if places else np.empty((0, 2), dtype=np.int64)
    cells = _Cells(groups)
    stamp = json.dumps(
        [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file, _ in files]
    )

    def build(texts: Names, keep: NDArray[np.int64], _: NDArray[np.int64] | None) -> Source:
        mine = cells_of[keep]

        def read(row: int) -> bytes:
            return cells.read(*mine[row].tolist())

        remembered = Digests(cache_folder(asked.cache_dir), os.fsencode(path))
        keys = functools.partial(keys_of_places, mine, stamp.encode())
        return Named(texts, read, keys, remembered, asked.read_limit_s)

    return rows.dataset(name, asked, build)


def _opened(path: Path) -> Any:
    """A pyarrow.parquet.ParquetFile."""
    try:
        import pyarrow  # noqa: PLC0415 (an extra)
        import pyarrow.parquet  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise MissingExtra(
            f"{path.name} is a Parquet file", fix='pip install "vidi[parquet]"'
        ) from error
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DamagedError(
            f"{path} is no Parquet file that can be read: {error}", fix="fetch it again"
        ) from error


class _Table:
    """Which columns of a file are what."""

    def __init__(self, path: Path, reader: Any) -> None:
        self._path, self._reader = path, reader
        schema = reader.schema_arrow
        self._chosen = choose_columns(path, schema.names)
        self.image = self._chosen["image"]
        kind = schema.field(self.image).type
        text = str(kind)
        # A struct of `bytes` and `path` is how Hugging Face keeps an image.
        self.holds_bytes = "binary" in text
        if not self.holds_bytes and "string" not in text:
            raise DataError(
                f"{path}: the column '{self.image}' holds {text}, neither paths nor bytes"
            )
        self._names = _label_names(schema, self._chosen["label"])

    def columns(self, group: int) -> dict[str, list[str]]:
        """The cells of one row group as text; without the images where they are bytes."""
        wanted = {
            role: name
            for role, name in self._chosen.items()
            if role != "image" or not self.holds_bytes
        }
        with _damage_said(self._path, group):
            read = self._reader.read_row_group(group, columns=list(wanted.values()))
            # Here it comes out that text is not UTF-8.
            told = {role: read.column(name).to_pylist() for role, name in wanted.items()}
        found = {}
        for role, cells in told.items():
            if role == "label" and self._names:
                cells = [self._names.get(cell, cell) for cell in cells]
            found[role] = [json_cell(cell) for cell in cells]
        return found


def _label_names(schema: Any, column: str) -> Mapping[object, str]:
    """{0: name, ...} of a ClassLabel, from the description that Hugging Face adds."""
    try:
        described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = described["info"]["features"][column]["names"]
        return {number: str(name) for number, name in enumerate(names)}
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}


@contextlib.contextmanager
def _damage_said(path: Path, group: int) -> Iterator[None]:
    import pyarrow  # noqa: PLC0415 (an extra)

    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise DamagedError(
            f"{path}, row group {group}, cannot be read: {error}", fix="fetch it again"
        ) from error


class _Group:
    """One row group of one file."""

    def __init__(self, path: Path, number: int, column: str) -> None:
        self.path, self.number, self.column = path, number, column

    def load(self) -> Any:
        with _damage_said(self.path, self.number):
            read = _opened(self.path).read_row_group(self.number, columns=[self.column])
            return read.column(self.column)


class _Cells:
    """Images of row groups, of which the last few stay in memory."""

    def __init__(self, groups: list[_Group]) -> None:
        self._groups = groups
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()
        self._loading = [threading.Lock() for _ in range(16)]

    def read(self, group: int, row: int) -> bytes:
        damaged = self._groups[group]
        try:
            with _damage_said(damaged.path, damaged.number):
                value = self._group(group)[row].as_py()
        except DamagedError as error:
            raise UnreadableImage(error.message, reason="READ_ERROR") from error
        if isinstance(value, dict):
            value = value.get("bytes")
        if not isinstance(value, bytes):
            raise UnreadableImage("the cell holds no bytes", reason="EMPTY")
        return value

    def _group(self, number: int) -> Any:
        # One thread loads a group, others that want it wait; other groups are not held up.
        with self._loading[number % len(self._loading)]:
            with self._lock:
                if number in self._kept:
                    self._kept.move_to_end(number)
                    return self._kept[number]
            loaded = self._groups[number].load()
            with self._lock:
                self._kept[number] = loaded
                while len(self._kept) > _KEPT_GROUPS:
                    self._kept.popitem(last=False)
            return loaded
