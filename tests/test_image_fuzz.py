"""Thousands of broken files through the decoder: no crash, no hang, no memory that grows."""

from __future__ import annotations

import subprocess
import sys

import pytest

# In a process of its own, for a crash in a C library ends it. Prints: inputs, how many of them gave
# pixels, the longest time of one, and how much memory came on top after the first fifth.
FUZZ = r"""
import io, resource, sys, time, zlib
import numpy as np
from PIL import Image, features
from vidi.errors import UnreadableImage
from vidi.image import PixelContract, examine

count = int(sys.argv[1])
# A decoder that believed every number in a header would ask for more than this.
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
rng = np.random.Generator(np.random.PCG64(int(sys.argv[2])))
contract = PixelContract(image_px=16, store_px=16, channels=3, resize="crop",
                         interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3)


def seeds():
    noise = rng.integers(0, 256, (40, 56, 3), dtype=np.uint8)
    smooth = np.linspace(0, 255, 40 * 56 * 3).reshape(40, 56, 3).astype(np.uint8)
    kinds = ["JPEG", "PNG", "GIF", "BMP", "TIFF", "PPM"]
    kinds += [name.upper() for name in ("webp", "avif") if features.check(name)]
    exif = Image.Exif()
    exif[274] = 6
    for pixels in (noise, smooth):
        image = Image.fromarray(pixels)
        for kind in kinds:
            for mode in ("RGB", "L", "P", "RGBA", "CMYK", "I;16", "1"):
                buffer = io.BytesIO()
                try:
                    one = image.convert("L") if mode == "I;16" else image
                    one = one.convert(mode)
                    one.save(buffer, kind, exif=exif)
                except Exception:
                    continue
                yield buffer.getvalue()
        for more in ({"progressive": True}, {"subsampling": 0}, {"quality": 20}):
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", **more)
            yield buffer.getvalue()
        for compression in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg"):
            buffer = io.BytesIO()
            image.save(buffer, "TIFF", compression=compression)
            yield buffer.getvalue()
        buffer = io.BytesIO()
        image.save(buffer, "GIF", save_all=True, append_images=[image.rotate(90)])
        yield buffer.getvalue()


def broken(data, others):
    data = bytearray(data)
    for _ in range(int(rng.integers(1, 6))):
        at = int(rng.integers(len(data)))
        match int(rng.integers(7)):
            case 0:
                data[at] ^= 1 << int(rng.integers(8))
            case 1:
                data[at : at + 4] = bytes(rng.integers(0, 256, 4, dtype=np.uint8))
            case 2:
                data[at : at + 4] = bytes([255] * 4)
            case 3:
                del data[at : at + int(rng.integers(1, 64))]
            case 4:
                data[at:at] = bytes(int(rng.integers(1, 300)))
            case 5:
                other = others[int(rng.integers(len(others)))]
                data[at:] = other[int(rng.integers(len(other))) :]
            case 6:
                # Headers are where sizes stand.
                early = int(rng.integers(min(64, len(data))))
                data[early] = int(rng.integers(256))
        if not data:
            data = bytearray(b"\xff\xd8\xff")
    data = bytes(data)
    if data.startswith(b"\x89PNG") and rng.integers(2):
        data = repaired(data)
    return data


def repaired(data):
    # With right checksums, so that damage gets past the first gate.
    out, at = bytearray(data[:8]), 8
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if length > len(data):
            break
        body = data[at + 4 : at + 8 + length]
        out += data[at : at + 4] + body + zlib.crc32(body).to_bytes(4, "big")
        at += 12 + length
    return bytes(out + data[at:])


def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096


samples = list(seeds())
good, longest_s, before = 0, 0.0, 0
for number in range(count):
    if number == count // 5:
        before = resident()
    data = broken(samples[int(rng.integers(len(samples)))], samples)
    began_at = time.perf_counter()
    try:
        seen, pixels = examine(data, contract)
    except UnreadableImage as error:
        assert error.reason
    else:
        assert pixels.shape == (16, 16, 3) and pixels.dtype == np.uint8
        good += 1
    longest_s = max(longest_s, time.perf_counter() - began_at)
print(count, good, longest_s, resident() - before)
"""


@pytest.mark.parametrize(
    ("count", "seed"), [(1_500, 0), pytest.param(40_000, 1, marks=pytest.mark.slow)]
)
def test_broken_files_do_no_harm(count: int, seed: int) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-W", "ignore", "-c", FUZZ, str(count), str(seed)],
        capture_output=True,
        text=True,
        timeout=60 + count / 20,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    inputs, good, longest_s, growth_bytes = done.stdout.split()
    assert int(inputs) == count
    # Broken enough, and not all of them beyond recognition.
    assert 0.02 < int(good) / count < 0.8
    # The largest picture that is allowed, of 89 megapixels, takes about a second.
    assert float(longest_s) < 10.0
    assert int(growth_bytes) < 64 << 20
