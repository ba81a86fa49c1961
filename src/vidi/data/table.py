"""A table of paths and labels: CSV, TSV or JSON lines, of a few rows or of ten million.

The rules, stated once:

- The first row of a CSV names the columns; which is which goes by name (see `COLUMNS`). A table
  needs an image and a label; split, group and weight may be missing.
- Paths are relative to the table's folder, or absolute.
- A label is text, as it stands there; classes are those of the training rows, in natural order.
- The same path twice with one label counts once; with two labels it is a CONFLICT and not used.
- Up to `CHECKED_ROWS` rows, files that do not exist are found when the table is opened, and what
  all of them hold is read before the first epoch, so that a change is noticed. Beyond that, a file
  is read when it is needed, and the data set is known by its names and labels.
- Every row that is not used is listed with its line and its reason.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vidi.config import DataConfig
from vidi.data import split as splits
from vidi.data.dataset import Dataset, Skipped, Source, assemble
from vidi.data.files import Names
from vidi.data.folder import natural
from vidi.data.named import files_of
from vidi.errors import DataError

COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "image": ("image", "path", "file", "filename", "file_name", "filepath", "image_path", "img"),
    "label": ("label", "class", "target", "category", "label_name", "class_name", "labels"),
    "split": ("split", "subset", "set", "partition"),
    "group": ("group", "group_id", "patient", "patient_id", "subject", "session"),
    "weight": ("weight", "sample_weight"),
}
CHECKED_ROWS: Final = 200_000
_BATCH_ROWS: Final = 1 << 16
_BLOCK_CHARS: Final = 1 << 22
# The csv module refuses fields above its limit by itself; lines of JSON have none.
_MAX_LINE: Final = 1 << 20


# (names, their numbers among all rows that were added, sizes and times or None) -> Source
Build = Callable[[Names, NDArray[np.int64], NDArray[np.int64] | None], Source]


class Batch(NamedTuple):
    """Some rows by columns; `lines` are where they stand in the file, for people."""

    lines: Sequence[int]
    columns: Mapping[str, Sequence[Any]]


def is_table(path: Path) -> bool:
    return path.suffix.lower() in (".csv", ".tsv", ".jsonl", ".ndjson")


def tables_of(folder: Path) -> dict[int, Path]:
    """{split: table} of a folder with `train.csv` and perhaps `val.csv` and `test.csv`."""
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        number = splits.SPLIT_NAMES.get(path.stem.lower())
        if number is not None and is_table(path) and path.is_file():
            found.setdefault(number, path)
    return found if splits.TRAIN in found else {}


def open_table(path: Path, asked: DataConfig) -> Dataset:
    """A table, or a folder of tables named after the splits. Raises DataError."""
    folder = path if path.is_dir() else path.parent
    tables = tables_of(path) if path.is_dir() else {-1: path}
    rows = Rows()
    for number, table in tables.items():
        for batch in read_batches(table):
            rows.add(table.name, batch, number)
    name = folder.resolve().name if path.is_dir() else path.stem
    return rows.dataset(name, asked, files_under(folder, asked), folder=folder)


def files_under(folder: Path, asked: DataConfig) -> Build:
    """Rows are files; their paths are absolute, or relative to `folder`."""

    def build(names: Names, _: NDArray[np.int64], stamps: NDArray[np.int64] | None) -> Source:
        root = os.path.realpath(os.fsencode(folder))
        return files_of(root, names, stamps, asked)

    return build


def read_batches(path: Path) -> Iterator[Batch]:
    """The rows of one table, by columns under the names of `COLUMNS`."""
    try:
        # A byte that is no UTF-8 stays that byte in the path.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            if path.suffix.lower() in (".jsonl", ".ndjson"):
                yield from _json_batches(path, file)
            else:
                yield from _csv_batches(path, file)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def choose_columns(path: Path, found: Iterable[str]) -> dict[str, str]:
    """{"image": column, "label": column, ...} by `COLUMNS`. Raises DataError."""
    present = list(found)
    folded = {name.strip().casefold(): name for name in reversed(present)}
    chosen = {
        role: folded[next(name for name in names if name in folded)]
        for role, names in COLUMNS.items()
        if any(name in folded for name in names)
    }
    for role in ("image", "label"):
        if role not in chosen:
            raise DataError(
                f"{path} has no column for the {role}; it has {', '.join(present[:12]) or 'none'}",
                fix=f"name one of them {' or '.join(COLUMNS[role][:4])}",
            )
    return chosen


def _csv_batches(path: Path, file: io.TextIOBase) -> Iterator[Batch]:
    head = file.readline(_MAX_LINE)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t|", key=head.count)
    try:
        header = next(csv.reader([head], delimiter=delimiter), [])
    except csv.Error as error:
        raise DataError(f"{path}, line 1: {error}") from error
    chosen = choose_columns(path, header)
    places = {role: header.index(name) for role, name in chosen.items()}
    line, rest = 2, ""
    while block := file.read(_BLOCK_CHARS):
        text = rest + block
        end = text.rfind("\n") + 1
        plain = _plain_cells(text[:end], delimiter, len(header))
        if plain is None:
            whole = io.StringIO(text + file.readline(), newline="")
            yield from _quoted_batches(path, itertools.chain(whole, file), delimiter, places, line)
            return
        cells, count = plain
        columns = {role: cells[place :: len(header)] for role, place in places.items()}
        yield Batch(range(line, line + count), columns)
        line, rest = line + count, text[end:]
    yield from _quoted_batches(path, io.StringIO(rest, newline=""), delimiter, places, line)


def _plain_cells(text: str, delimiter: str, width: int) -> tuple[list[str], int] | None:
    """All cells of whole lines and how many lines there are, at a third of the csv module's time;
    None where there is anything that it takes a parser to read."""
    if not text or '"' in text:
        return None
    text = text.replace("\r\n", "\n")
    lines = text[:-1].split("\n")
    if (
        "\r" in text
        or max(map(len, lines)) > csv.field_size_limit()
        or set(map(str.count, lines, itertools.repeat(delimiter))) != {width - 1}
    ):
        return None
    return text[:-1].replace("\n", delimiter).split(delimiter), len(lines)


def _quoted_batches(
    path: Path, lines: Iterable[str], delimiter: str, places: Mapping[str, int], first: int
) -> Iterator[Batch]:
    """first: the number of the first line in the file."""
    reader = csv.reader(lines, delimiter=delimiter)
    needed = max(places.values()) + 1
    try:
        while True:
            begin = first + reader.line_num
            rows = list(itertools.islice(reader, _BATCH_ROWS))
            if not rows:
                return
            numbers: Sequence[int] = range(begin, begin + len(rows))
            if min(map(len, rows)) < needed:
                numbers, rows = _whole_rows(numbers, rows, needed)
            columns = {role: [row[place] for row in rows] for role, place in places.items()}
            yield Batch(numbers, columns)
    except csv.Error as error:
        raise DataError(f"{path}, line {first + reader.line_num - 1}: {error}") from error


def _whole_rows(
    numbers: Sequence[int], rows: list[list[str]], needed: int
) -> tuple[Sequence[int], list[list[str]]]:
    """Blank lines are nothing; short rows get empty cells, which are complained of later."""
    kept = [(n, row) for n, row in zip(numbers, rows, strict=True) if row]
    filled = [row + [""] * (needed - len(row)) for _, row in kept]
    return [n for n, _ in kept], filled


def _json_batches(path: Path, file: Iterable[str]) -> Iterator[Batch]:
    chosen: dict[str, str] = {}
    numbered = enumerate(file, start=1)
    while lines := list(itertools.islice(numbered, _BATCH_ROWS)):
        rows, numbers = [], []
        for number, line in lines:
            if not line.strip():
                continue
            try:
                row = json.loads(line) if len(line) <= _MAX_LINE else None
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise DataError(
                    f"{path}, line {number}: not a JSON object",
                    fix='write one object a line, such as {"image": "a.jpg", "label": "cat"}',
                )
            rows.append(row)
            numbers.append(number)
        if not rows:
            continue
        chosen = chosen or choose_columns(path, rows[0])
        columns = {role: [json_cell(row.get(key)) for row in rows] for role, key in chosen.items()}
        yield Batch(numbers, columns)


def json_cell(value: object) -> str:
    """JSON's numbers and words as the text that a CSV would have; nothing is an empty cell.

    Parquet has more kinds: bytes are text in UTF-8, or hexadecimal digits where they are not; days
    and the like are as they print.
    """
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, (dict, list)):
        return ""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value.hex()
    return json.dumps(value) if isinstance(value, (bool, int, float)) else str(value)


@dataclass
class _Coded(dict[str, int]):
    """Text -> number, a new one for each new text."""

    def __missing__(self, text: str) -> int:
        self[text] = number = len(self)
        return number


@dataclass
class Rows:
    """Rows of one or more tables, column by column; a path costs its bytes and 20 more."""

    text: bytearray = field(default_factory=bytearray)
    lengths: array[int] = field(default_factory=lambda: array("i"))
    labels: array[int] = field(default_factory=lambda: array("i"))
    given: array[int] = field(default_factory=lambda: array("b"))
    groups: array[int] = field(default_factory=lambda: array("q"))
    weights: array[float] = field(default_factory=lambda: array("f"))
    quarantined: list[Skipped] = field(default_factory=list)
    ignored: list[Skipped] = field(default_factory=list)
    _label_of: _Coded = field(default_factory=_Coded)
    _group_of: _Coded = field(default_factory=_Coded)
    _lines: list[tuple[int, str, Sequence[int]]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.labels)

    def add(self, table: str, batch: Batch, number: int) -> NDArray[np.int64]:
        """number: the split of all rows, or -1 where a column says it or nobody does.

        Returns which rows of the batch can be used; the others are quarantined.
        """
        taken = np.arange(len(batch.lines))
        wrong = dict(self._wrong(batch))
        lines, columns = batch.lines, dict(batch.columns)
        if wrong:
            for row, (reason, text) in sorted(wrong.items()):
                name = str(columns["image"][row]) or table
                where = f"{table}, line {lines[row]}: {text}"
                self.quarantined.append(Skipped(name, reason, where))
            keep = [row for row in range(len(lines)) if row not in wrong]
            lines = [lines[row] for row in keep]
            columns = {role: [cells[row] for row in keep] for role, cells in columns.items()}
            taken = np.array(keep, dtype=np.int64)
        if not lines:
            return taken
        self._lines.append((len(self), table, lines))
        text = "".join(columns["image"])
        if text.isascii():
            self.text += text.encode("ascii")
            self.lengths.extend(map(len, columns["image"]))
        else:
            names = [os.fsencode(name) for name in columns["image"]]
            self.text += b"".join(names)
            self.lengths.extend(map(len, names))
        self.labels.extend(map(self._label_of.__getitem__, columns["label"]))
        if number >= 0 or "split" not in columns:
            self.given.extend(itertools.repeat(number, len(lines)))
        else:
            self.given.extend(splits.SPLIT_NAMES[cell.lower()] for cell in columns["split"])
        # Empty until there is a first one: most tables have neither.
        before = len(self) - len(lines)
        if "group" in columns:
            self.groups.extend(itertools.repeat(-1, before - len(self.groups)))
            cells = columns["group"]
            self.groups.extend(self._group_of[cell] if cell else -1 for cell in cells)
        if "weight" in columns:
            self.weights.extend(itertools.repeat(1.0, before - len(self.weights)))
            self.weights.extend(map(float, columns["weight"]))
        return taken

    def _wrong(self, batch: Batch) -> Iterator[tuple[int, tuple[str, str]]]:
        """(row, (reason, text)) of the rows of a batch that cannot be used."""
        columns = batch.columns
        for row in _where(columns.get("weight", ()), _is_no_weight):
            yield row, ("BAD_WEIGHT", f"'{columns['weight'][row]}' is no weight")
        for row in _where(columns.get("split", ()), _is_no_split):
            yield row, ("UNKNOWN_SPLIT", f"'{columns['split'][row]}' is no split")
        for row in _where(columns["label"], _is_empty):
            yield row, ("NO_LABEL", "no label")
        # All at once, because nearly always none is wrong.
        text = "".join(columns["image"])
        if not all(columns["image"]) or "\0" in text or not text.isascii():
            for row in _where(columns["image"], _is_no_path):
                yield row, ("NO_PATH", "no path")

    def line_of(self, row: int) -> str:
        """Where a row stands, for people."""
        first, table, lines = next(part for part in reversed(self._lines) if part[0] <= row)
        return f"{table}, line {lines[row - first]}"

    def dataset(
        self, name: str, asked: DataConfig, build: Build, *, folder: Path | None = None
    ) -> Dataset:
        """The rows that can be used, read by what `build` makes of their names and numbers.

        folder: where to look whether the files are there.

        Raises DataError: fewer than two classes are left.
        """
        ends = np.cumsum(np.frombuffer(self.lengths, dtype=np.int32), dtype=np.int64)
        # Handed over, not copied: half a gigabyte for ten million paths.
        texts = Names(self.text, ends)
        self.text, self.lengths = bytearray(), array("i")
        codes = np.frombuffer(self.labels, dtype=np.int32)
        given = np.frombuffer(self.given, dtype=np.int8).copy()
        given[given < 0] = splits.TRAIN
        keep = np.ones(len(self), dtype=np.bool_)
        self._drop_repeated(texts, codes, keep)
        stamps = None
        if folder is not None and len(self) <= CHECKED_ROWS:
            stamps = self._stat(texts, folder, keep)
        classes, label_of = self._classes(codes, given, keep, name)
        for row in np.flatnonzero(keep & (label_of[codes] < 0)).tolist():
            text = f"{self.line_of(row)}: class '{self._text_of(codes[row])}' is not in training"
            self.quarantined.append(Skipped(os.fsdecode(texts[row]), "UNKNOWN_CLASS", text))
            keep[row] = False
        groups = weights = None
        if self.groups:
            self.groups.extend(itertools.repeat(-1, len(self) - len(self.groups)))
            groups = np.frombuffer(self.groups, dtype=np.int64)[keep]
        if self.weights:
            self.weights.extend(itertools.repeat(1.0, len(self) - len(self.weights)))
            weights = np.frombuffer(self.weights, dtype=np.float32)[keep]
        rows = np.flatnonzero(keep)
        if not keep.all():
            texts = texts.take(rows)
            stamps = None if stamps is None else stamps[keep]
        source = build(texts, rows, stamps)
        notes = []
        if by_name := len(self) > CHECKED_ROWS:
            notes.append(
                f"{len(self):,} rows are known by their names and labels: no file is read before "
                "it is needed, and one that is changed later is not noticed"
            )
        labels = label_of[codes if keep.all() else codes[keep]]
        # 130 MB for ten million rows, while the splits are cut.
        del rows, codes
        self.labels, self.given = array("i"), array("b")
        return assemble(
            name,
            source,
            classes,
            labels,
            given[keep],
            asked,
            groups=groups if groups is not None and (groups >= 0).any() else None,
            weights=weights if weights is not None and (weights != 1.0).any() else None,
            quarantined=self.quarantined,
            ignored=self.ignored,
            notes=notes,
            by_name=by_name,
        )

    def _text_of(self, code: int) -> str:
        return list(self._label_of)[code]

    def _classes(
        self, codes: NDArray[np.int32], given: splits.Splits, keep: NDArray[np.bool_], name: str
    ) -> tuple[tuple[str, ...], NDArray[np.int64]]:
        """The classes, and the label of each code, -1 for one that training does not have."""
        trained = np.unique(codes[keep & (given == splits.TRAIN)]).tolist()
        texts = list(self._label_of)
        classes = tuple(sorted((texts[code] for code in trained), key=natural))
        if len(classes) < 2:
            said = "; ".join(f"{s.path}: {s.message}" for s in self.quarantined[:3])
            raise DataError(
                (f"only one class, '{classes[0]}', in {name}" if classes else f"no rows in {name}")
                + (f" ({len(self.quarantined)} rows cannot be used: {said})" if said else ""),
                fix="a classifier needs images of at least two classes",
            )
        place = {text: number for number, text in enumerate(classes)}
        return classes, np.array([place.get(text, -1) for text in texts], dtype=np.int64)

    def _drop_repeated(
        self, texts: Names, codes: NDArray[np.int32], keep: NDArray[np.bool_]
    ) -> None:
        """Rows of one path: one of them if they agree, none if they do not."""
        hashes = texts.hashes()
        # Of ten million paths that are all different, to know it takes a tenth of the time and a
        # third of the memory that it takes to say which rows are the same.
        ascending = np.sort(hashes)
        if not (ascending[1:] == ascending[:-1]).any():
            return
        del ascending
        order = np.argsort(hashes, kind="stable")
        same = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
        rows_of: dict[bytes, list[int]] = {}
        for row in sorted({*order[same].tolist(), *order[same + 1].tolist()}):
            rows_of.setdefault(texts[row], []).append(row)
        for path, rows in rows_of.items():
            conflict = len({int(codes[row]) for row in rows}) > 1
            for row in rows if conflict else rows[1:]:
                keep[row] = False
                if conflict:
                    names = " and ".join(sorted({self._text_of(int(codes[r])) for r in rows}))
                    text = f"{self.line_of(row)}: labelled {names}"
                    self.quarantined.append(Skipped(os.fsdecode(path), "CONFLICT", text))
                else:
                    text = f"{self.line_of(row)}, the same as {self.line_of(rows[0])}"
                    self.ignored.append(Skipped(os.fsdecode(path), "DUPLICATE_ROW", text))

    def _stat(self, texts: Names, folder: Path, keep: NDArray[np.bool_]) -> NDArray[np.int64]:
        stamps = np.zeros((len(self), 3), dtype=np.int64)
        root = os.path.realpath(os.fsencode(folder))
        for row, name in enumerate(texts):
            if not keep[row]:
                continue
            try:
                status = os.stat(os.path.join(root, name))  # noqa: PTH116, PTH118 (bytes)
                stamps[row] = status.st_size, status.st_mtime_ns, status.st_ctime_ns
            except (OSError, ValueError) as error:
                keep[row] = False
                reason = "NO_PERMISSION" if isinstance(error, PermissionError) else "MISSING"
                self.quarantined.append(Skipped(os.fsdecode(name), reason, self.line_of(row)))
        return stamps


def _where(cells: Sequence[Any], wrong: Callable[[Any], bool]) -> list[int]:
    """Rows whose cell is wrong; each different text is looked at once."""
    bad = {cell for cell in set(cells) if wrong(cell)}
    return [row for row, cell in enumerate(cells) if cell in bad] if bad else []


def _is_empty(cell: str) -> bool:
    return not cell.strip() or _is_no_text(cell)


def _is_no_path(cell: str) -> bool:
    return not cell or "\0" in cell or _is_no_text(cell)


def _is_no_text(cell: str) -> bool:
    """Half of a character, which JSON can write and no file name can hold."""
    try:
        os.fsencode(cell)
    except UnicodeEncodeError:
        return True
    return False


def _is_no_split(cell: str) -> bool:
    return cell.lower() not in splits.SPLIT_NAMES


def _is_no_weight(cell: str) -> bool:
    try:
        return not 0.0 <= float(cell) < float("inf")
    except ValueError:
        return True
