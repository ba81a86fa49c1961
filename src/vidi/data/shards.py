"""Tar shards in WebDataset's layout, on this machine or, through fsspec, in an object store.

The rules, stated once:

- A sample is a run of members with one name up to the first dot: `0001.jpg`, `0001.cls`. Its image
  is the member with the extension of one.
- Its label is `.cls`, `.label` or `.class` (text), else the label in `.json`, else the folder that
  it is in. Numbers become names where `classes.txt`, one name a line, lies beside the shards.
- Its split is what the shard's name begins with (`train-000001.tar`), else the folder of the shard,
  else the first folder of its name; training where none of them says one.
- Nothing is unpacked. Members are read from their place in the shard; links and devices are not
  followed. A shard must not be compressed: then it has no places.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from vidi.config import DataConfig
from vidi.data import split as splits
from vidi.data.cache import Digests, cache_folder, replace_file
from vidi.data.dataset import READ_THREADS, Dataset, Skipped, Source, content_digest
from vidi.data.files import MAX_FILE_BYTES, Names, read_part
from vidi.data.folder import EXTENSION, UNSUPPORTED
from vidi.data.named import Named, keys_of_places
from vidi.data.table import COLUMNS, Batch, Rows, json_cell
from vidi.errors import DamagedError, DataError, MissingExtra, StorageError, UnreadableImage

_SPLIT_OF_NAME: Final = re.compile(r"[A-Za-z]+")
_BRACES: Final = re.compile(r"\{(\d+)\.\.(\d+)\}")
_LABELS: Final = ("cls", "label", "class")
# A label of more bytes is no label.
_MAX_LABEL_BYTES: Final = 1 << 16
_MAX_SHARDS: Final = 1_000_000
# Raised when the same shard would give another index.
_INDEX_VERSION: Final = 1


def shards_of(folder: Path) -> list[Path]:
    """The shards of a folder and of its split folders."""
    found = sorted(folder.glob("*.tar"))
    for inner in sorted(folder.iterdir()):
        if inner.name.lower() in splits.SPLIT_NAMES and inner.is_dir():
            found += sorted(inner.glob("*.tar"))
    return [path for path in found if path.is_file()]


def open_shards(source: str | Path, asked: DataConfig) -> Dataset:
    """A folder of shards, one shard, or `train-{000..099}.tar`, also after `s3://` or `https://`.

    Raises DataError, DamagedError, MissingExtra.
    """
    text = str(source)
    stores: _Files = _Remote(text) if "://" in text else _Local()
    if "://" not in text and Path(text).is_dir():
        locations = [str(path) for path in shards_of(Path(text))]
    else:
        locations = [each for part in _expanded(text) for each in stores.list(part)]
    if not locations:
        raise DataError(f"no tar shards at {text}", fix="expected names such as train-000000.tar")
    cache_dir = cache_folder(asked.cache_dir)
    with ThreadPoolExecutor(READ_THREADS) as pool:
        indexes = list(pool.map(lambda each: _index(stores, each, cache_dir), locations))
    names = _class_names(stores, locations[0])
    # One folder: by file name. Several: they are those of the splits.
    parts = 1 if len({each.rpartition("/")[0] for each in locations}) == 1 else 2
    rows, kept = Rows(), list[NDArray[np.int64]]()
    for number, (location, index) in enumerate(zip(locations, indexes, strict=True)):
        shard = "/".join(location.split("/")[-parts:])
        columns = {
            "image": [f"{shard}/{name}" for name in index.names],
            "label": [names.get(label, label) for label in index.labels],
            "split": [_split_of(location, name) for name in index.names],
        }
        taken = rows.add(shard, Batch(range(1, len(index.names) + 1), columns), -1)
        places = np.array([index.offsets, index.sizes], dtype=np.int64).T.reshape(-1, 2)[taken]
        kept.append(np.insert(places, 0, number, axis=1))
        rows.quarantined += [Skipped(f"{shard}/{name}", *why) for name, why in index.quarantined]
        rows.ignored += [Skipped(f"{shard}/{name}", *why) for name, why in index.ignored]
    places = np.concatenate(kept)
    stamp = json.dumps(
        [[each, index.stamp] for each, index in zip(locations, indexes, strict=True)]
    )

    def build(texts: Names, keep: NDArray[np.int64], _: NDArray[np.int64] | None) -> Source:
        mine = places[keep]

        def read(row: int) -> bytes:
            shard, offset, size = mine[row].tolist()
            return stores.read(locations[shard], offset, size)

        remembered = Digests(cache_dir, os.fsencode(text))
        keys = functools.partial(keys_of_places, mine, stamp.encode())
        return Named(texts, read, keys, remembered, asked.read_limit_s)

    return rows.dataset(_name(text), asked, build)


def _name(text: str) -> str:
    if "://" not in text and Path(text).is_dir():
        return Path(text).resolve().name
    return re.sub(r"[-_.]*(\{.*\}|\*)?[-_.]*(tar)$", "", text.rsplit("/", 1)[-1]) or "shards"


def _expanded(text: str) -> list[str]:
    """`x-{08..10}.tar` -> three of them, with as many digits."""
    found = _BRACES.search(text)
    if found is None:
        return [text]
    first, last = int(found[1]), int(found[2])
    if not first <= last < first + _MAX_SHARDS:
        raise DataError(f"{text}: {found[0]} is no range of shards", fix="such as {000..099}")
    return [
        each
        for number in range(first, last + 1)
        for each in _expanded(
            text[: found.start()] + str(number).zfill(len(found[1])) + text[found.end() :]
        )
    ]


def _split_of(location: str, name: str) -> str:
    *folders, shard = location.split("/")
    begins = _SPLIT_OF_NAME.match(shard)
    for word in (begins[0] if begins else "", folders[-1] if folders else "", name.split("/")[0]):
        if word.lower() in splits.SPLIT_NAMES:
            return word
    return "train"


def _class_names(stores: _Files, location: str) -> dict[str, str]:
    """{"0": name, ...} from `classes.txt` beside the shards, or in the folder above them."""
    folder = location.rsplit("/", 1)[0] if "/" in location else "."
    above = folder.rsplit("/", 1)[0] if "/" in folder else "."
    for place in (folder, above):
        text = stores.text(f"{place}/classes.txt")
        if text is not None:
            lines = [line.strip() for line in text.split("\n") if line.strip()]
            return {str(number): name for number, name in enumerate(lines)}
    return {}


# Where shards lie ---------------------------------------------------------------------------------


class _Files(Protocol):
    """The few things that are asked of a disk or an object store."""

    def list(self, pattern: str) -> list[str]: ...

    def open(self, location: str) -> BinaryIO: ...

    def stamp(self, location: str) -> tuple[int, str]:
        """Size, and what changes when the contents do."""
        ...

    def read(self, location: str, offset: int, size: int) -> bytes:
        """Raises UnreadableImage."""
        ...

    def text(self, location: str) -> str | None: ...


class _Local:
    def list(self, pattern: str) -> list[str]:
        path = Path(pattern).expanduser()
        if "*" in path.name:
            return sorted(str(each) for each in path.parent.glob(path.name) if each.is_file())
        if not path.is_file():
            raise DataError(f"there is no shard {pattern}")
        return [str(path)]

    def open(self, location: str) -> BinaryIO:
        return Path(location).open("rb")

    def stamp(self, location: str) -> tuple[int, str]:
        status = Path(location).stat()
        return status.st_size, f"{status.st_mtime_ns} {status.st_ctime_ns}"

    def read(self, location: str, offset: int, size: int) -> bytes:
        return read_part(os.fsencode(location), offset, size)

    def text(self, location: str) -> str | None:
        try:
            return Path(location).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return None


class _Remote:
    """Through fsspec, which knows s3://, gs://, https:// and others by their own packages."""

    def __init__(self, text: str) -> None:
        kind = text.split("://", 1)[0]
        try:
            import fsspec  # noqa: PLC0415 (an extra)

            self._fs: Any = fsspec.filesystem(kind)
        except ImportError as error:
            raise MissingExtra(
                f"data at {kind}:// need a package that is not installed: {error}",
                fix='pip install "vidi[shards]"' + {"s3": " s3fs", "gs": " gcsfs"}.get(kind, ""),
            ) from error
        except ValueError as error:
            raise DataError(f"{text}: {error}") from error

    def list(self, pattern: str) -> list[str]:
        if "*" not in pattern:
            return [pattern]
        kind = pattern.split("://", 1)[0]
        with _said(pattern):
            found = sorted(self._fs.glob(pattern))
        return [each if "://" in each else f"{kind}://{each.lstrip('/')}" for each in found]

    def open(self, location: str) -> BinaryIO:
        with _said(location):
            # Headers lie between the images: what is read ahead is at least partly used.
            return cast(BinaryIO, self._fs.open(location, "rb", block_size=1 << 20))

    def stamp(self, location: str) -> tuple[int, str]:
        with _said(location):
            known = self._fs.info(location)
        if not isinstance(known.get("size"), int):
            raise DataError(
                f"{location}: its server does not say how long it is, nor gives parts of it",
                fix="download the shards, and give the folder that they are in",
            )
        marks = [known.get(key) for key in ("ETag", "etag", "mtime", "LastModified", "created")]
        return known["size"], json.dumps(marks, default=str)

    def read(self, location: str, offset: int, size: int) -> bytes:
        for _ in range(3):
            try:
                data = self._fs.cat_file(location, start=offset, end=offset + size)
            except FileNotFoundError as error:
                raise UnreadableImage("its shard is gone", reason="MISSING") from error
            except Exception as error:
                problem = error
                continue
            if len(data) == size:
                return bytes(data)
            problem = EOFError(f"{len(data):,} of {size:,} bytes")
        raise UnreadableImage(f"it cannot be read: {problem}", reason="READ_ERROR") from problem

    def text(self, location: str) -> str | None:
        try:
            return bytes(self._fs.cat_file(location)).decode()
        except Exception:
            return None


