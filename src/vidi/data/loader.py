"""Batches out of a store, in an order that is a pure function of (seed, epoch)."""

from __future__ import annotations

import collections
import itertools
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vidi.batch import Batch
from vidi.data.dataset import Indices
from vidi.data.filling import Mask, shape_of
from vidi.data.order import Draws, draws_of, order_of, part_of
from vidi.data.store import PixelStore
from vidi.errors import DataError, UsageError

_CPU = torch.device("cpu")

# Batches of fewer bytes are gathered several at a time.
_AT_ONCE_BYTES = 64 << 10


class _Part(NamedTuple):
    """What one batch is made of."""

    ids: Indices
    repeats: Indices | None


@final
class Loader:
    """Batches of some rows of a store, prepared ahead by threads.

    The place in training is (epoch, start), two integers: whoever asks for `batches(epoch, start)`
    gets the same batches in the same order, whatever the number of threads and whatever happened
    before. Images are (N, C, H, W) uint8 in channels_last memory.

    With `drop_last`, the last, smaller batch of an epoch is left out, unless it is the only one.
    Rows that cannot be decoded are left out of their batch; no other row takes their place.
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
        weights: NDArray[np.float64] | None = None,
        threads: int = 1,
        prefetch: int = 2,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device = _CPU,
        resident: bool = False,
    ) -> None:
        """
        Args:
            batch_size: of all processes together.
            weights: (N,) of the `ids`, above 0: how often each is drawn, relative to the others;
                None for each once an epoch. Only with `shuffle`.
            rank, world_size: of each batch, this process gets its part: see `order.part_of`.
            device: where batches go. For an accelerator they are made in pinned memory.
            resident: the whole store is copied to the device once it is complete, and batches are
                made there.
        """
        if not len(ids):
            raise DataError("there are no images to load", fix="look at the counts of the splits")
        assert batch_size >= 1
        assert 0 <= rank < world_size
        self.batch_size = batch_size
        # Seconds that the consumer waited for a batch, over all epochs.
        self.wait_s = 0.0
        self._store = store
        self._labels = labels
        self._ids = np.asarray(ids, dtype=np.int64)
        self._weights = None if weights is None else _checked(weights, len(ids), shuffle=shuffle)
        self._seed = seed
        self._shuffle = shuffle
        self._drop_last = drop_last and len(ids) >= batch_size
        self._threads = threads
        self._prefetch = prefetch
        self._rank = rank
        self._world_size = world_size
        self._device = device
        self._resident = resident

    @property
    def num_images(self) -> int:
        """Of all processes together; fewer come where some cannot be decoded."""
        return len(self._ids)

    @property
    def num_batches(self) -> int:
        """Batches of one epoch."""
        whole, rest = divmod(len(self._ids), self.batch_size)
        return whole + (1 if rest and not self._drop_last else 0)

    def batches(self, epoch: int = 0, start: int = 0) -> Generator[Batch]:
        """The batches of one epoch from number `start` on; closing it stops its threads.

        Where nothing is shuffled, as in evaluation, a batch of which this process has no part, or
        of which nothing can be decoded, is left out.

        Raises:
            DataError: nothing of a batch of training can be decoded.
        """
        self._store.settle()
        rows = self._store.on(self._device) if self._resident else None
        parts = self._parts(epoch, start)
        at_once = self._at_once()
        groups = iter(lambda: list(itertools.islice(parts, at_once)), [])
        with ThreadPoolExecutor(self._threads, thread_name_prefix="vidi-loader") as pool:
            ahead = self._threads + self._prefetch - 1
            waiting: collections.deque[Future[Sequence[Batch]]] = collections.deque(
                pool.submit(self._gather, some, rows) for some in itertools.islice(groups, ahead)
            )
            try:
                while waiting:
                    began_at = time.perf_counter()
                    batches = waiting.popleft().result()
                    self.wait_s += time.perf_counter() - began_at
                    waiting.extend(
                        pool.submit(self._gather, some, rows)
                        for some in itertools.islice(groups, 1)
                    )
                    yield from (batch for batch in batches if len(batch))
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _parts(self, epoch: int, start: int) -> Iterator[_Part]:
        ids, repeats = self._ids, None
        if self._shuffle:
            places, repeats = self._draws(epoch)
            ids = ids[places]
        for number in range(start, self.num_batches):
            first = number * self.batch_size
            last = min(first + self.batch_size, len(ids))
            part = part_of(last - first, self._rank, self._world_size)
            here = slice(first + part.start, first + part.stop)
            yield _Part(ids[here], None if repeats is None else repeats[here])

    def _draws(self, epoch: int) -> Draws | tuple[Indices, None]:
        if self._weights is None:
            return order_of(len(self._ids), seed=self._seed, epoch=epoch), None
        labels = self._labels[self._ids]
        return draws_of(self._weights, labels, seed=self._seed, epoch=epoch)

    def _at_once(self) -> int:
        """How many batches a thread gathers at a time: waking it takes as long as copying 64 KiB,
        and while it runs Python the training step cannot. One where they have to be decoded."""
        if not self._store.complete:
            return 1
        batch_bytes = int(np.prod(shape_of(self.batch_size, self._store.contract)))
        return max(1, min(8, _AT_ONCE_BYTES // max(1, batch_bytes)))

    def _gather(self, parts: Sequence[_Part], rows: Tensor | None) -> Sequence[Batch]:
        """Some batches in one go."""
        ids = parts[0].ids if len(parts) == 1 else np.concatenate([part.ids for part in parts])
        if rows is not None:
            good = self._store.readable(ids)
            images = rows.index_select(0, torch.from_numpy(ids).to(self._device))
        else:
            # numpy gathers in this thread alone. torch would start a second team of OpenMP
            # threads, which spin while they wait and take the cores from the training step.
            shape = shape_of(len(ids), self._store.contract)
            images = torch.empty(shape, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
            _, good = self._store.take(ids, images.numpy())
        images = images.permute(0, 3, 1, 2)
        ends = np.cumsum([len(part.ids) for part in parts]).tolist()
        starts = [0, *ends[:-1]]
        return [
            self._batch(images[start:end], part, good[start:end])
            for part, start, end in zip(parts, starts, ends, strict=True)
        ]

    def _batch(self, images: Tensor, part: _Part, good: Mask) -> Batch:
        ids, repeats = part
        if not good.all():
            if self._shuffle and not good.any():
                raise DataError(
                    f"none of the {len(ids)} images of a batch can be decoded (rows "
                    f"{', '.join(str(row) for row in ids[:5])}, ...)",
                    fix="look at them with `vidi audit`, or use larger batches",
                )
            images = images[torch.from_numpy(good)]
            ids = ids[good]
            repeats = None if repeats is None else repeats[good]
        numbers = (
            torch.from_numpy(self._labels[ids]),
            torch.from_numpy(ids),
            None if repeats is None else torch.from_numpy(repeats),
        )
        targets, ids_, repeats_ = (self._placed(number, images.device) for number in numbers)
        assert targets is not None
        assert ids_ is not None
        return Batch(images, targets, ids_, repeats_)

    def _placed(self, numbers: Tensor | None, device: torch.device) -> Tensor | None:
        return numbers if numbers is None or device == _CPU else numbers.to(device)


def _checked(weights: NDArray[np.float64], count: int, *, shuffle: bool) -> NDArray[np.float64]:
    assert shuffle, "weighted draws come in a random order"
    if len(weights) != count or not np.isfinite(weights).all() or not (weights > 0).all():
        raise UsageError(
            f"the weights of {count} images must be as many finite numbers above 0",
            fix="leave out the rows that should never be drawn",
        )
    return np.asarray(weights, dtype=np.float64)
