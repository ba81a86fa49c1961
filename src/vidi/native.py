"""Code that was compiled when vidi was installed, where this machine can run it."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any


def load(
    file: Path, *, declare: Callable[[Any], None], is_right: Callable[[Any], bool]
) -> ctypes.CDLL | None:
    """The library in `file`; None where it is missing, not for this processor, or not right.

    It is tried out once, not taken at its word: other compilers made it and other processors run
    it than vidi was tested with.

    Args:
        declare: tells what its functions take and return.
        is_right: whether they do what they should; asked only where `supported()` of the library
            says that this processor has its instructions.
    """
    # Missing, or of another machine: a folder of packages can be shared.
    with contextlib.suppress(OSError, AttributeError):
        found = ctypes.CDLL(str(file))
        if found.supported():
            declare(found)
            return found if is_right(found) else None
    return None
