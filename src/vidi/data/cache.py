"""Where vidi keeps what it computed about the user's data: outside of it, and safe to delete."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from pathlib import Path
from typing import Final, final

import numpy as np
from numpy.typing import NDArray

from vidi.errors import StorageError, UsageError

_MAGIC: Final = b"vidi digests 1\n"


def cache_folder(asked: str | Path | None = None) -> Path:
    """`asked`, else $VIDI_CACHE, else the platform's folder for caches; it need not exist."""
    if asked is not None:
        return Path(asked).expanduser().absolute()
    if given := os.environ.get("VIDI_CACHE"):
        return Path(given).expanduser().absolute()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local") / "vidi/cache"
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/vidi"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vidi"


def refuse_inside(cache_dir: Path, root: Path) -> None:
    """The user's data are never written to, so the cache cannot lie among them."""
    if cache_dir.resolve().is_relative_to(root.resolve()):
        raise UsageError(
            f"the cache folder {cache_dir} lies inside the data {root}",
            fix="set data.cache_dir or VIDI_CACHE to a folder outside of it",
        )


@final
class Digests:
    """Content digests of the files below one root, so that an unchanged file is not read again.

    A key stands for a file's name, size and times. The record is an aid: damaged or missing, the
    files are read again. Format: a line of magic, 16 bytes of checksum, then 32 bytes a file.
    """

    def __init__(self, cache_dir: Path, root: bytes) -> None:
        name = hashlib.blake2b(os.path.realpath(root), digest_size=16).hexdigest()
        self._path = cache_dir / "digests" / name

    def recall(self, keys: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
        """keys (N, 16) -> digests (N, 16), or None when one of them is not known."""
        table = self._read()
        if table is None or not len(keys):
            return None
        known = np.ascontiguousarray(table[:, :16]).view("V16").ravel()
        wanted = np.ascontiguousarray(keys).view("V16").ravel()
        # The bytes decide the order; numpy compares the void type bytewise.
        order = np.argsort(known)
        place = np.searchsorted(known[order], wanted)
        place = np.minimum(place, len(known) - 1)
        rows = order[place]
        if not (known[rows] == wanted).all():
            return None
        return np.ascontiguousarray(table[rows, 16:])

    def keep(self, keys: NDArray[np.uint8], digests: NDArray[np.uint8]) -> None:
        body = np.concatenate([keys, digests], axis=1).tobytes()
        checksum = hashlib.blake2b(body, digest_size=16).digest()
        replace_file(self._path, _MAGIC + checksum + body)

    def _read(self) -> NDArray[np.uint8] | None:
        try:
            data = self._path.read_bytes()
        except OSError:
            return None
        start = len(_MAGIC) + 16
        body = data[start:]
        checksum = hashlib.blake2b(body, digest_size=16).digest()
        if not data.startswith(_MAGIC + checksum) or len(body) % 32 or not body:
            return None
        return np.frombuffer(body, dtype=np.uint8).reshape(-1, 32)


def replace_file(path: Path, data: bytes) -> None:
    """Old or new, never half; not durable against power loss, which a cache need not be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, beside = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            Path(beside).replace(path)
        except BaseException:
            Path(beside).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise cache_trouble(path, error) from error


def cache_trouble(path: Path, error: OSError) -> StorageError:
    """An OSError while writing the cache, in words."""
    return StorageError(
        f"cannot write the cache at {path}: {error.strerror or error}",
        fix="free some space there, or set data.cache_dir or VIDI_CACHE to another disk",
    )
