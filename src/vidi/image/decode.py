"""From the bytes of a file to the pixels that a model sees: the only preprocessing there is.

Training, evaluation, the exported bundle and the server all call `prepare`, so the same bytes give
the same pixels everywhere. Nothing here knows torch, and nothing is repaired in silence: a file
that cannot be decoded as a whole raises `UnreadableImage` with one of the codes in `Reason`.

The rules, stated once:

- The format is recognised by content, never by the file's name.
- Orientation as the camera recorded it (EXIF) is applied; all other metadata are dropped, colour
  profiles too: numbers are taken as sRGB.
- Transparent pixels are composed onto `PixelContract.background`.
- 16-bit images are scaled to 8 bits over their full range, 0..65535 to 0..255. Floating-point
  images must lie in 0..1. 32-bit integers must fit in 16 bits.
- Of an animation or a multi-page file, the first frame is used.
- CMYK becomes RGB by the plain formula, with the inversion that Adobe's writers ask for.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, Self, cast

import numpy as np
import PIL
import simplejpeg
from PIL import Image
from pydantic import Field, model_validator

from vidi.errors import UnreadableImage, UsageError
from vidi.facts import Frozen
from vidi.image.filters import Interpolation, Pixels
from vidi.image.resize import resize

# (H, W, C), height, width, interpolation -> (height, width, C): `resize` or what gives the same.
Resize = Callable[[Pixels, int, int, Interpolation], Pixels]

Reason = Literal[
    "EMPTY",
    "NOT_IMAGE",
    "TRUNCATED",
    "CORRUPT",
    "UNSUPPORTED",
    "TOO_LARGE",
    "TOO_SMALL",
    "MISSING",
    "NO_PERMISSION",
    "SPECIAL_FILE",
    "BROKEN_LINK",
    "OUTSIDE_ROOT",
    "READ_ERROR",
    "TIMEOUT",
    "UNKNOWN_CLASS",
]

# What the bytes were, and what had to be done to them; an audit counts these.
Note = Literal["ANIMATED", "SIXTEEN_BIT", "FLOAT", "CMYK", "PALETTE", "ALPHA", "ROTATED", "DAMAGED"]

# Pillow warns from here on and refuses at twice this size. JPEG is held to the same limit, so that
# no format accepts what another refuses. 89 megapixels are 9,459 x 9,459.
MAX_PIXELS: Final = 89_478_485
# Below this there is nothing to learn from, and rounding decides what is seen.
MIN_SIDE_PX: Final = 2

# Raised when the same bytes would give other pixels. Stored pixels are keyed by it.
DECODER_VERSION: Final = f"2, Pillow {PIL.__version__}"


class PixelContract(Frozen):
    """What is done to every image before the model, in training and for ever after.

    `resize` says how an image becomes a square: "crop" scales the shorter side to `store_px` and
    takes the centre, "pad" scales the longer side and fills up with `background`, "squash" ignores
    the shape. The model sees the centre `image_px` of that, or a random crop of it in training, so
    with "pad" nothing is lost only where `store_px` equals `image_px`.

    `background` lies around padded and under transparent images. Middle grey, because neither a
    white nor a black shape disappears in it, and because it is near zero once it is normalised.
    """

    image_px: int = Field(ge=1, le=16384)
    store_px: int = Field(ge=1, le=16384)
    channels: Literal[1, 3]
    resize: Literal["crop", "pad", "squash"]
    interpolation: Interpolation
    background: int = Field(128, ge=0, le=255)
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.store_px < self.image_px:
            raise ValueError(f"store_px {self.store_px} is smaller than image_px {self.image_px}")
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(f"mean and std need {self.channels} numbers each, one a channel")
        if min(self.std) <= 0:
            raise ValueError("every std must be above zero")
        return self


@dataclass(frozen=True, slots=True)
class Inspection:
    """What an image is, upright, before anything is done to it."""

    format: str
    height_px: int
    width_px: int
    # No colour anywhere: one channel, or three equal ones.
    grey: bool
    notes: tuple[Note, ...]


def prepare(data: bytes, contract: PixelContract, *, resize: Resize = resize) -> Pixels:
    """Decode, turn upright, convert and resize one image file.

    Returns (store_px, store_px, channels). Raises UnreadableImage with a code of `Reason`.
    `resize` may be a faster one that gives the same numbers.
    """
    picture = _open(data, contract)
    return _upright(_to_square(picture.pixels, contract, resize), picture.orientation)


def prepare_array(pixels: Pixels, contract: PixelContract, *, resize: Resize = resize) -> Pixels:
    """`prepare` for pixels that were never a file: (H, W) or (H, W, C) with C = 1 to 4, uint8.

    Two channels are grey and alpha, four are red, green, blue and alpha.
    """
    if pixels.dtype != np.uint8:
        raise UsageError(
            f"images as arrays must be uint8 in 0..255, not {pixels.dtype}",
            fix="scale them to 0..255 and convert with .astype(numpy.uint8)",
        )
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 2, 3, 4) or 0 in pixels.shape:
        raise UsageError(f"an image of shape {pixels.shape} is neither (H, W) nor (H, W, C)")
    wanted = (contract.store_px, contract.store_px, contract.channels)
    if pixels.shape == wanted:
        return np.ascontiguousarray(pixels)
    if pixels.shape[2] in (2, 4):
        pixels = _opaque(pixels, contract.background)
    if pixels.shape[2] == 3 and contract.channels == 1:
        pixels = np.asarray(Image.fromarray(pixels).convert("L"))[:, :, None]
    return _to_square(pixels, contract, resize)


def center_crop(pixels: Pixels, size_px: int) -> Pixels:
    """The centre of (..., H, W, C), as a view: what evaluation sees of what is stored."""
    top = (pixels.shape[-3] - size_px) // 2
    left = (pixels.shape[-2] - size_px) // 2
    if top < 0 or left < 0:
        raise UsageError(f"cannot cut {size_px} px out of an image of shape {pixels.shape}")
    return pixels[..., top : top + size_px, left : left + size_px, :]


def inspect(data: bytes) -> Inspection:
    """Format, upright size and colour of one image file; decodes it small where that is possible.

    Raises UnreadableImage, for JPEG also where only the rest of the file is damaged.
    """
    return examine(data, _INSPECTION)[0]


def examine(
    data: bytes, contract: PixelContract, *, resize: Resize = resize
) -> tuple[Inspection, Pixels]:
    """`inspect` and `prepare` by decoding once. Raises UnreadableImage."""
    picture = _open(data, contract)
    height, width = picture.height_px, picture.width_px
    if picture.orientation >= 5:
        height, width = width, height
    grey = picture.pixels.shape[2] == 1 or bool((picture.pixels == picture.pixels[:, :, :1]).all())
    pixels = _upright(_to_square(picture.pixels, contract, resize), picture.orientation)
    return Inspection(picture.format, height, width, grey, picture.notes), pixels


_INSPECTION: Final = PixelContract(
    image_px=16,
    store_px=16,
    channels=3,
    resize="crop",
    interpolation="bilinear",
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
)


def sniff(data: bytes) -> str | None:
    """The format by content, e.g. "jpeg" or "png"; None for what is no image that we know of."""
    for offset, magic, name in _MAGIC:
        if data.startswith(magic, offset):
            return name
    if data[4:8] == b"ftyp":
        return {b"avif": "avif", b"avis": "avif"}.get(data[8:12], "heic")
    if re.match(rb"P[1-6]\s", data[:3]):
        return "pnm"
    if re.match(rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*(<!DOCTYPE svg[^>]*>\s*)?<svg[\s>]",
                data[:2048].removeprefix(b"\xef\xbb\xbf"), re.DOTALL):  # fmt: skip
        return "svg"
    return None


_MAGIC: Final = (
    (0, b"\xff\xd8\xff", "jpeg"),
    (0, b"\x89PNG\r\n\x1a\n", "png"),
    (0, b"GIF87a", "gif"),
    (0, b"GIF89a", "gif"),
    (8, b"WEBP", "webp"),
    (0, b"II*\0", "tiff"),
    (0, b"MM\0*", "tiff"),
    (0, b"II+\0", "tiff"),
    (0, b"MM\0+", "tiff"),
    (0, b"BM", "bmp"),
    # Known, so that the message can name them, but not decoded.
    (0, b"\0\0\0\x0cjP  ", "jpeg 2000"),
    (0, b"\xff\x0a", "jpeg xl"),
    (0, b"\0\0\0\x0cJXL ", "jpeg xl"),
    (0, b"8BPS", "photoshop"),
    (0, b"%PDF", "pdf"),
    (0, b"%!PS", "postscript"),
    (0, b"\xc5\xd0\xd3\xc6", "postscript"),
    (0, b"SIMPLE  =", "fits"),
    (0, b"\xd7\xcd\xc6\x9a", "wmf"),
    (0, b"\0\0\1\0", "ico"),
)

# The allow-list: our name, Pillow's name.
_PILLOW: Final = {
    "jpeg": "JPEG",
    "png": "PNG",
    "gif": "GIF",
    "webp": "WEBP",
    "tiff": "TIFF",
    "bmp": "BMP",
    "pnm": "PPM",
    "avif": "AVIF",
}

_ORIENTATION_TAG: Final = 274


@dataclass(frozen=True, slots=True)
class _Picture:
    """Decoded, not yet upright. `pixels` (H, W, 1 or 3) may be smaller than the file's picture."""

    pixels: Pixels
    orientation: int
    format: str
    height_px: int
    width_px: int
    notes: tuple[Note, ...]


def _open(data: bytes, contract: PixelContract) -> _Picture:
    if not data:
        raise UnreadableImage("the file is empty", reason="EMPTY")
    name = sniff(data)
    if name is None:
        if not any(data):
            raise UnreadableImage("nothing but zero bytes", reason="CORRUPT")
        raise UnreadableImage("this is no image", reason="NOT_IMAGE")
    if name not in _PILLOW:
        raise UnreadableImage(
            f"the format {name} is not read here",
            reason="UNSUPPORTED",
            fix="convert it to JPEG or PNG" + _CONVERTERS.get(name, ""),
        )
    if name == "jpeg":
        return _open_jpeg(data, contract)
    return _open_by_pillow(data, name, contract)


_CONVERTERS: Final = {
    "heic": ", e.g. with the package pillow-heif",
    "svg": " at the size you want",
}


def _check_size(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise UnreadableImage(
            f"{width} x {height} pixels, more than {MAX_PIXELS:,}",
            reason="TOO_LARGE",
            fix="scale it down",
        )
    if min(height, width) < MIN_SIDE_PX:
        raise UnreadableImage(
            f"{width} x {height} pixels, less than {MIN_SIDE_PX} on a side", reason="TOO_SMALL"
        )


# JPEG ---------------------------------------------------------------------------------------------


def _open_jpeg(data: bytes, contract: PixelContract) -> _Picture:
    """By libjpeg-turbo, strictly; by Pillow what that cannot or would not read."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours in ("CMYK", "YCCK"):
            return _open_by_pillow(data, "jpeg", contract)
        _check_size(height, width)
        space = "GRAY" if contract.channels == 1 or colours == "Gray" else "RGB"
        factor = _jpeg_factor(height, width, contract)
        pixels = simplejpeg.decode_jpeg(
            data, space, min_height=-(-height // factor), min_width=-(-width // factor)
        )
    except UnreadableImage:
        raise
    except ValueError as error:
        if _is_cut(data):
            raise UnreadableImage(
                f"the JPEG ends early, after {len(data):,} bytes",
                reason="TRUNCATED",
                fix="get the whole file again, or delete it",
            ) from error
        if _HARMLESS.search(str(error)):
            return _open_by_pillow(data, "jpeg", contract, "DAMAGED")
        if _UNKNOWN.search(str(error)):
            return _open_by_pillow(data, "jpeg", contract)
        raise UnreadableImage(f"the JPEG is damaged: {error}", reason="CORRUPT") from error
    orientation = _jpeg_orientation(data)
    notes: tuple[Note, ...] = ("ROTATED",) if orientation != 1 else ()
    return _Picture(pixels, orientation, "jpeg", height, width, notes)


# Cameras pad the end of the picture data, editors break the colour profile; every decoder shows
# such a file whole. All other warnings of libjpeg mean that some of the picture was invented.
_HARMLESS: Final = re.compile(r"\d+ extraneous bytes before marker 0xd9|bad ICC marker")
# Kinds of JPEG that the fast interface does not know.
_UNKNOWN: Final = re.compile(r"determine (subsampling|colorspace)|[Uu]nsupported|precision")


def _jpeg_factor(height: int, width: int, contract: PixelContract) -> int:
    """How much smaller the decoder may make it for free: 1, 2, 4 or 8.

    Only while what remains is no smaller than the target. Other eighths exist, but libjpeg-turbo
    has no vector code for them: 6/8 took 1.8 times as long as full size on 400 x 533 px photos.
    """
    if contract.interpolation == "nearest":
        return 1
    scale = _scale(height, width, contract)
    need_height, need_width = (min(1.0, s) * n for s, n in zip(scale, (height, width), strict=True))
    for factor in (8, 4, 2):
        if height >= need_height * factor and width >= need_width * factor:
            return factor
    return 1


def _is_cut(data: bytes) -> bool:
    """No end-of-image marker, except one of an embedded thumbnail; asked after decoding failed."""
    return data.rfind(b"\xff\xd9") < len(data) // 2


def _jpeg_orientation(data: bytes) -> int:
    """EXIF orientation 1..8 from the segments before the picture; 1 where there is none.

    A walk over the markers: 2 microseconds, where a general EXIF reader takes a hundred.
    """
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in (0xDA, 0xD9):
            break
        if marker == 0xFF:
            at += 1
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xE1 and data.startswith(b"Exif\0\0", at + 4):
            return _exif_orientation(data[at + 10 : at + 2 + length])
        at += 2 + length
    return 1


def _exif_orientation(exif: bytes) -> int:
    """From a TIFF header with its first directory; 1 for anything broken."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None or len(exif) < 8:
        return 1
    (directory,) = struct.unpack_from(order + "I", exif, 4)
    if directory + 2 > len(exif):
        return 1
    (count,) = struct.unpack_from(order + "H", exif, directory)
    for entry in range(directory + 2, min(directory + 2 + 12 * count, len(exif) - 11), 12):
        tag, kind = struct.unpack_from(order + "HH", exif, entry)
        if tag == _ORIENTATION_TAG:
            (value,) = struct.unpack_from(order + ("H" if kind == 3 else "I"), exif, entry + 8)
            return int(value) if 1 <= value <= 8 else 1
    return 1


# Everything else ----------------------------------------------------------------------------------


def _open_by_pillow(data: bytes, name: str, contract: PixelContract, *before: Note) -> _Picture:
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=(_PILLOW[name],))
        _check_size(image.height, image.width)
        notes: list[Note] = list(before)
        if getattr(image, "n_frames", 1) > 1 or getattr(image, "is_animated", False):
            notes.append("ANIMATED")
        image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImage(
            f"more than {MAX_PIXELS:,} pixels", reason="TOO_LARGE", fix="scale it down"
        ) from error
    except UnreadableImage:
        raise
    except MemoryError as error:
        raise UnreadableImage(
            "it does not fit in memory", reason="TOO_LARGE", fix="scale it down"
        ) from error
    # Pillow's readers raise whatever the format's parser tripped over: OSError, SyntaxError,
    # struct.error, IndexError, zlib.error, OverflowError, ... There is no common base below this.
    except Exception as error:
        message = f"the {name} file cannot be decoded: {error}"
        if re.search(r"truncat|ended|not enough|end of|incomplete|EOF", str(error), re.IGNORECASE):
            raise UnreadableImage(message, reason="TRUNCATED") from error
        raise UnreadableImage(message, reason="CORRUPT") from error
    # Only now: PNG may carry it behind the pixels, and Pillow turns TIFF by itself while loading.
    orientation = _pillow_orientation(image)
    height, width = image.height, image.width
    if orientation != 1:
        notes.append("ROTATED")
    pixels, more = _plain(image, contract)
    return _Picture(pixels, orientation, name, height, width, (*notes, *more))


