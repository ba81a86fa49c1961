"""A process that decodes images for the server: what crashes here, crashes alone.

Run with the pixel contract as its argument, it reads images from standard input and writes pixels
to standard output, each with its length in front. It opens no file and no connection.
"""

from __future__ import annotations

import json
import resource
import sys
from typing import BinaryIO

from vidi.errors import UnreadableImage
from vidi.image import PixelContract, center_crop, prepare
from vidi.malloc import keep_memory

# Address space. The largest image that is accepted takes 270 MB as RGB, and Pillow needs it twice.
MEMORY_BYTES = 4 << 30
# Blocks up to here stay with the process: what a photo takes, not what the largest picture takes.
_KEPT_BYTES = 32 << 20
PIXELS = b"P"
ERROR = b"E"


def main() -> None:
    """Until standard input ends."""
    contract = PixelContract.model_validate_json(sys.argv[1])
    for kind, limit in (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):
        resource.setrlimit(kind, (limit, limit))
    keep_memory(block_bytes=_KEPT_BYTES)
    source, target = sys.stdin.buffer, sys.stdout.buffer
    while header := source.read(4):
        data = source.read(int.from_bytes(header, "little"))
        try:
            pixels = center_crop(prepare(data, contract), contract.image_px)
            answer, payload = PIXELS, pixels.tobytes()
        except UnreadableImage as error:
            answer = ERROR
            payload = json.dumps([error.reason, error.sentence]).encode()
        except MemoryError:
            answer = ERROR
            payload = json.dumps(["TOO_LARGE", "it does not fit in memory: scale it down"]).encode()
        _send(target, answer, payload)


def _send(target: BinaryIO, kind: bytes, payload: bytes) -> None:
    target.write(kind + len(payload).to_bytes(4, "little"))
    target.write(payload)
    target.flush()
