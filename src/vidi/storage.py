"""Durable state: everything that vidi means to keep on a disk is written through this module.

A file or folder written here is complete or absent, after a kill and after a power loss: it is
written beside its place (never in the temporary folder, which may be another disk), flushed,
renamed, and then the folder that names it is flushed too. A folder carries `manifest.json`, written
last, with the size and SHA-256 of each of its files.

The order of operations follows T. S. Pillai et al., "All File Systems Are Not Created Equal: On the
Complexity of Crafting Crash-Consistent Applications" (OSDI 2014). That a file whose flush failed
is dropped, never flushed again: A. Rebello et al., "Can Applications Recover from fsync Failures?"
(USENIX ATC 2020).

The operations that change a disk sit behind `Disk`, so that tests can stop after any of them, make
any of them fail, and lose or tear what was not flushed. POSIX systems only.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import re
import secrets
import socket
import stat
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, final

from vidi.errors import DamagedError, InUseError, StorageError, UsageError

__all__ = [
    "ASIDE",
    "DISK",
    "MANIFEST",
    "Buffer",
    "Disk",
    "FileEntry",
    "LineLog",
    "LocalDisk",
    "Lock",
    "Manifest",
    "NewerFormatError",
    "discard_folder",
    "dump_json",
    "explained",
    "is_leftover",
    "make_folder",
    "parse_json",
    "read_file",
    "read_manifest",
    "read_member",
    "remove_leftovers",
    "sha256",
    "shown",
    "verify_folder",
    "write_file",
    "write_folder",
]

MANIFEST: Final = "manifest.json"
MANIFEST_FORMAT: Final = 1
# A manifest of a thousand files is 120 kB. More than this is not ours, and is not read into memory.
MANIFEST_LIMIT_BYTES: Final = 16 << 20

# Suffix of the earlier folder while a new one takes its place; see `write_folder`.
ASIDE: Final = ".old"

_MEMBER_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")

_CHUNK_BYTES: Final = 1 << 20

Buffer = bytes | bytearray | memoryview


class NewerFormatError(DamagedError):
    """Files that are whole, but were written by a later version of vidi."""


# ---- The disk ------------------------------------------------------------------------------------


class Disk(Protocol):
    """The operations that change a disk. Each raises OSError; none retries or hides anything."""

    def create(self, path: Path) -> int:
        """Makes a file that must not exist, and returns its descriptor for writing."""

    def open_append(self, path: Path) -> int:
        """Opens (or makes) a file for reading and appending; a symbolic link is an error."""

    def write(self, descriptor: int, data: Buffer) -> None:
        """Writes all of `data`."""

    def truncate(self, descriptor: int, size: int) -> None: ...

    def fsync(self, descriptor: int) -> None: ...

    def close(self, descriptor: int) -> None: ...

    def mkdir(self, path: Path, mode: int = 0o777) -> None: ...

    def rename(self, source: Path, target: Path) -> None: ...

    def unlink(self, path: Path) -> None: ...

    def rmdir(self, path: Path) -> None: ...

    def fsync_dir(self, path: Path) -> None:
        """Makes the names in a folder durable: what was created, renamed and removed there."""


@final
class LocalDisk:
    """The real one."""

    def create(self, path: Path) -> int:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)

    def open_append(self, path: Path) -> int:
        return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)

    def write(self, descriptor: int, data: Buffer) -> None:
        rest = memoryview(data).cast("B")
        while rest:
            rest = rest[os.write(descriptor, rest) :]

    def truncate(self, descriptor: int, size: int) -> None:
        os.ftruncate(descriptor, size)

    def fsync(self, descriptor: int) -> None:
        if sys.platform == "darwin":
            # There, fsync leaves the data in the drive's cache.
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
        else:
            os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def mkdir(self, path: Path, mode: int = 0o777) -> None:
        path.mkdir(mode=mode)

    def rename(self, source: Path, target: Path) -> None:
        source.rename(target)

    def unlink(self, path: Path) -> None:
        path.unlink()

    def rmdir(self, path: Path) -> None:
        path.rmdir()

    def fsync_dir(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            # Some network and user-space file systems cannot flush a folder; they have no
            # operation that would do more, and their renames are the server's business.
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
        finally:
            os.close(descriptor)


DISK: Final = LocalDisk()


# ---- Words for what went wrong -------------------------------------------------------------------


def shown(path: Path | str) -> str:
    """A path as one printable line: control characters and undecodable bytes are escaped."""
    text = str(path)
    if text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable()
        else character.encode("unicode_escape", "surrogatepass").decode("ascii")
        for character in text
    )


_WORDS: Final[Mapping[int, tuple[str, str]]] = {
    errno.ENOSPC: ("the disk is full", "free some space there"),
    errno.EDQUOT: ("your disk quota is used up", "free some of your space there, or ask for more"),
    errno.EROFS: ("the disk is read-only", "mount it writable, or choose another place"),
    errno.EACCES: ("permission denied", "change the permissions, or choose another place"),
    errno.EPERM: ("not permitted", "change the owner or the permissions, or choose another place"),
    errno.EIO: ("the disk reports an input/output error", "check its health; use another disk"),
    errno.ENOENT: ("it, or the folder that it is in, is gone", "put the folder back"),
    errno.ENOTDIR: ("a part of that path is a file, not a folder", "choose another place"),
    errno.EISDIR: ("a folder stands there", "move it away"),
    errno.EEXIST: ("something stands there already", "move it away"),
    errno.ENOTEMPTY: ("a folder that is not empty stands there", "move it away"),
    errno.ELOOP: ("it is a symbolic link", "put the real file in its place"),
    errno.EMFILE: ("this process has too many open files", "raise the limit: ulimit -n 4096"),
    errno.ENFILE: ("the machine has too many open files", "end other programs"),
    errno.ENAMETOOLONG: ("the path is too long", "choose a shorter one"),
    errno.EFBIG: ("the file is larger than is allowed", "raise the limit (ulimit -f), other disk"),
    errno.ESTALE: ("the network disk lost track of it", "mount it anew"),
    errno.EXDEV: ("that folder is on two disks", "choose a place on one disk"),
    errno.EBUSY: ("it is in use by the system", "choose another place"),
}


def _storage_error(error: OSError, doing: str, path: Path) -> StorageError:
    words, fix = _WORDS.get(error.errno or 0, (error.strerror or str(error), "see to that disk"))
    if error.errno == errno.ENOSPC and _free_inodes(path) == 0:
        words, fix = "no more files fit on the disk (no inodes left)", "delete files there"
    return StorageError(f"{doing} {shown(path)}: {words}", fix=f"{fix}, then try again")


def _free_inodes(path: Path) -> int | None:
    for place in (path, *path.parents):
        try:
            numbers = os.statvfs(place)
        except OSError:
            continue
        # File systems that have no fixed number of inodes say 0 of 0.
        return numbers.f_favail if numbers.f_files else None
    return None


@contextlib.contextmanager
def explained(doing: str, path: Path) -> Iterator[None]:
    """Turns an OSError of the block into a StorageError that names `path` and the way out."""
    try:
        yield
    except OSError as error:
        raise _storage_error(error, doing, path) from error


# ---- JSON ----------------------------------------------------------------------------------------


def dump_json(value: object, *, indent: int | None = None) -> bytes:
    """UTF-8 JSON, keys sorted, floats exact, one newline at the end.

    Tuples become lists. Raises UsageError, naming the place in `value`, for NaN, infinity, keys
    that are not strings and types that JSON does not have.
    """
    _check_json(value, "")
    separators = (",", ":") if indent is None else (",", ": ")
    text = json.dumps(value, allow_nan=False, sort_keys=True, indent=indent, separators=separators)
    return text.encode("ascii") + b"\n"


def _check_json(value: object, where: str) -> None:
    if value is None or isinstance(value, bool | int | str):
        return
    if isinstance(value, float):
        if not math.isfinite(value):
            raise UsageError(
                f"{where.lstrip('.') or 'the value'} is {value}, which JSON cannot hold",
                fix="write None where a number does not exist",
            )
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise UsageError(f"key {key!r} of {where.lstrip('.') or 'the value'} is no string")
            _check_json(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_json(item, f"{where}[{index}]")
    else:
        raise UsageError(
            f"{where.lstrip('.') or 'the value'} is a {type(value).__name__}, which JSON does not "
            "have",
            fix="use dict, list, str, int, float, bool or None",
        )


def parse_json(data: bytes, where: str) -> Any:
    """The value of one JSON document; DamagedError, naming `where`, for anything that is not one.

    NaN, infinity, doubled keys, endless nesting and endless numbers are refused.
    """
    try:
        return _STRICT_JSON.decode(data.decode("utf-8"))
    except RecursionError:
        raise DamagedError(f"{where} is damaged: nested too deeply") from None
    except ValueError as error:
        raise DamagedError(f"{where} is damaged: {error}") from error


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands there twice")
    return found


_STRICT_JSON: Final = json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=_unique_keys)


# ---- Files ---------------------------------------------------------------------------------------


def _beside(path: Path) -> Path:
    # Not derived from the name, which may already be as long as names can be.
    return path.parent / f".{secrets.token_hex(6)}.tmp"


def is_leftover(name: str) -> bool:
    """Whether that is the name of a file or folder whose writing was cut off."""
    return name.startswith(".") and name.endswith(".tmp")


def _write_new(path: Path, data: Buffer, disk: Disk) -> None:
    descriptor = disk.create(path)
    try:
        disk.write(descriptor, data)
        disk.fsync(descriptor)
    finally:
        disk.close(descriptor)


def write_file(path: Path, data: Buffer, *, disk: Disk = DISK) -> None:
    """Puts `data` at `path`, in place of what stood there; afterwards it survives a power loss.

    Raises StorageError; the earlier file is then still there, whole.
    """
    beside = _beside(path)
    try:
        with explained("cannot write", path):
            _write_new(beside, data, disk)
            disk.rename(beside, path)
            disk.fsync_dir(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            _remove_tree(beside, disk)
        raise


# Errors of reading that say something about the file, not about this process or its permissions.
_DAMAGE: Final = frozenset(
    {
        errno.ENOENT,
        errno.ELOOP,
        errno.EISDIR,
        errno.ENXIO,
        errno.EIO,
        errno.EBADMSG,
        getattr(errno, "EUCLEAN", errno.EIO),
    }
)


def _damage(error: OSError, path: Path) -> str:
    """What is wrong with the file itself, in words. Raises StorageError for anything else."""
    if error.errno == errno.ENOENT:
        return "is missing"
    if error.errno == errno.ELOOP:
        return "is a symbolic link"
    if error.errno == errno.ENXIO:
        return "is not a regular file"
    if error.errno in _DAMAGE:
        return f"cannot be read ({error.strerror})"
    raise _storage_error(error, "cannot read", path) from error


def _open_to_read(path: Path) -> int:
    # A named pipe would keep us waiting for somebody who writes to it.
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)


def read_file(path: Path, *, limit_bytes: int | None = None) -> bytes:
    """The bytes of a regular file. A symbolic link is not followed, a special file not opened.

    Raises DamagedError for a file that is missing, unreadable by the disk, no regular file or
    longer than the limit; StorageError for other reasons, as missing permissions.
    """
    try:
        with open(_open_to_read(path), "rb") as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise DamagedError(f"{shown(path)} is not a regular file")
            if limit_bytes is not None and about.st_size > limit_bytes:
                raise DamagedError(
                    f"{shown(path)} has {about.st_size} bytes; at most {limit_bytes} are expected"
                )
            return file.read()
    except OSError as error:
        raise DamagedError(f"{shown(path)} {_damage(error, path)}") from error


def make_folder(path: Path, *, mode: int = 0o777, disk: Disk = DISK) -> None:
    """Makes a folder and the ones above it, each durable. One that exists is left as it is.

    `mode` is for the last one. Raises StorageError.
    """
    with explained("cannot make the folder", path):
        if path.is_dir():
            return
        missing = [path]
        while not missing[-1].parent.exists():
            missing.append(missing[-1].parent)
        for folder in reversed(missing):
            try:
                disk.mkdir(folder, mode if folder == path else 0o777)
            except FileExistsError:
                if not folder.is_dir():
                    raise
            else:
                disk.fsync_dir(folder.parent)


# ---- Folders with a manifest ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FileEntry:
    """What a manifest says about one file."""

    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The files of a folder, by name, without the manifest itself."""

    files: Mapping[str, FileEntry]


