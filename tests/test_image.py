"""Bytes become the same pixels everywhere, or an error that says why not."""

from __future__ import annotations

import io
import resource
import shutil
import struct
import sys
import time
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, features

from vidi.errors import UnreadableImage, UsageError
from vidi.image import (
    PixelContract,
    Pixels,
    center_crop,
    compiled_resize,
    exact_resize,
    has_compiled_resize,
    inspect,
    prepare,
    prepare_array,
    resize,
    sniff,
)


def contract(
    px: int = 16,
    *,
    channels: Literal[1, 3] = 3,
    resize: Literal["crop", "pad", "squash"] = "crop",
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear",
    background: int = 128,
) -> PixelContract:
    return PixelContract(
        image_px=px,
        store_px=px,
        channels=channels,
        resize=resize,
        interpolation=interpolation,
        background=background,
        mean=(0.5,) * channels,
        std=(0.5,) * channels,
    )


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(height: int = 48, width: int = 64) -> Image.Image:
    """Smooth, coloured, and different in every corner."""
    y, x = np.mgrid[0:height, 0:width]
    colours = np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], 2)
    return Image.fromarray(colours.astype(np.uint8))


def noise(height: int = 40, width: int = 40) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def difference(a: Pixels, b: Pixels) -> float:
    assert a.shape == b.shape
    return float(np.abs(a.astype(int) - b.astype(int)).max())


def attempt(data: bytes) -> Pixels | UnreadableImage:
    try:
        return prepare(data, contract())
    except UnreadableImage as error:
        return error


def reason_of(data: bytes) -> str:
    with pytest.raises(UnreadableImage) as caught:
        prepare(data, contract())
    return caught.value.reason


# The contract -------------------------------------------------------------------------------------


def test_a_contract_whose_numbers_contradict_each_other_is_refused() -> None:
    good = contract().model_dump()
    for wrong in (
        {"store_px": 8},
        {"mean": (0.5,)},
        {"std": (0.5, 0.5, 0.0)},
        {"channels": 2},
        {"background": 256},
        {"colour": 1},
    ):
        with pytest.raises(ValueError, match=r"."):
            PixelContract.model_validate({**good, **wrong})


def test_crop_takes_the_centre_square() -> None:
    stripes = np.zeros((10, 30, 3), dtype=np.uint8)
    stripes[:, 10:20] = 200
    assert (prepare(encoded(Image.fromarray(stripes), "PNG"), contract(10)) == 200).all()


def test_pad_keeps_everything_and_fills_both_sides_alike() -> None:
    white = Image.new("RGB", (30, 10), "white")
    pixels = prepare(encoded(white, "PNG"), contract(30, resize="pad", background=7))
    assert (pixels[10:20] == 255).all()
    assert (pixels[:10] == 7).all()
    assert (pixels[20:] == 7).all()


