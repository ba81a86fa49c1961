"""What a transform is, how several become one, and how one uses all cores."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier, Lock
from typing import Final, TypeAlias

import torch
from torch import Tensor

from vidi.augment.random import ImageRandom
from vidi.batch import Batch

# (batch, rng, done) -> batch. `done` is the share of training that is done, 0..1. Images keep their
# type (uint8 or float) and their range 0..255; the batch that came in is not changed.
Transform: TypeAlias = Callable[[Batch, ImageRandom, float], Batch]

# Images are worked on in groups of this many bytes, so that what one step writes is still in the
# processor's cache when the next step reads it.
_GROUP_BYTES: Final = 8 << 20
# Below this a hand-over to a thread costs more than it brings.
_ALONE_BYTES: Final = 256 << 10


def compose(transforms: Sequence[Transform]) -> Transform:
    """The transforms one after the other, as one; none at all changes nothing."""
    steps = tuple(transforms)

    def composed(batch: Batch, rng: ImageRandom, done: float) -> Batch:
        for step in steps:
            batch = step(batch, rng, done)
        return batch

    return composed


@cache
def _pool(threads: int, process_id: int) -> ThreadPoolExecutor:
    """One per number of threads and process (a fork inherits the object but not its threads)."""
    del process_id
    pool = ThreadPoolExecutor(threads, "augment", initializer=torch.set_num_threads, initargs=(1,))
    # set_num_threads is also the default of every thread that starts later. So all of ours are
    # started now, which the barrier makes sure of, and then the default is put back.
    barrier = Barrier(threads)
    for waiting in [pool.submit(barrier.wait) for _ in range(threads)]:
        waiting.result()
    torch.set_num_threads(threads)
    return pool


def in_threads(transform: Transform) -> Transform:
    """The same transform, computed by all of torch's threads when the images are in main memory.

    The batch is cut into groups at even places; numbers are drawn per image and mixing happens
    between neighbours (`random.partners`), so the result is the same to the last bit. Only for
    transforms of which that is true: all of this package, and any other that treats each image by
    itself. On an accelerator the whole batch is one group.
    """

    def threaded(batch: Batch, rng: ImageRandom, done: float) -> Batch:
        groups = _groups(batch.images)
        if len(groups) == 1:
            return transform(batch, rng, done)
        result: list[Batch] = []
        lock = Lock()

        def work(group: tuple[int, int]) -> None:
            start, stop = group
            part = transform(
                Batch(batch.images[start:stop], batch.targets[start:stop], batch.ids[start:stop]),
                rng.part(start, stop),
                done,
            )
            with lock:
                if not result:
                    # The first group to be ready tells type, size and memory layout of all.
                    result.append(_room(part, batch.ids))
            # Written into its place while it is still in the cache.
            result[0].images[start:stop] = part.images
            result[0].targets[start:stop] = part.targets

        threads = torch.get_num_threads()
        run = map if threads == 1 else _pool(threads, os.getpid()).map
        for _ in run(work, groups):
            pass
        return result[0]

    return threaded


def _groups(images: Tensor) -> list[tuple[int, int]]:
    """(start, stop) of each group; all cuts are at even places."""
    count = int(images.shape[0])
    num_bytes = images.numel() * images.element_size()
    if images.device.type != "cpu" or num_bytes <= _ALONE_BYTES:
        return [(0, count)]
    pieces = max(torch.get_num_threads(), num_bytes // _GROUP_BYTES)
    size = max(2, -(-count // pieces))
    size += size % 2
    return [(start, min(start + size, count)) for start in range(0, count, size)]


def _room(part: Batch, ids: Tensor) -> Batch:
    """An unwritten batch for all ids, like `part` in everything else."""
    count = len(ids)
    images = part.images
    channels_last = images.is_contiguous(memory_format=torch.channels_last)
    return Batch(
        torch.empty(
            (count, *images.shape[1:]),
            dtype=images.dtype,
            memory_format=torch.channels_last if channels_last else torch.contiguous_format,
        ),
        torch.empty((count, *part.targets.shape[1:]), dtype=part.targets.dtype),
        ids,
    )
