"""How long `import vidi` and `vidi --help` take: medians of new processes, beside a bare Python.

    python benchmarks/imports.py [REPEATS]

The bars are 0.3 s and 0.7 s on the machine of docs/measurements.md.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path


def median_s(command: list[str], repeats: int) -> float:
    """Median wall-clock seconds of a process; one more run first warms the file cache."""
    times = []
    for turn in range(repeats + 1):
        started_at = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        if turn:
            times.append(time.perf_counter() - started_at)
    return statistics.median(times)


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    vidi = str(Path(sys.executable).with_name("vidi"))
    bare_s = median_s([sys.executable, "-c", "pass"], repeats)
    print(f"{'python -c pass':<16} {bare_s:.3f} s")
    for name, command in (
        ("import vidi", [sys.executable, "-c", "import vidi"]),
        ("vidi --help", [vidi, "--help"]),
    ):
        seconds = median_s(command, repeats)
        print(f"{name:<16} {seconds:.3f} s   {seconds / bare_s:.1f} times a bare Python")


if __name__ == "__main__":
    main()
