"""CIFAR-10 and CIFAR-100 in the binary format: records of a label and three planes of 32 x 32.

The Python version of the same data is pickled, and unpickling runs whatever code the file names, so
it is refused. https://www.cs.toronto.edu/~kriz/cifar.html describes both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vidi.config import DataConfig
from vidi.data import split as splits
from vidi.data.arrays import from_parts
from vidi.data.dataset import Dataset
from vidi.errors import DamagedError, DataError
from vidi.image import Pixels

PIXELS: Final = 3 * 32 * 32


def looks_like_cifar(folder: Path) -> bool:
    """The folder of the binary version, or of the pickled one, which `open_cifar` refuses."""
    return any(
        (folder / name).is_file()
        for name in ("data_batch_1.bin", "fine_label_names.txt", "data_batch_1")
    ) or ((folder / "meta").is_file() and (folder / "train").is_file())


def open_cifar(folder: Path, asked: DataConfig) -> Dataset:
    """The folder `cifar-10-batches-bin` or `cifar-100-binary`. CIFAR-100 by its 100 fine labels.

    Raises DataError, DamagedError.
    """
    if (folder / "data_batch_1.bin").is_file():
        files = {splits.TRAIN: sorted(folder.glob("data_batch_[0-9].bin"))}
        files[splits.TEST] = [folder / "test_batch.bin"]
        name, names, labels_each = "cifar10", folder / "batches.meta.txt", 1
    elif (folder / "train.bin").is_file():
        files = {splits.TRAIN: [folder / "train.bin"], splits.TEST: [folder / "test.bin"]}
        name, names, labels_each = "cifar100", folder / "fine_label_names.txt", 2
    else:
        raise DataError(
            f"{folder} holds the Python version of CIFAR, which is pickled: opening it would run "
            "code from the file",
            fix="download the binary version, cifar-10-binary.tar.gz or cifar-100-binary.tar.gz",
        )
    parts = {number: _read_all(paths, labels_each) for number, paths in files.items()}
    return from_parts(name, parts, _class_names(names), asked)


def _class_names(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedError(f"{path}, the class names, cannot be read: {error}") from error
    return tuple(line.strip() for line in lines if line.strip())


def _read_all(paths: list[Path], labels_each: int) -> tuple[Pixels, NDArray[np.int64]]:
    images, labels = zip(*(_read(path, labels_each) for path in paths), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def _read(path: Path, labels_each: int) -> tuple[Pixels, NDArray[np.int64]]:
    """images (N, 32, 32, 3), labels (N,): of two labels a record, the second is the fine one."""
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise DamagedError(f"{path} cannot be read: {error.strerror}") from error
    if not len(data) or len(data) % (labels_each + PIXELS):
        raise DamagedError(
            f"{path} has {len(data):,} bytes, which are no whole records of "
            f"{labels_each + PIXELS:,}",
            fix="download it again",
        )
    records = data.reshape(-1, labels_each + PIXELS)
    planes = records[:, labels_each:].reshape(-1, 3, 32, 32)
    labels = records[:, labels_each - 1].astype(np.int64)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels
