"""The callable itself; what computes stands behind `Network`."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, final

import numpy as np
from numpy.typing import NDArray

from vidi.augment_settings import ViewKind
from vidi.bundle import OperatingPoint
from vidi.errors import UnreadableImage, UsageError
from vidi.image import PixelContract, Pixels, Resize, center_crop, prepare, prepare_array, resize

# The bytes of an image file, the path of one, or pixels (H, W) or (H, W, C) uint8.
Image = bytes | bytearray | memoryview | str | os.PathLike[str] | NDArray[np.uint8]

# A file larger than this is no photo; 89 megapixels of 16-bit RGB without compression.
MAX_FILE_BYTES: Final = 512 << 20
# What --tta gets where there is nothing to average.
NO_VIEWS: Final = "this model has no views to average, besides those that it looks at by itself"
WITHOUT_VIEWS: Final = (
    "go without --tta; `vidi plan` says whether mirror images change what these pictures show, or "
    "are looked at already"
)


class Network(Protocol):
    """Pixels in, numbers out."""

    # Of "logits", "features" and "heat", those that it can give.
    outputs: tuple[str, ...]

    def __call__(
        self, pixels: NDArray[np.uint8], outputs: Sequence[str]
    ) -> tuple[NDArray[np.float32], ...]:
        """pixels (N, C, H, W); logits (N, K), features (N, F), heat (N, h, w), as asked."""
        ...


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model says about one image.

    label: the most probable class.
    probability: of that class, 0 to 1.
    top: all (class, probability) pairs, the most probable first.
    abstained: the probability is below what was asked for; `label` is then only the best guess.
    """

    label: str
    probability: float
    top: tuple[tuple[str, float], ...]
    abstained: bool = False


@dataclass(frozen=True, slots=True)
class Answers:
    """About N images: probabilities (N, K); features (N, F) and heat (N, h, w) where asked for.

    heat says where the first class was seen: 0 and up, of any scale.
    """

    probabilities: NDArray[np.float32]
    features: NDArray[np.float32] | None = None
    heat: NDArray[np.float32] | None = None


@final
@dataclass(frozen=True)
class Predictor:
    """`predictor(image) -> Prediction`, on the processor, in float32, as the numbers were made.

    The pixels go the same way as in training: `image.prepare`, then the centre crop.
    """

    network: Network
    pixels: PixelContract
    classes: tuple[str, ...]
    # What it was loaded from, in a word that no other has.
    origin: str = ""
    # Logits are divided by `applied_temperature`: 1, or `temperature` where it was asked for.
    temperature: float = 1.0
    calibrated: bool = False
    abstain_below: float = 0.0
    thresholds: tuple[OperatingPoint, ...] = ()
    notes: tuple[str, ...] = ()
    resize: Resize = resize
    # The views that are averaged, and those that may be.
    views: ViewKind = "plain"
    best_views: ViewKind = "plain"
    # Numbers of an embedding; 0 where the network gives none.
    num_features: int = 0

    def configured(
        self, *, calibrated: bool = False, tta: bool = False, abstain_below: float = 0.0
    ) -> Predictor:
        """The same with other settings.

        Raises:
            UsageError: a threshold outside 0..1, or no views to average.
        """
        if not 0.0 <= abstain_below <= 1.0:
            raise UsageError(f"a probability is in 0..1, {abstain_below} is not")
        if tta and self.best_views == "plain":
            raise UsageError(NO_VIEWS, fix=WITHOUT_VIEWS)
        return dataclasses.replace(
            self,
            calibrated=calibrated,
            abstain_below=abstain_below,
            views=self.best_views if tta else "plain",
        )

    @property
    def side_px(self) -> int:
        """Of the pixels that `prepare` gives."""
        return self.pixels.image_px if self.views == "plain" else self.pixels.store_px

    def threshold_for(self, precision: float) -> float:
        """From which probability on answers are right with this share, seen on validation images.

        Raises:
            UsageError: no such share was looked at, or no threshold reaches it.
        """
        known = {point.wanted: point for point in self.thresholds}
        point = known.get(precision)
        if point is None:
            listed = ", ".join(f"{wanted:g}" for wanted in sorted(known))
            raise UsageError(
                f"no threshold is known for a precision of {precision:g}",
                fix=f"known are {listed}" if known else "it had no validation images",
            )
        found = point.calibrated_threshold if self.calibrated else point.threshold
        if found is None:
            raise UsageError(f"no threshold reached a precision of {precision:g} on validation")
        return found

    def __call__(self, image: Image) -> Prediction:
        """What is on one image: the bytes of a file, a path, or pixels (H, W) or (H, W, C) uint8.

        Raises:
            UnreadableImage: not an image, damaged, missing, or of a format that is not accepted.
            UsageError: pixels that are not uint8 or of another shape.
        """
        return self.prediction(self.probabilities([image])[0])

    def probabilities(self, images: Sequence[Image]) -> NDArray[np.float32]:
        """(N, K) float32, one row for each image.

        Raises:
            UnreadableImage: one of them cannot be read.
        """
        if not images:
            return np.zeros((0, len(self.classes)), np.float32)
        return self.answers(np.stack([self.prepare(image) for image in images])).probabilities

    def prepare(self, image: Image) -> Pixels:
        """One image as the network sees it: (side_px, side_px, channels) uint8.

        Raises:
            UnreadableImage: it cannot be read.
        """
        if isinstance(image, np.ndarray):
            pixels = prepare_array(image, self.pixels, resize=self.resize)
        else:
            data = image if isinstance(image, bytes) else _bytes_of(image)
            pixels = prepare(data, self.pixels, resize=self.resize)
        return center_crop(pixels, self.side_px)

    def answers(
        self, pixels: NDArray[np.uint8], *, features: bool = False, heat: bool = False
    ) -> Answers:
        """About prepared pixels (N, side_px, side_px, channels); features and heat of the middle.

        Raises:
            UsageError: the network does not give what was asked for.
        """
        asked = ["logits", *(["features"] if features else []), *(["heat"] if heat else [])]
        for name in asked:
            if name not in self.network.outputs:
                raise UsageError(f"this network gives no {name}", fix=_ASK_OTHERWISE[name])
        middle, *others = cut(pixels, self.views, self.pixels.image_px)
        found = dict(zip(asked, self.network(_first(middle), tuple(asked)), strict=True))
        temperature = self.temperature if self.calibrated else 1.0
        probabilities = softmax(found["logits"], temperature)
        if others:
            more = [self.network(_first(view), ("logits",))[0] for view in others]
            shares = [probabilities, *(softmax(logits, temperature) for logits in more)]
            probabilities = np.mean(shares, axis=0, dtype=np.float32)
        return Answers(probabilities, found.get("features"), found.get("heat"))

    def prediction(self, probabilities: NDArray[np.float32]) -> Prediction:
        """One row of `Answers.probabilities` with its names."""
        order = (-probabilities).argsort(kind="stable")
        top = tuple((self.classes[index], float(probabilities[index])) for index in order)
        return Prediction(
            label=top[0][0],
            probability=top[0][1],
            top=top,
            abstained=not top[0][1] >= self.abstain_below,
        )


