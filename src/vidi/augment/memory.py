"""Where images lie, and how to go through them quickly.

On an accelerator a whole batch is one operation. In main memory large images are handled one after
the other, by several threads: what one step wrote is then still in the cache when the next step
reads it, torch's resampling kernel works on one image at a time anyway, and temporary memory stays
small enough for the allocator to use it again (a fresh page costs 0.5 to 2 us, about as much as
resizing 1,000 pixels).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from threading import Barrier
from typing import Final

import torch
from torch import Tensor

# Values of an image from which on it is handled by itself; below, a batch is (32 px: 3,072).
_LARGE: Final = 32 << 10
# A batch with fewer values is not worth waking threads for, which takes about 0.1 ms.
_WORTH_THREADS: Final = 256 << 10


def in_main_memory(images: Tensor) -> bool:
    """True where single images can be looked at without waiting for a device."""
    return images.device.type == "cpu"


def large(images: Tensor) -> bool:
    """True where one image (C, H, W) is work enough for an operation of its own."""
    return images[0].numel() >= _LARGE if len(images) else False


def each(count: int, num_values: int, work: Callable[[int], None]) -> None:
    """work(0) .. work(count - 1), in any order, by all of torch's threads.

    num_values: how much work it is in all, in values that are read or written.
    """
    threads = min(torch.get_num_threads(), count)
    if threads <= 1 or num_values < _WORTH_THREADS:
        for number in range(count):
            work(number)
        return

    def share(first: int) -> None:
        for number in range(first, count, threads):
            work(number)

    pool = _pool(threads, os.getpid())
    shares = [pool.submit(share, k) for k in range(threads)]
    # All of them end before the first error of one goes up: nobody writes into what is given up.
    wait(shares)
    for ended in shares:
        ended.result()


@cache
def _pool(threads: int, process_id: int) -> ThreadPoolExecutor:
    """One per number of threads and process (a fork inherits the object but not its threads)."""
    del process_id
    standard = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, "augment", initializer=torch.set_num_threads, initargs=(1,))
    # set_num_threads is also the standard of every thread that starts later. So all of ours are
    # started now, which the barrier makes sure of, and then the standard is put back.
    barrier = Barrier(threads)
    for waiting in [pool.submit(barrier.wait) for _ in range(threads)]:
        waiting.result()
    torch.set_num_threads(standard)
    return pool


def layout(images: Tensor) -> torch.memory_format:
    """How images lie in memory. One channel fits both; then it is channels_last."""
    if images.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def rows(images: Tensor) -> Tensor:
    """(N, C * H * W): each image as one row, in the order of its memory."""
    if layout(images) == torch.channels_last:
        return images.permute(0, 2, 3, 1).flatten(1)
    return images.flatten(1)


def like_rows(data: Tensor, images: Tensor) -> Tensor:
    """(M, C, H, W): what `rows(images)` was made of, in the same layout, for M other rows."""
    channels, height, width = images.shape[1:]
    if layout(images) == torch.channels_last:
        return data.view(-1, height, width, channels).permute(0, 3, 1, 2)
    return data.view(-1, channels, height, width)


def write_rows(out: Tensor, numbers: Tensor, images: Tensor) -> None:
    """out[numbers] = images, for small images of one layout in main memory; numbers (M,) int64."""
    assert out.is_contiguous(memory_format=layout(out)), "the rows would be those of a copy"
    # numpy copies a row at a time, torch a value at a time: 20 times slower.
    rows(out).numpy()[numbers.numpy()] = rows(images).numpy()


def planar(images: Tensor) -> Tensor:
    """The same images, one channel after the other in memory: torch's operations are several times
    faster so, wherever channels play different parts."""
    return images.contiguous()


def in_layout_of(images: Tensor, example: Tensor) -> Tensor:
    """The same images, lying in memory as `example` does."""
    if layout(example) != torch.channels_last:
        return images.contiguous()
    if images.is_contiguous(memory_format=torch.channels_last):
        return images
    if not in_main_memory(images):
        return images.contiguous(memory_format=torch.channels_last)
    # Half the time of `contiguous`.
    return torch.stack(images.unbind(dim=1), dim=3).permute(0, 3, 1, 2)


def like(pixels: Tensor, images: Tensor) -> Tensor:
    """Float pixels as the type of `images`: for uint8, rounded and cut to 0..255. The pixels are
    not needed afterwards and may be written over."""
    if images.dtype != torch.uint8:
        return pixels.to(images.dtype)
    pixels = pixels.round_().clamp_(0, 255)
    # The detour makes it four times faster on processors.
    return (pixels.to(torch.int16) if in_main_memory(pixels) else pixels).to(torch.uint8)


def where(
    chosen: Tensor,
    change: Callable[..., Tensor],
    images: Tensor,
    *parameters: Tensor,
    in_place: bool = False,
) -> Tensor:
    """change(images, *parameters) for the chosen images, the others as they are.

    chosen: (N,) bool. change: handles each image by itself and keeps shape and type; in main memory
    it gets planar images. parameters: (N, ...) each, one row for an image. in_place: images may be
    overwritten.
    """
    if not in_main_memory(images):
        changed = in_layout_of(change(images, *parameters), images)
        return torch.where(chosen[:, None, None, None], changed, images)
    numbers = chosen.nonzero().squeeze(1)
    if not len(numbers):
        return images
    out = images if in_place else images.clone(memory_format=layout(images))
    if large(images):
        which: list[int] = numbers.tolist()

        def one(k: int) -> None:
            this = slice(which[k], which[k] + 1)
            changed = change(planar(images[this]), *(values[this] for values in parameters))
            out[this] = in_layout_of(changed, images)

        each(len(which), len(which) * images[0].numel(), one)
    else:
        some = planar(like_rows(rows(images).index_select(0, numbers), images))
        changed = change(some, *(values.index_select(0, numbers) for values in parameters))
        write_rows(out, numbers, in_layout_of(changed, images))
    return out


def for_all(change: Callable[..., Tensor], images: Tensor, *parameters: Tensor) -> Tensor:
    """change(images, *parameters), image by image where that is faster; see `where`."""
    if not in_main_memory(images):
        return in_layout_of(change(images, *parameters), images)
    if not large(images):
        return in_layout_of(change(planar(images), *parameters), images)
    out = torch.empty_like(images)

    def one(number: int) -> None:
        this = slice(number, number + 1)
        changed = change(planar(images[this]), *(values[this] for values in parameters))
        out[this] = in_layout_of(changed, images)

    each(len(images), images.numel(), one)
    return out
