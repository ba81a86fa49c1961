"""What exporting needs besides torch, and which versions did it."""

from __future__ import annotations

import importlib.metadata
import importlib.util

from vidi.bundle import Target
from vidi.errors import MissingExtra


def require(*packages: str) -> None:
    """Raises MissingExtra with the command that installs what is missing."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtra(
            f"exporting to ONNX needs {', '.join(missing)}", fix="pip install 'vidi[export]'"
        )


def versions(target: Target) -> dict[str, str]:
    """Of the packages that made a bundle, by name."""
    names = ["torch", "numpy", "pillow", "simplejpeg"]
    names += [] if target == "torch" else ["onnx", "onnxruntime", "onnxscript"]
    return {name: importlib.metadata.version(name) for name in names}