@contextlib.contextmanager
def _said(location: str) -> Iterator[None]:
    """Whatever an object store raises, as ours."""
    try:
        yield
    except DataError:
        raise
    except ImportError as error:
        raise MissingExtra(
            f"{location} needs a package that is not installed: {error}",
            fix='pip install "vidi[shards]"',
        ) from error
    except Exception as error:
        raise DataError(
            f"{location} cannot be read: {error or type(error).__name__}",
            fix="see that it is there and that you may read it",
        ) from error


# What is in a shard -------------------------------------------------------------------------------


@dataclass
class _Index:
    """Samples of one shard: names, labels as text, and where their images lie."""

    stamp: tuple[int, str]
    names: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    quarantined: list[tuple[str, tuple[str, str]]] = field(default_factory=list)
    ignored: list[tuple[str, tuple[str, str]]] = field(default_factory=list)


def _index(stores: _Files, location: str, cache_dir: Path) -> _Index:
    """Read from the headers of the shard, or kept from the last time if it has not changed."""
    if location.endswith(("gz", "tgz")):
        raise DataError(
            f"{location} is compressed: single images cannot be read out of it",
            fix=f"unpack it once: gunzip {location}; images are compressed already",
        )
    try:
        stamp = stores.stamp(location)
    except OSError as error:
        raise DataError(f"{location} cannot be read: {error.strerror}") from error
    key = content_digest(json.dumps([_INDEX_VERSION, location, stamp]).encode()).hex()
    path = cache_dir / "shards" / key
    kept = _recalled(path)
    if kept is not None:
        return kept
    index = _Index(stamp)
    try:
        with stores.open(location) as file:
            _read_members(file, index)
    except OSError as error:
        raise DataError(f"{location} cannot be read: {error.strerror or error}") from error
    body = json.dumps(asdict(index)).encode()
    # An aid: a cache that may only be read is no reason to stop.
    with contextlib.suppress(StorageError):
        replace_file(path, content_digest(body) + body)
    return index


