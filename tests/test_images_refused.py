"""Images: what is not accepted is refused by the right name, in bounded time and memory."""

import struct
import time
import tracemalloc
from typing import Any

import numpy as np
import pytest
from PIL import Image

from modules import errors
from modules.images import ImageLimits, open_image
from tests import image_files as f
from tests.image_files import JPEG, PNG, RAMP, SHADES, decode, jpeg_2000, jpeg_ls, refusal

# ── What is refused ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "data", [b"", PNG[:4], PNG[:8], PNG[:30], PNG[:-1], PNG[:-14], JPEG[:2], JPEG[:3], JPEG[:200], JPEG[:-300]]
)
def test_empty_and_truncated_files(data: bytes) -> None:
    assert refusal(data).code == "undecodable_image"


def test_a_damaged_pixel_of_a_png_is_noticed() -> None:
    stored = bytearray(f.pillow(Image.fromarray(SHADES.astype(np.uint8)), compress_level=0))
    stored[len(stored) // 2] ^= 1  # not compressed: it would decode, into another film
    assert refusal(bytes(stored)).code == "undecodable_image"


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (f.pillow(Image.new("L", (9, 9)), "GIF"), "GIF"),
        (f.pillow(Image.new("L", (9, 9)), "BMP"), "BMP"),
        (f.pillow(Image.new("L", (9, 9)), "TIFF"), "TIFF"),
        (f.pillow(Image.new("RGB", (9, 9)), "WEBP"), "WebP"),
        (f.pillow(Image.new("L", (9, 9)), "JPEG2000", no_jp2=False), "JPEG 2000"),
        (b"%PDF-1.7\n%", "PDF"),
        (b"PK\x03\x04" + b"\0" * 40, "ZIP"),
        (b"\0\0\0\x18ftypheic", "HEIC"),
        (b"Dear radiologist, please find attached", "no image"),
        (b"\x00" * 200, "no image"),
        (b"\x00" * 128 + b"DICX" + b"\0" * 80, "no image"),
    ],
)
def test_other_kinds_of_files_are_named(data: bytes, name: str) -> None:
    error = refusal(data)
    assert error.code == "unsupported_image_type"
    assert name in str(error)
    for accepted in ("PNG", "JPEG", "DICOM"):
        assert accepted in str(error)


def test_the_name_of_a_file_has_no_say() -> None:
    assert open_image(PNG).header.format == "png"
    assert open_image(JPEG).header.format == "jpeg"
    assert open_image(b"II*\0" + f.dicom(SHADES)[4:]).header.format == "dicom"  # a preamble may hold anything


def test_animation() -> None:
    frames = [Image.new("L", (8, 8), shade) for shade in (0, 100)]
    error = refusal(f.pillow(frames[0], save_all=True, append_images=frames[1:]))
    assert error.code == "multiple_frames"
    assert "still" in str(error)


def test_an_animation_of_one_frame_is_a_still_image() -> None:
    still = PNG[:33] + f.chunk(b"acTL", struct.pack(">LL", 1, 0)) + PNG[33:]
    np.testing.assert_allclose(decode(still).pixels, RAMP / 255, atol=1e-6)


def test_too_many_bytes() -> None:
    error = refusal(PNG + b"\0" * 3_000_000, ImageLimits(max_bytes=2 << 20))
    assert error.code == "file_too_large"
    assert "2.9 MiB" in str(error)
    assert "2 MiB" in str(error)


