"""From the bytes of a file to the pixels that a model sees. numpy and Pillow; no torch."""

from __future__ import annotations

from vidi.image.decode import (
    DECODER_VERSION,
    MAX_PIXELS,
    Inspection,
    Note,
    PixelContract,
    Reason,
    Resize,
    center_crop,
    encode_png,
    examine,
    inspect,
    prepare,
    prepare_array,
    sniff,
)
from vidi.image.resize import Interpolation, Pixels, resize

__all__ = [
    "DECODER_VERSION",
    "MAX_PIXELS",
    "Inspection",
    "Interpolation",
    "Note",
    "PixelContract",
    "Pixels",
    "Reason",
    "Resize",
    "center_crop",
    "encode_png",
    "examine",
    "inspect",
    "prepare",
    "prepare_array",
    "resize",
    "sniff",
]
