"""Parquet tables: paths, bytes, and the way in which Hugging Face keeps images."""

from __future__ import annotations

import io
import json
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vidi.data import open_dataset
from vidi.errors import DamagedError, DataError, UnreadableImage
from vidi.facts import SPLITS

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def jpeg(seed: int) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((24, 24)).save(buffer, "JPEG")
    return buffer.getvalue()


def hugging_face(path: Path, first: int, count: int, *, names: bool = True) -> None:
    """The layout of `datasets`: a struct of bytes and path, labels as numbers, names in the
    schema."""
    image = pa.array(
        [{"bytes": jpeg(n), "path": f"{n}.jpg"} for n in range(first, first + count)],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    label = pa.array([n % 3 for n in range(first, first + count)], pa.int64())
    table = pa.table({"image": image, "label": label})
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    if names:
        features["label"] = {"names": ["rose", "lily", "tulip"], "_type": "ClassLabel"}
    described = json.dumps({"info": {"features": features}})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        table.replace_schema_metadata({"huggingface": described}), path, row_group_size=7
    )


@pytest.mark.parametrize(
    "names",
    [
        ("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet",
         "data/test-00000-of-00001.parquet"),
        ("train/0000.parquet", "train/0001.parquet", "test/0000.parquet"),
        ("train_a.parquet", "train_b.parquet", "test.parquet"),
    ],
)  # fmt: skip
def test_files_of_hugging_face_are_read(tmp_path: Path, names: tuple[str, ...]) -> None:
    root = tmp_path / "flowers"
    for number, name in enumerate(names):
        hugging_face(root / name, 20 * number, 20)
    dataset = open_dataset(root)
    assert dataset.name == "flowers"
    assert dataset.classes == ("lily", "rose", "tulip")
    assert dataset.num_expected("test") == 20
    assert dataset.num_expected("train") + dataset.num_expected("validation") == 40
    by_name = {dataset.name_of(row): row for row in range(60)}
    for number, name in enumerate(names):
        for line in (1, 7, 8, 20):
            row = by_name[f"{name}/{line:08d}"]
            image = 20 * number + line - 1
            assert dataset.read(row) == jpeg(image)
            assert dataset.classes[dataset.labels[row]] == ("rose", "lily", "tulip")[image % 3]


def test_numbers_without_names_are_classes_in_natural_order(tmp_path: Path) -> None:
    hugging_face(tmp_path / "a.parquet", 0, 30, names=False)
    assert open_dataset(tmp_path / "a.parquet").classes == ("0", "1", "2")


@pytest.mark.parametrize(
    ("cells", "classes"),
    [
        ([b"cat", b"dog"], ("cat", "dog")),
        ([b"\xff\x01", b"dog"], ("dog", "ff01")),
        ([date(2026, 3, 1), date(2026, 11, 22)], ("2026-03-01", "2026-11-22")),
        ([Decimal("1.50"), Decimal("2.00")], ("1.50", "2.00")),
    ],
)
def test_classes_of_any_kind_of_cell(
    tmp_path: Path, cells: list[object], classes: tuple[str, ...]
) -> None:
    table = pa.table({"image": [jpeg(n) for n in range(20)], "label": cells * 10})
    pq.write_table(table, tmp_path / "a.parquet")
    assert open_dataset(tmp_path / "a.parquet").classes == classes


