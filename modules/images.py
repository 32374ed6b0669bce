"""Opens an uploaded film: PNG, JPEG or DICOM, told apart by content, checked before any pixel is decoded.

`open_image` reads signatures and headers only, so that a caller can refuse a file by what its header says;
`ImageFile.decode` makes the `Radiograph`. Every way in which a file can be wrong is an `ImageError`.
"""

import io
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from modules.codestream import jpeg_frame
from modules.dicom import DicomFile
from modules.dicom_values import is_dicom
from modules.errors import (
    FileTooLarge,
    ImageError,
    TooManyPixels,
    UndecodableImage,
    UnsupportedImageType,
    shortage_in,
)
from modules.greyscale import render
from modules.metadata import DAMAGED, PNG_SIGNATURE, plain_jpeg, plain_png
from modules.png import encode_png
from modules.records import FloatArray, ImageHeader, Radiograph
from modules.settings import MEBIBYTE

JPEG_SIGNATURE = b"\xff\xd8\xff"
MAX_SIDE = 20_000  # pixels; resizing takes memory by the side, and no detector has as many
COLOUR_SAMPLE_SIDE = 512  # colourfulness is a mean: it is measured on a copy of at most this many rows and columns
SLAB_PIXELS = 1 << 20  # colours are worked on in slabs of about as many: no copy of a whole film is made of them

ACCEPTED = "Send a PNG, a JPEG, or a single-frame DICOM file."

# What else is sent by mistake, by the bytes at an offset; the answer then names it.
OTHER_KINDS = (
    (0, b"GIF8", "a GIF"),
    (0, b"BM", "a BMP image"),
    (0, b"II*\0", "a TIFF image"),
    (0, b"MM\0*", "a TIFF image"),
    (8, b"WEBP", "a WebP image"),
    (4, b"ftyp", "an HEIC or AVIF image, or a video"),
    (4, b"jP  ", "a JPEG 2000 image"),
    (0, b"%PDF", "a PDF document"),
    (0, b"PK\x03\x04", "a ZIP archive"),
)

# EXIF orientation (tag 0112, EXIF 2.32 section 4.6.4): what brings the stored image upright.
TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDES_EXCHANGED = frozenset({5, 6, 7, 8})

Pixels = npt.NDArray[Any]
Slabs = Callable[[int, int], Pixels]  # first row and the row behind the last one, to their colours (rows, W, 3)


@dataclass(frozen=True)
class ImageLimits:
    """The largest upload that is accepted."""

    max_bytes: int = 50 * MEBIBYTE
    max_pixels: int = 40_000_000


DEFAULT_LIMITS = ImageLimits()


class Decoder(Protocol):
    """Decodes one format: film (H, W) in [0, 1] and its colourfulness."""

    def __call__(self, *, invert: bool) -> tuple[FloatArray, float]:
        """Decode; exchange black and white on request."""
        ...


class ImageFile:
    """A file whose header has been read and found plausible, and whose pixels have not been decoded."""

    def __init__(self, header: ImageHeader, decoder: Decoder) -> None:
        self.header = header
        self._decoder = decoder

    def decode(self, *, invert: bool = False) -> Radiograph:
        """Decode the film; `invert` exchanges black and white of a film that was sent with the wrong greyscale."""
        pixels, colourfulness = self._decoder(invert=invert)
        if pixels.shape != (self.header.height, self.header.width):
            raise UndecodableImage(DAMAGED.format("image"))
        return Radiograph(pixels, self.header, colourfulness, inverted_by_request=invert)


def open_image(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> ImageFile:
    """Tell the format from the content, and check everything that can be checked without decoding a pixel."""
    if not data:
        raise UndecodableImage("The file is empty. Export the film again and send the new copy.")
    if len(data) > limits.max_bytes:
        raise FileTooLarge(
            f"The file has {len(data) / MEBIBYTE:.1f} MiB; the limit is {limits.max_bytes / MEBIBYTE:.0f} MiB. "
            "Send one film on its own, or a compressed or smaller export."
        )
    if data.startswith(PNG_SIGNATURE):
        return _open_raster(data, "png", limits)
    if data.startswith(JPEG_SIGNATURE):
        return _open_raster(data, "jpeg", limits)
    if is_dicom(data):
        return _open_dicom(data, limits)
    if PNG_SIGNATURE.startswith(data) or JPEG_SIGNATURE.startswith(data):
        raise UndecodableImage(DAMAGED.format("image"))
    kind = next((name for at, signature, name in OTHER_KINDS if data.startswith(signature, at)), "no image known here")
    raise UnsupportedImageType(f"The file is {kind}. {ACCEPTED}")


def to_png(radiograph: Radiograph, max_side: int | None = None) -> bytes:
    """Encode the film as an 8-bit greyscale PNG; one with a side beyond `max_side` is shrunk by area averaging."""
    return encode_png(display_pixels(radiograph.pixels, max_side))


def display_pixels(pixels: FloatArray, max_side: int | None) -> npt.NDArray[np.uint8]:
    """Return a film (H, W) in [0, 1] as 8-bit greys, shrunk by area when its longest side exceeds `max_side`."""
    longest = max(pixels.shape)
    if max_side is not None and longest > max_side:
        height, width = (max(1, round(side * max_side / longest)) for side in pixels.shape)
        pixels = np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA), np.float32)
    return np.asarray(cv2.convertScaleAbs(pixels, alpha=255.0), np.uint8)  # rounds to the nearest, and stops at 255


