"""Which image comes when: pure functions of (seed, epoch), of no version of anything."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vidi.data.dataset import Indices


class Draws(NamedTuple):
    """places: (N,) into what is drawn from; repeats: (N,) how often that place came before."""

    places: Indices
    repeats: Indices


def order_of(num: int, *, seed: int, epoch: int) -> Indices:
    """A permutation of range(num) that depends on nothing else, on no version of anything either.

    Sorted raw output of Philox, whose stream numpy promises never to change; its shuffle may.
    """
    return np.argsort(_philox(seed, epoch).random_raw(num), kind="stable").astype(np.int64)


def draws_of(
    weights: NDArray[np.float64], groups: NDArray[np.int64], *, seed: int, epoch: int
) -> Draws:
    """As many draws as there are weights, each place about as often as its weight says.

    A place of weight w comes floor or ceil of its expected number of times, over the epochs exactly
    that often; so does each group (N,) of places, e.g. a class. That is systematic resampling
    (Kitagawa 1996): less noise than drawing with replacement.
    """
    num = len(weights)
    generator = _philox(seed, epoch)
    last = np.argsort(generator.random_raw(num), kind="stable")
    first = np.argsort(generator.random_raw(num), kind="stable")
    start = int(generator.random_raw()) / 2.0**64
    # Within a group in another order in every epoch, the groups one after the other.
    first = first[np.argsort(groups[first], kind="stable")]
    edges = np.cumsum(weights[first]) * (num / float(weights.sum()))
    edges[-1] = num
    ends = np.floor(edges + start).astype(np.int64)
    counts = ends - np.concatenate([[0], ends[:-1]])
    places = np.repeat(first, counts)
    repeats = np.arange(num) - np.repeat(ends - counts, counts)
    return Draws(places[last].astype(np.int64), repeats[last].astype(np.int64))


def balanced_weights(labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """(N,): what makes every class that there is as frequent as every other."""
    counts = np.bincount(labels)
    return np.asarray(1.0 / counts[labels], dtype=np.float64)


def part_of(num: int, rank: int, world_size: int) -> slice:
    """What process `rank` of `world_size` has of a batch of `num` images.

    Parts follow each other, begin at even places (neighbours are mixed with one another) and differ
    by at most two images. All parts together are the batch: nothing is left out or added.
    """
    pairs = (num + 1) // 2
    start, stop = (min(num, 2 * (pairs * number // world_size)) for number in (rank, rank + 1))
    return slice(start, stop)


def _philox(seed: int, epoch: int) -> np.random.Philox:
    return np.random.Philox(key=np.array([seed % 2**64, epoch], dtype=np.uint64))