def test_a_column_of_plain_bytes_with_splits_groups_and_weights(tmp_path: Path) -> None:
    table = pa.table(
        {
            "img": [jpeg(n) for n in range(40)],
            "target": [f"class {n % 2}" for n in range(40)],
            "split": ["train"] * 30 + ["test"] * 10,
            "patient": [f"p{n // 5}" for n in range(40)],
            "weight": [1.0 + n % 2 for n in range(40)],
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    dataset = open_dataset(tmp_path / "t.parquet")
    assert [SPLITS[number] for number in np.unique(dataset.split)] == list(SPLITS)
    assert dataset.groups is not None
    assert dataset.weights is not None
    assert set(dataset.weights.tolist()) == {1.0, 2.0}
    assert dataset.read(3) == jpeg(3)
    for patient in range(6):
        assert len(set(dataset.split[5 * patient : 5 * patient + 5])) == 1


def test_a_column_of_paths_is_a_table_like_others(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number))
    paths = [f"{number}.jpg" for number in range(20)] + ["gone.jpg"]
    labels = ["a", "b"] * 10 + ["a"]
    pq.write_table(pa.table({"path": paths, "label": labels}), tmp_path / "t.parquet")
    dataset = open_dataset(tmp_path / "t.parquet")
    assert dataset.read(5) == jpeg(5)
    assert [(each.path, each.reason) for each in dataset.quarantined] == [("gone.jpg", "MISSING")]


def test_cells_that_are_empty_are_said(tmp_path: Path) -> None:
    images = [jpeg(n) for n in range(12)]
    table = pa.table({"image": [*images[:11], None], "label": [*["a", "b"] * 5, None, "b"]})
    pq.write_table(table, tmp_path / "t.parquet")
    dataset = open_dataset(tmp_path / "t.parquet")
    assert [each.reason for each in dataset.quarantined] == ["NO_LABEL"]
    with pytest.raises(UnreadableImage) as caught:
        dataset.read(10)
    assert caught.value.reason == "EMPTY"


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"image": [1.5, 2.5], "label": ["a", "b"]}, "neither paths nor bytes"),
        ({"image": ["a", "b"]}, "no column for the label"),
        ({"label": ["a", "b"]}, "no column for the image"),
    ],
)
def test_columns_that_cannot_be_are_named(
    tmp_path: Path, table: dict[str, list[Any]], said: str
) -> None:
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=said):
        open_dataset(tmp_path / "t.parquet")


@pytest.mark.parametrize("cut", [0, 4, 100, -8, -1])
def test_a_file_that_ends_early_is_said(tmp_path: Path, cut: int) -> None:
    hugging_face(tmp_path / "a.parquet", 0, 20)
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[:cut])
    with pytest.raises(DamagedError):
        open_dataset(tmp_path / "a.parquet")


def test_a_damaged_row_group_is_a_damaged_image(tmp_path: Path) -> None:
    hugging_face(tmp_path / "a.parquet", 0, 30)
    dataset = open_dataset(tmp_path / "a.parquet")
    (tmp_path / "a.parquet").write_bytes(b"gone")
    with pytest.raises(UnreadableImage):
        dataset.read(0)


def spoilt(path: Path, table: Any) -> None:
    """The table as a file, in which each "zebra" begins with a byte that is no text."""
    pq.write_table(table, path, compression="none", use_dictionary=False)
    whole = path.read_bytes()
    assert b"zebra" in whole
    path.write_bytes(whole.replace(b"zebra", b"\x80ebra"))


def test_text_that_is_not_text_is_said(tmp_path: Path) -> None:
    labels = ["zebra", "horse", "zebra", "horse"]
    table = pa.table({"image": [f"{n}.jpg" for n in range(4)], "label": labels})
    spoilt(tmp_path / "a.parquet", table)
    with pytest.raises(DamagedError, match=r"a\.parquet, row group 0, cannot be read"):
        open_dataset(tmp_path / "a.parquet")


def test_a_name_that_is_not_text_beside_an_image_is_a_damaged_image(tmp_path: Path) -> None:
    cells = [{"bytes": jpeg(n), "path": "zebra" if n == 1 else "horse"} for n in range(20)]
    spoilt(tmp_path / "a.parquet", pa.table({"image": cells, "label": [n % 2 for n in range(20)]}))
    dataset = open_dataset(tmp_path / "a.parquet")
    assert dataset.read(0) == cells[0]["bytes"]
    with pytest.raises(UnreadableImage, match="cannot be read"):
        dataset.read(1)
