"""Small data sets on disk, and a cache that belongs to the test."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test touches the cache of whoever runs it."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("VIDI_CACHE", str(folder))
    return folder


@pytest.fixture
def no_more_threads() -> Callable[[], None]:
    """Asserts that there are as many threads as when the test began; those that end by themselves
    a moment after whoever they worked for are waited for."""
    before = threading.active_count()

    def check() -> None:
        ends_at = time.monotonic() + 30
        while threading.active_count() > before and time.monotonic() < ends_at:
            time.sleep(0.01)
        assert threading.active_count() <= before

    return check


def encode(colour: tuple[int, int, int], seed: int, kind: str, side: int = 20) -> bytes:
    rng = np.random.default_rng(seed)
    pixels = np.clip(np.array(colour) + rng.integers(-20, 20, (side, side, 3)), 0, 255)
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, kind, quality=90)
    return buffer.getvalue()


@pytest.fixture
def write_image() -> Callable[..., None]:
    """write_image(path, seed, colour, kind): a noisy square, another one for each seed."""

    def write(
        path: Path,
        seed: int = 0,
        colour: tuple[int, int, int] = (200, 40, 40),
        kind: str = "JPEG",
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(colour, seed, kind))

    return write


@pytest.fixture
def make_folder(write_image: Callable[..., None]) -> Callable[[Path, dict[str, int]], Path]:
    """make_folder(root, {"train/cat": 3}): that many images in each folder."""

    def make(root: Path, folders: dict[str, int]) -> Path:
        root.mkdir(parents=True, exist_ok=True)
        for number, (folder, count) in enumerate(folders.items()):
            (root / folder).mkdir(parents=True, exist_ok=True)
            for image in range(count):
                colour = (40 + 60 * (number % 4), 200 - 60 * (number % 3), 90)
                write_image(root / folder / f"{image:03d}.jpg", 1000 * number + image, colour)
        return root

    return make
