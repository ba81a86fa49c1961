"""An image folder: every file is used, quarantined or ignored, and classes go by name."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vidi.config import DataConfig
from vidi.data import Dataset, open_dataset
from vidi.data.folder import natural
from vidi.errors import DataError, UsageError
from vidi.facts import SPLITS

Make = Callable[[Path, dict[str, int]], Path]
Write = Callable[..., None]


def files_of(root: Path) -> set[str]:
    """Every path below root that is no folder, as vidi names it."""
    return {
        os.path.relpath(os.path.join(folder, name), root)  # noqa: PTH118 (odd names)
        for folder, _, names in os.walk(root)
        for name in names
    }


def accounted(dataset: Dataset) -> list[str]:
    used = [dataset.name_of(i) for i in range(len(dataset))]
    skipped = [entry.path for entry in (*dataset.quarantined, *dataset.ignored)]
    return used + skipped


def reasons(dataset: Dataset) -> Counter[str]:
    return Counter(entry.reason for entry in (*dataset.quarantined, *dataset.ignored))


def tree_hash(root: Path) -> str:
    digest = hashlib.sha256()
    for name in sorted(files_of(root)):
        path = root / name
        status = path.lstat()
        digest.update(f"{name} {status.st_size} {status.st_mtime_ns} {status.st_mode}".encode())
    for folder, names, _ in sorted(os.walk(root)):
        digest.update(f"{folder} {sorted(names)}".encode())
    return digest.hexdigest()


# Layouts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("held_out", ["val", "valid", "validation", "Validation", "dev"])
def test_split_folders_are_recognised_by_name(
    tmp_path: Path, make_folder: Make, held_out: str
) -> None:
    root = make_folder(
        tmp_path / "pets",
        {f"{s}/{c}": n for s, n in (("train", 4), (held_out, 2), ("test", 3)) for c in "ab"},
    )
    dataset = open_dataset(root)
    assert dataset.name == "pets"
    assert dataset.classes == ("a", "b")
    assert [dataset.counts(split) for split in SPLITS] == [(4, 4), (2, 2), (3, 3)]
    assert dataset.split_rule == "given: train, validation, test"
    for index in range(len(dataset)):
        assert dataset.name_of(index).split("/")[1] == dataset.classes[dataset.labels[index]]


def test_an_unsplit_folder_gets_exact_stratified_splits(tmp_path: Path, make_folder: Make) -> None:
    root = make_folder(tmp_path / "pets", {"cat": 30, "dog": 70})
    dataset = open_dataset(root)
    assert [dataset.counts(split) for split in SPLITS] == [(21, 49), (3, 7), (6, 14)]
    assert "test 20%" in dataset.split_rule
    assert "seed 0" in dataset.split_rule
    again = open_dataset(root)
    assert (again.split == dataset.split).all()
    other = open_dataset(root, DataConfig(split_seed=1))
    assert (other.split != dataset.split).any()


def test_validation_is_cut_from_training_where_only_test_is_given(
    tmp_path: Path, make_folder: Make
) -> None:
    root = make_folder(tmp_path / "d", {"train/a": 20, "train/b": 40, "test/a": 5, "test/b": 5})
    dataset = open_dataset(root)
    assert [dataset.counts(split) for split in SPLITS] == [(18, 36), (2, 4), (5, 5)]
    none = open_dataset(root, DataConfig(validation_fraction=0.0))
    assert none.num_expected("validation") == 0


def test_no_test_split_is_invented_where_validation_is_given(
    tmp_path: Path, make_folder: Make
) -> None:
    root = make_folder(tmp_path / "d", {"train/a": 5, "train/b": 5, "val/a": 2, "val/b": 2})
    dataset = open_dataset(root)
    assert dataset.num_expected("test") == 0
    assert "no test split" in dataset.split_rule
    asked = open_dataset(root, DataConfig(test_fraction=0.2))
    assert asked.counts("test") == (1, 1)


def test_a_class_may_be_called_train(tmp_path: Path, make_folder: Make) -> None:
    root = make_folder(tmp_path / "vehicles", {"car": 4, "plane": 4, "train": 4})
    assert open_dataset(root).classes == ("car", "plane", "train")


def test_images_below_a_class_belong_to_it_and_images_beside_classes_to_none(
    tmp_path: Path, make_folder: Make, write_image: Write
) -> None:
    """E9"""
    root = make_folder(tmp_path / "d", {"a/deep/deeper": 3, "b": 3})
    write_image(root / "loose.jpg")
    dataset = open_dataset(root)
    assert dataset.classes == ("a", "b")
    assert sum(len(dataset.indices(split)) for split in SPLITS) == 6
    assert [(entry.path, entry.reason) for entry in dataset.ignored] == [("loose.jpg", "NO_CLASS")]


# One class map ------------------------------------------------------------------------------------


def test_a_class_missing_from_validation_does_not_shift_labels(
    tmp_path: Path, make_folder: Make
) -> None:
    """E1: torchvision and timm give "c" of validation the label of "b"."""
    root = make_folder(
        tmp_path / "d", {"train/a": 2, "train/b": 2, "train/c": 2, "val/a": 2, "val/c": 2}
    )
    dataset = open_dataset(root)
    assert dataset.counts("validation") == (2, 0, 2)
    assert "class 'b' has 0 validation images" in dataset.notes


def test_a_class_without_training_images_is_listed_and_not_scored(
    tmp_path: Path, make_folder: Make
) -> None:
    """E2"""
    root = make_folder(
        tmp_path / "d", {"train/cat": 2, "train/dog": 2, "val/Cat": 3, "val/cat": 1, "val/dog": 1}
    )
    dataset = open_dataset(root)
    assert dataset.classes == ("cat", "dog")
    assert reasons(dataset) == {"UNKNOWN_CLASS": 3}
    assert any("'Cat'" in note and "did you mean 'cat'" in note for note in dataset.notes)
    assert dataset.facts().quarantined == {"UNKNOWN_CLASS": 3}


def test_classes_are_in_natural_order(tmp_path: Path, make_folder: Make) -> None:
    """E6"""
    root = make_folder(tmp_path / "d", {str(number): 2 for number in range(1, 13)})
    assert open_dataset(root).classes == tuple(map(str, range(1, 13)))
    assert sorted(["b10", "B2", "b1", "a"], key=natural) == ["a", "b1", "B2", "b10"]


@given(st.permutations(["Z", "a", "A", "a1", "a01", "a10", "", "1", "\u0661", "a" * 40 + "9" * 40]))
def test_natural_order_does_not_depend_on_the_order_of_listing(names: list[str]) -> None:
    assert sorted(names, key=natural) == sorted(sorted(names), key=natural)


def test_likely_twins_are_said(tmp_path: Path, make_folder: Make) -> None:
    """E7"""
    composed, apart = unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")
    root = make_folder(
        tmp_path / "d",
        {"Cat": 2, "cat": 2, "dog": 2, "dog ": 2, composed: 2, apart: 2, "bird": 2},
    )
    notes = [note for note in open_dataset(root).notes if "likely the same class" in note]
    assert len(notes) == 3


def test_a_class_with_one_image_is_trained_on_and_said(tmp_path: Path, make_folder: Make) -> None:
    """E4"""
    dataset = open_dataset(make_folder(tmp_path / "d", {"a": 20, "b": 1}))
    assert dataset.counts("train") == (14, 1)
    assert "class 'b' has 1 training image" in dataset.notes
    assert any("imbalanced" in note for note in open_dataset(tmp_path / "d").notes) is False


def test_imbalance_is_said_and_the_split_is_exact(tmp_path: Path, make_folder: Make) -> None:
    """E16, scaled: 1 in 100."""
    dataset = open_dataset(make_folder(tmp_path / "d", {"many": 200, "few": 2}))
    assert dataset.counts("train") == (1, 141) or dataset.counts("train") == (2, 140)
    assert any("imbalanced" in note for note in dataset.notes)


# Refusals -----------------------------------------------------------------------------------------


def test_one_class_is_refused(tmp_path: Path, make_folder: Make) -> None:
    """E3"""
    root = make_folder(tmp_path / "d", {"only": 3})
    with pytest.raises(DataError, match="only one class, 'only'") as caught:
        open_dataset(root)
    assert caught.value.exit_code == 3


def test_a_folder_in_a_folder_is_pointed_at(tmp_path: Path, make_folder: Make) -> None:
    root = make_folder(tmp_path / "download", {"pets/cat": 3, "pets/dog": 3})
    with pytest.raises(DataError, match=r"did you mean .*download/pets"):
        open_dataset(root)


def test_an_empty_folder_says_what_was_looked_for(tmp_path: Path) -> None:
    """E5"""
    (tmp_path / "d").mkdir()
    with pytest.raises(DataError, match="one sub-folder for each class"):
        open_dataset(tmp_path / "d")
    (tmp_path / "d" / "a").mkdir()
    (tmp_path / "d" / "a" / "x.csv").write_text("1")
    with pytest.raises(DataError, match=r"1 \.csv"):
        open_dataset(tmp_path / "d")


def test_images_without_class_folders_are_refused(tmp_path: Path, write_image: Write) -> None:
    write_image(tmp_path / "d" / "1.jpg")
    with pytest.raises(DataError, match="no class folders"):
        open_dataset(tmp_path / "d")


def test_an_empty_class_folder_is_named(tmp_path: Path, make_folder: Make) -> None:
    """E5"""
    root = make_folder(tmp_path / "d", {"a": 2, "b": 2, "c": 0})
    dataset = open_dataset(root)
    assert dataset.classes == ("a", "b")
    assert "the class folder 'c' has no images" in dataset.notes


def test_a_missing_path_names_the_nearest(tmp_path: Path, make_folder: Make) -> None:
    make_folder(tmp_path / "flowers", {"a": 1, "b": 1})
    with pytest.raises(UsageError, match=r"did you mean .*flowers") as caught:
        open_dataset(tmp_path / "flower")
    assert caught.value.exit_code == 2
    with pytest.raises(UsageError, match="digits"):
        open_dataset("digit")
    with pytest.raises(UsageError, match="no such"):
        open_dataset(tmp_path / "x" / "y" / "z")


def test_an_unknown_format_is_refused(tmp_path: Path, make_folder: Make) -> None:
    root = make_folder(tmp_path / "d", {"a": 2, "b": 2})
    with pytest.raises(UsageError, match="did you mean 'folder'"):
        open_dataset(root, DataConfig(format="foldr"))
    assert len(open_dataset(root, DataConfig(format="folder"))) == 4


def test_a_cache_inside_the_data_is_refused(tmp_path: Path, make_folder: Make) -> None:
    root = make_folder(tmp_path / "d", {"a": 2, "b": 2})
    with pytest.raises(UsageError, match="inside the data"):
        open_dataset(root, DataConfig(cache_dir=str(root / "cache")))


# What is used, and what is not --------------------------------------------------------------------


def test_every_usual_extension_is_used(tmp_path: Path, write_image: Write) -> None:
    """D7"""
    kinds = {"jpg": "JPEG", "JPEG": "JPEG", "jfif": "JPEG", "png": "PNG", "webp": "WEBP"}
    kinds |= {"bmp": "BMP", "tif": "TIFF", "TIFF": "TIFF", "gif": "GIF", "ppm": "PPM"}
    for extension, kind in kinds.items():
        write_image(tmp_path / "d" / "a" / f"x.{extension}", kind=kind)
        write_image(tmp_path / "d" / "b" / f"x.{extension}", kind=kind)
    assert len(open_dataset(tmp_path / "d")) == 2 * len(kinds)


def test_what_is_no_image_is_ignored_with_its_reason(tmp_path: Path, make_folder: Make) -> None:
    """D6, D20, D33, E8"""
    root = make_folder(tmp_path / "d", {"a": 2, "b": 2, ".ipynb_checkpoints": 2, "__MACOSX/a": 1})
    for name in ("Thumbs.db", "._000.jpg", ".DS_Store", "notes.txt", "noextension"):
        (root / "a" / name).write_bytes(b"x")
    for name in ("x.heic", "x.svg"):
        (root / "b" / name).write_bytes(b"<svg/>")
    dataset = open_dataset(root)
    assert dataset.classes == ("a", "b")
    assert reasons(dataset) == {
        "HIDDEN": 3,
        "SYSTEM_FILE": 3,
        "UNKNOWN_EXTENSION": 2,
        "UNSUPPORTED": 2,
    }
    assert {entry.reason for entry in dataset.quarantined} == {"UNSUPPORTED"}
    assert sorted(accounted(dataset)) == sorted(files_of(root))


def test_special_files_are_listed_and_never_opened(tmp_path: Path, make_folder: Make) -> None:
    """D25: opening a pipe for reading would block for ever."""
    root = make_folder(tmp_path / "d", {"a": 2, "b": 2})
    os.mkfifo(root / "a" / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(root / "a")
        try:
            server.bind("s.jpg")
        finally:
            os.chdir(here)
    dataset = open_dataset(root)
    assert reasons(dataset) == {"SPECIAL_FILE": 2}
    assert len(dataset) == 4


def test_links_count_once_and_do_not_leave_the_root(tmp_path: Path, make_folder: Make) -> None:
    """D26, E10"""
    outside = make_folder(tmp_path / "elsewhere", {"x": 1})
    root = make_folder(tmp_path / "d", {"a": 2, "b": 2, "pool": 1})
    shutil.move(root / "pool", root / ".pool")
    (root / "a" / "dangling.jpg").symlink_to("nowhere.jpg")
    (root / "a" / "again.jpg").symlink_to("000.jpg")
    (root / "a" / "outside.jpg").symlink_to(outside / "x" / "000.jpg")
    (root / "a" / "loop").symlink_to("..")
    (root / "a" / "self.jpg").symlink_to("self.jpg")
    (root / "b" / "pooled.jpg").symlink_to(root / ".pool" / "000.jpg")
    (root / "b" / "pooled-again.jpg").symlink_to(root / ".pool" / "000.jpg")
    dataset = open_dataset(root)
    assert len(dataset) == 5
    assert reasons(dataset) == {
        "BROKEN_LINK": 2,
        "SAME_FILE": 3,
        "OUTSIDE_ROOT": 1,
        "HIDDEN": 1,
    }


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become another user")
def test_what_may_not_be_read_is_said(
    tmp_path: Path, make_folder: Make, request: pytest.FixtureRequest
) -> None:
    """D24, E14; in a child, because permissions do not hold for root."""
    tmp_path = Path(tempfile.mkdtemp(prefix="vidi-test-"))
    request.addfinalizer(lambda: shutil.rmtree(tmp_path))
    tmp_path.chmod(0o755)
    root = make_folder(tmp_path / "d", {"a": 3, "b": 3, "b/closed": 1})
    (root / "a" / "000.jpg").chmod(0)
    (root / "b" / "closed").chmod(0)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    code = (
        "import os, sys\n"
        "from vidi.config import DataConfig\n"
        "from vidi.data import open_dataset, open_store\n"
        "from vidi.image import PixelContract\n"
        # Not before: the other user may not be able to read the packages.
        "os.setgroups([]); os.setuid(65534)\n"
        "d = open_dataset(sys.argv[1], DataConfig(max_unreadable_fraction=0.5))\n"
        "print(*[e.reason for e in d.quarantined])\n"
        "c = PixelContract(image_px=8, store_px=8, channels=1, resize='crop',\n"
        "                  interpolation='bilinear', mean=(0.5,), std=(0.5,))\n"
        "print(*[(d.name_of(r.id), r.reason) for r in open_store(d, c).unreadable])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(root)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "VIDI_CACHE": str(tmp_path / "cache")},
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["NO_PERMISSION", "('a/000.jpg', 'NO_PERMISSION')"]


def test_odd_names_are_listed_exactly_once(
    tmp_path: Path, make_folder: Make, write_image: Write
) -> None:
    """D27"""
    root = make_folder(tmp_path / "d", {"b": 1})
    names = ["\U0001f600.jpg", "-rf.jpg", "a\nb.jpg", "quote'\".jpg", "\u202etxt.jpg", " .jpg"]
    names += [unicodedata.normalize("NFC", "é.jpg"), unicodedata.normalize("NFD", "é.jpg")]
    names += ["x" * 251 + ".jpg", os.fsdecode(b"\xff\xfe.jpg"), "%00.jpg", "*.jpg", "~.jpg"]
    for number, name in enumerate(names):
        write_image(root / "a" / name, number)
    dataset = open_dataset(root)
    found = Counter(dataset.name_of(i) for i in range(len(dataset)))
    assert found == Counter([f"a/{name}" for name in names] + ["b/000.jpg"])
    for index in range(len(dataset)):
        assert dataset.read(index)
    assert len(dataset.fingerprint) == 32


def test_a_tree_deeper_than_the_longest_path_ends_with_a_reason(
    tmp_path: Path, make_folder: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D27: paths above 4,096 bytes cannot be opened by name."""
    root = make_folder(tmp_path / "d", {"a": 2, "b": 2})
    monkeypatch.chdir(root / "a")
    for _ in range(20):
        Path("y" * 250).mkdir()
        os.chdir("y" * 250)
    try:
        dataset = open_dataset(root)
        assert len(dataset) == 4
        assert reasons(dataset) == {"READ_ERROR": 1}
    finally:
        subprocess.run(["rm", "-rf", str(root / "a")], check=True)


