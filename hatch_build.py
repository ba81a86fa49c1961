"""Compiles src/vidi/image/resize.c into the package where a C compiler is at hand.

vidi works without it, only slower, so nothing here makes an installation fail. A wheel without it,
for any machine: `HATCH_BUILD_NO_HOOKS=true python -m build --wheel`.
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


class CompileResize(BuildHookInterface):
    """The vector instructions are those of x86 processors, the file name is Linux's."""

    def initialize(self, _version: str, build_data: dict[str, Any]) -> None:
        compiler = shutil.which(os.environ.get("CC", "cc"))
        if sys.platform != "linux" or platform.machine() != "x86_64" or compiler is None:
            return
        source = Path(self.root) / "src/vidi/image/resize.c"
        target = source.with_name("libresize.so")
        with tempfile.TemporaryDirectory(dir=source.parent) as folder:
            made = Path(folder) / target.name
            done = subprocess.run(
                [compiler, "-O3", "-std=c11", "-shared", "-fPIC", "-o", made, source],
                capture_output=True,
                text=True,
            )
            if done.returncode != 0:
                self.app.display_warning(f"images are resized without {source.name}: {done.stderr}")
                return
            # Replaced, not written over: a running vidi has the old one in its memory.
            made.replace(target)
        build_data["artifacts"].append(target.relative_to(self.root).as_posix())
        build_data["pure_python"] = False
        # It knows nothing of Python, so any version of it will do.
        system = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{system}"
