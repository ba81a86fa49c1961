"""Reports of runs that never were: everything that a page shows, made by code."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vidi import metrics
from vidi.config import Config
from vidi.facts import DatasetFacts, Facts, Machine, Measurements, ModelFacts, StepTiming
from vidi.metrics import Predictions
from vidi.plan import make
from vidi.report import Pictures, ReportData
from vidi.report.data import Explained

MakeReport = Callable[..., ReportData]

NAMES = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay")


def predictions_for(num_classes: int, n: int, *, skill: float, seed: int = 0) -> Predictions:
    """Some classes look like their neighbour; the rest is luck."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % num_classes
    logits = rng.standard_normal((n, num_classes), dtype=np.float32)
    logits[np.arange(n), labels] += skill
    logits[np.arange(n), (labels + 1) % num_classes] += 0.35 * skill * (labels % 3 == 0)
    odds = np.exp(logits)
    return Predictions(np.arange(n) + 40, labels, odds / odds.sum(axis=1, keepdims=True))


def drawn(label: int, rng: np.random.Generator, *, px: int, channels: int) -> np.ndarray:
    """A bright disc on a dark ground, in a colour that goes with the label."""
    y, x = np.mgrid[0:px, 0:px] / px - rng.uniform(0.35, 0.65, (2, 1, 1))
    inside = (x**2 + y**2 < rng.uniform(0.06, 0.12))[:, :, None]
    tint = np.array([(label * 67) % 200, (label * 131) % 200, (label * 29) % 200][:channels]) + 50
    return np.where(inside, tint, rng.integers(20, 60, (px, px, channels))).astype(np.uint8)


def learning_records(num_steps: int, every: int) -> list[dict[str, Any]]:
    """A run that learns: loss falls, accuracy rises, the learning rate is a cosine."""
    records: list[dict[str, Any]] = []
    rng = np.random.default_rng(1)
    for step in range(1, num_steps + 1):
        done = step / num_steps
        wobble = float(rng.normal(0, 0.02))
        records.append(
            {"kind": "train", "step": step, "epoch": step / every,
             "loss": 2.3 * 0.02**done + wobble + 0.1,
             "accuracy": 1 - 0.9 * 0.05**done + wobble / 4,
             "learning_rate": 0.05 * (1 + np.cos(np.pi * done))}
        )  # fmt: skip
        if step % every == 0:
            records.append(
                {"kind": "validation", "step": step, "epoch": step / every,
                 "accuracy": 1 - 0.9 * 0.06**done, "log_loss": 2.3 * 0.03**done + 0.12}
            )  # fmt: skip
    return records