NAMES = st.sampled_from(["a", "B", ".h", "train", "val", "test", "c d", "__MACOSX", "\u00e9"])
LEAVES = st.sampled_from(["1.jpg", "2.PNG", "x.txt", "Thumbs.db", "._1.jpg", "noext", "v.heic"])


@given(
    tree=st.sets(st.tuples(st.lists(NAMES, max_size=3).map(tuple), LEAVES), min_size=0, max_size=25)
)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_every_file_is_accounted_for_in_any_tree(
    tmp_path_factory: pytest.TempPathFactory, tree: set[tuple[tuple[str, ...], str]]
) -> None:
    """P9"""
    root = tmp_path_factory.mktemp("tree")
    for folders, leaf in tree:
        (root / Path(*folders)).mkdir(parents=True, exist_ok=True)
        (root / Path(*folders) / leaf).write_bytes(b"")
    # Two classes that any layout accepts, so that there is a data set to look at.
    for name in ("train/k1", "train/k2", "k3", "k4"):
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name / "1.jpg").write_bytes(b"")
    dataset = open_dataset(root)
    assert sorted(accounted(dataset)) == sorted(files_of(root))


# Promises -----------------------------------------------------------------------------------------


def test_nothing_below_the_root_is_written(tmp_path: Path, make_folder: Make) -> None:
    """P8"""
    root = make_folder(tmp_path / "d", {"a": 3, "b": 3})
    before = tree_hash(root)
    dataset = open_dataset(root)
    assert dataset.facts().num_classes == 2
    assert dataset.fingerprint
    assert tree_hash(root) == before


