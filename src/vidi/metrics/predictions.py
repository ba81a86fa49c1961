"""What a model said about each image of a split, and what each row of it says."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from vidi.errors import DamagedError, DataError, TrainingError

# Rows looked at in one go: 8192 x 1000 classes of float64 are 64 MB.
_ROWS: Final = 8192
# What a probability is cut off at before its logarithm is taken: the spacing of float32, as
# scikit-learn does, so that one confident mistake costs at most 15.9 nats.
_SMALLEST: Final = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class Predictions:
    """What a model said about each image of a split; everything else is computed from it.

    ids: (N,) int64, the samples' indices in their Dataset, each once.
    labels: (N,) int64, 0 to K - 1.
    probabilities: (N, K) float32, rows sum to 1.
    """

    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float32]

    def __post_init__(self) -> None:
        shape = self.probabilities.shape
        if len(shape) != 2 or self.ids.shape != shape[:1] or self.labels.shape != shape[:1]:
            raise DataError(
                f"predictions do not fit together: ids {self.ids.shape}, labels "
                f"{self.labels.shape}, probabilities {shape}"
            )
        if len(self) and not 0 <= self.labels.min() <= self.labels.max() < shape[1]:
            raise DataError(
                f"labels run from {self.labels.min()} to {self.labels.max()}, but the model "
                f"has {shape[1]} classes"
            )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_classes(self) -> int:
        return int(self.probabilities.shape[1])

    def take(self, index: NDArray[np.int64] | NDArray[np.bool_]) -> Predictions:
        """The images at these positions, or where a mask is true."""
        return Predictions(self.ids[index], self.labels[index], self.probabilities[index])

    def scaled(self, temperature: float) -> Predictions:
        """The same predictions with their logits divided by `temperature`."""
        scaled = np.empty_like(self.probabilities)
        for rows in chunks(len(self)):
            scaled[rows] = soften(logits_of(self.probabilities[rows]), 1 / temperature)
        return Predictions(self.ids, self.labels, scaled)

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """By name, in the types that are written to disk."""
        return {
            "ids": self.ids.astype(np.int64, copy=False),
            "labels": self.labels.astype(np.int64, copy=False),
            "probabilities": self.probabilities.astype(np.float32, copy=False),
        }

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, NDArray[Any]], *, where: str = "the predictions file"
    ) -> Self:
        """What `arrays` gave.

        Raises:
            DamagedError: arrays are missing, have another type, or do not fit together.
        """
        kinds = {"ids": np.int64, "labels": np.int64, "probabilities": np.float32}
        for name, kind in kinds.items():
            if name not in arrays:
                raise DamagedError(f"{where} has no {name}", fix=_EVALUATE_AGAIN)
            if arrays[name].dtype != kind:
                raise DamagedError(
                    f"{where}: {name} are {arrays[name].dtype} instead of {np.dtype(kind)}",
                    fix=_EVALUATE_AGAIN,
                )
        try:
            return cls(arrays["ids"], arrays["labels"], arrays["probabilities"])
        except DataError as error:
            raise DamagedError(f"{where}: {error.message}", fix=_EVALUATE_AGAIN) from error

    def to_bytes(self) -> bytes:
        """An uncompressed npz archive; the same predictions always give the same bytes."""
        buffer = io.BytesIO()
        np.savez(buffer, **self.arrays())  # type: ignore[arg-type]
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, *, where: str = "the predictions file") -> Self:
        """Read what `to_bytes` wrote.

        Raises:
            DamagedError: not such an archive. Compressed members are refused, so that a small
                file cannot ask for much memory.
        """
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                    raise DamagedError(f"{where} has compressed members", fix=_EVALUATE_AGAIN)
            with np.load(io.BytesIO(data), allow_pickle=False) as opened:
                arrays = {name: opened[name] for name in opened.files}
        except _UNREADABLE as error:
            raise DamagedError(
                f"{where} cannot be read: {type(error).__name__}: {error}", fix=_EVALUATE_AGAIN
            ) from error
        return cls.from_arrays(arrays, where=where)


# What zipfile and numpy raise on a damaged archive, found by flipping its bytes.
_UNREADABLE: Final = (
    zipfile.BadZipFile,
    EOFError,
    KeyError,
    MemoryError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
_EVALUATE_AGAIN: Final = "evaluate the run again; the old file can be deleted"


@dataclass(frozen=True)
class Rows:
    """Per image, each (N,): everything that needs the whole row of probabilities."""

    predicted: NDArray[np.int64]
    # The highest probability, as float64.
    confidence: NDArray[np.float64]
    # How many classes stand before the label; 0 is right.
    rank: NDArray[np.int64]
    # Negative logarithm of the label's probability.
    surprise: NDArray[np.float64]
    # Sum over classes of (probability - target) squared.
    squared_error: NDArray[np.float64]


def rows_of(predictions: Predictions) -> Rows:
    n = len(predictions)
    predicted, rank = np.empty(n, np.int64), np.empty(n, np.int64)
    confidence, of_label, squares = (np.empty(n, np.float64) for _ in range(3))
    for rows in chunks(n):
        block, labels = predictions.probabilities[rows], predictions.labels[rows]
        each = np.arange(len(block))
        own = block[each, labels][:, None]
        predicted[rows] = block.argmax(axis=1)
        confidence[rows] = block[each, predicted[rows]]
        of_label[rows] = own[:, 0]
        # Ties go to the lower class number, as argmax decides them.
        earlier = np.arange(block.shape[1])[None, :] < labels[:, None]
        rank[rows] = ((block > own) | ((block == own) & earlier)).sum(axis=1)
        squares[rows] = np.einsum("nk,nk->n", block, block, dtype=np.float64)
    # A row that sums to a little more than 1 may hold a probability a little above it.
    return Rows(
        predicted=predicted,
        confidence=np.minimum(confidence, 1.0),
        rank=rank,
        surprise=surprise_of(of_label),
        squared_error=np.maximum(squares - 2 * of_label + 1, 0.0),
    )


def surprise_of(of_label: NDArray[np.floating]) -> NDArray[np.float64]:
    return -np.log(np.clip(of_label.astype(np.float64), _SMALLEST, 1.0))


def checked(predictions: Predictions, split: str) -> tuple[Predictions, int]:
    """Ordered by id, without the rows that are not finite, and how many those were."""
    n = len(predictions)
    if n == 0:
        raise DataError(f"there is no image to judge in the {split} split")
    ids = predictions.ids
    if not (np.diff(ids) > 0).all():
        predictions = predictions.take(np.argsort(ids, kind="stable"))
        repeated = np.flatnonzero(np.diff(predictions.ids) == 0)
        if len(repeated):
            raise DataError(
                f"image {predictions.ids[repeated[0]]} of the {split} split was predicted twice"
            )
    totals = np.empty(n, np.float64)
    for rows in chunks(n):
        totals[rows] = predictions.probabilities[rows].sum(axis=1, dtype=np.float64)
    finite = np.isfinite(totals)
    n_finite = int(finite.sum())
    if n_finite == 0:
        raise TrainingError(
            f"the model's answer is not finite for any image of the {split} split",
            fix="the training diverged: a lower learning rate helps",
        )
    off = np.flatnonzero(finite & (np.abs(totals - 1) > 1e-3))
    if len(off):
        raise DataError(
            f"the probabilities of image {predictions.ids[off[0]]} sum to {totals[off[0]]:.4g}",
            fix="give probabilities (after softmax), not logits",
        )
    negative = [
        rows for rows in chunks(n) if (predictions.probabilities[rows][finite[rows]] < 0).any()
    ]
    if negative:
        raise DataError("some probabilities are negative", fix="give probabilities, not logits")
    return (predictions if n_finite == n else predictions.take(finite)), n - n_finite


def chunks(n: int) -> Iterator[slice]:
    for start in range(0, n, _ROWS):
        yield slice(start, start + _ROWS)


def logits_of(probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))


def soften(logits: NDArray[np.float32], sharpness: float) -> NDArray[np.float32]:
    scaled = logits * np.float32(sharpness)
    scaled -= scaled.max(axis=1, keepdims=True)
    np.exp(scaled, out=scaled)
    scaled /= scaled.sum(axis=1, keepdims=True)
    return scaled