def _pillow_orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:
        # Metadata are not the picture: broken ones are dropped, as if there were none.
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _plain(image: Image.Image, contract: PixelContract) -> tuple[Pixels, list[Note]]:
    """To (H, W, 1) or (H, W, 3) by the rules at the top of this module; grey stays one channel."""
    notes: list[Note] = []
    if image.mode.startswith("I") or image.mode == "F":
        notes.append("FLOAT" if image.mode == "F" else "SIXTEEN_BIT")
        image = _eight_bit(image)
    if image.mode == "P":
        notes.append("PALETTE")
    if image.mode == "CMYK":
        notes.append("CMYK")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        notes.append("ALPHA")
        grey = image.mode in ("1", "L", "LA", "La")
        values = np.asarray(image.convert("LA" if grey else "RGBA"))
        image = Image.fromarray(_opaque(values, contract.background).squeeze(2 if grey else ()))
    wanted = "L" if contract.channels == 1 or image.mode in ("L", "1") else "RGB"
    if image.mode != wanted:
        if image.mode not in ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"):
            raise UnreadableImage(
                f"pixels of the kind {image.mode} are not read here",
                reason="UNSUPPORTED",
                fix="convert it to an RGB image",
            )
        if wanted == "L" and image.mode in ("P", "CMYK"):
            image = image.convert("RGB")
        image = image.convert(wanted)
    pixels = np.asarray(image)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels, notes


