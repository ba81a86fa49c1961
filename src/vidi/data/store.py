"""PixelStore: every image decoded once, at the size that training needs, as one array.

On disk, a store is a folder `stores/<key>` in the cache with `pixels` (raw uint8, row after row)
and `manifest`. The key stands for the contents of the files in their order, the parts of the
contract that decide stored pixels, and the decoder; so runs, trials and processes share it, a
changed file makes another store, and labels or splits do not. It is built beside its place and
renamed; each block of rows carries a checksum that is compared when the store is opened.

A store may be used while it is still being built (`build="alongside"`), it may be in memory only,
and where there is room for neither it decodes anew each time (`place="stream"`).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vidi import image
from vidi.data.arrays import Arrays
from vidi.data.cache import (
    cache_folder,
    cache_trouble,
    make_room,
    manifest_bytes,
    mark_used,
    pixels_checksum,
    read_manifest,
    unfinished_name,
)
from vidi.data.dataset import Dataset, Indices
from vidi.data.filling import (
    Built,
    Decoder,
    Digests,
    Mask,
    Progress,
    Rows,
    Streamed,
    UnreadableRow,
    no_seal,
    refuse_bad,
    rows_a_block,
    shape_of,
)
from vidi.errors import StorageError
from vidi.image import PixelContract, Pixels
from vidi.plan import Build, Place

FORMAT: Final = 2


@final
class PixelStore:
    """Rows of (store_px, store_px, channels) uint8, there already or decoded when asked for."""

    def __init__(
        self,
        images: Pixels | None,
        contract: PixelContract,
        unreadable: tuple[UnreadableRow, ...],
        path: Path,
        *,
        rows: Rows | None = None,
        count: int | None = None,
    ) -> None:
        """images: (N, ...) of a complete store; None where `rows` makes them, `count` of them."""
        self.contract = contract
        self.path = path
        self._images = images
        self._rows = rows
        self._count = count if images is None else len(images)
        self._unreadable = unreadable
        self._is_bad = np.zeros(self._count or 0, dtype=np.bool_)
        self._is_bad[[row.id for row in unreadable]] = True
        self._on_device: dict[torch.device, Tensor] = {}
        if rows is not None:
            # Also at the end of the process; the threads do not know the store.
            weakref.finalize(self, rows.close)

    def __len__(self) -> int:
        assert self._count is not None
        return self._count

    @property
    def num_bytes(self) -> int:
        """Of all rows."""
        return int(np.prod(shape_of(len(self), self.contract)))

    @property
    def complete(self) -> bool:
        """Whether every row is there."""
        return self._images is not None

    @property
    def images(self) -> Pixels:
        """(N, store_px, store_px, channels); never write to it. Waits until all rows are there,
        and holds them in memory where the store would not."""
        if self._images is None:
            self.finish()
        if self._images is None:
            return self.take(np.arange(len(self)))[0]
        return self._images

    @property
    def unreadable(self) -> tuple[UnreadableRow, ...]:
        """Rows that cannot be decoded, of those that were tried."""
        return self._unreadable if self._rows is None else self._rows.unreadable

    def take(self, ids: Indices, out: Pixels | None = None) -> tuple[Pixels, Mask]:
        """The rows `ids` (N,), and which of them could be read, (N,); the others are background.

        Raises:
            DataError: more rows are unreadable than the data set allows.
            MismatchError: a file was changed since the run was planned.
        """
        if out is None:
            out = np.empty(shape_of(len(ids), self.contract), dtype=np.uint8)
        if self._images is None:
            assert self._rows is not None
            return out, self._rows.take(ids, out)
        # The mode saves a copy; the ids are ours. One thread: a team of OpenMP's would spin.
        np.take(self._images, ids, axis=0, out=out, mode="clip")
        return out, ~self._is_bad[ids]

    def on(self, device: torch.device) -> Tensor | None:
        """All rows as a tensor on a device, copied there once; None while the store grows."""
        if not self.complete:
            return None
        if device not in self._on_device:
            self._on_device[device] = torch.from_numpy(self.images).to(device)
        return self._on_device[device]

    def readable(self, ids: Indices) -> Mask:
        """(N,), of a complete store."""
        good: Mask = ~self._is_bad[ids]
        return good

    def finish(self, progress: Progress | None = None) -> None:
        """Wait until all rows are there; at once where they are, or never will be.

        Raises:
            DataError, StorageError: what went wrong on the way.
        """
        if self._rows is None or self._images is not None:
            return
        built = self._rows.finish(progress)
        if built is None:
            return
        images, self.path = built
        self._unreadable = self._rows.unreadable
        self._is_bad[[row.id for row in self._unreadable]] = True
        self._images = images

    def settle(self) -> None:
        """Become complete if all rows are there by now; waits for nothing."""
        if self._rows is not None and self._images is None and self._rows.finished:
            self.finish()

    def pause(self) -> contextlib.AbstractContextManager[None]:
        """No decoding in the background meanwhile, for a measurement."""
        return contextlib.nullcontext() if self._rows is None else self._rows.pause()

    def close(self) -> None:
        """Stop decoding; what is not complete is removed. Rows that are there stay usable."""
        if self._rows is not None:
            self._rows.close()


def open_store(
    dataset: Dataset,
    contract: PixelContract,
    *,
    cache_dir: Path | None = None,
    threads: int = 2,
    progress: Progress | None = None,
    place: Place = "disk",
    build: Build = "before",
    say: Callable[[str], None] = lambda _: None,
) -> PixelStore:
    """The decoded pixels of every row, from the cache or decoded now.

    progress: called with (rows done, rows in all), from the calling thread.
    place: "disk" and "device" keep them in the cache, "memory" in this process alone, "stream"
        nowhere; what is in the cache already is used all the same.
    build: "alongside" returns at once and decodes in the background. Where the disk gives up
        then, rows are decoded whenever they are asked for, as by "stream".
    say: told so, from another thread.

    Raises:
        DataError: more unreadable files than `dataset.max_unreadable_fraction`, or any at all
            where the data set says "stop".
        StorageError: the cache cannot be written.
    """
    whole = dataset.source.images if isinstance(dataset.source, Arrays) else None
    if whole is not None and whole.shape == shape_of(len(dataset), contract):
        return PixelStore(whole, contract, (), Path())
    folder = cache_folder(cache_dir)
    # To know them, every file is looked at; of what is not kept there is nothing to be found.
    nothing_ahead = dataset.by_name and place == "stream"
    digests = None if nothing_ahead else dataset.source.known_digests()
    store = None
    if digests is not None:
        store = _open(folder / "stores" / _key(digests, contract), len(dataset), contract)
    if store is None:
        expected = None
        if not dataset.by_name and (place == "stream" or build == "alongside"):
            expected = dataset.source.digests()
        decoder = Decoder(dataset, contract, expected)
        if place == "stream":
            rows: Rows = Streamed(decoder)
        elif place == "memory":
            rows = Built(decoder, None, no_seal, threads, beside=build == "alongside")
        else:
            rows = _on_disk(
                decoder, folder / "stores", threads, beside=build == "alongside", say=say
            )
        store = PixelStore(None, contract, (), folder, rows=rows, count=len(dataset))
        if build == "before":
            try:
                store.finish(progress)
            except BaseException:
                store.close()
                raise
    refuse_bad(dataset, store.unreadable)
    return store


def _key(digests: NDArray[np.uint8], contract: PixelContract) -> str:
    decided = contract.model_dump_json(exclude={"image_px", "mean", "std"})
    head = f"{FORMAT}\0{image.DECODER_VERSION}\0{decided}\0{len(digests)}\0"
    return hashlib.blake2b(head.encode() + digests.tobytes(), digest_size=16).hexdigest()


# Reading ------------------------------------------------------------------------------------------


def _open(path: Path, rows: int, contract: PixelContract) -> PixelStore | None:
    """None when there is no store or it is damaged; a damaged one is removed."""
    manifest = read_manifest(path / "manifest")
    if manifest is not None and _is_sound(path / "pixels", manifest, rows, contract):
        mark_used(path)
        unreadable = tuple(UnreadableRow(*entry) for entry in manifest["unreadable"])
        # Copy-on-write: torch wants writable memory, and the file must never change.
        images = np.memmap(path / "pixels", np.uint8, "c", shape=shape_of(rows, contract))
        return PixelStore(images.view(np.ndarray), contract, unreadable, path)
    if path.exists():
        shutil.rmtree(path, ignore_errors=True)
    return None


def _is_sound(pixels: Path, manifest: dict[str, Any], rows: int, contract: PixelContract) -> bool:
    try:
        size = pixels.stat().st_size
    except OSError:
        return False
    if manifest.get("format") != FORMAT or size != int(np.prod(shape_of(rows, contract))):
        return False
    block = rows_a_block(contract) * (size // rows)
    checksums = manifest["checksums"]
    descriptor = os.open(pixels, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        with ThreadPoolExecutor(2) as pool, os.fdopen(descriptor, "rb", closefd=False) as file:
            whole = np.memmap(file, np.uint8, "r")

            def same(number: int) -> bool:
                part = whole[number * block : (number + 1) * block]
                return bool(pixels_checksum(part.data) == checksums[number])

            return len(checksums) == -(-size // block) and all(
                pool.map(same, range(len(checksums)))
            )
    finally:
        os.close(descriptor)


# Building -----------------------------------------------------------------------------------------


def _on_disk(
    decoder: Decoder, stores: Path, threads: int, *, beside: bool, say: Callable[[str], None]
) -> Built:
    """Begin to build a store in `stores`; it gets its name when it is complete."""
    dataset, contract = decoder.dataset, decoder.contract
    size = int(np.prod(shape_of(len(dataset), contract)))
    folder: Path | None = None

    def seal(digests: Digests, checksums: list[int], bad: tuple[UnreadableRow, ...]) -> Path:
        assert folder is not None
        dataset.source.remember(digests)
        manifest = {
            "format": FORMAT,
            "name": dataset.name,
            "decoder": image.DECODER_VERSION,
            "rows": len(dataset),
            "contract": contract.model_dump(mode="json", exclude={"image_px", "mean", "std"}),
            "checksums": checksums,
            "unreadable": [list(row) for row in bad],
        }
        (folder / "manifest").write_bytes(manifest_bytes(manifest))
        path = stores / _key(digests, contract)
        try:
            folder.rename(path)
        except OSError as error:
            # Another process finished the same store first: same key, same pixels.
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.EACCES):
                raise
            shutil.rmtree(folder, ignore_errors=True)
        mark_used(path)
        return path

    try:
        stores.mkdir(parents=True, exist_ok=True)
        make_room(stores.parent, size)
        _check_space(stores, size)
        folder = Path(tempfile.mkdtemp(dir=stores, prefix=unfinished_name()))
        return Built(decoder, folder, seal, threads, beside=beside, say=say)
    except OSError as error:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        raise cache_trouble(stores, error) from error


def _check_space(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise StorageError(
            f"the decoded images need {size / 1e9:.1f} GB in {folder}, which has {free / 1e9:.1f}",
            fix="free some space there (vidi cache --prune), set data.cache_dir or VIDI_CACHE to "
            "another disk, or data.store = 'stream'",
        )
