"""Files to rows through the command line: order, bad files, names, formats, going on."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

import vidi
from vidi import storage
from vidi.cli import main
from vidi.predict import find

NAMES = ("plain.jpg", "=cmd|' C calc'!A0.jpg", "+1.jpg", "-1.jpg", "@sum.jpg", "\ttab.jpg",
         "two\nlines.jpg", 'quote",comma.jpg', "caf\u00e9.jpg", "cafe\u0301.jpg", "\U0001f98a.jpg",
         "\u202egnp.jpg", os.fsdecode(b"bytes-\xff\xfe.jpg"), "x" * 240 + ".jpg")  # fmt: skip


class Done:
    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def predict(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """`predict(bundle, paths...)` in this process; `listed` is standard input."""

    def command(*words: str | Path, listed: bytes = b"") -> Done:
        monkeypatch.setattr(sys, "argv", ["vidi", "predict", *map(str, words)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(listed)))
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        captured = capfd.readouterr()
        return Done(int(left.value.code or 0), captured.out, captured.err)

    return command


def test_every_file_has_one_row_in_order_with_what_the_run_says(predict: Any, shipped: Any) -> None:
    done = predict(shipped.onnx, shipped.photos, "--json", "--top", "2", "--probabilities")
    assert done.status == 0
    assert [row["file"] for row in done.rows] == [str(path) for path in shipped.files()]
    trained = vidi.load(shipped.run)
    for path, row in list(zip(shipped.files(), done.rows, strict=True))[::10]:
        ours = trained(path)
        assert row["label"] == ours.label
        assert row["probability"] == pytest.approx(ours.probability, abs=1e-5)
        assert [each["label"] for each in row["top"]] == [name for name, _ in ours.top[:2]]
        assert sum(row["probabilities"]) == pytest.approx(1, abs=1e-4)


def test_a_run_and_its_bundle_give_the_same_rows(predict: Any, shipped: Any) -> None:
    ours = predict(shipped.run, shipped.photos / "red", "--json").rows
    theirs = predict(shipped.onnx, shipped.photos / "red", "--json").rows
    assert [row["label"] for row in ours] == [row["label"] for row in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-5)


def test_bad_files_have_a_reason_and_never_a_guess(
    predict: Any, shipped: Any, tmp_path: Path
) -> None:
    good = shipped.files()[0].read_bytes()
    (tmp_path / "cut.jpg").write_bytes(good[: len(good) // 2])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "letter.jpg").write_text("Dear Sir or Madam")
    (tmp_path / "whole.jpg").write_bytes(good)
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "nowhere.jpg").symlink_to(tmp_path / "gone.jpg")
    (tmp_path / "notes.txt").write_text("not asked about")
    done = predict(shipped.onnx, tmp_path, "--json")
    assert done.status == 3
    found = {Path(row["file"]).name: row.get("error", row.get("label")) for row in done.rows}
    assert found == {
        "cut.jpg": "TRUNCATED", "empty.jpg": "EMPTY", "letter.jpg": "NOT_IMAGE",
        "nowhere.jpg": "BROKEN_LINK", "pipe.jpg": "SPECIAL_FILE",
        "whole.jpg": vidi.load(shipped.run)(good).label,
    }  # fmt: skip
    assert "5 files could not be predicted" in done.err


def test_globs_folders_files_and_lists_on_standard_input(predict: Any, shipped: Any) -> None:
    some = predict(shipped.onnx, f"{shipped.photos}/*/00[12].jpg", "--json").rows
    assert len(some) == 6
    names = [str(path) for path in shipped.files()[5:8]]
    listed = predict(shipped.onnx, "-", "--json", listed="\n".join(names).encode() + b"\r\n").rows
    assert [row["file"] for row in listed] == names
    for nothing in ("nowhere.jpg", "nothing-*.jpg", str(shipped.photos.parent / "run" / "bundle")):
        done = predict(shipped.onnx, nothing)
        assert done.status == 2
        assert nothing.split("/")[-1] in done.err


def test_litter_and_hidden_files_of_folders_are_passed_over(tmp_path: Path, shipped: Any) -> None:
    good = shipped.files()[0].read_bytes()
    for name in ("__MACOSX/a.jpg", ".hidden/b.jpg", "._c.jpg", "d.JPG", "sub/e.jpeg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(good)
    (tmp_path / "loop").symlink_to(tmp_path)
    assert [Path(found.path).name for found in find([str(tmp_path)])] == ["d.JPG", "e.jpeg"]


@pytest.fixture
def odd_names(tmp_path: Path, shipped: Any) -> Path:
    folder = tmp_path / "odd"
    folder.mkdir()
    for name in NAMES:
        shutil.copy(shipped.files()[0], folder / name)
    return folder


def test_names_come_back_exactly_from_json_lines(
    predict: Any, shipped: Any, odd_names: Path
) -> None:
    rows = predict(shipped.onnx, odd_names, "--json").rows
    assert {row["file"] for row in rows} == {str(odd_names / name) for name in NAMES}
    assert len(rows) == len(NAMES)


def test_a_spreadsheet_runs_no_name(
    predict: Any, shipped: Any, odd_names: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS.md L5: the rule stands at the top of vidi.predict.outputs."""
    out = tmp_path / "rows.csv"
    monkeypatch.chdir(odd_names)
    assert predict(shipped.onnx, *[f"./{name}" for name in NAMES], "--out", out).status == 0
    out.unlink()
    assert predict(shipped.onnx, "-", "--out", out, listed=b"=1+1.jpg\n+1.jpg\n").status == 3
    with out.open(newline="") as file:
        assert [row["file"] for row in csv.DictReader(file)] == ["'=1+1.jpg", "'+1.jpg"]


