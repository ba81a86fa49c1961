"""Whether a mirror image still belongs to its class: measured, not guessed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vidi import image
from vidi.data.dataset import Indices
from vidi.data.store import PixelStore
from vidi.image import PixelContract, Pixels

SAMPLE = 2000
SIDE_PX = 16


def measure_symmetry(
    store: PixelStore, labels: NDArray[np.int64], ids: Indices, *, seed: int = 0
) -> tuple[float, float]:
    """Share of training images whose nearest neighbour has the same class: plain, and mirrored.

    Each of up to 2,000 of `ids` is compared at 16 x 16 px in grey, by the cosine of centred pixels,
    with all others; then its mirror image is, again not with itself. Where mirroring changes the
    meaning, as with digits and letters, the second share falls far below the first.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    if len(ids) > SAMPLE:
        ids = np.sort(rng.choice(ids, SAMPLE, replace=False))
    small = _small(store.take(ids)[0]).astype(np.float32)
    plain = _unit(small)
    mirrored = _unit(small[:, :, ::-1])
    own = labels[ids]
    return _agreement(plain, plain, own), _agreement(mirrored, plain, own)


def _small(images: Pixels) -> Pixels:
    contract = PixelContract(
        image_px=SIDE_PX,
        store_px=SIDE_PX,
        channels=1,
        resize="squash",
        interpolation="bilinear",
        mean=(0.0,),
        std=(1.0,),
    )
    return np.stack([image.prepare_array(one, contract)[:, :, 0] for one in images])


def _unit(images: NDArray[np.float32]) -> NDArray[np.float32]:
    flat = images.reshape(len(images), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.asarray(flat / np.maximum(length, 1e-6), dtype=np.float32)


def _agreement(
    queries: NDArray[np.float32], others: NDArray[np.float32], labels: NDArray[np.int64]
) -> float:
    likeness = queries @ others.T
    np.fill_diagonal(likeness, -np.inf)
    return float((labels[likeness.argmax(axis=1)] == labels).mean())
