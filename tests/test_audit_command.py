"""`vidi audit DATA` and `vidi.audit(data)`: something true that the owner did not know."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

import vidi
from vidi.cli import main
from vidi.data import Audit
from vidi.errors import DataError, UsageError, VidiError
from vidi.storage import LocalDisk


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDI_CACHE", str(tmp_path / "cache"))


class Done(NamedTuple):
    status: int
    out: str
    err: str


Command = Callable[..., Done]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """`command("audit", photos)` in this process."""

    def run(*words: str | Path) -> Done:
        monkeypatch.setattr(sys, "argv", ["vidi", *map(str, words)])
        monkeypatch.setenv("COLUMNS", "200")
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        captured = capfd.readouterr()
        return Done(int(left.value.code or 0), captured.out, captured.err)

    return run


def draw(path: Path, seed: int, quality: int = 90) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((96, 96), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x010E] = "secret garden"
    image.save(path, quality=quality, exif=exif)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes in three splits; one test image is in training, one file is empty."""
    root = tmp_path / "photos"
    for number in range(60):
        split = ("train", "train", "train", "train", "val", "test")[number % 6]
        draw(root / split / "ab"[number // 6 % 2] / f"{number}.jpg", number)
    draw(root / "test" / "a" / "again.jpg", 0, quality=70)
    (root / "train" / "b" / "empty\x1b[31m.jpg").write_bytes(b"")
    return root


def state_of(root: Path) -> dict[str, tuple[int, str]]:
    return {
        str(path): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_the_command_says_what_is_wrong_and_changes_nothing(command: Command, photos: Path) -> None:
    """P8, L6"""
    before = state_of(photos)
    done = command("audit", photos)
    assert done.status == 0, done.err
    assert "1 test image (9.1%) can also be seen in training" in done.out
    assert "test/a/again.jpg = train/a/0.jpg" in done.out
    assert "EMPTY" in done.out
    assert "empty\\x1b[31m.jpg" in done.out
    assert "\x1b" not in done.out + done.err
    assert state_of(photos) == before


def test_every_file_is_accounted_for(photos: Path) -> None:
    """P9"""
    (photos / "train" / "a" / "notes.txt").write_text("x")
    (photos / "Thumbs.db").write_bytes(b"x")
    found = vidi.audit(photos)
    on_disk = sum(path.is_file() for path in photos.rglob("*"))
    assert found.num_found == on_disk
    assert found.num_used + sum(found.quarantined.values()) + sum(found.ignored.values()) == on_disk


def test_json_is_the_whole_audit(command: Command, photos: Path) -> None:
    done = command("audit", photos, "--json")
    assert done.status == 0
    found = Audit.from_json(done.out)
    assert found.quarantined == {"EMPTY": 1}
    assert [finding.code for finding in found.findings][:2] == ["LEAK", "EMPTY"]
    assert json.loads(done.out)["leaked"]["test"]


def test_strict_fails_on_errors_only(command: Command, photos: Path) -> None:
    """E12"""
    assert command("audit", photos, "--strict").status == 3
    (photos / "test" / "a" / "again.jpg").unlink()
    (photos / "train" / "b" / "empty\x1b[31m.jpg").unlink()
    done = command("audit", photos, "--strict")
    assert done.status == 0, done.out


@pytest.mark.parametrize(
    ("folders", "status", "said"),
    [((), 2, "no such file"), (("only",), 3, "only one class"), (("a", "b"), 3, "no images")],
)
def test_what_is_no_data_set_is_refused_in_words(
    command: Command, tmp_path: Path, folders: tuple[str, ...], status: int, said: str
) -> None:
    """E3, E5"""
    for name in folders:
        (tmp_path / "d" / name).mkdir(parents=True)
        if len(folders) == 1:
            draw(tmp_path / "d" / name / "0.jpg", 0)
    done = command("audit", tmp_path / "d")
    assert done.status == status
    assert said in done.err


def test_the_page_is_written_with_pictures_and_without_what_they_carried(
    photos: Path, tmp_path: Path
) -> None:
    """L3, L4, L9"""
    found = vidi.audit(photos, out=tmp_path / "out")
    page = (tmp_path / "out" / "audit.html").read_text()
    assert page.count("data:image/jpeg") >= 2
    assert "test/a/again.jpg" in page
    assert "secret garden" not in page
    assert str(tmp_path) not in page
    assert Audit.from_json((tmp_path / "out" / "audit.json").read_text()) == found


def test_nothing_is_written_among_the_data(photos: Path) -> None:
    """P8"""
    with pytest.raises(UsageError, match="inside the data"):
        vidi.audit(photos, out=photos / "out")
    assert not (photos / "out").exists()


def test_progress_is_told(photos: Path) -> None:
    seen: list[tuple[int, int]] = []
    vidi.audit(photos, progress=lambda done, of: seen.append((done, of)))
    assert seen[-1] == (62, 62)


def test_data_without_a_single_readable_image_are_told_so(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for number in range(12):
            path = tmp_path / "d" / name / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"<html>")
    found = vidi.audit(tmp_path / "d", out=tmp_path / "out")
    assert found.num_used == 0
    assert {finding.code for finding in found.findings} >= {"NOT_IMAGE", "NO_IMAGES"}


def test_two_classes_by_name_only_in_other_case_are_said(photos: Path) -> None:
    """E7"""
    shutil.copytree(photos / "train" / "a", photos / "train" / "A")
    found = vidi.audit(photos)
    codes = {finding.code: finding.message for finding in found.findings}
    assert "two names" in codes["CLASSES"]
    assert "'A' and 'a' share" in codes["TWINS"]


def test_a_one_class_config_is_an_error_of_data(tmp_path: Path) -> None:
    draw(tmp_path / "d" / "only" / "0.jpg", 0)
    with pytest.raises(DataError, match="only one class"):
        vidi.audit(tmp_path / "d")


def test_a_page_is_old_or_new_and_never_half(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L8: killed at every operation on the disk while the page is written."""

    class Killed(BaseException):
        pass

    out = tmp_path / "out"
    vidi.audit(photos, out=out)
    names = ("audit.json", "audit.html")
    old = {name: (out / name).read_bytes() for name in names}
    draw(photos / "train" / "a" / "one more.jpg", 4711)
    left = 0

    def counted(operation: Any) -> Any:
        def run(*arguments: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return operation(*arguments)

        return run

    for name in ("create", "write", "fsync", "close", "rename", "fsync_dir"):
        monkeypatch.setattr(LocalDisk, name, counted(getattr(LocalDisk, name)))
    for allowed in range(100):
        left = allowed
        try:
            vidi.audit(photos, out=out)
        except Killed:
            for name in names:
                now = (out / name).read_bytes()
                assert len(now) > 0.9 * len(old[name])
                assert name != "audit.json" or Audit.from_json(now.decode())
                assert name != "audit.html" or now.rstrip().endswith(b"</html>")
        else:
            break
    assert 4 < allowed < 99
    assert Audit.from_json((out / "audit.json").read_text()).num_found == 63


@pytest.mark.parametrize("place", ["/dev/null", "/proc/self/fd", "/sys/kernel"])
def test_what_is_no_folder_of_anything_is_refused_in_words(place: str) -> None:
    if not Path(place).exists():
        pytest.skip("not on this system")
    with pytest.raises(VidiError):
        vidi.audit(place)
