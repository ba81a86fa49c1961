"""Rows with a name each, whose bytes lie in files: whole ones, members of shards, cells."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from typing import final

import numpy as np
from numpy.typing import NDArray

from vidi.config import DataConfig
from vidi.data.cache import Digests, cache_folder
from vidi.data.dataset import content_digest, digests_of, each
from vidi.data.files import Names, read_bytes
from vidi.data.hashing import Hashes
from vidi.image import Pixels


@final
class Named:
    """A `Source` of bytes that remembers what every row held when it was last read.

    read: row -> bytes; raises UnreadableImage; called from several threads.
    keys: -> (N, 16), each of which changes when its row may hold something else; asked for once it
        is needed.
    limit_s: how long one read may take.
    """

    def __init__(
        self,
        names: Names,
        read: Callable[[int], bytes],
        keys: Callable[[], NDArray[np.uint8]],
        remembered: Digests,
        limit_s: float,
    ) -> None:
        self._names = names
        self._read = read
        self._keys = keys
        self._remembered = remembered
        self._limit_s = limit_s
        self._digests: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self._names)

    def name_of(self, index: int) -> str:
        return os.fsdecode(self._names[index])

    def hashes(self) -> Hashes:
        return self._names.hashes()

    def names_digest(self) -> bytes:
        return self._names.digest()

    def read(self, index: int) -> bytes:
        return self._read(index)

    def pixels(self, index: int) -> Pixels | None:  # noqa: ARG002 (part of Source)
        return None

    def known_digests(self) -> NDArray[np.uint8] | None:
        if self._digests is None:
            self._digests = self._remembered.recall(self._keys())
        return self._digests

    def digests(self) -> NDArray[np.uint8]:
        known = self.known_digests()
        if known is None:
            known = digests_of(
                lambda row: content_digest(self._read(row)),
                len(self),
                limit_s=self._limit_s,
                name_of=self.name_of,
            )
            self.remember(known)
        return known

    def remember(self, digests: NDArray[np.uint8]) -> None:
        self._digests = digests
        self._remembered.keep(self._keys(), digests)


def files_of(
    root: bytes, names: Names, stamps: NDArray[np.int64] | None, asked: DataConfig
) -> Named:
    """Rows of an image folder or table: files at the paths `names`, absolute or below `root`.

    stamps: (N, 3) int64: size, mtime_ns and ctime_ns of each file when it was listed; None where
        they were not looked at, and are when they are first needed.
    """

    def path_of(row: int) -> bytes:
        return os.path.join(root, names[row])  # noqa: PTH118 (bytes)

    def stamp(row: int) -> tuple[int, int, int]:
        try:
            status = os.stat(path_of(row))  # noqa: PTH116 (bytes)
        except OSError:
            return 0, 0, 0
        return status.st_size, status.st_mtime_ns, status.st_ctime_ns

    @functools.cache
    def listed() -> NDArray[np.int64]:
        if stamps is not None:
            return stamps
        return np.array(each(stamp, np.arange(len(names)))).reshape(-1, 3)

    def keys() -> NDArray[np.uint8]:
        rows = listed().astype("<i8")
        parts = (row.tobytes() + name for row, name in zip(rows, names, strict=True))
        return keys_of(parts, len(names))

    remembered = Digests(cache_folder(asked.cache_dir), root)
    return Named(names, lambda row: read_bytes(path_of(row)), keys, remembered, asked.read_limit_s)


def keys_of(parts: Iterable[bytes], count: int) -> NDArray[np.uint8]:
    """(count, 16): a digest of each part."""
    keys = np.empty((count, 16), dtype=np.uint8)
    flat = memoryview(keys.reshape(-1).data)
    for row, part in enumerate(parts):
        flat[16 * row : 16 * row + 16] = content_digest(part)
    return keys


def keys_of_places(places: NDArray[np.int64], stamp: bytes) -> NDArray[np.uint8]:
    """places: (N, P), where each row lies inside files that `stamp` tells from changed ones."""
    whole = content_digest(stamp)
    return keys_of((whole + row.tobytes() for row in places), len(places))