@pytest.mark.parametrize(
    "data",
    [
        f.png_claiming(60_000, 60_000),
        f.png_claiming(2**31 - 1, 2**31 - 1),
        f.jpeg_claiming(65_500, 65_500, JPEG),
        f.dicom(SHADES, {f.ROWS: ("US", 65_535), f.COLUMNS: ("US", 65_535)}),
    ],
    ids=["png", "largest png", "jpeg", "dicom"],
)
def test_too_many_pixels_are_refused_by_the_header(data: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(errors.TooManyPixels) as caught:
        open_image(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.code == "too_many_pixels"
    assert "40 million" in str(caught.value)
    assert peak < 1_000_000


@pytest.mark.parametrize("side", [9_800, 20_000], ids=["warning", "error"])
def test_pillows_own_limit_is_translated_when_ours_is_higher(side: int) -> None:
    error = refusal(f.png_claiming(side, side), ImageLimits(max_pixels=10**9))
    assert error.code == "too_many_pixels"


def test_the_limit_itself_is_allowed() -> None:
    assert open_image(PNG, ImageLimits(max_bytes=len(PNG), max_pixels=24)).decode().pixels.shape == (4, 6)
    assert refusal(PNG, ImageLimits(max_pixels=23)).code == "too_many_pixels"


@pytest.mark.parametrize(
    "data",
    [
        f.png_claiming(0, 10),
        f.jpeg_claiming(0, 10, JPEG),
        f.dicom(SHADES, {f.ROWS: ("US", 0)}),
        f.dicom(SHADES, {f.COLUMNS: None}),
        f.dicom(SHADES, {f.ROWS: ("US", b"")}),
        f.png_claiming(3000, 3000),
        f.part_10(b""),
        b"\0" * 128 + b"DICM",
        f.dicom(SHADES)[:-1000],
        f.dicom(SHADES, {f.PIXEL_DATA: ("OW", b"")}),
        f.dicom(SHADES, {f.PIXEL_DATA: ("OW", SHADES.tobytes() + b"\0" * 96)}),
        f.dicom(SHADES, {f.ROWS: ("US", 63)}),
        f.dicom(SHADES, {f.STORED: ("US", 17)}),
        f.dicom(SHADES, {f.FRAMES: ("IS", "1A")}),
        f.dicom(SHADES, {f.FRAMES: ("IS", "-1")}),
        f.dicom(SHADES, compressed=f.fragments(SHADES.tobytes())),
        f.dicom(SHADES, syntax=f.JPEG_LS),
        f.dicom(SHADES, syntax=f.JPEG_LS, compressed=f.fragments()),
        f.dicom(SHADES, syntax=f.JPEG_LS, compressed=f.fragments(b"no codestream")),
        f.dicom(SHADES, syntax=f.JPEG_LS, compressed=f.fragments(jpeg_ls(SHADES)[:-2])),
        f.dicom(SHADES, syntax=f.RLE, compressed=f.fragments(b"short")),
        f.dicom(SHADES, syntax=f.RLE, compressed=f.fragments(struct.pack("<16L", 2, 64, 9999, *[0] * 13))),
        f.dicom(SHADES, syntax=f.JPEG_LS, compressed=f.fragments(jpeg_ls(SHADES))[:-100]),
    ],
    ids=lambda data: f"{len(data)} bytes",
)
def test_headers_that_contradict_the_content(data: bytes) -> None:
    error = refusal(data)
    if data == f.part_10(b""):
        assert error.code == "unsupported_image_type"  # whole, but no image
    else:
        assert error.code == "undecodable_image"


@pytest.mark.parametrize(
    ("syntax", "stream"),
    [
        (f.JPEG_BASELINE, f.pillow(Image.new("L", (4000, 4000)), "JPEG")),
        (f.JPEG_LOSSLESS, f.jpeg_claiming(4000, 4000, JPEG.replace(b"\xff\xc0", b"\xff\xc3"))),
        (f.JPEG_LS, jpeg_ls(np.zeros((4000, 4000), np.uint8))),
        (f.JPEG_2000, jpeg_2000(np.zeros((4000, 4000), np.uint8))),
        (f.JPEG_2000, jpeg_2000(np.zeros((4000, 4000), np.uint8), bare=False)),
    ],
    ids=["JPEG", "lossless", "JPEG-LS", "JPEG 2000", "JP2"],
)
def test_a_codestream_larger_than_declared_is_never_decoded(
    syntax: str, stream: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pydicom.pixels.decoders.base import Decoder

    if syntax == f.JPEG_LOSSLESS:
        pytest.importorskip("gdcm")
    monkeypatch.setattr(Decoder, "as_array", lambda *args, **kwargs: pytest.fail("a decoder ran"))
    data = f.dicom(np.zeros((64, 64), np.uint8), syntax=syntax, compressed=f.fragments(stream))
    error = refusal(data)
    assert error.code == "undecodable_image"
    assert "compressed image" in str(error)


def test_rle_that_inflates_is_bounded() -> None:
    bomb = struct.pack("<16L", 1, 64, *[0] * 14) + b"\x81\x05" * 2_000_000  # 256 MB when unpacked
    data = f.dicom(np.zeros((64, 64), np.uint8), syntax=f.RLE, compressed=f.fragments(bomb))
    tracemalloc.start()
    decode(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40_000_000


@pytest.mark.parametrize("frames", ["2", "30", "100000"])
def test_several_frames(frames: str) -> None:
    assert refusal(f.dicom(SHADES, {f.FRAMES: ("IS", frames)})).code == "multiple_frames"


def test_several_frames_that_only_the_offset_table_admits() -> None:
    stream = jpeg_ls(SHADES)
    both = f.fragments(stream, stream, table=struct.pack("<LL", 0, len(stream) + 8))
    assert refusal(f.dicom(SHADES, syntax=f.JPEG_LS, compressed=both)).code == "multiple_frames"


@pytest.mark.parametrize(
    ("syntax", "named"),
    [
        (f.DEFLATED, "Deflated"),
        (f.MPEG4, "MPEG-4"),
        ("1.2.3.4711", "transfer syntax of this"),
        ("x" * 60, "transfer syntax"),
        ("1.2.840.10008.1.2\0\x10\0\x10\0PNxxx^4711\r", "transfer syntax of this"),
    ],
)
def test_transfer_syntaxes_that_are_not_read(syntax: str, named: str) -> None:
    error = refusal(f.dicom(SHADES, syntax=syntax))
    assert error.code == "unsupported_image_type"
    assert named in str(error)
    assert "Explicit VR Little Endian" in str(error)
    assert "4711" not in str(error) and "xxx" not in str(error)


def test_a_transfer_syntax_without_an_installed_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    from modules import dicom

    monkeypatch.setattr(dicom, "DECODERS", ())
    error = refusal(f.dicom(SHADES, syntax=f.HTJ2K, compressed=f.fragments(b"")))
    assert error.code == "unsupported_image_type"
    assert "High-Throughput JPEG 2000" in str(error)


@pytest.mark.parametrize(
    "changes",
    [
        {f.PHOTOMETRIC: ("CS", "PALETTE COLOR")},
        {f.PHOTOMETRIC: None},
        {f.SAMPLES: ("US", 4)},
        {f.SAMPLES: ("US", 3)},
        {f.ALLOCATED: ("US", 32)},
        {f.ALLOCATED: ("US", 1)},
        {f.HIGH_BIT: ("US", 14)},
        {f.PIXEL_DATA: None},
    ],
)
def test_layouts_that_are_not_read(changes: Any) -> None:
    assert refusal(f.dicom(SHADES, changes)).code == "unsupported_image_type"


def nested(depth: int) -> bytes:
    """Sequences of undefined length in each other, properly closed."""
    opening = f.element(0x00081140, "SQ", b"", length=f.UNDEFINED) + struct.pack("<HHL", 0xFFFE, 0xE000, f.UNDEFINED)
    closing = struct.pack("<HHLHHL", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    return opening * depth + closing * depth


def with_elements(extra: bytes) -> bytes:
    whole = f.dicom(SHADES, {f.MODALITY: None})
    start = len(f.part_10(b""))
    return whole[:start] + extra + whole[start:]


def test_sequences_are_stepped_over() -> None:
    np.testing.assert_array_equal(decode(with_elements(nested(10))).pixels, decode(f.dicom(SHADES)).pixels)


@pytest.mark.parametrize(
    "extra",
    [
        nested(5000),
        nested(3)[:-4],
        f.element(0x00080050, "SH", "") * 2_000_000,
        nested(1)[:20] + f.element(f.CHARACTER_SET, "CS", "") * 2_000_000 + nested(1)[20:],
        f.element(0x00091001, "OB", b"", length=f.UNDEFINED) + b"\1" * 10_000_000,
    ],
    ids=lambda extra: f"{len(extra)} bytes",
)
def test_hostile_structures(extra: bytes) -> None:
    start = time.monotonic()
    assert refusal(with_elements(extra)).code == "undecodable_image"
    assert time.monotonic() - start < 5


def test_empty_fragments_without_end() -> None:
    empty = struct.pack("<HHL", 0xFFFE, 0xE000, 0) * 2_000_000
    data = f.dicom(SHADES, syntax=f.JPEG_LS, compressed=empty + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0))
    assert refusal(data).code == "undecodable_image"


def test_hostile_numbers_of_segments_and_chunks() -> None:
    comments = JPEG[:2] + b"\xff\xfe\0\2" * 1_000_000 + JPEG[2:]
    assert refusal(comments).code == "undecodable_image"
    assert refusal(PNG[:33] + f.chunk(b"teXt") * 300_000 + PNG[33:]).code == "undecodable_image"
