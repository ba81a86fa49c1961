"""An image folder: one sub-folder a class, with or without split folders above them.

The rules, stated once:

- `train` with class folders in it makes the folder a split one; beside it count `val`, `valid`,
  `validation`, `dev` and `test`, `testing`. Otherwise every sub-folder of the root is a class.
- A class is the first folder below the root or the split; images deeper down belong to it. Images
  beside the class folders have no class and are ignored.
- Classes are those that have training images, by exact name, in natural order: "2" before "10".
- Names that start with a dot and what operating systems leave behind are ignored.
- A link to a file or folder below the root counts once, and for its target first. Links that leave
  the root are not followed.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from vidi.config import DataConfig
from vidi.data import split as splits
from vidi.data.cache import cache_folder, refuse_inside
from vidi.data.dataset import Dataset, Skipped
from vidi.data.files import Files, Names
from vidi.errors import DataError, UsageError
from vidi.facts import SPLITS

EXTENSION: Final = re.compile(r"\.(jpe?g|jpe|jfif|png|gif|webp|bmp|dib|tiff?|p[bgnp]m|avif)")
# Images that are known and cannot be read: said one by one, not passed over as strange files.
UNSUPPORTED: Final = re.compile(r"\.(heic|heif|svgz?|jp2|jxl|psd|cr2|cr3|nef|arw|dng)")
SYSTEM_FILES: Final = frozenset(("thumbs.db", "desktop.ini", "ehthumbs.db", "__macosx"))

_SPLIT_NAMES: Final = {
    "train": splits.TRAIN,
    "training": splits.TRAIN,
    "val": splits.VALIDATION,
    "valid": splits.VALIDATION,
    "validation": splits.VALIDATION,
    "dev": splits.VALIDATION,
    "test": splits.TEST,
    "testing": splits.TEST,
}


def natural(name: str) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """A sort key: digits count as numbers, case does not count until all else is equal."""
    parts = re.findall(r"\d+|\D+", name)
    key = tuple(
        (0, int(part), "") if part.isdecimal() and len(part) < 19 else (1, 0, part.casefold())
        for part in parts
    )
    return key, name


def open_folder(root: Path, asked: DataConfig) -> Dataset:
    """See the rules above. Raises UsageError, DataError."""
    cache_dir = cache_folder(asked.cache_dir)
    refuse_inside(cache_dir, root)
    found = _Scan(os.path.realpath(os.fsencode(root)))
    found.walk()
    layout = _layout(found)
    rows, skipped = _rows(found, layout)
    trained = {name for name, number, _ in rows if number == splits.TRAIN}
    classes = tuple(sorted(trained, key=natural))
    _check_classes(root, found, layout, classes)
    place = {name: number for number, name in enumerate(classes)}
    used = [row for row in rows if row[0] in place]
    for name, _, file in rows:
        if name not in place:
            text = f"class '{name}' has no training images"
            found.quarantined.append(Skipped(os.fsdecode(file.name), "UNKNOWN_CLASS", text))
    names = Names(file.name for _, _, file in used)
    labels = np.array([place[name] for name, _, _ in used], dtype=np.int64)
    given = np.array([number for _, number, _ in used], dtype=np.int8)
    source = Files(
        found.root,
        names,
        np.array([file.stamp for _, _, file in used], dtype=np.int64).reshape(-1, 3),
        cache_dir,
    )
    split, rule = splits.complete(
        given,
        labels,
        source.name_of,
        validation_fraction=asked.validation_fraction,
        test_fraction=asked.test_fraction,
        seed=asked.split_seed,
    )
    return Dataset(
        name=root.resolve().name or "root",
        classes=classes,
        labels=labels,
        split=split,
        source=source,
        split_rule=rule,
        usable=np.ones(len(labels), dtype=np.bool_),
        quarantined=tuple(found.quarantined),
        ignored=(*found.ignored, *skipped),
        notes=tuple(_notes(found, layout, rows, classes, split, labels)),
        unreadable=asked.unreadable,
        max_unreadable_fraction=asked.max_unreadable_fraction,
    )


@dataclass(frozen=True, slots=True)
class _File:
    """One listed image: its path below the root, size, mtime_ns and ctime_ns."""

    name: bytes
    stamp: tuple[int, int, int]


@dataclass
class _Scan:
    """One walk over the tree; what it did not see then is not part of the data set."""

    root: bytes
    files: list[_File] = field(default_factory=list)
    folders: set[bytes] = field(default_factory=set)
    quarantined: list[Skipped] = field(default_factory=list)
    ignored: list[Skipped] = field(default_factory=list)
    _links: list[tuple[bytes, bytes]] = field(default_factory=list)

    def walk(self) -> None:
        self._folder(b"", ignore="")
        seen = {file.name for file in self.files}
        for name, target in sorted(self._links):
            if target in seen:
                text = f"a link to {os.fsdecode(target)}"
                self.ignored.append(Skipped(os.fsdecode(name), "SAME_FILE", text))
            else:
                seen.add(target)
                status = os.stat(os.path.join(self.root, target))  # noqa: PTH116, PTH118 (bytes)
                self.files.append(_File(name, _stamp(status)))
        self.files.sort(key=lambda file: file.name)

    def _folder(self, name: bytes, ignore: str) -> None:
        """A stack, not recursion: trees may be deeper than Python's limit."""
        waiting = [(name, ignore)]
        while waiting:
            folder, ignore = waiting.pop()
            try:
                with os.scandir(os.path.join(self.root, folder)) as entries:  # noqa: PTH118 (bytes)
                    listed = sorted(entries, key=lambda entry: entry.name)
            except OSError as error:
                if not folder:
                    raise UsageError(
                        f"cannot list the folder {os.fsdecode(self.root)}: {error.strerror}"
                    ) from error
                reason = "NO_PERMISSION" if isinstance(error, PermissionError) else "READ_ERROR"
                text = f"the folder cannot be listed: {error.strerror}"
                self.quarantined.append(Skipped(os.fsdecode(folder) + "/", reason, text))
                continue
            for entry in listed:
                path = folder + b"/" + entry.name if folder else entry.name
                waiting.extend(self._entry(entry, path, ignore))

    def _entry(
        self, entry: os.DirEntry[bytes], path: bytes, ignore: str
    ) -> Iterator[tuple[bytes, str]]:
        """Account for one entry; yields the folder to look into, if it is one."""
        name = os.fsdecode(entry.name)
        if name.lower() in SYSTEM_FILES or name.startswith("._"):
            ignore = ignore or "SYSTEM_FILE"
        elif name.startswith("."):
            ignore = ignore or "HIDDEN"
        try:
            link = entry.is_symlink()
            if entry.is_dir(follow_symlinks=False):
                if not ignore:
                    self.folders.add(path)
                yield path, ignore
                return
            if ignore:
                self.ignored.append(Skipped(os.fsdecode(path), ignore))
                return
            suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 (a name, not a path)
            if link:
                self._link(path, suffix)
                return
            status = entry.stat(follow_symlinks=False)
        except OSError as error:
            self.quarantined.append(Skipped(os.fsdecode(path), "READ_ERROR", str(error.strerror)))
            return
        if UNSUPPORTED.fullmatch(suffix):
            text = f"{suffix} is not read here; convert it to JPEG or PNG"
            self.quarantined.append(Skipped(os.fsdecode(path), "UNSUPPORTED", text))
        elif not EXTENSION.fullmatch(suffix):
            self.ignored.append(Skipped(os.fsdecode(path), "UNKNOWN_EXTENSION"))
        elif not stat.S_ISREG(status.st_mode):
            self.quarantined.append(Skipped(os.fsdecode(path), "SPECIAL_FILE"))
        else:
            self.files.append(_File(path, _stamp(status)))

    def _link(self, path: bytes, suffix: str) -> None:
        full = os.path.join(self.root, path)  # noqa: PTH118 (bytes)
        target = os.path.realpath(full)
        shown = os.fsdecode(path)
        if not os.path.exists(target):  # noqa: PTH110 (bytes)
            self.quarantined.append(Skipped(shown, "BROKEN_LINK", os.fsdecode(target)))
        elif os.path.isdir(target):  # noqa: PTH112 (bytes)
            inside = target == self.root or target.startswith(self.root + b"/")
            reason = "SAME_FILE" if inside else "OUTSIDE_ROOT"
            text = f"a link to the folder {os.fsdecode(target)}"
            (self.ignored if inside else self.quarantined).append(Skipped(shown, reason, text))
        elif not EXTENSION.fullmatch(suffix):
            self.ignored.append(Skipped(shown, "UNKNOWN_EXTENSION"))
        elif not target.startswith(self.root + b"/"):
            text = f"a link to {os.fsdecode(target)}, which is outside of the data"
            self.quarantined.append(Skipped(shown, "OUTSIDE_ROOT", text))
        elif not os.path.isfile(target):  # noqa: PTH113 (bytes)
            self.quarantined.append(Skipped(shown, "SPECIAL_FILE"))
        else:
            self._links.append((path, target[len(self.root) + 1 :]))


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


