"""Small image files, built byte by byte so that no writer corrects what is wrong on purpose, and what they become."""

import io
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from modules import errors
from modules.images import ImageLimits, open_image
from modules.records import Radiograph

IMPLICIT, EXPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
DEFLATED, RLE = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.5"
JPEG_BASELINE, JPEG_EXTENDED, JPEG_LOSSLESS = (f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 70))
JPEG_LS, JPEG_2000, HTJ2K, MPEG4 = (f"1.2.840.10008.1.2.4.{n}" for n in (80, 90, 201, 102))

UNDEFINED = 0xFFFFFFFF
Changes = Mapping[int, tuple[str, Any] | None]
LONG_VR = ("OB", "OW", "SQ", "UN", "UT")

MODALITY, VIEW, BODY_PART, AGE = 0x00080060, 0x00185101, 0x00180015, 0x00101010
PATIENT_NAME, PATIENT_ID, CHARACTER_SET = 0x00100010, 0x00100020, 0x00080005
SAMPLES, PHOTOMETRIC, PLANAR, FRAMES = 0x00280002, 0x00280004, 0x00280006, 0x00280008
ROWS, COLUMNS, PIXEL_SPACING, IMAGER_SPACING = 0x00280010, 0x00280011, 0x00280030, 0x00181164
ALLOCATED, STORED, HIGH_BIT, SIGNED = 0x00280100, 0x00280101, 0x00280102, 0x00280103
PADDING, PADDING_LIMIT = 0x00280120, 0x00280121
CENTER, WIDTH, WINDOW_FUNCTION = 0x00281050, 0x00281051, 0x00281056
INTERCEPT, SLOPE = 0x00281052, 0x00281053
MODALITY_LUT, VOI_LUT, LUT_DESCRIPTOR, LUT_DATA = 0x00283000, 0x00283010, 0x00283002, 0x00283006
LUT_SHAPE, PIXEL_DATA = 0x20500020, 0x7FE00010

# range(0, 240, 10) in 4 rows of 6 pixels of 8 bits, and times 257 of 16 bits, as ojph_compress of OpenJPH writes them.
HTJ2K_8_BITS = """
    /0//UQApQAAAAAAGAAAABAAAAAAAAAAAAAAABgAAAAQAAAAAAAAAAAABBwEB/1AACAACAAAAA/9SAAwAAgABAAEEBEAB/1wAByBQUFBY/2QAFgABT3Bl
    bkpQSCBWZXIgMC45LjAu/5AACgAAAAAALwAB/5PAFWB/xpWWEgAAAXi2AMATQBUAUv6Ay3QAdtv+AOR3VQD/2Q==
"""
HTJ2K_16_BITS = """
    /0//UQApQAAAAAAGAAAABAAAAAAAAAAAAAAABgAAAAQAAAAAAAAAAAABDwEB/1AACAACAAAAC/9SAAwAAgABAAEEBEAB/1wAByCQkJCY/2QAFgABT3Bl
    bkpQSCBWZXIgMC45LjAu/5AACgAAAAAAPgAB/5PAABaQ/38Mj+srzS1VJUb+AQgBeLYAwAAVEAAFWBJUgv6Di3QAdng73A4AOcB3VgD/2Q==
"""


# ── PNG and JPEG ─────────────────────────────────────────────────────────────────────────────────────────────────────