def test_planted_caches_are_just_files(tmp_path: Path, make_folder: Make) -> None:
    """J12"""
    root = make_folder(tmp_path / "d", {"a": 2, "b": 2})
    for name in ("train.cache", "images.npy", ".cache"):
        (root / "a" / name).write_bytes(b"\x93NUMPY\1\0v\0{'descr': '|O'}")
    assert len(open_dataset(root)) == 4


def test_files_added_after_the_scan_are_not_part_of_it(
    tmp_path: Path, make_folder: Make, write_image: Write
) -> None:
    """E18"""
    root = make_folder(tmp_path / "d", {"a": 3, "b": 3})
    dataset = open_dataset(root)
    write_image(root / "a" / "new.jpg")
    assert len(dataset) == 6
    assert dataset.facts().num_images("train") + dataset.facts().num_images("test") <= 6


def test_a_hundred_thousand_files_are_listed_in_seconds(tmp_path: Path) -> None:
    """E15, at a scale for every day: 20,000 files; the bar is 100 microseconds a file."""
    for name in "ab":
        (tmp_path / "d" / name).mkdir(parents=True)
        for number in range(10_000):
            (tmp_path / "d" / name / f"{number}.jpg").touch()
    began_at = time.perf_counter()
    dataset = open_dataset(tmp_path / "d")
    elapsed_s = time.perf_counter() - began_at
    assert len(dataset) == 20_000
    assert elapsed_s < 2.0


