"""An audit of any mess of a folder tells its owner something true."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vidi.config import DataConfig
from vidi.data import (
    Audit,
    Finding,
    audit,
    audit_store,
    open_dataset,
    open_store,
    pictures,
)
from vidi.data.duplicates import exact_pairs, groups_of, near_pairs
from vidi.facts import SPLITS
from vidi.image import PixelContract

Picture = Callable[[int], Image.Image]


def picture(seed: int, side: int = 120) -> Image.Image:
    """A made-up photo: large shapes of several colours, no two seeds alike."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def save(path: Path, image: Image.Image, quality: int = 90) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=quality)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes, three splits, 60 pictures, nothing wrong."""
    seed = 0
    for split, count in (("train", 20), ("val", 5), ("test", 5)):
        for name in ("cat", "dog"):
            for number in range(count):
                save(tmp_path / "d" / split / name / f"{number}.jpg", picture(seed))
                seed += 1
    return tmp_path / "d"


def audited(path: Path, asked: DataConfig | None = None) -> Audit:
    return audit(open_dataset(path, asked))[1]


def findings(report: Audit) -> dict[str, Finding]:
    return {finding.code: finding for finding in report.findings}


def test_a_clean_folder_has_nothing_to_say(root: Path) -> None:
    report = audited(root)
    assert report.findings == ()
    assert report.severity is None
    assert (report.num_found, report.num_used) == (60, 60)
    assert report.formats == {"jpeg": 60}
    assert report.height_px == (120, 120, 120)
    assert report.leaked == {"validation": (), "test": ()}
    assert json.loads(report.model_dump_json())["name"] == "d"


def test_exact_copies_are_told_by_where_they_are(root: Path) -> None:
    """E11, E12"""
    shutil.copy(root / "train" / "cat" / "0.jpg", root / "train" / "cat" / "copy.jpg")
    shutil.copy(root / "train" / "cat" / "1.jpg", root / "train" / "dog" / "same.jpg")
    shutil.copy(root / "train" / "cat" / "2.jpg", root / "test" / "cat" / "known.jpg")
    dataset = open_dataset(root)
    _, report = audit(dataset)
    found = findings(report)
    assert report.severity == "error"
    assert found["DUPLICATE"].count == 4
    assert found["CONFLICT"].groups == (("train/cat/1.jpg", "train/dog/same.jpg"),)
    assert found["LEAK"].paths == ("test/cat/known.jpg",)
    assert found["LEAK"].groups == (("test/cat/known.jpg", "train/cat/2.jpg"),)
    assert [dataset.name_of(i) for i in report.leaked["test"]] == ["test/cat/known.jpg"]
    assert "NEAR_DUPLICATE" not in found


@pytest.mark.parametrize("change", ["quality", "size", "format", "crop of a pixel", "brighter"])
def test_the_same_picture_saved_again_is_found(root: Path, change: str) -> None:
    """E12: in another split, as another file."""
    with Image.open(root / "train" / "cat" / "3.jpg") as opened:
        image = opened.copy()
        if change == "size":
            image = image.resize((77, 77))
        elif change == "crop of a pixel":
            image = image.crop((1, 1, 120, 120))
        elif change == "brighter":
            image = Image.fromarray(
                np.clip(np.asarray(image).astype(int) + 10, 0, 255).astype("u1")
            )
        name = "again.png" if change == "format" else "again.jpg"
        save(root / "test" / "dog" / name, image, quality=60 if change == "quality" else 90)
    found = findings(audited(root))
    assert found["LEAK"].paths == (f"test/dog/{name}",)
    assert found["NEAR_CONFLICT"].groups == ((f"test/dog/{name}", "train/cat/3.jpg"),)


def test_what_cannot_be_read_is_listed_by_reason(root: Path) -> None:
    whole = (root / "train" / "cat" / "0.jpg").read_bytes()
    (root / "train" / "cat" / "0.jpg").write_bytes(whole[:-40])
    (root / "train" / "cat" / "1.jpg").write_bytes(b"")
    (root / "test" / "dog" / "1.jpg").write_bytes(b"<html>")
    (root / "train" / "dog" / "x.heic").write_bytes(b"x")
    (root / "train" / "dog" / "notes.txt").write_bytes(b"x")
    report = audited(root)
    found = findings(report)
    for code, name in (
        ("TRUNCATED", "train/cat/0.jpg"),
        ("EMPTY", "train/cat/1.jpg"),
        ("NOT_IMAGE", "test/dog/1.jpg"),
        ("UNSUPPORTED", "train/dog/x.heic"),
    ):
        assert found[code].severity == "error"
        assert found[code].paths[0].startswith(name)
    assert report.quarantined == {"TRUNCATED": 1, "EMPTY": 1, "NOT_IMAGE": 1, "UNSUPPORTED": 1}
    assert report.ignored == {"UNKNOWN_EXTENSION": 1}
    assert report.num_found == 62 == report.num_used + 4 + 1
    assert report.counts["train"] == (18, 20)


