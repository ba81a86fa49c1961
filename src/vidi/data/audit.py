"""What is wrong with a data set, in sentences: every file decoded once, nothing of it changed.

The findings are counted on all images, never on a sample; how a picture is compared with others
stands in `duplicates`. An audit says what it sees, and does not decide: what training leaves out is
decided by the data set itself (unreadable files, files without a class) and by its owner.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple, Self, cast

import numpy as np
from numpy.typing import NDArray

from vidi import image
from vidi.data.cache import replace_file
from vidi.data.dataset import Dataset, Indices, content_digest
from vidi.data.duplicates import (
    Pairs,
    exact_pairs,
    groups_of,
    near_pairs,
    thumbnails,
)
from vidi.data.filling import rows_a_block
from vidi.data.in_time import Late, each_in_time
from vidi.data.resample import fast_resize
from vidi.data.split import TRAIN, Groups
from vidi.data.store import PixelStore
from vidi.errors import StorageError, UnreadableImage
from vidi.facts import SPLITS, Frozen, Split
from vidi.image import Inspection, PixelContract, Pixels

# Findings that only the pixels tell, not the list of files.
OF_PIXELS: Final = frozenset(
    ("LEAK", "CONFLICT", "NEAR_CONFLICT", "DUPLICATE", "NEAR_DUPLICATE", "TWINS", "BLANK", "DARK")
)

Severity = Literal["error", "warning", "note"]
Progress = Callable[[int, int], None]

# Paths that a finding carries along; its count is always exact.
MAX_EXAMPLES: Final = 200
# Grey levels: standard deviation below which nothing can be seen, and the level that 95 of 100
# pixels of a picture that is too dark do not reach.
BLANK_CONTRAST: Final = 2.0
DARK_LEVEL: Final = 32
# Long side over short side, compared with the middle of the data.
ODD_SHAPE: Final = 2.5
# A class with fewer training images is learned from by chance.
FEW_IMAGES: Final = 10
# Share of the way from guessing to certainty that a shortcut takes before it is said.
SHORTCUT_SHARE: Final = 0.25

_EXTENSIONS: Final = {
    "jpeg": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "png": (".png",),
    "gif": (".gif",),
    "webp": (".webp",),
    "bmp": (".bmp", ".dib"),
    "tiff": (".tif", ".tiff"),
    "pnm": (".ppm", ".pgm", ".pbm", ".pnm"),
    "avif": (".avif",),
}


class Finding(Frozen):
    """One thing that its owner should know.

    `count` is how many images, classes or files it is about; `paths` are the first of them, and
    `groups` the same picture under several names, where that is what was found.
    """

    code: str
    severity: Severity
    message: str
    count: int
    paths: tuple[str, ...] = ()
    groups: tuple[tuple[str, ...], ...] = ()


class Audit(Frozen):
    """Every file is used, quarantined or ignored; found is their sum."""

    name: str
    fingerprint: str
    classes: tuple[str, ...]
    counts: dict[Split, tuple[int, ...]]
    split_rule: str
    num_found: int
    num_used: int
    quarantined: dict[str, int]
    ignored: dict[str, int]
    formats: dict[str, int]
    notes: dict[str, int]
    # Shortest, middle and longest; None where there are no files.
    height_px: tuple[int, int, int] | None
    width_px: tuple[int, int, int] | None
    # No image has any colour; False where nobody looked.
    grey: bool
    findings: tuple[Finding, ...]
    # Ids of a split that training shows too, exactly or nearly.
    leaked: dict[Split, tuple[int, ...]]
    # Ids that show the same picture, group by group.
    same: tuple[tuple[int, ...], ...]
    # Whether they were put on one side of every split that vidi cut.
    recut: bool
    elapsed_s: float

    @property
    def severity(self) -> Severity | None:
        """The worst of the findings."""
        order: tuple[Severity, ...] = ("error", "warning", "note")
        present = {finding.severity for finding in self.findings}
        return next((level for level in order if level in present), None)

    def regroup(self, dataset: Dataset) -> Dataset:
        """The same rows, split as the audit left them."""
        if not self.recut:
            return dataset
        groups = np.full(len(dataset), -1, dtype=np.int64)
        for number, ids in enumerate(self.same):
            # Rows that are gone belong to other data, which their fingerprint tells.
            groups[[row for row in ids if row < len(dataset)]] = number
        return dataset.regrouped(groups)

    def to_json(self, *, indent: int | None = None) -> str:
        """In ASCII: a file name may hold bytes that are no text, and must come back as it was."""
        return json.dumps(self.model_dump(), indent=indent, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises ValueError."""
        return cls.model_validate(json.loads(text))


