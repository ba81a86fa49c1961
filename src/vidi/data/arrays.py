"""Data sets that come as arrays of pixels, not as image files."""

from __future__ import annotations

from typing import final

import numpy as np
from numpy.typing import NDArray

from vidi.config import DataConfig
from vidi.data.dataset import Dataset, assemble, content_digest
from vidi.data.hashing import Hashes
from vidi.data.split import number_hashes
from vidi.errors import DataError
from vidi.facts import SPLITS
from vidi.image import Pixels, encode_png


@final
class Arrays:
    """images (N, H, W, C) uint8; rows are named by their split and place there."""

    def __init__(self, images: Pixels, names: tuple[str, ...], starts: tuple[int, ...]) -> None:
        assert images.ndim == 4
        assert images.dtype == np.uint8
        self.images = images
        self._names = names
        self._starts = np.array(starts)
        self._digests: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def name_of(self, index: int) -> str:
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        number = index - int(self._starts[part])
        return f"{self._names[part]}/{number:06d}" if self._names[part] else f"{number:06d}"

    def hashes(self) -> Hashes:
        lengths = np.diff([*self._starts.tolist(), len(self)])
        return np.concatenate([number_hashes(n, salt) for salt, n in enumerate(lengths.tolist())])

    def names_digest(self) -> bytes:
        parts = f"{self._names} {self._starts.tolist()} {len(self)}"
        return content_digest(parts.encode())

    def read(self, index: int) -> bytes:
        return encode_png(self.images[index])

    def pixels(self, index: int) -> Pixels | None:
        pixels: Pixels = self.images[index]
        return pixels

    def known_digests(self) -> NDArray[np.uint8] | None:
        return self.digests()

    def digests(self) -> NDArray[np.uint8]:
        if self._digests is None:
            rows = np.ascontiguousarray(self.images)
            whole = b"".join(content_digest(row.data.cast("B")) for row in rows)
            self._digests = np.frombuffer(whole, dtype=np.uint8).reshape(-1, 16)
        return self._digests

    def remember(self, digests: NDArray[np.uint8]) -> None:
        """Arrays are in memory: there is nothing to remember."""


def from_parts(
    name: str,
    parts: dict[int, tuple[Pixels, NDArray[np.int64]]],
    classes: tuple[str, ...],
    asked: DataConfig,
    *,
    split_names: bool = True,
) -> Dataset:
    """A data set of {split: (images (N, H, W, C), labels (N,))}, all of one size."""
    order = sorted(parts)
    images = [parts[number][0] for number in order]
    shapes = {block.shape[1:] for block in images}
    if len(shapes) > 1:
        raise DataError(f"{name}: the splits have images of different sizes: {sorted(shapes)}")
    labels = np.concatenate([parts[number][1] for number in order]).astype(np.int64)
    present = np.unique(labels)
    if len(present) < 2:
        raise DataError(
            f"only one class in {name}", fix="a classifier needs images of at least two classes"
        )
    if present[0] < 0 or present[-1] >= len(classes):
        raise DataError(
            f"{name}: label {present[0] if present[0] < 0 else present[-1]} is outside of "
            f"0..{len(classes) - 1}"
        )
    lengths = [len(block) for block in images]
    source = Arrays(
        images[0] if len(images) == 1 else np.concatenate(images),
        tuple(SPLITS[number] if split_names else "" for number in order),
        tuple(np.concatenate([[0], np.cumsum(lengths)[:-1]]).tolist()),
    )
    given = np.repeat(np.array(order, dtype=np.int8), lengths)
    return assemble(name, source, classes, labels, given, asked)
