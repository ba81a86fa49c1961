"""The command line: what a person types, reads, and what a script gets as exit code."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from vidi.cli import main
from vidi.config import Config
from vidi.study import Study

QUICK = ["--epochs", "2", "--model", "mlp", "--set", "machine.threads=1"]


class Done:
    """What a command did."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err

    def __repr__(self) -> str:
        return f"exit {self.status}\n{self.out}\n{self.err}"


Vidi = Callable[..., Done]


@pytest.fixture
def vidi(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Vidi:
    """`vidi("train", "digits")` in this process."""

    def command(*words: str | Path) -> Done:
        monkeypatch.setattr(sys, "argv", ["vidi", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        captured = capfd.readouterr()
        return Done(int(left.value.code or 0), captured.out, captured.err)

    return command


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on the embedded digits."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    subprocess.run(
        [sys.executable, "-m", "vidi", "train", "digits", "--out", str(out), *QUICK],
        check=True,
        capture_output=True,
    )
    return out


def test_control_c_before_there_is_anything_to_keep_is_said_in_one_line(
    vidi: Vidi, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vidi.cli.data.asked_config", stopped)
    done = vidi("audit", "digits")
    assert (done.status, done.out) == (130, "")
    assert done.err == "vidi: stopped before it was done\n"


def test_a_wrong_setting_is_said_once_and_no_process_is_started(vidi: Vidi, tmp_path: Path) -> None:
    done = vidi(
        "train", "digits", "--nproc", 2, "--out", tmp_path / "run", "--set", "train.epoch=1"
    )
    assert done.status == 2
    assert done.err.count("train.epoch") == 2, "the wrong one, and the one that is meant"
    assert "torch" not in done.err


def test_help_tells_a_newcomer_where_to_start(vidi: Vidi) -> None:
    done = vidi("--help")
    assert done.status == 0
    assert "vidi train photos/" in done.out


@pytest.mark.parametrize(
    "command",
    [
        *("audit", "augment", "cache", "doctor", "evaluate"),
        *("models", "plan", "predict", "report", "train"),
    ],
)
def test_every_command_explains_itself(vidi: Vidi, command: str) -> None:
    done = vidi(command, "--help")
    assert done.status == 0
    assert "Usage" in done.out


def test_train_ends_with_accuracy_interval_and_report(vidi: Vidi, tmp_path: Path) -> None:
    done = vidi("train", "digits", "--out", tmp_path / "run", *QUICK)
    assert done.status == 0, done
    assert "test accuracy" in done.out
    assert "95 % interval" in done.out
    assert str(tmp_path / "run" / "report.html") in done.out
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000


def test_train_prints_json_and_nothing_else(vidi: Vidi, tmp_path: Path) -> None:
    done = vidi("train", "digits", "--out", tmp_path / "run", "--json", *QUICK)
    printed = json.loads(done.out)
    assert 0.5 < printed["accuracy"] <= 1
    assert printed["accuracy_interval"][0] < printed["accuracy"] < printed["accuracy_interval"][1]
    assert printed["n_evaluated"] > 300


def test_a_finished_run_is_complete_and_its_files_stay(vidi: Vidi, tmp_path: Path) -> None:
    out = tmp_path / "run"
    vidi("train", "digits", "--out", out, *QUICK)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    done = vidi("train", "digits", "--out", out, *QUICK)
    assert done.status == 0
    assert "already complete" in done.err
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert {p: t for p, t in after.items() if p.name != "lock"} == {
        p: t for p, t in before.items() if p.name != "lock"
    }


def test_plan_shows_reasons_and_leaves_no_run(
    vidi: Vidi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = vidi("plan", "digits", *QUICK)
    assert done.status == 0
    assert "small images are shifted" in done.out
    assert list(tmp_path.iterdir()) == []


def test_plan_as_json_is_a_plan(vidi: Vidi) -> None:
    plan = json.loads(vidi("plan", "digits", "--json", *QUICK).out)
    assert plan["pixels"]["image_px"] == 8
    assert plan["reasons"]


def test_evaluate_gives_the_same_numbers_again(vidi: Vidi, digits_run: Path) -> None:
    first = json.loads((digits_run / "evaluation" / "test.json").read_text())
    again = json.loads(vidi("evaluate", digits_run, "--json").out)
    assert again["accuracy"] == first["accuracy"]
    assert again["n_expected"] == again["n_evaluated"] == first["n_evaluated"]


def test_evaluate_judges_other_splits(vidi: Vidi, digits_run: Path) -> None:
    done = vidi("evaluate", digits_run, "--split", "validation")
    assert done.status == 0
    assert "optimistic" in done.out
    assert vidi("evaluate", digits_run, "--split", "tset").status == 2


def test_evaluate_says_more_than_accuracy(vidi: Vidi, digits_run: Path) -> None:
    judged = json.loads((digits_run / "evaluation" / "test.json").read_text())
    lines = vidi("evaluate", digits_run).out.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines if " taken " not in line}
    assert rows["macro"][:3] == [
        f"{judged[name]:.1%}" for name in ("macro_precision", "macro_recall", "macro_f1")
    ]
    for each in judged["per_class"]:
        scores = (each["precision"], each["recall"], each["f1"])
        wanted = ["-" if score is None else f"{score:.1%}" for score in scores]
        assert rows[each["name"]][:4] == [str(each["n"]), *wanted]
    text = "\n".join(lines)
    assert f"calibration error {judged['ece']:.1%}" in text
    for pair in judged["most_confused"][:5]:
        label, predicted = (judged["classes"][pair[end]] for end in ("label", "predicted"))
        assert f"{label} is taken for {predicted}: {pair['n']} times (" in text


def test_report_is_written_again(vidi: Vidi, digits_run: Path) -> None:
    (digits_run / "report.html").unlink()
    done = vidi("report", digits_run)
    assert done.status == 0
    assert (digits_run / "report.html").exists()


def test_predict_names_what_is_on_a_picture(
    vidi: Vidi, tmp_path: Path, picture_folder: Callable[..., Path]
) -> None:
    photos = picture_folder("photos", reds=40, greens=40)
    run = tmp_path / "run"
    assert vidi("train", photos, "--out", run, *QUICK).status == 0
    done = vidi("predict", run, photos / "reds", photos / "greens" / "000.jpg")
    assert done.status == 0, done
    lines = done.out.splitlines()
    assert len(lines) == 41
    assert sum(": reds" in line for line in lines[:40]) >= 38
    assert ": greens" in lines[40]


def test_predict_reports_what_it_cannot_read_and_goes_on(
    vidi: Vidi, digits_run: Path, tmp_path: Path, picture_folder: Callable[..., Path]
) -> None:
    good = picture_folder("some", a=1) / "a" / "000.jpg"
    bad = tmp_path / "letter.jpg"
    bad.write_text("Dear Sir or Madam")
    done = vidi("predict", digits_run, bad, good)
    assert done.status == 3
    assert "letter.jpg" in done.err
    assert "000.jpg" in done.out


def test_a_study_stands_for_its_answer(
    vidi: Vidi, digits_run: Path, tmp_path: Path, picture_folder: Callable[..., Path]
) -> None:
    pictures = picture_folder("some", a=1)
    study = Study.create(tmp_path / "s", kind="tune", config=Config(), asked={})
    refused(vidi("predict", study.path, pictures), 2, "without an answer", "trials/")
    shutil.copytree(digits_run, study.final_path)
    assert vidi("predict", study.path, pictures).out == vidi("predict", digits_run, pictures).out
    judged = vidi("evaluate", study.path, "--json")
    assert json.loads(judged.out) == json.loads(vidi("evaluate", digits_run, "--json").out)
    assert vidi("suspects", study.path).status == 0


def test_models_lists_what_there_is(vidi: Vidi) -> None:
    done = vidi("models", "efficientnet_lite")
    assert done.status == 0
    first = next(line for line in done.out.splitlines() if "efficientnet_lite0" in line)
    assert first.split()[1:] == [
        "4.65",
        "M",
        "385.2",
        "M",
        "224",
        "75.1%",
        "Apache-2.0,",
        "at",
        "hand",
    ]
    (lenet,) = json.loads(vidi("models", "lenet5", "--json").out)
    assert (lenet["name"], lenet["accuracy"], lenet["at_hand"]) == ("lenet5", None, False)
    refused(vidi("models", "rasnet"), 2, "rasnet", "vidi models")


def test_doctor_knows_the_machine(vidi: Vidi) -> None:
    done = vidi("doctor")
    assert done.status == 0
    assert "cores usable" in done.out
    assert json.loads(vidi("doctor", "--json").out)["machine"]["usable_cores"] >= 1


# Bad input: one or two lines that name the thing, the place and the way out.


def refused(done: Done, status: int, *words: str) -> None:
    assert done.status == status, done
    assert "Traceback" not in done.err
    assert len([line for line in done.err.splitlines() if line.startswith("vidi: ")]) == 1, done
    for word in words:
        assert word in done.err, done


def test_a_path_that_does_not_exist(vidi: Vidi, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    refused(vidi("train", tmp_path / "photo"), 2, "photo", "photos")


def test_a_mistyped_path_is_said_before_torch_is_imported(tmp_path: Path) -> None:
    program = """
import sys
import vidi.cli
try:
    vidi.cli.main()
finally:
    print("torch" in sys.modules)
"""
    for command in ("train", "fit", "tune", "plan", "ablate", "audit", "augment"):
        words = [sys.executable, "-c", program, command, str(tmp_path / "photo")]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith("vidi: no such file or folder"), done.stderr
        assert done.stdout == "False\n"


def test_a_home_of_nobody(vidi: Vidi) -> None:
    refused(vidi("train", "~nobody-of-that-name/photos"), 2, "~nobody-of-that-name/photos")


def test_an_empty_folder(vidi: Vidi, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(vidi("train", tmp_path / "empty"), 3, "empty")


def test_one_class_only(vidi: Vidi, picture_folder: Callable[..., Path]) -> None:
    refused(vidi("train", picture_folder("photos", cats=9)), 3, "cats")


def test_a_class_with_one_image_is_trained_on_and_said(
    vidi: Vidi, tmp_path: Path, picture_folder: Callable[..., Path]
) -> None:
    photos = picture_folder("photos", cats=30, dogs=30, rarities=1)
    done = vidi("train", photos, "--out", tmp_path / "run", *QUICK)
    assert done.status == 0, done
    counts = json.loads((tmp_path / "run" / "facts.json").read_text())["dataset"]["counts"]
    assert counts["train"][2] == 1
    assert counts["test"][2] == counts["validation"][2] == 0
    assert "rarities" in done.err


def test_a_truncated_jpeg_and_a_text_file_are_left_out_and_named(
    vidi: Vidi, tmp_path: Path, picture_folder: Callable[..., Path]
) -> None:
    photos = picture_folder("photos", cats=40, dogs=40)
    whole = (photos / "cats" / "003.jpg").read_bytes()
    (photos / "cats" / "003.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "dogs" / "005.jpg").write_text("<html>not found</html>")
    done = vidi("train", photos, "--out", tmp_path / "run", *QUICK)
    assert done.status == 0, done
    assert "003.jpg" in done.err
    facts = json.loads((tmp_path / "run" / "facts.json").read_text())["dataset"]
    assert facts["quarantined"] == {"TRUNCATED": 1, "NOT_IMAGE": 1}
    strict = vidi(
        "train", photos, "--out", tmp_path / "no", "--set", "data.unreadable=stop", *QUICK
    )
    refused(strict, 3, "cats", "003.jpg")
    assert not (tmp_path / "no").exists()


def test_an_unknown_model(vidi: Vidi, tmp_path: Path) -> None:
    done = vidi("train", "digits", "--model", "resnet81", "--out", tmp_path / "run")
    refused(done, 2, "resnet81", "resnet18")
    assert not (tmp_path / "run").exists()


def test_an_unknown_setting(vidi: Vidi) -> None:
    done = vidi("train", "digits", "--set", "train.learning_rte=1")
    refused(done, 2, "train.learning_rte", "train.learning_rate")


def test_a_model_that_cannot_take_such_small_images(vidi: Vidi, tmp_path: Path) -> None:
    done = vidi(
        "train", "digits", "--model", "lenet5", "--set", "data.image_px=3", "--out", tmp_path / "r"
    )
    refused(done, 2, "3")


def test_a_run_of_another_config(vidi: Vidi, digits_run: Path) -> None:
    done = vidi("train", "digits", "--out", digits_run, *QUICK, "--set", "train.learning_rate=0.5")
    refused(done, 4, "train.learning_rate", "--out", "--force-resume")


def test_a_run_of_other_data(
    vidi: Vidi, digits_run: Path, picture_folder: Callable[..., Path]
) -> None:
    done = vidi("train", picture_folder("p", a=9, b=9), "--out", digits_run, *QUICK)
    refused(done, 4, "classes")


def test_a_folder_that_is_no_run(vidi: Vidi, picture_folder: Callable[..., Path]) -> None:
    photos = picture_folder("photos", a=3, b=3)
    before = sorted(photos.rglob("*"))
    refused(vidi("train", "digits", "--out", photos, *QUICK), 2, "photos")
    refused(vidi("predict", photos, photos / "a" / "000.jpg"), 2, "photos")
    refused(vidi("evaluate", photos), 2, "photos")
    assert sorted(photos.rglob("*")) == before


def test_a_second_train_on_the_same_run(vidi: Vidi, digits_run: Path) -> None:
    # A lock belongs to a process; another process has to hold it.
    child = subprocess.Popen(
        [sys.executable, "-c",
         "import sys; from vidi.run import Run\n"
         f"with Run.open({str(digits_run)!r}).lock():\n"
         " print('held', flush=True); sys.stdin.read()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    done = vidi("train", "digits", "--out", digits_run, *QUICK)
    child.communicate("")
    refused(done, 5, str(child.pid))


def test_a_closed_pipe_is_not_an_error(digits_run: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "p.txt"
    pictures.write_text("")
    done = subprocess.run(
        f"{sys.executable} -m vidi evaluate {digits_run} --json | head -1",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert "Traceback" not in done.stderr


def test_control_characters_of_names_do_not_reach_the_terminal(
    vidi: Vidi, digits_run: Path, tmp_path: Path
) -> None:
    hostile = tmp_path / "\x1b[31mred\n.jpg"
    hostile.write_text("no picture")
    done = vidi("predict", digits_run, hostile)
    assert done.status == 3
    assert "\x1b" not in done.err + done.out


def test_augment_draws_a_picture_and_says_what_was_decided(vidi: Vidi, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    done = vidi("augment", "digits", "--out", sheet, "--images", 3, "--columns", 2)
    assert done.status == 0, done
    with Image.open(sheet) as picture:
        width, height = picture.size
    # Three rows of an original and two epochs, digits of 8 px large enough to see.
    assert width == height > 3 * 96
    assert "horizontal_flip: none (nearest neighbours agree" in done.out
    assert vidi("augment", "digits", "--out", tmp_path).status == 2


def test_views_are_averaged_beside_the_plain_number(
    vidi: Vidi, tmp_path: Path, picture_folder: Callable[..., Path]
) -> None:
    photos = picture_folder("photos", px=24, a=30, b=30)
    out = tmp_path / "run"
    assert vidi("train", photos, "--out", out, *QUICK).status == 0
    done = vidi("evaluate", out, "--tta")
    assert done.status == 0, done
    first, second, *_ = done.out.splitlines()
    assert first.startswith("test accuracy")
    assert second.startswith("averaged over views, test accuracy")
    assert (out / "evaluation" / "test_tta.json").exists()
    both = json.loads(vidi("evaluate", out, "--tta", "--json").out)
    assert both["plain"]["n_evaluated"] == both["tta"]["n_evaluated"]
    assert both["plain"]["log_loss"] != both["tta"]["log_loss"]
    picture = photos / "a" / "000.jpg"
    plain, averaged = (
        json.loads(vidi("predict", out, picture, "--json", *more).out)["top"][0]["probability"]
        for more in ((), ("--tta",))
    )
    assert plain != averaged


def test_views_that_were_not_trained_are_refused(
    vidi: Vidi, tmp_path: Path, picture_folder: Callable[..., Path]
) -> None:
    photos, out = picture_folder("photos", px=24, a=30, b=30), tmp_path / "run"
    same = ("--set", "augment.crop=none", "--set", "augment.horizontal_flip=none")
    assert vidi("train", photos, "--out", out, *QUICK, *same).status == 0
    done = vidi("evaluate", out, "--tta")
    assert done.status == 2
    assert "no views to average" in done.err


def test_the_cache_is_shown_and_pruned(
    vidi: Vidi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, picture_folder: Callable[..., Path]
) -> None:
    monkeypatch.setenv("VIDI_CACHE", str(tmp_path / "cache"))
    assert "0 stores" in vidi("cache").out
    photos = picture_folder("my\x1b[31mphotos", px=16, a=8, b=8)
    assert vidi("augment", photos, "--out", tmp_path / "sheet.png").status == 0
    done = vidi("cache")
    assert "1 stores" in done.out
    assert "16 x 16 x 3" in done.out
    assert "\x1b" not in done.out
    assert "1 stores" in vidi("cache", "--prune").out
    shown = json.loads(vidi("cache", "--prune", "--max-gb", 0, "--json").out)
    assert [len(shown[kind]) for kind in ("stores", "removed")] == [0, 1]
    assert shown["removed"][0]["rows"] == 16


def test_names_do_not_drive_the_terminal(
    vidi: Vidi, tmp_path: Path, picture_folder: Callable[..., Path]
) -> None:
    """L6"""
    photos = picture_folder("photos", **{"a\x1b[2J": 30, "b": 30})
    (photos / "b" / "bad\x1b[31m.jpg").write_bytes(b"")
    for command in ("train", "plan"):
        more = ["--out", tmp_path / "run", *QUICK] if command == "train" else ["--epochs", "1"]
        done = vidi(command, photos, *more)
        assert done.status == 0, done
        assert "bad\\x1b[31m.jpg" in done.err
        assert "\x1b" not in done.out + done.err


def test_one_of_several_processes_leaves_at_once() -> None:
    """torch's threads outlive the messages that they carry: one that asks for the interpreter
    while that is taken down ends the process with SIGABRT, and the launcher then all others."""
    program = (
        "import atexit; atexit.register(print, 'taken down'); import vidi.cli; vidi.cli.main()"
    )

    def end(*arguments: str, **environment: str) -> tuple[int, bool]:
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout if done.returncode == 0 else done.stderr.startswith("vidi: ")
        return done.returncode, "taken down" in done.stdout

    one = {"RANK": "0", "WORLD_SIZE": "1"}
    assert end("models", "lenet5") == (0, True)
    assert end("models", "lenet5", **one) == (0, False)
    assert end("report", "no-such-run", **one) == (2, False)
