"""A server in a process of its own, spoken to over raw sockets."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


class Reply:
    """One answer, taken apart."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        head, _, self.body = raw.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        self.status = int(first.split(" ")[1]) if first.startswith("HTTP/1.1 ") else 0
        self.headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines)
        }

    def __repr__(self) -> str:
        return repr(self.raw[:400])

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Server:
    """`vidi serve`, running."""

    def __init__(self, *words: str | Path, program: str = "", **environment: str) -> None:
        command = [sys.executable, "-m", "vidi", "serve", *map(str, words), "--port", "0"]
        if program:
            command = [sys.executable, "-c", program, *map(str, words)]
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
            env=os.environ | environment, bufsize=0,
        )  # fmt: skip
        self.said = b""
        line = self.wait_for(b"serving at ", 60)
        self.address = line.split(b"serving at ")[1].decode().strip()
        self.port = int(self.address.rstrip("/").rsplit(":", 1)[1])

    def wait_for(self, words: bytes, limit_s: float) -> bytes:
        """The line of standard error with these words."""
        assert self.process.stderr is not None
        deadline = time.monotonic() + limit_s
        while True:
            for line in self.said.split(b"\n")[:-1]:
                if words in line:
                    return line
            ready, _, _ = select.select(
                [self.process.stderr], [], [], max(0.0, deadline - time.monotonic())
            )
            part = self.process.stderr.read(1 << 16) if ready else b""
            assert part, f"it did not say {words!r}: {self.said!r}"
            self.said += part

    def connect(self, limit_s: float = 20) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=limit_s)

    def raw(self, data: bytes, *, limit_s: float = 20) -> Reply:
        """Send bytes, read until the server closes or one answer is whole."""
        with self.connect(limit_s) as connection:
            # It may answer and close before everything was sent.
            with contextlib.suppress(OSError):
                connection.sendall(data)
            return Reply(received(connection))

    def ask(
        self,
        method: str = "GET",
        path: str = "/healthz",
        body: bytes | None = None,
        *,
        host: str | None = None,
        **headers: str,
    ) -> Reply:
        """One request as a good client sends it; headers by name, `_` for `-`."""
        lines = [f"{method} {path} HTTP/1.1", f"Host: {host or f'127.0.0.1:{self.port}'}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        return self.raw("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + (body or b""))

    def predict(self, data: bytes, query: str = "", **headers: str) -> Reply:
        return self.ask(
            "POST", f"/predict{query}", data, **({"Content_Type": "image/jpeg"} | headers)
        )

    def memory_mb(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        assert self.process.stderr is not None
        self.process.stderr.close()


def received(connection: socket.socket) -> bytes:
    """One answer; what came when the server closed or fell silent earlier."""
    data = b""
    while True:
        head, end, body = data.partition(b"\r\n\r\n")
        if end:
            lengths = [
                int(line.split(b":")[1])
                for line in head.split(b"\r\n")
                if line.lower().startswith(b"content-length:")
            ]
            if lengths and len(body) >= lengths[0]:
                return data
        try:
            part = connection.recv(1 << 16)
        except OSError:
            return data
        if not part:
            return data
        data += part


@pytest.fixture(scope="session")
def server(shipped: Any) -> Iterator[Server]:
    """One server for the tests that leave it as it is."""
    running = Server(shipped.onnx)
    yield running
    running.close()


@pytest.fixture
def start() -> Iterator[Callable[..., Server]]:
    """`start(bundle, options...)`: a server of one test."""
    started: list[Server] = []

    def start_(*words: str | Path, **environment: str) -> Server:
        started.append(Server(*words, **environment))
        return started[-1]

    yield start_
    for each in started:
        each.close()
