"""Dataset: every image accounted for, with its label and its split, and no pixel in memory."""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol, TypeVar, final

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from vidi import image
from vidi.config import DataConfig
from vidi.data.hashing import Hashes
from vidi.data.in_time import Late, each_in_time
from vidi.data.split import (
    DEFAULT_RULE,
    TRAIN,
    Groups,
    Labels,
    SplitRule,
    Splits,
    complete,
)
from vidi.errors import DataError, UnreadableImage
from vidi.facts import SPLITS, DatasetFacts, Split

Indices = NDArray[np.int64]
T = TypeVar("T")
# Threads that read, hash and decode. More than cores, because some of them wait for the disk.
READ_THREADS = 8
# Rows that one of them is handed at a time: handing over costs five times as much as reading.
_BLOCK = 64


class Skipped(NamedTuple):
    """A file that was seen and is not used."""

    path: str
    reason: str
    message: str = ""


class Source(Protocol):
    """Where the bytes of row `index` come from; safe to call from several threads."""

    def __len__(self) -> int: ...

    def name_of(self, index: int) -> str: ...

    def hashes(self) -> Hashes:
        """(N,): a hash of each name, what splits are drawn by."""
        ...

    def names_digest(self) -> bytes:
        """16 bytes that stand for all names in their order."""
        ...

    def read(self, index: int) -> bytes: ...

    def pixels(self, index: int) -> image.Pixels | None:
        """(H, W, C) uint8 where the source holds pixels, None where it holds files."""
        ...

    def known_digests(self) -> NDArray[np.uint8] | None:
        """`digests` where that needs no reading of files, else None."""
        ...

    def digests(self) -> NDArray[np.uint8]:
        """(N, 16): blake2b of each row's content; reads what it does not remember."""
        ...

    def remember(self, digests: NDArray[np.uint8]) -> None:
        """Somebody else read everything anyway; (N, 16)."""
        ...


@final
@dataclass(frozen=True, eq=False)
class Dataset:
    """Rows of one source. Row numbers are ids: they stay what they are when rows are taken out.

    labels: (N,) int64 into `classes`; split: (N,) int8 into facts.SPLITS; usable: (N,) bool.
    `quarantined` are files that should have been images of this data set and cannot be used,
    `ignored` are files that do not belong to it. `notes` are sentences that the owner should read.
    """

    name: str
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    split: NDArray[np.int8]
    source: Source
    split_rule: str
    usable: NDArray[np.bool_]
    quarantined: tuple[Skipped, ...] = ()
    ignored: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()
    unreadable: str = "exclude"
    max_unreadable_fraction: float = 0.05
    read_limit_s: float = 120.0
    # There are so many rows that none is read before it is needed: what they hold is not part of
    # what the data set is, and a file that changes during a run is not noticed.
    by_name: bool = False
    # (N,) of the owner's: rows of one group (from 0; -1: none) belong together, weights are how
    # often a row should be seen, relative to others.
    groups: Groups | None = None
    weights: NDArray[np.float32] | None = None
    # How the owner had split it, and what vidi was asked to do about that.
    given: Splits | None = None
    rule: SplitRule = DEFAULT_RULE
    # What was computed once; a frozen value may still remember.
    _facts: list[DatasetFacts] = field(default_factory=list, repr=False)
    _fingerprint: list[str] = field(default_factory=list, repr=False)

    def __len__(self) -> int:
        """Rows, also those that turned out to be unusable."""
        return len(self.labels)

    def indices(self, split: Split) -> Indices:
        """Ids of the usable images of one split, ascending."""
        return np.flatnonzero((self.split == SPLITS.index(split)) & self.usable)

    def counts(self, split: Split) -> tuple[int, ...]:
        """Usable images of each class, in the order of `classes`."""
        found = np.bincount(self.labels[self.indices(split)], minlength=len(self.classes))
        return tuple(int(n) for n in found)

    def num_expected(self, split: Split) -> int:
        """Images of one split, usable or not: what an evaluation should have covered."""
        return int((self.split == SPLITS.index(split)).sum())

    def name_of(self, index: int) -> str:
        """Path below the root, or the row number of a source without paths."""
        return self.source.name_of(index)

    def read(self, index: int) -> bytes:
        """One image as the bytes of a file. Raises UnreadableImage."""
        return self.source.read(index)

    @property
    def fingerprint(self) -> str:
        """Of the classes, names, labels, splits and contents; not of where or when they lie.

        The first time, every file is read, unless a store of it was built before, or the data set
        is known `by_name`.
        """
        if not self._fingerprint:
            digest = hashlib.blake2b(digest_size=16)
            for part in self.classes:
                digest.update(part.encode("utf-8", "surrogateescape") + b"\0")
            digest.update(self.labels.tobytes())
            digest.update(self.split.tobytes())
            digest.update(self.source.names_digest())
            if not self.by_name:
                digest.update(self.source.digests().tobytes())
            self._fingerprint.append(digest.hexdigest())
        return self._fingerprint[0]

    def without(
        self, ids: Iterable[int] | Indices, reason: str, messages: Sequence[str] = ()
    ) -> Dataset:
        """The same rows, of which `ids` are not used any more, for one `reason`."""
        out = np.fromiter((int(i) for i in ids), dtype=np.int64)
        usable = self.usable.copy()
        usable[out] = False
        texts = messages or [""] * len(out)
        more = tuple(
            Skipped(self.name_of(int(i)), reason, text) for i, text in zip(out, texts, strict=True)
        )
        return self._with(usable=usable, quarantined=self.quarantined + more)

    def regrouped(self, groups: Groups) -> Dataset:
        """Splits cut anew where vidi cuts them, so that rows of one group stay on one side.

        groups: (N,) numbers from 0, -1 for rows by themselves, e.g. from `near_duplicates`. Groups
        of the owner's are kept together with them. Splits that the owner gave stay as they are.
        """
        if self.given is None or not (groups >= 0).any():
            return self
        both = groups if self.groups is None else merge_groups(groups, self.groups)
        split, words = complete(self.given, self.labels, self.source.hashes(), self.rule, both)
        return self._with(split=split, split_rule=words, groups=both, _fingerprint=[])

    def _with(self, **changed: Any) -> Dataset:
        """Another value, whose facts are counted anew; what was sampled for them stays, because
        decisions were made from it."""
        made = replace(self, **changed, _facts=[])
        if self._facts:
            made._facts.append(self._facts[0].model_copy(update=_counted(made)))
        return made

    def facts(self) -> DatasetFacts:
        """Counted and sampled; computed once."""
        if not self._facts:
            self._facts.append(_facts(self))
        return self._facts[0]


