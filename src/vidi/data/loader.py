"""Batches out of a store, in an order that is a pure function of (seed, epoch)."""

from __future__ import annotations

import collections
import itertools
import time
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray

from vidi.batch import Batch
from vidi.data.dataset import Indices
from vidi.data.store import PixelStore
from vidi.errors import DataError

# Batches of fewer bytes are gathered several at a time.
_AT_ONCE_BYTES = 64 << 10


def order_of(num: int, *, seed: int, epoch: int) -> Indices:
    """A permutation of range(num) that depends on nothing else, on no version of anything either.

    Sorted raw output of Philox, whose stream numpy promises never to change; its shuffle may.
    """
    key = np.array([seed % 2**64, epoch], dtype=np.uint64)
    return np.argsort(np.random.Philox(key=key).random_raw(num), kind="stable").astype(np.int64)


@final
class Loader:
    """Batches of some rows of a store, prepared ahead by threads.

    The place in training is (epoch, start), two integers: whoever asks for `batches(epoch, start)`
    gets the same batches in the same order, whatever the number of threads and whatever happened
    before. Images are (N, C, H, W) uint8 in channels_last memory.

    With `drop_last`, the last, smaller batch of an epoch is left out, unless it is the only one.
    """

    def __init__(
        self,
        store: PixelStore,
        labels: NDArray[np.int64],
        ids: Indices,
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = False,
        drop_last: bool = False,
        threads: int = 1,
        prefetch: int = 2,
    ) -> None:
        if not len(ids):
            raise DataError("there are no images to load", fix="look at the counts of the splits")
        assert batch_size >= 1
        self.batch_size = batch_size
        # Seconds that the consumer waited for a batch, over all epochs.
        self.wait_s = 0.0
        self._images = store.images
        self._labels = labels
        self._ids = np.asarray(ids, dtype=np.int64)
        self._seed = seed
        self._shuffle = shuffle
        self._drop_last = drop_last and len(ids) >= batch_size
        self._threads = threads
        self._prefetch = prefetch

    @property
    def num_images(self) -> int:
        return len(self._ids)

    @property
    def num_batches(self) -> int:
        """Batches of one epoch."""
        whole, rest = divmod(len(self._ids), self.batch_size)
        return whole + (1 if rest and not self._drop_last else 0)

    def batches(self, epoch: int = 0, start: int = 0) -> Generator[Batch]:
        """The batches of one epoch from number `start` on; closing it stops its threads."""
        ids = self._ids
        if self._shuffle:
            ids = ids[order_of(len(ids), seed=self._seed, epoch=epoch)]
        at_once = self._at_once()
        parts = (
            ids[n * self.batch_size : min(n + at_once, self.num_batches) * self.batch_size]
            for n in range(start, self.num_batches, at_once)
        )
        with ThreadPoolExecutor(self._threads, thread_name_prefix="vidi-loader") as pool:
            ahead = self._threads + self._prefetch - 1
            waiting: collections.deque[Future[Batch]] = collections.deque(
                pool.submit(self._gather, part) for part in itertools.islice(parts, ahead)
            )
            try:
                while waiting:
                    began_at = time.perf_counter()
                    batch = waiting.popleft().result()
                    self.wait_s += time.perf_counter() - began_at
                    waiting.extend(
                        pool.submit(self._gather, part) for part in itertools.islice(parts, 1)
                    )
                    yield from batch.split(self.batch_size)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _at_once(self) -> int:
        """How many batches a thread gathers at a time: waking it takes as long as copying 64 KiB,
        and while it runs Python the training step cannot."""
        batch_bytes = self.batch_size * int(self._images[0].nbytes)
        return max(1, min(8, _AT_ONCE_BYTES // max(1, batch_bytes)))

    def _gather(self, ids: Indices) -> Batch:
        rows = torch.from_numpy(ids)
        # numpy gathers in this thread alone. torch would start a second team of OpenMP threads,
        # which spin while they wait and take the cores from the training step.
        images = torch.from_numpy(np.take(self._images, ids, axis=0)).permute(0, 3, 1, 2)
        return Batch(images, torch.from_numpy(self._labels[ids]), rows)
