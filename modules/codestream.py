"""What compressed pixels say of their size, read without decoding any.

A decoder allocates what a codestream asks for, so its size is compared with the limits, and with the header around it,
before a decoder runs.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from modules.errors import UndecodableImage

START_OF_SCAN = b"\xff\xda"
MAX_JPEG_SCANS = 200  # encoders write one, progressive ones about ten
MAX_SCANNED_PIXELS = 500_000_000  # of all scans together: twelve over 40 million pixels
MAX_JPEG_SEGMENTS = 10_000  # far above any real file; bounds the time that a hostile one takes

# ITU-T T.81 table B.1, and T.87 (JPEG-LS): start-of-frame markers, without DHT (C4), JPG (C8) and DAC (CC).
START_OF_FRAME = (frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}) | {0xF7}
STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})  # TEM, RSTn and SOI have no length
END_OF_IMAGE = 0xD9

JPEG_2000_START = b"\xff\x4f\xff\x51"  # SOC, then SIZ


@dataclass(frozen=True)
class FrameHeader:
    """Size and samples of one compressed image."""

    width: int
    height: int
    components: int
    precision: int  # bits per sample


def jpeg_segments(stream: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker, start and end of each segment (ITU-T T.81, B.1.1); the last is the first scan, to the very end.

    Bytes that belong to no segment are refused: decoders differ in what they make of them.
    """
    position = 2
    try:
        for _ in range(MAX_JPEG_SEGMENTS):
            prefix, marker = struct.unpack_from(">BB", stream, position)
            if prefix != 0xFF or marker == END_OF_IMAGE:
                break
            if marker == START_OF_SCAN[1]:
                yield marker, position, len(stream)
                return
            if marker == 0xFF:  # fill byte
                position += 1
                continue
            length = 0 if marker in STANDALONE else int(struct.unpack_from(">H", stream, position + 2)[0])
            end = position + 2 + length
            if end > len(stream) or (length < 2 and marker not in STANDALONE):
                break
            yield marker, position, end
            position = end
    except struct.error as exc:
        raise _damaged("JPEG") from exc
    raise _damaged("JPEG")


def jpeg_frame(stream: bytes) -> FrameHeader:
    """Read the frame header of a JPEG (ITU-T T.81, B.2.2) or JPEG-LS (T.87, C.2.2) stream; two of them are refused."""
    if stream[:2] != b"\xff\xd8":
        raise _damaged("JPEG")
    headers = [start for marker, start, end in jpeg_segments(stream) if marker in START_OF_FRAME and end - start >= 10]
    if len(headers) != 1:
        raise _damaged("JPEG")
    precision, height, width, components = struct.unpack_from(">BHHB", stream, headers[0] + 4)
    # A decoder goes over the whole image once a scan; this marker cannot stand within compressed data (T.81, B.1.1.5).
    scans = stream.count(START_OF_SCAN)
    if scans > MAX_JPEG_SCANS or (scans > 1 and scans * width * height > MAX_SCANNED_PIXELS):
        raise _damaged("JPEG")
    return FrameHeader(width, height, components, precision)


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