# Facts and identity -------------------------------------------------------------------------------


def test_facts_are_counted(tmp_path: Path, make_folder: Make) -> None:
    root = make_folder(tmp_path / "d", {"train/a": 3, "train/b": 5, "test/a": 1, "test/b": 2})
    facts = open_dataset(root, DataConfig(validation_fraction=0.0)).facts()
    assert facts.counts == {"train": (3, 5), "validation": (0, 0), "test": (1, 2)}
    assert facts.height_px == facts.width_px == (20, 20, 20)
    assert not facts.grey
    assert facts.name == "d"


def test_a_copy_elsewhere_has_the_same_fingerprint(tmp_path: Path, make_folder: Make) -> None:
    root = make_folder(tmp_path / "d", {"a": 3, "b": 3})
    shutil.copytree(root, tmp_path / "copy" / "d", copy_function=shutil.copyfile)
    assert open_dataset(root).fingerprint == open_dataset(tmp_path / "copy" / "d").fingerprint


def test_any_change_changes_the_fingerprint(
    tmp_path: Path, make_folder: Make, write_image: Write
) -> None:
    """C13, D32: also a file that keeps its name, its size and its time."""
    root = make_folder(tmp_path / "d", {"a": 3, "b": 3})
    seen = [open_dataset(root).fingerprint]

    def changed() -> None:
        seen.append(open_dataset(root).fingerprint)
        assert len(set(seen)) == len(seen)

    path = root / "a" / "000.jpg"
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    path.write_bytes(bytes(data))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    changed()
    write_image(root / "a" / "new.jpg", 77)
    changed()
    (root / "b" / "000.jpg").rename(root / "b" / "renamed.jpg")
    changed()
    (root / "b" / "001.jpg").rename(root / "a" / "moved.jpg")
    changed()
    (root / "b").rename(root / "c")
    changed()


