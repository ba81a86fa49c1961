"""How rows of a store come to be: decoded by threads in the background, or when they are asked for.

Whoever needs a row that is not there yet decodes it on the spot, so training can begin with the
first batch; a row that somebody else wrote is not decoded again. All ways give the same pixels, and
all leave out the same rows: those that cannot be decoded.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, final

import numpy as np
from numpy.typing import NDArray

from vidi import image
from vidi.data.cache import cache_trouble, pixels_checksum
from vidi.data.dataset import Dataset, Indices, content_digest
from vidi.data.in_time import Late, each_in_time
from vidi.data.resample import fast_resize
from vidi.errors import DataError, MismatchError, StorageError, UnreadableImage
from vidi.image import PixelContract, Pixels

# One checksum. Small enough for 8 in flight.
BLOCK_BYTES: Final = 4 << 20
# One write. Linux keeps it in one piece of memory of this size: for larger ones a virtual machine
# asks its host more often than it has to, at 4 ms for each 2 MB.
_WRITE_BYTES: Final = 64 << 10
# The disk gave up, as the system says it and as we do.
_OF_DISK: Final = (OSError, StorageError)
# What a builder beside a training gives way by, of the 19 steps of niceness.
_NICENESS: Final = 10

Progress = Callable[[int, int], None]
Mask = NDArray[np.bool_]
Digests = NDArray[np.uint8]


class UnreadableRow(NamedTuple):
    """A row that could not be decoded; its pixels are the background."""

    id: int
    reason: image.Reason
    message: str


class Rows(Protocol):
    """Pixels of rows that may have to be decoded first; safe to use from several threads."""

    @property
    def unreadable(self) -> tuple[UnreadableRow, ...]:
        """Those found so far, by id."""
        ...

    def take(self, ids: Indices, out: Pixels) -> Mask:
        """Write the rows `ids` into `out`; which of them could be read, (N,)."""
        ...

    @property
    def finished(self) -> bool:
        """Whether `finish` would not wait."""
        ...

    def finish(self, progress: Progress | None) -> tuple[Pixels, Path] | None:
        """Wait until all rows are there, and where; None where they never are."""
        ...

    def pause(self) -> contextlib.AbstractContextManager[None]:
        """No work in the background for a while."""
        ...

    def close(self) -> None:
        """Stop all work and remove what is not complete."""
        ...


def shape_of(rows: int, contract: PixelContract) -> tuple[int, int, int, int]:
    """Of all pixels of a store."""
    return rows, contract.store_px, contract.store_px, contract.channels


def rows_a_block(contract: PixelContract) -> int:
    """Rows that are written and checked together."""
    return max(1, BLOCK_BYTES // (contract.store_px**2 * contract.channels))


@final
class Decoder:
    """One row of a data set to pixels; keeps account of those that cannot be read."""

    def __init__(self, dataset: Dataset, contract: PixelContract, expected: Digests | None) -> None:
        """expected: (N, 16) what the files held when the run was planned; None to take any."""
        self.dataset = dataset
        self.contract = contract
        self._expected = expected
        self._bad: dict[int, UnreadableRow] = {}
        self.limit_s = dataset.read_limit_s
        self._late = Late(self.limit_s, dataset.name, dataset.name_of)

    @property
    def unreadable(self) -> tuple[UnreadableRow, ...]:
        bad = self._bad.copy()
        return tuple(bad[index] for index in sorted(bad))

    def decode(self, ids: Sequence[int]) -> tuple[Pixels, Digests]:
        """Pixels of some rows, the background where they cannot be read, and their digests.

        Raises:
            MismatchError: a file is another one than when the run was planned.
            DataError: nothing is read any more.
        """
        some = Decoding(self, ids)
        each_in_time(some.decode, range(len(ids)), some.leave, limit_s=self.limit_s)
        return some.pixels, some.digests

    def decode_into(self, index: int, out: Pixels) -> bytes:
        """One row, however long it takes; its digest."""
        digest = bytes(16)
        dataset, contract = self.dataset, self.contract
        resize = functools.partial(fast_resize, out=out)
        try:
            array = dataset.source.pixels(index)
            if array is not None:
                digest = content_digest(np.ascontiguousarray(array).data.cast("B"))
                made = image.prepare_array(array, contract, resize=resize)
            else:
                data = dataset.read(index)
                digest = content_digest(data)
                self._check(index, digest)
                made = image.prepare(data, contract, resize=resize)
            if made is not out:
                out[:] = made
        except UnreadableImage as error:
            out[:] = contract.background
            row = UnreadableRow(index, error.reason, error.message)  # type: ignore[arg-type]
            self._bad[index] = row
        return digest

    def leave_out(self, index: int) -> None:
        """A row that is not waited for any longer. Raises DataError where there are many."""
        self._late.add(index)
        self._bad[index] = UnreadableRow(index, "TIMEOUT", self._late.words)

    def is_bad(self, index: int) -> bool:
        return index in self._bad

    def readable(self, ids: Indices) -> Mask:
        """(N,), of rows that were decoded before."""
        if not self._bad:
            return np.ones(len(ids), dtype=np.bool_)
        return np.array([index not in self._bad for index in ids.tolist()], dtype=np.bool_)

    def _check(self, index: int, digest: bytes) -> None:
        if self._expected is not None and self._expected[index].tobytes() != digest:
            raise MismatchError(
                f"{self.dataset.name_of(index)} was changed after the run had begun",
                fix="put it back as it was, or start a new run with the new data",
            )


@final
class Decoding:
    """Rows that are being decoded by a thread that may have to be left behind with one of them.

    pixels: (N, store_px, store_px, channels); digests: (N, 16).
    """

    def __init__(self, decoder: Decoder, ids: Sequence[int]) -> None:
        self.ids = ids
        self.pixels: Pixels = np.empty(shape_of(len(ids), decoder.contract), dtype=np.uint8)
        self.digests: Digests = np.zeros((len(ids), 16), dtype=np.uint8)
        self._decoder = decoder

    def decode(self, place: int) -> None:
        # Those of now: once it is left behind, it writes to what nobody looks at any more.
        pixels, digests = self.pixels, self.digests
        digest = self._decoder.decode_into(self.ids[place], pixels[place])
        digests[place] = np.frombuffer(digest, dtype=np.uint8)

    def leave(self, place: int) -> None:
        """The background in the place of a row that takes too long."""
        self._decoder.leave_out(self.ids[place])
        self.pixels, self.digests = self.pixels.copy(), self.digests.copy()
        self.pixels[place], self.digests[place] = self._decoder.contract.background, 0


@final
class Streamed:
    """Nothing is kept: every row is decoded each time it is asked for."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    @property
    def unreadable(self) -> tuple[UnreadableRow, ...]:
        return self._decoder.unreadable

    def take(self, ids: Indices, out: Pixels) -> Mask:
        out[:], _ = self._decoder.decode(ids.tolist())
        refuse_bad(self._decoder.dataset, self._decoder.unreadable)
        return self._decoder.readable(ids)

    @property
    def finished(self) -> bool:
        return False

    def finish(self, progress: Progress | None) -> tuple[Pixels, Path] | None:
        del progress
        return None

    def pause(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def close(self) -> None:
        """There is nothing to stop."""


# What is written at the end: (digests, checksums of the blocks, unreadable rows) -> the final path.
Seal = Callable[[Digests, list[int], tuple[UnreadableRow, ...]], Path]


@final
class Built:
    """All rows are decoded by threads, block after block, into a file or into memory.

    A block is written by position, not through a memory map, where a full disk would be a crash.
    """

    def __init__(
        self,
        decoder: Decoder,
        folder: Path | None,
        seal: Seal,
        threads: int,
        *,
        beside: bool,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """folder: where `pixels` is written, None for memory. beside: a training is going on.
        say: told, from a thread, where that training goes on without a store."""
        self._decoder = decoder
        self._folder = folder
        self._seal = seal
        self._beside = beside
        self._say = say
        rows = len(decoder.dataset)
        self._shape = shape_of(rows, decoder.contract)
        self._row_bytes = int(np.prod(self._shape[1:]))
        self._step = rows_a_block(decoder.contract)
        self._ready = np.zeros(rows, dtype=np.bool_)
        self._digests = np.zeros((rows, 16), dtype=np.uint8)
        self._checksums = [0] * -(-rows // self._step)
        self._next_block = 0
        self._blocks_left = len(self._checksums)
        self._stop = threading.Event()
        self._go = threading.Event()
        self._go.set()
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._path: Path | None = None
        self._descriptor = -1
        if folder is None:
            self._pixels: Pixels = np.empty(self._shape, dtype=np.uint8)
        else:
            file = folder / "pixels"
            self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0))
            _reserve(self._descriptor, rows * self._row_bytes)
            self._pixels = np.memmap(file, np.uint8, "r", shape=self._shape)
        self._threads = [
            threading.Thread(target=self._work, name=f"vidi-store-{number}", daemon=True)
            for number in range(max(1, threads))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def unreadable(self) -> tuple[UnreadableRow, ...]:
        return self._decoder.unreadable

    def take(self, ids: Indices, out: Pixels) -> Mask:
        if self._error is not None and not (self._beside and isinstance(self._error, _OF_DISK)):
            raise self._error
        there = self._ready[ids]
        if there.all():
            np.take(self._pixels, ids, axis=0, out=out, mode="clip")
        else:
            out[there] = self._pixels[ids[there]]
            missing = ids[~there]
            pixels, self._digests[missing] = self._decoder.decode(missing.tolist())
            out[~there] = pixels
            for place, index in enumerate(missing.tolist()):
                if self._error is None and not self._stop.is_set():
                    with contextlib.suppress(OSError):
                        self._write(index, pixels[place : place + 1])
                        self._ready[index] = True
            refuse_bad(self._decoder.dataset, self._decoder.unreadable)
        return self._decoder.readable(ids)

    @property
    def finished(self) -> bool:
        return self._blocks_left == 0

    def finish(self, progress: Progress | None) -> tuple[Pixels, Path] | None:
        rows, said = len(self._ready), -1
        while True:
            with self._changed:
                done = self._error is not None or self._blocks_left == 0
                if not done:
                    self._changed.wait(0.2)
                num_ready = int(self._ready.sum())
            if progress is not None and num_ready != said:
                said = num_ready
                progress(num_ready, rows)
            if done:
                break
        for thread in self._threads:
            thread.join()
        if isinstance(self._error, _OF_DISK) and self._beside:
            # Said when it happened: all rows are decoded when they are asked for.
            return None
        if isinstance(self._error, OSError):
            raise cache_trouble(self._folder or Path(), self._error) from self._error
        if self._error is not None:
            raise self._error
        if self._folder is None:
            return self._pixels, Path()
        assert self._path is not None
        # Copy-on-write: torch wants writable memory, and the file must never change.
        pixels = np.memmap(self._path / "pixels", np.uint8, "c", shape=self._shape)
        return pixels.view(np.ndarray), self._path

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        self._go.clear()
        # What was begun goes on for one image more.
        time.sleep(0.02)
        try:
            yield
        finally:
            self._go.set()

    def close(self) -> None:
        self._stop.set()
        self._go.set()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        if self._folder is not None and self._path is None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _work(self) -> None:
        if self._beside and hasattr(os, "setpriority"):
            # Of this thread alone, on Linux; elsewhere it would be of the whole process.
            with contextlib.suppress(OSError):
                if os.uname().sysname == "Linux":
                    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        try:
            self._build()
        except BaseException as error:
            # Whoever takes rows or waits for them raises it.
            with self._changed:
                first = self._error is None
                self._error = self._error or error
                self._stop.set()
                self._changed.notify_all()
            if first and self._beside and isinstance(error, _OF_DISK):
                if isinstance(error, OSError):
                    error = cache_trouble(self._folder or Path(), error)
                self._say(f"{error.message}: images are decoded again in every epoch instead")

    def _claim(self) -> int | None:
        with self._changed:
            if self._stop.is_set() or self._next_block == len(self._checksums):
                return None
            self._next_block += 1
            return self._next_block - 1

    def _build(self) -> None:
        """Block after block, by one thread as long as no row is late.

        Handed over as a whole: done for every block, that took a seventh of all the time.
        """
        block: Decoding

        def places() -> Iterator[int]:
            nonlocal block
            while (number := self._claim()) is not None:
                first = number * self._step
                rows = range(first, min(first + self._step, len(self._ready)))
                block = Decoding(self._decoder, rows)
                there = self._ready[first : rows.stop].copy()
                yield from np.flatnonzero(~there).tolist()
                self._digests[first : rows.stop][~there] = block.digests[~there]
                if there.any():
                    block.pixels[there] = self._pixels[first : rows.stop][there]
                self._keep(number, block.pixels)

        each_in_time(
            lambda place: block.decode(place),
            places(),
            lambda place: block.leave(place),
            limit_s=self._decoder.limit_s,
            may_go=self._may_go,
        )

    def _keep(self, number: int, pixels: Pixels) -> None:
        """Write a block of rows; the last one makes the store complete."""
        first = number * self._step
        self._write(first, pixels)
        self._checksums[number] = pixels_checksum(pixels.data.cast("B"))
        self._ready[first : first + len(pixels)] = True
        if self._beside:
            refuse_bad(self._decoder.dataset, self._decoder.unreadable)
        with self._changed:
            if self._blocks_left == 1:
                self._path = self._seal(self._digests, self._checksums, self._decoder.unreadable)
            self._blocks_left -= 1
            self._changed.notify_all()

    def _may_go(self) -> bool:
        self._go.wait()
        return not self._stop.is_set()

    def _write(self, first: int, pixels: Pixels) -> None:
        if self._descriptor < 0:
            self._pixels[first : first + len(pixels)] = pixels
            return
        data, offset = pixels.data.cast("B"), first * self._row_bytes
        while data:
            part = data[: _WRITE_BYTES - offset % _WRITE_BYTES]
            if hasattr(os, "pwrite"):
                written = os.pwrite(self._descriptor, part, offset)
            else:
                with _write_lock:
                    os.lseek(self._descriptor, offset, os.SEEK_SET)
                    written = os.write(self._descriptor, part)
            data, offset = data[written:], offset + written


def _reserve(descriptor: int, size: int) -> None:
    """The room on the disk is taken now, so that it cannot run out on the way; writing into it is
    a third faster, too. Where the file system cannot, the file only gets its length."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
        else:
            return
    os.ftruncate(descriptor, size)


_write_lock = threading.Lock()


def refuse_bad(dataset: Dataset, unreadable: tuple[UnreadableRow, ...]) -> None:
    """Raises DataError when there are more than the data set allows."""
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


def no_seal(digests: Digests, checksums: list[int], unreadable: Any) -> Path:
    """For rows in memory, which nobody else will open."""
    del digests, checksums, unreadable
    return Path()
