"""Everything that vidi says no with: one small tree, each branch with its exit code.

An error names the thing, the place and the way out. The command line prints `str(error)` and exits
with `exit_code`; nobody sees a traceback for one of these.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


class VidiError(Exception):
    """The root. `message` says what is wrong and where, `fix` says what to do about it."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message}\n  -> {self.fix}" if self.fix else self.message


class UsageError(VidiError, ValueError):
    """The request itself cannot be: an unknown name, a contradiction, a path that is not there."""

    exit_code = 2


class ConfigError(UsageError):
    """A setting that does not exist, has the wrong type, or contradicts another."""


class MissingExtra(UsageError):
    """Something optional is not installed; `fix` is the command that installs it."""


class DataError(VidiError, ValueError):
    """The data do not allow it: too few classes or images, too many unreadable files."""

    exit_code = 3


class UnreadableImage(DataError):
    """One image that cannot be used; `reason` is one of the codes in `image.Reason`."""

    def __init__(self, message: str, *, reason: str, fix: str = "") -> None:
        super().__init__(message, fix=fix)
        self.reason = reason

    @property
    def sentence(self) -> str:
        """What is wrong and the way out, in one line."""
        return f"{self.message}: {self.fix}" if self.fix else self.message


class DamagedError(VidiError):
    """Files of ours that are damaged, or were written by an incompatible version."""

    exit_code = 4


class MismatchError(DamagedError):
    """A run directory that belongs to another config, class list or data set."""


class InUseError(VidiError):
    """Somebody else is working in that directory right now."""

    exit_code = 5


class TrainingError(VidiError):
    """Training failed: it diverged, or every attempt did."""

    exit_code = 6


class StorageError(VidiError):
    """The disk gave up: full, read-only or broken, several times in a row."""

    exit_code = 74


class OutOfMemory(VidiError):
    """Not even one image fits."""

    exit_code = 75


class Interrupted(VidiError):
    """Stopped by a signal, with the state saved; the same command continues."""

    def __init__(self, message: str, *, signal_number: int, fix: str = "") -> None:
        super().__init__(message, fix=fix)
        self.signal_number = signal_number

    @property
    def status(self) -> int:
        """The exit status that shells expect: 128 plus the signal's number."""
        return 128 + self.signal_number


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence that offers the nearest of the known names, or lists them when none is near."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"known are: {', '.join(names)}" if names else ""