@dataclass(frozen=True, slots=True)
class _Layout:
    """Split folders by name, or none of them: the classes lie at the root."""

    splits: dict[bytes, int]


def _layout(found: _Scan) -> _Layout:
    top = {
        name: _SPLIT_NAMES[os.fsdecode(name).lower()]
        for name in sorted(found.folders)
        if b"/" not in name and os.fsdecode(name).lower() in _SPLIT_NAMES
    }
    train = [name for name, number in top.items() if number == splits.TRAIN]
    # A folder of vehicles may well have a class "train": that one has images, not class folders.
    has_classes = any(folder.startswith(name + b"/") for name in train for folder in found.folders)
    return _Layout(top if has_classes else {})


def _rows(found: _Scan, layout: _Layout) -> tuple[list[tuple[str, int, _File]], list[Skipped]]:
    """(class name, split, file) of every image that has a class."""
    rows, skipped = [], []
    for file in found.files:
        parts = file.name.split(b"/")
        number = splits.TRAIN
        if layout.splits:
            if parts[0] not in layout.splits:
                text = "outside of the split folders"
                skipped.append(Skipped(os.fsdecode(file.name), "NO_SPLIT", text))
                continue
            number = layout.splits[parts[0]]
            parts = parts[1:]
        if len(parts) < 2:
            skipped.append(Skipped(os.fsdecode(file.name), "NO_CLASS", "in no class folder"))
            continue
        rows.append((os.fsdecode(parts[0]), number, file))
    return rows, skipped


