"""The elements of a DICOM file that describe its film, found by pydicom in bounded time and made values in silence.

pydicom repeats odd values in warnings and logs. So it gets to find elements, and to convert none: names, dates and
identifiers are stepped over, and what is wanted is read from its bytes.
"""

import io
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from modules.errors import ImageError, UndecodableImage, shortage_in

PREFIX, PREFIX_AT = b"DICM", 128  # Part 10, section 7.1
MAX_READS = 100_000  # far above any radiograph; bounds the time that a file of tiny elements takes
MAX_SHORT_BYTES = 1024  # of a value that is text or numbers
CHARACTER_SET = frozenset({b"\x08\x00\x05\x00", b"\x00\x08\x00\x05"})  # (0008,0005) in either byte order

# Every element that is ever read, beside the transfer syntax.
TRANSFER_SYNTAX_UID = 0x00020010
KEYWORDS = """
    Modality PatientAge BodyPartExamined ImagerPixelSpacing ViewPosition
    SamplesPerPixel PhotometricInterpretation PlanarConfiguration NumberOfFrames Rows Columns PixelSpacing
    BitsAllocated BitsStored HighBit PixelRepresentation PixelPaddingValue PixelPaddingRangeLimit
    WindowCenter WindowWidth RescaleIntercept RescaleSlope VOILUTFunction
    ModalityLUTSequence LUTDescriptor LUTData VOILUTSequence PixelData
"""

DAMAGED = "The DICOM file is damaged or incomplete. Export it again and send the new copy."
CONTRADICTION = "The DICOM header contradicts itself or the pixels ({}). Export the film again and send the new copy."


def is_dicom(data: bytes) -> bool:
    """Whether the prefix of Part 10 stands behind the preamble."""
    return data.startswith(PREFIX, PREFIX_AT)


def contradiction(what: str) -> NoReturn:
    """Refuse a file whose parts do not fit each other."""
    raise UndecodableImage(CONTRADICTION.format(what))


class BoundedStream(io.BytesIO):
    """A file for pydicom's reader, with a bound on what is read from it, as each element takes a read or more."""

    reads_left = MAX_READS

    def read(self, size: int | None = -1, /) -> bytes:
        """Read, and hide the heads (8 bytes) of character sets."""
        self.reads_left -= 1
        if self.reads_left < 0:
            raise UndecodableImage(DAMAGED)
        data = super().read(size)
        # pydicom looks every character set up, at any depth, and repeats an unknown one in a warning and a log. No
        # text is read here that needs one, so pydicom gets to see an element (0000,0000) in its place. Of the values
        # that are read, only a lookup table of four entries has eight bytes and might begin like such a head.
        return bytes(4) + data[4:] if size == 8 and data[:4] in CHARACTER_SET else data


@contextmanager
def refused_as_damaged() -> Iterator[None]:
    """Translate whatever pydicom and the decoders raise, RecursionError included; their texts may repeat the header."""
    try:
        yield
    except ImageError:
        raise
    except Exception as exc:
        if shortage_in(exc):
            raise
        raise UndecodableImage(DAMAGED) from None


class Values:
    """Elements of a file or an item, up to its pixels, by their keywords."""

    def __init__(self, elements: Iterable[Any], *, little_endian: bool) -> None:
        from pydicom.datadict import keyword_for_tag

        self._order = "<" if little_endian else ">"
        self._elements: dict[str, Any] = {}
        for element in elements:
            self._elements[keyword_for_tag(element.tag)] = element
            if "PixelData" in self._elements:
                break

    def get(self, keyword: str) -> Any:
        """Return a raw element, a sequence of undefined length, which pydicom has already read, or None."""
        return self._elements.get(keyword)

    def raw(self, keyword: str) -> bytes:
        """Return the bytes of an element; none of a missing one."""
        value = getattr(self.get(keyword), "value", None)
        return value if isinstance(value, bytes) else b""

    def texts(self, keyword: str) -> list[str]:
        """Return the values of a string element (CS, AS, IS, DS, UI) without their padding, at least one."""
        text = self.raw(keyword)[:MAX_SHORT_BYTES].decode("ascii", "ignore").strip(" \0")
        return [part.strip(" \0") for part in text.split("\\")]

    def text(self, keyword: str) -> str:
        """Return the first value of a string element, or an empty string."""
        return self.texts(keyword)[0]

    def integers(self, keyword: str, *, signed: bool = False) -> list[int]:
        """Return the values of a 16-bit element (US, SS)."""
        value = self.raw(keyword)[:MAX_SHORT_BYTES]
        return [int(number) for number in self.array(value, f"{'i' if signed else 'u'}2", len(value) // 2)]

    def integer(self, keyword: str, *, signed: bool = False) -> int | None:
        """Return the first value of a 16-bit element, or None."""
        return next(iter(self.integers(keyword, signed=signed)), None)

    def array(self, value: bytes, kind: str, size: int) -> npt.NDArray[Any]:
        """Read numbers in the byte order of the file."""
        return np.frombuffer(value, self._order + kind, size)

    def first_item(self, keyword: str) -> "Values | None":
        """Return the first item of a sequence, or None."""
        from pydicom.filereader import read_sequence

        with refused_as_damaged():
            element, little_endian = self.get(keyword), self._order == "<"
            items = getattr(element, "value", None)
            if isinstance(items, bytes):
                stream, implicit = BoundedStream(items), element.is_implicit_VR
                items = read_sequence(stream, implicit, little_endian, len(items), "iso8859")
            return Values(items[0].elements(), little_endian=little_endian) if items else None


def read_transfer_syntax(stream: BoundedStream) -> str:
    """Read the file meta information (Part 10, section 7.1), and leave the stream where the data set starts."""
    from pydicom.filereader import data_element_generator

    stream.seek(PREFIX_AT + len(PREFIX))
    with refused_as_damaged():
        wanted: list[Any] = [TRANSFER_SYNTAX_UID]
        meta = data_element_generator(stream, False, True, lambda tag, *_: tag >> 16 != 2, specific_tags=wanted)
        return Values(meta, little_endian=True).text("TransferSyntaxUID")


def read_values(stream: BoundedStream, *, implicit: bool, little_endian: bool) -> Values:
    """Read the wanted elements of the data set, up to the pixels."""
    from pydicom.filereader import data_element_generator
    from pydicom.tag import Tag

    with refused_as_damaged():
        wanted = [Tag(keyword) for keyword in KEYWORDS.split()]
        elements = data_element_generator(stream, implicit, little_endian, specific_tags=[*wanted])
        values = Values(elements, little_endian=little_endian)
    if stream.tell() > stream.seek(0, io.SEEK_END):  # what was stepped over ends beyond the end
        raise UndecodableImage(DAMAGED)
    return values


def number(text: str) -> float:
    """Read a decimal string (DS); what is no number becomes NaN."""
    try:
        return float(text)
    except ValueError:
        return math.nan
