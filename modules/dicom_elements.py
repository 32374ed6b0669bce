"""The elements of a DICOM file, found without reading more than is asked for.

pydicom's reader inflates, recurses, and repeats odd values in warnings and logs, all of it under process-wide settings.
This one steps over every element that is not a `Tag`: a patient's name, dates and identifiers are never read. Nesting
is followed in a loop, and the number of steps is bounded.
"""

import re
import struct
from dataclasses import dataclass
from enum import IntEnum

from modules.errors import UndecodableImage

DAMAGED = "The DICOM file is damaged or incomplete. Export it again and send the new copy."
PREFIX, PREFIX_AT = b"DICM", 128  # Part 10, section 7.1

MAX_ELEMENTS = 100_000  # far above any radiograph
MAX_NESTING = 64
MAX_TEXT_BYTES = 1024

# Part 5, tables 7.1-1 and 7.1-2: value representations whose length has 32 or 16 bits.
LONG_VR = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
SHORT_VR = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
DELIMITERS = 0xFFFE  # group of items and delimitation items, which have no value representation
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
UNDEFINED_LENGTH = 0xFFFFFFFF

DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE | re.ASCII)


class Tag(IntEnum):
    """Every element that is ever read, by its keyword in Part 6."""

    TRANSFER_SYNTAX_UID = 0x00020010
    MODALITY = 0x00080060
    PATIENT_AGE = 0x00101010
    BODY_PART_EXAMINED = 0x00180015
    IMAGER_PIXEL_SPACING = 0x00181164
    VIEW_POSITION = 0x00185101
    SAMPLES_PER_PIXEL = 0x00280002
    PHOTOMETRIC_INTERPRETATION = 0x00280004
    PLANAR_CONFIGURATION = 0x00280006
    NUMBER_OF_FRAMES = 0x00280008
    ROWS = 0x00280010
    COLUMNS = 0x00280011
    PIXEL_SPACING = 0x00280030
    BITS_ALLOCATED = 0x00280100
    BITS_STORED = 0x00280101
    HIGH_BIT = 0x00280102
    PIXEL_REPRESENTATION = 0x00280103
    PIXEL_PADDING_VALUE = 0x00280120
    PIXEL_PADDING_RANGE_LIMIT = 0x00280121
    WINDOW_CENTER = 0x00281050
    WINDOW_WIDTH = 0x00281051
    RESCALE_INTERCEPT = 0x00281052
    RESCALE_SLOPE = 0x00281053
    VOI_LUT_FUNCTION = 0x00281056
    MODALITY_LUT_SEQUENCE = 0x00283000
    LUT_DESCRIPTOR = 0x00283002
    LUT_DATA = 0x00283006
    VOI_LUT_SEQUENCE = 0x00283010
    PIXEL_DATA = 0x7FE00010


WANTED = frozenset(Tag)


@dataclass(frozen=True)
class Element:
    """Where the value of an element lies in the file; `vr` is empty in implicit VR."""

    tag: int
    vr: bytes
    start: int
    length: int


class Walker:
    """Steps from element to element (Part 5, section 7.1), within a budget for the whole file."""

    def __init__(self, data: bytes, *, explicit: bool, little_endian: bool) -> None:
        self.data = data
        self.explicit = explicit
        self.order = "<" if little_endian else ">"
        self._left = MAX_ELEMENTS

    def element(self, position: int, end: int) -> Element:
        """Read the tag and length at `position`; the value has to lie before `end`."""
        self._left -= 1
        if self._left < 0 or position + 8 > end:
            raise UndecodableImage(DAMAGED)
        group, number = struct.unpack_from(self.order + "HH", self.data, position)
        vr = self.data[position + 4 : position + 6] if self.explicit and group != DELIMITERS else b""
        if vr in SHORT_VR:
            start, length = position + 8, self._integer("H", position + 6)
        elif vr in LONG_VR and position + 12 <= end:
            start, length = position + 12, self._integer("L", position + 8)
        else:  # implicit VR, which some writers also use within explicit files
            vr, start, length = b"", position + 8, self._integer("L", position + 4)
        if length != UNDEFINED_LENGTH and start + length > end:
            raise UndecodableImage(DAMAGED)
        return Element(group << 16 | number, vr, start, length)

    def after(self, element: Element, end: int) -> int:
        """Position behind an element; one of undefined length ends at the delimiter of its own level."""
        if element.length != UNDEFINED_LENGTH:
            return element.start + element.length
        position, open_levels = element.start, 1
        while open_levels:
            if open_levels > MAX_NESTING:
                raise UndecodableImage(DAMAGED)
            inner = self.element(position, end)
            if inner.tag in (ITEM_END, SEQUENCE_END):
                open_levels -= 1
                position = inner.start
            elif inner.length == UNDEFINED_LENGTH:
                open_levels += 1
                position = inner.start
            else:
                position = inner.start + inner.length
        return position

    def data_set(self, start: int, end: int) -> "DataSet":
        """Find the wanted elements from `start` up to the pixel data, the end of the item or `end`."""
        found: dict[int, Element] = {}
        position = start
        while position < end:
            element = self.element(position, end)
            if element.tag == ITEM_END:
                break
            if element.tag in WANTED:
                found.setdefault(element.tag, element)
            if element.tag == Tag.PIXEL_DATA:
                break
            position = self.after(element, end)
        return DataSet(self, found)

    def _integer(self, kind: str, position: int) -> int:
        return int(struct.unpack_from(self.order + kind, self.data, position)[0])


