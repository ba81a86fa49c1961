"""The page in a real Chromium: everything drawn, nothing executed, nothing fetched."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vidi import metrics, storage
from vidi.report import ReportData, render, render_comparison

pytestmark = pytest.mark.slow

# FAULTS.md L1: each must be shown as the text that it is.
PAYLOADS = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "' onmouseover='alert(3)",
    "</style><script>alert(4)</script>",
    "</script><script>alert(5)</script>",
    "<!--<script>alert(6)</script>",
    "javascript:alert(7)",
    "{{7*7}}{% raw %}${alert(8)}",
    "line\u2028break\u2029here",
    "<svg onload=alert(9)>",
    "]]><a href='javascript:alert(10)'>x</a>",
    "\u202egnp.exe",
    "&lt;b&gt; &amp; &#60;i&#62;",
    "</title><base href='https://example.invalid/'>",
    "\x1b[31mred\x07 \x00 nul",
    "__proto__",
)


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Callable[..., float]:
    """`opened(data, width=390)` draws a report and returns the seconds that took."""

    def open_(data: ReportData, **how: Any) -> float:
        path = tmp_path / "report.html"
        path.write_bytes(render(data).encode("utf-8"))
        seconds: float = browser.open(path, **how)
        return seconds

    return open_


def assert_quiet(browser: Any) -> None:
    assert browser.dialogs == []
    assert browser.errors == []
    assert browser.requests == []


@pytest.mark.parametrize("width", [360, 390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_every_part_is_drawn_and_nothing_is_wider_than_the_screen(
    browser: Any, opened: Any, make_report: Any, *, width: int, dark: bool
) -> None:
    opened(make_report(skill=2.5), width=width, dark=dark)
    assert_quiet(browser)
    empty = browser.run(
        "[...document.querySelectorAll('main .view')].filter((e) => e.clientHeight < 40).length"
    )
    assert empty == 0
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run("document.querySelector('#summary .big').firstChild.data").endswith("%")
    # The canvases were painted, and the page is dark when that was asked for.
    assert browser.count(".uplot canvas") == 4
    image = np.asarray(Image.open(io.BytesIO(browser.picture())).convert("L"))
    assert image.shape[1] == width
    assert (np.median(image) < 60) == dark
    assert image.std() > 5


def test_a_speed_that_was_taken_once_is_no_curve(
    browser: Any, opened: Any, make_report: Any
) -> None:
    data = make_report()
    opened(dataclasses.replace(data, timing=data.timing[:1]))
    assert_quiet(browser)
    assert browser.count(".uplot canvas") == 3


def test_hostile_names_are_text_wherever_they_stand(
    browser: Any, opened: Any, make_report: Any
) -> None:
    hostile = make_report(
        PAYLOADS, 480, skill=1.2, file_names=[f"test/{name}.jpg" for name in PAYLOADS],
        name=PAYLOADS[0] + PAYLOADS[3], title=PAYLOADS[4],
        environment={"python": PAYLOADS[1], PAYLOADS[2]: PAYLOADS[5]},
    )  # fmt: skip
    opened(hostile)
    # Open a picture, sort the tables, choose a cell: the ways in which text gets on the page.
    browser.click(".tile")
    browser.run("document.querySelectorAll('.sort').forEach((button) => button.click())")
    browser.run("document.querySelectorAll('.cell.wrong').forEach((button) => button.click())")
    browser.run(
        "document.querySelectorAll('main *').forEach("
        "(e) => e.dispatchEvent(new MouseEvent('mouseover')))"
    )
    assert_quiet(browser)
    assert browser.count("main, header, footer, dialog") == 4
    assert browser.count("script:not([type]), script[type=module]") == 2
    assert browser.count("base, iframe, object, embed, form, template, b, i") == 0
    assert browser.count("a:not([href^='#'])") == 0
    assert browser.count("img:not([src^='data:image/'])") == 0
    handlers = (
        "[...document.querySelectorAll('*')].filter("
        "(e) => [...e.attributes].some((a) => a.name.startsWith('on'))).length"
    )
    assert browser.run(handlers) == 0
    for part, wanted in (
        ("#classes tbody", PAYLOADS),
        ("#data tbody", PAYLOADS),
        ("#confusion thead", PAYLOADS),
        ("#summary", (PAYLOADS[0] + PAYLOADS[3], PAYLOADS[4])),
        ("#environment", (PAYLOADS[1], PAYLOADS[5])),
    ):
        (text,) = browser.texts(part)
        for payload in wanted:
            assert payload in text, (part, payload)
    assert browser.run("document.title").startswith(PAYLOADS[0])
    shown = browser.texts(".path")[0]
    assert any(f"{payload}.jpg" in shown for payload in PAYLOADS)


def test_heat_lies_over_the_picture_and_a_point_says_what_it_is(
    browser: Any, opened: Any, make_report: Any
) -> None:
    opened(make_report(skill=2.5), width=390)
    browser.click("#mistakes .tile")
    assert browser.run("document.querySelector('.large .heat').hidden") is True
    browser.run(
        "[...document.querySelectorAll('dialog button')]"
        ".find((each) => each.textContent === 'Where it looked').click()"
    )
    assert browser.run("document.querySelector('.large .heat').hidden") is False
    assert browser.count(".near img") == 3
    browser.run("document.getElementById('dialog').close()")
    browser.run("document.querySelector('.map .point-wrong').dispatchEvent(new Event('click'))")
    assert "taken for" in browser.texts("#map .picked-text")[0]
    assert browser.count("#suspects tbody tr") > 0
    assert_quiet(browser)


def test_what_the_page_may_do_is_only_what_its_own_scripts_do(
    browser: Any, opened: Any, make_report: Any
) -> None:
    opened(make_report(skill=2.5))
    # A script that gets in by whatever way does not run, and nothing can be fetched.
    browser.run(
        "(() => { const s = document.createElement('script'); s.textContent = 'alert(1)';"
        " document.body.append(s); const i = document.createElement('img');"
        " i.src = 'https://example.invalid/x.png'; document.body.append(i);"
        " document.body.insertAdjacentHTML('beforeend', '<b onclick=\"alert(2)\">x</b>');"
        " document.body.lastChild.click(); })()"
    )
    refused = browser.run("fetch('https://example.invalid/').then(() => 'sent', () => 'refused')")
    assert refused == "refused"
    assert browser.dialogs == []
    assert any("Content Security Policy" in error for error in browser.errors)


def test_a_cell_opens_its_pictures_by_mouse_and_by_keyboard(
    browser: Any, opened: Any, make_report: Any
) -> None:
    opened(make_report(skill=2.0))
    browser.run("document.querySelector('.cell').focus()")
    for key, code in (("ArrowRight", 39), ("ArrowDown", 40), ("ArrowDown", 40), ("ArrowLeft", 37)):
        browser.press(key, code)
    focused = browser.run("document.activeElement.getAttribute('aria-label')")
    assert focused.startswith("cat called ant")
    browser.click(".cell.wrong")
    assert "taken for" in browser.texts(".panel h3")[0]
    browser.click(".panel .tile")
    assert browser.run("document.getElementById('dialog').open")
    assert "taken for" in browser.texts("#dialog-title")[0]
    browser.press("Escape", 27)
    browser.click("#mistakes .tile")
    seen = []
    for _ in range(3):
        seen += browser.texts(".dialog-body .path")
        browser.press("ArrowRight", 39)
    assert len(set(seen)) == 3
    for _ in range(3):
        browser.press("ArrowLeft", 37)
    assert browser.texts(".dialog-body .path") == seen[:1]
    browser.press("Escape", 27)
    assert not browser.run("document.getElementById('dialog').open")
    assert_quiet(browser)


def test_tables_sort_and_the_threshold_moves(browser: Any, opened: Any, make_report: Any) -> None:
    opened(make_report(skill=2.0))
    names = "#classes tbody th"
    browser.click("#classes .sort")
    assert browser.texts(names) == sorted(browser.texts(names))
    browser.click("#classes .sort")
    assert browser.texts(names) == sorted(browser.texts(names), reverse=True)
    head = "document.querySelector('#classes thead th').getAttribute('aria-sort')"
    assert browser.run(head) == "descending"
    before = browser.texts(".picked-text")
    browser.type("#wanted", "5")
    assert browser.texts(".picked-text") != before
    assert_quiet(browser)


def test_a_run_that_was_not_judged_or_trained_yet_still_has_a_page(
    browser: Any, opened: Any, make_report: Any
) -> None:
    opened(make_report(evaluation=None, predictions=None, pictures=None, records=(), timing=()))
    assert_quiet(browser)
    assert "Not judged yet" in browser.texts("#summary")[0]
    assert browser.count("#mistakes") == 0


@pytest.mark.parametrize(("num_classes", "n"), [(2, 3), (2, 40), (41, 900)])
def test_odd_numbers_of_classes_are_drawn_too(
    browser: Any, opened: Any, make_report: Any, num_classes: int, n: int
) -> None:
    names = [
        f"class number {label} with a name that is rather long" for label in range(num_classes)
    ]
    for skill in (1.0, 30.0):
        opened(make_report(names, n, skill=skill), width=390)
        assert_quiet(browser)
        assert browser.run("document.documentElement.scrollWidth") <= 390


def test_a_thousand_classes_open_in_seconds(browser: Any, opened: Any, make_report: Any) -> None:
    names = [f"n{label:08} thing" for label in range(1000)]
    data = make_report(names, 50_000, skill=6.0, px=224)
    assert len(render(data).encode()) <= 5e6
    assert opened(data) <= 3
    assert_quiet(browser)
    assert browser.count("*") < 6000
    browser.type("#confusion input", "00000012")
    shown = browser.texts("#confusion tbody tr")
    assert shown
    assert all("00000012" in row for row in shown)


@pytest.mark.parametrize("width", [390, 1280])
def test_a_comparison_shows_hostile_names_as_text(
    browser: Any, make_report: Any, tmp_path: Path, width: int
) -> None:
    """K21 and L1 where runs are compared; every column of its tables fits on a telephone."""
    classes = [*PAYLOADS[:5], "plain"]
    judged = [make_report(classes, 360, skill=skill) for skill in (2.0, 3.5)]
    found = metrics.compare(judged[0].predictions, judged[1].predictions)
    page = tmp_path / "comparison.html"
    names = [PAYLOADS[0], PAYLOADS[1]]
    evaluations = [each.evaluation for each in judged]
    page.write_text(render_comparison(names, "test", evaluations, [found]), encoding="utf-8")
    browser.open(page, width=width)
    assert_quiet(browser)
    assert browser.run("document.documentElement.scrollWidth") <= width
    shown = browser.texts("td, th")
    assert all(name in shown for name in classes)
    assert any(PAYLOADS[1] in text for text in browser.texts("h3"))
    rights = "[...document.querySelectorAll('td')].map((e) => e.getBoundingClientRect().right)"
    assert max(browser.run(rights)) <= width


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_of_a_server_shows_answers_and_runs_no_name(
    browser: Any, shipped: Any, tmp_path: Path, width: int
) -> None:
    """K21: classes and files with scripts in their names, dropped on the page of a server."""
    bundle = shutil.copytree(shipped.onnx, tmp_path / "bundle")
    about = json.loads((bundle / "bundle.json").read_text())
    about["classes"] = list(PAYLOADS[:3])
    model = (bundle / "model.onnx").read_bytes()
    shutil.rmtree(bundle)
    storage.write_folder(bundle, {"model.onnx": model, "bundle.json": json.dumps(about).encode()})
    good, bad = tmp_path / "<img src=x onerror=alert(1)>.jpg", tmp_path / "<b>bad.jpg"
    shutil.copy(shipped.files()[0], good)
    bad.write_bytes(b"no image")
    server = subprocess.Popen(
        [sys.executable, "-m", "vidi", "serve", str(bundle), "--port", "0"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert server.stderr is not None
    try:
        address = server.stderr.readline().split("serving at ")[1].strip()
        browser.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=900, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        browser.dialogs.clear()
        browser.errors.clear()
        browser.requests.clear()
        browser.call("Page.navigate", url=address)
        wait(lambda: browser.count("#files") == 1)
        root = browser.call("DOM.getDocument")["root"]["nodeId"]
        field = browser.call("DOM.querySelector", nodeId=root, selector="#files")["nodeId"]
        browser.call("DOM.setFileInputFiles", files=[str(good), str(bad)], nodeId=field)
        wait(lambda: browser.count(".answer") == 2)
        assert set(browser.texts(".file")) == {good.name, bad.name}
        assert set(browser.texts(".shares li span:first-child")) >= set(about["classes"])
        assert browser.run("document.documentElement.scrollWidth") <= width
        assert browser.dialogs == []
        # The browser itself tells of the one answer that is a refusal.
        assert all("422" in error for error in browser.errors), browser.errors
        assert all(each.startswith((address, "blob:")) for each in browser.requests)
    finally:
        browser.call("Page.navigate", url="about:blank")
        server.terminate()
        server.wait(30)
        server.stderr.close()


def wait(until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.05)
