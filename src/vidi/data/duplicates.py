"""Images that are there more than once: exact copies by content, near ones by what they show.

Near means: the same picture saved again, at another size or quality. Pictures are compared as small
grey thumbnails; candidates come from random hyperplanes (Charikar 2002, "Similarity estimation
techniques from rounding algorithms"): pictures that are alike lie on the same side of most of them,
so they stand close together in at least one of several sorted lists of sides. That takes time
proportional to the number of images, and a pair that is missed by all lists is rare.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple, final

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from torch.nn import functional

from vidi.data.split import Groups
from vidi.image import Pixels

SIDE_PX: Final = 32
Pairs = NDArray[np.int64]

# Directions of largest variance that hyperplanes are drawn in; more of them are mostly noise.
_DIRECTIONS: Final = 32
# 12 lists find 64 and 24 all of the 66 pairs that comparing each of the 70,000 pictures of
# Fashion-MNIST with each other one finds.
_TABLES: Final = 24
_WINDOW: Final = 12
# Sides in which the same picture may differ: at most 9 of 64 for all pairs of Fashion-MNIST with a
# correlation above 0.985, where pictures that are next to each other in a list differ in about 20.
_MAX_SIDES: Final = 10
_CHUNK: Final = 1 << 15
# So many are compared each with each other one, in half a second.
_FEW: Final = 10_000
# Of unit vectors with a correlation of 0.997, a coordinate each of 64.
_COPY_VARIANCE: Final = 1e-4
# Side of the pictures that candidates are looked for in. Without fine detail they correlate more,
# not less: at least 0.997 for all pairs of Fashion-MNIST that correlate above 0.985 whole.
_COARSE_PX: Final = 8


@final
class Likeness(NamedTuple):
    """When two thumbnails are the same picture.

    correlation: least cosine of the centred thumbnails. difference: most grey levels, on average,
    that are left after both got the same mean. contrast: the standard deviation below which a
    picture is too plain to be told from another.
    """

    correlation: float = 0.985
    difference: float = 4.0
    contrast: float = 6.0


def thumbnails(images: Pixels) -> Pixels:
    """(N, H, W, C) -> (N, S, S) grey, S = 32 or the image's own side where that is smaller."""
    side = min(SIDE_PX, *images.shape[1:3])
    out = np.empty((len(images), side, side), dtype=np.uint8)
    step = max(1, (1 << 24) // int(np.prod(images.shape[1:])))
    for start in range(0, len(images), step):
        part = torch.from_numpy(np.ascontiguousarray(images[start : start + step]))
        pixels = part.permute(0, 3, 1, 2)
        if pixels.shape[-2:] != (side, side):
            pixels = functional.interpolate(pixels, (side, side), mode="bilinear", antialias=True)
        if pixels.shape[1] == 3:
            weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
            grey = (pixels * weights).sum(1).round().to(torch.uint8)
        else:
            grey = pixels[:, 0]
        out[start : start + step] = grey.numpy()
    return out


def near_pairs(small: Pixels, likeness: Likeness | None = None, *, seed: int = 0) -> Pairs:
    """(P, 2) rows of thumbnails (N, S, S) that show the same picture; the smaller number first."""
    likeness = likeness or Likeness()
    coarse, plain = _coarse(small, likeness)
    rows = np.flatnonzero(~plain)
    if len(rows) < 2:
        return np.empty((0, 2), dtype=np.int64)
    coarse = coarse[rows]
    if len(rows) <= _FEW:
        candidates = _each_with_each(coarse, likeness)
    else:
        rng = np.random.Generator(np.random.PCG64(seed))
        candidates = (
            pairs[_close(pairs, coarse, likeness)]
            for pairs in _candidates(_sides(coarse, rng), seed)
        )
    return np.concatenate([_alike(rows[pairs], small, likeness) for pairs in candidates])


def _coarse(small: Pixels, likeness: Likeness) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """(N, 64) thumbnails of 8 x 8, centred, of length 1; and (N,) which are too plain to compare.

    What survives another size, quality or format is coarse, and there is a sixteenth of it.
    """
    coarse = np.zeros((len(small), _COARSE_PX**2), dtype=np.float32)
    plain = np.ones(len(small), dtype=np.bool_)
    for start in range(0, len(small), _CHUNK):
        part = torch.from_numpy(small[start : start + _CHUNK]).float().unsqueeze(1)
        pooled = functional.adaptive_avg_pool2d(part, _COARSE_PX).flatten(1).numpy()
        pooled -= pooled.mean(axis=1, keepdims=True)
        length = np.linalg.norm(pooled, axis=1)
        spread = part.flatten(1).std(dim=1, correction=0).numpy()
        # Without anything coarse it is noise, of which no two pictures are alike.
        plain[start : start + _CHUNK] = (spread < likeness.contrast) | (length < 1.0)
        coarse[start : start + _CHUNK] = pooled / np.maximum(length, 1.0)[:, None]
    return coarse, plain


def _sides(coarse: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.bool_]:
    """(N, 64): on which side of random hyperplanes each picture lies."""
    sample = coarse[rng.choice(len(coarse), min(len(coarse), 4000), replace=False)]
    center = sample.mean(axis=0)
    variance, directions = np.linalg.eigh(np.cov(sample - center, rowvar=False))
    # Every direction counts the same, else all hyperplanes would cut along the first few; but not
    # one in which pictures differ no more than copies of one picture do.
    spread = np.sqrt(np.maximum(variance[-_DIRECTIONS:], _COPY_VARIANCE))
    whitened = directions[:, -_DIRECTIONS:] / spread
    planes = whitened @ rng.standard_normal((_DIRECTIONS, 64))
    return np.asarray((coarse - center) @ planes.astype(np.float32) > 0)


def _each_with_each(coarse: NDArray[np.float32], likeness: Likeness) -> Iterator[Pairs]:
    step = 512
    for start in range(0, len(coarse), step):
        alike = coarse[start : start + step] @ coarse[start:].T >= likeness.correlation
        first, second = np.nonzero(np.triu(alike, 1))
        yield np.stack([first, second], axis=1) + start


def _candidates(sides: NDArray[np.bool_], seed: int) -> list[Pairs]:
    """Neighbours in lists that are sorted by the sides, read in another order for each list."""
    rng = np.random.Generator(np.random.PCG64([seed, 1]))
    count = len(sides)
    packed = np.packbits(sides, axis=1)
    found = []
    for _ in range(_TABLES):
        bits = np.packbits(sides[:, rng.permutation(sides.shape[1])], axis=1)
        keys = np.ascontiguousarray(bits).view(">u8").ravel().astype(np.uint64)
        order = np.argsort(keys, kind="stable")
        for apart in range(1, min(_WINDOW, count - 1) + 1):
            first, second = order[:-apart], order[apart:]
            near = _ONES[packed[first] ^ packed[second]].sum(axis=1) <= _MAX_SIDES
            low, high = np.sort(np.stack([first[near], second[near]]), axis=0)
            found.append(low * count + high)
    codes = np.unique(np.concatenate(found))
    pairs = np.stack([codes // count, codes % count], axis=1)
    return np.array_split(pairs, max(1, len(pairs) // _CHUNK))


# How many bits of a byte are set.
_ONES: Final = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(
    axis=1, dtype=np.uint8
)


def _close(pairs: Pairs, coarse: NDArray[np.float32], likeness: Likeness) -> NDArray[np.bool_]:
    """Candidates that are worth comparing whole."""
    correlation = np.einsum("nd,nd->n", coarse[pairs[:, 0]], coarse[pairs[:, 1]])
    return np.asarray(correlation >= likeness.correlation)


def _alike(pairs: Pairs, small: Pixels, likeness: Likeness) -> Pairs:
    """The candidates that are the same picture."""
    flat = small.reshape(len(small), small.shape[1] * small.shape[2])
    first, second = (flat[rows].astype(np.float32) for rows in pairs.T)
    first -= first.mean(axis=1, keepdims=True)
    second -= second.mean(axis=1, keepdims=True)
    length = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    correlation = np.einsum("nd,nd->n", first, second) / length
    difference = np.abs(first - second).mean(axis=1)
    alike = (correlation >= likeness.correlation) & (difference <= likeness.difference)
    return np.asarray(pairs[alike])


def exact_pairs(digests: NDArray[np.uint8]) -> Pairs:
    """(P, 2) rows with the same content (N, 16); of k copies, the first with each of the others."""
    keys = np.ascontiguousarray(digests).view("V16").ravel()
    order = np.argsort(keys, kind="stable")
    same = keys[order[1:]] == keys[order[:-1]]
    start = np.flatnonzero(np.concatenate([[True], ~same]))
    head = order[np.repeat(start, np.diff(np.append(start, len(order))))]
    pairs = np.stack([head, order], axis=1)[head != order]
    # Rows that could not be read have no content to compare.
    return np.asarray(pairs[digests[pairs[:, 0]].any(axis=1)])


def groups_of(pairs: Pairs, count: int) -> Groups:
    """(N,) numbers from 0 for rows that are connected by pairs, -1 for all others."""
    groups = np.full(count, -1, dtype=np.int64)
    if len(pairs):
        graph = scipy.sparse.coo_array(
            (np.ones(len(pairs), dtype=np.int8), (pairs[:, 0], pairs[:, 1])), (count, count)
        )
        _, component = scipy.sparse.csgraph.connected_components(graph, directed=False)
        members = np.unique(pairs)
        _, groups[members] = np.unique(component[members], return_inverse=True)
    return groups
