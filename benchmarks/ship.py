"""What is shipped, measured: agreement, rates, HTTP, the report, and the first prediction.

    python benchmarks/ship.py RUN IMAGES

RUN: a run of photos with its bundles (vidi export RUN; vidi export RUN --to onnx-int8). IMAGES: its
test images. Rates are ratios from one process, taken in turns, medians; run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import vidi
from vidi.bundle import Bundle
from vidi.export.graph import folded
from vidi.predict.inputs import find
from vidi.predictor import Predictor
from vidi.predictor.trained import restored
from vidi.run import Run

ROUNDS = 5
BATCH = 32


def median_rate(work: dict[str, Callable[[], object]], images: int) -> dict[str, float]:
    """Images per second of each, taken in turns so that what disturbs one disturbs all."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for each in work.values():
        each()
    for _ in range(ROUNDS):
        for name, each in work.items():
            started_at = time.perf_counter()
            each()
            times[name].append(time.perf_counter() - started_at)
    return {name: images / statistics.median(found) for name, found in times.items()}


def agreement(trained: Predictor, bundle: Predictor, files: list[str], run: Path) -> None:
    """From bytes to label: training's own predictions, the bundle, `predict`, HTTP."""
    saved = Run.open(run).read_predictions("test")
    data = [Path(file).read_bytes() for file in files]
    ours = np.concatenate(
        [trained.probabilities(data[i : i + 32]) for i in range(0, len(data), 32)]
    )
    theirs = np.concatenate(
        [bundle.probabilities(data[i : i + 32]) for i in range(0, len(data), 32)]
    )
    report("run and bundle", ours, theirs)
    if len(saved["probabilities"]) == len(ours):
        order = np.lexsort(saved["probabilities"].T), np.lexsort(ours.T)
        report(
            "saved test predictions and run, as sets",
            saved["probabilities"][order[0]],
            ours[order[1]],
        )
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.jsonl"
        listed = "\n".join(files)
        subprocess.run(
            [sys.executable, "-m", "vidi", "predict", str(run / "bundle"), "-", "--out", str(out),
             "--probabilities"], input=listed, text=True, check=True,
        )  # fmt: skip
        rows = [json.loads(line)["probabilities"] for line in out.read_text().splitlines()]
        report("run and vidi predict", ours, np.array(rows))
    with Server(run / "bundle") as server:
        way = server.connect()
        asked = [server.ask(each, len(bundle.classes), connection=way) for each in data]
    place = {name: i for i, name in enumerate(bundle.classes)}
    shares = np.zeros_like(ours)
    for row, answer in enumerate(asked):
        for each in answer["top"]:
            shares[row, place[each["label"]]] = each["probability"]
    report("run and HTTP", ours, shares)


def report(what: str, ours: Any, theirs: Any) -> None:
    same = float((ours.argmax(axis=1) == theirs.argmax(axis=1)).mean())
    print(
        f"{what}: {same:.1%} the same label, largest difference {np.abs(ours - theirs).max():.1e}"
    )


def forward(run: Path, trained: Predictor, files: list[str]) -> None:
    """Networks on prepared pixels, batches of 32; the torch paths that inference can take."""
    bundle = vidi.load(run / "bundle")
    eight = vidi.load(run / "bundle-onnx-int8")
    pixels = np.stack([trained.prepare(file) for file in files[:BATCH]])
    nchw = np.moveaxis(pixels, 3, 1)
    _, _, classifier, _ = restored(Run.open(run))
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    quick = folded(classifier).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    plain = torch.from_numpy(np.ascontiguousarray(nchw))
    last = plain.contiguous(memory_format=torch.channels_last)

    def torch_path(network: Any, images: Any, lowered: bool = False) -> Callable[[], object]:
        def work() -> object:
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=lowered):
                return network(images)

        return work

    work: dict[str, Callable[[], object]] = {
        "onnx": lambda: bundle.network(nchw, ("logits",)),
        "onnx-int8": lambda: eight.network(nchw, ("logits",)),
        "torch float32": torch_path(classifier, plain),
        "torch float32, channels last, folded": torch_path(quick, last),
        "torch bfloat16, channels last, folded": torch_path(quick, last, lowered=True),
    }
    rates = median_rate(work, BATCH)
    for name, rate in rates.items():
        print(f"{name}: {rate:.1f} images/s")
    in_float32 = max(rate for name, rate in rates.items() if name.startswith("torch float32"))
    fastest = max(rate for name, rate in rates.items() if name.startswith("torch"))
    print(f"onnx against the fastest float32 torch path: {rates['onnx'] / in_float32:.2f}")
    print(f"onnx against the fastest torch path: {rates['onnx'] / fastest:.2f}")
    print(f"int8 against float32: {rates['onnx-int8'] / rates['onnx']:.2f}")
    about = Bundle.open(run / "bundle-onnx-int8").about
    assert about.quantised is not None
    lost = about.quantised.accuracy_before - about.quantised.accuracy_after
    print(f"int8 costs {100 * lost:.2f} points on {about.parity.n} validation images")


