"""What the server does to those who ask otherwise: FAULTS.md K1 to K20."""

from __future__ import annotations

import concurrent.futures
import io
import os
import random
import shutil
import signal
import socket
import struct
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vidi.cli import main
from vidi.errors import UnreadableImage
from vidi.image import PixelContract
from vidi.serve.decoding import Decoders


def alive(server: Any, shipped: Any) -> None:
    """It still answers as it should."""
    assert server.predict(shipped.files()[0].read_bytes()).status == 200


def head_of(server: Any, *lines: str, first: str = "POST /predict HTTP/1.1") -> bytes:
    host = f"Host: 127.0.0.1:{server.port}"
    return "\r\n".join([first, host, *lines]).encode("latin-1") + b"\r\n\r\n"


def mutations(data: bytes, count: int, seed: int) -> list[bytes]:
    """Random, cut, and damaged bodies."""
    rng = random.Random(seed)
    found: list[bytes] = []
    for number in range(count):
        kind = number % 5
        if kind == 0:
            found.append(rng.randbytes(rng.randrange(1, 600)))
        elif kind == 1:
            found.append(data[: rng.randrange(len(data))])
        elif kind == 2:
            changed = bytearray(data)
            for _ in range(rng.randrange(1, 20)):
                changed[rng.randrange(len(changed))] = rng.randrange(256)
            found.append(bytes(changed))
        elif kind == 3:
            at, length = rng.randrange(len(data)), rng.randrange(1, 200)
            found.append(data[:at] + rng.randbytes(length) + data[at + length :])
        else:
            magic = rng.choice([b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\0", b"BM",
                                b"RIFF\x10\0\0\0WEBP", b"P6 9 9 255\n"])  # fmt: skip
            found.append(magic + rng.randbytes(rng.randrange(300)))
    return found