@given(width=st.integers(2, 90), height=st.integers(2, 90), px=st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_padding_is_symmetric_for_every_shape(width: int, height: int, px: int) -> None:
    pixels = prepare_array(
        np.full((height, width), 255, np.uint8), contract(px, channels=1, resize="pad")
    )
    assert (pixels == pixels[::-1]).all()
    assert (pixels == pixels[:, ::-1]).all()
    assert (pixels == 255).any()


def test_squash_keeps_everything() -> None:
    halves = np.zeros((20, 60, 3), dtype=np.uint8)
    halves[:, 30:] = 255
    pixels = prepare(encoded(Image.fromarray(halves), "PNG"), contract(20, resize="squash"))
    assert (pixels[:, :8] == 0).all()
    assert (pixels[:, 12:] == 255).all()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_downscaling_is_antialiased(interpolation: Literal["bilinear", "bicubic"]) -> None:
    board = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
    pixels = prepare_array(board, contract(16, channels=1, interpolation=interpolation))
    assert abs(int(pixels[4:-4, 4:-4].min()) - 127) <= 2
    assert abs(int(pixels[4:-4, 4:-4].max()) - 127) <= 2


def test_nearest_invents_no_value() -> None:
    board = (np.indices((50, 50)).sum(0) % 2 * 255).astype(np.uint8)
    pixels = prepare_array(board, contract(16, channels=1, interpolation="nearest"))
    assert set(np.unique(pixels)) <= {0, 255}


def test_an_image_of_the_right_size_is_not_touched() -> None:
    image = noise(16, 16)
    pixels = prepare(encoded(image, "PNG"), contract(16))
    assert (pixels == np.asarray(image)).all()
    assert pixels.flags.c_contiguous


def test_center_crop_is_the_middle() -> None:
    pixels = np.arange(6 * 6, dtype=np.uint8).reshape(6, 6, 1)
    assert (center_crop(pixels, 2) == pixels[2:4, 2:4]).all()
    assert (center_crop(pixels[None], 6) == pixels[None]).all()
    with pytest.raises(UsageError, match="7 px"):
        center_crop(pixels, 7)


# Arrays -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["L", "LA", "RGB", "RGBA"])
def test_an_array_gives_what_its_file_gives(kind: str) -> None:
    image = picture().convert(kind)
    for channels in (1, 3):
        wanted = contract(16, channels=channels)
        from_file = prepare(encoded(image, "PNG"), wanted)
        assert (prepare_array(np.asarray(image), wanted) == from_file).all()


def test_an_array_of_the_wrong_kind_is_refused() -> None:
    with pytest.raises(UsageError, match="uint8"):
        prepare_array(np.zeros((4, 4), np.float32), contract())  # type: ignore[arg-type,unused-ignore]
    for shape in ((4,), (4, 4, 5), (0, 4, 3)):
        with pytest.raises(UsageError, match="shape"):
            prepare_array(np.zeros(shape, np.uint8), contract())


# D1, D2: damaged JPEG -----------------------------------------------------------------------------


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_cut_anywhere_is_truncated_and_never_a_grey_half_image(progressive: bool) -> None:
    whole = encoded(picture(), "JPEG", progressive=progressive)
    for length in range(1, len(whole)):
        assert reason_of(whole[:length]) == ("NOT_IMAGE" if length < 3 else "TRUNCATED"), length


def test_a_jpeg_with_an_embedded_thumbnail_is_still_known_to_be_cut() -> None:
    exif = Image.Exif()
    exif[0x010E] = "x" * 100 + encoded(picture(8, 8), "JPEG").decode("latin-1")
    whole = encoded(picture(200, 200), "JPEG", exif=exif, quality=95)
    assert reason_of(whole[: len(whole) * 2 // 3]) == "TRUNCATED"


def test_damage_in_the_middle_of_a_jpeg_is_found_or_harmless() -> None:
    """Not every changed bit can be seen by a decoder; what it does notice is never passed on."""
    whole = encoded(noise(), "JPEG", quality=90)
    corrupt = 0
    for place in range(len(whole) // 2, len(whole) - 2, 3):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        result = attempt(bytes(damaged))
        if isinstance(result, UnreadableImage):
            assert result.reason in ("CORRUPT", "TRUNCATED")
            corrupt += 1
    assert corrupt > 50


def test_padding_before_the_end_marker_is_used_and_noted() -> None:
    whole = encoded(picture(), "JPEG")
    padded = whole[:-2] + b"\0" * 9 + whole[-2:]
    assert difference(prepare(padded, contract()), prepare(whole, contract())) <= 3
    assert "DAMAGED" in inspect(padded).notes


def test_bytes_after_the_end_of_a_jpeg_do_no_harm() -> None:
    whole = encoded(picture(), "JPEG")
    assert (prepare(whole + b"\0" * 999, contract()) == prepare(whole, contract())).all()


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM"])
def test_other_formats_cut_anywhere_give_all_of_the_image_or_an_error(kind: str) -> None:
    whole = encoded(noise(24, 24), kind)
    expected = prepare(whole, contract())
    bad = 0
    for length in range(1, len(whole), 7):
        result = attempt(whole[:length])
        if isinstance(result, UnreadableImage):
            assert result.reason in ("TRUNCATED", "CORRUPT", "NOT_IMAGE")
            bad += 1
        else:
            assert (result == expected).all(), length
    assert bad > 0.9 * len(range(1, len(whole), 7)) - 20


# D3, D4, D5, D8, D19, D20: what is no image -------------------------------------------------------


def test_an_empty_file_is_empty() -> None:
    assert reason_of(b"") == "EMPTY"


def test_text_html_and_random_bytes_are_not_images() -> None:
    rng = np.random.default_rng(0)
    for data in (b"hello\n", b"<!DOCTYPE html><html><svg></svg>", rng.bytes(5000), b"GIF", b"P7\n"):
        assert reason_of(data) == "NOT_IMAGE"


def test_zero_bytes_are_corrupt() -> None:
    assert reason_of(bytes(1000)) == "CORRUPT"


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"%PDF-1.7\n", "pdf"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "postscript"),
        (b"SIMPLE  =                    T", "fits"),
        (b"\xd7\xcd\xc6\x9a\0\0", "wmf"),
        (b"8BPS\0\1", "photoshop"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "heic"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "jpeg 2000"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "svg"),
        (b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- x -->\n<svg>", "svg"),
    ],
)
def test_formats_that_are_not_read_are_named(head: bytes, name: str) -> None:
    assert sniff(head) == name
    with pytest.raises(UnreadableImage, match=name) as caught:
        prepare(head + bytes(100), contract())
    assert caught.value.reason == "UNSUPPORTED"
    assert "convert" in str(caught.value)


# D9 to D12: colours -------------------------------------------------------------------------------


def test_cmyk_is_the_colour_that_adobe_meant() -> None:
    colours = picture()
    inks = colours.convert("CMYK")
    data = encoded(inks, "JPEG", quality=98, subsampling=0)
    wanted = contract(48)
    assert difference(prepare(data, wanted), prepare(encoded(colours, "PNG"), wanted)) <= 8
    assert "CMYK" in inspect(data).notes


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(64, 0)
    for kind in ("PNG", "TIFF"):
        data = encoded(Image.fromarray(ramp), kind)
        pixels = prepare(data, contract(64, channels=1))[0, :, 0]
        assert (pixels == np.rint(ramp[0] / 257)).all()
        assert inspect(data).notes == ("SIXTEEN_BIT",)


def test_sixteen_bit_colour_is_scaled() -> None:
    values = np.array([[[0, 32896, 65535]]], ">u2").repeat(4, 0).repeat(4, 1)
    data = png(4, 4, bits=16, colour=2, rows=values)
    assert (prepare(data, contract(4)) == (0, 128, 255)).all()


def test_floating_point_pixels_must_lie_in_0_to_1() -> None:
    ramp = np.linspace(0, 1, 16, dtype=np.float32)[None].repeat(16, 0)
    pixels = prepare(encoded(Image.fromarray(ramp), "TIFF"), contract(16))
    assert (pixels[0, :, 0] == np.rint(ramp[0] * 255)).all()
    for bad in (ramp * 2, ramp - 1, ramp * np.float32("nan")):
        assert reason_of(encoded(Image.fromarray(bad), "TIFF")) == "UNSUPPORTED"
    assert reason_of(encoded(Image.new("LAB", (9, 9)), "TIFF")) == "UNSUPPORTED"


def test_one_bit_and_ycbcr_are_converted() -> None:
    board = Image.fromarray(np.indices((16, 16)).sum(0) % 2 == 0)
    pixels = prepare(encoded(board, "PNG"), contract(16, channels=1))
    assert (pixels[:, :, 0] == np.asarray(board) * 255).all()
    plain = prepare(encoded(picture(), "PNG"), contract())
    ycbcr = prepare(encoded(picture().convert("YCbCr"), "TIFF"), contract())
    assert difference(plain, ycbcr) <= 3


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P"])
def test_what_is_transparent_shows_the_background(kind: str) -> None:
    image = Image.new("RGBA", (16, 16), (255, 255, 255, 0))
    image.paste((0, 0, 0, 255), (0, 0, 8, 16))
    if kind == "P":
        image = image.quantize(4)
    data = encoded(image.convert(kind), "PNG")
    pixels = prepare(data, contract(16, background=90))
    assert (pixels[:, :8] == 0).all()
    assert (pixels[:, 8:] == 90).all()
    assert "ALPHA" in inspect(data).notes


def test_half_transparent_is_mixed() -> None:
    data = encoded(Image.new("RGBA", (4, 4), (200, 100, 0, 128)), "PNG")
    expected = [round(c * 128 / 255 + 50 * 127 / 255) for c in (200, 100, 0)]
    assert (prepare(data, contract(4, background=50)) == expected).all()


# D13, D14: EXIF -----------------------------------------------------------------------------------

UPRIGHT = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("resize", ["crop", "pad", "squash"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_exif_orientation_comes_out_upright(
    kind: str, resize: Literal["crop", "pad", "squash"]
) -> None:
    wanted = contract(15, resize=resize)
    known: dict[str, dict[str, Any]] = {
        "JPEG": {"quality": 100, "subsampling": 0},
        "WEBP": {"lossless": True},
    }
    options = known.get(kind, {})
    upright = prepare(encoded(picture(), kind, **options), wanted)
    for orientation, stored in UPRIGHT.items():
        image = picture() if stored is None else picture().transpose(stored)
        exif = Image.Exif()
        exif[274] = orientation
        data = encoded(image, kind, exif=exif, **options)
        # The other pass of the resize comes first, and each rounds to whole grey levels.
        assert difference(prepare(data, wanted), upright) <= 2, orientation
        seen = inspect(data)
        assert (seen.height_px, seen.width_px) == (48, 64)


def test_broken_exif_is_as_good_as_none() -> None:
    plain = encoded(picture(), "JPEG")
    upright = prepare(plain, contract())
    good = b"MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"
    broken = [good[:length] for length in range(len(good) - 6)]
    broken += [good.replace(b"\0\6", b"\0\x63"), b"XX" + good[2:], b"MM\0*\xff\xff\xff\xff" + good]
    broken += [good[:8] + b"\xff\xff" + good[10:18]]
    for exif in broken:
        data = with_segment(plain, b"\xe1", b"Exif\0\0" + exif)
        assert (prepare(data, contract()) == upright).all(), exif
    turned = prepare(with_segment(plain, b"\xe1", b"Exif\0\0" + good), contract())
    assert (turned != upright).any()


def with_segment(jpeg: bytes, marker: bytes, body: bytes) -> bytes:
    return jpeg[:2] + b"\xff" + marker + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


def test_metadata_of_megabytes_are_dropped() -> None:
    plain = encoded(picture(), "JPEG")
    heavy = plain
    for number in range(32):
        heavy = with_segment(heavy, b"\xe2", b"ICC_PROFILE\0" + bytes([number]) + bytes(65000))
    assert difference(prepare(heavy, contract()), prepare(plain, contract())) <= 3
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(50_000_000)))
    whole = encoded(picture(), "PNG")
    result = attempt(whole[:33] + text + whole[33:])
    if isinstance(result, UnreadableImage):
        assert result.reason == "CORRUPT"
    else:
        assert (result == prepare(whole, contract())).all()


# D15 to D18: odd sizes ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation_is_used_and_noted(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (prepare(data, contract(8)) == (255, 0, 0)).all()
    assert "ANIMATED" in inspect(data).notes


def test_a_line_of_pixels_is_used_and_a_single_one_is_too_small() -> None:
    assert prepare(encoded(Image.new("RGB", (20000, 2)), "PNG"), contract()).shape == (16, 16, 3)
    assert prepare(encoded(Image.new("RGB", (20000, 2)), "JPEG"), contract()).shape == (16, 16, 3)
    for size in ((1, 1), (1, 500), (20000, 1)):
        assert reason_of(encoded(Image.new("RGB", size), "PNG")) == "TOO_SMALL"
        assert reason_of(encoded(Image.new("RGB", size), "JPEG")) == "TOO_SMALL"


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *, bits: int, colour: int, rows: NDArray[Any]) -> bytes:
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )


def peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@pytest.mark.parametrize("side", [10_000, 30_000, 2**31 - 1])
def test_a_huge_png_is_refused_by_its_header(side: int) -> None:
    body = zlib.compress(bytes(1_000_000))
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body * 50)
    before = peak_bytes()
    assert reason_of(data) == "TOO_LARGE"
    assert peak_bytes() - before < 64 << 20


def bombs() -> dict[str, bytes]:
    """Files of a few hundred kilobytes that unpack to half a gigabyte."""
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(512)) + packer.flush()
    header = struct.pack(">IIBBBBB", 16, 16, 8, 2, 0, 0, 0)
    start, end = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header), chunk(b"IEND", b"")
    pixels = chunk(b"IDAT", zlib.compress(bytes(16 * (1 + 48))))
    tiff = bytearray(encoded(Image.new("L", (16, 16)), "TIFF", compression="tiff_adobe_deflate"))
    # The strip is put at the end; its entry in the directory says where, and how long it is.
    directory = struct.unpack_from("<I", tiff, 4)[0]
    for number in range(struct.unpack_from("<H", tiff, directory)[0]):
        entry = directory + 2 + 12 * number
        tag = struct.unpack_from("<H", tiff, entry)[0]
        if tag in (273, 279):
            value = len(tiff) if tag == 273 else len(packed)
            struct.pack_into("<HHII", tiff, entry, tag, 4, 1, value)
    return {
        "pixels of a PNG": start + chunk(b"IDAT", packed) + end,
        "text in a PNG": start + chunk(b"zTXt", b"note\0\0" + packed) + pixels + end,
        "profile in a PNG": start + chunk(b"iCCP", b"name\0\0" + packed) + pixels + end,
        "strip of a TIFF": bytes(tiff) + packed,
    }