def made_report(
    classes: Sequence[str] = NAMES,
    n: int = 360,
    *,
    skill: float = 4.5,
    px: int = 32,
    channels: int = 3,
    num_pictures: int = 60,
    file_names: Sequence[str] | None = None,
    name: str = "2026-11-22_animals_a1b2",
    title: str = "animals",
    pixels_for: Callable[[int, int], np.ndarray] | None = None,
    quarantined: dict[str, int] | None = None,
    **changes: Any,
) -> ReportData:
    """A finished run on `classes`; `changes` replace fields of the ReportData."""
    num_classes = len(classes)
    dataset = DatasetFacts(
        name=title,
        fingerprint="5f2a9c0d1e",
        classes=tuple(classes),
        counts={
            "train": tuple(120 + 17 * (label % 7) for label in range(num_classes)),
            "validation": (20,) * num_classes,
            "test": (n // num_classes,) * num_classes,
        },
        height_px=(px, px, px),
        width_px=(px, px, px),
        grey=channels == 1,
        split_rule="folders for test; validation stratified from train, 15%, seed 0",
        quarantined={"TRUNCATED": 2, "NOT_IMAGE": 1} if quarantined is None else quarantined,
        ignored={"hidden": 3},
        neighbour_agreement=0.71,
    )
    machine = Machine(
        platform="Linux-6.1", processor="a processor of 2024", physical_cores=2, usable_cores=2,
        memory_bytes=16 << 30, cpu_bfloat16=True, python="3.11.9", torch="2.13.0",
    )  # fmt: skip
    steps = tuple(
        StepTiming(precision=precision, channels_last=last, batch_size=64, threads=2,
                   images_per_second=rate, rejected=rejected)
        for precision, last, rate, rejected in (
            ("float32", False, 812.4, ""), ("float32", True, 1204.1, ""),
            ("bfloat16", True, 2041.7, ""), ("bfloat16", False, 1620.3, "left the tolerance"),
        )
    )  # fmt: skip
    facts = Facts(
        dataset=dataset,
        machine=machine,
        model=ModelFacts(name="small_cnn", parameters=1_204_810, multiply_adds=38_400_000),
        measured=Measurements(steps=steps, probe_s=6.2),
    )
    config = Config().with_settings({"train.epochs": 12, "train.batch_size": 64})
    predictions = predictions_for(num_classes, n, skill=skill)
    evaluation = metrics.evaluate(predictions, list(classes), n_expected=n)
    predicted = predictions.probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predicted != predictions.labels)
    worst = wrong[np.argsort(-predictions.probabilities[wrong, predicted[wrong]], kind="stable")]
    worst = worst[:num_pictures]
    rng = np.random.default_rng(0)
    pixels = [
        pixels_for(int(predictions.labels[i]), int(i))
        if pixels_for
        else drawn(int(predictions.labels[i]), rng, px=px, channels=channels)
        for i in worst
    ]
    pictures = Pictures(
        ids=predictions.ids[worst],
        pixels=np.stack(pixels) if pixels else np.zeros((0, px, px, channels), np.uint8),
        names=tuple(
            file_names[k % len(file_names)] if file_names
            else f"test/{classes[predictions.labels[i]]}/{i:05}.jpg"
            for k, i in enumerate(worst)
        ),
    )  # fmt: skip
    mapped = predictions.ids[:1000]
    near = min(5, len(pictures.ids))
    explained = Explained(
        heat_ids=pictures.ids,
        heat=rng.integers(0, 256, (len(pictures.ids), 7, 7), dtype=np.uint8),
        map_ids=mapped,
        places=rng.uniform(-1, 1, (len(mapped), 2)).astype(np.float32),
        near_of=pictures.ids[:near],
        near_labels=np.zeros((near, 3), np.int64),
        near_pixels=rng.integers(0, 256, (near, 3, px, px, channels), dtype=np.uint8),
    )
    data = ReportData(
        name=name,
        config=config.model_dump(exclude_unset=True, mode="json"),
        plan=make(config, facts),
        facts=facts,
        environment={
            "vidi": "0.1.0", "python": "3.11.9", "threads": 2,
            "packages": {"torch": "2.13.0", "numpy": "2.4.6"},
        },
        records=learning_records(240, 20),
        timing=[
            {"step": step, "images_per_second": 1900 + 10 * (step % 7), "wait_fraction": 0.004}
            for step in range(10, 240, 10)
        ],
        evaluation=evaluation,
        predictions=predictions,
        pictures=pictures,
        explained=explained,
    )  # fmt: skip
    return dataclasses.replace(data, **changes)


@pytest.fixture(scope="session")
def make_report() -> MakeReport:
    """`make_report(classes, n, skill=..., ...)`."""
    return made_report