def fuzz(server: Any, shipped: Any, count: int, tmp_path: Path) -> None:
    png, gif = io.BytesIO(), io.BytesIO()
    picture = Image.open(shipped.files()[0])
    picture.save(png, "PNG")
    picture.save(gif, "GIF")
    bodies = [
        body
        for seed, data in enumerate(
            (shipped.files()[0].read_bytes(), png.getvalue(), gif.getvalue())
        )
        for body in mutations(data, count // 3 + 1, seed)
    ]
    seen: set[int] = set()

    def send(some: list[bytes]) -> None:
        with server.connect() as connection:
            for body in some:
                head = head_of(server, "Content-Type: image/jpeg", f"Content-Length: {len(body)}")
                connection.sendall(head + body)
                answer = b""
                while not answer.endswith(b"}\n"):
                    part = connection.recv(1 << 16)
                    assert part, (answer, body)
                    answer += part
                seen.add(int(answer.split(b" ", 2)[1]))

    with concurrent.futures.ThreadPoolExecutor(4) as clients:
        list(clients.map(send, [bodies[i::4] for i in range(4)]))
    assert seen <= {200, 422}, seen
    assert 422 in seen
    del tmp_path
    alive(server, shipped)


def test_k1_hostile_bytes_are_no_image(server: Any, shipped: Any, tmp_path: Path) -> None:
    fuzz(server, shipped, 600, tmp_path)


@pytest.mark.slow
def test_k1_ten_thousand_hostile_bodies(server: Any, shipped: Any, tmp_path: Path) -> None:
    fuzz(server, shipped, 10_000, tmp_path)


def test_k1_the_reason_is_a_code(server: Any) -> None:
    assert server.predict(b"").json["reason"] == "EMPTY"
    assert server.predict(b"Dear Sir").json["reason"] == "NOT_IMAGE"


def test_k2_a_body_that_is_too_long_is_not_read(shipped: Any, start: Any) -> None:
    server = start(shipped.onnx, "--max-megabytes", "1")
    before = server.memory_mb()
    image = "Content-Type: image/jpeg"
    said = server.raw(head_of(server, image, "Content-Length: 99999999999"))
    assert said.status == 413
    assert server.raw(head_of(server, image, f"Content-Length: {'9' * 400}")).status in (400, 413)
    assert server.raw(head_of(server, image, "Content-Length: -1")).status == 400
    assert server.raw(head_of(server, image, "Content-Length: 1e3")).status == 400
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    for _ in range(4):
        endless = server.raw(head_of(server, image, "Transfer-Encoding: chunked") + chunk * 64)
        assert endless.status == 413
    assert (
        server.raw(head_of(server, image, "Transfer-Encoding: chunked") + b"zz\r\n").status == 400
    )
    assert server.memory_mb() - before < 30
    alive(server, shipped)


def test_k2_a_length_that_is_not_reached_is_waited_for_only_so_long(
    shipped: Any, start: Any
) -> None:
    server = start(shipped.onnx, program=with_limits("body_s=1.0"))
    started_at = time.monotonic()
    said = server.raw(
        head_of(server, "Content-Type: image/jpeg", "Content-Length: 5000") + b"\xff\xd8\xff"
    )
    assert said.status == 408
    assert 0.9 < time.monotonic() - started_at < 4


def with_limits(limits: str) -> str:
    return (
        "import sys, vidi\n"
        "from vidi.serve import Limits, Place, serve\n"
        f"serve(sys.argv[1], Place(port=0), Limits({limits}),"
        " say=lambda line: print(line, file=sys.stderr, flush=True))\n"
    )


def test_k3_slow_heads_and_silence_are_closed_and_others_served(shipped: Any, start: Any) -> None:
    server = start(shipped.onnx, program=with_limits("head_s=1.0, idle_s=1"))
    slow = [server.connect() for _ in range(20)]
    started_at = time.monotonic()
    for connection in slow[:10]:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nX-A: ")
    for _ in range(3):
        alive(server, shipped)
    waits = []
    for connection in slow[:10]:
        # A byte now and then does not make it longer.
        try:
            connection.sendall(b"a")
            time.sleep(0.02)
        except OSError:
            pass
    for connection in slow:
        while True:
            try:
                if not connection.recv(4096):
                    break
            except OSError:
                break
        waits.append(time.monotonic() - started_at)
        connection.close()
    # Two seconds on an idle machine; a silent connection is waited for 20 s here.
    assert max(waits) < 15
    # Keep-alive: after an answer, silence ends the connection too.
    with server.connect() as connection:
        connection.sendall(head_of(server, first="GET /healthz HTTP/1.1"))
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        started_at = time.monotonic()
        while connection.recv(4096):
            pass
        assert time.monotonic() - started_at < 15


def png_of(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = zlib.compress(bytes((width // 8 + 1) * 64)) if height < 10**6 else b""
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
        + chunk(b"IDAT", rows)
        + chunk(b"IEND", b"")
    )


def test_k4_bombs_are_refused_from_their_header(server: Any, shipped: Any) -> None:
    for width, height in ((20_000, 20_000), (30_000, 30_000), (2**31 - 1, 2**31 - 1)):
        started_at = time.monotonic()
        said = server.predict(png_of(width, height))
        assert said.status == 422, said
        assert said.json["reason"] in ("TOO_LARGE", "CORRUPT")
        assert time.monotonic() - started_at < 3
    frames = io.BytesIO()
    first, *others = [Image.fromarray(np.full((4, 4), i % 256, np.uint8)) for i in range(2_000)]
    first.save(frames, "GIF", save_all=True, append_images=others)
    started_at = time.monotonic()
    assert server.predict(frames.getvalue()).status in (200, 422)
    assert time.monotonic() - started_at < 10
    alive(server, shipped)


CONTRACT = PixelContract(
    image_px=2, store_px=2, channels=3, resize="crop", interpolation="nearest",
    mean=(0.0,) * 3, std=(1.0,) * 3,
)  # fmt: skip
MISBEHAVING = """
import os, signal, sys, time
while head := sys.stdin.buffer.read(4):
    data = sys.stdin.buffer.read(int.from_bytes(head, "little"))
    if data == b"crash": os.kill(os.getpid(), signal.SIGSEGV)
    if data == b"leave": sys.exit(0)
    if data == b"sleep": time.sleep(60)
    if data == b"lie": sys.stdout.buffer.write(b"?????"); sys.stdout.buffer.flush(); continue
    sys.stdout.buffer.write(b"P" + (12).to_bytes(4, "little") + bytes(range(12)))
    sys.stdout.buffer.flush()
"""


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"crash", "CORRUPT"), (b"leave", "CORRUPT"), (b"lie", "CORRUPT"), (b"sleep", "TIMEOUT")],
)
def test_k5_a_decoder_that_dies_or_hangs_is_replaced(data: bytes, reason: str) -> None:
    with Decoders(CONTRACT, 1, 1.0, program=MISBEHAVING) as decoders:
        assert decoders.decode(b"fine").shape == (2, 2, 3)
        with pytest.raises(UnreadableImage) as caught:
            decoders.decode(data)
        assert caught.value.reason == reason
        assert decoders.num_replaced == 1
        assert decoders.decode(b"fine").shape == (2, 2, 3)


def test_k6_too_many_at_once_are_told_to_come_again(shipped: Any, start: Any) -> None:
    server = start(shipped.onnx, program=with_limits("queue=8, connections=600"))
    data = shipped.files()[0].read_bytes()
    head = head_of(server, "Content-Type: image/jpeg", f"Content-Length: {len(data)}")
    open_now = [server.connect() for _ in range(300)]
    for connection in open_now:
        connection.sendall(head + data)
    statuses = []
    for connection in open_now:
        answer = connection.recv(1 << 16)
        statuses.append(int(answer.split(b" ", 2)[1]))
        if statuses[-1] == 503:
            assert b"retry-after: 1" in answer
        connection.close()
    assert set(statuses) == {200, 503}
    assert statuses.count(200) >= 8
    alive(server, shipped)


def test_k6_more_connections_than_allowed_are_refused(shipped: Any, start: Any) -> None:
    server = start(shipped.onnx, program=with_limits("connections=10, head_s=30"))
    held = [server.connect() for _ in range(10)]
    time.sleep(0.2)
    assert server.ask().status == 503
    for connection in held:
        connection.close()
    time.sleep(0.2)
    alive(server, shipped)


def test_k7_clients_that_go_away_leave_nothing_behind(server: Any, shipped: Any) -> None:
    data = shipped.files()[0].read_bytes()
    head = head_of(server, "Content-Type: image/jpeg", f"Content-Length: {len(data)}")
    for cut in (10, len(head), len(head) + len(data) // 2, len(head) + len(data)):
        for _ in range(10):
            with server.connect() as connection:
                connection.sendall((head + data)[:cut])
    time.sleep(0.5)
    counts = server.ask(path="/metrics").body.decode()
    assert "vidi_requests_under_way 0\n" in counts
    alive(server, shipped)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.com", 421), ("127.0.0.1.evil.com", 421), ("localhost.evil", 421),
        ("evil.com:80", 421), ("2130706433", 421), ("127.0.0.2", 421), ("[::ffff:127.0.0.1]", 421),
        ("", 400), ("localhost:", 400), ("localhost:99999999", 400), ("localhost@evil.com", 400),
        ("loc\u00e4lhost", 400), ("localhost/x", 400), ("a b", 400), ("localhost,evil.com", 400),
        ("localhost", 200), ("LocalHost:80", 200), ("127.0.0.1:1", 200), ("[::1]:9", 200),
    ],
)  # fmt: skip
def test_k8_only_its_own_names(server: Any, host: str, status: int) -> None:
    said = server.raw(f"GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n".encode("latin-1"))
    assert said.status == status, said


