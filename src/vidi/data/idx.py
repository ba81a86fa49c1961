"""MNIST's IDX files, gzip or not, and the digits that come with scikit-learn.

Format: two zero bytes, a type code (8: unsigned byte), the number of dimensions, one big-endian
32-bit length a dimension, then the values (http://yann.lecun.com/exdb/mnist/).
"""

from __future__ import annotations

import gzip
import math
import re
import struct
import zlib
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vidi.config import DataConfig
from vidi.data import split as splits
from vidi.data.arrays import from_parts
from vidi.data.dataset import Dataset
from vidi.errors import DamagedError, DataError

# 60,000 images of 224 x 224 in colour are 9 GB; nothing that calls itself IDX is larger.
MAX_BYTES: Final = 16 << 30

_IMAGES: Final = re.compile(r"(.*?)(train|t10k|test|validation|val)(.*)images(.*)idx3(.*)", re.I)
_SPLITS: Final = {
    "train": splits.TRAIN,
    "t10k": splits.TEST,
    "test": splits.TEST,
    "validation": splits.VALIDATION,
    "val": splits.VALIDATION,
}


def image_files(folder: Path) -> dict[str, dict[int, Path]]:
    """{set name: {split: file of images}}; several EMNIST sets may lie in one folder."""
    found: dict[str, dict[int, Path]] = {}
    for path in sorted(folder.iterdir()):
        match = _IMAGES.fullmatch(path.name)
        if match and path.is_file():
            part = found.setdefault(match[1].strip("-_"), {})
            part.setdefault(_SPLITS[match[2].lower()], path)
    return {name: part for name, part in found.items() if splits.TRAIN in part}


def open_idx(path: Path, asked: DataConfig) -> Dataset:
    """A folder of IDX files, or one file of images of the set that is meant."""
    folder = path if path.is_dir() else path.parent
    sets = image_files(folder)
    if path.is_file():
        sets = {name: part for name, part in sets.items() if path in part.values()}
    if len(sets) != 1:
        names = ", ".join(str(part[splits.TRAIN].name) for part in sets.values())
        raise DataError(
            f"several data sets in {folder}: {names}" if sets else f"no IDX training set in {path}",
            fix="give the file of training images of the one that you mean"
            if sets
            else "expected train-images-idx3-ubyte and train-labels-idx1-ubyte, .gz or not",
        )
    ((name, files),) = sets.items()
    parts = {}
    for number, images_path in sorted(files.items()):
        images = read_idx(images_path)
        labels_path = _labels_beside(images_path)
        labels = read_idx(labels_path)
        if images.ndim not in (3, 4) or labels.ndim != 1 or len(images) != len(labels):
            raise DataError(
                f"{images_path.name} has the shape {images.shape} and {labels_path.name} "
                f"{labels.shape}: they do not belong together"
            )
        if images.ndim == 3:
            images = images[:, :, :, None]
        if name.lower().startswith("emnist"):
            # EMNIST's files hold every letter mirrored along its diagonal.
            images = np.ascontiguousarray(images.swapaxes(1, 2))
        parts[number] = images, labels.astype(np.int64)
    highest = max(int(labels.max(initial=0)) for _, labels in parts.values())
    classes = _class_names(folder, highest + 1)
    return from_parts(name or folder.resolve().name, parts, classes, asked)


def _class_names(folder: Path, count: int) -> tuple[str, ...]:
    """From `classes.txt`, one name a line, where it lies beside the files; else the numbers."""
    try:
        names = (folder / "classes.txt").read_text(encoding="utf-8").split("\n")
    except OSError:
        return tuple(map(str, range(count)))
    names = [name.strip() for name in names if name.strip()]
    if len(names) < count or len(set(names)) != len(names):
        raise DataError(
            f"{folder / 'classes.txt'} names {len(set(names))} classes; the labels go up to "
            f"{count - 1}",
            fix="write one name a line, in the order of the labels",
        )
    return tuple(names)


def _labels_beside(images: Path) -> Path:
    name = re.sub("images", "labels", images.name, flags=re.I).replace("idx3", "idx1")
    stem = name.removesuffix(".gz")
    for candidate in (
        images.with_name(name),
        images.with_name(stem),
        images.with_name(f"{stem}.gz"),
    ):
        if candidate.is_file():
            return candidate
    raise DataError(f"{images.name} has no file of labels beside it", fix=f"expected {name}")


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array in one file.

    Raises DamagedError unless it holds exactly the bytes that it announces.
    """
    try:
        # By content: a browser may have unpacked the file and kept its name.
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as file:
            head = file.read(4)
            if len(head) < 4 or head[:2] != b"\0\0" or head[2] != 8 or not 1 <= head[3] <= 4:
                raise DamagedError(
                    f"{path} is no IDX file of unsigned bytes", fix="download it again"
                )
            shape = struct.unpack(f">{head[3]}I", file.read(4 * head[3]))
            size = math.prod(shape)
            if size > MAX_BYTES:
                raise DamagedError(f"{path} announces {size:,} bytes", fix="download it again")
            values = file.read(size)
            if len(values) != size or file.read(1):
                raise DamagedError(
                    f"{path} announces {size:,} bytes and holds "
                    f"{'more' if len(values) == size else f'{len(values):,}'}",
                    fix="download it again",
                )
    except (EOFError, gzip.BadGzipFile, zlib.error, struct.error) as error:
        raise DamagedError(f"{path} is damaged: {error}", fix="download it again") from error
    return np.frombuffer(values, dtype=np.uint8).reshape(shape)


def open_digits(asked: DataConfig) -> Dataset:
    """1,797 handwritten digits of 8 x 8 px from scikit-learn; its 17 grey levels become 0..255."""
    # Half a second or more, which nobody else should wait for.
    from sklearn.datasets import load_digits  # noqa: PLC0415 (lazy)

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, :, :, None]
    parts = {splits.TRAIN: (images, digits.target.astype(np.int64))}
    return from_parts("digits", parts, tuple("0123456789"), asked, split_names=False)
