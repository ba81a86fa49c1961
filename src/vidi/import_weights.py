"""Turns a checkpoint that torch wrote into safetensors, as a program of its own.

    python -I -m vidi.import_weights CHECKPOINT TARGET

A checkpoint is a pickle. torch reads it with `weights_only=True`, which builds tensors and nothing
else; should a hole be found in that, what runs here has limits, and from the moment on at which
the file is opened this process may not connect, start programs, or write anything but TARGET.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import safetensors.torch

from vidi.errors import VidiError
from vidi.weights import unpickled

try:
    import resource
except ImportError:  # Windows has no such limits.
    resource = None  # type: ignore[assignment]

# Processor time; the largest checkpoint that fits in memory reads in seconds.
_LIMIT_S = 300
# Memory: of what a file holds once, a few copies are made. What it claims to hold may be more.
_COPIES = 4
_SPARE_BYTES = 1 << 30

_FORBIDDEN = (
    "socket.",
    "subprocess.",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.chmod",
    "shutil.",
    "ctypes.dlopen",
)


class _Locked:
    """An audit hook: once locked, it stops what reading tensors never needs."""

    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(_FORBIDDEN):
            raise PermissionError(f"reading weights may not do this: {event}")
        if event == "open" and self._writes(arguments) and str(arguments[0]) != self.target:
            raise PermissionError(f"reading weights may not write {arguments[0]!r}")

    @staticmethod
    def _writes(arguments: tuple[Any, ...]) -> bool:
        _, mode, flags = arguments
        by_mode = isinstance(mode, str) and any(letter in mode for letter in "wax+")
        # Below Python's own `open` there is os.open, which has no mode.
        return by_mode or bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def main(arguments: list[str]) -> int:
    source, target = (Path(argument) for argument in arguments)
    if resource is not None:
        resource.setrlimit(resource.RLIMIT_CPU, (_LIMIT_S, _LIMIT_S))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _limit_memory(_COPIES * source.stat().st_size + _SPARE_BYTES)
    sys.addaudithook(_Locked(target))
    try:
        tensors = unpickled(source)
        # Tensors that share memory would be refused; each gets its own.
        own = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
        target.write_bytes(safetensors.torch.save(own))
    except VidiError as error:
        sys.stderr.write(f"{error.message}\n")
        return error.exit_code
    except Exception as error:  # Whatever a hostile file provokes is told in one line.
        said = str(error).partition("\n")[0]
        sys.stderr.write(f"{type(error).__name__}: {said}\n")
        return 1
    return 0


def _limit_memory(more_bytes: int) -> None:
    """So many beyond what this process has by now, where the system says how much that is."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return
    used = re.search(r"VmData:\s+(\d+) kB", status)
    if used is not None:
        most = int(used[1]) * 1024 + more_bytes
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
