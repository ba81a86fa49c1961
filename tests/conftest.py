"""What every test may use: a cache of its own session, and folders of small pictures."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vidi


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


@dataclass(frozen=True)
class Shipped:
    """A small trained run and what was made of it; shared, so nothing may be changed in place."""

    photos: Path
    run: Path
    onnx: Path

    def files(self) -> list[Path]:
        """Every photo, in order."""
        return sorted(self.photos.rglob("*.jpg"))


@pytest.fixture(scope="session")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    """Three colours of 20 px, learnt by a small network, and its ONNX bundle."""
    root = tmp_path_factory.mktemp("shipped")
    rng = np.random.default_rng(3)
    for number, label in enumerate(("red", "green", "blue")):
        (root / "photos" / label).mkdir(parents=True)
        for index in range(30):
            pixels = rng.integers(0, 200, (20, 20, 3), dtype=np.uint8)
            pixels[:, :, number] += 25
            path = root / "photos" / label / f"{index:03}.jpg"
            Image.fromarray(pixels).save(path, quality=95)
    settings = {"train.epochs": 10, "model.name": "small_cnn", "machine.threads": 1}
    # Other views than the image are for the tests of --tta.
    settings["model.views"] = "plain"
    run = vidi.train(root / "photos", settings=settings, out=root / "run")
    return Shipped(root / "photos", run.path, vidi.export(run).path)
