"""Where vidi keeps what it computed about the user's data: outside of it, and safe to delete."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, final

import numpy as np
import xxhash
from numpy.typing import NDArray

from vidi import image
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


def free_bytes(cache_dir: Path) -> int | None:
    """On the disk where the cache is, or would be; None where nobody can tell."""
    folder = cache_dir
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


# Manifests ----------------------------------------------------------------------------------------


def checksum(data: memoryview) -> int:
    """Of a manifest, against damage by accident; other versions of vidi read it, too."""
    return zlib.crc32(data)


def pixels_checksum(data: memoryview) -> int:
    """Against damage by accident, as fast as memory is: CRC-32 took 4 % of a first pass. Whoever
    could write other pixels with the same checksum could write another checksum."""
    return xxhash.xxh3_64_intdigest(data)


def manifest_bytes(manifest: dict[str, Any]) -> bytes:
    """Its own checksum in the first line, then the manifest."""
    body = json.dumps(manifest).encode()
    return f"{checksum(memoryview(body))}\n".encode() + body


def read_manifest(path: Path) -> dict[str, Any] | None:
    """What stands in it, None where it is missing or damaged."""
    try:
        written, _, body = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    if written != str(checksum(memoryview(body))).encode():
        return None
    manifest: dict[str, Any] = json.loads(body)
    return manifest


# What is there, and what may go -------------------------------------------------------------------

# The cache may take this share of what would be free without it.
_SHARE: Final = 0.5
# Touched whenever a store is opened.
_USED: Final = "used"
_UNFINISHED: Final = re.compile(r"\.building-(?P<host>[^/]*)-(?P<process>\d+)-[^-]*")
# A build of another computer on a shared disk that is older than this is dead.
_ABANDONED_S: Final = 2 * 86_400.0

State = Literal["usable", "other decoder", "unfinished", "damaged"]


class CachedStore(NamedTuple):
    """One folder of decoded pixels. used_at: seconds since 1970."""

    path: Path
    name: str
    state: State
    rows: int
    store_px: int
    channels: int
    num_bytes: int
    used_at: float


def mark_used(store: Path) -> None:
    """Remember when a store was last wanted; a cache that cannot be written to is fine."""
    with contextlib.suppress(OSError):
        (store / _USED).touch()


def unfinished_name() -> str:
    """How the name of a folder begins that this process is building."""
    return f".building-{socket.gethostname()}-{os.getpid()}-"


def list_stores(cache_dir: Path) -> list[CachedStore]:
    """All that is there, the last used one first."""
    try:
        folders = [entry for entry in (cache_dir / "stores").iterdir() if entry.is_dir()]
    except OSError:
        return []
    return sorted(
        (one for folder in folders if (one := _described(folder)) is not None),
        key=lambda one: (-one.used_at, one.path.name),
    )


def _described(folder: Path) -> CachedStore | None:
    try:
        files = [entry.stat() for entry in folder.iterdir()]
        # Blocks, not length: what is being built is a file with holes.
        size = sum(getattr(stat, "st_blocks", 0) * 512 or stat.st_size for stat in files)
        used_at = max((stat.st_mtime for stat in files), default=folder.stat().st_mtime)
    except OSError:
        # Somebody else is just removing it.
        return None
    manifest = read_manifest(folder / "manifest")
    if manifest is None:
        state: State = "unfinished" if _UNFINISHED.fullmatch(folder.name) else "damaged"
        return CachedStore(folder, "", state, 0, 0, 0, size, used_at)
    contract = manifest["contract"]
    return CachedStore(
        path=folder,
        name=str(manifest.get("name", "")),
        state="usable" if manifest["decoder"] == image.DECODER_VERSION else "other decoder",
        rows=int(manifest["rows"]),
        store_px=int(contract["store_px"]),
        channels=int(contract["channels"]),
        num_bytes=size,
        used_at=used_at,
    )


def prune(
    cache_dir: Path,
    *,
    unused_days: float,
    max_bytes: int | None = None,
    other_decoders: bool = True,
) -> list[CachedStore]:
    """Remove what nobody will miss; returns what was removed.

    That is: what an interrupted build left, what is damaged, what `other_decoders` made, what was
    not used for `unused_days`, and, beyond `max_bytes` in all, what was not used for longest. A
    process that has a store open keeps it until it ends.
    """
    oldest_at = time.time() - unused_days * 86_400
    gone: list[CachedStore] = []
    kept: list[CachedStore] = []
    for store in list_stores(cache_dir):
        if store.state == "unfinished" and not _is_abandoned(store):
            continue
        good = store.state == "usable" or (store.state == "other decoder" and not other_decoders)
        useful = good and store.used_at >= oldest_at
        (kept if useful else gone).append(store)
    total = sum(store.num_bytes for store in kept)
    while max_bytes is not None and kept and total > max_bytes:
        gone.append(kept.pop())
        total -= gone[-1].num_bytes
    for store in gone:
        shutil.rmtree(store.path, ignore_errors=True)
    return gone


def make_room(cache_dir: Path, num_bytes: int) -> list[CachedStore]:
    """Keep the cache within its share of the disk before so much is added to it."""
    free = free_bytes(cache_dir)
    if free is None:
        return []
    total = sum(store.num_bytes for store in list_stores(cache_dir))
    limit = int(_SHARE * (free + total))
    # Another version of vidi may share the cache; it is not for this one to clear its stores.
    most = max(0, limit - num_bytes)
    return prune(cache_dir, unused_days=365.0, max_bytes=most, other_decoders=False)


def _is_abandoned(store: CachedStore) -> bool:
    """Whether whoever built it is gone."""
    match = _UNFINISHED.fullmatch(store.path.name)
    assert match is not None
    if match["host"] == socket.gethostname() and os.name == "posix":
        try:
            os.kill(int(match["process"]), 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        return False
    return time.time() - store.used_at > _ABANDONED_S