def _eight_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if image.mode == "F":
        if not (np.isfinite(values).all() and low >= 0.0 and high <= 1.0):
            raise UnreadableImage(
                f"floating-point pixels from {low:g} to {high:g}; only 0 to 1 is understood",
                reason="UNSUPPORTED",
                fix="convert it to an 8-bit image",
            )
        return Image.fromarray(np.rint(values * 255.0).astype(np.uint8))
    if low < 0 or high > 65535:
        raise UnreadableImage(
            f"integer pixels from {low:g} to {high:g}; only 0 to 65535 is understood",
            reason="UNSUPPORTED",
            fix="convert it to an 8-bit image",
        )
    # 257 steps of 16 bits are one step of 8: 65535 = 255 * 257.
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))


def _opaque(pixels: Pixels, background: int) -> Pixels:
    """(H, W, C + 1) with alpha last -> (H, W, C): colour * alpha + background * (1 - alpha)."""
    alpha = pixels[:, :, -1:].astype(np.uint32)
    mixed = (pixels[:, :, :-1] * alpha + background * (255 - alpha) + 127) // 255
    return mixed.astype(np.uint8)


# To the square ------------------------------------------------------------------------------------


def _scale(height: int, width: int, contract: PixelContract) -> tuple[float, float]:
    """Target over source, vertically and horizontally."""
    side = contract.store_px
    if contract.resize == "squash":
        return side / height, side / width
    same = side / (min(height, width) if contract.resize == "crop" else max(height, width))
    return same, same


