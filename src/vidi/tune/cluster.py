"""Workers on a Ray cluster: the same sessions as in processes, in actors."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Final, final

from vidi.errors import MissingExtra, UsageError
from vidi.tune.workers import Event

# An actor is asked so often whether it has something to tell.
_POLL_S: Final = 0.1


@final
class _Actor:
    """A session on a machine of the cluster; what it sends waits until it is fetched."""

    def __init__(self) -> None:
        # Here, because the search itself needs no torch.
        from vidi.tune.session import Session  # noqa: PLC0415

        self._told: deque[Mapping[str, Any]] = deque()
        self._session = Session(self._told.append)

    def handle(self, message: Mapping[str, Any]) -> None:
        self._session.handle(message)

    def fetch(self) -> list[Mapping[str, Any]]:
        """What was sent since the last time; called while `handle` runs."""
        found = []
        while self._told:
            found.append(self._told.popleft())
        return found


@final
class Actors:
    """A crew on a Ray cluster. A machine that is lost costs its trials the steps since their last
    checkpoints: they go on elsewhere."""

    def __init__(self, size: int, address: str) -> None:
        """Raises MissingExtra, UsageError when there is no such cluster."""
        try:
            import ray  # noqa: PLC0415 - an extra
        except ImportError:
            raise MissingExtra(
                "running trials on a Ray cluster needs a package", fix='pip install "vidi[ray]"'
            ) from None
        self._ray: Any = ray
        self._size = size
        self._ours = not ray.is_initialized()
        where = {"num_cpus": size} if address == "local" else {"address": address}
        if self._ours:
            try:
                ray.init(**where, log_to_driver=False, include_dashboard=False)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise UsageError(
                    f"there is no Ray cluster at {address}: {str(error).splitlines()[0]}",
                    fix='give the address of its head, "auto", or "local" for one on this machine',
                ) from None
        self._actors: dict[int, Any] = {}
        self._working: dict[int, Any] = {}
        self._events: deque[Event] = deque()
        for worker in range(size):
            self._start(worker)

    @property
    def size(self) -> int:
        return self._size

    def send(self, worker: int, message: Mapping[str, Any]) -> None:
        if worker not in self._actors:
            self._start(worker)
        self._working[worker] = self._actors[worker].handle.remote(dict(message))

    def wait(self, timeout_s: float) -> Event | None:
        until = time.monotonic() + timeout_s
        while True:
            if self._events:
                return self._events.popleft()
            for worker in list(self._actors):
                self._look_at(worker)
            if not self._events:
                if time.monotonic() >= until:
                    return None
                time.sleep(min(_POLL_S, max(0.0, until - time.monotonic())))

    def stop(self, worker: int) -> None:
        """Its checkpoints are what is left of it; it need not save again."""
        self.kill(worker)

    def kill(self, worker: int) -> None:
        if worker in self._actors:
            self._ray.kill(self._actors[worker])

    def close(self) -> None:
        for actor in self._actors.values():
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.kill(actor)
        if self._ours:
            self._ray.shutdown()

    def _look_at(self, worker: int) -> None:
        actor = self._actors[worker]
        try:
            for message in self._ray.get(actor.fetch.remote(), timeout=30):
                self._events.append(Event(worker, message))
        except self._ray.exceptions.GetTimeoutError:
            return
        except self._ray.exceptions.RayError as error:
            del self._actors[worker]
            why = f"its actor is gone ({type(error).__name__})"
            self._events.append(Event(worker, {"kind": "died", "message": why}))

    def _start(self, worker: int) -> None:
        # The second thread answers `fetch` while the first one trains.
        made = self._ray.remote(_Actor).options(
            max_concurrency=2,
            num_cpus=1,
            runtime_env={"env_vars": {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}},
        )
        self._actors[worker] = made.remote()