def pillow(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Save with Pillow."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def chunk(name: bytes, body: bytes = b"") -> bytes:
    """One PNG chunk with its checksum."""
    return struct.pack(">L", len(body)) + name + body + struct.pack(">L", zlib.crc32(name + body))


def png_claiming(width: int, height: int, *extra: bytes) -> bytes:
    """A PNG whose header claims a size for which it holds no pixels."""
    header = chunk(b"IHDR", struct.pack(">LLBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND")


def jpeg_claiming(width: int, height: int, stream: bytes) -> bytes:
    """A JPEG or JPEG-LS stream with another size written into its frame header."""
    at = next(i for i in range(2, len(stream)) if stream[i] == 0xFF and stream[i + 1] in (0xC0, 0xC1, 0xC2, 0xC3, 0xF7))
    return stream[: at + 5] + struct.pack(">HH", height, width) + stream[at + 9 :]


# ── DICOM ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def element(tag: int, vr: str, content: Any, syntax: str = EXPLICIT, length: int | None = None) -> bytes:
    """One element: `content` as bytes, text, 16-bit integers, or the items of a sequence; `length` may lie."""
    order = ">" if syntax == BIG_ENDIAN else "<"
    value: bytes
    if isinstance(content, bytes | str):
        value = content.encode() if isinstance(content, str) else content
    elif vr == "SQ":
        value = b"".join(struct.pack(order + "HHL", 0xFFFE, 0xE000, len(item)) + item for item in content)
    else:
        numbers = content if isinstance(content, tuple) else (content,)
        value = b"".join(struct.pack(order + ("h" if n < 0 else "H"), n) for n in numbers)
    value += (b"\0" if vr in ("OB", "OW", "UI") else b" ") * (len(value) % 2)
    length = len(value) if length is None else length
    head = struct.pack(order + "HH", tag >> 16, tag & 0xFFFF)
    if syntax == IMPLICIT:
        return head + struct.pack("<L", length) + value
    if vr in LONG_VR:
        return head + vr.encode() + b"\0\0" + struct.pack(order + "L", length) + value
    return head + vr.encode() + struct.pack(order + "H", length) + value


def fragments(*parts: bytes, table: bytes = b"") -> bytes:
    """Encapsulate the fragments of compressed pixels, behind an offset table."""
    items = (
        struct.pack("<HHL", 0xFFFE, 0xE000, len(part)) + part
        for part in (table, *(p + b"\0" * (len(p) % 2) for p in parts))
    )
    return b"".join(items) + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)


def lut(first: int, entries: list[int], syntax: str = EXPLICIT, bits: int = 16) -> bytes:
    """The item of a modality or VOI LUT sequence."""
    vr = "SS" if first < 0 else "US"
    order = ">" if syntax == BIG_ENDIAN else "<"
    data = struct.pack(f"{order}{len(entries)}{'H' if bits > 8 else 'B'}", *entries)
    return element(LUT_DESCRIPTOR, vr, (len(entries), first, bits), syntax) + element(LUT_DATA, "OW", data, syntax)


def dicom(
    pixels: Any, changes: Changes | None = None, *, syntax: str = EXPLICIT, compressed: bytes | None = None
) -> bytes:
    """A DICOM file of `pixels`, or of `compressed` ones that claim to be like them; None takes an element out."""
    order = ">" if syntax == BIG_ENDIAN else "<"
    array = np.asarray(pixels)
    bits = 8 * array.dtype.itemsize
    elements: dict[int, tuple[str, Any] | None] = {
        MODALITY: ("CS", "DX"),
        SAMPLES: ("US", 3 if array.ndim == 3 else 1),
        PHOTOMETRIC: ("CS", "RGB" if array.ndim == 3 else "MONOCHROME2"),
        ROWS: ("US", array.shape[0]),
        COLUMNS: ("US", array.shape[1]),
        ALLOCATED: ("US", bits),
        STORED: ("US", bits),
        HIGH_BIT: ("US", bits - 1),
        SIGNED: ("US", int(array.dtype.kind == "i")),
        PIXEL_DATA: ("OW", array.astype(f"{order}{array.dtype.kind}{array.dtype.itemsize}").tobytes()),
    }
    if array.ndim == 3:
        elements[PLANAR] = ("US", 0)
    body = b""
    for tag, change in sorted({**elements, **(changes or {})}.items()):
        if change is None:
            continue
        if tag == PIXEL_DATA and compressed is not None:
            body += element(tag, "OB", compressed, syntax, UNDEFINED)
        else:
            body += element(tag, *change, syntax)
    return part_10(body, syntax)


def part_10(body: bytes, syntax: str = EXPLICIT) -> bytes:
    """Preamble, prefix and file meta information before a data set."""
    return b"\0" * 128 + b"DICM" + element(0x00020010, "UI", syntax) + body


def jpeg_2000_precinct_bomb(side: int) -> bytes:
    """A codestream of some 200 bytes whose precincts of one or two pixels make a decoder ask for gigabytes."""

    def segment(marker: int, body: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body

    levels = 5
    size = segment(0x51, struct.pack(">H8LH3B", 0, side, side, 0, 0, side, side, 0, 0, 1, 7, 1, 1))
    coding = segment(0x52, struct.pack(">BBHBBBBBB", 1, 0, 1, 0, levels, 0, 0, 0, 1) + bytes([0x11] * (levels + 1)))
    quantisation = segment(0x5C, bytes([0x40] * (3 * levels + 2)))
    packets = bytes(20)
    tile = segment(0x90, struct.pack(">HLBB", 0, 14 + len(packets), 0, 1)) + b"\xff\x93" + packets
    return b"\xff\x4f" + size + coding + quantisation + tile + b"\xff\xd9"


# ── Films of a few pixels, and what becomes of them ──────────────────────────────────────────────────────────────────

RAMP = np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6)
SHADES = np.linspace(0, 4095, 64 * 48).astype(np.uint16).reshape(64, 48)  # 12 of 16 bits
COLOURS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [90, 90, 90]]], np.uint8)
LUMA = np.array([[76, 150], [29, 90]]) / 255  # ITU-R BT.601, rounded to 8 bits


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[0x0112] = orientation
    return made


