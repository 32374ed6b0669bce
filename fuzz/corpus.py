"""What mutation starts from: a small file, made here, for each format, mode and transfer syntax, and known attacks."""

import io
import struct
import zipfile
import zlib
from typing import Any

import numpy as np
from PIL import Image

from tests import image_files as f

CODED = tuple(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70, 80, 81, 90, 91, 201, 202, 203))
GREY = np.kron(f.RAMP, np.ones((8, 8), np.uint8))
COLOUR = np.kron(f.COLOURS, np.ones((16, 16, 1), np.uint8))


def seeds() -> dict[str, bytes]:
    """Return files by name: the first part of a name says how it is mutated (png, jpeg, dicom, zip)."""
    return {**_rasters(), **_dicoms(), **_archives(), **attacks()}


def _rasters() -> dict[str, bytes]:
    images = {mode: Image.fromarray(GREY).convert(mode) for mode in ("1", "L", "P", "LA", "RGB", "RGBA")}
    made = {f"png {mode}": f.pillow(image) for mode, image in images.items()}
    made["png 16"] = f.pillow(Image.fromarray(f.SHADES), exif=f.exif(6))
    made["png key"] = f.pillow(Image.fromarray(COLOUR), transparency=(255, 0, 0))
    made |= {f"jpeg {mode}": f.pillow(Image.fromarray(GREY).convert(mode), "JPEG") for mode in ("L", "RGB", "CMYK")}
    made["jpeg progressive"] = f.pillow(Image.fromarray(COLOUR), "JPEG", progressive=True, exif=f.exif(8))
    pages = [Image.new("RGB", (16, 16), shade) for shade in ("white", "black")]
    made["jpeg mpo"] = f.pillow(pages[0], "MPO", save_all=True, append_images=pages[1:])
    return made


def _dicoms() -> dict[str, bytes]:
    lut: dict[int, Any] = {f.VOI_LUT: ("SQ", [f.lut(0, [1, 2, 3])]), f.MODALITY_LUT: ("SQ", [f.lut(-2, [3, 2, 1])])}
    made = {f"dicom {syntax}": f.dicom(f.SHADES, f.WINDOW, syntax=syntax) for syntax in (f.IMPLICIT, f.EXPLICIT)}
    made["dicom big endian"] = f.dicom(f.SHADES, f.WINDOW, syntax=f.BIG_ENDIAN)
    made["dicom luts"] = f.dicom(f.SHADES.view(np.int16), lut | {f.PADDING: ("US", 0), f.AGE: ("AS", "056Y")})
    for photometric in ("RGB", "YBR_FULL"):
        made[f"dicom {photometric}"] = f.dicom(COLOUR, {f.PHOTOMETRIC: ("CS", photometric)})
    half = COLOUR[:, :, :2].tobytes()
    made["dicom 422"] = f.dicom(COLOUR, {f.PHOTOMETRIC: ("CS", "YBR_FULL_422"), f.PIXEL_DATA: ("OB", half)})
    for name, stored in (("grey", GREY), ("16", f.SHADES), ("colour", COLOUR)):
        made[f"dicom rle {name}"] = _compressed(stored, f.RLE, f.rle(stored))
    for syntax in CODED:
        for name, stored in (("grey", GREY), ("16", f.SHADES), ("colour", COLOUR)):
            stream = _stream(syntax, stored)
            if stream:
                made[f"dicom {syntax} {name}"] = _compressed(stored, syntax, stream)
    return made


def _compressed(stored: Any, syntax: str, stream: bytes) -> bytes:
    changes: f.Changes = {f.PHOTOMETRIC: ("CS", "YBR_FULL_422")} if stored.ndim == 3 and syntax in CODED[:2] else {}
    return f.dicom(stored, changes, syntax=syntax, compressed=f.fragments(stream))


def _stream(syntax: str, stored: Any) -> bytes:
    kind = CODED.index(syntax)
    if kind < 2:
        return f.pillow(Image.fromarray(stored), "JPEG") if stored.dtype == np.uint8 else b""
    if kind < 4:  # no encoder of lossless JPEG is permissively licensed: another frame header, and what follows it
        return f.pillow(Image.fromarray(GREY), "JPEG").replace(b"\xff\xc0", b"\xff\xc3") if stored is GREY else b""
    if kind < 6:
        return f.jpeg_ls(stored) if stored.ndim == 2 else b""
    return f.jpeg_2000(stored)


