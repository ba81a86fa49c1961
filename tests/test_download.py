"""Downloads from a server that breaks off, lies, is slow or refuses."""

from __future__ import annotations

import hashlib
import http.server
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vidi import download
from vidi.errors import DamagedError, UsageError

CONTENT = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8).tobytes()
DIGEST = hashlib.sha256(CONTENT).hexdigest()

Answer = Callable[[http.server.BaseHTTPRequestHandler, int], None]


class Server:
    """Answers each request with the next of `answers`; remembers what it was asked."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.asked: list[tuple[str, str | None]] = []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                wanted = self.headers.get("Range")
                server.asked.append((self.path, wanted))
                start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
                answer = server.answers.pop(0) if server.answers else plain
                answer(self, start)
                self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.root = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def send(
    to: http.server.BaseHTTPRequestHandler,
    body: bytes,
    *,
    status: int = 200,
    length: int | None = -1,
    **headers: str,
) -> None:
    """length: what is announced; -1 for the truth, None for nothing."""
    to.send_response(status)
    if length is not None:
        to.send_header("Content-Length", str(len(body) if length == -1 else length))
    for name, value in headers.items():
        to.send_header(name.replace("_", "-"), value)
    to.end_headers()
    to.wfile.write(body)


def plain(to: http.server.BaseHTTPRequestHandler, start: int) -> None:
    if start:
        where = f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
        send(to, CONTENT[start:], status=206, Content_Range=where)
    else:
        send(to, CONTENT)


def breaks_after(count: int) -> Answer:
    def answer(to: http.server.BaseHTTPRequestHandler, start: int) -> None:
        rest = CONTENT[start:]
        send(to, rest[:count], status=206 if start else 200, length=len(rest))

    return answer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "_PAUSES_S", (0.01, 0.01, 0.01))
    made = Server()
    yield made
    made.close()


def fetch(server: Server, path: Path, **how: Any) -> None:
    download.download(f"{server.root}/file.bin", path, **{"sha256": DIGEST, **how})


def test_a_file_is_there_whole_and_its_progress_was_told(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    fetch(server, tmp_path / "file", watch=lambda *now: seen.append(now))
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_connections_that_break_are_continued_at_once(server: Server, tmp_path: Path) -> None:
    server.answers = [breaks_after(100_000), breaks_after(50_000), plain]
    fetch(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert [wanted for _, wanted in server.asked] == [None, "bytes=100000-", "bytes=150000-"]


def test_a_connection_that_brings_nothing_more_is_given_up(server: Server, tmp_path: Path) -> None:
    server.answers = [breaks_after(1000), breaks_after(0), plain]
    with pytest.raises(UsageError, match="ended after 1,000 of") as caught:
        fetch(server, tmp_path / "file", instead="use a folder of your own")
    assert "the same command continues it" in caught.value.fix
    assert "use a folder of your own" in caught.value.fix
    fetch(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


@pytest.mark.parametrize("length", [1000, 10 * len(CONTENT), None])
def test_a_length_that_lies_is_found_out(
    server: Server, tmp_path: Path, length: int | None
) -> None:
    """Too short: cut off and refused by its digest. Too long: never complete. None: all is well."""
    server.answers = [lambda to, _start: send(to, CONTENT, length=length)] * 8
    if length is None:
        fetch(server, tmp_path / "file")
        assert (tmp_path / "file").read_bytes() == CONTENT
        return
    with pytest.raises((UsageError, DamagedError)):
        fetch(server, tmp_path / "file", size_bytes=len(CONTENT))
    assert not (tmp_path / "file").exists()


def test_an_endless_answer_is_cut(server: Server, tmp_path: Path) -> None:
    def endless(to: http.server.BaseHTTPRequestHandler, _start: int) -> None:
        send(to, b"", length=None)
        try:
            for _ in range(100):
                to.wfile.write(bytes(1 << 20))
        except OSError:
            pass

    server.answers = [endless]
    with pytest.raises(UsageError, match="more than the"):
        fetch(server, tmp_path / "file", size_bytes=len(CONTENT))


def test_an_answer_from_another_byte_is_not_appended(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT[:1000])
    server.answers = [
        lambda to, _start: send(to, CONTENT[5:], status=206, Content_Range="bytes 5-9/10")
    ]
    with pytest.raises(UsageError, match="asked from byte 1000"):
        fetch(server, tmp_path / "file")
    assert (tmp_path / "file.part").read_bytes() == CONTENT[:1000]


def test_a_server_that_drips_is_given_up(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_TIMEOUT_S", 0.3)

    def drips(to: http.server.BaseHTTPRequestHandler, start: int) -> None:
        send(to, b"", status=206 if start else 200, length=len(CONTENT) - start)
        try:
            for _ in range(200):
                to.wfile.write(b"x")
                time.sleep(0.02)
        except OSError:
            pass

    server.answers = [drips] * 8
    began_at = time.monotonic()
    with pytest.raises(UsageError, match=r"bytes in 0 s"):
        fetch(server, tmp_path / "file")
    assert time.monotonic() - began_at < 5


def test_a_server_that_falls_silent_is_given_up(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_TIMEOUT_S", 0.2)

    def silent(to: http.server.BaseHTTPRequestHandler, _start: int) -> None:
        send(to, b"", length=len(CONTENT))
        time.sleep(0.5)

    server.answers = [silent]
    with pytest.raises(UsageError, match="timed out"):
        fetch(server, tmp_path / "file")


@pytest.mark.parametrize("status", [403, 404, 500, 503])
def test_a_refusal_is_quoted_with_the_way_out(server: Server, tmp_path: Path, status: int) -> None:
    server.answers = [lambda to, _start: to.send_error(status)]
    with pytest.raises(UsageError, match=f"answers {status}") as caught:
        fetch(server, tmp_path / "file")
    assert str(tmp_path / "file") in caught.value.fix


def test_a_file_with_other_contents_is_refused(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DamagedError, match="not the one that was published"):
        fetch(server, tmp_path / "file", sha256="0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_a_proxy_of_the_environment_is_asked(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", server.root)
    monkeypatch.setenv("no_proxy", "")
    download.download("http://data.invalid/set.gz", tmp_path / "file", sha256=DIGEST)
    assert server.asked == [("http://data.invalid/set.gz", None)]


def test_a_kill_leaves_the_part_and_no_file(server: Server, tmp_path: Path) -> None:
    def stop(_done: int, _of: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(server, tmp_path / "file", watch=stop)
    assert not (tmp_path / "file").exists()
    fetch(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