class DataSet:
    """The wanted elements of a file, or of an item of a sequence; values are read when they are asked for."""

    def __init__(self, walker: Walker, elements: dict[int, Element]) -> None:
        self._walker = walker
        self._elements = elements

    @property
    def byte_order(self) -> str:
        """'<' or '>', as struct and numpy write it."""
        return self._walker.order

    def get(self, tag: Tag) -> Element | None:
        """Return an element, or None."""
        return self._elements.get(tag)

    def value(self, tag: Tag) -> bytes:
        """Return the bytes of an element of defined length; none when it is missing."""
        element = self._elements.get(tag)
        if element is None or element.length == UNDEFINED_LENGTH:
            return b""
        return self._walker.data[element.start : element.start + element.length]

    def texts(self, tag: Tag) -> tuple[str, ...]:
        """Return the values of a string element (CS, AS, IS, DS, UI) without their padding."""
        value = self.value(tag)[:MAX_TEXT_BYTES].decode("ascii", "ignore").strip(" \0")
        return tuple(part.strip(" \0") for part in value.split("\\")) if value else ()

    def text(self, tag: Tag) -> str:
        """Return the first value of a string element, or an empty string."""
        return next(iter(self.texts(tag)), "")

    def decimals(self, tag: Tag) -> tuple[float, ...]:
        """Return the values of a decimal string (DS); what is no number becomes NaN."""
        return tuple(float(t) if DECIMAL.fullmatch(t) else float("nan") for t in self.texts(tag))

    def integers(self, tag: Tag, *, signed: bool = False) -> tuple[int, ...]:
        """Return the values of a 16-bit element (US, SS)."""
        value = self.value(tag)[:MAX_TEXT_BYTES]
        return struct.unpack_from(f"{self.byte_order}{len(value) // 2}{'h' if signed else 'H'}", value)

    def integer(self, tag: Tag, *, signed: bool = False) -> int | None:
        """Return the first value of a 16-bit element, or None."""
        return next(iter(self.integers(tag, signed=signed)), None)

    def first_item(self, tag: Tag) -> "DataSet | None":
        """Return the first item of a sequence (Part 5, section 7.5), or None."""
        sequence = self._elements.get(tag)
        if sequence is None or sequence.length == 0:
            return None
        end = len(self._walker.data)
        if sequence.length != UNDEFINED_LENGTH:
            end = sequence.start + sequence.length
        item = self._walker.element(sequence.start, end)
        if item.tag != ITEM:
            return None
        return self._walker.data_set(item.start, min(end, item.start + item.length))


def read_transfer_syntax(data: bytes) -> tuple[str, int]:
    """Return the transfer syntax of the file meta information (Part 10, section 7.1), and where the data set starts."""
    walker = Walker(data, explicit=True, little_endian=True)
    position, syntax = PREFIX_AT + len(PREFIX), ""
    while data[position : position + 2] == b"\x02\x00":  # group 0002
        element = walker.element(position, len(data))
        if element.tag == Tag.TRANSFER_SYNTAX_UID:
            syntax = DataSet(walker, {element.tag: element}).text(Tag.TRANSFER_SYNTAX_UID)
        position = walker.after(element, len(data))
    return syntax, position
