"""The same bytes say the same through training's code, the bundle, `predict` and HTTP.

FAULTS.md P12, on the odd images of its rows D5 and D7 to D20.
"""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, features

import vidi
from vidi.data import Loader, open_dataset, open_store
from vidi.errors import UnreadableImage
from vidi.evaluate import predict
from vidi.predictor.trained import restored
from vidi.run import Run

CLASSES = ("blue", "green", "red")


def photo(height: int = 37, width: int = 53) -> Image.Image:
    """Colours with edges and noise in them, another of each size."""
    rng = np.random.default_rng(height * 1000 + width)
    y, x = np.mgrid[0:height, 0:width]
    waves = np.stack([np.sin(x / 5 + k) * 60 + np.cos(y / (3 + k)) * 50 + 128 for k in range(3)], 2)
    noisy = waves + rng.normal(0, 12, waves.shape)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def deep_png(values: NDArray[Any]) -> bytes:
    """Colours of 16 bits, which Pillow does not write: (H, W, 3)."""
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def turned(kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    return encoded(photo(), kind, exif=exif)


def odd_images() -> dict[str, bytes]:
    """By file name; every one can be read."""
    image, grey = photo(), photo().convert("L")
    clear = image.convert("RGBA")
    clear.putalpha(grey)
    palette = image.quantize(16)
    frames = {"save_all": True, "append_images": [photo(37, 53).rotate(90), photo(37, 53)]}
    ramp = np.linspace(0, 65535, 40 * 30).reshape(30, 40)
    jpeg = encoded(image, "JPEG")
    found = {
        "plain.jpg": jpeg,
        "progressive.jpeg": encoded(image, "JPEG", progressive=True),
        "whole-colours.jfif": encoded(image, "JPEG", subsampling=0, quality=98),
        "coarse.JPG": encoded(image, "JPEG", quality=5),
        "grey.jpg": encoded(grey, "JPEG"),
        "inks.jpg": encoded(image.convert("CMYK"), "JPEG"),
        "large.jpg": encoded(photo(301, 403), "JPEG"),
        "plain.png": encoded(image, "PNG"),
        "grey.png": encoded(grey, "PNG"),
        "one-bit.png": encoded(image.convert("1"), "PNG"),
        "palette.png": encoded(palette, "PNG"),
        "palette-clear.png": encoded(palette, "PNG", transparency=3),
        "clear.png": encoded(clear, "PNG"),
        "grey-clear.png": encoded(clear.convert("LA"), "PNG"),
        "grey-deep.png": encoded(Image.fromarray(ramp.astype(np.uint16)), "PNG"),
        "deep.png": deep_png(np.stack([ramp, ramp[::-1], ramp[:, ::-1]], 2)),
        "animated.png": encoded(image, "PNG", **frames),
        "text.png": jpeg,
        "a png.jpg": encoded(image, "PNG"),
        "plain.gif": encoded(image, "GIF"),
        "animated.gif": encoded(image, "GIF", **frames),
        "plain.bmp": encoded(image, "BMP"),
        "palette.bmp": encoded(palette, "BMP"),
        "plain.webp": encoded(image, "WEBP", quality=80),
        "exact-clear.webp": encoded(clear, "WEBP", lossless=True),
        "animated.webp": encoded(image, "WEBP", lossless=True, **frames),
        "plain.tif": encoded(image, "TIFF"),
        "packed.tiff": encoded(image, "TIFF", compression="tiff_lzw"),
        "deflated.tif": encoded(grey, "TIFF", compression="tiff_adobe_deflate"),
        "pages.tif": encoded(image, "TIFF", **frames),
        "inks.tif": encoded(image.convert("CMYK"), "TIFF"),
        "ycbcr.tif": encoded(image.convert("YCbCr"), "TIFF"),
        "grey-deep.tif": encoded(Image.fromarray(ramp.astype(np.uint16)), "TIFF"),
        "shares.tif": encoded(Image.fromarray((ramp / 65535).astype(np.float32)), "TIFF"),
        "plain.ppm": encoded(image, "PPM"),
        "grey.pgm": encoded(grey, "PPM"),
        "wide.png": encoded(photo(3, 900), "PNG"),
        "high.png": encoded(photo(900, 3), "PNG"),
        "line.png": encoded(photo(2, 20000), "PNG"),
        "small.png": encoded(photo(5, 7), "PNG"),
        "profile.jpg": jpeg[:2]
        + b"".join(
            b"\xff\xe2" + struct.pack(">H", 65_016) + b"ICC_PROFILE\0" + bytes([number, 32])
            + bytes(65_000)
            for number in range(1, 33)
        )
        + jpeg[2:],
        "broken-exif.jpg": jpeg[:2] + b"\xff\xe1\0\x10Exif\0\0MM\0*\xff\xff\xff\xff" + jpeg[2:],
    }  # fmt: skip
    found |= {f"turned-{n}.jpg": turned("JPEG", n) for n in range(1, 9)}
    found |= {f"turned-{n}.png": turned("PNG", n) for n in (3, 6)}
    if features.check("avif"):
        found["plain.avif"] = encoded(image, "AVIF")
    return found


def unreadable() -> dict[str, bytes]:
    jpeg, png = encoded(photo(), "JPEG"), encoded(photo(), "PNG")
    return {
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "cut.png": png[: len(png) // 2],
        "letter.jpg": b"Dear Sir or Madam",
        "page.jpg": b"<!doctype html><p>404",
        "zeros.jpg": bytes(500),
        "drawing.jpg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "paper.jpg": b"%PDF-1.7\n",
        "one.png": encoded(Image.new("RGB", (1, 1)), "PNG"),
        "bomb.png": b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b""),
    }


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("odd")
    for place, (name, data) in enumerate(odd_images().items()):
        path = root / CLASSES[place % 3] / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    return root


def by_training(shipped: Any, odd: Path, cache: Path) -> dict[str, NDArray[np.float32]]:
    """As a training run is judged: decoded into a store, batched, through the torch network."""
    plan, _, classifier, _ = restored(Run.open(shipped.run))
    dataset = open_dataset(odd)
    store = open_store(dataset, plan.pixels, cache_dir=cache, threads=1, progress=None)
    assert not list(store.unreadable)
    ids = np.arange(len(dataset.labels))
    loader = Loader(
        store, dataset.labels, ids, batch_size=8, seed=0, shuffle=False, drop_last=False, threads=1
    )
    found = None
    for part in predict(classifier, loader, plan.pixels.image_px, "float32", torch.device("cpu")):
        found = part
    assert found is not None
    names = [dataset.name_of(int(each)) for each in found.ids]
    return dict(zip(names, found.probabilities, strict=True))


def test_odd_images_say_the_same_four_ways(
    server: Any, shipped: Any, odd: Path, tmp_path: Path
) -> None:
    assert len(odd_images()) > 50
    trained = by_training(shipped, odd, tmp_path / "cache")
    assert len(trained) == len(odd_images())
    bundle = vidi.load(shipped.onnx)
    assert bundle.classes == CLASSES
    done = subprocess.run(
        [sys.executable, "-m", "vidi", "predict", str(shipped.onnx), str(odd), "--json",
         "--probabilities"], capture_output=True, text=True, check=True,
    )  # fmt: skip
    rows = {row["file"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert len(rows) == len(trained)
    for name, ours in trained.items():
        data = (odd / name).read_bytes()
        reply = server.predict(data, "?top=3")
        assert reply.status == 200, (name, reply)
        asked = {each["label"]: each["probability"] for each in reply.json["top"]}
        others = {
            "bundle": bundle.probabilities([data])[0],
            "predict": np.array(rows[str(odd / name)]["probabilities"]),
            "HTTP": np.array([asked[label] for label in CLASSES]),
        }
        for way, theirs in others.items():
            assert theirs.argmax() == ours.argmax(), (name, way)
            assert np.abs(theirs - ours).max() < 1e-4, (name, way)


def test_what_cannot_be_read_has_the_same_reason_everywhere(
    server: Any, shipped: Any, tmp_path: Path
) -> None:
    run, bundle = vidi.load(shipped.run), vidi.load(shipped.onnx)
    for name, data in unreadable().items():
        (tmp_path / name).write_bytes(data)
        reasons = []
        for way in (run, bundle):
            with pytest.raises(UnreadableImage) as caught:
                way(data)
            reasons.append(caught.value.reason)
        reply = server.predict(data)
        assert reply.status == 422, name
        assert {*reasons, reply.json["reason"]} == {reasons[0]}, name
    done = subprocess.run(
        [sys.executable, "-m", "vidi", "predict", str(shipped.onnx), str(tmp_path), "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 3
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {Path(row["file"]).name for row in rows} == set(unreadable())
    for row in rows:
        with pytest.raises(UnreadableImage) as caught:
            run(Path(row["file"]).read_bytes())
        assert row["error"] == caught.value.reason
