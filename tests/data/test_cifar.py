"""CIFAR's binary files; the pickled ones are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vidi.data import open_dataset
from vidi.errors import DamagedError, DataError
from vidi.facts import SPLITS

NAMES = ["plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def records(count: int, labels_each: int, seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (count, labels_each + 3072), dtype=np.uint8)
    data[:, 0] = 99
    data[:, labels_each - 1] = np.arange(count) % 10
    return data.tobytes()


@pytest.fixture
def cifar10(tmp_path: Path) -> Path:
    for number in range(1, 6):
        (tmp_path / f"data_batch_{number}.bin").write_bytes(records(20, 1, number))
    (tmp_path / "test_batch.bin").write_bytes(records(30, 1, 9))
    (tmp_path / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")
    return tmp_path


def test_cifar10_is_read(cifar10: Path) -> None:
    dataset = open_dataset(cifar10)
    assert dataset.name == "cifar10"
    assert dataset.classes == tuple(NAMES)
    assert [dataset.num_expected(split) for split in SPLITS] == [90, 10, 30]
    raw = np.frombuffer((cifar10 / "data_batch_1.bin").read_bytes(), np.uint8).reshape(20, -1)
    pixels = dataset.source.pixels(3)
    assert pixels is not None
    assert (pixels.transpose(2, 0, 1).ravel() == raw[3, 1:]).all()
    assert dataset.labels[3] == raw[3, 0]


def test_cifar100_has_its_fine_labels(tmp_path: Path) -> None:
    (tmp_path / "train.bin").write_bytes(records(40, 2, 0))
    (tmp_path / "test.bin").write_bytes(records(20, 2, 1))
    (tmp_path / "fine_label_names.txt").write_text("\n".join(NAMES))
    dataset = open_dataset(tmp_path)
    assert dataset.name == "cifar100"
    assert dataset.labels[:10].tolist() == list(range(10))


def test_a_cut_file_is_damaged(cifar10: Path) -> None:
    path = cifar10 / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedError, match=r"data_batch_3\.bin .* no whole records"):
        open_dataset(cifar10)


def test_a_missing_file_is_said(cifar10: Path) -> None:
    (cifar10 / "test_batch.bin").unlink()
    with pytest.raises(DamagedError, match="test_batch"):
        open_dataset(cifar10)


@pytest.mark.parametrize("names", [["data_batch_1", "batches.meta"], ["meta", "train", "test"]])
def test_the_pickled_version_is_refused_with_a_hint(tmp_path: Path, names: list[str]) -> None:
    """P17, J1: not even opened."""
    for name in names:
        (tmp_path / name).write_bytes(b"\x80\x02cos\nsystem\n")
    with pytest.raises(DataError, match="binary version"):
        open_dataset(tmp_path)
