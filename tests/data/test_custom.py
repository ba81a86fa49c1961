"""`module:object`: images that only the user's own code can read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vidi.data import open_dataset, open_store
from vidi.errors import DataError, UnreadableImage, UsageError
from vidi.facts import SPLITS
from vidi.image import PixelContract, encode_png

SOURCE = '''
import numpy as np
from vidi.image import encode_png

class Stripes:
    """24 images of two kinds of stripes."""
    classes = ("across", "down")
    labels = [n % 2 for n in range(24)]

    def __len__(self):
        return 24

    def read(self, index):
        pixels = np.zeros((12, 12, 3), np.uint8)
        pixels[::2] = 10 * index
        return encode_png(pixels if index % 2 else pixels.transpose(1, 0, 2))

made = Stripes()

def build():
    return Stripes()
'''


@pytest.mark.parametrize("name", ["Stripes", "made", "build"])
def test_a_class_an_object_or_a_function(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    module = f"stripes_{name.lower()}"
    (tmp_path / f"{module}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    dataset = open_dataset(f"{module}:{name}")
    assert dataset.name == name
    assert dataset.classes == ("across", "down")
    assert len(dataset) == 24
    assert dataset.read(3).startswith(b"\x89PNG")


class Own:
    """Whatever a test needs."""

    def __init__(self, count: int = 20, **parts: Any) -> None:
        self.labels: Any = ["a", "b"] * (count // 2)
        self.count = count
        self.__dict__.update(parts)

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> Any:
        return np.full((8, 8), 10 * index, np.uint8)


def test_pixels_are_taken_as_they_are() -> None:
    dataset = open_dataset(Own())
    pixels = dataset.source.pixels(2)
    assert pixels is not None
    assert pixels.shape == (8, 8, 1)
    assert (pixels == 20).all()
    contract = PixelContract(
        image_px=8, store_px=8, channels=1, resize="squash", interpolation="bilinear",
        mean=(0.5,), std=(0.5,),
    )  # fmt: skip
    store = open_store(dataset, contract)
    assert (store.images[3] == 30).all()


def test_splits_groups_weights_and_names_are_the_users() -> None:
    own = Own(
        split=["train"] * 16 + ["test"] * 4,
        groups=[n // 4 for n in range(16)] + [None] * 4,
        weights=[1.0, 3.0] * 10,
        names=[f"n{n}" for n in range(20)],
    )
    dataset = open_dataset(own)
    assert dataset.num_expected("test") == 4
    assert dataset.name_of(3) == "n3"
    for group in range(4):
        assert len({SPLITS[n] for n in dataset.split[4 * group : 4 * group + 4]}) == 1
    assert dataset.weights is not None
    assert dataset.weights[1] == 3.0


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"labels": ["a"]}, "20 images and 1 labels"),
        ({"labels": ["a"] * 20}, "only one class"),
        ({"labels": [0, 5] * 10, "classes": ("x", "y")}, "label of image 1 is 5"),
        ({"classes": ("x", "x")}, "same name"),
        ({"split": ["hold out"] * 20}, "is no split"),
        ({"weights": [-1.0] * 20}, "not below zero"),
        ({"names": ["n"] * 20}, "more than one image"),
        ({"read": lambda _: np.zeros((8, 8, 3), np.float32)}, "type float32"),
    ],
)
def test_what_does_not_fit_is_said(parts: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        open_dataset(Own(**parts))


def test_an_object_without_the_parts_is_refused() -> None:
    with pytest.raises(UsageError, match="without read, labels"):
        open_dataset([1, 2, 3])  # type: ignore[arg-type]


def test_an_error_of_the_users_code_is_said_with_its_image() -> None:
    def read(index: int) -> Any:
        if index == 7:
            raise RuntimeError("no such record")
        return encode_png(np.full((8, 8, 1), index, np.uint8))

    dataset = open_dataset(Own(read=read))
    with pytest.raises(UnreadableImage, match=r"read\(7\) raised RuntimeError: no such record"):
        dataset.read(7)
    assert not dataset.source.digests()[7].any()


def test_a_name_that_cannot_be_imported_is_said() -> None:
    with pytest.raises(UsageError):
        open_dataset("no_such_module_here:thing")