def test_odd_pictures_are_pointed_at(root: Path) -> None:
    save(root / "train" / "cat" / "blank.png", Image.new("RGB", (120, 120), (90, 90, 90)))
    dark = np.asarray(picture(500)) // 12
    save(root / "train" / "cat" / "dark.png", Image.fromarray(dark))
    save(root / "train" / "dog" / "long.jpg", picture(501).resize((600, 100)))
    save(root / "train" / "dog" / "tiny.jpg", picture(502, side=20))
    save(root / "train" / "dog" / "grey.jpg", picture(503).convert("L"))
    save(root / "train" / "dog" / "alpha.png", picture(504).convert("RGBA"))
    (root / "train" / "dog" / "alpha.png").rename(root / "train" / "dog" / "alpha.jpg")
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[274] = 6
    picture(505).save(turned, "JPEG", exif=exif)
    (root / "train" / "dog" / "turned.jpg").write_bytes(turned.getvalue())
    found = findings(audited(root))
    for code, path in (
        ("BLANK", "train/cat/blank.png"),
        ("DARK", "train/cat/dark.png"),
        ("ODD_SHAPE", "train/dog/long.jpg"),
        ("SMALL", "train/dog/tiny.jpg"),
        ("WRONG_EXTENSION", "train/dog/alpha.jpg"),
        ("ALPHA", "train/dog/alpha.jpg"),
        ("ROTATED", "train/dog/turned.jpg"),
    ):
        assert found[code].paths == (path,), code
    assert found["GREY"].paths == ("train/cat/blank.png", "train/dog/grey.jpg")
    assert "1 image " in found["ODD_SHAPE"].message


def test_few_images_and_twins_by_name_are_said(root: Path) -> None:
    for number in range(3):
        save(root / "train" / "Dog " / f"{number}.jpg", picture(700 + number))
    report = audited(root)
    assert any("two names" in f.message for f in report.findings if f.code == "CLASSES")
    assert findings(report)["FEW_IMAGES"].message.endswith("Dog ")


def test_classes_that_share_pictures_are_twins(root: Path) -> None:
    for number in range(8):
        shutil.copy(
            root / "train" / "cat" / f"{number}.jpg", root / "train" / "dog" / f"c{number}.jpg"
        )
    assert "'cat' and 'dog' share 8 pictures" in findings(audited(root))["TWINS"].message


def test_a_size_that_tells_the_class_is_a_shortcut(tmp_path: Path) -> None:
    for number in range(40):
        save(tmp_path / "d" / "cat" / f"{number}.jpg", picture(number, side=100))
        save(tmp_path / "d" / "dog" / f"{number}.jpg", picture(100 + number, side=90))
    found = findings(audited(tmp_path / "d"))
    assert "tell the class of 100%" in found["SHORTCUT"].message