@pytest.mark.parametrize("name", sorted(bombs()))
def test_what_unpacks_to_far_more_than_it_should_is_held(name: str) -> None:
    """D18: pixels or an error, but no half gigabyte of memory."""
    data = bombs()[name]
    assert len(data) < 1 << 20
    before, began_at = peak_bytes(), time.perf_counter()
    result = attempt(data)
    assert isinstance(result, UnreadableImage) or result.shape == (16, 16, 3)
    assert time.perf_counter() - began_at < 5
    assert peak_bytes() - before < 200 << 20


def test_a_huge_jpeg_is_refused_by_its_header() -> None:
    data = bytearray(encoded(picture(), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 60_000, 60_000)
    before = peak_bytes()
    assert reason_of(bytes(data)) == "TOO_LARGE"
    assert peak_bytes() - before < 64 << 20


# Scaled decoding ----------------------------------------------------------------------------------


def test_decoding_a_jpeg_small_looks_like_decoding_it_whole() -> None:
    """libjpeg's scaled transform against full size and resize: above 40 dB on a smooth picture."""
    data = encoded(picture(600, 800), "JPEG", quality=92)
    for px in (32, 64, 128, 256):
        fast = prepare(data, contract(px)).astype(float)
        with Image.open(io.BytesIO(data)) as image:
            exact = prepare_array(np.asarray(image), contract(px)).astype(float)
        error = ((fast - exact) ** 2).mean()
        assert 10 * np.log10(255**2 / max(error, 1e-9)) > 40, px


def test_grey_jpegs_fit_both_contracts() -> None:
    data = encoded(picture().convert("L"), "JPEG")
    assert inspect(data).grey
    grey, colour = prepare(data, contract(channels=1)), prepare(data, contract(channels=3))
    assert (colour == grey).all()


def test_inspect_tells_grey_from_colour() -> None:
    assert inspect(encoded(picture().convert("L").convert("RGB"), "JPEG")).grey
    assert not inspect(encoded(picture(), "JPEG")).grey
    assert inspect(encoded(picture(300, 500), "PNG")).width_px == 500


# Any bytes at all ---------------------------------------------------------------------------------

SEEDS = [encoded(noise(12, 12), kind) for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "PPM")]
if features.check("webp"):
    SEEDS.append(encoded(noise(12, 12), "WEBP"))