class Duplicates(NamedTuple):
    """Rows that show the same picture: with the same content, and with another one."""

    exact: Pairs
    near: Pairs

    @property
    def all(self) -> Pairs:
        return np.concatenate([self.exact, self.near])


def find_duplicates(dataset: Dataset, near: Pairs) -> Duplicates:
    """near: (P, 2) rows whose thumbnails are alike. Rows that are not usable are in no pair."""
    exact = exact_pairs(dataset.source.digests())
    exact = exact[dataset.usable[exact].all(axis=1)]
    near = near[dataset.usable[near].all(axis=1)]
    # Of exact copies, one stands for all in the list of near ones.
    copies = np.zeros(len(dataset), dtype=np.bool_)
    copies[exact[:, 1]] = True
    return Duplicates(exact, near[~copies[near].any(axis=1)])


def leaked(dataset: Dataset, groups: Groups) -> dict[Split, Indices]:
    """Ids of each split but training that show a picture which training shows too."""
    found: dict[Split, Indices] = {}
    trained = np.unique(groups[(groups >= 0) & (dataset.split == TRAIN)])
    for number, name in enumerate(SPLITS):
        if number != TRAIN:
            mine = (dataset.split == number) & (groups >= 0) & np.isin(groups, trained)
            found[name] = np.flatnonzero(mine & dataset.usable)
    return found


def audit(
    dataset: Dataset, *, threads: int = 2, progress: Progress | None = None
) -> tuple[Dataset, Audit]:
    """Decode every file once and say what was seen. Raises nothing about the images.

    Returns the data set as training would use it: without what cannot be decoded, and with copies
    of one picture on one side of every cut that vidi makes.
    """
    began_at = time.perf_counter()
    seen = _look(dataset, threads, progress)
    dataset.source.remember(seen.digests)
    for reason in sorted({reason for _, reason, _ in seen.unreadable}):
        rows = [row for row in seen.unreadable if row[1] == reason]
        dataset = dataset.without([row[0] for row in rows], reason, [row[2] for row in rows])
    return _judge(dataset, seen.small, seen, began_at, near_pairs(seen.small))


def audit_store(
    dataset: Dataset, store: PixelStore, *, recut: bool = True
) -> tuple[Dataset, Audit]:
    """The part of an audit that needs no file: what the decoded pixels of a store tell.

    dataset: without the rows that the store could not decode.
    recut: whether copies are put on one side of every split that vidi cuts.

    Which pictures are alike is kept beside a store's pixels, because it takes seconds for some ten
    thousand of them.
    """
    began_at = time.perf_counter()
    small = _small(store)
    # A store in memory only has no folder.
    on_disk = (store.path / "manifest").is_file()
    near = _recalled(store.path / "near-pairs", len(store)) if on_disk else None
    if near is None:
        near = near_pairs(small)
        if on_disk:
            _keep(store.path / "near-pairs", near)
    return _judge(dataset, small, None, began_at, near, recut=recut)


def _small(store: PixelStore) -> Pixels:
    """(N, S, S) grey; a store that keeps nothing is looked at in parts."""
    if store.complete:
        return thumbnails(store.images)
    step = rows_a_block(store.contract)
    rows = range(0, len(store), step)
    parts = [np.arange(start, min(start + step, len(store))) for start in rows]
    return np.concatenate([thumbnails(store.take(part)[0]) for part in parts])


# Raised when the same pixels would give other pairs.
_PAIRS_VERSION: Final = b"near pairs 1\n"


