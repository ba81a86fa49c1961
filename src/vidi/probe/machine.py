"""What this computer has, and the settings of its C library that training wants."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

import torch

from vidi.cores import usable_cores
from vidi.facts import Accelerator, Machine
from vidi.malloc import keep_memory
from vidi.plan import ExecutionPlan
from vidi.winograd import has_winograd


def machine() -> Machine:
    """Look at this computer; a few milliseconds, and nothing is changed."""
    flags = _processor_flags()
    return Machine(
        platform=platform.platform(terse=True),
        processor=_processor_name(),
        physical_cores=os.cpu_count() or 1,
        usable_cores=usable_cores(),
        memory_bytes=_memory_bytes(),
        cpu_bfloat16=bool(flags & {"avx512_bf16", "amx_bf16", "bf16"}),
        accelerators=_accelerators(),
        python=platform.python_version(),
        torch=torch.__version__,
        processes=counted()[0],
        local_processes=counted()[1],
        winograd=has_winograd(),
        compiler=any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++")),
    )


def counted() -> tuple[int, int]:
    """(processes that train together, those of them on this machine), as they were started."""
    world = int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1
    local = int(os.environ.get("LOCAL_WORLD_SIZE", str(world)))
    return world, min(world, local)


def configure(execution: ExecutionPlan) -> None:
    """Set what torch and the C library keep for the whole process, as the plan has it."""
    torch.set_num_threads(execution.threads)
    keep_memory(execution.keep_memory)
    if execution.device == "cuda":
        exact = "ieee" if execution.precision != "tf32" else "tf32"
        torch.backends.cuda.matmul.fp32_precision = exact
        torch.backends.cudnn.conv.fp32_precision = exact  # type: ignore[attr-defined]
        # cuBLAS reads this when it starts.
        if execution.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(execution.deterministic)
        # Trying algorithms takes the fastest, which may be another one the next time.
        torch.backends.cudnn.benchmark = not execution.deterministic


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
