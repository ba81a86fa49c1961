"""What this machine has, what is missing, and what to do about it."""

from __future__ import annotations

import importlib.util
import shutil
from importlib import metadata
from pathlib import Path
from typing import Literal

import torch

from vidi import image
from vidi.data import cache_folder
from vidi.facts import Frozen, Machine
from vidi.probe import keep_memory, machine

# Extra -> the modules that it brings.
_EXTRAS = {
    "timm": ("timm", "torchvision"),
    "export": ("onnx", "onnxruntime", "onnxscript"),
    "serve": ("uvicorn", "h11"),
    "tensorboard": ("tensorboard",),
    "ray": ("ray",),
    "parquet": ("pyarrow",),
    "shards": ("fsspec",),
    "schedulefree": ("schedulefree",),
}
_GIB = 2**30
# Less free disk than this is soon full of decoded pixels and checkpoints.
_LITTLE_DISK_BYTES = 5 * _GIB


class Finding(Frozen):
    """One thing that was looked at."""

    state: Literal["good", "note", "problem"]
    what: str
    fix: str = ""


class Findings(Frozen):
    """All of them, with the machine as the plan sees it."""

    machine: Machine
    findings: tuple[Finding, ...]

    def lines(self) -> list[str]:
        """One line each, the way out below."""
        marks = {"good": "ok     ", "note": "note   ", "problem": "PROBLEM"}
        found: list[str] = []
        for finding in self.findings:
            found.append(f"{marks[finding.state]}  {finding.what}")
            if finding.fix:
                found.append(f"           -> {finding.fix}")
        return found


def examine() -> Findings:
    """Look at the machine, the packages and the disk; changes nothing, needs no network."""
    this = machine()
    found = [
        *_processor(this),
        *_accelerators(this),
        *_packages(),
        *_disk(),
    ]
    return Findings(machine=this, findings=tuple(found))


def _processor(this: Machine) -> list[Finding]:
    bf16 = "multiplies bfloat16" if this.cpu_bfloat16 else "no native bfloat16"
    found = [
        Finding(
            state="good",
            what=f"{this.processor}: {this.usable_cores} of {this.physical_cores} cores usable, "
            f"{this.memory_bytes / _GIB:.1f} GiB of memory, {bf16}",
        )
    ]
    if image.has_compiled_resize():
        found.append(
            Finding(state="good", what="images are resized by vidi's own vector instructions")
        )
    if this.winograd:
        found.append(
            Finding(state="good", what="3 x 3 convolutions are trained by vidi's own instructions")
        )
    if keep_memory():
        found.append(
            Finding(state="good", what="glibc: vidi keeps freed memory, which speeds up training")
        )
    return found


def _accelerators(this: Machine) -> list[Finding]:
    if not this.accelerators:
        built_for = torch.version.cuda or torch.version.hip
        if built_for:
            return [
                Finding(
                    state="problem",
                    what=f"torch {this.torch} is built for {built_for} but sees no accelerator",
                    fix="check the driver with `nvidia-smi`; in a container, pass the device in",
                )
            ]
        return [
            Finding(
                state="note",
                what=f"no accelerator: torch {this.torch} is built for processors",
                fix="with an NVIDIA, AMD or Intel card, install torch's build for it",
            )
        ]
    return [
        Finding(
            state="good",
            what=f"{accelerator.kind}: {accelerator.name}, "
            f"{accelerator.memory_bytes / _GIB:.0f} GiB",
        )
        for accelerator in this.accelerators
    ]


def _packages() -> list[Finding]:
    found = []
    for extra, modules in _EXTRAS.items():
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        if missing:
            found.append(
                Finding(
                    state="note",
                    what=f"extra '{extra}' is not installed ({', '.join(missing)})",
                    fix=f'pip install "vidi[{extra}]"',
                )
            )
        else:
            versions = ", ".join(f"{name} {metadata.version(name)}" for name in modules)
            found.append(Finding(state="good", what=f"extra '{extra}': {versions}"))
    if importlib.util.find_spec("torchvision") and "+cpu" in torch.__version__:
        found.append(
            Finding(
                state="note",
                what="torchvision from the package index is built for CUDA; beside this torch its "
                "own import fails (operator torchvision::nms does not exist)",
                fix="nothing to do: vidi declares the two missing operators before it imports timm",
            )
        )
    return found


def _disk() -> list[Finding]:
    found = []
    for what, folder in (("decoded pixels", cache_folder(None)), ("runs", Path("runs").resolve())):
        existing = folder
        while not existing.exists():
            existing = existing.parent
        free = shutil.disk_usage(existing).free
        state: Literal["good", "problem"] = "good" if free > _LITTLE_DISK_BYTES else "problem"
        found.append(
            Finding(
                state=state,
                what=f"{what} go to {folder}: {free / _GIB:.1f} GiB free",
                fix="" if state == "good" else "free some, or set VIDI_CACHE to another disk",
            )
        )
    return found
