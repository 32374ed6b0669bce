"""Changes to files that keep enough of their structure to reach beyond the first check."""

import random
import re
import struct
import zlib
from collections.abc import Callable

from tests import image_files as f

MAX_BYTES = 64 << 10  # of a mutated file
MAX_INFLATED = 1 << 20
NUMBERS = (0, 1, 2, 3, 7, 8, 12, 16, 32, 127, 128, 255, 256, 512, 2000, 2900, 32767, 32768, 65535)
LENGTHS = (0, 2, 0xFFFE, 0xFFFFFFFF, 0x7FFFFFFF)
TEXTS = (b"", b"0", b"-1", b"1e308", b"nan", b"inf", b"1\\2", b"2", b"9" * 40, b"\xff\xfe", b"MONOCHROME1", b"YBR_FULL")
SYNTAXES = tuple(f"1.2.840.10008.1.2{tail}" for tail in ("", ".1", ".1.99", ".2", ".5")) + tuple(
    f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70, 80, 81, 90, 91, 102, 201, 202, 203)
)
PNG_NAMES = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"acTL", b"fcTL", b"eXIf", b"iCCP", b"zTXt", b"iTXt", b"CgBI")
JPEG_MARKERS = (*range(0xC0, 0xD0), *range(0xD8, 0xE3), 0xED, 0xEE, 0xF7, 0xF8, 0xFE)
VRS = (b"US", b"SS", b"CS", b"DS", b"IS", b"OB", b"OW", b"SQ", b"UN", b"UT", b"AS", b"UI", b"ZZ")
ELEMENT = re.compile(rb"[\x02\x08\x10\x18\x20\x28\xe0]\x00..[A-Z][A-Z]|\xfe\xff[\x00\x0d\xdd]\xe0", re.DOTALL)
ZIP_FIELD = re.compile(rb"PK(\x01\x02|\x03\x04|\x05\x06)", re.DOTALL)

Mutator = Callable[[bytes, random.Random], bytes]


def mutate(name: str, data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Change a file in one to four ways, mostly ones of its own kind; `other` is what it may be mixed with."""
    own = KINDS[name.partition(" ")[0]]
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        if rng.random() < 0.05:
            data = rng.choice((data + other, data[: _at(data, rng)] + other[_at(other, rng) :], other + data))
        elif rng.random() < 0.6:
            data = rng.choice(own)(data, rng)
        else:
            data = any_bytes(data, rng)
    return data[:MAX_BYTES]


def _at(data: bytes, rng: random.Random) -> int:
    return rng.randrange(len(data)) if data else 0


def any_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, overwrite, drop, repeat or cut bytes anywhere."""
    at, way = _at(data, rng), rng.randrange(6)
    span = min(1 << rng.randrange(9), len(data) - at)
    if way == 0:
        return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
    if way == 1:
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :] if data else data
    if way == 2:
        return data[:at] + data[at + span :]
    if way == 3:
        return data[:at] + data[at : at + span] * rng.choice((2, 3, 50)) + data[at + span :]
    if way == 4:
        return data[:at]
    form = rng.choice(("<H", ">H", "<L", ">L"))
    number = rng.choice((*NUMBERS, 0x7FFFFFFF, 0xFFFFFFFF)) & (0xFFFF if form[1] == "H" else 0xFFFFFFFF)
    return data[:at] + struct.pack(form, number) + data[at + struct.calcsize(form) :]


# ── PNG ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    found, position = [], 8
    while position + 12 <= len(data):
        length, name = struct.unpack_from(">L4s", data, position)
        found.append((name, data[position + 8 : position + 8 + length]))
        position += 12 + length
    return found


def _png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    return f.PNG[:8] + b"".join(f.chunk(name, body) for name, body in chunks)


