"""A single DICOM radiograph: what its header says, and its stored pixels.

Only what describes the film leaves this module, reduced to harmless characters; names, dates and identifiers are not
even read. pydicom decodes the pixels once header, codestream and length of the data are known to agree.
"""

import itertools
import math
import re
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np

from modules.codestream import FrameHeader, fragments, jpeg_2000_codestream, jpeg_2000_frame, jpeg_frame, unpack_bits
from modules.decoder_process import decode_elsewhere
from modules.dicom_elements import (
    DAMAGED,
    PREFIX,
    PREFIX_AT,
    UNDEFINED_LENGTH,
    DataSet,
    Tag,
    Walker,
    read_transfer_syntax,
)
from modules.errors import MultipleFrames, UndecodableImage, UnsupportedImageType
from modules.greyscale import LookupTable, Presentation, StoredPixels, Window
from modules.records import ImageHeader

IMPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2"
EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
EXPLICIT_BIG_ENDIAN = "1.2.840.10008.1.2.2"
RLE_LOSSLESS = "1.2.840.10008.1.2.5"
JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
JPEG_LOSSY = frozenset({JPEG_BASELINE, "1.2.840.10008.1.2.4.51"})  # and extended
JPEG = JPEG_LOSSY | {"1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"}  # and lossless
JPEG_LS = frozenset(f"1.2.840.10008.1.2.4.{n}" for n in (80, 81))
JPEG_2000 = frozenset(f"1.2.840.10008.1.2.4.{n}" for n in (90, 91, 201, 202, 203))  # the last three: high throughput
NATIVE = frozenset({IMPLICIT_LITTLE_ENDIAN, EXPLICIT_LITTLE_ENDIAN, EXPLICIT_BIG_ENDIAN})
COMPRESSED = JPEG | JPEG_LS | JPEG_2000  # deflated is in no set: it inflates without a bound
DECODERS = ("pillow", "pyjpegls", "pylibjpeg", "gdcm")  # pydicom's names, in order of preference
TRUSTED_DECODERS = frozenset({"pillow", "pyjpegls"})  # survive damaged streams; others get a process of their own
EIGHT_BITS_ONLY = frozenset({"pillow", "gdcm"})  # of lossy JPEG; 12 bits need pylibjpeg-libjpeg

MONOCHROME = frozenset({"MONOCHROME1", "MONOCHROME2"})
COLOUR = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"})
END_OF_IMAGE = b"\xff\xd9"  # EOI marker of JPEG and JPEG-LS
RGB_COMPONENT_IDS = frozenset({b"RGB", b"rgb"})

MAX_CODE_LENGTH = 16  # of a code string (CS), Part 5 table 6.2-1
MAX_AGE_YEARS = 130
MAX_MAGNITUDE = 1e9  # of a rescale or window: far beyond 16-bit values, far below an overflow
YEARS = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}

CONVERT = "Save it as uncompressed DICOM (Explicit VR Little Endian) or as PNG, and send that."
CONTRADICTION = "The DICOM header contradicts itself or the pixels ({}). Export the film again and send the new copy."


@dataclass(frozen=True)
class Layout:
    """The Image Pixel module (Part 3, C.7.6.3), checked."""

    rows: int
    columns: int
    samples: int
    photometric: str
    planar: int
    allocated: int
    stored: int
    signed: bool

    @property
    def size(self) -> int:
        """Number of samples."""
        return self.rows * self.columns * self.samples