WINDOW: dict[int, Any] = {CENTER: ("DS", "2000"), WIDTH: ("DS", "3000")}


def rle(stored: Any) -> bytes:
    from pydicom.pixels.encoders.base import RLELosslessEncoder

    colour = stored.ndim == 3
    return RLELosslessEncoder.encode(
        stored,
        encoding_plugin="pydicom",
        rows=stored.shape[0],
        columns=stored.shape[1],
        number_of_frames=1,
        samples_per_pixel=3 if colour else 1,
        photometric_interpretation="RGB" if colour else "MONOCHROME2",
        planar_configuration=0,
        bits_allocated=8 * stored.dtype.itemsize,
        bits_stored=8 * stored.dtype.itemsize,
        pixel_representation=int(stored.dtype.kind == "i"),
    )


def jpeg_ls(stored: Any) -> bytes:
    from jpeg_ls import encode_array

    return bytes(encode_array(stored))


def jpeg_2000(stored: Any, *, bare: bool = True) -> bytes:
    return pillow(Image.fromarray(stored), "JPEG2000", no_jp2=bare)


PNG, JPEG = pillow(Image.fromarray(RAMP)), pillow(Image.new("L", (64, 48), 99), "JPEG")


def decode(data: bytes, **options: Any) -> Radiograph:
    return open_image(data).decode(**options)


def pydicom_file(name: str) -> bytes:
    from pydicom.data import get_testdata_file

    path = get_testdata_file(name, download=False)
    assert isinstance(path, str), f"{name} is not shipped with this pydicom"
    return Path(path).read_bytes()


def refusal(data: bytes, limits: ImageLimits | None = None) -> errors.ImageError:
    """What opening and decoding raises; the message has to be a sentence that says what to do."""
    with pytest.raises(errors.ImageError) as caught:
        open_image(data, limits or ImageLimits()).decode()
    message = str(caught.value)
    assert message.endswith(".")
    assert any(word in message for word in ("Send", "send", "Save", "Export"))
    assert "Error" not in message and "Traceback" not in message and ".py" not in message
    return caught.value


def own_range(values: Any) -> Any:
    values = np.asarray(values, np.float64)
    return (values - values.min()) / (values.max() - values.min())
