"""Rows whose bytes lie inside a few large files: members of tar shards, cells of Parquet files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from typing import final

import numpy as np
from numpy.typing import NDArray

from vidi.data.cache import Digests
from vidi.data.dataset import content_digest, each
from vidi.data.files import Names
from vidi.data.hashing import Hashes
from vidi.errors import UnreadableImage
from vidi.image import Pixels


@final
class Blobs:
    """places: (N, P) int64, where each row lies: as much as tells it from all other rows.

    stamp: what changes when one of the files does, such as sizes and times of all of them.
    read: row -> bytes; raises UnreadableImage; called from several threads.
    """

    def __init__(
        self,
        names: Names,
        places: NDArray[np.int64],
        stamp: bytes,
        read: Callable[[int], bytes],
        remembered: Digests,
    ) -> None:
        self._names = names
        self._places = places
        self._stamp = hashlib.blake2b(stamp, digest_size=16).digest()
        self._read = read
        self._remembered = remembered
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
            parts = each(self._digest, np.arange(len(self)))
            known = np.frombuffer(b"".join(parts), dtype=np.uint8).reshape(-1, 16)
            self.remember(known)
        return known

    def remember(self, digests: NDArray[np.uint8]) -> None:
        self._digests = digests
        self._remembered.keep(self._keys(), digests)

    def _digest(self, index: int) -> bytes:
        try:
            return content_digest(self.read(index))
        except UnreadableImage:
            return bytes(16)

    def _keys(self) -> NDArray[np.uint8]:
        keys = b"".join(content_digest(self._stamp + row.tobytes()) for row in self._places)
        return np.frombuffer(keys, dtype=np.uint8).reshape(-1, 16)