def _manifest_bytes(manifest: Manifest) -> bytes:
    record: dict[str, Any] = {
        "format": MANIFEST_FORMAT,
        "files": {
            name: {"bytes": entry.num_bytes, "sha256": entry.sha256}
            for name, entry in manifest.files.items()
        },
    }
    # Its own checksum covers all of it. It keeps this rule in every later format, so that a newer
    # manifest can be told from a damaged one.
    record["sha256"] = hashlib.sha256(dump_json(record, indent=1)).hexdigest()
    return dump_json(record, indent=1)


def write_folder(path: Path, files: Mapping[str, Buffer], *, disk: Disk = DISK) -> Manifest:
    """Puts a folder of `files` with its manifest at `path`, in place of one that stood there.

    It was read back and compared before it got its name. While one folder replaces another there is
    an instant in which only `path` + ".old" has a name; readers try that too (`verify_folder`
    does not). Raises StorageError; what stood there before is then still there, whole.
    """
    for name in files:
        if name == MANIFEST or not _MEMBER_NAME.fullmatch(name):
            raise UsageError(f"{name!r} cannot be the name of a file in {shown(path)}")
    beside = _beside(path)
    aside = path.with_name(path.name + ASIDE)
    try:
        with explained("cannot write", path):
            _settle(path, aside, disk)
            disk.mkdir(beside)
            manifest = _write_members(beside, files, disk)
            disk.fsync_dir(beside)
            _read_back(beside, path)
            replaced = os.path.lexists(path)
            if replaced:
                disk.rename(path, aside)
            try:
                disk.rename(beside, path)
                disk.fsync_dir(path.parent)
            except OSError:
                # Nobody knows what of it is on the disk: it goes, and what was there comes back.
                if not os.path.lexists(beside):
                    disk.rename(path, beside)
                if replaced:
                    disk.rename(aside, path)
                raise
    except BaseException:
        with contextlib.suppress(OSError):
            _remove_tree(beside, disk)
        raise
    if replaced:
        with contextlib.suppress(OSError):
            _remove_tree(aside, disk)
    return manifest