def _recalled(path: Path, count: int) -> Pairs | None:
    """What `_keep` wrote; None when it is not there or damaged."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    head = len(_PAIRS_VERSION) + 16
    if not data.startswith(_PAIRS_VERSION + content_digest(data[head:])) or len(data[head:]) % 16:
        return None
    pairs = np.frombuffer(data[head:], dtype="<i8").astype(np.int64).reshape(-1, 2)
    return pairs if not len(pairs) or (pairs.min() >= 0 and pairs.max() < count) else None


def _keep(path: Path, pairs: Pairs) -> None:
    body = np.ascontiguousarray(pairs, dtype="<i8").tobytes()
    # An aid: a cache that may only be read is no reason to stop.
    with contextlib.suppress(StorageError):
        replace_file(path, _PAIRS_VERSION + content_digest(body) + body)


def pictures(dataset: Dataset, names: Iterable[str], side_px: int) -> Iterator[tuple[str, Pixels]]:
    """(name, pixels (H, W, C)) of those that can be read, the longer side at most `side_px`."""
    wanted = set(names)
    contract = _COLOUR.model_copy(
        update={"image_px": side_px, "store_px": side_px, "interpolation": "bicubic"}
    )
    for row in range(len(dataset)) if wanted else ():
        name = dataset.name_of(row)
        if name in wanted:
            try:
                yield name, _picture(dataset, row, contract)
            except UnreadableImage:
                continue


def _picture(dataset: Dataset, row: int, contract: PixelContract) -> Pixels:
    pixels = dataset.source.pixels(row)
    if pixels is not None:
        if max(pixels.shape[:2]) <= contract.store_px:
            return pixels
        return image.prepare_array(pixels, contract.model_copy(update={"resize": "pad"}))
    data = dataset.read(row)
    seen, whole = image.examine(data, contract.model_copy(update={"resize": "pad"}))
    # Without what was filled up around it.
    scale = contract.store_px / max(seen.height_px, seen.width_px)
    height, width = (max(1, round(scale * side)) for side in (seen.height_px, seen.width_px))
    top, left = (contract.store_px - height) // 2, (contract.store_px - width) // 2
    part: Pixels = whole[top : top + height, left : left + width]
    return part


# Looking ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Seen:
    small: Pixels
    digests: NDArray[np.uint8]
    # None where a row could not be decoded.
    shapes: Sequence[Inspection | None]
    unreadable: Sequence[tuple[int, str, str]]


_SMALL: Final = PixelContract(
    image_px=32,
    store_px=32,
    channels=1,
    resize="squash",
    interpolation="bilinear",
    mean=(0.0,),
    std=(1.0,),
)
_COLOUR: Final = _SMALL.model_copy(
    update={"channels": 3, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
)


def _look(dataset: Dataset, threads: int, progress: Progress | None) -> _Seen:
    count = len(dataset)
    small = np.zeros((count, 32, 32), dtype=np.uint8)
    digests = np.zeros((count, 16), dtype=np.uint8)
    shapes: list[Inspection | None] = [None] * count
    unreadable: list[tuple[int, str, str]] = []
    late = Late(dataset.read_limit_s, dataset.name, dataset.name_of)

    def look(row: int) -> None:
        try:
            pixels = dataset.source.pixels(row)
            if pixels is not None:
                content = np.ascontiguousarray(pixels).data.cast("B")
                digests[row] = np.frombuffer(content_digest(content), dtype=np.uint8)
                small[row] = image.prepare_array(pixels, _SMALL, resize=fast_resize)[:, :, 0]
                grey = pixels.shape[2] == 1 or bool((pixels == pixels[:, :, :1]).all())
                shapes[row] = Inspection("array", pixels.shape[0], pixels.shape[1], grey, ())
                return
            data = dataset.read(row)
            digests[row] = np.frombuffer(content_digest(data), dtype=np.uint8)
            shapes[row], colours = image.examine(data, _COLOUR, resize=fast_resize)
            small[row] = image.prepare_array(colours, _SMALL)[:, :, 0]
        except UnreadableImage as error:
            unreadable.append((row, error.reason, error.message))

    def block(start: int) -> int:
        stop = min(start + 64, count)
        each_in_time(look, range(start, stop), late.add, limit_s=late.limit_s)
        return stop - start

    done = 0
    with ThreadPoolExecutor(max(1, threads)) as pool:
        try:
            for number in pool.map(block, range(0, count, 64)):
                done += number
                if progress is not None:
                    progress(done, count)
        finally:
            pool.shutdown(cancel_futures=True)
    if late.rows:
        # The old ones may still be written to.
        small, digests, shapes = small.copy(), digests.copy(), shapes.copy()
        for row in late.rows:
            small[row], digests[row], shapes[row] = 0, 0, None
    timed = [(row, "TIMEOUT", late.words) for row in late.rows]
    known = [row for row in unreadable if row[0] not in late.rows]
    return _Seen(small, digests, shapes, sorted([*known, *timed]))


# Judging ------------------------------------------------------------------------------------------


def _judge(
    dataset: Dataset,
    small: Pixels,
    seen: _Seen | None,
    began_at: float,
    near: Pairs,
    *,
    recut: bool = True,
) -> tuple[Dataset, Audit]:
    twice = find_duplicates(dataset, near)
    groups = groups_of(twice.all, len(dataset))
    if recut:
        dataset = dataset.regrouped(groups)
    leaks = leaked(dataset, groups)
    findings = [
        *_leaks(dataset, leaks, groups, leaked(dataset, groups_of(twice.exact, len(dataset)))),
        *_set_aside(dataset),
        *_duplicates(dataset, twice),
        *_classes(dataset, twice),
        *_appearance(dataset, small),
    ]
    shapes = [] if seen is None else [shape for shape in seen.shapes if shape is not None]
    if seen is not None and shapes:
        findings += [*_shapes(dataset, seen), *_files(dataset, seen), *_shortcut(dataset, seen)]
    order: tuple[Severity, ...] = ("error", "warning", "note")
    findings.sort(key=lambda finding: order.index(finding.severity))
    used = int(dataset.usable.sum())
    return dataset, Audit(
        name=dataset.name,
        fingerprint=dataset.fingerprint,
        classes=dataset.classes,
        counts={split: dataset.counts(split) for split in SPLITS},
        split_rule=dataset.split_rule,
        num_found=used + len(dataset.quarantined) + len(dataset.ignored),
        num_used=used,
        quarantined=_tally(entry.reason for entry in dataset.quarantined),
        ignored=_tally(entry.reason for entry in dataset.ignored),
        formats=_tally(shape.format for shape in shapes),
        notes=_tally(note for shape in shapes for note in shape.notes),
        height_px=_extent([shape.height_px for shape in shapes]),
        width_px=_extent([shape.width_px for shape in shapes]),
        grey=bool(shapes) and all(shape.grey for shape in shapes),
        findings=tuple(findings),
        leaked={split: tuple(ids.tolist()) for split, ids in leaks.items()},
        same=tuple(map(tuple, _members(groups))),
        recut=recut,
        elapsed_s=time.perf_counter() - began_at,
    )


def _tally(names: Iterable[str]) -> dict[str, int]:
    return dict(Counter(names).most_common())


def _extent(values: list[int]) -> tuple[int, int, int] | None:
    return (min(values), int(np.median(values)), max(values)) if values else None


def _about(
    dataset: Dataset, code: str, severity: Severity, rows: Iterable[int], message: str
) -> Iterator[Finding]:
    """A finding about some images, if there are any; {n} in the message is their number."""
    ids = [int(row) for row in rows if dataset.usable[row]]
    if ids:
        paths = tuple(dataset.name_of(row) for row in ids[:MAX_EXAMPLES])
        text = message.format(n=f"{len(ids):,} image" + ("s" if len(ids) > 1 else ""))
        yield Finding(code=code, severity=severity, message=text, count=len(ids), paths=paths)


def _set_aside(dataset: Dataset) -> Iterator[Finding]:
    """Files that cannot be used, one finding for each reason."""
    reasons: dict[str, list[str]] = {}
    for entry in dataset.quarantined:
        said = f"{entry.path} ({entry.message})" if entry.message else entry.path
        reasons.setdefault(entry.reason, []).append(said)
    for reason, paths in sorted(reasons.items(), key=lambda item: -len(item[1])):
        yield Finding(
            code=reason,
            severity="error",
            message=f"{len(paths):,} file{'s' if len(paths) > 1 else ''} cannot be used: "
            f"{_REASONS.get(reason, reason.lower().replace('_', ' '))}",
            count=len(paths),
            paths=tuple(paths[:MAX_EXAMPLES]),
        )


_REASONS: Final = {
    "EMPTY": "empty",
    "NOT_IMAGE": "no image inside",
    "TRUNCATED": "cut off",
    "CORRUPT": "damaged",
    "UNSUPPORTED": "a format that is not read here",
    "TOO_LARGE": "too many pixels",
    "TOO_SMALL": "too few pixels",
    "MISSING": "not there",
    "NO_PERMISSION": "no permission to read",
    "SPECIAL_FILE": "a pipe, socket or device",
    "BROKEN_LINK": "a link to nothing",
    "OUTSIDE_ROOT": "a link that leaves the data",
    "READ_ERROR": "the disk or network failed",
    "UNKNOWN_CLASS": "a class that has no training images",
    "NO_LABEL": "no label",
    "CONFLICT": "labelled twice, differently",
}


def _leaks(
    dataset: Dataset,
    leaks: dict[Split, Indices],
    groups: Groups,
    exact: dict[Split, Indices],
) -> Iterator[Finding]:
    members = _members(groups)
    for split, ids in leaks.items():
        if not len(ids):
            continue
        share = len(ids) / max(1, len(dataset.indices(split)))
        yield Finding(
            code="LEAK",
            severity="error",
            message=f"{len(ids):,} {split} image{'s' if len(ids) > 1 else ''} ({share:.1%}) can "
            f"also be seen in training, {len(exact[split]):,} as exact copies: results on them say "
            "nothing",
            count=len(ids),
            paths=tuple(dataset.name_of(int(row)) for row in ids[:MAX_EXAMPLES]),
            groups=tuple(
                tuple(dataset.name_of(row) for row in members[int(groups[one])])
                for one in ids[:MAX_EXAMPLES]
            ),
        )


def _duplicates(dataset: Dataset, twice: Duplicates) -> Iterator[Finding]:
    same = dataset.labels[twice.exact[:, 0]] == dataset.labels[twice.exact[:, 1]]
    yield from _grouped(
        dataset,
        "CONFLICT",
        "error",
        twice.exact[~same],
        "{n} with the same content stand in more than one class",
    )
    near = dataset.labels[twice.near[:, 0]] == dataset.labels[twice.near[:, 1]]
    yield from _grouped(
        dataset,
        "NEAR_CONFLICT",
        "warning",
        twice.near[~near],
        "{n} that look the same stand in more than one class",
    )
    yield from _grouped(
        dataset, "DUPLICATE", "warning", twice.exact[same], "{n} are exact copies of one another"
    )
    yield from _grouped(
        dataset, "NEAR_DUPLICATE", "note", twice.near[near], "{n} show what another one shows"
    )


def _grouped(
    dataset: Dataset, code: str, severity: Severity, pairs: Pairs, message: str
) -> Iterator[Finding]:
    rows = np.unique(pairs)
    if not len(rows):
        return
    shown = _members(groups_of(pairs, len(dataset)))[:MAX_EXAMPLES]
    yield Finding(
        code=code,
        severity=severity,
        message=message.format(n=f"{len(rows):,} images"),
        count=len(rows),
        paths=tuple(dataset.name_of(row) for row in rows[:MAX_EXAMPLES].tolist()),
        groups=tuple(tuple(dataset.name_of(row) for row in group) for group in shown),
    )


def _members(groups: Groups) -> list[list[int]]:
    """The rows of each group, in the order of the groups' numbers."""
    rows = np.flatnonzero(groups >= 0)
    rows = rows[np.argsort(groups[rows], kind="stable")]
    parts = np.split(rows, np.flatnonzero(np.diff(groups[rows])) + 1)
    return [part.tolist() for part in parts if len(part)]


