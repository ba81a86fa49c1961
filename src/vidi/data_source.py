"""What a user calls data, as far as the words alone tell: a path, a name, an address, an object.

It stands outside vidi.data, which imports torch: a mistyped path is said at once.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Final

from vidi.errors import UsageError

# Names that stand for data without being a path.
BUILT_IN: Final = (
    *("digits", "mnist", "fashion-mnist", "kmnist", "emnist-balanced", "emnist-byclass"),
    *("emnist-bymerge", "emnist-digits", "emnist-letters", "emnist-mnist"),
    *("cifar10", "cifar100", "svhn", "imagenette"),
)
_OBJECT: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def is_own_code(source: str) -> bool:
    """Whether opening these data means importing somebody's module: `module:object`."""
    return _OBJECT.fullmatch(source) is not None


def looks_like_shards(source: str) -> bool:
    """An address or a pattern of tar files, or one of them."""
    return bool(re.search(r"\.(tar|tar\.gz|tgz)$", source)) and (
        "://" in source or "{" in source or "*" in source or Path(source).is_file()
    )


def path_of(source: str) -> Path | None:
    """The path, where there is something at it.

    Raises UsageError when that cannot be told.
    """
    path = _at_home(source)
    try:
        return path if path.exists() else None
    except OSError as error:
        raise UsageError(f"cannot look at {source}: {error.strerror}") from error


def check(source: str) -> str:
    """The words as they were given.

    Raises UsageError when they name nothing: no path, name, address or object.
    """
    named = source in BUILT_IN or looks_like_shards(source) or is_own_code(source)
    if named or path_of(source) is not None:
        return source
    if "://" in source:
        raise UsageError(
            f"{source} is no address of tar shards",
            fix="such as https://host/train-{000..099}.tar; download other data first",
        )
    raise UsageError(f"no such file or folder: {source}", fix=_nearest(_at_home(source)))


def _at_home(source: str) -> Path:
    """`~` and `~user` as the shell would have them; a user that does not exist stays as written."""
    try:
        return Path(source).expanduser()
    except RuntimeError:
        return Path(source)


def _nearest(path: Path) -> str:
    """What to write instead of a path that is not there."""
    parent = path.parent
    while not parent.is_dir():
        parent, path = parent.parent, parent
    try:
        names = [entry.name for entry in parent.iterdir()]
    except OSError:
        names = []
    close = difflib.get_close_matches(path.name, [*names, *BUILT_IN], n=1)
    if not close:
        return f"{parent} is there, '{path.name}' is not in it"
    return f"did you mean {parent / close[0] if close[0] in names else close[0]}?"