def test_sizes_without_meaning_are_no_shortcut(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(60):
        side = int(rng.integers(90, 94))
        save(tmp_path / "d" / "ab"[number % 2] / f"{number}.jpg", picture(number, side=side))
    assert "SHORTCUT" not in findings(audited(tmp_path / "d"))


def test_nothing_is_written_and_the_fingerprint_is_known_afterwards(root: Path) -> None:
    """P8"""
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    report = audited(root)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    assert report.fingerprint == open_dataset(root).fingerprint


def test_progress_is_told(root: Path) -> None:
    seen: list[tuple[int, int]] = []
    audit(open_dataset(root), progress=lambda done, of: seen.append((done, of)))
    assert seen[-1] == (60, 60)


def test_a_store_is_enough_for_leaks(root: Path) -> None:
    with Image.open(root / "train" / "cat" / "3.jpg") as image:
        save(root / "test" / "cat" / "again.jpg", image, quality=70)
    dataset = open_dataset(root)
    contract = PixelContract(
        image_px=40,
        store_px=48,
        channels=3,
        resize="crop",
        interpolation="bilinear",
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
    _, report = audit_store(dataset, open_store(dataset, contract))
    assert findings(report)["LEAK"].paths == ("test/cat/again.jpg",)
    assert set(report.leaked) == {"validation", "test"}


def test_copies_never_straddle_a_cut_that_vidi_makes(tmp_path: Path) -> None:
    """Bursts of five photos: a random split would have nearly each test photo in training."""
    for burst in range(40):
        for shot in range(5):
            path = tmp_path / "d" / "ab"[burst % 2] / f"{burst:02d}-{shot}.jpg"
            save(path, picture(burst), quality=60 + 8 * shot)
    dataset = open_dataset(tmp_path / "d", DataConfig(validation_fraction=0.2))
    bursts = np.arange(200) // 5
    trained = set(bursts[dataset.split == 0])
    assert sum(burst in trained for burst in bursts[dataset.split == 2]) > 30
    better, report = audit(dataset)
    assert [better.num_expected(split) for split in SPLITS] == [120, 40, 40]
    assert report.leaked == {"validation": (), "test": ()}
    assert "groups kept together" in report.split_rule
    assert report.fingerprint == better.fingerprint != dataset.fingerprint
    for burst in range(40):
        assert len(set(better.split[bursts == burst])) == 1
    # What an audit remembers is enough to split again in the same way.
    again = Audit.from_json(report.to_json()).regroup(
        open_dataset(tmp_path / "d", DataConfig(validation_fraction=0.2))
    )
    assert (again.split == better.split).all()


def test_splits_that_the_owner_gave_stay_as_they_are(root: Path) -> None:
    shutil.copy(root / "train" / "cat" / "2.jpg", root / "test" / "cat" / "known.jpg")
    dataset = open_dataset(root)
    better, report = audit(dataset)
    assert (better.split == dataset.split).all()
    assert len(report.leaked["test"]) == 1


def test_names_that_are_no_text_come_back_as_they_were(root: Path) -> None:
    """D27"""
    name = os.fsdecode(b"\xff\xfe.jpg")
    shutil.copy(root / "train" / "cat" / "2.jpg", root / "train" / "cat" / name)
    report = audited(root)
    assert findings(report)["DUPLICATE"].groups == (("train/cat/2.jpg", f"train/cat/{name}"),)
    assert Audit.from_json(report.to_json()) == report


def test_the_pictures_of_a_finding_have_the_shape_of_their_files(root: Path) -> None:
    save(root / "train" / "dog" / "long.jpg", picture(501).resize((600, 100)))
    (root / "train" / "dog" / "bad.jpg").write_bytes(b"x")
    dataset = open_dataset(root)
    names = ["train/dog/long.jpg", "train/dog/bad.jpg", "train/cat/0.jpg", "not there"]
    shown = dict(pictures(dataset, names, 60))
    assert {name: pixels.shape for name, pixels in shown.items()} == {
        "train/cat/0.jpg": (60, 60, 3),
        "train/dog/long.jpg": (10, 60, 3),
    }
    small = open_dataset("digits")
    assert dict(pictures(small, ["000003"], 60))["000003"].shape == (8, 8, 1)


@pytest.mark.parametrize("count", [6000, 10_500])
def test_pairs_are_found_among_many(count: int) -> None:
    """All of 300 pairs among so many thumbnails, and nothing else."""
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 255, (count, 8, 8)).repeat(4, 1).repeat(4, 2)
    small = np.clip(coarse, 0, 255).astype(np.uint8)
    noisy = small[:300].astype(int) + rng.integers(-4, 5, (300, 32, 32))
    small[count - 300 :] = np.clip(noisy, 0, 255)
    pairs = near_pairs(small)
    assert pairs.tolist() == [[n, n + count - 300] for n in range(300)]


def test_all_copies_are_found_where_most_pictures_are_copies() -> None:
    """Few different pictures: what tells copies apart is noise, and must not be magnified."""
    rng = np.random.default_rng(0)
    once = rng.uniform(0, 255, (60, 8, 8)).repeat(4, 1).repeat(4, 2)
    small = np.tile(once, (180, 1, 1)) + rng.normal(0, 2, (10_800, 32, 32))
    groups = groups_of(near_pairs(np.clip(small, 0, 255).astype(np.uint8)), 10_800)
    assert len(np.unique(groups)) == 60
    assert (groups == groups[np.arange(10_800) % 60]).all()


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_few_or_plain_thumbnails_have_no_pairs(count: int) -> None:
    assert len(near_pairs(np.full((count, 8, 8), 9, np.uint8))) == 0
    noise = np.random.default_rng(0).integers(0, 256, (count, 8, 8), dtype=np.uint8)
    assert len(near_pairs(noise)) == 0
    assert len(exact_pairs(np.arange(16 * count, dtype=np.uint8).reshape(count, 16))) == 0


def test_copies_of_copies_are_one_group() -> None:
    digests = np.array([[1], [2], [1], [3], [1], [0], [0]], np.uint8).repeat(16, 1)
    pairs = exact_pairs(digests)
    assert pairs.tolist() == [[0, 2], [0, 4]]
    assert groups_of(pairs, 7).tolist() == [0, -1, 0, -1, 0, -1, -1]