def _classes(dataset: Dataset, twice: Duplicates) -> Iterator[Finding]:
    for note in dataset.notes:
        yield Finding(code="CLASSES", severity="warning", message=note, count=1)
    counts = dataset.counts("train")
    few = [c for c, n in zip(dataset.classes, counts, strict=True) if 1 < n < FEW_IMAGES]
    if few:
        yield Finding(
            code="FEW_IMAGES",
            severity="warning",
            message=f"fewer than {FEW_IMAGES} training images: {', '.join(few[:10])}"
            + (f" and {len(few) - 10} more" if len(few) > 10 else ""),
            count=len(few),
        )
    gone = [c for c, n in zip(dataset.classes, counts, strict=True) if n == 0]
    if gone:
        yield Finding(
            code="NO_IMAGES",
            severity="error",
            message=f"no readable training image is left of: {', '.join(gone)}",
            count=len(gone),
        )
    # Two classes are twins if a tenth of the smaller one shows what the other one shows.
    shared: Counter[tuple[int, int]] = Counter()
    for first, second in np.unique(twice.all, axis=0).tolist() if len(twice.all) else []:
        low, high = sorted((int(dataset.labels[first]), int(dataset.labels[second])))
        if low != high:
            shared[low, high] += 1
    sizes = np.bincount(dataset.labels[dataset.usable], minlength=len(dataset.classes))
    for (low, high), number in shared.items():
        if number >= max(3, 0.1 * min(sizes[low], sizes[high])):
            yield Finding(
                code="TWINS",
                severity="warning",
                message=f"'{dataset.classes[low]}' and '{dataset.classes[high]}' share "
                f"{number:,} pictures: are they one class?",
                count=number,
            )