def _archives() -> dict[str, bytes]:
    made = {}
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", method) as archive:
            for name in ("film.png", "a/film.dcm", "../up.jpg", "inner.zip"):
                archive.writestr(zipfile.ZipInfo(name), f.PNG * 3, method)
        made[f"zip {method}"] = out.getvalue()
    return made


# ── Attacks ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def png_bomb(width: int, height: int, colour_type: int, channels: int, bits: int = 8) -> bytes:
    """A PNG of nothing but zeros, a thousandth of its pixels in size."""
    row = 1 + width * channels * bits // 8
    header = f.chunk(b"IHDR", struct.pack(">LLBBBBB", width, height, bits, colour_type, 0, 0, 0))
    palette = f.chunk(b"PLTE", bytes(768)) if colour_type == 3 else b""
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(row)) for _ in range(height)) + packer.flush()
    return f.PNG[:8] + header + palette + f.chunk(b"IDAT", packed) + f.chunk(b"IEND")


def jpeg_scans(scans: int, side: int) -> bytes:
    """A progressive JPEG whose last scan stands there many times: each one goes over the whole image."""
    whole = f.pillow(Image.new("L", (side, side)), "JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    return whole[:last] + whole[last:-2] * scans + whole[-2:]


def exif_array(count: int) -> bytes:
    """A TIFF header whose orientation is an array of `count` numbers, which a reader makes objects of."""
    entry = struct.pack("<HHLL", 0x0112, 3, count, 26)
    return b"II*\0" + struct.pack("<LH", 8, 1) + entry + bytes(4) + b"\6\0" * count


def with_segments(jpeg: bytes, marker: int, *bodies: bytes) -> bytes:
    """A JPEG with segments behind its first two bytes."""
    made = b"".join(struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body for body in bodies)
    return jpeg[:2] + made + jpeg[2:]


def zip_of(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip archive of members by name."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return out.getvalue()


def zip_overlapping(data: bytes, copies: int) -> bytes:
    """A zip archive in whose directory one member stands many times, under different names of one length."""
    whole = zip_of({"0000.png": data})
    entry = whole[whole.index(b"PK\1\2") : whole.index(b"PK\5\6")]
    directory = b"".join(entry.replace(b"0000.png", b"%04d.png" % i) for i in range(copies))
    start = whole.index(b"PK\1\2")
    end = struct.pack("<4sHHHHLLH", b"PK\5\6", 0, 0, copies, copies, len(directory), start, 0)
    return whole[:start] + directory + end


def attacks() -> dict[str, bytes]:
    """Return known attacks small enough to go on from."""
    nested = f.element(0x00081140, "SQ", b"", length=f.UNDEFINED) + struct.pack("<HHL", 0xFFFE, 0xE000, f.UNDEFINED)
    whole, start = f.dicom(f.SHADES), len(f.part_10(b""))
    zeros = np.zeros((8, 8), np.uint8)
    sides = {f.ROWS: ("US", 300), f.COLUMNS: ("US", 300)}
    bomb = f.jpeg_2000_precinct_bomb(300)
    return {
        "png bomb": png_bomb(500, 500, 6, 4),
        "png exif": f.PNG[:33] + f.chunk(b"eXIf", exif_array(500)) + f.PNG[33:],
        "png profile": f.PNG[:33] + f.chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(2_000_000), 9)) + f.PNG[33:],
        "png texts": f.PNG[:33] + f.chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(900_000), 9)) * 9 + f.PNG[33:],
        "jpeg scans": jpeg_scans(40, 200),
        "jpeg exif": with_segments(f.JPEG, 0xE1, *[b"Exif\0\0" + exif_array(50)] * 5),
        "jpeg profile": with_segments(f.JPEG, 0xE2, *(b"ICC_PROFILE\0" + bytes([i, 9]) + bytes(99) for i in range(9))),
        "dicom deep": whole[:start] + nested * 60 + whole[start:],
        "dicom precincts": f.dicom(zeros, sides, syntax=f.JPEG_2000, compressed=f.fragments(bomb)),
        "dicom polyglot": b"MM\0*" + whole[4:] + f.PNG,
        "zip bomb": zip_of({"film.png": bytes(4_500_000)}),
        "zip overlap": zip_overlapping(f.PNG, 20),
    }
