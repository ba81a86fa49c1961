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
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from vidi.config import DataConfig
from vidi.data import split as splits
from vidi.data.cache import cache_folder, refuse_inside
from vidi.data.dataset import Dataset, Skipped, assemble
from vidi.data.files import Names
from vidi.data.named import files_of
from vidi.errors import DataError, UsageError
from vidi.facts import SPLITS

_KINDS: Final = r"\.(jpe?g|jpe|jfif|png|gif|webp|bmp|dib|tiff?|p[bgnp]m|avif)"
EXTENSION: Final = re.compile(_KINDS)
_IMAGE: Final = re.compile(rb"[^.].*" + _KINDS.encode() + rb"\Z", re.IGNORECASE | re.DOTALL)
# Images that are known and cannot be read: said one by one, not passed over as strange files.
UNSUPPORTED: Final = re.compile(r"\.(heic|heif|svgz?|jp2|jxl|psd|cr2|cr3|nef|arw|dng)")
SYSTEM_FILES: Final = frozenset(("thumbs.db", "desktop.ini", "ehthumbs.db", "__macosx"))


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
    refuse_inside(cache_folder(asked.cache_dir), root)
    found = _Scan(os.path.realpath(os.fsencode(root)))
    found.walk()
    layout = _layout(found)
    places = [layout.place(name) for name in found.files]
    trained = {place.klass for place in places if place.split == splits.TRAIN and place.klass}
    classes = tuple(sorted(trained, key=natural))
    _check_classes(root, found, layout, classes)
    label_of = {name: number for number, name in enumerate(classes)}
    used = np.array([place.klass in label_of for place in places], dtype=np.bool_)
    for row in np.flatnonzero(~used):
        _set_aside(found, os.fsdecode(found.files[row]), places[row])
    rows = np.flatnonzero(used).tolist()
    labels = np.array([label_of[places[row].klass] for row in rows], dtype=np.int64)
    source = files_of(
        found.root,
        Names.of(found.files[row] for row in rows),
        np.frombuffer(found.stamps, dtype=np.int64).reshape(-1, 3)[rows],
        asked,
    )
    return assemble(
        root.resolve().name or "root",
        source,
        classes,
        labels,
        np.array([places[row].split for row in rows], dtype=np.int8),
        asked,
        quarantined=found.quarantined,
        ignored=found.ignored,
        notes=_notes(found, layout, set(places), classes),
    )


class _Place(NamedTuple):
    """What the folder of an image says about it; `klass` is empty where it says nothing."""

    klass: str
    split: int
    reason: str


def _set_aside(found: _Scan, path: str, place: _Place) -> None:
    if place.klass:
        text = f"class '{place.klass}' has no training images"
        found.quarantined.append(Skipped(path, "UNKNOWN_CLASS", text))
    else:
        found.ignored.append(Skipped(path, place.reason))


@dataclass
class _Scan:
    """One walk over the tree; what it did not see then is not part of the data set.

    files: paths below the root, sorted. stamps: size, mtime_ns and ctime_ns of each, one after the
    other.
    """

    root: bytes
    files: list[bytes] = field(default_factory=list)
    stamps: array[int] = field(default_factory=lambda: array("q"))
    folders: set[bytes] = field(default_factory=set)
    quarantined: list[Skipped] = field(default_factory=list)
    ignored: list[Skipped] = field(default_factory=list)
    _links: list[tuple[bytes, bytes]] = field(default_factory=list)

    def walk(self) -> None:
        self._folder(b"", ignore="")
        seen = set(self.files) if self._links else set()
        for name, target in sorted(self._links):
            if target in seen:
                text = f"a link to {os.fsdecode(target)}"
                self.ignored.append(Skipped(os.fsdecode(name), "SAME_FILE", text))
            else:
                seen.add(target)
                self._found(name, os.stat(os.path.join(self.root, target)))  # noqa: PTH116, PTH118
        order = sorted(range(len(self.files)), key=self.files.__getitem__)
        self.files = [self.files[row] for row in order]
        stamps = np.frombuffer(self.stamps, dtype=np.int64).reshape(-1, 3)[order]
        self.stamps = array("q", stamps.tobytes())

    def _found(self, path: bytes, status: os.stat_result) -> None:
        self.files.append(path)
        self.stamps.extend((status.st_size, status.st_mtime_ns, status.st_ctime_ns))

    def _folder(self, name: bytes, ignore: str) -> None:
        """A stack, not recursion: trees may be deeper than Python's limit."""
        waiting = [(name, ignore)]
        while waiting:
            folder, ignore = waiting.pop()
            try:
                with os.scandir(os.path.join(self.root, folder)) as entries:  # noqa: PTH118 (bytes)
                    listed = list(entries)
            except OSError as error:
                if not folder:
                    raise UsageError(
                        f"cannot list the folder {os.fsdecode(self.root)}: {error.strerror}"
                    ) from error
                reason = "NO_PERMISSION" if isinstance(error, PermissionError) else "READ_ERROR"
                text = f"the folder cannot be listed: {error.strerror}"
                self.quarantined.append(Skipped(os.fsdecode(folder) + "/", reason, text))
                continue
            prefix = folder + b"/" if folder else b""
            for entry in listed:
                if ignore or not self._plain_image(entry, prefix):
                    waiting.extend(self._entry(entry, prefix + entry.name, ignore))

    def _plain_image(self, entry: os.DirEntry[bytes], prefix: bytes) -> bool:
        """Nearly all entries are this, so this decides the speed of a scan."""
        try:
            if _IMAGE.match(entry.name) and entry.is_file(follow_symlinks=False):
                self._found(prefix + entry.name, entry.stat(follow_symlinks=False))
                return True
        except OSError:
            pass
        return False

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
            self._found(path, status)

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


@dataclass(frozen=True)
class _Layout:
    """Split folders by name, or none of them: then the classes lie at the root."""

    splits: dict[bytes, int]
    _places: dict[bytes, _Place] = field(default_factory=dict)

    def place(self, path: bytes) -> _Place:
        folder = path[: path.rfind(b"/") + 1]
        if folder not in self._places:
            self._places[folder] = self._decide(folder.split(b"/")[:-1])
        return self._places[folder]

    def _decide(self, folders: list[bytes]) -> _Place:
        number = splits.TRAIN
        if self.splits:
            if not folders or folders[0] not in self.splits:
                return _Place("", -1, "NO_SPLIT")
            number = self.splits[folders[0]]
            folders = folders[1:]
        return _Place(os.fsdecode(folders[0]) if folders else "", number, "NO_CLASS")


def _layout(found: _Scan) -> _Layout:
    top = {
        name: splits.SPLIT_NAMES[os.fsdecode(name).lower()]
        for name in sorted(found.folders)
        if b"/" not in name and os.fsdecode(name).lower() in splits.SPLIT_NAMES
    }
    train = [name for name, number in top.items() if number == splits.TRAIN]
    # A folder of vehicles may well have a class "train": that one has images, not class folders.
    has_classes = any(folder.startswith(name + b"/") for name in train for folder in found.folders)
    return _Layout(top if has_classes else {})


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
    places: set[_Place],
    classes: tuple[str, ...],
) -> Iterator[str]:
    """What the owner should know about the shape of the data."""
    known = set(classes)
    present = {(place.klass, place.split) for place in places if place.klass}
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


def _folded(name: str) -> str:
    return re.sub(r"[\s_-]+", "", unicodedata.normalize("NFKC", name).casefold())
