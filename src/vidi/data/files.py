"""Files below a root, millions of them: names in one byte array, contents read with patience."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final, final

import numpy as np
from numpy.typing import NDArray

from vidi.data.hashing import Hashes, hash_texts
from vidi.errors import UnreadableImage

# Waits before reading again: network file systems lose a file for a moment.
RETRY_S: Final = (0.05, 0.2, 0.8)
# More bytes than any image that the pixel limit lets through would have.
MAX_FILE_BYTES: Final = 1 << 30

_GONE: Final = {errno.ENOENT: "MISSING", errno.ENOTDIR: "MISSING", errno.ELOOP: "BROKEN_LINK"}
_DENIED: Final = {errno.EACCES: "NO_PERMISSION", errno.EPERM: "NO_PERMISSION"}


def read_bytes(path: bytes) -> bytes:
    """A regular file, whole; raises UnreadableImage with the reason.

    Tried four times in about a second where the failure may pass by itself. Special files are not
    opened: reading a pipe would never end.
    """
    return _patiently(lambda: _read_once(path))


def read_part(path: bytes, offset: int, size: int) -> bytes:
    """`size` bytes of a regular file from `offset` on; raises UnreadableImage like `read_bytes`."""
    return _patiently(lambda: _read_part_once(path, offset, size))


def _patiently(read: Callable[[], bytes]) -> bytes:
    for wait_s in (*RETRY_S, None):
        try:
            return read()
        except OSError as error:
            if error.errno in _DENIED:
                raise UnreadableImage(
                    "no permission to read it",
                    reason="NO_PERMISSION",
                    fix="give yourself the right to read it",
                ) from error
            if wait_s is None:
                reason = _GONE.get(error.errno or 0, "READ_ERROR")
                raise UnreadableImage(
                    f"it cannot be read: {os.strerror(error.errno or 0)}", reason=reason
                ) from error
            time.sleep(wait_s)
    raise AssertionError


@contextlib.contextmanager
def _opened(path: bytes) -> Iterator[tuple[int, int]]:
    """A descriptor and the size of a regular file."""
    # Without O_NONBLOCK, opening a pipe that took the place of a file would block for ever.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags | getattr(os, "O_CLOEXEC", 0))
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableImage("it is no regular file", reason="SPECIAL_FILE")
        yield descriptor, status.st_size
    finally:
        os.close(descriptor)


def _read_once(path: bytes) -> bytes:
    with _opened(path) as (descriptor, size):
        if size > MAX_FILE_BYTES:
            raise UnreadableImage(
                f"{size:,} bytes, more than {MAX_FILE_BYTES:,}",
                reason="TOO_LARGE",
                fix="scale it down",
            )
        data = os.read(descriptor, size + 1)
        # As long as it was said to be, and asked for one more: that was its end.
        while size != len(data) <= MAX_FILE_BYTES and (part := os.read(descriptor, 1 << 20)):
            data += part
        return data


def _read_part_once(path: bytes, offset: int, size: int) -> bytes:
    with _opened(path) as (descriptor, _):
        os.lseek(descriptor, offset, os.SEEK_SET)
        data = b""
        while len(data) < size and (part := os.read(descriptor, size - len(data))):
            data += part
        if len(data) < size:
            raise UnreadableImage(f"{len(data):,} of {size:,} bytes", reason="TRUNCATED")
        return data


@final
class Names:
    """Many byte strings in two arrays: 33 bytes less a path than a list of them.

    text: all of them, one after the other. ends: (N,) int64, where each of them ends.
    """

    def __init__(self, text: bytes | bytearray, ends: NDArray[np.int64]) -> None:
        self._text = memoryview(text)
        self._ends = ends
        self._hashes: Hashes | None = None

    @classmethod
    def of(cls, names: Iterable[bytes]) -> Names:
        parts = list(names)
        lengths = np.fromiter((len(part) for part in parts), dtype=np.int64, count=len(parts))
        return cls(b"".join(parts), np.cumsum(lengths))

    def take(self, rows: NDArray[np.int64]) -> Names:
        """Some of them, in the order of `rows`."""
        return Names.of(self[row] for row in rows.tolist())

    def __len__(self) -> int:
        return len(self._ends)

    def hashes(self) -> Hashes:
        """(N,): what splits are drawn by."""
        # 5 s for ten million of them, and asked for twice.
        if self._hashes is None:
            self._hashes = hash_texts(self._text, self._ends)
        return self._hashes

    def digest(self) -> bytes:
        """16 bytes that stand for all names in their order."""
        digest = hashlib.blake2b(self._ends.tobytes(), digest_size=16)
        digest.update(self._text)
        return digest.digest()

    def __getitem__(self, index: int) -> bytes:
        start = int(self._ends[index - 1]) if index else 0
        return bytes(self._text[start : int(self._ends[index])])

    def __iter__(self) -> Iterator[bytes]:
        start = 0
        for end in self._ends.tolist():
            yield bytes(self._text[start:end])
            start = end
