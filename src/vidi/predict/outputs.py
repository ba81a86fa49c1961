"""Rows -> CSV, JSON lines or Parquet.

A name that a spreadsheet would run as a formula (it begins with = + - @, a tab or a return) gets an
apostrophe in front in CSV; JSON lines and Parquet hold names exactly. Bytes of a name that are no
UTF-8 stay those bytes in CSV, and are `\\udc80` to `\\udcff` in JSON lines.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from vidi import storage
from vidi.errors import DamagedError, MismatchError, MissingExtra, UsageError
from vidi.storage import shown

Format = Literal["csv", "jsonl", "parquet"]
FORMATS: Final[tuple[Format, ...]] = ("csv", "jsonl", "parquet")
_ENDINGS: Final[dict[str, Format]] = {
    ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet",
}  # fmt: skip
_DANGEROUS: Final = ("=", "+", "-", "@", "\t", "\r")
_PARQUET_ROWS: Final = 4096


@dataclass(frozen=True, slots=True)
class Row:
    """What is known about one file: an error, or what the model says."""

    file: str
    # The code of what is wrong with the file and a sentence; empty where nothing is.
    reason: str = ""
    message: str = ""
    abstained: bool = False
    # (class, probability), the most probable first, as many as were asked for.
    top: tuple[tuple[str, float], ...] = ()
    # Of every class, in the order of the classes.
    probabilities: tuple[float, ...] = ()
    embedding: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Columns:
    """What each row has besides the file, the label and its probability."""

    classes: tuple[str, ...]
    top: int = 1
    probabilities: bool = False
    num_features: int = 0


class Writer(Protocol):
    """Where rows go."""

    def write(self, row: Row) -> None: ...

    def flush(self) -> None:
        """What was written until now survives a kill of this process."""

    def close(self) -> None: ...


def format_of(out: Path | None, asked: str | None) -> Format:
    """By name, else by the ending of the file, else JSON lines.

    Raises:
        UsageError: no such format, or an ending that says nothing.
    """
    if asked is not None:
        for known in FORMATS:
            if known == asked:
                return known
        raise UsageError(f"no format '{asked}'", fix=f"known are {', '.join(FORMATS)}")
    if out is None:
        return "jsonl"
    found = _ENDINGS.get(out.suffix.lower())
    if found is None:
        raise UsageError(
            f"the ending of {shown(out)} does not say which format",
            fix=f"end it in {', '.join(_ENDINGS)}, or say --format",
        )
    return found


@contextlib.contextmanager
def open_writer(
    out: Path | IO[str], form: Format, columns: Columns, *, append: bool = False
) -> Iterator[Writer]:
    """A writer to a file or to standard output; append goes on after the rows that are there.

    Raises:
        UsageError: the file exists, or Parquet to standard output.
        MissingExtra: Parquet needs pyarrow.
        StorageError: it cannot be written.
    """
    if form == "parquet":
        if not isinstance(out, Path):
            raise UsageError("Parquet cannot be written to a pipe", fix="--out FILE.parquet")
        with _parquet(out, columns) as parquet:
            yield parquet
        return
    if isinstance(out, Path):
        with storage.explained("cannot write", out):
            file: IO[str] = out.open(
                "a" if append else "x",
                encoding="utf-8",
                errors="surrogateescape",
                newline="",
            )
    else:
        file = out
    writer = (_Csv if form == "csv" else _Jsonl)(file, columns, header=not append)
    try:
        yield writer
    finally:
        if isinstance(out, Path):
            with storage.explained("cannot write", out):
                writer.close()
                file.close()
        else:
            writer.close()


class _Jsonl:
    def __init__(self, file: IO[str], columns: Columns, *, header: bool) -> None:
        del header
        self._file = file
        self._columns = columns

    def write(self, row: Row) -> None:
        record: dict[str, Any] = {"file": row.file}
        if row.reason:
            record |= {"error": row.reason, "message": row.message}
        else:
            label, probability = row.top[0]
            record |= {"label": label, "probability": _short(probability)}
            if row.abstained:
                record["abstained"] = True
            record["top"] = [
                {"label": name, "probability": _short(share)} for name, share in row.top
            ]
            if self._columns.probabilities:
                record["probabilities"] = [_short(share) for share in row.probabilities]
            if self._columns.num_features:
                record["embedding"] = [_short(value) for value in row.embedding]
        self._file.write(json.dumps(record, allow_nan=False) + "\n")

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.flush()


class _Csv:
    def __init__(self, file: IO[str], columns: Columns, *, header: bool) -> None:
        self._file = file
        self._columns = columns
        self._writer = csv.writer(file, lineterminator="\n")
        if header:
            self._writer.writerow(self._header())

    def _header(self) -> list[str]:
        names = ["file", "label", "probability", "abstained", "error"]
        for place in range(2, self._columns.top + 1):
            names += [f"label_{place}", f"probability_{place}"]
        if self._columns.probabilities:
            names += [inert(f"probability of {name}") for name in self._columns.classes]
        names += [f"embedding_{i}" for i in range(self._columns.num_features)]
        return names

    def write(self, row: Row) -> None:
        if row.reason:
            self._writer.writerow([inert(row.file), "", "", "", f"{row.reason}: {row.message}"])
            return
        label, probability = row.top[0]
        cells = [inert(row.file), inert(label), f"{probability:.6g}"]
        cells += ["true" if row.abstained else "false", ""]
        for name, share in row.top[1:]:
            cells += [inert(name), f"{share:.6g}"]
        cells += [""] * (2 * (self._columns.top - len(row.top)))
        cells += [f"{share:.6g}" for share in row.probabilities]
        cells += [f"{value:.6g}" for value in row.embedding]
        self._writer.writerow(cells)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.flush()


def inert(name: str) -> str:
    """A name as a spreadsheet will show it."""
    return f"'{name}" if name.startswith(_DANGEROUS) else name


@contextlib.contextmanager
def _parquet(out: Path, columns: Columns) -> Iterator[Writer]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise MissingExtra(
            "writing Parquet needs pyarrow", fix="pip install 'vidi[parquet]'"
        ) from None
    if os.path.lexists(out):
        raise UsageError(f"{shown(out)} exists already", fix="name another file, or delete it")
    fields: list[tuple[str, Any]] = [
        ("file", pyarrow.string()),
        ("label", pyarrow.string()),
        ("probability", pyarrow.float32()),
        ("abstained", pyarrow.bool_()),
        ("error", pyarrow.string()),
        ("message", pyarrow.string()),
    ]
    if columns.top > 1:
        fields.append(("top_labels", pyarrow.list_(pyarrow.string())))
        fields.append(("top_probabilities", pyarrow.list_(pyarrow.float32())))
    if columns.probabilities:
        fields.append(("probabilities", pyarrow.list_(pyarrow.float32())))
    if columns.num_features:
        fields.append(("embedding", pyarrow.list_(pyarrow.float32())))
    metadata = {"classes": json.dumps(columns.classes)}
    schema = pyarrow.schema(fields, metadata=metadata)
    # Its table of contents comes last: a file that was cut off is none, so it gets its name late.
    beside = out.with_name(f".{out.name}.part")
    with storage.explained("cannot write", out):
        file = parquet.ParquetWriter(str(beside), schema, compression="zstd")
        try:
            rows = _ParquetRows(file, schema, pyarrow)
            yield rows
            rows.close()
            file.close()
            beside.replace(out)
        finally:
            with contextlib.suppress(OSError):
                file.close()
                beside.unlink(missing_ok=True)


class _ParquetRows:
    def __init__(self, file: Any, schema: Any, pyarrow: Any) -> None:
        self._file, self._schema, self._pyarrow = file, schema, pyarrow
        self._rows: list[dict[str, Any]] = []

    def write(self, row: Row) -> None:
        label, probability = row.top[0] if row.top else (None, None)
        self._rows.append(
            {
                # Parquet's text is UTF-8: bytes that are none become the mark for that.
                "file": row.file.encode("utf-8", "surrogateescape").decode("utf-8", "replace"),
                "label": label,
                "probability": probability,
                "abstained": None if row.reason else row.abstained,
                "error": row.reason or None,
                "message": row.message or None,
                "top_labels": [name for name, _ in row.top],
                "top_probabilities": [share for _, share in row.top],
                "probabilities": row.probabilities,
                "embedding": row.embedding,
            }
        )
        if len(self._rows) >= _PARQUET_ROWS:
            self.flush()

    def flush(self) -> None:
        if self._rows:
            table = self._pyarrow.Table.from_pylist(self._rows, schema=self._schema)
            self._file.write_table(table)
            self._rows = []

    def close(self) -> None:
        self.flush()


def _short(value: float) -> float:
    """Six digits: what float32 carries."""
    return float(f"{value:.6g}")


# ------------------------------------------------------------------------------------------- resume


def done_files(out: Path, form: Format) -> NDArray[np.uint64]:
    """Digests of the files that `out` has rows of, sorted; a torn last row is cut off.

    8 bytes a file: a million of them are 8 MB.

    Raises:
        UsageError: Parquet, which cannot be continued.
        DamagedError: a row that is none of ours.
    """
    if form == "parquet":
        raise UsageError(
            "a Parquet file cannot be continued", fix="use .jsonl or .csv for what may be stopped"
        )
    _cut_torn_row(out)
    if form == "csv":
        # A name may hold a line feed: what is cut off inside of quotes is a torn row too.
        while _has_open_quote(out):
            _cut_torn_row(out, whole=False)
    digests: list[int] = []
    with out.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows: Any = csv.reader(file) if form == "csv" else file
        for number, row in enumerate(rows, start=1):
            if form == "csv":
                if number == 1:
                    continue
                name = row[0] if row else None
            else:
                name = _file_of(row)
            if name is None:
                raise DamagedError(
                    f"{shown(out)}, row {number}, is none of vidi's", fix="begin anew elsewhere"
                )
            digests.append(digest_of(name))
    return np.unique(np.array(digests, dtype=np.uint64))


def digest_of(name: str) -> int:
    """64 bits of a name as it stands in the file."""
    data = name.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _file_of(line: str) -> str | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    name = record.get("file") if isinstance(record, dict) else None
    return name if isinstance(name, str) else None


def _has_open_quote(out: Path) -> bool:
    with out.open("rb") as file:
        return sum(part.count(b'"') for part in iter(lambda: file.read(1 << 20), b"")) % 2 == 1


def _cut_torn_row(out: Path, *, whole: bool = True) -> None:
    """Cut what comes after the last line feed; not `whole`: after the last but one."""
    with storage.explained("cannot continue", out), out.open("r+b") as file:
        size = file.seek(0, io.SEEK_END)
        at = size if whole else size - 1
        while at > 0:
            start = max(0, at - (1 << 16))
            file.seek(start)
            found = file.read(at - start).rfind(b"\n")
            if found >= 0:
                at = start + found + 1
                break
            at = start
        if at != size:
            file.truncate(at)


def check_continues(out: Path, about: dict[str, Any], *, resume: bool) -> None:
    """Write what made `out` beside it, or compare with what did.

    Raises:
        MismatchError: it was made by another model or with other options.
    """
    beside = out.with_name(out.name + ".about.json")
    if resume and os.path.lexists(beside):
        was = storage.parse_json(storage.read_file(beside, limit_bytes=1 << 24), shown(beside))
        differ = sorted(
            name for name in about.keys() | was.keys() if about.get(name) != was.get(name)
        )
        if differ:
            raise MismatchError(
                f"{shown(out)} was begun with another {', '.join(differ)}",
                fix="name another file, or go on as it was begun",
            )
        return
    storage.write_file(beside, storage.dump_json(about, indent=1))


def columns_of(
    classes: Sequence[str], *, top: int, probabilities: bool, num_features: int
) -> Columns:
    """At most as many places as there are classes."""
    return Columns(tuple(classes), min(top, len(classes)), probabilities, num_features)
