"""Contract checks for what you write yourself: each says in one sentence what is wrong.

vidi's own parts go through the same checks.
"""

from __future__ import annotations

import math
from collections.abc import Callable


def check_schedule(schedule: Callable[[float], float], *, points: int = 1001) -> None:
    """`schedule` is a function of `done` in [0, 1] alone, and gives multipliers in [0, 1].

    Raises:
        AssertionError: what is wrong, in one sentence.
    """
    dones = [point / (points - 1) for point in range(points)]
    first = [schedule(done) for done in dones]
    for done, value in zip(dones, first, strict=True):
        if isinstance(value, bool) or not isinstance(value, float | int):
            raise AssertionError(
                f"schedule({done:g}) gives a {type(value).__name__}, not a plain number"
            )
        if not math.isfinite(value) or not 0.0 <= value <= 1.0:
            raise AssertionError(f"schedule({done:g}) = {value}, which is not in [0, 1]")
    # Backwards, so that a hidden counter or a memory of the last call shows.
    again = [schedule(done) for done in reversed(dones)][::-1]
    for done, value, second in zip(dones, first, again, strict=True):
        if value != second:
            raise AssertionError(
                f"schedule({done:g}) gave {value} and then {second}: it depends on more than `done`"
            )
