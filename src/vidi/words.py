"""Numbers and strings as people read them; nothing of the machine leaves through a string."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

HIDDEN: Final = "(hidden)"

_SECRET: Final = re.compile(r"token|secret|passw|credential|api_?key|private", re.IGNORECASE)
_POSIX_PATH: Final = re.compile(
    r"(?<![\w.:/-])(?:~|file:/{0,2})?/(?:[^\s/:\"'<>|]+/)+([^\s/:\"'<>|]*)"
)
_WINDOWS_PATH: Final = re.compile(
    r"(?<!\w)(?:[A-Za-z]:|\\)\\(?:[^\s\\:\"'<>|]+\\)*([^\s\\:\"'<>|]*)"
)
_LOGIN: Final = re.compile(r"(?<=://)[^/@\s]+@")
_QUERY: Final = re.compile(r"(?<=\w)(://[^\s?#]+)[?#]\S*")


def share(value: float, digits: int = 1) -> str:
    """0.9861 -> "98.6%"; only 1 is "100%" and only 0 is "0%", whatever the rounding says."""
    text = f"{100 * value:.{digits}f}"
    while digits < 6 and ((value < 1 and float(text) >= 100) or (value > 0 and float(text) <= 0)):
        digits += 1
        text = f"{100 * value:.{digits}f}"
    return "100%" if value == 1 else "0%" if value == 0 else f"{text}%"


def between(interval: tuple[float, float]) -> str:
    """(0.96, 0.99) -> "96.0% to 99.0%"."""
    return f"{share(interval[0])} to {share(interval[1])}"


def count(value: int, singular: str, plural: str | None = None) -> str:
    """3, "image" -> "3 images"."""
    return f"{value:,} {singular if value == 1 else plural or singular + 's'}"


def chance(guessed: float) -> str:
    """Of a model that has learnt nothing; guessed: the share of the largest class."""
    return f"no better than always naming the largest class ({guessed:.1%})"


def no_time(needed_s: float, left_s: float) -> str:
    """Why something that takes so long is not begun; what is left may be less than nothing."""
    return f"it would take {needed_s:.1f} s and there are {max(0.0, left_s):.1f}"


def first_line(error: BaseException) -> str:
    """What somebody else's error says, in a line; what it is where it says nothing."""
    return str(error).partition("\n")[0] or type(error).__name__


def p_value(p: float) -> str:
    """0.0214 -> "0.021", 0.0001 -> "<0.001"; none is zero."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def class_difference(now: Sequence[str], before: Sequence[str]) -> str:
    """Which classes came and went, the first five of each; they are not equal."""
    parts = []
    if gone := sorted(set(before) - set(now)):
        parts.append(f"missing: {', '.join(gone[:5])}")
    if new := sorted(set(now) - set(before)):
        parts.append(f"new: {', '.join(new[:5])}")
    return "; ".join(parts) or "in another order"


def quoted(name: str) -> str:
    """A class or file name inside a sentence."""
    return f"\u2018{name}\u2019"


def without_places(text: str) -> str:
    """Absolute paths cut to their last part, logins and queries of addresses left out."""
    text = _QUERY.sub(r"\1", _LOGIN.sub("", text))
    return _WINDOWS_PATH.sub(r"\1", _POSIX_PATH.sub(r"\1", text))


def relative(name: str) -> str:
    """A file's name; a source that gives absolute ones must not tell where it lies."""
    absolute = name.startswith(("/", "\\", "~")) or name[1:3] in (":\\", ":/")
    return re.split(r"[/\\]", name)[-1] if absolute else name


def public(value: Any, name: str = "") -> Any:
    """A JSON value without places and secrets."""
    if isinstance(value, Mapping):
        return {str(key): public(each, str(key)) for key, each in value.items()}
    if value is not None and _SECRET.search(name):
        return HIDDEN
    if isinstance(value, str):
        return without_places(value)
    if isinstance(value, list | tuple):
        return [public(each, name) for each in value]
    return value
