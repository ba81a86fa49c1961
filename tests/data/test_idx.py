"""IDX files and the embedded digits."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from vidi.config import DataConfig
from vidi.data import open_dataset
from vidi.data.idx import read_idx
from vidi.errors import DamagedError, DataError
from vidi.facts import SPLITS
from vidi.image import PixelContract, prepare, prepare_array


def idx(values: NDArray[np.uint8]) -> bytes:
    head = b"\0\0\x08" + bytes([values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return head + values.tobytes()


def write_set(
    folder: Path, train: int = 40, test: int = 10, *, prefix: str = "", pack: bool = False
) -> Path:
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for name, count in (("train", train), ("t10k", test)):
        images = rng.integers(0, 256, (count, 6, 5), dtype=np.uint8)
        labels = (np.arange(count) % 4).astype(np.uint8)
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            path = folder / f"{prefix}{name}-{kind}-ubyte{'.gz' if pack else ''}"
            path.write_bytes(gzip.compress(idx(values)) if pack else idx(values))
    return folder


@pytest.mark.parametrize("pack", [False, True])
def test_a_folder_of_idx_files_is_a_data_set(tmp_path: Path, pack: bool) -> None:
    dataset = open_dataset(write_set(tmp_path / "mnist", pack=pack))
    assert dataset.name == "mnist"
    assert dataset.classes == ("0", "1", "2", "3")
    assert [dataset.counts(split) for split in SPLITS] == [(9,) * 4, (1,) * 4, (3, 3, 2, 2)]
    facts = dataset.facts()
    assert (facts.height_px, facts.width_px, facts.grey) == ((6, 6, 6), (5, 5, 5), True)
    assert dataset.name_of(0) == "train/000000"
    assert dataset.name_of(40) == "test/000000"


def test_packed_and_plain_files_are_the_same_data(tmp_path: Path) -> None:
    plain = open_dataset(write_set(tmp_path / "a"))
    packed = open_dataset(write_set(tmp_path / "b", pack=True))
    assert plain.fingerprint == packed.fingerprint


def test_a_row_reads_as_the_bytes_of_a_file_with_the_same_pixels(tmp_path: Path) -> None:
    dataset = open_dataset(write_set(tmp_path / "a"))
    contract = PixelContract(
        image_px=5,
        store_px=5,
        channels=1,
        resize="crop",
        interpolation="nearest",
        mean=(0.5,),
        std=(0.5,),
    )
    pixels = dataset.source.pixels(7)
    assert pixels is not None
    assert (prepare(dataset.read(7), contract) == prepare_array(pixels, contract)).all()


def test_classes_txt_names_the_labels(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "a")
    (folder / "classes.txt").write_text("shirt\nshoe\nbag\ncoat\n")
    assert open_dataset(folder).classes == ("shirt", "shoe", "bag", "coat")
    (folder / "classes.txt").write_text("shirt\nshoe\nshoe\ncoat\n")
    with pytest.raises(DataError, match="names 3 classes"):
        open_dataset(folder)


def test_several_sets_in_a_folder_need_a_choice(tmp_path: Path) -> None:
    write_set(tmp_path / "a", prefix="emnist-letters-")
    folder = write_set(tmp_path / "a", prefix="emnist-digits-", train=80)
    with pytest.raises(DataError, match="several data sets"):
        open_dataset(folder)
    dataset = open_dataset(folder / "emnist-digits-train-images-idx3-ubyte")
    assert len(dataset) == 90
    raw = read_idx(folder / "emnist-digits-train-images-idx3-ubyte")
    pixels = dataset.source.pixels(0)
    assert pixels is not None
    assert (pixels[:, :, 0] == raw[0].T).all()


def test_labels_of_another_length_are_refused(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "a")
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(39, np.uint8)))
    with pytest.raises(DataError, match="do not belong together"):
        open_dataset(folder)
    (folder / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="no file of labels"):
        open_dataset(folder)


def test_one_class_is_refused(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "a")
    for name, count in (("train", 40), ("t10k", 10)):
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(idx(np.zeros(count, np.uint8)))
    with pytest.raises(DataError, match="only one class"):
        open_dataset(folder)


@pytest.mark.parametrize("pack", [False, True])
def test_a_file_cut_anywhere_or_too_long_is_damaged(tmp_path: Path, pack: bool) -> None:
    whole = idx(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
    if pack:
        whole = gzip.compress(whole)
    path = tmp_path / "x-idx3-ubyte"
    path.write_bytes(whole)
    assert read_idx(path).shape == (2, 3, 4)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedError, match="download it again"):
            read_idx(path)
    path.write_bytes(whole + whole)
    with pytest.raises(DamagedError, match="holds more"):
        read_idx(path)


def test_an_announced_petabyte_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x-idx3-ubyte"
    path.write_bytes(b"\0\0\x08\x03" + b"\xff" * 12)
    with pytest.raises(DamagedError, match="announces"):
        read_idx(path)


def test_digits_come_with_the_package() -> None:
    dataset = open_dataset("digits")
    assert len(dataset) == 1797
    assert dataset.classes == tuple("0123456789")
    assert [dataset.num_expected(split) for split in SPLITS] == [1258, 180, 359]
    pixels = dataset.source.pixels(0)
    assert pixels is not None
    assert pixels.shape == (8, 8, 1)
    assert max(int(p.max()) for p in map(dataset.source.pixels, range(50)) if p is not None) == 255
    assert dataset.fingerprint == open_dataset("digits").fingerprint
    assert dataset.fingerprint != open_dataset("digits", DataConfig(split_seed=1)).fingerprint


def test_a_folder_called_digits_is_that_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_set(tmp_path / "digits")
    monkeypatch.chdir(tmp_path)
    assert len(open_dataset("digits")) == 50