_ASK_OTHERWISE: Final = {
    "logits": "export the run again",
    "features": "export the run again",
    "heat": "vidi explains such a network by covering parts of the image",
}


def cut(pixels: NDArray[np.uint8], kind: ViewKind, image_px: int) -> list[NDArray[np.uint8]]:
    """Views of (N, H, W, C), each (N, image_px, image_px, C): as `vidi.augment.views`, no torch."""
    middle = center_crop(pixels, image_px)
    found = [middle]
    if kind in ("five", "ten"):
        down, across = pixels.shape[1] - image_px, pixels.shape[2] - image_px
        for top, left in ((0, 0), (0, across), (down, 0), (down, across)):
            found.append(pixels[:, top : top + image_px, left : left + image_px])
    if kind in ("shift", "shift_flip"):
        padded = np.pad(middle, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
        found += [padded[:, :-2, :-2], padded[:, 2:, 2:]]
    if kind in ("flip", "shift_flip", "ten"):
        found += [view[:, :, ::-1] for view in found]
    return found


def _first(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(N, H, W, C) -> (N, C, H, W), as it lies in memory."""
    return np.moveaxis(pixels, 3, 1)


def softmax(logits: NDArray[np.float32], temperature: float = 1.0) -> NDArray[np.float32]:
    """(N, K) -> (N, K), rows sum to 1."""
    scaled = logits.astype(np.float32, copy=False)
    if temperature != 1.0:
        scaled = scaled / np.float32(temperature)
    odds = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    shares: NDArray[np.float32] = odds / odds.sum(axis=1, keepdims=True)
    return shares


def _bytes_of(image: bytearray | memoryview | str | os.PathLike[str]) -> bytes:
    if isinstance(image, bytearray | memoryview):
        return bytes(image)
    return read_image(Path(image))


def read_image(path: Path) -> bytes:
    """The bytes of an image file. Raises UnreadableImage with the reason why not."""
    try:
        if not path.is_file():
            if not os.path.lexists(path):
                raise UnreadableImage(f"no such file: {path}", reason="MISSING")
            broken = path.is_symlink() and not path.exists()
            reason = "BROKEN_LINK" if broken else "SPECIAL_FILE"
            raise UnreadableImage(f"not a regular file: {path}", reason=reason)
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise UnreadableImage(
                f"{math.ceil(size / 1e6):,} MB, more than {MAX_FILE_BYTES // 10**6:,}",
                reason="TOO_LARGE",
                fix="scale it down",
            )
        return path.read_bytes()
    except UnreadableImage:
        raise
    except PermissionError as error:
        raise UnreadableImage(f"no permission to read {path}", reason="NO_PERMISSION") from error
    except (OSError, ValueError) as error:
        words = getattr(error, "strerror", None) or str(error)
        raise UnreadableImage(f"{path}: {words}", reason="READ_ERROR") from error
