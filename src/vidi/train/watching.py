"""What a run costs besides time, and where its time goes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from vidi import energy, memory
from vidi.run import Run

# Steps that are left out (memory is taken, kernels are chosen), thrown away, and kept.
PROFILE_WAIT, PROFILE_WARM_UP, PROFILE_STEPS = 10, 2, 6


@contextlib.contextmanager
def profiled(path: Path | None) -> Iterator[Callable[[], None]]:
    """A function to call after every step; a few of them are written to `path` as a trace.

    The trace opens in Perfetto (ui.perfetto.dev) and in chrome://tracing. None: nothing is done.
    """
    if path is None:
        yield lambda: None
        return
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(
        activities=activities,
        schedule=schedule(
            wait=PROFILE_WAIT, warmup=PROFILE_WARM_UP, active=PROFILE_STEPS, repeat=1
        ),
        on_trace_ready=lambda trace: trace.export_chrome_trace(str(path)),
        record_shapes=True,
        profile_memory=True,
    ) as trace:
        yield trace.step


@contextlib.contextmanager
def costs(run: Run | None, tell: Callable[[str], None]) -> Iterator[None]:
    """Afterwards the peak of memory, and the energy where the machine tells, are said and kept."""
    before = energy.joules()
    yield
    after = energy.joules()
    if run is None:
        return
    record: dict[str, object] = {"kind": "costs", "peak_memory_bytes": memory.peak_bytes()}
    said = f"peak memory {memory.peak_bytes() / 1e9:.2f} GB"
    if before is not None and after is not None and after >= before:
        record["energy_joules"] = after - before
        said += f", {(after - before) / 3600:.2f} Wh"
    run.timing.append(record)
    tell(said)
