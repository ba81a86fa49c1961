"""Takes what was asked, else what a rule gives, and keeps the reason."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")


class Decisions:
    """Takes what was asked, else what a rule gives, and keeps the reason."""

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}

    def take(self, name: str, asked: T | None, rule: tuple[T, str]) -> T:
        value, reason = rule
        if asked is not None:
            value, reason = asked, "asked for"
        self.reasons[name] = reason
        return value