def assemble(
    name: str,
    source: Source,
    classes: tuple[str, ...],
    labels: Labels,
    given: Splits,
    asked: DataConfig,
    *,
    groups: Groups | None = None,
    weights: NDArray[np.float32] | None = None,
    quarantined: Iterable[Skipped] = (),
    ignored: Iterable[Skipped] = (),
    notes: Iterable[str] = (),
    by_name: bool = False,
) -> Dataset:
    """A data set out of what a source found: cut the missing splits, say what is odd about it.

    given: (N,) into facts.SPLITS, all of them for training where the owner did not split.
    """
    rule = SplitRule(
        asked.validation_fraction,
        asked.test_fraction,
        asked.split_seed,
        asked.folds,
        asked.fold or 1,
        asked.learn_validation,
    )
    split, words = complete(given, labels, source.hashes(), rule, groups)
    counts = np.bincount(labels[split == TRAIN], minlength=len(classes))
    return Dataset(
        name=name,
        classes=classes,
        labels=labels,
        split=split,
        source=source,
        split_rule=words,
        usable=np.ones(len(labels), dtype=np.bool_),
        quarantined=tuple(sorted(quarantined)),
        ignored=tuple(sorted(ignored)),
        notes=(*notes, *count_notes(classes, counts)),
        unreadable=asked.unreadable,
        max_unreadable_fraction=asked.max_unreadable_fraction,
        read_limit_s=asked.read_limit_s,
        by_name=by_name,
        groups=groups,
        weights=weights,
        given=given,
        rule=rule,
    )


# Above this many times as many images in one class as in another, people should know.
IMBALANCE = 20


def count_notes(classes: Sequence[str], counts: NDArray[np.int64]) -> Iterator[str]:
    """What the numbers of training images say."""
    for name, count in zip(classes, counts.tolist(), strict=True):
        if count == 1:
            yield f"class '{name}' has 1 training image"
    if counts.min() > 0 and counts.max() >= IMBALANCE * counts.min():
        least, most = classes[int(counts.argmin())], classes[int(counts.argmax())]
        yield (
            f"imbalanced: '{most}' has {counts.max()} training images, '{least}' has {counts.min()}"
        )


def merge_groups(first: Groups, second: Groups) -> Groups:
    """Rows that are together in either are together in the result; (N,), -1 for rows alone."""
    number = len(first)
    rows = np.arange(number)
    edges = [
        np.stack([rows[groups >= 0], groups[groups >= 0] + number * (1 + place)])
        for place, groups in enumerate((first, second))
    ]
    pairs = np.concatenate(edges, axis=1)
    names, flat = np.unique(pairs, return_inverse=True)
    flat = flat.reshape(pairs.shape)
    graph = scipy.sparse.coo_array(
        (np.ones(pairs.shape[1], dtype=np.int8), (flat[0], flat[1])), (len(names), len(names))
    )
    _, component = scipy.sparse.csgraph.connected_components(graph, directed=False)
    merged = np.full(number, -1, dtype=np.int64)
    merged[names[names < number]] = component[: int((names < number).sum())]
    return merged


