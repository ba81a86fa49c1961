"""Python for a process of our own."""

from __future__ import annotations

import sys
from pathlib import Path


def options() -> tuple[str, ...]:
    """What it has to be started with so that it imports from where this process does.

    `python -m` puts the folder that it is started in before everything else, and a torch.py that
    lies there, among somebody's data, would be run. `vidi` does not, nor may what it starts.
    """
    here = {"", str(Path.cwd())}
    return () if here & set(sys.path) else ("-P",)
