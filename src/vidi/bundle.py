"""What is shipped: a folder with a model file and everything it takes to use it. No torch.

A bundle has `bundle.json`, one model file and `manifest.json` with the SHA-256 of both. It is read
whole or not at all: a byte that changed, a file that is missing or one too many refuses it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import ValidationError

from vidi import storage
from vidi.augment_settings import ViewKind
from vidi.errors import DamagedError, UsageError
from vidi.facts import Frozen
from vidi.image import PixelContract
from vidi.storage import Buffer, Manifest, NewerFormatError, shown

__all__ = [
    "ABOUT",
    "FORMAT",
    "TARGETS",
    "Bundle",
    "BundleFile",
    "Description",
    "OperatingPoint",
    "Parity",
    "Quantised",
    "Target",
    "check_graph",
    "is_bundle",
]

FORMAT: Final = 1
ABOUT: Final = "bundle.json"
_KIND: Final = "vidi bundle"
# A model of a thousand classes has 100 kB of names; nobody has a megabyte.
_LIMIT_BYTES: Final = 16 << 20

Target = Literal["onnx", "torch", "onnx-int8"]
TARGETS: Final[tuple[Target, ...]] = ("onnx", "torch", "onnx-int8")


class BundleFile(Frozen):
    """One file of the bundle as it was written."""

    name: str
    num_bytes: int
    sha256: str


class OperatingPoint(Frozen):
    """Answer only from `threshold` on, and `wanted` of the answers are right; on validation."""

    wanted: float
    # `None`: no threshold reaches it.
    threshold: float | None
    # The same for calibrated probabilities.
    calibrated_threshold: float | None
    coverage: float
    accuracy: float | None
    n: int


class Parity(Frozen):
    """The proof that the bundle says what the trained model said, from the bytes of files on."""

    split: str
    n: int
    # Share of the files for which both name the same class.
    label_agreement: float
    # The largest difference of any probability of any class of any file.
    largest_difference: float
    # Which file that was, relative to the data.
    worst_file: str
    tolerance: float
    accuracy_trained: float
    accuracy_bundle: float


class Quantised(Frozen):
    """What rounding the weights and activations to 8 bits cost."""

    calibration_images: int
    accuracy_before: float
    accuracy_after: float


class Description(Frozen):
    """`bundle.json`: everything but the weights."""

    format: int = FORMAT
    kind: Literal["vidi bundle"] = _KIND
    target: Target
    files: tuple[BundleFile, ...]
    classes: tuple[str, ...]
    pixels: PixelContract
    # What the pixels were decoded by when the parity was proven.
    decoder: str
    # Divide logits by it for honest probabilities; 1 where no images were held out to find it.
    temperature: float
    thresholds: tuple[OperatingPoint, ...]
    # "logits" always; "features", the embedding; "heat", a map of what spoke for the first class.
    outputs: tuple[str, ...]
    num_features: int
    # What averaging may look at besides the middle: what training showed the model.
    views: ViewKind
    data_fingerprint: str
    dataset: str
    model: str
    run: str
    step: int
    versions: dict[str, str]
    parity: Parity
    quantised: Quantised | None = None

    @property
    def model_file(self) -> str:
        return self.files[0].name


@dataclass(frozen=True)
class Bundle:
    """A bundle that was verified: `path`, `about`, and the bytes of the model."""

    path: Path
    about: Description
    model: bytes
    # SHA-256 of bundle.json, which names the SHA-256 of the model: one name for all of it.
    digest: str

    def __repr__(self) -> str:
        return f"Bundle({str(self.path)!r})"

    @classmethod
    def open(cls, path: Path | str) -> Bundle:
        """The bundle at `path`; the model is read once, and those bytes are what was verified.

        Raises:
            UsageError: no bundle there.
            DamagedError: a byte of it changed, a file is missing or one too many, or it was
                written by a later version.
        """
        path = Path(path)
        if not is_bundle(path):
            raise UsageError(
                f"{shown(path)} is not a bundle", fix="vidi export RUN makes one of a run"
            )
        manifest = storage.read_manifest(path)
        _check_names(path, manifest)
        data = storage.read_member(path, ABOUT, manifest)
        about = _parse(data, path)
        if {each.name for each in about.files} | {ABOUT} != set(manifest.files):
            raise DamagedError(f"{shown(path)}: {ABOUT} and {storage.MANIFEST} name other files")
        model = storage.read_member(path, about.model_file, manifest)
        if any(manifest.files[each.name].sha256 != each.sha256 for each in about.files):
            raise DamagedError(f"{shown(path)}: {ABOUT} is of another model file", fix=_AGAIN)
        return cls(path, about, model, manifest.files[ABOUT].sha256)

    @classmethod
    def write(cls, path: Path, about: Description, model: Buffer) -> Bundle:
        """Put a bundle at `path`, in place of one that stood there, whole or not at all.

        Raises:
            UsageError: something else stands there.
            StorageError: it could not be written; what stood there is as it was.
        """
        if os.path.lexists(path) and not is_bundle(path) and any(path.iterdir()):
            raise UsageError(
                f"{shown(path)} is not empty and no bundle", fix="name a folder that is not there"
            )
        storage.make_folder(path.parent)
        data = about.model_dump_json(indent=1).encode("utf-8")
        storage.write_folder(path, {about.model_file: model, ABOUT: data})
        return cls.open(path)


_AGAIN: Final = "export the run again"


def is_bundle(path: Path) -> bool:
    """Whether a bundle, whole or damaged, is at `path`."""
    return os.path.lexists(path / ABOUT)


def _check_names(path: Path, manifest: Manifest) -> None:
    present = {entry.name for entry in os.scandir(path)} - {storage.MANIFEST}
    problems = [f"{shown(name)} is missing" for name in sorted(set(manifest.files) - present)]
    problems += [
        f"{shown(name)} is no part of it" for name in sorted(present - set(manifest.files))
    ]
    if problems:
        raise DamagedError(f"{shown(path)}: {'; '.join(problems)}", fix=_AGAIN)


def _parse(data: bytes, path: Path) -> Description:
    record = storage.parse_json(data, f"{shown(path)}: {ABOUT}")
    if not isinstance(record, dict) or record.get("kind") != _KIND or len(data) > _LIMIT_BYTES:
        raise DamagedError(f"{shown(path)}: {ABOUT} is none of vidi's", fix=_AGAIN)
    if record.get("format") != FORMAT:
        raise NewerFormatError(
            f"{shown(path)} is a bundle of format {record.get('format')}; this vidi reads format "
            f"{FORMAT}",
            fix="use the version of vidi that wrote it, or a later one",
        )
    try:
        about = Description.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DamagedError(f"{shown(path)}: {ABOUT}: {where}: {first['msg']}", fix=_AGAIN) from None
    if len(set(about.classes)) != len(about.classes) or len(about.classes) < 2:
        raise DamagedError(f"{shown(path)}: the class names are not distinct", fix=_AGAIN)
    if len(about.files) != 1 or not about.temperature > 0 or "logits" not in about.outputs:
        raise DamagedError(f"{shown(path)}: {ABOUT} contradicts itself", fix=_AGAIN)
    return about


# ----------------------------------------------------------------------------------- the graph file

# Field numbers of onnx.proto where messages nest: message -> field -> message.
_NESTED: Final[dict[str, dict[int, str]]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_EXTERNAL_DATA: Final = 13
_DATA_LOCATION: Final = 14


def check_graph(model: bytes, where: str) -> None:
    """Refuse an ONNX file whose tensors lie in other files; a name in it would be opened.

    A walk over the length-prefixed fields, so that it needs no package and copies no weights.

    Raises:
        DamagedError: external data, or no ONNX file at all.
    """
    found = False
    try:
        for _ in _tensors(memoryview(model), "model"):
            found = True
    except (IndexError, ValueError, RecursionError) as error:
        raise DamagedError(f"{where} is no ONNX file: {error}", fix=_AGAIN) from None
    if not found:
        raise DamagedError(f"{where} holds no weights", fix=_AGAIN)


def _tensors(data: memoryview, kind: str) -> Iterator[None]:
    for number, value in _fields(data):
        if kind == "tensor":
            if number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0):
                raise DamagedError(
                    "the model names a file outside of itself, which is never opened", fix=_AGAIN
                )
            continue
        inner = _NESTED[kind].get(number)
        if inner is not None and isinstance(value, memoryview):
            yield from _tensors(value, inner)
    if kind == "tensor":
        yield


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """(field number, integer or bytes) of one protobuf message."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        value: Any
        if kind == 0:
            value, at = _varint(data, at)
        elif kind == 2:
            length, at = _varint(data, at)
            if at + length > len(data):
                raise ValueError("a field is longer than the file")
            value, at = data[at : at + length], at + length
        elif kind in (1, 5):
            value, at = None, at + (8 if kind == 1 else 4)
        else:
            raise ValueError(f"a field of kind {kind}")
        yield key >> 3, value


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("an endless number")
