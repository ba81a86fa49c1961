"""The page of an audit in a real Chromium: names are text, pictures are pixels, nothing is asked
for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vidi.data import Audit, Finding
from vidi.report import audit_pictures, render_audit

pytestmark = pytest.mark.slow

# FAULTS.md L1: each must be shown as the text that it is.
PAYLOADS = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "</style><script>alert(4)</script>",
    "javascript:alert(7)",
    "{{7*7}}{% raw %}${alert(8)}",
    "line\u2028break",
    "<svg onload=alert(9)>",
    "__proto__",
    "constructor",
    "\udcff\udcfe",
    "n" * 255,
)


def made(names: tuple[str, ...], *, classes: int = 3, many: int = 1) -> Audit:
    labels = tuple(f"{names[n % len(names)][:60]} {n}" for n in range(classes))
    counts = tuple(range(classes, 0, -1))
    findings = (
        Finding(
            code="LEAK",
            severity="error",
            message=f"{names[0]} leaks",
            count=many,
            paths=names,
            groups=tuple((name, f"train/{name}") for name in names) * many,
        ),
        Finding(code="DARK", severity="note", message="dark", count=len(names), paths=names),
        Finding(
            code="EMPTY",
            severity="error",
            message="empty",
            count=many,
            paths=tuple(f"{name} (why)" for name in names) * many,
        ),
        Finding(code="CLASSES", severity="warning", message=names[1], count=1),
    )
    return Audit(
        name=names[0],
        fingerprint="0" * 32,
        classes=labels,
        counts={"train": counts, "validation": counts, "test": counts},
        split_rule=names[2],
        num_found=100,
        num_used=90,
        quarantined={"EMPTY": 5},
        ignored={"HIDDEN": 5},
        formats={"jpeg": 90},
        notes={},
        height_px=(1, 2, 3),
        width_px=(1, 2, 3),
        grey=False,
        findings=findings,
        leaked={"test": (1, 2)},
        same=((1, 2),),
        recut=True,
        elapsed_s=1.5,
    )


def page_of(audit: Audit, path: Path, side: int = 40) -> Path:
    rng = np.random.default_rng(0)
    shown = {
        name: rng.integers(0, 256, (side, side // 2, 3), dtype=np.uint8)
        for name in audit_pictures(audit)
        if not name.endswith("(why)")
    }
    path.write_bytes(render_audit(audit, shown).encode())
    return path


@pytest.mark.parametrize("width", [390, 1280])
def test_hostile_names_are_text_and_nothing_runs(browser: Any, tmp_path: Path, width: int) -> None:
    """L1, L2"""
    browser.open(page_of(made(PAYLOADS), tmp_path / "audit.html"), width=width)
    assert browser.dialogs == []
    assert browser.errors == []
    assert browser.requests == []
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.count("script:not([type]), script[type=module]") == 1
    assert browser.count("base, iframe, object, embed, form, template, b, i") == 0
    assert browser.count("a:not([href^='#'])") == 0
    assert browser.count("img:not([src^='data:image/'])") == 0
    assert browser.count("article.found") == 4
    text = browser.run("document.querySelector('main').textContent")
    for payload in PAYLOADS:
        shown = payload.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
        assert payload in text or shown in text or "\ufffd" in text, payload
    assert browser.count("article img") == 3 * len(PAYLOADS)


def test_the_parts_that_do_not_fit_are_shown_when_asked(browser: Any, tmp_path: Path) -> None:
    names = tuple(f"test/a/{number}.jpg" for number in range(30))
    browser.open(page_of(made(names), tmp_path / "audit.html"))
    assert browser.count(".groups .group") == 12
    assert browser.count(".names li") == 12
    browser.run("document.querySelectorAll('.pager button').forEach((each) => each.click())")
    assert browser.count(".groups .group") == 24
    assert browser.count(".names li") == 30
    assert browser.errors == []


def test_two_thousand_classes_and_many_findings_open_at_once(browser: Any, tmp_path: Path) -> None:
    """L7"""
    names = tuple(f"test/a/{number}.jpg" for number in range(200))
    path = page_of(made(names, classes=2000, many=20), tmp_path / "audit.html", side=144)
    assert path.stat().st_size < 5e6
    assert browser.open(path) < 3
    assert browser.errors == []