def _facts(dataset: Dataset) -> DatasetFacts:
    train = dataset.indices("train")
    # 256 images give quartiles within a few percent, in less than a second from a cold disk.
    sample = train[np.linspace(0, len(train) - 1, min(len(train), 256)).astype(np.int64)]
    heights, widths, aspects, grey = [], [], [], True
    for height, width, seen_grey in _inspected(dataset, sample):
        heights.append(height)
        widths.append(width)
        aspects.append(max(height, width) / min(height, width))
        grey = grey and seen_grey
    if not heights:
        raise DataError(
            f"none of {len(sample)} sampled training images of {dataset.name} can be read",
            fix="look at one of them: " + dataset.name_of(int(sample[0])),
        )
    first, middle, third = (round(float(a), 4) for a in np.percentile(aspects, (25, 50, 75)))
    return DatasetFacts(
        height_px=_quartiles(heights),
        width_px=_quartiles(widths),
        aspect=(first, middle, third),
        grey=grey,
        decoded=dataset.source.pixels(int(train[0])) is not None,
        weighted=dataset.weights is not None,
        **_counted(dataset),
    )


def _counted(dataset: Dataset) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "fingerprint": dataset.fingerprint,
        "classes": dataset.classes,
        "counts": {split: dataset.counts(split) for split in SPLITS},
        "split_rule": dataset.split_rule,
        "quarantined": dict(Counter(entry.reason for entry in dataset.quarantined)),
        "ignored": dict(Counter(entry.reason for entry in dataset.ignored)),
    }


def _inspected(dataset: Dataset, ids: Indices) -> Iterator[tuple[int, int, bool]]:
    """Upright height and width, and whether it is grey, of all that can be read in time."""
    found: dict[int, tuple[int, int, bool]] = {}

    def look(row: int) -> None:
        pixels = dataset.source.pixels(row)
        if pixels is not None:
            same = pixels.shape[2] == 1 or bool((pixels == pixels[:, :, :1]).all())
            found[row] = pixels.shape[0], pixels.shape[1], same
            return
        with contextlib.suppress(UnreadableImage):
            seen = image.inspect(dataset.read(row))
            found[row] = seen.height_px, seen.width_px, seen.grey

    rows = ids.tolist()
    late = Late(dataset.read_limit_s, dataset.name, dataset.name_of)
    by_threads(
        lambda first: each_in_time(look, rows[first::READ_THREADS], late.add, limit_s=late.limit_s),
        range(READ_THREADS),
    )
    return (found[row] for row in rows if row in found)


def each(work: Callable[[int], T], ids: Indices) -> list[T]:
    """`work` on every id, by a few threads, in order.

    In blocks; for work that cannot hang.
    """

    def block(some: list[int]) -> list[T]:
        return [work(index) for index in some]

    size = max(1, min(_BLOCK, len(ids) // (4 * READ_THREADS)))
    blocks = (ids[start : start + size].tolist() for start in range(0, len(ids), size))
    with ThreadPoolExecutor(READ_THREADS) as pool:
        return [result for part in pool.map(block, blocks) for result in part]


def _quartiles(values: list[int]) -> tuple[int, int, int]:
    low, middle, high = np.percentile(values, (25, 50, 75), method="nearest")
    return int(low), int(middle), int(high)


def digests_of(
    digest: Callable[[int], bytes], count: int, *, limit_s: float, name_of: Callable[[int], str]
) -> NDArray[np.uint8]:
    """(count, 16): `digest` of every row, by a few threads; zeros where it raises UnreadableImage,
    or where reading takes longer than `limit_s`. Raises DataError where nothing is read any more.
    """
    digests = np.zeros((count, 16), dtype=np.uint8)
    late = Late(limit_s, "these data", name_of)

    def keep(row: int) -> None:
        with contextlib.suppress(UnreadableImage):
            digests[row] = np.frombuffer(digest(row), dtype=np.uint8)

    def block(start: int) -> None:
        each_in_time(keep, range(start, min(start + _BLOCK, count)), late.add, limit_s=limit_s)

    by_threads(block, range(0, count, _BLOCK))
    if late.rows:
        # What comes back later must not change what was said.
        digests = digests.copy()
        digests[list(late.rows)] = 0
    return digests


def by_threads(work: Callable[[int], object], values: Iterable[int]) -> None:
    """`work` on each value, by a few threads; where one raises, what was not begun is not."""
    with ThreadPoolExecutor(READ_THREADS) as pool:
        try:
            for _ in pool.map(work, values):
                pass
        finally:
            pool.shutdown(cancel_futures=True)


def content_digest(data: bytes | memoryview) -> bytes:
    """16 bytes that stand for the content of one file or array."""
    return hashlib.blake2b(data, digest_size=16).digest()
