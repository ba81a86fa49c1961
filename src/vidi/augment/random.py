"""Random numbers that belong to an image, not to a batch, a thread or a device.

Every number is a pure function of (seed, epoch, image id, stream, draw number): a hash, not the
next value of a generator. So the same image gets the same treatment in the same epoch whatever else
is in its batch, whoever computes it, and wherever a run was interrupted.

The hash is SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number
generators"): each (image, stream) is a place of its own in SplitMix64's sequence, found by hashing.
"""

from __future__ import annotations

import hashlib
import math
from copy import copy
from typing import Final, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vidi.errors import UsageError

_MASK: Final = (1 << 64) - 1
_GOLDEN: Final = 0x9E3779B97F4A7C15
# Draws come in blocks: eight rows cost as many kernel launches as one, and a transform uses a few.
_BLOCK: Final = 8
_RATE_24: Final = 2.0**-24


def _signed(value: int) -> int:
    """The int64 with the same 64 bits."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


_UNSIGNED_1: Final = np.uint64(0xBF58476D1CE4E5B9)
_UNSIGNED_2: Final = np.uint64(0x94D049BB133111EB)
_MULTIPLY_1: Final = _signed(int(_UNSIGNED_1))
_MULTIPLY_2: Final = _signed(int(_UNSIGNED_2))


def _shift_right(x: Tensor, places: int) -> Tensor:
    """A logical shift; that of int64 tensors copies the sign bit into the top."""
    return (x >> places) & ((1 << (64 - places)) - 1)


def mixed(x: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64 (any shape): a bijection whose every output bit depends on
    every input bit. Multiplication wraps around."""
    if x.device.type == "cpu":
        # The same bits from numpy, whose calls take a fifth of the time of torch's: for a batch of
        # small images they, not the numbers, are what costs.
        return torch.from_numpy(_mixed_on_host(x.numpy().view(np.uint64)).view(np.int64))
    x = (x ^ _shift_right(x, 30)) * _MULTIPLY_1
    x = (x ^ _shift_right(x, 27)) * _MULTIPLY_2
    return x ^ _shift_right(x, 31)


def _mixed_on_host(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * _UNSIGNED_1
    x = (x ^ (x >> np.uint64(27))) * _UNSIGNED_2
    return x ^ (x >> np.uint64(31))


def _key(*parts: int | str) -> int:
    """64 bits from some values, the same in every process (Python's own `hash` is not)."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


@final
class ImageRandom:
    """One stream of random numbers for each image of a batch.

    Each method below is one draw (`normal`: two) and gives one number per image, on the device of
    the ids, without a sync; with `count`, that many draws at once, (count, N), the same numbers as
    one after the other. Integer results are equal on every device, and so is everything made of
    them by one rounding (`uniform` from 0 to 1, `bernoulli`, `integers`); the last bit of `normal`
    may differ, for its logarithm and cosine do.

    `stream(name)` splits off an independent stream. Each transform draws from its own, so that
    adding a transform does not move the numbers of the others. Asking for the same name again gives
    the next stream of that name, so that a transform can be used twice.
    """

    def __init__(self, seed: int, epoch: int, ids: Tensor) -> None:
        """ids: (N,) int64, on the device where the numbers are wanted."""
        if ids.dtype != torch.int64 or ids.ndim != 1:
            raise UsageError(
                f"image ids must be one int64 each, not {ids.dtype} of shape {tuple(ids.shape)}"
            )
        self.seed = seed
        self.epoch = epoch
        self.ids = ids
        self._images = mixed(ids ^ _signed(_key("epoch", seed, epoch)))
        self._steps = torch.arange(1, _BLOCK + 1, device=ids.device)[:, None] * _signed(_GOLDEN)
        self._path = _key("root")
        self._children: dict[str, int] = {}
        self._next_draw = 0
        self._block_number = -1
        self._block = self._images[None]

    def __len__(self) -> int:
        return len(self.ids)

    def stream(self, name: str) -> ImageRandom:
        """An independent stream of the same images; the k-th call with one name gives the k-th."""
        occurrence = self._children.get(name, 0)
        self._children[name] = occurrence + 1
        child = copy(self)
        child._path = _key(self._path, name, occurrence)
        child._children = {}
        child._next_draw = 0
        child._block_number = -1
        return child

    def in_every_epoch(self) -> ImageRandom:
        """A stream whose numbers are the same in every epoch."""
        same = copy(self)
        same._images = mixed(self.ids ^ _signed(_key("every epoch", self.seed)))
        same._children = dict(self._children)
        same._block_number = -1
        return same

    def bits(self, count: int | None = None) -> Tensor:
        """(N,) or (count, N) int64, all 64 bits random."""
        first = self._next_draw
        self._next_draw += 1 if count is None else count
        if count is not None:
            steps = torch.arange(1, count + 1, device=self.ids.device)[:, None] * _signed(_GOLDEN)
            return self._rows(steps, first)
        number, row = divmod(first, _BLOCK)
        if number != self._block_number:
            self._block, self._block_number = self._rows(self._steps, number * _BLOCK), number
        return self._block[row]

    def _rows(self, steps: Tensor, first: int) -> Tensor:
        """(len(steps), N) int64: the draws from `first` on."""
        return mixed(self._images + (steps + _signed(self._path + _GOLDEN * first)))

    def uniform(
        self,
        low: float | Tensor = 0.0,
        high: float | Tensor = 1.0,
        *,
        count: int | None = None,
    ) -> Tensor:
        """float32 in low..high, in 2**24 equal steps; below `high` unless rounding lifts it there,
        which from 0 to 1 it does not. The ends may be one number per image."""
        unit = _shift_right(self.bits(count), 40).to(torch.float32) * _RATE_24
        if isinstance(low, float | int) and isinstance(high, float | int) and (low, high) == (0, 1):
            return unit
        return unit * (high - low) + low

    def bernoulli(self, p: float | Tensor, *, count: int | None = None) -> Tensor:
        """bool, true with probability p."""
        return self.uniform(count=count) < p

    def integers(self, n: int | Tensor, *, count: int | None = None) -> Tensor:
        """int64, each of 0..n-1 equally likely (to n parts in 2**32); n is at most 2**31, and may
        be one number per image."""
        return (_shift_right(self.bits(count), 32) * n) >> 32

    def normal(self, *, count: int | None = None) -> Tensor:
        """float32, mean 0, variance 1 (Box and Muller 1958)."""
        above_zero = 1.0 - self.uniform(count=count)
        angle = (2 * math.pi) * self.uniform(count=count)
        return torch.sqrt(-2.0 * torch.log(above_zero)) * torch.cos(angle)


def partners(count: int, device: torch.device) -> Tensor:
    """(count,) int64: the image that each image of a batch is mixed with.

    The rule: neighbours are pairs. Image 2k is mixed with 2k+1 and the other way round; the last
    image of an odd batch with the one before it; a lone image with itself. A loader's order is
    already random, and this rule gives the same pairs when a batch is cut into micro-batches, or
    over ranks or threads, as long as the cuts are at even places.
    """
    index = torch.arange(count, device=device)
    pairs = index ^ 1
    if count % 2:
        # The last one's partner would be outside: the one before it, or itself when it is alone.
        pairs = torch.where(index == count - 1, max(count - 2, 0), pairs)
    return pairs
