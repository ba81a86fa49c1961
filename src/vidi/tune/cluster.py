"""Workers on a Ray cluster: the same sessions as in processes, in actors."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, final

from vidi.config import MachineConfig
from vidi.cores import usable_cores
from vidi.errors import Interrupted, MissingExtra, UsageError
from vidi.signals import Stop, obeying
from vidi.tune.workers import Event
from vidi.words import count, first_line

# An actor is asked so often whether it has something to tell.
_POLL_S: Final = 0.1
# After so long it is said that actors wait for room on the cluster, and then the search begins with
# those that are there: their process imports torch first, over a slow disk perhaps.
_SAID_S: Final = 10.0
ROOM_S: Final = 120.0


class Node(NamedTuple):
    """A machine of a cluster. cards: its graphics cards."""

    cores: int
    cards: int


class Share(NamedTuple):
    """What a worker asks of the cluster. cards: less than 1 where several use one."""

    cores: int
    cards: float


def fair_share(
    nodes: Sequence[Node], size: int, *, cores: int | None = None, cards: bool = True
) -> Share:
    """The most that each of so many workers can have when all have as much.

    All are where graphics cards are, if any are: elsewhere a trial would take many times as long.

    Args:
        cores: what each has in any case. cards: whether graphics cards are used.
    """
    with_cards = [node for node in nodes if node.cards] if cards else []
    nodes = with_cards or nodes
    to_a_card = 1
    if with_cards:
        to_a_card = math.ceil(size / sum(node.cards for node in with_cards))

    def room(asked: int) -> int:
        """For so many workers with that many cores."""
        if not with_cards:
            return sum(node.cores // asked for node in nodes)
        return sum(min(node.cores // asked, to_a_card * node.cards) for node in nodes)

    most = max((node.cores for node in nodes), default=1)
    fitting = next((asked for asked in range(most, 1, -1) if room(asked) >= size), 1)
    # Ray counts in tenths of a thousandth.
    share = math.floor(10_000 / to_a_card) / 10_000
    return Share(cores or fitting, share if with_cards else 0.0)


@final
class _Actor:
    """A session on a machine of the cluster; what it sends waits until it is fetched."""

    def __init__(self) -> None:
        # Here, because the search itself needs no torch.
        from vidi.tune.session import Session  # noqa: PLC0415

        self._told: deque[Mapping[str, Any]] = deque()
        self._session = Session(self._told.append)
        self._stop = Stop()

    def handle(self, message: Mapping[str, Any]) -> None:
        self._stop = Stop()
        with obeying(self._stop), contextlib.suppress(Interrupted):
            self._session.handle(message)

    def fetch(self) -> list[Mapping[str, Any]]:
        """What was sent since the last time; called while `handle` runs."""
        found = []
        while self._told:
            found.append(self._told.popleft())
        return found

    def stop(self) -> None:
        """What `handle` is at saves and stops; the data stay open."""
        self._stop.signal_number = signal.SIGTERM


@final
class Actors:
    """A crew on a Ray cluster. A machine that is lost costs its trials the steps since their last
    checkpoints: they go on elsewhere."""

    def __init__(
        self, size: int, address: str, machine: MachineConfig, *, say: Callable[[str], None]
    ) -> None:
        """machine: what a worker may use. say: told when there is room for fewer.

        Raises MissingExtra, UsageError when there is no such cluster, or no room on it.
        """
        try:
            import ray  # noqa: PLC0415 - an extra
        except ImportError:
            raise MissingExtra(
                "running trials on a Ray cluster needs a package", fix='pip install "vidi[ray]"'
            ) from None
        self._ray: Any = ray
        self._ours = not ray.is_initialized()
        cores = max(size * (machine.threads or 1), usable_cores())
        where = {"num_cpus": cores} if address == "local" else {"address": address}
        if self._ours:
            try:
                ray.init(**where, log_to_driver=False, include_dashboard=False)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise UsageError(
                    f"there is no Ray cluster at {address}: {first_line(error)}",
                    fix='give the address of its head, "auto", or "local" for one on this machine',
                ) from None
        self._share = fair_share(
            _nodes(ray.nodes()),
            size,
            cores=machine.threads,
            cards=machine.device in (None, "cuda"),
        )
        self._actors: dict[int, Any] = {}
        # What was asked of them and is not answered yet.
        self._working: dict[int, Any] = {}
        self._fetching: dict[int, Any] = {}
        self._events: deque[Event] = deque()
        for worker in range(size):
            self._start(worker)
        try:
            self._keep_those_with_room(say)
        except BaseException:
            self.close()
            raise

    @property
    def size(self) -> int:
        return self._size

    @property
    def threads(self) -> int | None:
        return self._share.cores

    def send(self, worker: int, message: Mapping[str, Any]) -> None:
        if worker not in self._actors:
            self._start(worker)
        self._working[worker] = self._actors[worker].handle.remote(dict(message))

    def wait(self, timeout_s: float) -> Event | None:
        until = time.monotonic() + timeout_s
        while True:
            if not self._events:
                self._fetch()
            if self._events:
                return self._events.popleft()
            left_s = until - time.monotonic()
            if left_s <= 0:
                return None
            time.sleep(min(_POLL_S, left_s))

    def stop(self, worker: int) -> None:
        if worker in self._actors:
            self._actors[worker].stop.remote()

    def kill(self, worker: int) -> None:
        if worker in self._actors:
            self._ray.kill(self._actors[worker])

    def close(self) -> None:
        for actor in self._actors.values():
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.kill(actor)
        if self._ours:
            self._ray.shutdown()

    def _keep_those_with_room(self, say: Callable[[str], None]) -> None:
        """Others would be waited for until whoever else uses the cluster is done."""
        asked = {self._actors[worker].fetch.remote(): worker for worker in self._actors}
        there, missing = self._ray.wait(list(asked), num_returns=len(asked), timeout=_SAID_S)
        if missing:
            say(f"waiting for room on the cluster for {len(missing)} of {len(asked)} workers")
            there, missing = self._ray.wait(list(asked), num_returns=len(asked), timeout=ROOM_S)
        cards = f" and {self._share.cards:g} of a graphics card" if self._share.cards else ""
        why = (
            f"the cluster has no room for {len(missing)} of {count(len(asked), 'worker')} with "
            f"{count(self._share.cores, 'core')}{cards} each"
        )
        if not there:
            raise UsageError(
                why, fix="set machine.threads lower, or wait until others are done with it"
            )
        if missing:
            say(f"{why}: searching with {len(there)}; --workers {len(there)} does not wait for it")
        for waiting in missing:
            self._ray.kill(self._actors[asked[waiting]])
        self._actors = {worker: self._actors[asked[answer]] for worker, answer in enumerate(there)}
        self._size = len(there)

    def _fetch(self) -> None:
        """What the actors have answered by now; nobody is waited for."""
        for worker, actor in self._actors.items():
            if worker not in self._fetching:
                self._fetching[worker] = actor.fetch.remote()
        if not self._fetching:
            return
        asked = {answer: worker for worker, answer in self._fetching.items()}
        there, _ = self._ray.wait(list(asked), num_returns=len(asked), timeout=0)
        for answer in there:
            worker = asked[answer]
            del self._fetching[worker]
            try:
                self._events.extend(Event(worker, one) for one in self._ray.get(answer))
            except self._ray.exceptions.RayError as error:
                del self._actors[worker]
                why = f"its actor is gone ({type(error).__name__})"
                self._events.append(Event(worker, {"kind": "died", "message": why}))

    def _start(self, worker: int) -> None:
        # One thread trains, another answers `fetch`, and there is one for `stop`.
        made = self._ray.remote(_Actor).options(
            max_concurrency=3,
            num_cpus=self._share.cores,
            num_gpus=self._share.cards,
            runtime_env={"env_vars": {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}},
        )
        self._actors[worker] = made.remote()


def _nodes(told: Sequence[Mapping[str, Any]]) -> list[Node]:
    """The machines that are there, of all that Ray knows."""
    alive = [one["Resources"] for one in told if one["Alive"]]
    return [Node(int(one.get("CPU", 0)), int(one.get("GPU", 0))) for one in alive]
