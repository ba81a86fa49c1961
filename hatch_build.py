"""Compiles the files of C into the package where a C compiler is at hand.

vidi works without them, only slower, so nothing here makes an installation fail. A wheel without
them, for any machine: `HATCH_BUILD_NO_HOOKS=true python -m build --wheel`.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# Each beside its library, and what its compiler is told besides.
SOURCES = {
    "src/vidi/image/resize.c": (),
    # Only when compiling: the functions of OpenMP are then those that torch has loaded.
    "src/vidi/winograd/winograd.c": ("-fopenmp",),
}


class CompileSources(BuildHookInterface):
    """The vector instructions are those of x86 processors, the file names are Linux's."""

    def initialize(self, _version: str, build_data: dict[str, Any]) -> None:
        compiler = shutil.which(os.environ.get("CC", "cc"))
        if sys.platform != "linux" or platform.machine() != "x86_64" or compiler is None:
            return
        for name, options in SOURCES.items():
            source = Path(self.root) / name
            target = source.with_name(f"lib{source.stem}.so")
            if wrong := compiled(compiler, source, options, target):
                self.app.display_warning(f"vidi works without {source.name}, slower: {wrong}")
                continue
            build_data["artifacts"].append(target.relative_to(self.root).as_posix())
            build_data["pure_python"] = False
            # It knows nothing of Python, so any version of it will do.
            system = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["tag"] = f"py3-none-{system}"


def compiled(compiler: str, source: Path, options: tuple[str, ...], target: Path) -> str:
    """What the compiler said where it failed."""
    with tempfile.TemporaryDirectory(dir=source.parent) as folder:
        half, made = Path(folder) / "half.o", Path(folder) / target.name
        for command in (
            (*options, "-O3", "-std=c11", "-fPIC", "-c", source, "-o", half),
            ("-shared", half, "-o", made),
        ):
            done = subprocess.run([compiler, *command], capture_output=True, text=True)
            if done.returncode != 0:
                return done.stderr
        # Replaced, not written over: a running vidi has the old one in its memory.
        made.replace(target)
    return ""