def _to_square(pixels: Pixels, contract: PixelContract, resize: Resize) -> Pixels:
    """(H, W, 1 or 3) -> (store_px, store_px, channels).

    Cuts and margins are the same on both sides, so that turning upright afterwards gives what
    turning upright before would have given.
    """
    side = contract.store_px
    height, width = pixels.shape[:2]
    target_height, target_width = side, side
    if contract.resize == "crop":
        short = min(height, width)
        # Where an odd number of pixels is too many, one of them stays: 1 in 400 of distortion.
        top, left = (height - short) // 2, (width - short) // 2
        pixels = pixels[top : height - top, left : width - left]
    elif contract.resize == "pad":
        scale = side / max(height, width)
        target_height = _padded_size(height, scale, side)
        target_width = _padded_size(width, scale, side)
    if pixels.shape[:2] != (target_height, target_width):
        pixels = resize(pixels, target_height, target_width, contract.interpolation)
    if pixels.shape[:2] != (side, side):
        top, left = (side - target_height) // 2, (side - target_width) // 2
        padded = np.full((side, side, pixels.shape[2]), contract.background, dtype=np.uint8)
        padded[top : top + target_height, left : left + target_width] = pixels
        pixels = padded
    if pixels.shape[2] != contract.channels:
        pixels = np.repeat(pixels, contract.channels, axis=2)
    return pixels


def _padded_size(length: int, scale: float, side: int) -> int:
    """The scaled length, moved by at most one pixel so that both margins are equal."""
    margin = round((side - length * scale) / 2)
    return max(side - 2 * margin, 2 - side % 2)


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Undo the camera's rotation on (H, W, C); orientation as in EXIF, 1..8."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return cast(Pixels, np.ascontiguousarray(pixels))


def encode_png(pixels: Pixels) -> bytes:
    """(H, W) or (H, W, C) uint8 as the bytes of a lossless file."""
    buffer = io.BytesIO()
    squeezed: Any = pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    Image.fromarray(np.ascontiguousarray(squeezed)).save(buffer, "PNG")
    return buffer.getvalue()
