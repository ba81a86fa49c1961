"""Decoding in processes of their own, which are replaced when they crash or take too long."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import queue
import select
import subprocess
import sys
import time
from types import TracebackType
from typing import Final, Self, final

import numpy as np

from vidi.errors import UnreadableImage
from vidi.image import PixelContract, Pixels
from vidi.serve.child import ERROR, PIXELS

_CHUNK: Final = 1 << 16
_PIPE_BYTES: Final = 1 << 20

# Not `-m`: the package imports that module itself, about which `-m` warns on the user's screen.
_PROGRAM = "from vidi.serve.child import main; main()"


@final
class Decoders:
    """`decode(data)` from as many threads as there are processes."""

    def __init__(
        self, contract: PixelContract, count: int, limit_s: float, *, program: str | None = None
    ) -> None:
        """program: what is run instead of `vidi.serve.child`; tests put in one that misbehaves."""
        self._contract = contract
        self._limit_s = limit_s
        self._command = [
            sys.executable,
            # Nothing is imported from the current folder.
            *("-P", "-c", _PROGRAM if program is None else program),
            contract.model_dump_json(),
        ]
        self.num_replaced = 0
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        for _ in range(count):
            self._idle.put(self._start())

    def _start(self) -> subprocess.Popen[bytes]:
        child = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        assert child.stdin is not None
        assert child.stdout is not None
        # So that a child that reads nothing cannot hold a thread.
        os.set_blocking(child.stdin.fileno(), False)
        # A whole photo at once, and its pixels: every refill of 64 kB wakes the other side.
        for pipe in (child.stdin, child.stdout):
            with contextlib.suppress(OSError):
                fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        return child

    def decode(self, data: bytes) -> Pixels:
        """(image_px, image_px, channels) of one image.

        Raises:
            UnreadableImage: as `image.prepare`; or it crashed the decoder or took too long.
        """
        child = self._idle.get()
        whole = False
        try:
            kind, payload = self._asked(child, data)
            whole = True
        except TimeoutError:
            raise UnreadableImage(
                f"it took more than {self._limit_s:g} s to decode", reason="TIMEOUT"
            ) from None
        except (EOFError, BrokenPipeError):
            raise UnreadableImage("the decoder crashed on it", reason="CORRUPT") from None
        finally:
            if not whole:
                self.num_replaced += 1
                _end(child)
                child = self._start()
            self._idle.put(child)
        if kind == ERROR:
            reason, message = json.loads(payload)
            raise UnreadableImage(message, reason=reason)
        side = self._contract.image_px
        pixels = np.frombuffer(payload, np.uint8)
        return pixels.reshape(side, side, self._contract.channels)

    def _asked(self, child: subprocess.Popen[bytes], data: bytes) -> tuple[bytes, bytes]:
        assert child.stdin is not None
        assert child.stdout is not None
        deadline = time.monotonic() + self._limit_s
        _write(child.stdin.fileno(), len(data).to_bytes(4, "little") + data, deadline)
        head = _read(child.stdout.fileno(), 5, deadline)
        if head[:1] not in (PIXELS, ERROR):
            raise EOFError
        return head[:1], _read(child.stdout.fileno(), int.from_bytes(head[1:], "little"), deadline)

    def close(self) -> None:
        """End all processes that are idle; those that are not end with their work."""
        with contextlib.suppress(queue.Empty):
            while True:
                _end(self._idle.get_nowait())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _write(descriptor: int, data: bytes, deadline: float) -> None:
    left = memoryview(data)
    while left:
        _wait(descriptor, select.POLLOUT, deadline)
        with contextlib.suppress(BlockingIOError):
            left = left[os.write(descriptor, left) :]


def _read(descriptor: int, count: int, deadline: float) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        _wait(descriptor, select.POLLIN, deadline)
        part = os.read(descriptor, min(max(_CHUNK, count), count - len(parts)))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)


def _wait(descriptor: int, event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(descriptor, event)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise TimeoutError


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
