"""How much energy was used, where the machine tells: processors', and NVIDIA's counters."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

RAPL = Path("/sys/class/powercap")


def joules() -> float | None:
    """A counter that rises; the difference of two readings is what was used between them.

    Processor packages by RAPL, GPUs by NVML, added. None where none of them can be read: on many
    machines only root may read RAPL.
    """
    parts = [value for value in (_processors(RAPL), _gpus()) if value is not None]
    return sum(parts) if parts else None


def _processors(folder: Path) -> float | None:
    counters = sorted(folder.glob("intel-rapl:[0-9]*/energy_uj"))
    try:
        # A package has one colon in its name; its parts, which it contains, have two.
        packages = [path for path in counters if path.parent.name.count(":") == 1]
        values = [int(path.read_text()) for path in packages]
    except (OSError, ValueError):
        return None
    return sum(values) / 1e6 if values else None


def _gpus() -> float | None:
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    if library.nvmlInit_v2() != 0:
        return None
    try:
        return _counted(library)
    finally:
        library.nvmlShutdown()


def _counted(library: ctypes.CDLL) -> float | None:
    ask: Callable[..., int] = library.nvmlDeviceGetTotalEnergyConsumption
    count, total, seen = ctypes.c_uint(), 0.0, False
    if library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
        return None
    for index in range(count.value):
        device, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
        found = library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)) == 0
        if found and ask(device, ctypes.byref(millijoules)) == 0:
            total, seen = total + millijoules.value / 1e3, True
    return total if seen else None