def _settle(path: Path, aside: Path, disk: Disk) -> None:
    """Ends a replacement that was cut off in the middle."""
    if os.path.lexists(aside):
        if os.path.lexists(path):
            _remove_tree(aside, disk)
        else:
            disk.rename(aside, path)
            disk.fsync_dir(path.parent)


def _write_members(folder: Path, files: Mapping[str, Buffer], disk: Disk) -> Manifest:
    # SHA-256 of 60 MB takes 43 ms and writing it 50 ms on a Zen 4 core (2026-11-22): side by side.
    with ThreadPoolExecutor(max_workers=1) as hashing:
        digests = {name: hashing.submit(sha256, data) for name, data in files.items()}
        for name, data in files.items():
            _write_new(folder / name, data, disk)
        manifest = Manifest(
            {
                name: FileEntry(memoryview(data).nbytes, digests[name].result())
                for name, data in files.items()
            }
        )
    _write_new(folder / MANIFEST, _manifest_bytes(manifest), disk)
    return manifest


def sha256(data: Buffer) -> str:
    """In hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def _read_back(folder: Path, path: Path) -> None:
    try:
        verify_folder(folder)
    except DamagedError as error:
        raise StorageError(
            f"{shown(path)}: the disk gives back something else than was written: {error.message}",
            fix="check the disk and the memory of this machine; use another disk",
        ) from error


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder, itself checked; the files are not looked at.

    Raises DamagedError, NewerFormatError, StorageError.
    """
    data = read_file(folder / MANIFEST, limit_bytes=MANIFEST_LIMIT_BYTES)
    record = parse_json(data, f"{shown(folder)}: {MANIFEST}")
    damaged = DamagedError(f"{shown(folder)}: {MANIFEST} is damaged")
    if not isinstance(record, dict):
        raise damaged
    written = record.pop("sha256", None)
    if written != hashlib.sha256(dump_json(record, indent=1)).hexdigest():
        raise damaged
    # Other white space means the same, but nothing of ours writes it: a byte has changed.
    if dump_json(record | {"sha256": written}, indent=1) != data:
        raise damaged
    if record.get("format") != MANIFEST_FORMAT:
        raise NewerFormatError(
            f"{shown(folder)} is of format {record.get('format')}; this vidi reads format "
            f"{MANIFEST_FORMAT}",
            fix="use the version of vidi that wrote it, or a later one",
        )
    try:
        return Manifest(
            {
                name: FileEntry(int(entry["bytes"]), str(entry["sha256"]))
                for name, entry in record["files"].items()
            }
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise damaged from error


def verify_folder(folder: Path) -> Manifest:
    """The manifest of a folder in which every file is as it was written, and no other is.

    Raises DamagedError that names every file that is missing, extra, changed, cut off, or no file
    (a symbolic link is never followed); NewerFormatError; StorageError when it cannot be read.
    The manifest tells damage, not tampering: whoever edits both can deceive it.
    """
    try:
        if not stat.S_ISDIR(folder.lstat().st_mode):
            raise DamagedError(f"{shown(folder)} is not a folder")
        present = {entry.name for entry in os.scandir(folder)}
    except OSError as error:
        raise DamagedError(f"{shown(folder)} {_damage(error, folder)}") from error
    manifest = read_manifest(folder)
    names = sorted(manifest.files)
    problems = [
        f"{shown(name)} {what}"
        for name, what in zip(names, _problems(folder, names, manifest), strict=True)
        if what
    ]
    problems += [
        f"{shown(name)} is not in the manifest"
        for name in sorted(present - set(names) - {MANIFEST})
    ]
    if problems:
        raise DamagedError(f"{shown(folder)}: {'; '.join(problems)}")
    return manifest


def _problems(folder: Path, names: Sequence[str], manifest: Manifest) -> list[str]:
    def check(name: str) -> str:
        return _problem(folder / name, manifest.files[name])

    if sum(entry.num_bytes for entry in manifest.files.values()) < 4 * _CHUNK_BYTES:
        return [check(name) for name in names]
    with ThreadPoolExecutor(max_workers=2) as readers:
        return list(readers.map(check, names))


def _problem(path: Path, entry: FileEntry) -> str:
    """What is wrong with one file, in words; nothing: an empty string."""
    try:
        with open(_open_to_read(path), "rb", buffering=0) as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                return "is not a regular file"
            if about.st_size != entry.num_bytes:
                return f"has {about.st_size} bytes instead of {entry.num_bytes}"
            digest = hashlib.sha256()
            chunk = bytearray(_CHUNK_BYTES)
            while count := file.readinto(chunk):
                digest.update(memoryview(chunk)[:count])
    except OSError as error:
        return _damage(error, path)
    return "" if digest.hexdigest() == entry.sha256 else "has changed (other SHA-256)"


def read_member(folder: Path, name: str, manifest: Manifest) -> bytes:
    """One file of a folder, compared with the manifest on the way.

    Raises UsageError for a name that the manifest does not have, DamagedError, StorageError.
    """
    if name not in manifest.files:
        raise UsageError(
            f"{shown(folder)} has no file {name!r}", fix=f"it has {', '.join(manifest.files)}"
        )
    entry = manifest.files[name]
    data = read_file(folder / name, limit_bytes=entry.num_bytes)
    if len(data) != entry.num_bytes or sha256(data) != entry.sha256:
        raise DamagedError(f"{shown(folder)}: {shown(name)} has changed")
    return data


def discard_folder(paths: Iterable[Path], *, disk: Disk = DISK) -> None:
    """Removes folders that stand side by side, so that none is ever seen half-removed."""
    doomed: list[Path] = []
    for path in paths:
        with explained("cannot remove", path):
            beside = _beside(path)
            disk.rename(path, beside)
            doomed.append(beside)
    for parent in {path.parent for path in doomed}:
        # Otherwise a power loss could undo the renaming and keep the removals inside.
        with explained("cannot remove folders in", parent):
            disk.fsync_dir(parent)
    for path in doomed:
        with explained("cannot remove", path):
            _remove_tree(path, disk)


def remove_leftovers(folder: Path, *, disk: Disk = DISK) -> None:
    """Removes what writes that were cut off left in `folder`. Only for who holds the lock."""
    with explained("cannot tidy", folder):
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if is_leftover(entry.name):
                _remove_tree(Path(entry.path), disk)


def _remove_tree(path: Path, disk: Disk) -> None:
    try:
        is_folder = stat.S_ISDIR(path.lstat().st_mode)
    except FileNotFoundError:
        return
    if not is_folder:
        disk.unlink(path)
        return
    for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
        _remove_tree(Path(entry.path), disk)
    disk.rmdir(path)


# ---- An append-only log --------------------------------------------------------------------------


@final
class LineLog:
    """Lines of text, appended and cut back to an offset; for one writer, and readers beside it.

    A line counts once its newline is there: what stands behind the last newline is a write that was
    cut off, which readers pass over and the next append removes. Safe for several threads.
    """

    def __init__(self, path: Path, *, disk: Disk = DISK) -> None:
        self._path = path
        self._disk = disk
        self._descriptor: int | None = None
        self._end = 0
        self._guard = threading.Lock()

    @property
    def path(self) -> Path:
        return self._path

    @property
    def offset(self) -> int:
        """Where the next line will begin, in bytes from the start of the file."""
        with self._guard:
            if self._descriptor is not None:
                return self._end
            return _complete_bytes(self._read())

    def append(self, line: str) -> None:
        """One line, without its newline. Not flushed to the disk: see `sync`.

        A kill loses nothing of it, a power loss may. Raises StorageError, after which nothing of
        the line counts; UsageError for what is no line of text.
        """
        if "\n" in line:
            raise UsageError("a line of a log cannot hold a newline")
        try:
            data = line.encode("utf-8") + b"\n"
        except UnicodeEncodeError as error:
            raise UsageError(f"a line of a log cannot hold {line[error.start]!r}") from error
        with self._guard, explained("cannot write", self._path):
            descriptor = self._open()
            if os.fstat(descriptor).st_size != self._end:
                # What an append that failed, or was killed, left of its line.
                self._disk.truncate(descriptor, self._end)
            self._disk.write(descriptor, data)
            self._end += len(data)

    def truncate(self, offset: int) -> None:
        """Cuts the log back. Not flushed either: after a power loss, cut it back again.

        Raises DamagedError when it is shorter, or `offset` is inside a line; StorageError.
        """
        with self._guard, explained("cannot cut back", self._path):
            descriptor = self._open()
            if offset > self._end:
                raise DamagedError(
                    f"{shown(self._path)} has {self._end} bytes, but {offset} were written before "
                    "the checkpoint",
                    fix="put the file back from a copy, or start a new run",
                )
            if offset and os.pread(descriptor, 1, offset - 1) != b"\n":
                raise DamagedError(
                    f"{shown(self._path)}: no line ends at byte {offset}, where the checkpoint was",
                    fix="put the file back from a copy, or start a new run",
                )
            self._disk.truncate(descriptor, offset)
            self._end = offset

    def sync(self) -> None:
        """Makes every line so far survive a power loss. Raises StorageError."""
        with self._guard, explained("cannot write", self._path):
            self._disk.fsync(self._open())

    def lines(self) -> list[str]:
        """All complete lines, without their newlines. Raises StorageError."""
        with self._guard:
            data = self._read()
        return [
            line.decode("utf-8", "surrogateescape")
            for line in data[: _complete_bytes(data)].split(b"\n")[:-1]
        ]

    def restore(self) -> None:
        """Puts the file back after somebody deleted it under us: we still have it open."""
        with self._guard, explained("cannot write", self._path):
            descriptor = self._open()
            data = os.pread(descriptor, self._end, 0)
            write_file(self._path, data, disk=self._disk)
            self._close()

    def close(self) -> None:
        with self._guard:
            self._close()

    def __del__(self) -> None:
        self._close()

    def _close(self) -> None:
        if self._descriptor is not None:
            self._disk.close(self._descriptor)
            self._descriptor = None

    def _open(self) -> int:
        if self._descriptor is None:
            self._descriptor = self._disk.open_append(self._path)
            self._end = _complete_bytes(self._read())
        return self._descriptor

    def _read(self) -> bytes:
        return read_file(self._path) if os.path.lexists(self._path) else b""


def _complete_bytes(data: bytes) -> int:
    return data.rfind(b"\n") + 1


# ---- A lock --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Holder:
    """Who holds a lock: a process of one boot of one machine."""

    pid: int
    host: str
    # Unknown on systems without /proc; then a pid that is in use again counts as the same process.
    started: int | None
    boot: str | None


@final
class Lock:
    """A file that says who works in a folder.

    Taken over when its holder, a process of this machine, is gone. A holder on another machine
    cannot be asked, so it counts as alive. It is the words in the file that count, not a kernel
    lock: that would live on in forked children, and many network disks have none.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._me = _Holder(os.getpid(), socket.gethostname(), _started(os.getpid()), _boot())

    def acquire(self) -> None:
        """Raises InUseError, naming pid and host; StorageError."""
        with explained("cannot lock", self._path):
            descriptor = self._open_guarded()
            try:
                holder = _parse_holder(os.pread(descriptor, 4096, 0))
                if holder is not None and not _is_gone(holder):
                    raise self._in_use(holder)
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, _holder_bytes(self._me), 0)
            finally:
                os.close(descriptor)

    def release(self) -> None:
        """Gives it back; does nothing in a forked child, or when somebody else has it by now."""
        if os.getpid() == self._me.pid and self._holder() == self._me:
            # A disk that fails now keeps a stale file, which the next one takes over.
            with contextlib.suppress(OSError):
                self._path.unlink()

    def confirm(self) -> None:
        """Checks that we still have it, and takes it again when the file was deleted.

        Raises InUseError, StorageError.
        """
        holder = self._holder()
        if holder is None:
            self.acquire()
        elif holder != self._me:
            raise self._in_use(holder)

    def _holder(self) -> _Holder | None:
        try:
            return _parse_holder(read_file(self._path, limit_bytes=4096))
        except (StorageError, DamagedError):
            return None

    def _in_use(self, holder: _Holder) -> InUseError:
        where = "on this machine" if holder.host == self._me.host else "on another machine"
        return InUseError(
            f"{shown(self._path.parent)} is in use by process {holder.pid} on host "
            f"{shown(holder.host)} ({where})",
            fix=f"wait for it or end it; if it is surely gone, delete {shown(self._path)}",
        )

    def _open_guarded(self) -> int:
        """The open file, with the kernel's lock on it until it is closed.

        It only keeps two processes from taking over the same stale file at the same moment.
        """
        give_up_at = time.monotonic() + 5
        while True:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
            descriptor = os.open(self._path, flags, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK):
                    return descriptor
                os.close(descriptor)
                if error.errno != errno.EWOULDBLOCK or time.monotonic() > give_up_at:
                    raise
                time.sleep(0.01)
                continue
            # Deleted by a holder that was just leaving: lock the new file, not the ghost.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(self._path.stat(), os.fstat(descriptor)):
                    return descriptor
            os.close(descriptor)


def _holder_bytes(holder: _Holder) -> bytes:
    return dump_json(
        {
            "pid": holder.pid,
            "host": holder.host,
            "started": holder.started,
            "boot": holder.boot,
        }
    )


def _parse_holder(data: bytes) -> _Holder | None:
    """Nothing for a file that was cut off: whoever wrote it was killed while taking the lock."""
    try:
        record = parse_json(data, "lock")
        return _Holder(int(record["pid"]), str(record["host"]), record["started"], record["boot"])
    except (DamagedError, KeyError, TypeError, ValueError):
        return None


def _is_gone(holder: _Holder) -> bool:
    if holder.host != socket.gethostname():
        return False
    if holder.boot != _boot():
        return True
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    started = _started(holder.pid)
    # Another start time: the number was given to a new process.
    return None not in (started, holder.started) and started != holder.started


def _started(pid: int) -> int | None:
    """When a process began, in clock ticks since boot; None where the system does not say."""
    try:
        line = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The name, in brackets, may hold anything. After it: state, ppid, ..., the 22nd is starttime.
    fields: Sequence[bytes] = line[line.rfind(b")") + 2 :].split()
    # A zombie does nothing any more: say a time at which no holder began.
    return -1 if fields[0] in (b"Z", b"X") else int(fields[19])


def _boot() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None
