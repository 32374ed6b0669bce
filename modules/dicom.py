"""A single DICOM radiograph: what its header says, and its stored pixels.

pydicom reads and decodes the file; this module says what is accepted, and keeps from pydicom what would cost too much
or crash a decoder. Only what describes the film leaves it, reduced to harmless characters: names, dates and identifiers
are stepped over.
"""

import math
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from modules.codestream import JPEG_2000_START, jpeg_2000_frame, jpeg_frame
from modules.decoder_process import decode_elsewhere, decode_here
from modules.dicom_values import (
    DAMAGED,
    BoundedStream,
    Values,
    contradiction,
    number,
    read_transfer_syntax,
    read_values,
    refused_as_damaged,
)
from modules.errors import MultipleFrames, UndecodableImage, UnsupportedImageType
from modules.greyscale import Presentation, StoredPixels
from modules.metadata import plain_jpeg
from modules.records import ImageHeader

if TYPE_CHECKING:  # pydicom is imported when the first DICOM file comes
    from pydicom.dataset import Dataset

IMPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2"
EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
EXPLICIT_BIG_ENDIAN = "1.2.840.10008.1.2.2"
RLE_LOSSLESS = "1.2.840.10008.1.2.5"
JPEG_LOSSY = frozenset(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51))  # baseline and extended
JPEG = JPEG_LOSSY | {f"1.2.840.10008.1.2.4.{n}" for n in (57, 70)}  # and lossless
JPEG_LS = frozenset(f"1.2.840.10008.1.2.4.{n}" for n in (80, 81))
JPEG_2000 = frozenset(f"1.2.840.10008.1.2.4.{n}" for n in (90, 91, 201, 202, 203))  # the last three: high throughput
NATIVE = frozenset({IMPLICIT_LITTLE_ENDIAN, EXPLICIT_LITTLE_ENDIAN, EXPLICIT_BIG_ENDIAN})
COMPRESSED = JPEG | JPEG_LS | JPEG_2000 | {RLE_LOSSLESS}  # deflated is in no set: it inflates without a bound

DECODERS = ("pillow", "pyjpegls", "pylibjpeg", "gdcm")  # pydicom's names, in order of preference
# These survive damaged greyscale streams. The others run in a process of their own: GDCM may abort it, and RLE, whose
# output pylibjpeg-rle bounds (pydicom's own decoder does not), panics past `except Exception`. Colour goes there too,
# as pydicom may warn of it.
TRUSTED_DECODERS = frozenset({"pillow", "pyjpegls"})
END_OF_IMAGE = b"\xff\xd9"  # EOI marker of JPEG and JPEG-LS

MONOCHROME = frozenset({"MONOCHROME1", "MONOCHROME2"})
COLOUR = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"})

MAX_CODE_LENGTH = 16  # of a code string (CS), Part 5 table 6.2-1
MAX_AGE_YEARS = 130
MAX_MAGNITUDE = 1e9  # of a rescale or window: far beyond 16-bit values, far below an overflow
LEAST_WIDTHS = {"LINEAR": 1.0, "LINEAR_EXACT": 0.0, "SIGMOID": 0.0}  # of a window, not allowed itself
YEARS = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}
UNDEFINED_LENGTH = 0xFFFFFFFF

CONVERT = "Save it as uncompressed DICOM (Explicit VR Little Endian) or as PNG, and send that."


@dataclass(frozen=True)
class Layout:
    """The Image Pixel module (Part 3, C.7.6.3), checked; named as pydicom's decoders want it."""

    rows: int
    columns: int
    samples_per_pixel: int
    photometric_interpretation: str
    planar_configuration: int
    bits_allocated: int
    bits_stored: int
    pixel_representation: int