def test_names_come_back_exactly_from_csv(
    predict: Any, shipped: Any, odd_names: Path, tmp_path: Path
) -> None:
    out = tmp_path / "rows.csv"
    assert predict(shipped.onnx, odd_names, "--out", out, "--top", "2").status == 0
    with out.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    assert {row["file"] for row in rows} == {str(odd_names / name) for name in NAMES}
    assert rows[0]["abstained"] == "false"
    assert rows[0]["label_2"]


def test_parquet_has_the_same_rows(predict: Any, shipped: Any, tmp_path: Path) -> None:
    out = tmp_path / "rows.parquet"
    wanted = predict(shipped.onnx, shipped.photos, "--json", "--embeddings").rows
    done = predict(shipped.onnx, shipped.photos, "--out", out, "--probabilities", "--embeddings")
    assert done.status == 0
    rows = parquet.read_table(out).to_pylist()
    assert [row["file"] for row in rows] == [row["file"] for row in wanted]
    assert [row["label"] for row in rows] == [row["label"] for row in wanted]
    assert rows[4]["embedding"] == pytest.approx(wanted[4]["embedding"], abs=1e-4)
    assert len(rows[0]["probabilities"]) == 3
    assert predict(shipped.onnx, shipped.photos, "--out", out).status == 2


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_a_job_that_was_cut_off_anywhere_goes_on_to_the_same_file(
    predict: Any, shipped: Any, odd_names: Path, tmp_path: Path, ending: str
) -> None:
    whole, part = tmp_path / f"whole.{ending}", tmp_path / f"part.{ending}"
    words = [odd_names, shipped.photos / "red"]
    assert predict(shipped.onnx, *words, "--out", whole).status == 0
    wanted = whole.read_bytes()
    assert predict(shipped.onnx, *words, "--out", part).status == 0
    start = wanted.index(b"\n") + 1
    for cut in [start, start + 1, *range(start + 40, len(wanted), 397), len(wanted) - 1]:
        part.write_bytes(wanted[:cut])
        assert predict(shipped.onnx, *words, "--out", part, "--resume").status == 0
        assert part.read_bytes() == wanted, cut
    assert predict(shipped.onnx, *words, "--out", part, "--resume").status == 0
    assert part.read_bytes() == wanted