def _recalled(path: Path) -> _Index | None:
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if content_digest(data[16:]) != data[:16]:
        return None
    known = json.loads(data[16:])
    for name in ("quarantined", "ignored"):
        known[name] = [(each, (why[0], why[1])) for each, why in known[name]]
    return _Index(**known)


def _read_members(file: BinaryIO, index: _Index) -> None:
    size = index.stamp[0]
    sample: list[tarfile.TarInfo] = []
    end = 0
    try:
        with tarfile.open(fileobj=file, mode="r:", errorlevel=2) as tar:
            for member in tar:
                # Otherwise all members of all shards stay in memory.
                tar.members = []  # type: ignore[attr-defined]
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    index.quarantined.append((member.name, ("SPECIAL_FILE", "no plain file")))
                elif member.offset_data + member.size > size:
                    index.quarantined.append((member.name, ("TRUNCATED", "the shard ends early")))
                else:
                    if sample and _key(sample[0].name) != _key(member.name):
                        _add_sample(file, sample, index)
                        sample = []
                    sample.append(member)
    except (tarfile.TarError, EOFError, ValueError, OverflowError, UnicodeError) as error:
        if not index.names and not sample:
            raise DamagedError(f"it is no tar file: {error}", fix="fetch it again") from error
        index.quarantined.append(("", ("TRUNCATED", f"the rest of the shard: {error}")))
    if sample:
        _add_sample(file, sample, index)
    # A tar file ends with blocks of zeros; without one, whatever came next is lost.
    if end + tarfile.BLOCKSIZE > size and not index.quarantined:
        index.quarantined.append(("", ("TRUNCATED", "the shard ends early")))