class DicomFile:
    """A DICOM file whose header has been read and whose pixels have not been decoded."""

    def __init__(self, data: bytes) -> None:
        stream = BoundedStream(data)
        self._syntax = read_transfer_syntax(stream)
        _require_readable(self._syntax)
        self._values = read_values(
            stream,
            implicit=self._syntax == IMPLICIT_LITTLE_ENDIAN,
            little_endian=self._syntax != EXPLICIT_BIG_ENDIAN,
        )
        if self._values.get("PixelData") is None:
            raise UnsupportedImageType(
                "This DICOM file holds no image pixels. Send the image object itself (CR or DX)."
            )
        _require_one_frame(self._values)

    def header(self) -> ImageHeader:
        """Read size, modality, view, body part, age and pixel spacing."""
        values = self._values
        width, height = values.integer("Columns"), values.integer("Rows")
        if not width or not height:
            contradiction("its rows or columns are missing or zero")
        return ImageHeader(
            format="dicom",
            width=width,
            height=height,
            modality=_code(values.text("Modality")),
            view_position=_code(values.text("ViewPosition")),
            body_part=_code(values.text("BodyPartExamined")),
            age_years=_age(values.text("PatientAge")),
            pixel_spacing_mm=_spacing(values.texts("PixelSpacing")) or _spacing(values.texts("ImagerPixelSpacing")),
        )

    def pixels(self) -> StoredPixels:
        """Decode the stored values: greyscale (H, W), or unsigned RGB (H, W, 3) that fills its type."""
        layout, syntax, element = _layout(self._values), self._syntax, self._values.get("PixelData")
        encapsulated = getattr(element, "length", UNDEFINED_LENGTH) == UNDEFINED_LENGTH
        if encapsulated == (syntax in NATIVE):
            contradiction("its transfer syntax is not that of its pixels")
        data = self._values.raw("PixelData")
        if encapsulated:
            return _decode_compressed(_join_fragments(data), syntax, layout)
        return _decode_native(data, syntax, layout, element.VR or "OW")

    def presentation(self) -> Presentation:
        """Read how the stored values are to be shown (Part 3, C.11.1 and C.11.2); the first of several windows."""
        values = self._values
        views = (_lookup_table(values, "VOILUTSequence"), _window(values))
        return Presentation(
            modality=_lookup_table(values, "ModalityLUTSequence") or _rescale(values),
            views=tuple(view for view in views if view is not None),
            padding=_padding(values),
            # PresentationLUTShape INVERSE says the same of MONOCHROME1 once more, and asks for no second inversion.
            inverted=values.text("PhotometricInterpretation") == "MONOCHROME1",
        )


# ── What is refused ──────────────────────────────────────────────────────────────────────────────────────────────────


def _several_frames() -> MultipleFrames:
    return MultipleFrames("This DICOM file holds several frames. Send one radiograph as a single-frame image.")


def _require_readable(syntax: str) -> None:
    if not syntax:
        raise UndecodableImage(DAMAGED)
    if syntax not in NATIVE and (syntax not in COMPRESSED or not _decoders(syntax)):
        raise UnsupportedImageType(f"{_syntax_name(syntax)} cannot be read here. {CONVERT}")


def _syntax_name(syntax: str) -> str:
    """Name a transfer syntax of Part 6; what is none may hold more of the header, and is not repeated."""
    from pydicom.config import IGNORE
    from pydicom.uid import UID

    uid = UID(syntax, validation_mode=IGNORE)
    known = uid.type == "Transfer Syntax"
    return f'The DICOM transfer syntax "{uid.name}"' if known else "The transfer syntax of this DICOM file"


def _decoders(syntax: str) -> tuple[str, ...]:
    """Return the installed decoders of a compressed transfer syntax, the preferred one first."""
    from pydicom.pixels.decoders.base import get_decoder

    available = get_decoder(syntax).available_plugins
    return tuple(decoder for decoder in DECODERS if decoder in available)


def _require_one_frame(values: Values) -> None:
    frames = values.text("NumberOfFrames") or "1"
    if not re.fullmatch(r"[0-9]{1,12}", frames) or int(frames) < 1:
        contradiction("its number of frames is not a positive number")
    if int(frames) > 1:
        raise _several_frames()


def _layout(values: Values) -> Layout:
    """Check the Image Pixel module: the kinds that are read, with values that fit each other."""
    allocated = values.integer("BitsAllocated") or 0
    stored = values.integer("BitsStored") or allocated
    samples = values.integer("SamplesPerPixel") or 1
    photometric = values.text("PhotometricInterpretation")
    planar = values.integer("PlanarConfiguration") or 0
    signed = _signed(values)
    kinds = {1: MONOCHROME, 3: COLOUR}.get(samples, frozenset())
    if allocated not in (8, 16) or photometric not in kinds:
        raise UnsupportedImageType(
            "Only DICOM images of 8 or 16 bits, in greyscale (MONOCHROME1, MONOCHROME2) or RGB, are read. "
            "Export the film as one of these, or as PNG, and send that."
        )
    if not 1 <= stored <= allocated or planar not in (0, 1):
        contradiction("its bits stored or planar configuration are not possible")
    if values.integer("HighBit") not in (None, stored - 1):
        raise UnsupportedImageType(f"The bits of this DICOM image are not stored from the lowest one up. {CONVERT}")
    if samples == 3 and (signed or stored < allocated or (allocated == 16 and photometric != "RGB")):
        raise UnsupportedImageType(f"This kind of colour DICOM cannot be read here. {CONVERT}")
    rows, columns = values.integer("Rows") or 0, values.integer("Columns") or 0
    return Layout(rows, columns, samples, photometric, planar, allocated, stored, int(signed))