class Server:
    """`vidi serve` on a free port."""

    def __init__(self, bundle: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "vidi", "serve", str(bundle), "--port", "0"],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stderr is not None
        line = self._process.stderr.readline()
        self.port = int(line.strip().rstrip("/").rsplit(":", 1)[1])

    def connect(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.connect()
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def ask(self, data: bytes, top: int = 1, *, connection: http.client.HTTPConnection) -> Any:
        chosen = connection
        chosen.request("POST", f"/predict?top={top}", data, {"Content-Type": "image/jpeg"})
        answer = chosen.getresponse()
        body = answer.read()
        assert answer.status == 200, body
        return json.loads(body)

    def memory_mb(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(30)


def over_http(run: Path, files: list[str], count: int) -> None:
    """Concurrency 1 and 32 against the predictor's own rate, decoding in threads included."""
    bundle = vidi.load(run / "bundle")
    data = [Path(file).read_bytes() for file in files]
    many = [data[i % len(data)] for i in range(count)]

    def own() -> None:
        with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            pixels = list(pool.map(bundle.prepare, many))
        for start in range(0, count, BATCH):
            bundle.answers(np.stack(pixels[start : start + BATCH]))

    with Server(run / "bundle") as server:
        taken: list[float] = []

        def send(way: int) -> None:
            # Of its own time: the server closes what says nothing for five seconds.
            connection = server.connect()
            for each in many[way::32]:
                started_at = time.perf_counter()
                server.ask(each, connection=connection)
                taken.append(time.perf_counter() - started_at)

        def together() -> None:
            with concurrent.futures.ThreadPoolExecutor(32) as clients:
                list(clients.map(send, range(32)))

        rates = median_rate({"own": own, "HTTP": together}, count)
        half = sorted(taken[len(taken) // 2 :])
        p50, p99 = half[len(half) // 2], half[int(0.99 * len(half))]
        print(f"predictor {rates['own']:.1f}, HTTP at 32 {rates['HTTP']:.1f} images/s: "
              f"{rates['HTTP'] / rates['own']:.2f}")  # fmt: skip
        print(f"under that load p50 {1e3 * p50:.0f} ms, p99 {1e3 * p99:.0f} ms: {p99 / p50:.2f}")
        alone, asked = [], []
        way = server.connect()
        for each in data[:60]:
            started_at = time.perf_counter()
            bundle(each)
            alone.append(time.perf_counter() - started_at)
            started_at = time.perf_counter()
            server.ask(each, connection=way)
            asked.append(time.perf_counter() - started_at)
        added = statistics.median(np.array(asked) - np.array(alone))
        print(f"one at a time: predictor {1e3 * statistics.median(alone):.1f} ms, "
              f"HTTP adds {1e3 * added:.1f} ms")  # fmt: skip


def first_prediction(run: Path, file: str) -> None:
    """From the start of the process, caches warm."""
    times = []
    for _ in range(ROUNDS + 1):
        started_at = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "vidi", "predict", str(run / "bundle"), file],
            check=True, capture_output=True,
        )  # fmt: skip
        times.append(time.perf_counter() - started_at)
    print(f"process start to first prediction: {statistics.median(times[1:]):.2f} s")


def page_size(run: Path) -> None:
    print(f"report.html: {(run / 'report.html').stat().st_size / 1e6:.2f} MB")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("images")
    parser.add_argument("--requests", type=int, default=384)
    parser.add_argument(
        "--only", choices=["agreement", "forward", "http", "first", "report"], action="append"
    )
    asked = parser.parse_args()
    files = [found.path for found in find([asked.images])]
    wanted = asked.only or ["agreement", "forward", "http", "first", "report"]
    trained = vidi.load(asked.run)
    if "first" in wanted:
        first_prediction(asked.run, files[0])
    if "forward" in wanted:
        forward(asked.run, trained, files)
    if "http" in wanted:
        over_http(asked.run, files, asked.requests)
    if "agreement" in wanted:
        agreement(trained, vidi.load(asked.run / "bundle"), files, asked.run)
    if "report" in wanted:
        page_size(asked.run)


if __name__ == "__main__":
    main()
