"""`vidi train` as a user starts it, for each seed: test accuracy and seconds from process start.

    python benchmarks/train.py digits
    python benchmarks/train.py FOLDER --minutes 5 --seeds 0 1 2

Nothing is chosen by these numbers: the test split is looked at when all is decided.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("data")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    accuracies, times = [], []
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "vidi", "train", arguments.data, "--json"]
            command += ["--out", str(Path(folder) / "run"), "--set", f"train.seed={seed}"]
            if arguments.minutes:
                command += ["--minutes", str(arguments.minutes)]
            started_at = time.perf_counter()
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
            times.append(time.perf_counter() - started_at)
        result = json.loads(done.stdout)
        accuracies.append(result["accuracy"])
        low, high = result["accuracy_interval"]
        print(
            f"seed {seed}: {result['split']} accuracy {accuracies[-1]:.2%} "
            f"({low:.2%} to {high:.2%}) in {times[-1]:.0f} s",
            flush=True,
        )
    print(
        f"median {statistics.median(accuracies):.2%}, lowest {min(accuracies):.2%}, "
        f"in {statistics.median(times):.0f} s (longest {max(times):.0f} s)"
    )


if __name__ == "__main__":
    main()