def _check_classes(root: Path, found: _Scan, layout: _Layout, classes: tuple[str, ...]) -> None:
    if len(classes) >= 2:
        return
    where = f"{root}/{_first_train(layout)}" if layout.splits else str(root)
    if not found.files:
        seen = Counter(
            os.path.splitext(entry.path)[1].lower() or "no extension"  # noqa: PTH122
            for entry in (*found.ignored, *found.quarantined)
        )
        other = ", ".join(f"{count} {name}" for name, count in seen.most_common(3))
        raise DataError(
            f"no images in {root}" + (f" (but {other})" if other else ""),
            fix="expected one sub-folder for each class, with images such as "
            ".jpg, .png or .webp in it",
        )
    if not classes:
        raise DataError(
            f"no class folders with images in {where}",
            fix="put the images of each class into a sub-folder named like the class",
        )
    only = classes[0]
    inner = sorted(
        {f.split(b"/")[1] for f in found.folders if f.startswith(os.fsencode(only) + b"/")}
    )
    fix = "a classifier needs images of at least two classes, each in its own sub-folder"
    if inner and not layout.splits:
        fix = f"did you mean {root / only}?"
    raise DataError(f"only one class, '{only}', in {where}", fix=fix)


def _first_train(layout: _Layout) -> str:
    return os.fsdecode(min(n for n, number in layout.splits.items() if number == splits.TRAIN))


def _notes(
    found: _Scan,
    layout: _Layout,
    rows: list[tuple[str, int, _File]],
    classes: tuple[str, ...],
    split: np.ndarray[tuple[int], np.dtype[np.int8]],
    labels: np.ndarray[tuple[int], np.dtype[np.int64]],
) -> Iterator[str]:
    """What the owner should know about the shape of the data."""
    known = set(classes)
    present = {(name, number) for name, number, _ in rows}
    depth = 1 if layout.splits else 0
    empty = set()
    for folder in found.folders:
        parts = folder.split(b"/")
        if len(parts) == depth + 1 and (not depth or parts[0] in layout.splits):
            number = layout.splits[parts[0]] if depth else splits.TRAIN
            if (os.fsdecode(parts[-1]), number) not in present:
                empty.add(os.fsdecode(folder))
    for name in sorted(empty, key=natural):
        yield f"the class folder '{name}' has no images"
    for number in sorted(set(layout.splits.values()) - {splits.TRAIN}):
        name_of_split = SPLITS[number]
        for name in sorted(known - {n for n, s in present if s == number}, key=natural):
            yield f"class '{name}' has 0 {name_of_split} images"
        for name in sorted({n for n, s in present if s == number} - known, key=natural):
            close = [other for other in classes if _folded(other) == _folded(name)]
            close = close or difflib.get_close_matches(name, classes, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            yield f"class '{name}' of {name_of_split} has no training images: not scored{hint}"
    twins: dict[str, list[str]] = {}
    for name in classes:
        twins.setdefault(_folded(name), []).append(name)
    for names in twins.values():
        if len(names) > 1:
            yield "likely the same class under two names: " + ", ".join(map(repr, names))
    counts = np.bincount(labels[split == splits.TRAIN], minlength=len(classes))
    for lonely in np.flatnonzero(counts == 1):
        yield f"class '{classes[lonely]}' has 1 training image"
    if counts.min() > 0 and counts.max() >= 20 * counts.min():
        least, most = classes[int(counts.argmin())], classes[int(counts.argmax())]
        yield (
            f"imbalanced: '{most}' has {counts.max()} training images, '{least}' has {counts.min()}"
        )


def _folded(name: str) -> str:
    return re.sub(r"[\s_-]+", "", unicodedata.normalize("NFKC", name).casefold())