# ── Pixels ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _decode_native(data: bytes, syntax: str, layout: Layout, vr: str) -> StoredPixels:
    """Read plain pixels, after their length has been held against the header (Part 5, 8.1.1)."""
    expected = layout.rows * layout.columns * layout.samples_per_pixel * layout.bits_allocated // 8
    if layout.photometric_interpretation == "YBR_FULL_422":
        expected = expected * 2 // 3
    if len(data) not in (expected, expected + expected % 2):
        contradiction("its rows and columns do not give the length of its pixels")
    return _decode(data, syntax, layout, pixel_keyword="PixelData", pixel_vr=vr)


def _join_fragments(data: bytes) -> bytes:
    """Return the frame in encapsulated pixel data (Part 5, A.4), whose first item has four bytes a frame, or none."""
    from pydicom.encaps import get_frame

    if int.from_bytes(data[4:8], "little") > 4:
        raise _several_frames()
    with refused_as_damaged():
        return get_frame(BoundedStream(data), 0, number_of_frames=1)


def _decode_compressed(frame: bytes, syntax: str, layout: Layout) -> StoredPixels:
    """Decompress, after the size that the codestream states has been held against the header."""
    from pydicom.encaps import encapsulate

    if syntax in JPEG_2000:  # may stand in a JP2 file, which DICOM forbids but some software writes
        frame = frame[max(0, frame.find(JPEG_2000_START)) :]
    if not frame:
        raise UndecodableImage(DAMAGED)
    if syntax != RLE_LOSSLESS:  # which states no size
        _require_same_size(frame, syntax, layout)
    if syntax in JPEG_LOSSY:
        frame, _ = plain_jpeg(frame)
    return _decode(encapsulate([frame], has_bot=False), syntax, layout, decoding_plugin=_decoders(syntax)[0])


def _require_same_size(frame: bytes, syntax: str, layout: Layout) -> None:
    found = jpeg_2000_frame(frame) if syntax in JPEG_2000 else jpeg_frame(frame)
    if (found.height, found.width, found.components) != (layout.rows, layout.columns, layout.samples_per_pixel):
        contradiction("its rows, columns or samples are not those of the compressed image")
    if found.precision > layout.bits_allocated:
        contradiction("its bits allocated are fewer than those of the compressed image")
    if syntax in JPEG_LS and not frame.rstrip(b"\0").endswith(END_OF_IMAGE):
        raise UndecodableImage(DAMAGED)  # CharLS looks for seconds for the end of a stream that lacks its marker
    if syntax in JPEG_LOSSY and found.precision != 8:  # no decoder under a permissive licence
        raise UnsupportedImageType(f"{_syntax_name(syntax)} of {found.precision} bits cannot be read here. {CONVERT}")


def _decode(data: bytes, syntax: str, layout: Layout, **options: Any) -> StoredPixels:
    """Let pydicom decode and mask unused bits, and turn YBR into RGB."""
    options |= asdict(layout) | {"number_of_frames": 1}
    kind = np.dtype(f"{'ui'[layout.pixel_representation]}{layout.bits_allocated // 8}")
    shape = (layout.rows, layout.columns, layout.samples_per_pixel)[: 2 if layout.samples_per_pixel == 1 else 3]
    trusted = syntax in NATIVE or (
        layout.samples_per_pixel == 1
        and options["decoding_plugin"] in TRUSTED_DECODERS
        # whose tiles and precincts can ask for gigabytes on a few bytes
        and syntax not in JPEG_2000
    )
    with refused_as_damaged():
        if not trusted:
            decoded = decode_elsewhere(data, syntax, options, math.prod(shape) * kind.itemsize)
            return np.frombuffer(decoded, kind).reshape(shape)
        pixels = decode_here(data, syntax, options)
    if pixels.shape != shape or pixels.dtype.newbyteorder("=") != kind:
        raise UndecodableImage(DAMAGED)
    return np.ascontiguousarray(pixels, kind)