class Browser:
    """A headless Chromium, spoken to over two pipes (the DevTools protocol, NUL between messages).

    `open` loads a file and waits until the page says that it is ready. Whatever the page did on its
    own is in `dialogs`, `errors` and `requests`; a page that behaves leaves all three empty.
    """

    def __init__(self, executable: str, folder: Path) -> None:
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()

        def as_three_and_four() -> None:
            # Through high numbers, because 3 or 4 may be one of the pipes' own.
            os.dup2(to_browser, 103)
            os.dup2(from_browser, 104)
            os.dup2(103, 3)
            os.dup2(104, 4)

        self._process = subprocess.Popen(
            [
                executable, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
                "--no-first-run", "--disable-background-networking", "--disable-component-update",
                "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars",
                "--remote-debugging-pipe", f"--user-data-dir={folder}", "about:blank",
            ],
            preexec_fn=as_three_and_four,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_browser)
        os.close(from_browser)
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self.dialogs: list[str] = []
        self.errors: list[str] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, *, limit_s: float = 60, **parameters: Any) -> Any:
        """The result of one command; events that come first are looked at."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + limit_s
        while True:
            answer = self._next(deadline)
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer.get('error')}"
                return answer["result"]
            self._event(answer)

    def _next(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            part = os.read(self._read, 1 << 16) if ready else b""
            assert part, f"the browser does not answer (exit status {self._process.poll()})"
            self._buffer += part
        first, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(first)
        return message

    def _event(self, event: dict[str, Any]) -> None:
        method, about = event.get("method"), event.get("params", {})
        if method == "Page.javascriptDialogOpening":
            self.dialogs.append(about["message"])
            self._number += 1
            closing = {"id": self._number, "method": "Page.handleJavaScriptDialog",
                       "params": {"accept": True}, "sessionId": self._session}  # fmt: skip
            os.write(self._write, json.dumps(closing).encode() + b"\0")
        elif method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(about["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and about["type"] in (
            "error",
            "warning",
            "assert",
        ):
            self.errors.append(json.dumps(about["args"]))
        elif method == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            self.errors.append(about["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            address = about["request"]["url"]
            if not address.startswith("data:"):
                self.requests.append(address)

    def open(
        self, page: Path, *, width: int = 1280, height: int = 900, dark: bool = False
    ) -> float:
        """Load the page and return the seconds until everything was drawn."""
        self.dialogs.clear()
        self.errors.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=width < 600)  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url="about:blank")
        self.requests.clear()
        started_at = time.monotonic()
        self.call("Page.navigate", url=page.as_uri())
        while not self.run("document.documentElement?.dataset.ready === 'true'"):
            assert time.monotonic() - started_at < 30, f"not ready: {self.errors}"
            time.sleep(0.02)
        self.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        elapsed_s = time.monotonic() - started_at
        assert self.requests[:1] == [page.as_uri()]
        del self.requests[0]
        return elapsed_s

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, awaited."""
        found = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def texts(self, selector: str) -> list[str]:
        """The text of every element that the selector finds."""
        found: list[str] = self.run(
            f"[...document.querySelectorAll({json.dumps(selector)})].map((e) => e.textContent)"
        )
        return found

    def count(self, selector: str) -> int:
        return int(self.run(f"document.querySelectorAll({json.dumps(selector)}).length"))

    def click(self, selector: str) -> None:
        """Click the first element that the selector finds."""
        self.run(f"document.querySelector({json.dumps(selector)}).click()")

    def type(self, selector: str, value: str) -> None:
        """Put a value into a field, as if it had been typed."""
        self.run(
            f"(() => {{ const field = document.querySelector({json.dumps(selector)});"
            f" field.value = {json.dumps(value)};"
            " field.dispatchEvent(new Event('input', { bubbles: true })); })()"
        )

    def press(self, key: str, code: int) -> None:
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def picture(self) -> bytes:
        """A PNG of the whole page."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        return base64.b64decode(shot["data"])

    def close(self) -> None:
        self._session = None
        self.call("Browser.close")
        self._process.wait(20)
        os.close(self._write)
        os.close(self._read)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One Chromium for all tests; every `open` starts with a clean slate."""
    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    if executable is None:
        pytest.fail("the report is tested in a real browser: install chromium (Debian: chromium)")
    opened = Browser(executable, tmp_path_factory.mktemp("browser"))
    yield opened
    opened.close()
