"""Tables: rows by name of their columns, and every row that is not used has a line and a reason."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from vidi.config import DataConfig
from vidi.data import Dataset, named, open_dataset, open_store
from vidi.data import table as tables
from vidi.data.files import read_bytes
from vidi.errors import DataError
from vidi.facts import SPLITS
from vidi.image import PixelContract

Write = Callable[..., None]


@pytest.fixture
def folder(tmp_path: Path, write_image: Write) -> Path:
    for number in range(12):
        write_image(tmp_path / "t" / "img" / f"{number}.jpg", number)
    return tmp_path / "t"


def table(folder: Path, text: str | bytes, name: str = "rows.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def rows(labels: str = "cat dog") -> str:
    names = labels.split()
    return "".join(f"img/{n}.jpg,{names[n % len(names)]}\n" for n in range(12))


def reasons(dataset: Dataset) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for entry in (*dataset.quarantined, *dataset.ignored):
        found.setdefault(entry.reason, []).append(entry.message)
    return found


def test_a_table_is_a_data_set(folder: Path) -> None:
    dataset = open_dataset(table(folder, "image,label\n" + rows()))
    assert dataset.name == "rows"
    assert dataset.classes == ("cat", "dog")
    assert [sum(dataset.counts(split)) for split in SPLITS] == [9, 1, 2]
    assert dataset.name_of(3) == "img/3.jpg"
    assert dataset.read(3) == (folder / "img" / "3.jpg").read_bytes()
    assert len(dataset.fingerprint) == 32


@pytest.mark.parametrize(
    ("name", "head", "change"),
    [
        ("r.csv", "path,class", lambda line: line),
        ("r.csv", "FileName , Target", lambda line: line),
        ("r.tsv", "file\tcategory", lambda line: line.replace(",", "\t")),
        ("r.csv", "img;label_name", lambda line: line.replace(",", ";")),
        ("r.csv", "id,filepath,label", lambda line: "7," + line),
    ],
)
def test_columns_are_found_by_their_names(
    folder: Path, name: str, head: str, change: Callable[[str], str]
) -> None:
    lines = [change(line) for line in rows().splitlines()]
    dataset = open_dataset(table(folder, "\n".join([head, *lines]), name))
    assert (len(dataset), dataset.classes) == (12, ("cat", "dog"))


def test_json_lines_are_the_same_table(folder: Path) -> None:
    lines = [
        json.dumps({"file_name": f"img/{n}.jpg", "label": n % 2, "split": "train"})
        for n in range(12)
    ]
    dataset = open_dataset(table(folder, "\n".join(lines) + "\n\n", "rows.jsonl"))
    assert (len(dataset), dataset.classes) == (12, ("0", "1"))
    with pytest.raises(DataError, match=r"rows\.jsonl, line 13: not a JSON object"):
        open_dataset(table(folder, "\n".join([*lines, "[1]"]), "rows.jsonl"))


def test_splits_groups_and_weights_are_read(folder: Path) -> None:
    lines = [
        f"img/{n}.jpg,{n % 2},{('train', 'Val', 'testing')[n % 3]},{n // 4 or ''},{n / 2}"
        for n in range(12)
    ]
    dataset = open_dataset(table(folder, "\n".join(["image,label,split,group,weight", *lines])))
    assert [sum(dataset.counts(split)) for split in SPLITS] == [4, 4, 4]
    assert dataset.groups is not None
    assert dataset.groups.tolist() == [-1] * 4 + [0] * 4 + [1] * 4
    assert dataset.weights is not None
    assert dataset.weights.tolist() == [n / 2 for n in range(12)]


def test_groups_do_not_straddle_splits(folder: Path) -> None:
    lines = [f"img/{n}.jpg,{n % 2},p{n // 3}" for n in range(12)]
    dataset = open_dataset(
        table(folder, "\n".join(["image,label,patient", *lines])),
        DataConfig(validation_fraction=0.25, test_fraction=0.25),
    )
    assert "groups kept together" in dataset.split_rule
    sides = [set(dataset.split[3 * group : 3 * group + 3].tolist()) for group in range(4)]
    assert all(len(side) == 1 for side in sides)
    assert set().union(*sides) == {0, 1, 2}


def test_tables_named_after_the_splits_are_one_data_set(folder: Path) -> None:
    lines = rows().splitlines()
    table(folder, "\n".join(["image,label", *lines[:8]]), "train.csv")
    table(folder, "\n".join(["image,label", *lines[8:]]), "val.csv")
    dataset = open_dataset(folder)
    assert [sum(dataset.counts(split)) for split in SPLITS] == [8, 4, 0]


def test_what_is_wrong_with_a_row_is_said_with_its_line(folder: Path) -> None:
    """E13, F13"""
    lines = rows().splitlines()
    lines[0] = "img/gone.jpg,cat"
    lines[1] = "img/1.jpg,"
    lines[2] = ",cat"
    lines[3] = "img/3.jpg"
    lines += [lines[4], "img/5.jpg,cat", "", "=cmd|' /C calc'!A0,dog"]
    dataset = open_dataset(table(folder, "\n".join(["image,label", *lines])))
    assert {reason: sorted(found) for reason, found in reasons(dataset).items()} == {
        "MISSING": ["rows.csv, line 17", "rows.csv, line 2"],
        "NO_LABEL": ["rows.csv, line 3: no label", "rows.csv, line 5: no label"],
        "NO_PATH": ["rows.csv, line 4: no path"],
        "DUPLICATE_ROW": ["rows.csv, line 14, the same as rows.csv, line 6"],
        "CONFLICT": [
            "rows.csv, line 15: labelled cat and dog",
            "rows.csv, line 7: labelled cat and dog",
        ],
    }
    assert len(dataset) + sum(map(len, reasons(dataset).values())) == 15


def test_unknown_splits_classes_and_weights_are_said(folder: Path) -> None:
    lines = [f"img/{n}.jpg,{'ab'[n % 2]},train,1" for n in range(10)]
    lines += ["img/10.jpg,zebra,test,1", "img/11.jpg,a,tests,1"]
    lines[0] = "img/0.jpg,a,train,-1"
    lines[1] = "img/1.jpg,b,train,nan"
    dataset = open_dataset(table(folder, "\n".join(["image,label,split,weight", *lines])))
    assert {reason: len(found) for reason, found in reasons(dataset).items()} == {
        "UNKNOWN_CLASS": 1,
        "UNKNOWN_SPLIT": 1,
        "BAD_WEIGHT": 2,
    }
    assert "line 12: class 'zebra'" in reasons(dataset)["UNKNOWN_CLASS"][0]


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbfimage,label\r\n" + rows().replace("\n", "\r\n").encode(),
        ('"image","label"\n' + rows().replace("cat", '"cat"')).encode(),
        ("label,image\n" + "".join(f"{['cat', 'dog'][n % 2]},img/{n}.jpg\n" for n in range(12)))
        .encode(),
        b"image,label\n\n" + rows().replace("\n", "\n\n").encode(),
    ],
)  # fmt: skip
def test_marks_line_ends_quotes_and_blank_lines_make_no_difference(
    folder: Path, text: bytes
) -> None:
    dataset = open_dataset(table(folder, text))
    assert (len(dataset), dataset.classes, dataset.quarantined) == (12, ("cat", "dog"), ())


def test_odd_names_survive(folder: Path, write_image: Write) -> None:
    """D27"""
    names = ["a b.jpg", 'quote".jpg', "new\nline.jpg", "-rf.jpg", os.fsdecode(b"\xff.jpg")]
    text = b"image,label\n"
    for number, name in enumerate(names):
        write_image(folder / name, 100 + number)
        quoted = name.replace('"', '""')
        text += b'"' + os.fsencode(quoted) + b'",' + b"xy"[number % 2 : number % 2 + 1] + b"\n"
    dataset = open_dataset(table(folder, text))
    assert dataset.quarantined == ()
    assert Counter(dataset.name_of(i) for i in range(len(dataset))) == Counter(names)


def test_absolute_paths_are_used(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    lines = [f"{folder}/img/{n}.jpg,{n % 2}" for n in range(12)]
    dataset = open_dataset(
        table(tmp_path / "elsewhere", "\n".join(["image,label", *lines]), "x.csv")
    )
    assert len(dataset) == 12


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no column for the image; it has none"),
        ("a,b\n1,2\n", "no column for the image; it has a, b"),
        ("image,b\n1,2\n", "no column for the label"),
        ("image,label\n", "no rows in rows"),
        ("image,label\nimg/0.jpg,a\n", "only one class, 'a'"),
        ("image,label\nx,a\ny,b\n", "2 rows cannot be used: x: rows.csv, line 2"),
        ("image,label\n" + "x" * 200_000 + ",a\n", "line 2: field larger"),
    ],
)
def test_a_table_of_nothing_is_refused(folder: Path, text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        open_dataset(table(folder, text))


def big_table(path: Path, count: int) -> None:
    with path.open("w") as file:
        file.write("image,label\n")
        for start in range(0, count, 100_000):
            file.write(
                "".join(
                    f"archive/2024/shard-{n // 10_000:05d}/image-{n:010d}.jpg,class-{n % 1000}\n"
                    for n in range(start, min(start + 100_000, count))
                )
            )


def check_big(path: Path, count: int, limit_s: float, limit_bytes: int) -> None:
    big_table(path, count)
    process = psutil.Process()
    before = process.memory_info().rss
    began_at = time.process_time()
    dataset = open_dataset(path)
    elapsed_s = time.process_time() - began_at
    grown = process.memory_info().rss - before
    assert len(dataset) == count
    # A fifth is for the test, and 10 of each class to choose by.
    assert len(dataset.indices("train")) == round(0.8 * count) - 10 * len(dataset.classes)
    assert dataset.name_of(count - 1).endswith(f"{count - 1:010d}.jpg")
    assert elapsed_s < limit_s, f"{elapsed_s:.1f} s"
    assert grown < limit_bytes, f"{grown / 1e6:.0f} MB"


def test_half_a_million_paths_open_in_a_moment(tmp_path: Path) -> None:
    check_big(tmp_path / "big.csv", 500_000, limit_s=5.0, limit_bytes=300 << 20)


@pytest.mark.slow
def test_ten_million_paths_open_in_twenty_seconds(tmp_path: Path) -> None:
    check_big(tmp_path / "big.csv", 10_000_000, limit_s=40.0, limit_bytes=1500 << 20)


def test_of_very_many_rows_no_file_is_read_before_it_is_needed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[bytes] = []

    def watched(path: bytes) -> bytes:
        read.append(path)
        return read_bytes(path)

    monkeypatch.setattr(named, "read_bytes", watched)
    path = table(folder, "image,label\n" + rows())
    few = open_dataset(path)
    assert few.fingerprint
    assert len(read) == len(few)
    read.clear()

    monkeypatch.setattr(tables, "CHECKED_ROWS", 5)
    many = open_dataset(path, DataConfig(cache_dir=str(folder.parent / "another cache")))
    assert any("known by their names and labels" in note for note in many.notes)
    assert many.fingerprint != few.fingerprint
    contract = PixelContract(
        image_px=8,
        store_px=8,
        resize="squash",
        interpolation="bilinear",
        channels=3,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
    with contextlib.closing(open_store(many, contract, place="stream")) as store:
        assert not read
        store.take(np.array([3, 1]))
    assert len(read) == 2
    # A file that is another one later is taken as it is.
    before = many.fingerprint
    (folder / many.name_of(0)).write_bytes((folder / many.name_of(1)).read_bytes())
    assert open_dataset(path).fingerprint == before
    table(folder, "image,label\n" + rows("dog cat"))
    assert open_dataset(path).fingerprint != before


def test_rows_that_vanish_later_are_missing(folder: Path) -> None:
    dataset = open_dataset(table(folder, "image,label\n" + rows()))
    assert np.all(dataset.usable)
