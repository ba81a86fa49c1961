"""From the bytes of a file to the pixels that a model sees. numpy and Pillow; no torch."""

from __future__ import annotations

from vidi.image.compiled import compiled_resize, has_compiled_resize
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
from vidi.image.exact import exact_resize, same_numbers
from vidi.image.filters import Interpolation, Pixels
from vidi.image.resize import resize

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
    "compiled_resize",
    "encode_png",
    "exact_resize",
    "examine",
    "has_compiled_resize",
    "inspect",
    "prepare",
    "prepare_array",
    "resize",
    "same_numbers",
    "sniff",
]