def test_k8_no_host_and_two_hosts(server: Any) -> None:
    assert server.raw(b"GET /healthz HTTP/1.1\r\n\r\n").status == 400
    two = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: evil.com\r\n\r\n"
    assert server.raw(two).status == 400
    absolute = b"GET http://evil.com/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    assert server.raw(absolute).status == 404


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://evil.com"}, 403), ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost.evil"}, 403), ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "same-site"}, 403), ({"Content_Type": "text/plain"}, 415),
        ({"Content_Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content_Type": "multipart/form-data; boundary=x"}, 415),
        ({"Content_Type": "image/jpeg, text/plain"}, 415), ({"Content_Type": ""}, 415),
        ({"Sec_Fetch_Site": "same-origin"}, 200),
        ({"Content_Type": "application/octet-stream"}, 200),
    ],
)  # fmt: skip
def test_k9_other_sites_are_refused(
    server: Any, shipped: Any, headers: dict[str, str], status: int
) -> None:
    said = server.predict(shipped.files()[0].read_bytes(), **headers)
    assert said.status == status
    assert not any(name.startswith("access-control-") for name in said.headers)


def test_k9_its_own_page_may_ask_and_preflights_get_no_answer(server: Any, shipped: Any) -> None:
    data = shipped.files()[0].read_bytes()
    own = f"http://127.0.0.1:{server.port}"
    assert server.predict(data, Origin=own).status == 200
    asked = server.ask(
        "OPTIONS", "/predict", Origin="https://evil.com", Access_Control_Request_Method="POST"
    )
    assert asked.status == 403
    asked = server.ask("OPTIONS", "/predict", Access_Control_Request_Method="POST")
    assert asked.status == 405
    assert not any(name.startswith("access-control-") for name in asked.headers)


