"""What every test may use: a cache of its own session, and folders of small pictures."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Decoded pixels go to a folder of this session, never to the user's cache."""
    before = os.environ.get("VIDI_CACHE")
    os.environ["VIDI_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["VIDI_CACHE"]
    else:
        os.environ["VIDI_CACHE"] = before


MakeFolder = Callable[..., Path]


@pytest.fixture
def picture_folder(tmp_path: Path) -> MakeFolder:
    """`picture_folder("photos", cats=12, dogs=12)`: JPEG files that are easy to tell apart."""

    def make(name: str = "photos", /, *, px: int = 16, **counts: int) -> Path:
        rng = np.random.default_rng(7)
        root = tmp_path / name
        for number, (label, count) in enumerate(counts.items()):
            folder = root / label
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 90, (px, px, 3), dtype=np.uint8)
                pixels[:, :, number % 3] += 120
                Image.fromarray(pixels).save(folder / f"{index:03}.jpg", quality=95)
        return root

    return make
