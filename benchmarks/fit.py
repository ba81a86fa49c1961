"""`vidi fit` as a user starts it: test accuracy, seconds from process start, budget kept.

    python benchmarks/fit.py FOLDER --minutes 0.75 3 10 --seeds 0 1 2
    python benchmarks/fit.py digits --minutes 1 --against-train

Nothing is chosen by these numbers. `--cold` gives every run a cache of its own, so that decoding
and features are paid for; `--against-train` runs `vidi train --minutes` with its defaults beside
it.
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
from typing import NamedTuple


class Result(NamedTuple):
    """One run from process start to its end."""

    accuracy: float
    seconds: float
    bundle: bool


def run(command: str, data: str, minutes: float, seed: int, folder: Path, *, cold: bool) -> Result:
    arguments = [sys.executable, "-m", "vidi", command, data, "--json", "--minutes", str(minutes)]
    arguments += ["--out", str(folder / "out"), "--set", f"train.seed={seed}"]
    environment = {**os.environ, **({"VIDI_CACHE": str(folder / "cache")} if cold else {})}
    began_at = time.perf_counter()
    done = subprocess.run(arguments, check=True, stdout=subprocess.PIPE, env=environment)
    seconds = time.perf_counter() - began_at
    told = json.loads(done.stdout)
    assert told["split"] == "test", "it was judged on the test images"
    return Result(told["accuracy"], seconds, bool(told.get("bundle")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("data")
    parser.add_argument("--minutes", type=float, nargs="+", default=[0.75, 3.0, 10.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cold", action="store_true", help="decode and compute features anew")
    parser.add_argument("--against-train", action="store_true")
    given = parser.parse_args()
    for minutes in given.minutes:
        most_s = minutes * 60 + max(3.0, 0.02 * minutes * 60)
        for command in ("fit", "train") if given.against_train else ("fit",):
            results = []
            for seed in given.seeds:
                with tempfile.TemporaryDirectory() as folder:
                    result = run(command, given.data, minutes, seed, Path(folder), cold=given.cold)
                results.append(result)
                kept = "kept" if result.seconds <= most_s else "NOT KEPT"
                bundle = ", exported" if result.bundle else ""
                print(
                    f"{command} {minutes:g} min, seed {seed}: test accuracy {result.accuracy:.2%} "
                    f"in {result.seconds:.1f} s, budget {kept}{bundle}",
                    flush=True,
                )
            accuracy = statistics.median(result.accuracy for result in results)
            seconds = statistics.median(result.seconds for result in results)
            print(f"{command} {minutes:g} min: median {accuracy:.2%}, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