# ── Values of the header ─────────────────────────────────────────────────────────────────────────────────────────────


def _signed(values: Values) -> bool:
    return values.integer("PixelRepresentation") == 1


def _code(text: str) -> str | None:
    """Reduce a code string to the characters that one may have; headers are written by strangers."""
    return re.sub(r"[^A-Z0-9 _-]", "", text.upper())[:MAX_CODE_LENGTH].strip() or None


def _age(text: str) -> float | None:
    """Read an age string (AS), such as 056Y, 018M, 002W or 003D; 000Y is what anonymisers write for none."""
    match = re.fullmatch(r"([0-9]{1,3})([YMWD])", text.upper())
    if match is None or (int(match[1]) == 0 and match[2] == "Y"):
        return None
    years = int(match[1]) * YEARS[match[2]]
    return years if years <= MAX_AGE_YEARS else None


def _spacing(texts: list[str]) -> tuple[float, float] | None:
    numbers = [number(text) for text in texts]
    if len(numbers) != 2 or not all(0 < number < math.inf for number in numbers):
        return None
    return numbers[0], numbers[1]


def _padding(values: Values) -> tuple[int, int] | None:
    """Read the range of stored values that are no image (Part 3, C.7.5.1.1.2)."""
    value = values.integer("PixelPaddingValue", signed=_signed(values))
    limit = values.integer("PixelPaddingRangeLimit", signed=_signed(values))
    if value is None:
        return None
    return (value, value) if limit is None else (min(value, limit), max(value, limit))


# ── What pydicom's processing reads, made of checked values ──────────────────────────────────────────────────────────


def _dataset(**elements: Any) -> "Dataset":
    from pydicom.dataset import Dataset
    from pydicom.valuerep import DSfloat

    made = Dataset()
    for keyword, value in elements.items():  # a decimal string of more than 16 characters would be warned of
        setattr(made, keyword, DSfloat(value, auto_format=True) if isinstance(value, float) else value)
    return made


def _rescale(values: Values) -> "Dataset":
    """Read slope and intercept; wrong ones would turn or shift the greyscale: they are refused rather than dropped."""
    slope, intercept = number(values.text("RescaleSlope") or "1"), number(values.text("RescaleIntercept") or "0")
    if not 1 / MAX_MAGNITUDE <= abs(slope) <= MAX_MAGNITUDE or not abs(intercept) <= MAX_MAGNITUDE:
        contradiction("its rescale slope or intercept is not usable")
    return _dataset(RescaleSlope=slope, RescaleIntercept=intercept)


def _window(values: Values) -> "Dataset | None":
    """Read the first window; one whose width the standard does not allow is passed over."""
    center, width = number(values.text("WindowCenter")), number(values.text("WindowWidth"))
    function = values.text("VOILUTFunction") or "LINEAR"
    least = LEAST_WIDTHS.get(function, math.inf)
    if not abs(center) <= MAX_MAGNITUDE or not least < width <= MAX_MAGNITUDE:
        return None
    # pydicom stretches a window to the range of the stored values: any will do, as the scale that follows removes it.
    # It gets no rescale slope, as it would turn the greyscale once more for a negative one.
    stretch = {"PhotometricInterpretation": "MONOCHROME2", "BitsStored": 16, "PixelRepresentation": 0}
    return _dataset(WindowCenter=center, WindowWidth=width, VOILUTFunction=function, **stretch)


def _lookup_table(values: Values, sequence: str) -> "Dataset | None":
    """Read a modality or VOI LUT, which have the same form (Part 3, C.11.1.1.1), as a modality LUT of 16 bits."""
    item = values.first_item(sequence)
    if item is None or len(item.integers("LUTDescriptor")) != 3 or not item.raw("LUTData"):
        return None
    vr, data = item.get("LUTDescriptor").VR, item.raw("LUTData")
    first = item.integers("LUTDescriptor", signed=vr == "SS" or (vr != "US" and _signed(values)))[1]
    count = item.integers("LUTDescriptor")[0]  # 0 stands for 65,536
    size = count or 1 << 16
    if len(data) < size:
        contradiction("a lookup table is shorter than it says")
    entries = item.array(data, "u2" if len(data) >= 2 * size else "u1", size).tolist()
    return _dataset(ModalityLUTSequence=[_dataset(LUTDescriptor=[count, first, 16], LUTData=entries)])
