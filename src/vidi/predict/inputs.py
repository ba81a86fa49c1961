"""What was named on the command line -> the files, one after the other."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from vidi.errors import UsageError
from vidi.storage import shown

ENDINGS: Final = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jfif",
        ".png",
        ".webp",
        ".bmp",
        ".gif",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".avif",
    ]
)
# What systems and archives leave beside images (FAULTS.md D33).
_LITTER_FOLDERS: Final = frozenset({"__MACOSX"})
_LONGEST_LINE: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Found:
    """One file. `named`: the user gave its name, so that it must be there and be an image."""

    path: str
    named: bool


def find(paths: Iterable[str], *, listed: Iterable[str] = ()) -> Iterator[Found]:
    """Files as named, folders' images in the order of their names, what globs match; then `listed`.

    A folder gives the files with an image's ending below it; links to folders are not followed. A
    glob is expanded here too, for shells that do not; a file of just that name comes first.

    Raises:
        UsageError: nothing is there, or a folder or glob without an image.
    """
    named = tuple(paths)
    # A word that means nothing is said before the first file is read, not after a thousand rows.
    for path in named:
        next(_expanded(path))
    for path in named:
        yield from _expanded(path)
    for line in listed:
        name = line.removesuffix("\n").removesuffix("\r")
        if len(name) > _LONGEST_LINE:
            raise UsageError(f"a line of the list is {len(name):,} characters long")
        if name:
            yield Found(name, named=True)


def _expanded(path: str) -> Iterator[Found]:
    if os.path.isdir(path):
        yield from _at_least_one(_below(path), f"no images in {shown(path)}")
    elif os.path.lexists(path):
        yield Found(path, named=True)
    elif glob.has_magic(path):
        matches = (each for each in sorted(glob.iglob(path, recursive=True)))
        yield from _at_least_one(
            (found for match in matches for found in _match(match)),
            f"nothing matches {shown(path)}",
        )
    else:
        raise UsageError(f"no such file: {shown(path)}")


def _match(path: str) -> Iterator[Found]:
    if os.path.isdir(path):
        yield from _below(path)
    else:
        yield Found(path, named=os.path.splitext(path)[1].lower() in ENDINGS)


def _at_least_one(found: Iterator[Found], otherwise: str) -> Iterator[Found]:
    empty = True
    for each in found:
        empty = False
        yield each
    if empty:
        raise UsageError(otherwise, fix=f"files count that end in {' '.join(sorted(ENDINGS))}")


def _below(folder: str) -> Iterator[Found]:
    """Depth first, each folder sorted: only one folder's names are in memory at a time."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        # Named, so that it is reported and not passed over.
        yield Found(folder, named=True)
        if not isinstance(error, PermissionError):
            raise
        return
    for entry in entries:
        if entry.name.startswith(".") or entry.name in _LITTER_FOLDERS:
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _below(entry.path)
        elif os.path.splitext(entry.name)[1].lower() in ENDINGS:
            yield Found(entry.path, named=False)
