"""What stands beside the pixels of a PNG or a JPEG: the orientation is read from it, and all else is left out.

Pillow reads profiles, comments and EXIF when it opens a file: it joins them piece by piece, and makes numbers of arrays
of any length, so that a few megabytes cost seconds or gigabytes. It gets to see what the pixels need, and nothing else.
"""

import struct
from collections.abc import Iterable

from modules.codestream import jpeg_segments
from modules.errors import MultipleFrames, UndecodableImage

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PIXEL_CHUNKS = frozenset({b"PLTE", b"tRNS", b"IDAT", b"IEND"})  # beside the first one, IHDR
MAX_PNG_CHUNKS = 200_000  # far above any real file; bounds the time that a hostile one takes

# Application segments and comments, without JFIF (APP0) and Adobe's word on the colours (APP14).
JPEG_METADATA = frozenset(range(0xE1, 0xF0)) - {0xEE} | {0xFE}
APP1, EXIF_PREFIX = 0xE1, b"Exif\0\0"

BYTE_ORDERS = {b"II": "<", b"MM": ">"}  # TIFF 6.0, section 2
ORIENTATION, SHORT = 0x0112, 3
UPRIGHT = 1
ORIENTATIONS = frozenset(range(1, 9))
MAX_EXIF_ENTRIES = 1000  # of the first directory; cameras write about a dozen

DAMAGED = "The {} file is damaged or incomplete. Export the film again and send the new copy."


def plain_png(data: bytes) -> tuple[bytes, int]:
    """Return a PNG with the chunks that its pixels need, and its EXIF orientation; refuse one that is cut or animated.

    Chunks are walked up to IEND; their checksums are left to the decoder. A second header (IHDR) is left out.
    """
    orientation = UPRIGHT
    kept = [(0, len(PNG_SIGNATURE))]
    position, pixels_begun = len(PNG_SIGNATURE), False
    for number in range(MAX_PNG_CHUNKS):
        if position + 12 > len(data):
            break
        length, name = struct.unpack_from(">L4s", data, position)
        end = position + 12 + length
        if name == b"acTL" and data[position + 8 : position + 12] != b"\0\0\0\1":
            raise MultipleFrames("The PNG is an animation. Send one radiograph as a still image.")
        if number == 0 or name in PIXEL_CHUNKS:
            kept.append((position, end))
        elif name == b"eXIf" and not pixels_begun:
            orientation = exif_orientation(data[position + 8 : min(end - 4, position + 8 + 13 * MAX_EXIF_ENTRIES)])
        if name == b"IEND":
            return _joined(data, kept), orientation
        pixels_begun = pixels_begun or name == b"IDAT"
        position = end
    raise UndecodableImage(DAMAGED.format("PNG"))


def plain_jpeg(data: bytes) -> tuple[bytes, int]:
    """Return a JPEG with the segments that its pixels need, and its EXIF orientation."""
    orientation = None
    kept = [(0, 2)]
    for marker, start, end in jpeg_segments(data):
        if marker not in JPEG_METADATA:
            kept.append((start, end))
        elif marker == APP1 and orientation is None and data.startswith(EXIF_PREFIX, start + 4):
            orientation = exif_orientation(data[start + 4 + len(EXIF_PREFIX) : end])
    return _joined(data, kept), orientation or UPRIGHT


def exif_orientation(exif: bytes) -> int:
    """Read the orientation (EXIF 2.32, 4.6.4) from the first directory of a TIFF header; 1 where there is none."""
    order = BYTE_ORDERS.get(exif[:2], "")
    try:
        (directory,) = struct.unpack_from(f"{order}L", exif, 4) if order else (len(exif),)
        (entries,) = struct.unpack_from(f"{order}H", exif, directory)
        for i in range(min(entries, MAX_EXIF_ENTRIES)):
            tag, kind, _, value = struct.unpack_from(f"{order}HHLH", exif, directory + 2 + 12 * i)
            if tag == ORIENTATION:
                return value if kind == SHORT and value in ORIENTATIONS else UPRIGHT
    except struct.error:  # it ends early, or points beyond its end
        pass
    return UPRIGHT


def _joined(data: bytes, kept: Iterable[tuple[int, int]]) -> bytes:
    """Return parts of a file as one; the file itself when they are all of it."""
    view = memoryview(data)
    parts = [view[start:end] for start, end in kept]
    return data if sum(map(len, parts)) == len(data) else b"".join(parts)
