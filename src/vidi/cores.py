"""How many processor cores this process may use."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """As the system allows it to this process where it says so; otherwise all there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