def _appearance(dataset: Dataset, small: Pixels) -> Iterator[Finding]:
    flat = small.reshape(len(small), -1)
    contrast = np.concatenate([part.std(axis=1) for part in _parts(flat)])
    level = np.concatenate([np.percentile(part, 95, axis=1) for part in _parts(flat)])
    blank = contrast < BLANK_CONTRAST
    yield from _about(
        dataset, "BLANK", "warning", np.flatnonzero(blank), "{n} of a single colour: nothing to see"
    )
    dark = (level < DARK_LEVEL) & ~blank
    # Where that is how all of the pictures are, it is what they show.
    if dark.mean() < 0.2:
        yield from _about(dataset, "DARK", "note", np.flatnonzero(dark), "{n} nearly black")


def _parts(flat: Pixels) -> list[Pixels]:
    return np.array_split(flat, max(1, len(flat) // 10_000))


def _shapes(dataset: Dataset, seen: _Seen) -> Iterator[Finding]:
    known = [(row, shape) for row, shape in enumerate(seen.shapes) if shape is not None]
    rows = np.array([row for row, _ in known])
    height = np.array([shape.height_px for _, shape in known], dtype=np.float64)
    width = np.array([shape.width_px for _, shape in known], dtype=np.float64)
    aspect = np.log(width / height)
    odd = np.abs(aspect - np.median(aspect)) > np.log(ODD_SHAPE)
    yield from _about(
        dataset,
        "ODD_SHAPE",
        "note",
        rows[odd],
        "{n} far longer or taller than the others: much of them is cut off or squeezed",
    )
    short = np.minimum(height, width)
    tiny = short < np.median(short) / 4
    yield from _about(
        dataset, "SMALL", "note", rows[tiny], "{n} less than a quarter of the usual size: blurred"
    )
    grey = np.array([shape.grey for _, shape in known])
    share = float(grey.mean())
    if 0 < share < 0.2:
        yield from _about(dataset, "GREY", "note", rows[grey], "{n} without colour among coloured")
    elif 0.8 < share < 1:
        yield from _about(dataset, "COLOUR", "note", rows[~grey], "{n} with colour among grey ones")


def _files(dataset: Dataset, seen: _Seen) -> Iterator[Finding]:
    misnamed: list[int] = []
    noted: dict[str, list[int]] = {}
    for row, shape in enumerate(seen.shapes):
        if shape is None:
            continue
        suffix = os.path.splitext(dataset.name_of(row))[1].lower()  # noqa: PTH122 (a name)
        if suffix and shape.format in _EXTENSIONS and suffix not in _EXTENSIONS[shape.format]:
            misnamed.append(row)
        for note in shape.notes:
            noted.setdefault(note, []).append(row)
    yield from _about(
        dataset, "WRONG_EXTENSION", "note", misnamed, "{n} named like another format: read anyway"
    )
    for code, message in _NOTES.items():
        yield from _about(dataset, code, "note", noted.get(code, ()), message)


_NOTES: Final = {
    "DAMAGED": "{n} slightly damaged: shown whole by every viewer, and used",
    "ROTATED": "{n} turned upright as the camera noted it",
    "ANIMATED": "{n} with more than one frame: only the first is used",
    "SIXTEEN_BIT": "{n} with 16 bits a channel: scaled to 8",
    "FLOAT": "{n} with floating-point pixels: scaled from 0..1",
    "CMYK": "{n} in print colours (CMYK): converted",
    "ALPHA": "{n} with transparency: shown on middle grey",
}


def _shortcut(dataset: Dataset, seen: _Seen) -> Iterator[Finding]:
    """Whether format and size of the file alone tell the class: then a model may learn those."""
    train = dataset.indices("train")
    labels = dataset.labels[train].tolist()
    votes: dict[tuple[str, int, int, bool], Counter[int]] = {}
    for row, label in zip(train.tolist(), labels, strict=True):
        shape = cast(Inspection, seen.shapes[row])
        mark = (shape.format, shape.height_px, shape.width_px, shape.grey)
        votes.setdefault(mark, Counter())[label] += 1
    right = 0
    for counted in votes.values():
        first, *others = (number for _, number in counted.most_common(2))
        # Each image is judged by the others of its kind, so one of a kind is judged by nobody.
        right += first if first - 1 > (others[0] if others else 0) else 0
    share = right / max(1, len(labels))
    guess = max(Counter(labels).values(), default=0) / max(1, len(labels))
    if len(labels) >= 50 and share > guess + SHORTCUT_SHARE * (1 - guess):
        yield Finding(
            code="SHORTCUT",
            severity="warning",
            message=f"format and size of the file alone tell the class of {share:.0%} of the "
            f"training images (guessing: {guess:.0%}): a model may learn where images come from, "
            "not what they show",
            count=len(labels),
        )