def _key(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.split(".", 1)[0]


def _add_sample(file: BinaryIO, sample: Sequence[tarfile.TarInfo], index: _Index) -> None:
    images, others = list[tarfile.TarInfo](), dict[str, tarfile.TarInfo]()
    known = len(index.quarantined)
    for member in sample:
        suffix = os.path.splitext(member.name)[1].lower()  # noqa: PTH122 (a name)
        if EXTENSION.fullmatch(suffix):
            images.append(member)
        elif UNSUPPORTED.fullmatch(suffix):
            text = f"{suffix} is not read here; convert it to JPEG or PNG"
            index.quarantined.append((member.name, ("UNSUPPORTED", text)))
        else:
            others.setdefault(suffix.lstrip("."), member)
    label = _label(file, others)
    for member in images:
        if member.size > MAX_FILE_BYTES:
            index.quarantined.append((member.name, ("TOO_LARGE", f"{member.size:,} bytes")))
            continue
        folder = member.name.rpartition("/")[0].rpartition("/")[2]
        index.names.append(member.name)
        index.labels.append(label if label is not None else folder)
        index.offsets.append(member.offset_data)
        index.sizes.append(member.size)
    if not images and len(index.quarantined) == known:
        index.ignored.extend((each.name, ("NO_IMAGE", "")) for each in others.values())


def _label(file: BinaryIO, others: dict[str, tarfile.TarInfo]) -> str | None:
    """The text of the label, "" where it cannot be read; None where no member holds one."""

    def content(member: tarfile.TarInfo) -> str:
        if member.size > _MAX_LABEL_BYTES:
            return ""
        before = file.tell()
        file.seek(member.offset_data)
        text = file.read(member.size).decode("utf-8", "surrogateescape")
        file.seek(before)
        return text.strip()

    for kind in _LABELS:
        if kind in others:
            return content(others[kind])
    if "json" in others:
        try:
            row = json.loads(content(others["json"]))
        except (ValueError, RecursionError):
            return ""
        if isinstance(row, dict):
            for name in (*COLUMNS["label"], "cls"):
                if name in row:
                    return json_cell(row[name])
    return None