def test_another_model_or_other_columns_do_not_continue_a_file(
    predict: Any, shipped: Any, tmp_path: Path
) -> None:
    out = tmp_path / "rows.jsonl"
    red = shipped.photos / "red"
    assert predict(shipped.onnx, red, "--out", out).status == 0
    assert predict(shipped.onnx, red, "--out", out).status == 2
    done = predict(shipped.run, red, "--out", out, "--resume")
    assert done.status == 4
    assert "another model" in done.err
    done = predict(shipped.onnx, red, "--out", out, "--resume", "--top", "3")
    assert "another top" in done.err
    assert predict(shipped.onnx, red, "--resume", "--json").status == 2


def test_it_abstains_below_what_was_asked_for(predict: Any, shipped: Any) -> None:
    rows = predict(shipped.onnx, shipped.photos, "--json", "--abstain-below", "0.9").rows
    unsure = [row for row in rows if row.get("abstained")]
    assert all(row["probability"] < 0.9 for row in unsure)
    assert all(row["probability"] >= 0.9 for row in rows if row not in unsure)
    assert predict(shipped.onnx, shipped.photos, "--precision", "0.95", "--json").status == 0
    assert predict(shipped.onnx, shipped.photos, "--precision", "0.5").status == 2
    both = predict(shipped.onnx, shipped.photos, "--precision", "0.95", "--abstain-below", "0.9")
    assert both.status == 2


def test_no_torch_is_imported_by_the_command(shipped: Any, tmp_path: Path) -> None:
    code = (
        "import sys; from vidi.cli import main\n"
        f"sys.argv = ['vidi', 'predict', {str(shipped.onnx)!r}, {str(shipped.photos)!r},"
        f" '--out', {str(tmp_path / 'rows.csv')!r}]\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'scipy', 'sklearn') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_files(shipped: Any, tmp_path: Path) -> None:
    listed = "\n".join([str(shipped.files()[0])] * 40_000)
    code = (
        "import resource, sys; from vidi.cli import main\n"
        f"sys.argv = ['vidi', 'predict', {str(shipped.onnx)!r}, '-',"
        f" '--out', {str(tmp_path / 'rows.jsonl')!r}]\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    peaks = []
    for count in (2_000, 40_000):
        (tmp_path / "rows.jsonl").unlink(missing_ok=True)
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            input="\n".join(listed.splitlines()[:count]),
        )  # fmt: skip
        peaks.append(int(done.stdout.splitlines()[-1]) / 1024)
    assert peaks[1] - peaks[0] < 16, peaks


def test_names_of_files_and_classes_cannot_speak_to_the_terminal(
    predict: Any, shipped: Any, tmp_path: Path
) -> None:
    """FAULTS.md L6."""
    bundle = shutil.copytree(shipped.onnx, tmp_path / "bundle")
    about = json.loads((bundle / "bundle.json").read_text())
    about["classes"] = [f"\x1b[3{number}m" for number in range(3)]
    model = (bundle / "model.onnx").read_bytes()
    shutil.rmtree(bundle)
    storage.write_folder(bundle, {"model.onnx": model, "bundle.json": json.dumps(about).encode()})
    hostile = tmp_path / "red\x1b[31m.jpg"
    shutil.copy(shipped.files()[0], hostile)
    (tmp_path / "bad\x1b[2J.jpg").write_bytes(b"no image")
    done = predict(bundle, hostile, tmp_path / "bad\x1b[2J.jpg")
    assert done.status == 3
    assert "red\\x1b[31m.jpg" in done.out
    assert "bad\\x1b[2J.jpg" in done.out + done.err
    assert "\x1b" not in done.out + done.err


def test_what_is_too_large_says_the_way_out(predict: Any, shipped: Any, tmp_path: Path) -> None:
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    ]
    (tmp_path / "wall.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    (row,) = predict(shipped.onnx, tmp_path / "wall.png", "--json").rows
    assert row["error"] == "TOO_LARGE"
    assert "scale it down" in row["message"]
