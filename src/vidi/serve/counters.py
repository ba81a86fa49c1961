"""What the server has done, in the text format of Prometheus."""

from __future__ import annotations

import os
import resource
import threading
from collections import Counter
from typing import Final, final

_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_IMAGES: Final = (1, 2, 4, 8, 16, 32, 64)


@final
class Histogram:
    """Cumulative buckets, a sum and a count."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        place = next(
            (i for i, bound in enumerate(self._bounds) if value <= bound), len(self._bounds)
        )
        self._counts[place] += 1
        self._sum += value

    def lines(self, name: str) -> list[str]:
        total = 0
        found = []
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            total += count
            found.append(f'{name}_bucket{{le="{bound}"}} {total}')
        return [*found, f"{name}_sum {self._sum:.6f}", f"{name}_count {total}"]


@final
class Counters:
    """Counted on one thread; the values are read on it too."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, int]] = Counter()
        self._reasons: Counter[str] = Counter()
        self._seconds = Histogram(_SECONDS)
        self._batches = Histogram(_IMAGES)
        self._lock = threading.Lock()

    def request(self, path: str, status: int, seconds: float) -> None:
        """path: one that exists; others are counted together."""
        with self._lock:
            self._requests[path, status] += 1
            if path == "/predict":
                self._seconds.add(seconds)

    def refused(self, reason: str) -> None:
        """An image that was no image."""
        with self._lock:
            self._reasons[reason] += 1

    def batch(self, size: int) -> None:
        with self._lock:
            self._batches.add(size)

    def text(self, *, under_way: int, replaced: int) -> str:
        """One line a value."""
        with self._lock:
            lines = ["# TYPE vidi_requests_total counter"]
            lines += [
                f'vidi_requests_total{{path="{path}",status="{status}"}} {count}'
                for (path, status), count in sorted(self._requests.items())
            ]
            lines.append("# TYPE vidi_unreadable_images_total counter")
            lines += [
                f'vidi_unreadable_images_total{{reason="{reason}"}} {count}'
                for reason, count in sorted(self._reasons.items())
            ]
            lines.append("# TYPE vidi_predict_seconds histogram")
            lines += self._seconds.lines("vidi_predict_seconds")
            lines.append("# TYPE vidi_batch_images histogram")
            lines += self._batches.lines("vidi_batch_images")
        lines += [
            "# TYPE vidi_requests_under_way gauge",
            f"vidi_requests_under_way {under_way}",
            "# TYPE vidi_decoders_replaced_total counter",
            f"vidi_decoders_replaced_total {replaced}",
            "# TYPE process_resident_memory_bytes gauge",
            f"process_resident_memory_bytes {resident_bytes()}",
        ]
        return "\n".join(lines) + "\n"


def resident_bytes() -> int:
    """Of this process, now; where the system does not say, the most it ever had."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 (no path of ours)
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