def png_chunks(data: bytes, rng: random.Random) -> bytes:
    """Drop, repeat, exchange, rename or change a chunk; checksums are made right."""
    chunks = _chunks(data)
    if not chunks:
        return data
    at, way = rng.randrange(len(chunks)), rng.randrange(5)
    name, body = chunks[at]
    if way == 0:
        del chunks[at]
    elif way == 1:
        chunks[at:at] = [chunks[at]] * rng.choice((1, 2, 200))
    elif way == 2:
        other = rng.randrange(len(chunks))
        chunks[at], chunks[other] = chunks[other], chunks[at]
    elif way == 3:
        chunks.insert(at, (rng.choice(PNG_NAMES), any_bytes(body, rng)))
    else:
        chunks[at] = (name, any_bytes(body, rng))
    return _png(chunks)


def png_header(data: bytes, rng: random.Random) -> bytes:
    """Change a field of IHDR to one that may be allowed."""
    chunks = _chunks(data)
    if not chunks or len(chunks[0][1]) != 13:
        return data
    fields = list(struct.unpack(">LLBBBBB", chunks[0][1]))
    at = rng.randrange(7)
    fields[at] = (
        rng.choice(NUMBERS) if at < 2 else rng.choice(((1, 2, 4, 8, 16), (0, 2, 3, 4, 6), (0,), (0, 1), (0, 1))[at - 2])
    )
    return _png([(b"IHDR", struct.pack(">LLBBBBB", *fields)), *chunks[1:]])


def png_pixels(data: bytes, rng: random.Random) -> bytes:
    """Change what is in the pixels, packed anew, and perhaps far more of it than the header says."""
    chunks = _chunks(data)
    try:
        inside = zlib.decompressobj().decompress(
            b"".join(body for name, body in chunks if name == b"IDAT"), MAX_INFLATED
        )
    except zlib.error:
        return data
    inside = any_bytes(inside, rng) + bytes(rng.choice((0, 0, 10_000, MAX_INFLATED)))
    rest = [one for one in chunks if one[0] not in (b"IDAT", b"IEND")]
    return _png([*rest, (b"IDAT", zlib.compress(inside, rng.choice((0, 1, 9)))), (b"IEND", b"")])


# ── JPEG ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def jpeg_segments(data: bytes, rng: random.Random) -> bytes:
    """Drop, repeat, move or change what stands from one marker to the next."""
    marks = [m.start() for m in re.finditer(rb"\xff[\x01-\xfe]", data)]
    if len(marks) < 2:
        return data
    i, way = rng.randrange(len(marks) - 1), rng.randrange(5)
    start, end, to = marks[i], marks[i + 1], rng.choice(marks)
    if way == 0:
        return data[:start] + data[end:]
    if way == 1:
        return data[:to] + data[start:end] * rng.choice((1, 2, 30)) + data[to:]
    if way == 2:
        return data[: start + 1] + bytes([rng.choice(JPEG_MARKERS)]) + data[start + 2 :]
    if way == 3:
        return data[: start + 2] + any_bytes(data[start + 2 : end], rng) + data[end:]
    body = rng.choice(
        (b"Exif\0\0II*\0", b"ICC_PROFILE\0\1\2", b"MPF\0II*\0", b"Adobe\0d\0\0\0\0\2", b"mrfx\1")
    ) + rng.randbytes(20)
    marker = rng.choice((0xE1, 0xE2, 0xE8, 0xEE, 0xFE, 0xDD, 0xF8))
    return data[:start] + struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body + data[start:]


def jpeg_header(data: bytes, rng: random.Random) -> bytes:
    """Change precision, size, components or sampling of the frame header."""
    found = [m.start() for m in re.finditer(rb"\xff[\xc0-\xc3\xc5-\xc7\xc9-\xcb\xcd-\xcf\xf7]", data)]
    if not found:
        return data
    at = found[0] + 4 + rng.randrange(15)
    return (
        data[:at] + bytes([rng.choice((0, 1, 2, 3, 4, 8, 12, 16, 0x11, 0x21, 0x22, 0x41, 0x44, 255))]) + data[at + 1 :]
    )


