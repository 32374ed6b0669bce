"""Encodes PNG (PNG 3rd edition) for speed: one filter for every row, and ISA-L's deflate.

OpenCV's and Pillow's encoders take as long for an overlay of 1024 px as the network for its film: they try five filters
on each row, and compress with a general zlib. A film's rows are alike, so that one filter, Up, does as well, and what
comes out is no larger (`python -m benchmarks.pipeline` measures the time).
"""

import struct
import zlib

import numpy as np
import numpy.typing as npt
from isal import isal_zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLOUR_TYPES = {1: 0, 3: 2}  # by the number of channels: greyscale, truecolour
FILTER_UP = 2  # each byte less the one above it
LEVEL = 1  # of ISA-L's 0 to 3; the higher ones take longer and save nothing on films


def encode_png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Encode grey (H, W) or red-green-blue (H, W, 3) pixels of 8 bits; raises ValueError for any other shape."""
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if pixels.ndim not in (2, 3) or channels not in COLOUR_TYPES or not pixels.size:
        raise ValueError(f"no PNG can be made of pixels of shape {pixels.shape}")
    height, width = pixels.shape[:2]
    header = struct.pack(">LLBBBBB", width, height, 8, COLOUR_TYPES[channels], 0, 0, 0)
    data = isal_zlib.compress(_filtered(pixels.reshape(height, width * channels)), LEVEL)
    return SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _filtered(rows: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return rows (H, N) as (H, 1 + N): the filter's number, then the differences, modulo 256, to the row above."""
    filtered = np.empty((rows.shape[0], rows.shape[1] + 1), np.uint8)
    filtered[:, 0] = FILTER_UP
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    return filtered


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">L", len(content)) + name + content + struct.pack(">L", zlib.crc32(content, zlib.crc32(name)))