def test_an_unchanged_folder_is_not_read_twice(
    tmp_path: Path, make_folder: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder(tmp_path / "d", {"a": 3, "b": 3})
    first = open_dataset(root).fingerprint

    def refuse(path: bytes) -> bytes:
        raise AssertionError(path)

    monkeypatch.setattr("vidi.data.files.read_bytes", refuse)
    assert open_dataset(root).fingerprint == first


def test_a_damaged_memory_of_digests_is_not_believed(
    tmp_path: Path, make_folder: Make, cache: Path
) -> None:
    root = make_folder(tmp_path / "d", {"a": 3, "b": 3})
    first = open_dataset(root).fingerprint
    (record,) = (cache / "digests").iterdir()
    whole = record.read_bytes()
    for place in range(0, len(whole), 5):
        damaged = bytearray(whole)
        damaged[place] ^= 4
        record.write_bytes(bytes(damaged))
        assert open_dataset(root).fingerprint == first
    record.write_bytes(whole[:40])
    assert open_dataset(root).fingerprint == first


def test_rows_taken_out_keep_the_ids_of_the_others(tmp_path: Path, make_folder: Make) -> None:
    dataset = open_dataset(make_folder(tmp_path / "d", {"a": 5, "b": 5}))
    train = dataset.indices("train")
    less = dataset.without(train[:2], "TRUNCATED", ["x", "y"])
    assert (less.indices("train") == train[2:]).all()
    assert len(less) == len(dataset)
    assert [entry.path for entry in less.quarantined] == [dataset.name_of(i) for i in train[:2]]
    assert less.num_expected("train") == len(train)
    assert less.facts().quarantined == {"TRUNCATED": 2}
    assert np.sum(less.counts("train")) == len(train) - 2