# ── DICOM ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def dicom_elements(data: bytes, rng: random.Random) -> bytes:
    """Drop, repeat, move, retype or change an element, or what looks like one."""
    marks = [*(m.start() for m in ELEMENT.finditer(data, 132)), len(data)]
    if len(marks) < 3:
        return data
    i, way = rng.randrange(len(marks) - 1), rng.randrange(7)
    start, end, to = marks[i], marks[i + 1], rng.choice(marks)
    value = rng.choice(TEXTS)
    sequence = f.element(rng.choice((f.VOI_LUT, f.MODALITY_LUT, 0x00081140)), "SQ", b"", length=f.UNDEFINED)
    item = sequence + struct.pack("<HHL", 0xFFFE, 0xE000, f.UNDEFINED)
    return (
        data[:start] + data[end:],
        data[:to] + data[start:end] * rng.choice((1, 2, 100)) + data[to:],
        data[: start + 4] + rng.choice(VRS) + data[start + 6 :],
        data[: start + 6] + struct.pack("<H", len(value)) + value + data[end:],
        data[: start + 8] + struct.pack("<H", rng.choice(NUMBERS)) + data[start + 10 :],
        data[: start + 8] + struct.pack("<L", rng.choice(LENGTHS)) + data[start + 12 :],
        data[:start] + item * rng.choice((1, 3, 400)) + data[start:],
    )[way]


def dicom_image(data: bytes, rng: random.Random) -> bytes:
    """Set a number of the Image Pixel module, wherever it stands."""
    tag = rng.choice(
        (f.SAMPLES, f.PLANAR, f.FRAMES, f.ROWS, f.COLUMNS, f.ALLOCATED, f.STORED, f.HIGH_BIT, f.SIGNED, f.PADDING)
    )
    at = data.find(struct.pack("<HH", tag >> 16, tag & 0xFFFF))
    if at < 0:
        return data
    return data[: at + 8] + struct.pack("<H", rng.choice(NUMBERS)) + data[at + 10 :]


def dicom_syntax(data: bytes, rng: random.Random) -> bytes:
    """Say that the pixels are of another transfer syntax."""
    return re.sub(rb"1\.2\.840\.10008\.1\.2[.0-9]*\0?", rng.choice(SYNTAXES).encode().ljust(22, b"\0"), data, count=1)


def dicom_stream(data: bytes, rng: random.Random) -> bytes:
    """Change the compressed image within, and leave what is around it; its length stays right."""
    at = data.rfind(b"\xfe\xff\x00\xe0")
    if at < 0:
        return data
    stream = data[at + 8 : -8]
    change: Mutator = rng.choice((any_bytes, jpeg_segments, jpeg_header)) if stream[:1] == b"\xff" else any_bytes
    return data[:at] + f.fragments(change(stream, rng))[8:]


# ── Zip ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def zip_fields(data: bytes, rng: random.Random) -> bytes:
    """Overwrite a field of a local header, of the directory or of its end."""
    found = [m.start() for m in ZIP_FIELD.finditer(data)]
    if not found:
        return data
    at = rng.choice(found) + 4 + 2 * rng.randrange(21)
    form = rng.choice(("<H", "<L"))
    number = rng.choice((*NUMBERS, 9, 14, 95, 98, 0xFFFFFFFF)) & (0xFFFF if form == "<H" else 0xFFFFFFFF)
    return data[:at] + struct.pack(form, number) + data[at + struct.calcsize(form) :]


KINDS: dict[str, tuple[Mutator, ...]] = {
    "png": (png_chunks, png_header, png_pixels),
    "jpeg": (jpeg_segments, jpeg_header),
    "dicom": (dicom_elements, dicom_image, dicom_syntax, dicom_stream, dicom_stream),
    "zip": (zip_fields,),
}