if features.check("avif"):
    SEEDS.append(encoded(noise(12, 12), "AVIF"))


@given(
    seed=st.sampled_from(SEEDS),
    edits=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=8),
    length=st.integers(0, 10**6),
)
@settings(max_examples=400, deadline=None)
def test_any_bytes_give_pixels_or_one_kind_of_error(
    seed: bytes, edits: list[tuple[int, int]], length: int
) -> None:
    data = bytearray(seed)
    for place, value in edits:
        data[place % len(data)] = value
    data = data[: length % (2 * len(data)) + 1]
    result = attempt(bytes(data))
    if isinstance(result, UnreadableImage):
        assert result.reason
        assert str(result)
    else:
        assert result.shape == (16, 16, 3)
        assert result.dtype == np.uint8


def _processor_can() -> bool:
    """Linux on an x86 processor with the instructions of src/vidi/image/resize.c."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512vbmi" in flags and "avx512_vnni" in flags


@pytest.mark.skipif(not _processor_can(), reason="needs AVX-512 with VBMI and VNNI")
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_an_installation_compiles_the_vector_instructions() -> None:
    assert has_compiled_resize(), "`pip install -e .` compiles src/vidi/image/resize.c"


@settings(max_examples=300, deadline=None)
@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    to_height=st.integers(1, 200),
    to_width=st.integers(1, 200),
    margin=st.integers(0, 3),
    interpolation=st.sampled_from(["nearest", "bilinear", "bicubic"]),
    black_and_white=st.booleans(),
)
def test_every_way_to_resize_gives_the_same_numbers_and_touches_nothing_else(
    height: int,
    width: int,
    to_height: int,
    to_width: int,
    margin: int,
    interpolation: Literal["nearest", "bilinear", "bicubic"],
    black_and_white: bool,
) -> None:
    rng = np.random.default_rng(height * 1000 + width)
    whole = rng.integers(0, 256, (height + margin, width + margin, 3), dtype=np.uint8)
    if black_and_white:  # The largest sums there are.
        whole = np.where(whole > 127, 255, 0).astype(np.uint8)
    part = whole[margin:, margin:]
    expected = exact_resize(part, to_height, to_width, interpolation)
    rows = np.full((to_height + 2, to_width, 3), 77, dtype=np.uint8)
    np.testing.assert_array_equal(resize(part, to_height, to_width, interpolation), expected)
    if compiled_resize(part, interpolation, rows[1:-1]):
        np.testing.assert_array_equal(rows[1:-1], expected)
    assert (rows[[0, -1]] == 77).all()


def test_what_photos_need_is_resized_by_vector_instructions_where_there_are_any() -> None:
    if not has_compiled_resize():
        pytest.skip("not compiled, or not for this processor")
    pixels = np.zeros((400, 533, 3), dtype=np.uint8)
    for interpolation in ("bilinear", "bicubic"):
        for height, width in ((256, 341), (160, 213)):
            out = np.ones((height, width, 3), dtype=np.uint8)
            assert compiled_resize(pixels, interpolation, out)
            assert not out.any()
