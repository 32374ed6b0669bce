"""What compressed pixels say of their size, read without decoding any.

A decoder allocates what a codestream asks for, so its size is compared with the limits, and with the header around it,
before a decoder runs.
"""

import struct
from dataclasses import dataclass

from modules.errors import UndecodableImage

START_OF_SCAN = b"\xff\xda"
MAX_JPEG_SCANS = 200  # encoders write one, progressive ones about ten
MAX_JPEG_SEGMENTS = 10_000  # far above any real file; bounds the time that a hostile one takes

# ITU-T T.81 table B.1, and T.87 (JPEG-LS): start-of-frame markers, without DHT (C4), JPG (C8) and DAC (CC).
START_OF_FRAME = (frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}) | {0xF7}
STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})  # TEM, RSTn and SOI have no length
NO_FRAME_FOLLOWS = frozenset({0xD9, 0xDA})  # EOI and SOS: a frame header comes before them

JPEG_2000_START = b"\xff\x4f\xff\x51"  # SOC, then SIZ


@dataclass(frozen=True)
class FrameHeader:
    """Size and samples of one compressed image."""

    width: int
    height: int
    components: int
    precision: int  # bits per sample


def jpeg_frame(stream: bytes) -> FrameHeader:
    """Read the frame header of a JPEG (ITU-T T.81, B.2.2) or JPEG-LS (T.87, C.2.2) stream."""
    # A decoder goes over the whole image once a scan; this marker cannot stand within compressed data (T.81, B.1.1.5).
    if stream[:2] != b"\xff\xd8" or stream.count(START_OF_SCAN) > MAX_JPEG_SCANS:
        raise _damaged("JPEG")
    position = 2
    try:
        for _ in range(MAX_JPEG_SEGMENTS):
            prefix, marker = struct.unpack_from(">BB", stream, position)
            if prefix != 0xFF or marker in NO_FRAME_FOLLOWS:
                break
            if marker in START_OF_FRAME:
                precision, height, width, components = struct.unpack_from(">BHHB", stream, position + 4)
                return FrameHeader(width, height, components, precision)
            if marker == 0xFF:  # fill byte
                position += 1
            elif marker in STANDALONE:
                position += 2
            else:
                position += 2 + int(struct.unpack_from(">H", stream, position + 2)[0])
    except struct.error as exc:
        raise _damaged("JPEG") from exc
    raise _damaged("JPEG")


def jpeg_2000_frame(stream: bytes) -> FrameHeader:
    """Read the SIZ segment of a bare JPEG 2000 codestream (ITU-T T.800, A.5.1)."""
    if not stream.startswith(JPEG_2000_START):
        raise _damaged("JPEG 2000")
    try:
        right, bottom, left, top = struct.unpack_from(">4L", stream, 8)
        (components,) = struct.unpack_from(">H", stream, 40)
        samples = [struct.unpack_from(">BBB", stream, 42 + 3 * i) for i in range(min(components, 4))]
    except struct.error as exc:
        raise _damaged("JPEG 2000") from exc
    # Subsampled components would be decoded into another size than the one declared.
    if not samples or any((dx, dy) != (1, 1) for _, dx, dy in samples):
        raise _damaged("JPEG 2000")
    precision = max((depth & 0x7F) + 1 for depth, _, _ in samples)
    return FrameHeader(right - left, bottom - top, components, precision)


def _damaged(kind: str) -> UndecodableImage:
    return UndecodableImage(f"The {kind} data is damaged or incomplete. Export the film again and send the new copy.")
