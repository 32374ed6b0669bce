"""What compressed pixels say of themselves, read without decoding any.

A decoder allocates what a codestream asks for, so its size is compared with the limits, and with the header around it,
before a decoder runs.
"""

import struct
from dataclasses import dataclass

from PIL import Image

from modules.errors import UndecodableImage

MAX_JPEG_SEGMENTS = 10_000  # far above any real file; bounds the time that a hostile one takes
MAX_FRAGMENTS = 100_000
MAX_BOXES = 100

# ITU-T T.81 table B.1, and T.87 (JPEG-LS): start-of-frame markers, without DHT (C4), JPG (C8) and DAC (CC).
START_OF_FRAME = (frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}) | {0xF7}
STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})  # TEM, RSTn and SOI have no length
NO_FRAME_FOLLOWS = frozenset({0xD9, 0xDA})  # EOI and SOS: a frame header comes before them

JPEG_2000_START = b"\xff\x4f\xff\x51"  # SOC, then SIZ
JP2_SIGNATURE = b"\x00\x00\x00\x0cjP  \r\n\x87\n"
FRAGMENT, FRAGMENTS_END = 0xFFFEE000, 0xFFFEE0DD  # DICOM item and sequence delimitation item


@dataclass(frozen=True)
class FrameHeader:
    """Size and samples of one compressed image."""

    width: int
    height: int
    components: int
    precision: int  # bits per sample
    component_ids: bytes = b""  # JPEG only
    jfif: bool = False  # JPEG only: a JFIF marker means that three components are YCbCr


def jpeg_frame(stream: bytes) -> FrameHeader:
    """Read the frame header of a JPEG (ITU-T T.81, B.2.2) or JPEG-LS (T.87, C.2.2) stream."""
    if stream[:2] != b"\xff\xd8":
        raise UndecodableImage(_damaged("JPEG"))
    position, jfif = 2, False
    try:
        for _ in range(MAX_JPEG_SEGMENTS):
            prefix, marker = struct.unpack_from(">BB", stream, position)
            if prefix != 0xFF or marker in NO_FRAME_FOLLOWS:
                break
            if marker == 0xFF:  # fill byte
                position += 1
            elif marker in STANDALONE:
                position += 2
            elif marker in START_OF_FRAME:
                return _start_of_frame(stream, position + 4, jfif)
            else:
                jfif = jfif or (marker == 0xE0 and stream[position + 4 : position + 8] == b"JFIF")
                (length,) = struct.unpack_from(">H", stream, position + 2)
                position += 2 + length
    except struct.error as exc:
        raise UndecodableImage(_damaged("JPEG")) from exc
    raise UndecodableImage(_damaged("JPEG"))


def _start_of_frame(stream: bytes, position: int, jfif: bool) -> FrameHeader:
    precision, height, width, components = struct.unpack_from(">BHHB", stream, position)
    ids = stream[position + 6 : position + 6 + 3 * components : 3]
    return FrameHeader(width, height, components, precision, ids, jfif)


def jpeg_2000_frame(stream: bytes) -> FrameHeader:
    """Read the SIZ segment of a bare JPEG 2000 codestream (ITU-T T.800, A.5.1)."""
    if stream[:4] != JPEG_2000_START:
        raise UndecodableImage(_damaged("JPEG 2000"))
    try:
        right, bottom, left, top = struct.unpack_from(">4L", stream, 8)
        (components,) = struct.unpack_from(">H", stream, 40)
        samples = [struct.unpack_from(">BBB", stream, 42 + 3 * i) for i in range(min(components, 4))]
    except struct.error as exc:
        raise UndecodableImage(_damaged("JPEG 2000")) from exc
    # Subsampled components would be decoded into another size than the one declared.
    if not samples or any((dx, dy) != (1, 1) for _, dx, dy in samples):
        raise UndecodableImage(_damaged("JPEG 2000"))
    precision = max((depth & 0x7F) + 1 for depth, _, _ in samples)
    return FrameHeader(right - left, bottom - top, components, precision)


def jpeg_2000_codestream(stream: bytes) -> bytes:
    """Unwrap a JP2 file (ITU-T T.800, I.4), which DICOM forbids but some software writes."""
    if not stream.startswith(JP2_SIGNATURE):
        return stream
    position = 0
    for _ in range(MAX_BOXES):
        try:
            length, kind = struct.unpack_from(">L4s", stream, position)
        except struct.error as exc:
            raise UndecodableImage(_damaged("JPEG 2000")) from exc
        if kind == b"jp2c":
            return stream[position + 8 : position + length if length else None]
        if length < 8:  # the long (1) and open-ended (0) forms are for boxes of codestreams
            break
        position += length
    raise UndecodableImage(_damaged("JPEG 2000"))


def fragments(data: bytes, position: int, end: int) -> tuple[int, bytes]:
    """Join the fragments of encapsulated pixel data (DICOM Part 5, A.4); return the offset table's length too.

    The table has one entry of four bytes for each frame, or none.
    """
    parts: list[memoryview] = []
    view = memoryview(data)
    for _ in range(MAX_FRAGMENTS):
        try:
            group, number, length = struct.unpack_from("<HHL", data, position)
        except struct.error as exc:
            raise UndecodableImage(_damaged("DICOM")) from exc
        tag, position = group << 16 | number, position + 8
        if tag == FRAGMENTS_END and len(parts) > 1:
            return len(parts[0]) // 4, b"".join(parts[1:])
        if tag != FRAGMENT or position + length > end:
            break
        parts.append(view[position : position + length])
        position += length
    raise UndecodableImage(_damaged("DICOM"))


def unpack_bits(segment: bytes, size: int) -> bytes:
    """Decode `size` bytes of a PackBits segment (DICOM Part 5, G.3); never more, whatever the segment holds."""
    try:
        return Image.frombytes("L", (size, 1), segment, "packbits", "L").tobytes()
    except Exception as exc:
        raise UndecodableImage(_damaged("DICOM")) from exc


def _damaged(kind: str) -> str:
    return f"The {kind} data is damaged or incomplete. Export the film again and send the new copy."