class DicomFile:
    """A DICOM file whose header has been read and whose pixels have not."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._syntax, start = read_transfer_syntax(data)
        _require_readable(self._syntax)
        walker = Walker(
            data, explicit=self._syntax != IMPLICIT_LITTLE_ENDIAN, little_endian=self._syntax != EXPLICIT_BIG_ENDIAN
        )
        self._values = walker.data_set(start, len(data))
        if self._values.get(Tag.PIXEL_DATA) is None:
            raise UnsupportedImageType(
                "This DICOM file holds no image pixels. Send the image object itself (CR or DX)."
            )
        _require_one_frame(self._values)

    def header(self) -> ImageHeader:
        """Read size, modality, view, body part, age and pixel spacing."""
        values = self._values
        width, height = values.integer(Tag.COLUMNS), values.integer(Tag.ROWS)
        if not width or not height:
            _contradiction("its rows or columns are missing or zero")
        return ImageHeader(
            format="dicom",
            width=width,
            height=height,
            modality=_code(values.text(Tag.MODALITY)),
            view_position=_code(values.text(Tag.VIEW_POSITION)),
            body_part=_code(values.text(Tag.BODY_PART_EXAMINED)),
            age_years=_age(values.text(Tag.PATIENT_AGE)),
            pixel_spacing_mm=_spacing(values.decimals(Tag.PIXEL_SPACING))
            or _spacing(values.decimals(Tag.IMAGER_PIXEL_SPACING)),
        )

    def pixels(self) -> StoredPixels:
        """Decode the stored values: greyscale (H, W), or unsigned RGB (H, W, 3) that fills its type."""
        layout, values = _layout(self._values), self._values
        element = values.get(Tag.PIXEL_DATA)
        if element is None or (element.length == UNDEFINED_LENGTH) == (self._syntax in NATIVE):
            _contradiction("its transfer syntax is not that of its pixels")
        if self._syntax in NATIVE:
            return _decode_native(values.value(Tag.PIXEL_DATA), self._syntax, layout, element.vr.decode())
        offsets, frame = fragments(self._data, element.start, len(self._data))
        if offsets > 1:
            raise _several_frames()
        if self._syntax == RLE_LOSSLESS:
            return _decode_rle(frame, layout)
        return _decode_compressed(frame, self._syntax, layout)

    def presentation(self) -> Presentation:
        """Read how the stored values are to be shown (Part 3, C.11.1 and C.11.2); the first of several windows."""
        values = self._values
        signed = values.integer(Tag.PIXEL_REPRESENTATION) == 1
        return Presentation(
            slope=_rescale(values, Tag.RESCALE_SLOPE, 1.0),
            intercept=_rescale(values, Tag.RESCALE_INTERCEPT, 0.0),
            modality_lut=_lookup_table(values.first_item(Tag.MODALITY_LUT_SEQUENCE), signed=signed),
            voi_lut=_lookup_table(values.first_item(Tag.VOI_LUT_SEQUENCE), signed=signed),
            window=_window(values),
            padding=_padding(values, signed=signed),
            # PresentationLUTShape INVERSE says the same of MONOCHROME1 once more, and asks for no second inversion.
            inverted=values.text(Tag.PHOTOMETRIC_INTERPRETATION) == "MONOCHROME1",
        )


# ── What is refused ──────────────────────────────────────────────────────────────────────────────────────────────────


def is_dicom(data: bytes) -> bool:
    """Whether the prefix of Part 10 stands behind the preamble."""
    return data[PREFIX_AT : PREFIX_AT + len(PREFIX)] == PREFIX


def _contradiction(what: str) -> NoReturn:
    raise UndecodableImage(CONTRADICTION.format(what))


def _several_frames() -> MultipleFrames:
    return MultipleFrames("This DICOM file holds several frames. Send one radiograph as a single-frame image.")


def _require_readable(syntax: str) -> None:
    if not syntax:
        raise UndecodableImage(DAMAGED)
    if syntax in NATIVE or syntax == RLE_LOSSLESS:
        return
    if syntax not in COMPRESSED or not _decoders(syntax):
        raise UnsupportedImageType(f"{_syntax_name(syntax)} cannot be read here. {CONVERT}")


def _syntax_name(syntax: str) -> str:
    """Name a transfer syntax of Part 6; an unknown identifier is not repeated, here or in a warning."""
    from pydicom.config import IGNORE
    from pydicom.uid import UID

    uid = UID(syntax, validation_mode=IGNORE)
    return f'The DICOM transfer syntax "{uid.name}"' if uid.name != syntax else "The transfer syntax of this DICOM file"


def _decoders(syntax: str) -> tuple[str, ...]:
    """Return the installed decoders of a compressed transfer syntax, the preferred one first."""
    from pydicom.pixels.decoders.base import get_decoder

    available = get_decoder(syntax).available_plugins
    return tuple(decoder for decoder in DECODERS if decoder in available)


def _require_one_frame(values: DataSet) -> None:
    frames = values.text(Tag.NUMBER_OF_FRAMES) or "1"
    if not re.fullmatch(r"[0-9]{1,12}", frames) or int(frames) < 1:
        _contradiction("its number of frames is not a positive number")
    if int(frames) > 1:
        raise _several_frames()


def _layout(values: DataSet) -> Layout:
    """Check the Image Pixel module: the kinds that are read, with values that fit each other."""
    layout = Layout(
        rows=values.integer(Tag.ROWS) or 0,
        columns=values.integer(Tag.COLUMNS) or 0,
        samples=values.integer(Tag.SAMPLES_PER_PIXEL) or 1,
        photometric=values.text(Tag.PHOTOMETRIC_INTERPRETATION),
        planar=values.integer(Tag.PLANAR_CONFIGURATION) or 0,
        allocated=values.integer(Tag.BITS_ALLOCATED) or 0,
        stored=values.integer(Tag.BITS_STORED) or values.integer(Tag.BITS_ALLOCATED) or 0,
        signed=values.integer(Tag.PIXEL_REPRESENTATION) == 1,
    )
    kinds = {1: MONOCHROME, 3: COLOUR}.get(layout.samples, frozenset())
    if layout.allocated not in (8, 16) or layout.photometric not in kinds:
        raise UnsupportedImageType(
            "Only DICOM images of 8 or 16 bits, in greyscale (MONOCHROME1, MONOCHROME2) or RGB, are read. "
            "Export the film as one of these, or as PNG, and send that."
        )
    if not 1 <= layout.stored <= layout.allocated or layout.planar not in (0, 1):
        _contradiction("its bits stored or planar configuration are not possible")
    if values.integer(Tag.HIGH_BIT) not in (None, layout.stored - 1):
        raise UnsupportedImageType(f"The bits of this DICOM image are not stored from the lowest one up. {CONVERT}")
    if layout.samples == 3 and (
        layout.signed or layout.stored < layout.allocated or (layout.allocated == 16 and layout.photometric != "RGB")
    ):
        raise UnsupportedImageType(f"This kind of colour DICOM cannot be read here. {CONVERT}")
    return layout


# ── Pixels ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _decode_native(data: bytes, syntax: str, layout: Layout, vr: str) -> StoredPixels:
    """Read plain pixels, after their length has been held against the header (Part 5, 8.1.1)."""
    expected = layout.size * layout.allocated // 8
    if layout.photometric == "YBR_FULL_422":
        expected = expected * 2 // 3
    if len(data) not in (expected, expected + expected % 2):
        _contradiction("its rows and columns do not give the length of its pixels")
    return _decode(data, syntax, layout, pixel_keyword="PixelData", pixel_vr=vr)


def _decode_rle(frame: bytes, layout: Layout) -> StoredPixels:
    """Unpack one plane for each byte of each sample, the most significant first (Part 5, G.2 to G.5)."""
    count, width = layout.samples * layout.allocated // 8, layout.allocated // 8
    if len(frame) < 64:
        raise UndecodableImage(DAMAGED)
    segments, *offsets = np.frombuffer(frame, "<u4", 16).tolist()
    starts = [*offsets[:count], len(frame)]
    if segments != count or starts[0] < 64 or any(start > stop for start, stop in itertools.pairwise(starts)):
        raise UndecodableImage(DAMAGED)
    planes = np.empty((layout.samples, layout.rows * layout.columns, width), np.uint8)
    for i, (start, stop) in enumerate(itertools.pairwise(starts)):
        plane = unpack_bits(frame[start:stop], layout.rows * layout.columns)
        planes[i // width, :, width - 1 - i % width] = np.frombuffer(plane, np.uint8)
    photometric = "YBR_FULL" if layout.photometric == "YBR_FULL_422" else layout.photometric  # RLE has no subsampling
    plain = replace(layout, planar=1, photometric=photometric)
    return _decode(planes.tobytes(), EXPLICIT_LITTLE_ENDIAN, plain, pixel_keyword="PixelData")


def _decode_compressed(frame: bytes, syntax: str, layout: Layout) -> StoredPixels:
    """Decompress, after the size that the codestream states has been held against the header."""
    if syntax in JPEG_2000:
        frame = jpeg_2000_codestream(frame)
    found = jpeg_2000_frame(frame) if syntax in JPEG_2000 else jpeg_frame(frame)
    if (found.height, found.width, found.components) != (layout.rows, layout.columns, layout.samples):
        _contradiction("its rows, columns or samples are not those of the compressed image")
    if syntax in JPEG_LS and not frame.rstrip(b"\0").endswith(END_OF_IMAGE):
        raise UndecodableImage(DAMAGED)  # CharLS looks for seconds for the end of a stream that lacks its marker
    decoders = _decoders(syntax)
    if syntax in JPEG_LOSSY and found.precision != 8:
        decoders = tuple(decoder for decoder in decoders if decoder not in EIGHT_BITS_ONLY)
    if not decoders:
        raise UnsupportedImageType(f"{_syntax_name(syntax)} with {found.precision} bits cannot be read here. {CONVERT}")
    if found.precision > layout.allocated:
        _contradiction("its bits allocated are fewer than those of the compressed image")
    if syntax in JPEG:
        layout = replace(layout, photometric=_jpeg_photometric(found, syntax, layout))
    from pydicom.encaps import encapsulate

    return _decode(encapsulate([frame], has_bot=False), syntax, layout, decoding_plugin=decoders[0])


def _jpeg_photometric(found: FrameHeader, syntax: str, layout: Layout) -> str:
    """Believe the codestream about its colours, as pydicom does, but without its warning."""
    if layout.samples == 3 and found.component_ids in RGB_COMPONENT_IDS:
        return "RGB"
    if layout.samples == 3 and found.jfif and "YBR" not in layout.photometric:
        return "YBR_FULL_422" if syntax == JPEG_BASELINE else "YBR_FULL"
    return layout.photometric


def _decode(data: bytes, syntax: str, layout: Layout, **options: Any) -> StoredPixels:
    """Let pydicom decode, mask unused bits, and turn YBR into RGB."""
    from pydicom.pixels.decoders.base import get_decoder

    options |= {
        "rows": layout.rows,
        "columns": layout.columns,
        "number_of_frames": 1,
        "samples_per_pixel": layout.samples,
        "photometric_interpretation": layout.photometric,
        "planar_configuration": layout.planar,
        "bits_allocated": layout.allocated,
        "bits_stored": layout.stored,
        "pixel_representation": int(layout.signed),
    }
    kind = np.dtype(f"{'i' if layout.signed else 'u'}{layout.allocated // 8}")
    shape = (layout.rows, layout.columns, layout.samples)[: 2 if layout.samples == 1 else 3]
    try:
        if options.get("decoding_plugin", "pillow") not in TRUSTED_DECODERS:
            decoded = decode_elsewhere(data, syntax, options, layout.size * kind.itemsize)
            return np.frombuffer(decoded, kind).reshape(shape)
        # pydicom's own validation warns; what it looks for has been checked by now.
        pixels, _ = get_decoder(syntax).as_array(data, index=0, validate=False, **options)
    except Exception as exc:  # a decoder fails in as many ways as it has lines
        raise UndecodableImage(DAMAGED) from exc
    if pixels.shape != shape or pixels.dtype.newbyteorder("=") != kind:
        raise UndecodableImage(DAMAGED)
    return np.ascontiguousarray(pixels, kind)


# ── Values of the header ─────────────────────────────────────────────────────────────────────────────────────────────


def _code(text: str) -> str | None:
    """Reduce a code string to the characters that one may have; headers are written by strangers."""
    return re.sub(r"[^A-Z0-9 _-]", "", text.upper())[:MAX_CODE_LENGTH].strip() or None


def _age(text: str) -> float | None:
    """Read an age string (AS), such as 056Y, 018M, 002W or 003D."""
    match = re.fullmatch(r"([0-9]{1,3})([YMWD])", text.upper())
    if match is None:
        return None
    years = int(match[1]) * YEARS[match[2]]
    return years if years <= MAX_AGE_YEARS else None


def _spacing(values: tuple[float, ...]) -> tuple[float, float] | None:
    if len(values) != 2 or not all(math.isfinite(v) and v > 0 for v in values):
        return None
    return values[0], values[1]


def _rescale(values: DataSet, tag: Tag, default: float) -> float:
    """Read slope or intercept; a wrong one would turn or shift the greyscale, so it is refused rather than dropped."""
    number = next(iter(values.decimals(tag)), default)
    if not abs(number) <= MAX_MAGNITUDE or (tag == Tag.RESCALE_SLOPE and abs(number) < 1 / MAX_MAGNITUDE):
        _contradiction("its rescale slope or intercept is not usable")
    return number


def _window(values: DataSet) -> Window | None:
    centers, widths = values.decimals(Tag.WINDOW_CENTER), values.decimals(Tag.WINDOW_WIDTH)
    function = values.text(Tag.VOI_LUT_FUNCTION) or "LINEAR"
    if not centers or not widths or function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        return None
    window = Window(centers[0], widths[0], function)
    return window if window.usable and max(abs(window.center), window.width) <= MAX_MAGNITUDE else None


def _padding(values: DataSet, *, signed: bool) -> tuple[int, int] | None:
    """Read the range of stored values that are no image (Part 3, C.7.5.1.1.2)."""
    value = values.integer(Tag.PIXEL_PADDING_VALUE, signed=signed)
    limit = values.integer(Tag.PIXEL_PADDING_RANGE_LIMIT, signed=signed)
    if value is None:
        return None
    return (value, value) if limit is None else (min(value, limit), max(value, limit))


def _lookup_table(item: DataSet | None, *, signed: bool) -> LookupTable | None:
    """Read a LUT (Part 3, C.11.1.1.1): entries of 16 bits, or of 8 where there are half as many bytes."""
    if item is None or len(item.integers(Tag.LUT_DESCRIPTOR)) != 3 or not item.value(Tag.LUT_DATA):
        return None
    descriptor, data = item.get(Tag.LUT_DESCRIPTOR), item.value(Tag.LUT_DATA)
    signed = descriptor is not None and (descriptor.vr == b"SS" or (descriptor.vr != b"US" and signed))
    size = item.integers(Tag.LUT_DESCRIPTOR)[0] or 1 << 16
    first = item.integers(Tag.LUT_DESCRIPTOR, signed=signed)[1]
    for width in (2, 1):
        if len(data) >= size * width:
            entries = np.frombuffer(data, f"{item.byte_order}u{width}", size)
            return LookupTable(first, entries.astype(np.float64))
    _contradiction("a lookup table is shorter than it says")