def _check_size(width: int, height: int, limits: ImageLimits) -> None:
    if width < 1 or height < 1:
        raise UndecodableImage("By its header the image has no pixels. Export the film again and send the new copy.")
    if width * height > limits.max_pixels:
        raise TooManyPixels(
            f"The image has {width} x {height} pixels; the limit is {limits.max_pixels / 1e6:g} million. "
            "Send a single film, or a smaller export of it."
        )
    if max(width, height) > MAX_SIDE:
        raise TooManyPixels(f"The image has a side of more than {MAX_SIDE} pixels. Send a smaller export of the film.")


# ── DICOM ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _open_dicom(data: bytes, limits: ImageLimits) -> ImageFile:
    file = DicomFile(data)
    header = file.header()
    _check_size(header.width, header.height, limits)

    def decode(*, invert: bool) -> tuple[FloatArray, float]:
        presentation, stored = file.presentation(), file.pixels()
        if stored.ndim == 2:
            return render(stored, presentation, invert=invert), 0.0
        film, colourfulness = _grey(lambda top, bottom: stored[top:bottom], header.height, header.width)
        return _inverted(film, invert), colourfulness

    return ImageFile(header, decode)


# ── PNG and JPEG ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _open_raster(data: bytes, kind: Literal["png", "jpeg"], limits: ImageLimits) -> ImageFile:
    width, height = _png_size(data) if kind == "png" else _jpeg_size(data)
    _check_size(width, height, limits)  # before Pillow, which would warn of large images in its own way
    data, orientation = plain_png(data) if kind == "png" else plain_jpeg(data)
    with _pillow(data, kind) as image:
        if image.size != (width, height):
            raise UndecodableImage(DAMAGED.format(kind.upper()))
    if orientation in SIDES_EXCHANGED:
        width, height = height, width

    def decode(*, invert: bool) -> tuple[FloatArray, float]:
        film, colourfulness = _decode_raster(data, kind, orientation)
        return _inverted(film, invert), colourfulness

    return ImageFile(ImageHeader(kind, width, height), decode)


@contextmanager
def _pillow(data: bytes, kind: str) -> Iterator[Image.Image]:
    """Open with Pillow, and translate whatever it raises, warnings that were made errors included."""
    try:
        with Image.open(io.BytesIO(data), formats=(kind.upper(),)) as image:
            yield image
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
        raise TooManyPixels("The image has too many pixels to be decoded. Send a smaller export of the film.") from exc
    except Exception as exc:  # a damaged file fails in as many ways as there are chunks and segments
        if shortage_in(exc):
            raise
        raise UndecodableImage(DAMAGED.format(kind.upper())) from exc


def _png_size(data: bytes) -> tuple[int, int]:
    """Read IHDR, which comes first (PNG 3rd edition, 11.2.1)."""
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise UndecodableImage(DAMAGED.format("PNG"))
    width, height = struct.unpack_from(">LL", data, 16)
    return width, height


def _jpeg_size(data: bytes) -> tuple[int, int]:
    frame = jpeg_frame(data)
    return frame.width, frame.height


def _decode_raster(data: bytes, kind: str, orientation: int) -> tuple[FloatArray, float]:
    with _pillow(data, kind) as image:
        image.load()
        upright = image.transpose(TRANSPOSITIONS[orientation]) if orientation in TRANSPOSITIONS else image
        if upright.mode.startswith("I"):  # 16 bits, of which films often use 10 or 12
            return _scale_to_own_range(np.asarray(upright)), 0.0
        if upright.mode in ("1", "L") and not upright.has_transparency_data:
            return _unit_scale(np.asarray(upright.convert("L"))), 0.0
        width, height = upright.size
        return _grey(lambda top, bottom: _colours(upright.crop((0, top, width, bottom))), height, width)


def _colours(image: Image.Image) -> Pixels:
    """Return red, green and blue (H, W, 3) of a slab; what is transparent lies over black."""
    if image.has_transparency_data:
        image = _over_black(image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def _over_black(image: Image.Image) -> Image.Image:
    black = Image.new("RGB", image.size)
    black.paste(image, mask=image.getchannel("A"))
    return black


# ── Pixels ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _unit_scale(pixels: Pixels) -> FloatArray:
    """Divide by the largest value of the unsigned type."""
    return np.divide(pixels, np.iinfo(pixels.dtype).max, dtype=np.float32)


def _scale_to_own_range(stored: Pixels) -> FloatArray:
    """Return 16-bit greyscale (H, W) scaled so that its least value is 0 and its largest 1; a flat image is 0."""
    low, high = int(stored.min()), int(stored.max())
    scaled = np.subtract(stored, low, dtype=np.float32)
    return np.divide(scaled, max(high - low, 1), out=scaled)


def _grey(slab: Slabs, height: int, width: int) -> tuple[FloatArray, float]:
    """Return luma (H, W) in [0, 1] of RGB after ITU-R BT.601, and its colourfulness; equal channels keep their value.

    Colourfulness is the mean of the largest less the smallest channel, in [0, 1].
    """
    rows, columns = (max(1, side // COLOUR_SAMPLE_SIDE) for side in (height, width))
    step = rows * max(1, SLAB_PIXELS // (rows * width))  # so that every slab begins with a row of the sample
    film = np.empty((height, width), np.float32)
    spread = count = 0
    for top in range(0, height, step):
        bottom = min(top + step, height)
        colours = slab(top, bottom)
        film[top:bottom] = _unit_scale(cv2.cvtColor(colours, cv2.COLOR_RGB2GRAY))
        sample = colours[::rows, ::columns]
        spread += int((sample.max(axis=2) - sample.min(axis=2)).sum(dtype=np.int64))
        count += sample.shape[0] * sample.shape[1]
    return film, spread / count / float(np.iinfo(colours.dtype).max)


def _inverted(film: FloatArray, invert: bool) -> FloatArray:
    return np.subtract(np.float32(1.0), film, out=film) if invert else film
