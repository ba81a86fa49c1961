"""The page as a file: what stands in it, what must not, and how it gets onto the disk."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import importlib.resources
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vidi import metrics
from vidi.errors import DamagedError, StorageError
from vidi.metrics import Predictions
from vidi.report import Pictures, load, render, views_of, write
from vidi.report.data import Explained
from vidi.run import Run
from vidi.storage import LocalDisk

VENDOR = importlib.resources.files("vidi.report") / "vendor" / "uplot"


def policy_of(page: str) -> dict[str, list[str]]:
    found = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert found is not None
    parts = (part.split() for part in html.unescape(found.group(1)).split(";"))
    return {name: values for name, *values in parts}


def sha256(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def view_in(page: str, name: str) -> Any:
    found = re.search(rf'<script type="application/json" id="view-{name}">(.*?)</script>', page)
    assert found is not None
    return json.loads(found.group(1))


# ---------------------------------------------------------------------------------- one closed file


def test_the_page_may_run_its_own_scripts_and_fetch_nothing(make_report: Any) -> None:
    page = render(make_report())
    policy = policy_of(page)
    assert policy["default-src"] == ["'none'"]
    assert policy["img-src"] == ["data:"]
    assert (policy["base-uri"], policy["form-action"]) == (["'none'"], ["'none'"])
    scripts = re.findall(r"<script(?: type=\"module\")?>(.*?)</script>", page, re.DOTALL)
    styles = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    assert policy["script-src"] == [sha256(script) for script in scripts]
    assert policy["style-src"] == [sha256(style) for style in styles]
    assert (len(scripts), len(styles)) == (2, 1)
    assert set(policy) == {
        "default-src", "img-src", "script-src", "style-src", "base-uri", "form-action",
    }  # fmt: skip
    # Nothing that is fetched, and nothing that the policy would have to refuse.
    tags = re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.DOTALL)
    assert not re.search(r"\s(?:src|action|srcset|style|on\w+)\s*=", tags)
    assert set(re.findall(r'href="([^"#][^"]{0,17})', tags)) <= {"data:image/svg+xml"}
    assert "url(" not in "".join(styles)
    assert "@import" not in "".join(styles)


def test_scripts_and_styles_stay_small(make_report: Any) -> None:
    page = render(make_report())
    parts = re.findall(r"<(?:script|style)(?: type=\"module\")?>(.*?)</", page, re.DOTALL)
    assert len(gzip.compress("".join(parts).encode())) <= 100_000


def test_a_page_of_372_photos_stays_under_two_megabytes(make_report: Any) -> None:
    rng = np.random.default_rng(0)

    def noisy(_label: int, _i: int) -> np.ndarray:
        # What JPEG can hardly shrink; photos are a third of it.
        coarse = rng.integers(0, 256, (56, 56, 3), dtype=np.uint8)
        return np.asarray(Image.fromarray(coarse).resize((224, 224)))

    data = make_report(n=372, skill=1.0, px=224, pixels_for=noisy)
    assert len(views_of(data)["mistakes"]["items"]) == 60
    assert len(render(data).encode()) <= 2e6


def test_the_vendored_charts_are_the_published_ones() -> None:
    lines = (VENDOR / "SHA256SUMS").read_text().splitlines()
    sums = {name: digest for digest, name in (line.split() for line in lines)}
    assert set(sums) == {"LICENSE", "uPlot.iife.min.js", "uPlot.min.css"}
    for name, expected in sums.items():
        assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == expected
    assert "MIT" in (VENDOR / "LICENSE").read_text()
    # The hashes of uplot 1.6.32 on the package index: a change of both files would be seen here.
    assert sums["uPlot.iife.min.js"].startswith("19c8d4c6ad88929a79f4ae49d6f71615")
    assert sums["uPlot.min.css"].startswith("df630c6a8d6f8eeaff264b50f73ce5b1")


# ------------------------------------------------------------------------------------ hostile names


def test_no_name_can_end_the_element_that_it_stands_in(make_report: Any) -> None:
    names = [
        "</script><script>alert(1)</script>",
        "<!--<script>",
        "a\u2028b\u2029c",
        "&amp;",
        "\udcff",
    ]
    page = render(make_report(names, 60, name="</title><b>", title="</style>"))
    page.encode("utf-8")
    assert view_in(page, "data")["classes"] == names
    block = re.search(r'id="view-data">(.*?)</script>', page, re.DOTALL)
    assert block is not None
    assert not set("<>&\u2028\u2029") & set(block.group(1))
    assert "<b>" not in page
    assert page.count("</title>") == 1
    assert page.count("<script") == page.count("</script>")


def test_templates_in_names_are_not_run(make_report: Any) -> None:
    page = render(make_report(["{{7*7}}", "{% raise %}"], 20, name="{{7*7}}", title="${7*7}"))
    assert "<title>{{7*7}} \u00b7 vidi</title>" in page
    assert "49" not in view_in(page, "summary")["run"]
    assert view_in(page, "classes")["rows"][0]["name"] == "{{7*7}}"


def test_nothing_of_the_machine_stands_in_the_page(make_report: Any) -> None:
    page = render(
        make_report(
            file_names=["/home/anna/secret-project/a.jpg", "C:\\Users\\anna\\b.jpg", "test/c.jpg"],
            skill=1.5,
            environment={
                "data": "/home/anna/photos",
                "python": "3.11.9 at /home/anna/.pyenv/bin/python3",
                "index": "https://anna:hunter2@example.invalid/simple?token=abcdef",
                "hub_token": "hf_abcdef",
                "share": "\\\\warehouse\\anna\\data",
            },
            config={
                "data": {"cache_dir": "/home/anna/cache", "api_key": "abcdef"},
                "model": {"weights": "~/models/anna/best.safetensors", "name": "mine:tiny"},
            },
        )
    )
    for secret in ("anna", "/home", "Users", "hunter2", "abcdef", "secret-project", "warehouse"):
        assert secret not in page, secret
    names = {item["name"] for item in view_in(page, "mistakes")["items"]}
    assert names == {"a.jpg", "b.jpg", "test/c.jpg"}
    assert view_in(page, "plan")["config"]["model"] == {
        "weights": "best.safetensors",
        "name": "mine:tiny",
    }
    assert view_in(page, "environment")["environment"]["python"] == "3.11.9 at python3"


def test_pictures_are_made_again_from_pixels_alone(make_report: Any) -> None:
    for px, channels, kind in ((16, 1, "png"), (16, 3, "png"), (300, 3, "jpeg"), (300, 1, "jpeg")):
        data = make_report(skill=1.5, px=px, channels=channels, num_pictures=3)
        items = views_of(data)["mistakes"]["items"]
        assert len(items) == 3
        for item in items:
            start, _, encoded = item["picture"].partition(",")
            assert start == f"data:image/{kind};base64"
            image = Image.open(io.BytesIO(base64.b64decode(encoded)))
            assert max(image.size) <= 208
            assert not image.getexif()
            assert image.mode == ("L" if channels == 1 else "RGB")
    (original,) = data.pictures.pixels[:1, :, :, 0]
    by_name = {item["name"]: item for item in items}
    shown = by_name[data.pictures.names[0]]["picture"].partition(",")[2]
    back = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown))).resize((300, 300)))
    assert np.abs(back.astype(int) - original).mean() < 25


# ------------------------------------------------------------------------------------------ content


def test_the_first_screen_answers_the_four_questions(make_report: Any) -> None:
    data = make_report(skill=2.0)
    summary = views_of(data)["summary"]
    judged = summary["judged"]
    assert judged["accuracy"] == pytest.approx(data.evaluation.accuracy, rel=1e-4)
    assert judged["interval"] == pytest.approx(data.evaluation.accuracy_interval, rel=1e-4)
    assert f"{judged['n_right']}" == str(round(data.evaluation.accuracy * judged["n"]))
    assert "19 times out of 20" in judged["sentence"]
    assert summary["findings"]
    assert summary["steps"][0]["title"].startswith("Look at the")
    good = views_of(make_report(skill=9.0, n=3000))["summary"]
    assert good["steps"][-1]["command"] == "vidi predict 2026-11-22_animals_a1b2 photo.jpg"


def test_the_thresholds_are_those_of_predict_found_on_validation_and_checked_here(
    make_report: Any,
) -> None:
    labels = np.arange(200) % 2
    sure = np.linspace(0.5, 0.99, 200, dtype=np.float32)
    wrong = sure < 0.7
    of_label = np.where(wrong, 1 - sure, sure)
    shares = np.where(
        np.arange(2)[None] == labels[:, None], of_label[:, None], 1 - of_label[:, None]
    )
    validation = Predictions(np.arange(200), labels, shares.astype(np.float32))
    found = metrics.threshold_for(validation, 0.99)
    assert found.threshold == pytest.approx(0.7, abs=0.01)
    data = make_report(thresholds=(found,), skill=2.0)
    (point,) = views_of(data)["trust"]["thresholds"]
    assert point["threshold"] == pytest.approx(found.threshold, abs=1e-4)
    assert point["coverage"] == pytest.approx(found.coverage, abs=1e-4)
    said = data.predictions
    answered = said.probabilities.max(axis=1) >= found.threshold
    right = said.probabilities.argmax(axis=1)[answered] == said.labels[answered]
    assert point["here"]["coverage"] == pytest.approx(answered.mean(), abs=1e-4)
    assert point["here"]["accuracy"] == pytest.approx(right.mean(), abs=1e-4)


def findings_of(data: Any) -> dict[str, str]:
    return {each["title"]: each["level"] for each in views_of(data)["summary"]["findings"]}


def test_a_class_is_called_worse_only_when_chance_does_not_explain_it(make_report: Any) -> None:
    labels = np.repeat(np.arange(4), 50)

    def judged_with(wrong_of_last: int) -> Any:
        predicted = labels.copy()
        predicted[-wrong_of_last:] = 0
        probabilities = np.full((200, 4), 0.02, np.float32)
        probabilities[np.arange(200), predicted] = 0.94
        predictions = Predictions(np.arange(200), labels, probabilities)
        names = ["a", "b", "c", "d"]
        evaluation = metrics.evaluate(predictions, names, n_expected=200)
        return make_report(names, 200, evaluation=evaluation, predictions=predictions)

    assert findings_of(judged_with(25))["\u2018d\u2019 is clearly worse"] == "bad"
    assert findings_of(judged_with(25))["\u2018d\u2019 is taken for \u2018a\u2019"] == "watch"
    few = findings_of(judged_with(2))
    assert not any("clearly worse" in title or "taken for" in title for title in few)


def test_what_is_missing_or_doubtful_is_said(make_report: Any) -> None:
    data = make_report(skill=3.0)
    predictions, names = data.predictions, list(data.evaluation.classes)
    short = metrics.evaluate(predictions, names, n_expected=400, split="validation",
                             leaked_ids=predictions.ids[:5].tolist())  # fmt: skip
    titles = findings_of(make_report(skill=3.0, evaluation=short))
    assert titles["40 images of 400 not judged"] == "bad"
    assert titles["5 images leaked"] == "bad"
    assert titles["Judged on the validation images"] == "watch"
    assert titles["3 files could not be used"] == "watch"
    by_heart = [
        {"kind": "train", "step": 10, "loss": 0.1, "accuracy": 0.99, "learning_rate": 0.1},
        {"kind": "validation", "step": 10, "accuracy": 0.7, "log_loss": 1.0},
    ]
    assert "Learnt by heart" in findings_of(make_report(records=by_heart))
    assert next(iter(findings_of(make_report(evaluation=None)))) == "Not judged yet"


def test_when_nothing_is_wrong_that_is_said_too(make_report: Any) -> None:
    labels = np.arange(2000) % 2
    probabilities = np.where(labels[:, None] == np.arange(2), 0.99, 0.01).astype(np.float32)
    wrong = np.arange(20) * 99
    probabilities[wrong] = probabilities[wrong, ::-1]
    predictions = Predictions(np.arange(2000), labels, probabilities)
    evaluation = metrics.evaluate(predictions, ["a", "b"], n_expected=2000)
    data = make_report(["a", "b"], 2000, evaluation=evaluation, records=(), quarantined={})
    assert findings_of(data) == {"Nothing stands out": "fine"}


def test_numbers_are_short_finite_and_all_there(make_report: Any) -> None:
    data = make_report(skill=2.0)
    views = views_of(data)
    text = json.dumps(views, allow_nan=False)
    assert not re.search(r"[1-9]\d*\.\d{6,}", text)
    cells = np.array(views["confusion"]["cells"]).reshape(-1, 3)
    full = np.zeros((10, 10), int)
    full[cells[:, 0], cells[:, 1]] = cells[:, 2]
    assert full.tolist() == [list(row) for row in data.evaluation.confusion]
    assert len(views["plan"]["decisions"]) == len(data.plan.reasons)
    assert [row["name"] for row in views["classes"]["rows"]] == list(data.evaluation.classes)


def test_long_logs_are_drawn_with_at_most_800_points_and_keep_their_level(
    make_report: Any,
) -> None:
    records = [
        {"kind": "train", "step": step, "loss": float(step % 2), "accuracy": None,
         "learning_rate": 0.1}
        for step in range(10_001)
    ]  # fmt: skip
    curves = views_of(make_report(records=records))["curves"]
    assert 700 <= len(curves["train"]["step"]) <= 800
    assert np.mean(curves["train"]["loss"]) == pytest.approx(0.5, abs=0.01)
    assert set(curves["train"]["accuracy"]) == {None}


# ------------------------------------------------------------------------------------------ on disk


class FullDisk:
    """A disk that takes nothing more once it is told to."""

    def __init__(self) -> None:
        self.full = False
        self._disk = LocalDisk()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._disk, name)

    def write(self, descriptor: int, data: Any) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        self._disk.write(descriptor, data)


def made_run(path: Path, data: Any, disk: Any = None) -> Run:
    """A run directory that holds what `data` says."""
    texts = {
        "config": "[train]\nepochs = 12\n",
        "plan": data.plan.model_dump_json(),
        "facts": data.facts.model_dump_json(),
        "environment": json.dumps({"python": "3.11.9", "data": str(path)}),
    }
    run = (
        Run.create(path, texts=texts) if disk is None else Run.create(path, texts=texts, disk=disk)
    )
    for record in data.records:
        run.metrics.append(record)
    for record in data.timing:
        run.timing.append(record)
    run.write_evaluation("test", data.evaluation.model_dump_json())
    run.write_evaluation("validation", data.evaluation.model_dump_json())
    run.write_predictions("test", data.predictions.arrays())
    pictures: Pictures = data.pictures
    run.write_pictures("test", {
        "ids": pictures.ids, "pixels": pictures.pixels,
        "names": np.array(pictures.names, dtype=np.str_),
    })  # fmt: skip
    explained: Explained = data.explained
    run.write_explained("test", {
        "heat_ids": explained.heat_ids, "heat": explained.heat, "map_ids": explained.map_ids,
        "map": explained.places, "near_of": explained.near_of,
        "near_labels": explained.near_labels, "near_ids": explained.near_labels,
        "near_pixels": explained.near_pixels.reshape(-1, *explained.near_pixels.shape[2:]),
    })  # fmt: skip
    return run


def test_a_run_directory_becomes_the_same_page_as_its_values(
    tmp_path: Path, make_report: Any
) -> None:
    data = make_report(skill=2.0, name="flowers")
    run = made_run(tmp_path / "flowers", data)
    path = write(run)
    assert path == tmp_path / "flowers" / "report.html"
    page = path.read_text(encoding="utf-8")
    assert str(tmp_path) not in page
    expected = views_of(data)
    for name in ("summary", "mistakes", "confusion", "classes", "trust", "curves", "data", "map"):
        assert view_in(page, name) == json.loads(json.dumps(expected[name])), name
    assert load(run).validation is not None
    assert view_in(page, "plan")["config"] == {"train": {"epochs": 12}}


def test_a_run_that_was_not_judged_has_a_page_of_what_there_is(
    tmp_path: Path, make_report: Any
) -> None:
    data = make_report()
    texts = {
        "config": "",
        "plan": data.plan.model_dump_json(),
        "facts": data.facts.model_dump_json(),
    }
    page = write(Run.create(tmp_path / "new", texts=texts)).read_text(encoding="utf-8")
    assert view_in(page, "summary")["judged"] is None
    assert "view-mistakes" not in page


def test_a_disk_that_is_full_leaves_the_earlier_page(tmp_path: Path, make_report: Any) -> None:
    disk = FullDisk()
    run = made_run(tmp_path / "run", make_report(), disk)
    before = write(run).read_bytes()
    disk.full = True
    with pytest.raises(StorageError, match="report"):
        write(run)
    assert (tmp_path / "run" / "report.html").read_bytes() == before
    assert [path.name for path in (tmp_path / "run").glob("*report*")] == ["report.html"]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("evaluation/test.json", '{"accuracy": 1}', "evaluation of the test split"),
        ("facts.json", "{}", "cannot be read"),
        ("config.toml", "x = ", "cannot be read"),
        ("evaluation/test-pictures.npz", "hello", "damaged"),
        ("predictions/test.npz", "hello", "damaged"),
    ],
)
def test_a_damaged_file_of_the_run_is_named(
    tmp_path: Path, make_report: Any, name: str, text: str, words: str
) -> None:
    run = made_run(tmp_path / "run", make_report(skill=2.0))
    (run.path / name).write_text(text)
    with pytest.raises(DamagedError, match=words):
        write(Run.open(run.path))


def test_pictures_that_do_not_fit_together_are_refused(tmp_path: Path, make_report: Any) -> None:
    data = make_report(skill=2.0)
    run = made_run(tmp_path / "run", data)
    run.write_pictures("test", {"ids": data.pictures.ids, "pixels": data.pictures.pixels[:1],
                                "names": np.array(data.pictures.names)})  # fmt: skip
    with pytest.raises(DamagedError, match="do not fit together"):
        write(run)
    run.write_pictures("test", {"ids": data.pictures.ids})
    with pytest.raises(DamagedError, match="has no"):
        write(run)


def test_averaged_views_stand_beside_the_plain_number_and_never_in_its_place(
    tmp_path: Path, make_report: Any
) -> None:
    data = make_report()
    judged = data.evaluation
    averaged = judged.model_copy(update={"accuracy": 0.987, "split": judged.split})
    run = made_run(tmp_path / "run", data)
    plain = view_in(write(run).read_text(), "summary")["judged"]
    run.write_evaluation(f"{judged.split}_tta", averaged.model_dump_json())
    both = view_in(write(run).read_text(), "summary")["judged"]
    assert both["accuracy"] == plain["accuracy"]
    assert both["figures"][:-1] == plain["figures"]
    assert both["figures"][-1]["label"] == "Averaged views"
    assert both["figures"][-1]["value"] == 0.987
