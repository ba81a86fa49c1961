"""PixelStore: every image decoded once, at the size that training needs, as one array on disk.

A store is a folder `stores/<key>` in the cache with `pixels` (raw uint8, row after row) and
`manifest`. The key stands for the contents of the files in their order, the parts of the
contract that decide stored pixels, and the decoder; so runs, trials and processes share it, a
changed file makes another store, and labels or splits do not. It is built beside its place and
renamed; each block of rows carries a checksum that is compared when the store is opened.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import shutil
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Final, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from vidi import image
from vidi.data.cache import cache_folder, cache_trouble
from vidi.data.dataset import Dataset, content_digest
from vidi.data.resample import fast_resize
from vidi.errors import DataError, StorageError, UnreadableImage
from vidi.image import PixelContract, Pixels

FORMAT: Final = 1
# One write and one checksum. Large enough for full disk speed, small enough for 8 in flight.
BLOCK_BYTES: Final = 4 << 20

Progress = Callable[[int, int], None]


class UnreadableRow(NamedTuple):
    """A row that could not be decoded; its pixels are the background."""

    id: int
    reason: image.Reason
    message: str


@final
class PixelStore:
    """images: (N, store_px, store_px, channels) uint8, mapped from disk; never write to it."""

    def __init__(
        self,
        images: Pixels,
        contract: PixelContract,
        unreadable: tuple[UnreadableRow, ...],
        path: Path,
    ) -> None:
        self.images = images
        self.contract = contract
        self.unreadable = unreadable
        self.path = path

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_bytes(self) -> int:
        return int(self.images.nbytes)


def open_store(
    dataset: Dataset,
    contract: PixelContract,
    *,
    cache_dir: Path | None = None,
    threads: int = 2,
    progress: Progress | None = None,
) -> PixelStore:
    """The decoded pixels of every row, from the cache or built now.

    progress: called with (rows done, rows in all), from the calling thread.

    Raises:
        DataError: more unreadable files than `dataset.max_unreadable_fraction`, or any at all
            where the data set says "stop".
        StorageError: the cache cannot be written.
    """
    folder = cache_folder(cache_dir)
    digests = dataset.source.known_digests()
    store = None
    if digests is not None:
        store = _open(folder / "stores" / _key(digests, contract), len(dataset), contract)
    if store is None:
        store = _build(dataset, contract, folder, threads, progress)
    _refuse_bad(dataset, store.unreadable)
    return store


def _key(digests: NDArray[np.uint8], contract: PixelContract) -> str:
    decided = contract.model_dump_json(exclude={"image_px", "mean", "std"})
    head = f"{FORMAT}\0{image.DECODER_VERSION}\0{decided}\0{len(digests)}\0"
    return hashlib.blake2b(head.encode() + digests.tobytes(), digest_size=16).hexdigest()


def _shape(rows: int, contract: PixelContract) -> tuple[int, int, int, int]:
    return rows, contract.store_px, contract.store_px, contract.channels


def _rows_a_block(contract: PixelContract) -> int:
    return max(1, BLOCK_BYTES // (contract.store_px**2 * contract.channels))


# Reading ------------------------------------------------------------------------------------------


def _open(path: Path, rows: int, contract: PixelContract) -> PixelStore | None:
    """None when there is no store or it is damaged; a damaged one is removed."""
    manifest = _read_manifest(path / "manifest")
    if manifest is not None and _is_sound(path / "pixels", manifest, rows, contract):
        unreadable = tuple(UnreadableRow(*entry) for entry in manifest["unreadable"])
        # Copy-on-write: torch wants writable memory, and the file must never change.
        images = np.memmap(path / "pixels", np.uint8, "c", shape=_shape(rows, contract))
        return PixelStore(images.view(np.ndarray), contract, unreadable, path)
    if path.exists():
        shutil.rmtree(path, ignore_errors=True)
    return None


def _manifest_bytes(manifest: dict[str, Any]) -> bytes:
    """Its own checksum in the first line, then the manifest."""
    body = json.dumps(manifest).encode()
    return f"{_checksum(memoryview(body))}\n".encode() + body


def _read_manifest(path: Path) -> dict[str, Any] | None:
    try:
        checksum, _, body = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    if checksum != str(_checksum(memoryview(body))).encode():
        return None
    manifest: dict[str, Any] = json.loads(body)
    return manifest


def _is_sound(pixels: Path, manifest: dict[str, Any], rows: int, contract: PixelContract) -> bool:
    try:
        size = pixels.stat().st_size
    except OSError:
        return False
    if manifest.get("format") != FORMAT or size != int(np.prod(_shape(rows, contract))):
        return False
    block = _rows_a_block(contract) * (size // rows)
    checksums = manifest["checksums"]
    descriptor = os.open(pixels, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        with ThreadPoolExecutor(2) as pool, os.fdopen(descriptor, "rb", closefd=False) as file:
            whole = np.memmap(file, np.uint8, "r")

            def same(number: int) -> bool:
                part = whole[number * block : (number + 1) * block]
                return bool(_checksum(part.data) == checksums[number])

            return len(checksums) == -(-size // block) and all(
                pool.map(same, range(len(checksums)))
            )
    finally:
        os.close(descriptor)


def _checksum(data: memoryview) -> int:
    """Against damage by accident, at 3 GB/s; SHA-256 would take a tenth of the time of decoding."""
    return zlib.crc32(data)


# Building -----------------------------------------------------------------------------------------


class _Block(NamedTuple):
    number: int
    checksum: int
    digests: Sequence[bytes]
    unreadable: Sequence[UnreadableRow]


def _build(
    dataset: Dataset,
    contract: PixelContract,
    folder: Path,
    threads: int,
    progress: Progress | None,
) -> PixelStore:
    """One pass: each file is read, hashed, decoded and written by one thread, a block at a time."""
    rows = len(dataset)
    size = int(np.prod(_shape(rows, contract)))
    stores = folder / "stores"
    beside: Path | None = None
    try:
        stores.mkdir(parents=True, exist_ok=True)
        _check_space(stores, size)
        beside = Path(tempfile.mkdtemp(dir=stores, prefix=".building-"))
        blocks = _write_pixels(dataset, contract, beside / "pixels", threads, progress)
        blocks.sort(key=lambda block: block.number)
        digests = np.frombuffer(
            b"".join(itertools.chain.from_iterable(block.digests for block in blocks)),
            dtype=np.uint8,
        ).reshape(rows, 16)
        dataset.source.remember(digests)
        manifest = {
            "format": FORMAT,
            "decoder": image.DECODER_VERSION,
            "rows": rows,
            "contract": contract.model_dump(mode="json", exclude={"image_px", "mean", "std"}),
            "checksums": [block.checksum for block in blocks],
            "unreadable": [list(row) for block in blocks for row in block.unreadable],
        }
        (beside / "manifest").write_bytes(_manifest_bytes(manifest))
        path = stores / _key(digests, contract)
        try:
            beside.rename(path)
        except OSError as error:
            # Another process finished the same store first: same key, same pixels.
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.EACCES):
                raise
    except OSError as error:
        raise cache_trouble(stores, error) from error
    finally:
        if beside is not None and beside.exists():
            shutil.rmtree(beside, ignore_errors=True)
    unreadable = tuple(row for block in blocks for row in block.unreadable)
    images = np.memmap(path / "pixels", np.uint8, "c", shape=_shape(rows, contract))
    return PixelStore(images.view(np.ndarray), contract, unreadable, path)


def _check_space(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise StorageError(
            f"the decoded images need {size / 1e9:.1f} GB in {folder}, which has {free / 1e9:.1f}",
            fix="free some space there, or set data.cache_dir or VIDI_CACHE to another disk",
        )


def _write_pixels(
    dataset: Dataset,
    contract: PixelContract,
    path: Path,
    threads: int,
    progress: Progress | None,
) -> list[_Block]:
    rows, step = len(dataset), _rows_a_block(contract)
    row_bytes = contract.store_px**2 * contract.channels
    stop = threading.Event()
    # Written by position, not through a memory map, where a full disk would be a crash.
    with path.open("wb") as file:
        file.truncate(rows * row_bytes)

        def work(first: int) -> _Block:
            ids = range(first, min(first + step, rows))
            pixels = np.empty((len(ids), *_shape(rows, contract)[1:]), dtype=np.uint8)
            digests, bad = [], []
            for place, index in enumerate(ids):
                if stop.is_set():
                    break
                digest, failed = _row(dataset, contract, index, pixels[place])
                digests.append(digest)
                bad.extend(failed)
            data = pixels.data.cast("B")
            _write_at(file.fileno(), data, first * row_bytes)
            return _Block(first // step, _checksum(data), digests, bad)

        blocks: list[_Block] = []
        done = 0
        with ThreadPoolExecutor(max(1, threads), thread_name_prefix="vidi-store") as pool:
            try:
                for block in _as_done(pool, work, range(0, rows, step), max(1, threads) + 2):
                    blocks.append(block)
                    done += len(block.digests)
                    if progress is not None:
                        progress(done, rows)
            except BaseException:
                stop.set()
                raise
    return blocks


def _row(
    dataset: Dataset, contract: PixelContract, index: int, out: Pixels
) -> tuple[bytes, list[UnreadableRow]]:
    """Pixels of one row into `out`; returns the digest of what was read and what went wrong."""
    digest = bytes(16)
    try:
        array = dataset.source.pixels(index)
        if array is not None:
            digest = content_digest(np.ascontiguousarray(array).data.cast("B"))
            out[:] = image.prepare_array(array, contract, resize=fast_resize)
        else:
            data = dataset.read(index)
            digest = content_digest(data)
            out[:] = image.prepare(data, contract, resize=fast_resize)
    except UnreadableImage as error:
        out[:] = contract.background
        return digest, [UnreadableRow(index, error.reason, error.message)]  # type: ignore[arg-type]
    return digest, []


def _as_done(
    pool: ThreadPoolExecutor,
    work: Callable[[int], _Block],
    items: range,
    at_once: int,
) -> Iterator[_Block]:
    """Results as they come, with no more than `at_once` blocks in memory."""
    waiting = iter(items)
    running: set[Future[_Block]] = {
        pool.submit(work, item) for item in itertools.islice(waiting, at_once)
    }
    while running:
        finished, running = wait(running, return_when=FIRST_COMPLETED)
        running |= {pool.submit(work, item) for item in itertools.islice(waiting, len(finished))}
        for future in finished:
            yield future.result()


_write_lock = threading.Lock()


def _write_at(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        if hasattr(os, "pwrite"):
            written = os.pwrite(descriptor, data, offset)
        else:
            with _write_lock:
                os.lseek(descriptor, offset, os.SEEK_SET)
                written = os.write(descriptor, data)
        data, offset = data[written:], offset + written


def _refuse_bad(dataset: Dataset, unreadable: tuple[UnreadableRow, ...]) -> None:
    if not unreadable:
        return
    share = len(unreadable) / len(dataset)
    stop = dataset.unreadable == "stop"
    if not stop and share <= dataset.max_unreadable_fraction:
        return
    reasons: dict[str, list[int]] = {}
    for row in unreadable:
        reasons.setdefault(row.reason, []).append(row.id)
    top = sorted(reasons.items(), key=lambda item: -len(item[1]))[:3]
    said = "; ".join(f"{len(ids)} {name}, e.g. {dataset.name_of(ids[0])}" for name, ids in top)
    raise DataError(
        f"{len(unreadable)} of {len(dataset)} images cannot be decoded: {said}",
        fix="repair or remove them"
        + (
            ", or set data.unreadable = 'exclude' to train without them"
            if stop
            else f", or raise data.max_unreadable_fraction above {share:.3f}"
        ),
    )