def refused(capfd: Any, monkeypatch: Any, status: int, words: str, *command: str | Path) -> None:
    monkeypatch.setattr("sys.argv", ["vidi", "serve", *map(str, command)])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == status
    assert words in capfd.readouterr().err


ANYWHERE = ".".join("0000")


def test_k10_off_loopback_only_with_a_token(
    shipped: Any, capfd: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("VIDI_TOKEN", raising=False)
    for host in (ANYWHERE, "::", "192.0.2.1"):
        refused(capfd, monkeypatch, 2, "no token is set", shipped.onnx, "--host", host)
    refused(capfd, monkeypatch, 2, "no address", shipped.onnx, "--host", "evil.com")
    token = tmp_path / "token"
    token.write_text("too short")
    token.chmod(0o600)
    refused(capfd, monkeypatch, 2, "fewer than 16", shipped.onnx, "--token-file", token)
    token.write_text("x" * 32)
    token.chmod(0o644)
    refused(capfd, monkeypatch, 2, "others can read", shipped.onnx, "--token-file", token)


def test_k11_without_the_token_nothing_is_said(shipped: Any, start: Any, tmp_path: Path) -> None:
    token = "correct-horse-battery-staple"
    (tmp_path / "token").write_text(token + "\n")
    (tmp_path / "token").chmod(0o600)
    server = start(shipped.onnx, "--host", ANYWHERE, "--allow-host", "photos.example",
                   "--token-file", tmp_path / "token")  # fmt: skip
    data = shipped.files()[0].read_bytes()
    head = "Host: photos.example"

    def ask(*lines: str) -> int:
        first = f"POST /predict HTTP/1.1\r\n{head}\r\nContent-Type: image/jpeg\r\n"
        more = "".join(f"{line}\r\n" for line in lines)
        raw = f"{first}{more}Content-Length: {len(data)}\r\n\r\n".encode() + data
        return int(server.raw(raw).status)

    assert ask() == 401
    assert ask("Authorization: Bearer wrong") == 401
    assert ask(f"Authorization: Basic {token}") == 401
    assert ask(f"Authorization: Bearer {token}x") == 401
    assert ask(f"Authorization: Bearer {token}") == 200
    assert server.raw(f"GET /metrics HTTP/1.1\r\n{head}\r\n\r\n".encode()).status == 401
    assert server.raw(f"GET /readyz HTTP/1.1\r\n{head}\r\n\r\n".encode()).status == 200
    assert server.ask(path="/readyz").status == 421, "an address that was not named"
    assert token.encode() not in server.said
    arguments = Path(f"/proc/{server.process.pid}/cmdline").read_bytes()
    assert token.encode() not in arguments


@pytest.mark.parametrize(
    "body",
    [b'{"url": "http://169.254.169.254/"}', b'{"path": "/etc/passwd"}', b'{"image": "aGk="}'],
)
def test_k12_no_url_and_no_path_is_an_input(server: Any, body: bytes) -> None:
    said = server.predict(body, Content_Type="application/json")
    assert said.status == 400
    assert "no such input" in said.json["error"]
    data = b"x"
    for query in ("?url=http://evil.com", "?path=/etc/passwd", "?top=0", "?top=-1", "?top=1e9",
                  "?heat=yes", "?top", "?%ff=1", "?" + "&".join(["top=1"] * 50)):  # fmt: skip
        assert server.predict(data, query).status == 400, query


@pytest.mark.parametrize(
    "path",
    ["/../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/%252e%252e/x", "/..\\..\\x", "/a%00b",
     "/" + "a" * 8000, "//healthz", "/healthz/", "/healthz%20", "/%68ealthz", "/HEALTHZ",
     "/bundle.json", "/model.onnx", "/docs", "/static/page.js"],
)  # fmt: skip
def test_k13_there_are_no_files(server: Any, path: str) -> None:
    assert server.ask(path=path).status == 404


def test_k14_what_two_programs_could_read_differently_is_refused(server: Any, shipped: Any) -> None:
    image = "Content-Type: image/jpeg"
    host = f"Host: 127.0.0.1:{server.port}"
    for lines in (
        [image, "Content-Length: 4", "Transfer-Encoding: chunked"],
        [image, "Content-Length: 4", "Content-Length: 5"],
        [image, "Content-Length: 4", "Content-Length: 4"],
        [image, "Content-Length: 4, 5"],
        [image, "Content-Length: +4"],
        [image, "Content-Length : 4"],
        [image, "Transfer-Encoding: chunked, identity"],
        [image, "Transfer-Encoding: xchunked"],
        [image, "X: a", " folded: b", "Content-Length: 4"],
        [image, "X\x00: a", "Content-Length: 4"],
    ):
        said = server.raw(head_of(server, *lines) + b"4\r\nabcd\r\n0\r\n\r\n")
        assert said.status in (400, 501), (lines, said)
    for raw in (
        f"GET /healthz HTTP/1.1\n{host}\n\n",
        f"GET /healthz HTTP/1.1\r\n{host}\nX: a\r\n\r\n",
        f"GET  /healthz HTTP/1.1\r\n{host}\r\n\r\n",
        f"GET /healthz HTTP/9.9\r\n{host}\r\n\r\n",
        f"GET /healthz\r\n{host}\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\x00",
    ):
        with server.connect(8) as connection:
            connection.sendall(raw.encode("latin-1"))
            answer = b""
            while part := connection.recv(4096):
                answer += part
        assert answer == b"" or answer.split(b" ", 2)[1] in (b"400", b"408"), (raw, answer)
    two = f"GET /healthz HTTP/1.1\r\n{host}\r\n\r\n" * 2
    with server.connect() as connection:
        connection.sendall(two.encode())
        answer = b""
        while part := connection.recv(4096):
            answer += part
    assert answer.count(b"alive") <= 1
    alive(server, shipped)


@pytest.mark.parametrize(
    "method", ["TRACE", "PUT", "DELETE", "PATCH", "CONNECT", "BREW", "OPTIONS"]
)
def test_k15_odd_methods(server: Any, method: str) -> None:
    assert server.ask(method, "/healthz").status == 405
    assert server.ask("GET", "/predict").status == 405


def test_k15_head_and_ranges(server: Any) -> None:
    said = server.raw(
        head_of(
            server,
            first="HEAD / HTTP/1.1",
        ),
        limit_s=3,
    )
    assert said.status == 200
    assert said.body == b""
    assert server.ask(path="/healthz", Range="bytes=0-2").status == 200


def test_k16_what_was_asked_is_escaped_in_the_log(shipped: Any, start: Any) -> None:
    server = start(shipped.onnx, "--access-log")
    server.raw(b"GET /\x1b[31mred%0d%0aGET HTTP/1.1\r\nHost: localhost\r\n\r\n")
    server.ask(path="/%1b%5b31mred%0d%0aforged")
    server.ask(path="/healthz", X_Name="\x1b[31m")
    line = server.wait_for(b"forged", 10)
    assert b"\x1b" not in server.said
    assert b"%0d%0aforged" in line


def test_k17_told_to_stop_it_finishes_what_is_under_way(shipped: Any, start: Any) -> None:
    server = start(shipped.onnx)
    data = shipped.files()[0].read_bytes()
    head = head_of(server, "Content-Type: image/jpeg", f"Content-Length: {len(data)}")
    statuses: list[int] = []
    stopped = threading.Event()

    def load() -> None:
        while not stopped.is_set():
            try:
                said = server.predict(data)
            except OSError:
                return
            if said.raw:
                statuses.append(said.status)

    clients = [threading.Thread(target=load) for _ in range(4)]
    with server.connect() as begun:
        begun.sendall(head + data[:-1])
        for client in clients:
            client.start()
        time.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert server.ask(path="/readyz").status == 503
        assert server.predict(data).status == 503
        begun.sendall(data[-1:])
        assert begun.recv(1 << 16).startswith(b"HTTP/1.1 200")
    assert server.process.wait(25) == 0
    stopped.set()
    for client in clients:
        client.join()
    assert set(statuses) <= {200, 503}
    assert 200 in statuses


def test_k18_what_was_loaded_stays(shipped: Any, start: Any, tmp_path: Path) -> None:
    bundle = shutil.copytree(shipped.onnx, tmp_path / "bundle")
    server = start(bundle)
    before = server.predict(shipped.files()[0].read_bytes()).json
    shutil.rmtree(bundle)
    bundle.mkdir()
    (bundle / "bundle.json").write_text("{}")
    assert server.predict(shipped.files()[0].read_bytes()).json == before


def test_k19_a_place_that_is_taken_is_named(
    server: Any, shipped: Any, capfd: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    taken = str(server.port)
    refused(capfd, monkeypatch, 5, f"port {taken}", shipped.onnx, "--port", taken)
    nowhere = tmp_path / "no" / "socket"
    refused(capfd, monkeypatch, 2, "cannot listen", shipped.onnx, "--unix", nowhere)


def test_k19_ipv6_and_unix_sockets(shipped: Any, start: Any, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    code = (
        "import sys\nfrom pathlib import Path\nfrom vidi.serve import Place, serve\n"
        f"serve(sys.argv[1], Place(unix=Path({str(path)!r})),"
        " say=lambda line: print(line + ':0', file=sys.stderr, flush=True))\n"
    )
    start(shipped.onnx, program=code)
    assert path.stat().st_mode & 0o077 == 0, "others could connect"
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
    if not Path("/proc/net/if_inet6").exists() or not Path("/proc/net/if_inet6").read_text():
        return
    six = start(shipped.onnx, "--host", "::1")
    with socket.create_connection(("::1", six.port)) as connection:
        connection.sendall(f"GET /healthz HTTP/1.1\r\nHost: [::1]:{six.port}\r\n\r\n".encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")


def test_k20_a_log_that_cannot_be_written_stops_nothing(shipped: Any, start: Any) -> None:
    server = start(
        shipped.onnx,
        program=(
            "import os, sys\nfrom vidi.serve import Place, serve\n"
            "def say(line):\n"
            "    print(line, file=sys.stderr, flush=True)\n"
            "    if 'serving' in line: os.dup2(os.open('/dev/full', os.O_WRONLY), 2)\n"
            "serve(sys.argv[1], Place(port=0), access_log=True, say=say)\n"
        ),
    )
    for _ in range(5):
        alive(server, shipped)


@pytest.mark.slow
def test_k22_tens_of_thousands_of_requests_leave_no_trace(shipped: Any, start: Any) -> None:
    """Memory grows by less than 1 MB in 10,000 requests; `make soak` asks all 50,000."""
    count = int(os.environ.get("VIDI_REQUESTS", "20000"))
    server = start(shipped.onnx)
    data = shipped.files()[0].read_bytes()
    head = head_of(server, "Content-Type: image/jpeg", f"Content-Length: {len(data)}")

    def send(count: int) -> None:
        with server.connect(300) as connection:
            for _ in range(count):
                connection.sendall(head + data)
                answer = b""
                while not answer.endswith(b"}\n"):
                    part = connection.recv(1 << 16)
                    assert part
                    answer += part

    memory = []
    with concurrent.futures.ThreadPoolExecutor(8) as clients:
        for _ in range(10):
            list(clients.map(send, [count // 80] * 8))
            memory.append(server.memory_mb())
    slope = float(np.polyfit(np.arange(2, 10) * count / 1e5, memory[2:], 1)[0])
    assert slope < 1.0, memory
    assert server.process.poll() is None
