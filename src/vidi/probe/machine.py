"""What this computer has, and the settings of its C library that training wants."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from pathlib import Path

import torch

from vidi.facts import Accelerator, Machine

# Numbers of glibc's mallopt(3).
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


def machine() -> Machine:
    """Look at this computer; a few milliseconds, and nothing is changed."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    flags = _processor_flags()
    return Machine(
        platform=platform.platform(terse=True),
        processor=_processor_name(),
        physical_cores=os.cpu_count() or 1,
        usable_cores=usable or 1,
        memory_bytes=_memory_bytes(),
        cpu_bfloat16=bool(flags & {"avx512_bf16", "amx_bf16", "bf16"}),
        accelerators=_accelerators(),
        python=platform.python_version(),
        torch=torch.__version__,
    )


def keep_memory() -> bool:
    """Tell glibc to keep what a step frees; it would hand large blocks back and take them anew.

    On a processor the page faults of that take half of the time of a training step
    (docs/measurements.md). Returns whether the C library took the setting; others than glibc have
    no such habit.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # The largest value that glibc takes for the mmap threshold is 32 MiB on 64 bits when it
    # adapts by itself, but an explicit one may be as large as a C int.
    largest = 2**31 - 1
    return bool(mallopt(_M_MMAP_THRESHOLD, 2**30)) and bool(mallopt(_M_TRIM_THRESHOLD, largest))


def _accelerators() -> tuple[Accelerator, ...]:
    found: list[Accelerator] = []
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found.append(
            Accelerator(
                kind="cuda",
                name=properties.name,
                memory_bytes=properties.total_memory,
                bfloat16=torch.cuda.is_bf16_supported(including_emulation=False),
            )
        )
    if torch.xpu.is_available():
        xpu = torch.xpu.get_device_properties(0)
        found.append(
            Accelerator(kind="xpu", name=xpu.name, memory_bytes=xpu.total_memory, bfloat16=True)
        )
    if torch.backends.mps.is_available():
        found.append(
            Accelerator(kind="mps", name="Apple GPU", memory_bytes=_memory_bytes(), bfloat16=False)
        )
    return tuple(found)


def _memory_bytes() -> int:
    """Memory that this process may use: the machine's, or less where a container limits it."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0
    limit = _text(Path("/sys/fs/cgroup/memory.max")).strip()
    return min(total, int(limit)) if limit.isdigit() else total


def _processor_name() -> str:
    for line in _text(Path("/proc/cpuinfo")).splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _processor_flags() -> set[str]:
    for line in _text(Path("/proc/cpuinfo")).splitlines():
        if line.startswith(("flags", "Features")):
            return set(line.partition(":")[2].split())
    return set()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
