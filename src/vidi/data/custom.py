"""The user's own images: an object that knows its labels and reads one image at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, final, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from vidi.config import DataConfig, load
from vidi.data import split as splits
from vidi.data.dataset import Dataset, assemble, content_digest, digests_of
from vidi.data.files import Names
from vidi.data.folder import natural
from vidi.data.hashing import Hashes
from vidi.errors import DataError, UnreadableImage, UsageError, VidiError
from vidi.image import Pixels, encode_png


@runtime_checkable
class Images(Protocol):
    """What `module:object` must name: this, or a class or function that makes it of nothing.

    `labels` has one entry an image: the name of its class, or its number in `classes`, which may be
    left out otherwise. May have, too: `split` (one name an image), `groups` (one value an image;
    equal ones stay together; None stands alone), `weights` (one number an image) and `names` (one
    text an image, all different: what splits are drawn by). `read` is called from several threads.
    """

    labels: Sequence[Any]

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes | NDArray[np.uint8]:
        """The bytes of a file, or pixels (H, W), (H, W, 1) or (H, W, 3), uint8; always the same
        kind."""
        ...


def open_custom(name: str, asked: DataConfig) -> Dataset:
    """`module:object`. Raises UsageError, DataError."""
    made = load(name)
    if isinstance(made, type) or (callable(made) and not isinstance(made, Images)):
        made = made()
    return from_object(made, name, asked)


def from_object(made: object, name: str, asked: DataConfig) -> Dataset:
    """Raises UsageError: it is no such object; DataError: its parts do not fit together."""
    if not isinstance(made, Images):
        missing = [each for each in ("__len__", "read", "labels") if not hasattr(made, each)]
        raise UsageError(
            f"{name} is a {type(made).__name__} without {', '.join(missing)}",
            fix="give it len(), read(i) -> bytes, and labels, one an image",
        )
    count = len(made)
    for part in ("labels", "split", "groups", "weights", "names"):
        values = getattr(made, part, None)
        if values is not None and len(values) != count:
            raise DataError(f"{name} has {count:,} images and {len(values):,} {part}")
    if not count:
        raise DataError(f"{name} has no images")
    given = _splits(made, name)
    classes, labels = _labels(made, name)
    names = [str(text) for text in getattr(made, "names", None) or range(count)]
    if len(set(names)) != count:
        raise DataError(f"{name}: some of its names stand for more than one image")
    if len(np.unique(labels)) < 2:
        raise DataError(
            f"only one class in {name}", fix="a classifier needs images of at least two classes"
        )
    texts = Names.of(text.encode("utf-8", "surrogateescape") for text in names)
    source = Custom(made, texts, asked.read_limit_s)
    return assemble(
        name.rpartition(":")[2],
        source,
        classes,
        labels,
        given,
        asked,
        groups=_groups(made),
        weights=_weights(made, name),
    )


def _splits(made: Images, name: str) -> splits.Splits:
    words = getattr(made, "split", None)
    if words is None:
        return np.full(len(made), splits.TRAIN, dtype=np.int8)
    unknown = sorted({str(word) for word in words} - splits.SPLIT_NAMES.keys())
    if unknown:
        raise DataError(f"{name}: '{unknown[0]}' is no split", fix="train, validation or test")
    return np.array([splits.SPLIT_NAMES[str(word)] for word in words], dtype=np.int8)


def _labels(made: Images, name: str) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    known = getattr(made, "classes", None)
    if known is None:
        texts = [str(label) for label in made.labels]
        classes = tuple(sorted(set(texts), key=natural))
        place = {text: number for number, text in enumerate(classes)}
        return classes, np.array([place[text] for text in texts], dtype=np.int64)
    classes = tuple(str(text) for text in known)
    if len(set(classes)) != len(classes):
        raise DataError(f"{name}: two of its classes have the same name")
    place = {text: number for number, text in enumerate(classes)}
    labels = [place.get(each, -1) if isinstance(each, str) else int(each) for each in made.labels]
    wrong = next((row for row, label in enumerate(labels) if not 0 <= label < len(classes)), None)
    if wrong is not None:
        raise DataError(
            f"{name}: the label of image {wrong} is {made.labels[wrong]!r}; there are "
            f"{len(classes)} classes"
        )
    return classes, np.array(labels, dtype=np.int64)


def _groups(made: Images) -> NDArray[np.int64] | None:
    values = getattr(made, "groups", None)
    if values is None:
        return None
    place: dict[object, int] = {}
    return np.array(
        [-1 if value is None else place.setdefault(value, len(place)) for value in values],
        dtype=np.int64,
    )


def _weights(made: Images, name: str) -> NDArray[np.float32] | None:
    values = getattr(made, "weights", None)
    if values is None:
        return None
    weights = np.array(values, dtype=np.float32)
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise DataError(f"{name}: weights must be finite and not below zero")
    return weights


@final
class Custom:
    """The rows of an `Images`."""

    def __init__(self, made: Images, names: Names, limit_s: float) -> None:
        self._made = made
        self._limit_s = limit_s
        self._names = names
        self._digests: NDArray[np.uint8] | None = None
        # Decided once: whoever gives pixels is not asked for bytes and the other way round.
        self._gives_pixels = not isinstance(self._ask(0), bytes)

    def __len__(self) -> int:
        return len(self._names)

    def name_of(self, index: int) -> str:
        return self._names[index].decode("utf-8", "surrogateescape")

    def hashes(self) -> Hashes:
        return self._names.hashes()

    def names_digest(self) -> bytes:
        return self._names.digest()

    def _ask(self, index: int) -> bytes | Pixels:
        """Whatever the user's code raises is said with the image that it happened at."""
        try:
            got = self._made.read(index)
        except VidiError:
            raise
        except Exception as error:
            raise UnreadableImage(
                f"read({index}) raised {type(error).__name__}: {error}", reason="READ_ERROR"
            ) from error
        if isinstance(got, bytes | bytearray | memoryview):
            return bytes(got)
        pixels = np.asarray(got)
        if pixels.ndim == 2:
            pixels = pixels[:, :, None]
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3):
            raise DataError(
                f"read({index}) gives {type(got).__name__} of shape {np.shape(got)} and type "
                f"{pixels.dtype}",
                fix="give the bytes of a file, or pixels (H, W, 1 or 3) as uint8",
            )
        return pixels

    def read(self, index: int) -> bytes:
        got = self._ask(index)
        return got if isinstance(got, bytes) else encode_png(got)

    def pixels(self, index: int) -> Pixels | None:
        if not self._gives_pixels:
            return None
        got = self._ask(index)
        if isinstance(got, bytes):
            raise DataError(f"read({index}) gives bytes, read(0) gave pixels")
        return got

    def known_digests(self) -> NDArray[np.uint8] | None:
        return self._digests

    def digests(self) -> NDArray[np.uint8]:
        if self._digests is None:
            self._digests = digests_of(
                self._digest, len(self), limit_s=self._limit_s, name_of=self.name_of
            )
        return self._digests

    def _digest(self, index: int) -> bytes:
        got = self._ask(index)
        if isinstance(got, bytes):
            return content_digest(got)
        return content_digest(np.ascontiguousarray(got).data.cast("B"))

    def remember(self, digests: NDArray[np.uint8]) -> None:
        self._digests = digests
