"""`vidi fit` as a user starts it: test accuracy, seconds from process start, budget kept.

    python benchmarks/fit.py FOLDER --minutes 0.75 3 10 --seeds 0 1 2
    python benchmarks/fit.py digits --minutes 1 --seeds 0 --bar 98.8 --against-train

One row is one `--minutes` with one or more `--seeds`. Nothing is chosen by these numbers. `--cold`
gives every run a cache of its own, so that decoding and features are paid for; `--against-train`
runs `vidi train --minutes` with its defaults beside it and compares the two image by image, on the
test images. `--bar` is the accuracy in per cent that the median is held against.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import vidi


class Result(NamedTuple):
    """One run from process start to its end."""

    accuracy: float
    seconds: float
    told: dict[str, Any]


def run(command: str, data: str, minutes: float, seed: int, folder: Path, *, cold: bool) -> Result:
    arguments = [sys.executable, "-m", "vidi", command, data, "--json", "--minutes", str(minutes)]
    arguments += ["--out", str(folder / command), "--set", f"train.seed={seed}"]
    cache = {"VIDI_CACHE": str(folder / f"cache-{command}")} if cold else {}
    began_at = time.perf_counter()
    done = subprocess.run(
        arguments, check=True, stdout=subprocess.PIPE, env={**os.environ, **cache}
    )
    seconds = time.perf_counter() - began_at
    told = json.loads(done.stdout)
    assert told["split"] == "test", "it was judged on the test images"
    return Result(told["accuracy"], seconds, told)


def described(command: str, minutes: float, seed: int, result: Result) -> str:
    most_s = minutes * 60 + max(3.0, 0.02 * minutes * 60)
    low, high = result.told["accuracy_interval"]
    kept = "kept" if result.seconds <= most_s else f"NOT KEPT (at most {most_s:.1f} s)"
    line = (
        f"{command} {minutes:g} min, seed {seed}: test accuracy {result.accuracy:.2%} "
        f"({low:.2%} to {high:.2%}) in {result.seconds:.1f} s, budget {kept}"
    )
    if command == "fit":
        bundle = result.told["bundle"]
        line += ", exported" if bundle else f", not exported: {result.told['no_bundle_because']}"
    return line


def chosen_by(told: dict[str, Any]) -> str:
    """What the fit made its answer of, and what that was worth where it was chosen."""
    study = vidi.Study.open(told["study"])
    (answer,) = [each["answer"] for each in study.events.read() if each["event"] == "ended"]
    trials = ", ".join(
        f"{trial.number} {trial.origin} {trial.last.accuracy:.2%}" if trial.last else trial.origin
        for trial in study.trials()
    )
    return f"  answer: trial {answer} of: {trials} (validation)"


def row(given: argparse.Namespace, minutes: float) -> None:
    """Every seed of one time, and their medians."""
    results: dict[str, list[Result]] = {}
    for seed in given.seeds:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for command in ("fit", "train") if given.against_train else ("fit",):
                result = run(command, given.data, minutes, seed, folder, cold=given.cold)
                results.setdefault(command, []).append(result)
                print(described(command, minutes, seed, result), flush=True)
            told = results["fit"][-1].told
            print(chosen_by(told), flush=True)
            if given.against_train:
                (comparison,) = vidi.compare(
                    results["train"][-1].told["run"], told["run"], split="test"
                )
                print(f"  fit against train: {comparison.sentence}", flush=True)
    for command, found in results.items():
        accuracy = statistics.median(result.accuracy for result in found)
        seconds = statistics.median(result.seconds for result in found)
        line = f"{command} {minutes:g} min: median {accuracy:.2%}, {seconds:.0f} s"
        if command == "fit" and given.bar is not None:
            reached = "reached" if 100 * accuracy >= given.bar else "NOT REACHED"
            line += f"; bar {given.bar:g} %: {reached}"
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("data")
    parser.add_argument("--minutes", type=float, nargs="+", default=[0.75, 3.0, 10.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--bar", type=float, help="per cent")
    parser.add_argument("--cold", action="store_true", help="decode and compute features anew")
    parser.add_argument("--against-train", action="store_true")
    given = parser.parse_args()
    for minutes in given.minutes:
        row(given, minutes)


if __name__ == "__main__":
    main()
