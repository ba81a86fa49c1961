"""What the server says to those who ask as they should."""

from __future__ import annotations

import concurrent.futures
import json
import shutil
from typing import Any

import pytest

import vidi
from vidi import storage


def test_it_says_what_the_bundle_says(server: Any, shipped: Any) -> None:
    bundle = vidi.load(shipped.onnx)
    for path in shipped.files()[::8]:
        ours, reply = bundle(path), server.predict(path.read_bytes(), "?top=2")
        assert reply.status == 200
        assert reply.headers["content-type"] == "application/json"
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.json["label"] == ours.label
        assert reply.json["probability"] == pytest.approx(ours.probability, abs=1e-5)
        assert [each["label"] for each in reply.json["top"]] == [name for name, _ in ours.top[:2]]


def test_many_at_once_get_their_own_answers(server: Any, shipped: Any) -> None:
    files = shipped.files()
    bundle = vidi.load(shipped.onnx)
    with concurrent.futures.ThreadPoolExecutor(24) as clients:
        replies = list(clients.map(lambda path: server.predict(path.read_bytes()), files))
    for path, reply in zip(files, replies, strict=True):
        ours = bundle(path)
        assert reply.json["label"] == ours.label
        assert reply.json["probability"] == pytest.approx(ours.probability, abs=1e-4)
    sizes = server.ask(path="/metrics").body.decode()
    alone = next(line for line in sizes.splitlines() if 'images_bucket{le="1"}' in line)
    total = next(line for line in sizes.splitlines() if "batch_images_count" in line)
    assert int(alone.split()[1]) < int(total.split()[1]), "no two images were ever together"


def test_heat_comes_when_it_is_asked_for(server: Any, shipped: Any) -> None:
    data = shipped.files()[0].read_bytes()
    heat = server.predict(data, "?heat=true").json["heat"]
    assert len(heat["rows"]) == len(heat["rows"][0]) > 1
    assert 0 <= min(map(min, heat["rows"])) <= max(map(max, heat["rows"])) <= 1
    assert "heat" not in server.predict(data).json


def test_probes_counts_and_the_description(server: Any, shipped: Any) -> None:
    assert server.ask(path="/healthz").json == {"alive": True}
    assert server.ask(path="/readyz").json == {"ready": True}
    server.predict(b"no image")
    counts = server.ask(path="/metrics").body.decode()
    assert 'vidi_unreadable_images_total{reason="NOT_IMAGE"}' in counts
    assert 'vidi_requests_total{path="/predict",status="422"}' in counts
    described = server.ask(path="/openapi.json").json
    assert described["openapi"].startswith("3.1")
    answer = described["paths"]["/predict"]["post"]["responses"]["200"]
    schema = answer["content"]["application/json"]["schema"]
    assert schema["properties"]["label"]["enum"] == list(vidi.load(shipped.onnx).classes)


def test_one_connection_may_ask_again(server: Any, shipped: Any) -> None:
    data = shipped.files()[0].read_bytes()
    head = (
        f"POST /predict HTTP/1.1\r\nHost: localhost:{server.port}\r\nContent-Type: image/jpeg\r\n"
        f"Content-Length: {len(data)}\r\n\r\n"
    ).encode()
    with server.connect() as connection:
        for _ in range(3):
            connection.sendall(head + data)
            answer = b""
            while b"}\n" not in answer:
                answer += connection.recv(1 << 16)
            assert answer.startswith(b"HTTP/1.1 200")


def test_the_page_carries_its_own_policy(server: Any) -> None:
    reply = server.ask(path="/")
    assert reply.headers["content-type"].startswith("text/html")
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert b"http://" not in reply.body.replace(b"http://www.w3.org/2000/svg", b"")


def test_a_class_name_stays_text_in_json(tmp_path: Any, shipped: Any, start: Any) -> None:
    """FAULTS.md K21."""
    bundle = shutil.copytree(shipped.onnx, tmp_path / "bundle")
    about = json.loads((bundle / "bundle.json").read_text())
    about["classes"] = ['"><script>alert(1)</script>', "line\u2028break", "\x1b[31m"]
    model = (bundle / "model.onnx").read_bytes()
    shutil.rmtree(bundle)
    storage.write_folder(bundle, {"model.onnx": model, "bundle.json": json.dumps(about).encode()})
    hostile = start(bundle)
    reply = hostile.predict(shipped.files()[0].read_bytes())
    assert {each["label"] for each in reply.json["top"]} == set(about["classes"])
    assert reply.headers["content-type"] == "application/json"
    assert b"\x1b" not in reply.body
    assert b"script" not in hostile.ask(path="/").body.split(b'id="about">')[1].split(b"</")[0]
