"""Images: what is accepted becomes the right numbers, what is not is refused by the right name, and nothing leaks."""

import base64
import io
import logging
import struct
import subprocess
import sys
import time
import tracemalloc
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from modules import errors
from modules.images import ImageLimits, display_pixels, encode_png, open_image, to_png
from modules.records import ImageHeader, Radiograph
from tests import image_files as f

RAMP = np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6)
SHADES = np.linspace(0, 4095, 64 * 48).astype(np.uint16).reshape(64, 48)  # 12 of 16 bits
COLOURS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [90, 90, 90]]], np.uint8)
LUMA = np.array([[76, 150], [29, 90]]) / 255  # ITU-R BT.601, rounded to 8 bits

# Shipped inside the wheel of pydicom; each must decode like pydicom decodes it.
PYDICOM_MONOCHROME = (
    "693_J2KI.dcm",
    "CT_small.dcm",
    "examples_overlay.dcm",
    "J2K_pixelrep_mismatch.dcm",
    "JPEG2000.dcm",
    "JPEGLSNearLossless_08.dcm",
    "JPEGLSNearLossless_16.dcm",
    "MR_small.dcm",
    "MR_small_bigendian.dcm",
    "MR_small_implicit.dcm",
    "MR_small_jp2klossless.dcm",
    "MR_small_jpeg_ls_lossless.dcm",
    "MR_small_RLE.dcm",
)
PYDICOM_COLOUR = (
    "ExplVR_BigEnd.dcm",
    "SC_rgb_dcmtk_+eb+cr.dcm",
    "SC_rgb_gdcm_KY.dcm",
    "SC_rgb_jls_lossy_sample.dcm",
    "SC_rgb_jpeg_dcmtk.dcm",
    "SC_rgb_jpeg_gdcm.dcm",
    "SC_rgb_rle.dcm",
    "SC_rgb_rle_16bit.dcm",
    "SC_rgb_small_odd.dcm",
    "SC_ybr_full_422_uncompressed.dcm",
)
PYDICOM_REFUSED = {
    "badVR.dcm": errors.UndecodableImage,
    "examples_palette.dcm": errors.UnsupportedImageType,
    "examples_ybr_color.dcm": errors.MultipleFrames,
    "image_dfl.dcm": errors.UnsupportedImageType,
    "JPEG2000-embedded-sequence-delimiter.dcm": errors.UndecodableImage,
    "JPGExtended.dcm": errors.UnsupportedImageType,
    "liver_1frame.dcm": errors.UnsupportedImageType,
    "meta_missing_tsyntax.dcm": errors.UndecodableImage,
    "MR_truncated.dcm": errors.UndecodableImage,
    "no_meta.dcm": errors.UnsupportedImageType,
    "reportsi.dcm": errors.UnsupportedImageType,
    "rtdose_1frame.dcm": errors.UnsupportedImageType,
}
FILMS = Path(__file__).parents[2] / "shared" / "data"


def decode(data: bytes, **options: Any) -> Radiograph:
    return open_image(data).decode(**options)


def pydicom_file(name: str) -> bytes:
    from pydicom.data import get_testdata_file

    path = get_testdata_file(name, download=False)
    assert isinstance(path, str), f"{name} is not shipped with this pydicom"
    return Path(path).read_bytes()


def refusal(data: bytes, limits: ImageLimits | None = None) -> errors.ImageError:
    """What opening and decoding raises; the message has to be a sentence that says what to do."""
    with pytest.raises(errors.ImageError) as caught:
        open_image(data, limits or ImageLimits()).decode()
    message = str(caught.value)
    assert message.endswith(".")
    assert any(word in message for word in ("Send", "send", "Save", "Export"))
    assert "Error" not in message and "Traceback" not in message and ".py" not in message
    return caught.value


def own_range(values: Any) -> Any:
    values = np.asarray(values, np.float64)
    return (values - values.min()) / (values.max() - values.min())


# ── PNG and JPEG: modes ──────────────────────────────────────────────────────────────────────────────────────────────


def test_greyscale_png_is_divided_by_255() -> None:
    film = decode(f.pillow(Image.fromarray(RAMP)))
    assert film.header == ImageHeader("png", 6, 4)
    assert film.pixels.dtype == np.float32
    np.testing.assert_allclose(film.pixels, RAMP / 255, atol=1e-7)
    assert film.colourfulness == 0.0
    assert not film.inverted_by_request


def test_bilevel_png() -> None:
    bits = RAMP > 100
    film = decode(f.pillow(Image.fromarray(bits)))
    np.testing.assert_array_equal(film.pixels, bits.astype(np.float32))


@pytest.mark.parametrize("depth", [2, 4])
def test_low_depth_png_spans_the_whole_range(depth: int) -> None:
    top = 2**depth - 1
    header = f.chunk(b"IHDR", struct.pack(">LLBBBBB", 2, 1, depth, 0, 0, 0, 0))
    row = bytes([0, 1 << (8 - 2 * depth) | top << (8 - depth)])  # filter 0, then the values top and 1
    data = b"\x89PNG\r\n\x1a\n" + header + f.chunk(b"IDAT", zlib.compress(row)) + f.chunk(b"IEND")
    np.testing.assert_allclose(decode(data).pixels, [[1.0, 1 / top]], atol=1e-6)


def test_16_bit_png_is_scaled_by_its_own_range() -> None:
    film = decode(f.pillow(Image.fromarray(SHADES + 1000)))
    np.testing.assert_allclose(film.pixels, own_range(SHADES), atol=1e-6)
    assert (film.pixels.min(), film.pixels.max()) == (0.0, 1.0)


def test_flat_16_bit_png_is_black() -> None:
    assert not decode(f.pillow(Image.fromarray(np.full((3, 5), 777, np.uint16)))).pixels.any()


def test_rgb_png_becomes_luma_and_reports_its_colour() -> None:
    film = decode(f.pillow(Image.fromarray(COLOURS)))
    np.testing.assert_allclose(film.pixels, LUMA, atol=1e-6)
    assert film.colourfulness == pytest.approx(0.75)


def test_grey_stored_as_rgb_keeps_its_values() -> None:
    film = decode(f.pillow(Image.fromarray(np.stack([RAMP] * 3, axis=-1))))
    np.testing.assert_allclose(film.pixels, RAMP / 255, atol=1e-7)
    assert film.colourfulness == 0.0


def test_palette_png() -> None:
    image = Image.new("P", (2, 2))
    image.putdata([0, 1, 2, 3])
    image.putpalette(COLOURS.reshape(-1).tolist())
    film = decode(f.pillow(image))
    np.testing.assert_allclose(film.pixels, LUMA, atol=1e-6)
    assert film.colourfulness == pytest.approx(0.75)


@pytest.mark.parametrize("transparency", [1, bytes([255, 0, 255, 255])])
def test_transparent_palette_entry_becomes_black(transparency: Any) -> None:
    image = Image.new("P", (2, 2))
    image.putdata([0, 1, 2, 3])
    image.putpalette(COLOURS.reshape(-1).tolist())
    pixels = decode(f.pillow(image, transparency=transparency)).pixels
    np.testing.assert_allclose(pixels, [[LUMA[0, 0], 0], LUMA[1]], atol=1e-6)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_alpha_is_composited_over_black(mode: str) -> None:
    image = Image.new(mode, (3, 1))
    grey = (200,) if mode == "LA" else (200, 200, 200)
    for x, alpha in enumerate((255, 128, 0)):
        image.putpixel((x, 0), (*grey, alpha))
    film = decode(f.pillow(image))
    np.testing.assert_allclose(film.pixels, [[200 / 255, 200 * 128 / 255**2, 0]], atol=0.5 / 255)
    assert film.colourfulness == 0.0


@pytest.mark.parametrize(("mode", "key"), [("L", 200), ("RGB", (200, 200, 200))])
def test_colour_key_becomes_black(mode: str, key: Any) -> None:
    image = Image.new(mode, (2, 1), key)
    image.putpixel((1, 0), 100 if mode == "L" else (100, 100, 100))
    np.testing.assert_allclose(decode(f.pillow(image, transparency=key)).pixels, [[0, 100 / 255]], atol=1e-6)


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "CMYK", "YCbCr"])
def test_jpeg_modes(mode: str) -> None:
    grey = Image.fromarray(np.repeat(np.repeat(RAMP, 8, axis=0), 8, axis=1))
    image = (grey if mode != "CMYK" else grey.convert("RGB")).convert(mode)
    film = decode(f.pillow(image, "JPEG", quality=95))
    expected = np.asarray(image.convert("L"), np.float32) / 255
    np.testing.assert_allclose(film.pixels, expected, atol=0.5 if mode == "1" else 4 / 255)
    assert abs(float(film.pixels.mean() - expected.mean())) < 0.01
    assert film.header == ImageHeader("jpeg", 48, 32)
    assert film.colourfulness < 0.01


def test_colour_jpeg_reports_its_colour() -> None:
    film = decode(f.pillow(Image.new("RGB", (64, 64), (200, 50, 100)), "JPEG", quality=95))
    assert film.colourfulness == pytest.approx(150 / 255, abs=0.02)


def test_progressive_jpeg() -> None:
    film = decode(f.pillow(Image.new("L", (32, 16), 128), "JPEG", progressive=True))
    np.testing.assert_allclose(film.pixels, 128 / 255, atol=2 / 255)


def test_photograph_of_a_phone_gives_its_first_picture() -> None:
    first, second = Image.new("RGB", (32, 16), "white"), Image.new("RGB", (32, 16), "black")
    data = f.pillow(first, "MPO", save_all=True, append_images=[second])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    film = decode(data)
    assert film.header.format == "jpeg"
    assert film.pixels.min() > 0.99


# ── Orientation ──────────────────────────────────────────────────────────────────────────────────────────────────────

# How a viewer is to turn the stored [[1, 2, 3], [4, 5, 6]], from the table of EXIF 2.32, 4.6.4.
UPRIGHT = {
    1: [[1, 2, 3], [4, 5, 6]],
    2: [[3, 2, 1], [6, 5, 4]],
    3: [[6, 5, 4], [3, 2, 1]],
    4: [[4, 5, 6], [1, 2, 3]],
    5: [[1, 4], [2, 5], [3, 6]],
    6: [[4, 1], [5, 2], [6, 3]],
    7: [[6, 3], [5, 2], [4, 1]],
    8: [[3, 6], [2, 5], [1, 4]],
    9: [[1, 2, 3], [4, 5, 6]],  # not defined: left alone
}


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[0x0112] = orientation
    return made


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_orientation_of_a_png(orientation: int, dtype: Any) -> None:
    stored = np.array([[1, 2, 3], [4, 5, 6]], dtype)
    file = open_image(f.pillow(Image.fromarray(stored), exif=exif(orientation)))
    expected = np.array(UPRIGHT[orientation])
    assert (file.header.height, file.header.width) == expected.shape
    scaled = expected / 255 if dtype is np.uint8 else own_range(expected)
    np.testing.assert_allclose(file.decode().pixels, scaled, atol=1e-6)


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_orientation_of_a_jpeg(orientation: int) -> None:
    stored = np.kron(np.array([[1, 2, 3], [4, 5, 6]], np.uint8) * 40, np.ones((16, 16), np.uint8))
    file = open_image(f.pillow(Image.fromarray(stored), "JPEG", quality=95, exif=exif(orientation)))
    expected = np.kron(np.array(UPRIGHT[orientation]) * 40, np.ones((16, 16)))
    assert (file.header.height, file.header.width) == expected.shape
    np.testing.assert_allclose(file.decode().pixels, expected / 255, atol=4 / 255)


# ── DICOM: from stored values to a film ──────────────────────────────────────────────────────────────────────────────


def test_without_a_window_the_extremes_are_clipped() -> None:
    stored = np.full((100, 100), 2000, np.uint16)
    stored[:, :50] = 1000
    stored[0, 0], stored[0, 99] = 0, 65535  # one dead and one saturated pixel must not set the contrast
    pixels = decode(f.dicom(stored)).pixels
    assert (pixels[50, 0], pixels[50, 99]) == (0.0, 1.0)
    assert (pixels[0, 0], pixels[0, 99]) == (0.0, 1.0)


def test_a_window_is_applied() -> None:
    stored = np.arange(0, 100, dtype=np.uint16).reshape(10, 10)
    window = {f.CENTER: ("DS", "50"), f.WIDTH: ("DS", "21")}
    pixels = decode(f.dicom(stored, window)).pixels.ravel()
    np.testing.assert_allclose(pixels, own_range(np.clip(np.arange(100), 39.5, 59.5)), atol=1e-6)


def test_the_first_of_several_windows_is_used() -> None:
    two = {f.CENTER: ("DS", "1000\\3000"), f.WIDTH: ("DS", "500\\100 ")}
    one = {f.CENTER: ("DS", "1000"), f.WIDTH: ("DS", "500 ")}
    np.testing.assert_array_equal(decode(f.dicom(SHADES, two)).pixels, decode(f.dicom(SHADES, one)).pixels)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("signed", [False, True])
def test_window_functions_agree_with_pydicom(function: str, signed: bool) -> None:
    stored = SHADES.astype(np.int16) - 2000 if signed else SHADES
    changes = {
        f.CENTER: ("DS", "1500.5"),
        f.WIDTH: ("DS", "1201"),
        f.WINDOW_FUNCTION: ("CS", function),
        f.SLOPE: ("DS", "1.5"),
        f.INTERCEPT: ("DS", "-100"),
    }
    assert_like_pydicom(f.dicom(stored, changes))


@pytest.mark.parametrize(
    ("center", "width"),
    [("x", "100"), ("100", "0"), ("100", "-5"), ("1e999", "10"), ("60000", "10"), ("", "10"), ("5", "")],
)
def test_a_window_that_shows_nothing_is_treated_as_missing(center: str, width: str) -> None:
    pixels = decode(f.dicom(SHADES, {f.CENTER: ("DS", center), f.WIDTH: ("DS", width)})).pixels
    np.testing.assert_array_equal(pixels, decode(f.dicom(SHADES)).pixels)


def test_rescale_comes_before_the_window() -> None:
    stored = np.arange(100, dtype=np.uint16).reshape(10, 10)
    changes = {f.SLOPE: ("DS", "2"), f.INTERCEPT: ("DS", "-1000"), f.CENTER: ("DS", "-900"), f.WIDTH: ("DS", "41")}
    expected = own_range(np.clip(2.0 * np.arange(100) - 1000, -920.5, -880.5))
    np.testing.assert_allclose(decode(f.dicom(stored, changes)).pixels.ravel(), expected, atol=1e-6)


def test_a_negative_slope_turns_the_greyscale() -> None:
    turned = decode(f.dicom(SHADES, {f.SLOPE: ("DS", "-1"), f.INTERCEPT: ("DS", "4095")})).pixels
    np.testing.assert_allclose(turned, 1 - decode(f.dicom(SHADES)).pixels, atol=2e-3)


def test_a_window_after_a_negative_slope_does_not_turn_it_back() -> None:
    stored = np.arange(100, dtype=np.uint16).reshape(10, 10)
    changes = {f.SLOPE: ("DS", "-1"), f.INTERCEPT: ("DS", "99"), f.CENTER: ("DS", "50"), f.WIDTH: ("DS", "21")}
    expected = own_range(np.clip(99.0 - stored, 39.5, 59.5))
    np.testing.assert_allclose(decode(f.dicom(stored, changes)).pixels, expected, atol=1e-6)


@pytest.mark.parametrize("slope", ["0", "x", "nan", "inf", "1e300"])
def test_an_impossible_slope_is_refused(slope: str) -> None:
    changes = {f.SLOPE: ("DS", slope), f.INTERCEPT: ("DS", "0")}
    assert isinstance(refusal(f.dicom(SHADES, changes)), errors.UndecodableImage)


@pytest.mark.parametrize("syntax", [f.EXPLICIT, f.IMPLICIT, f.BIG_ENDIAN])
def test_modality_lut(syntax: str) -> None:
    stored = np.array([[0, 1, 2], [3, 4, 9]], np.uint16)
    item = f.lut(1, [50, 10, 40, 20], syntax)
    pixels = decode(f.dicom(stored, {f.MODALITY_LUT: ("SQ", [item])}, syntax=syntax)).pixels
    np.testing.assert_allclose(pixels, own_range([[50, 50, 10], [40, 20, 20]]), atol=1e-6)


def test_voi_lut_is_preferred_to_the_window_and_follows_the_modality_lut() -> None:
    stored = np.array([[0, 1], [2, 3]], np.uint16)
    changes = {
        f.INTERCEPT: ("DS", "-2"),
        f.SLOPE: ("DS", "1"),
        f.CENTER: ("DS", "0"),
        f.WIDTH: ("DS", "2"),
        f.VOI_LUT: ("SQ", [f.lut(-2, [0, 100, 101, 200])]),
    }
    np.testing.assert_allclose(decode(f.dicom(stored, changes)).pixels, [[0, 0.5], [0.505, 1]], atol=1e-6)


def test_voi_lut_with_entries_of_8_bits() -> None:
    stored = np.array([[0, 1], [2, 3]], np.uint8)
    pixels = decode(f.dicom(stored, {f.VOI_LUT: ("SQ", [f.lut(0, [9, 3, 5, 4], bits=8)])})).pixels
    np.testing.assert_allclose(pixels, own_range([[9, 3], [5, 4]]), atol=1e-6)


def test_voi_lut_of_8_bits_with_more_than_256_entries() -> None:
    stored = np.arange(1024, dtype=np.uint16).reshape(32, 32)
    item = f.element(f.LUT_DESCRIPTOR, "US", (1024, 0, 8))
    item += f.element(f.LUT_DATA, "OW", (stored // 4).tobytes())
    pixels = decode(f.dicom(stored, {f.VOI_LUT: ("SQ", [item])})).pixels
    np.testing.assert_allclose(pixels, own_range(stored // 4), atol=1e-6)


def test_values_beyond_a_voi_lut_get_its_ends() -> None:
    stored = np.array([[0, 1], [2, 40_000]], np.uint16)
    changes = {f.SLOPE: ("DS", "2"), f.VOI_LUT: ("SQ", [f.lut(1, [10, 20, 40, 50])])}  # 80,000 has more than 16 bits
    np.testing.assert_allclose(decode(f.dicom(stored, changes)).pixels, own_range([[10, 20], [50, 50]]), atol=1e-6)


def test_a_lut_of_65536_entries_says_0() -> None:
    stored = np.array([[0, 1000], [65_534, 65_535]], np.uint16)
    item = f.element(f.LUT_DESCRIPTOR, "US", (0, 0, 16))
    item += f.element(f.LUT_DATA, "OW", np.arange(65_536, dtype="<u2")[::-1].tobytes())
    pixels = decode(f.dicom(stored, {f.MODALITY_LUT: ("SQ", [item])})).pixels
    np.testing.assert_allclose(pixels, 1 - stored / 65_535, atol=1e-6)


def test_a_lut_in_a_sequence_of_undefined_length() -> None:
    stored = np.array([[0, 1], [2, 3]], np.uint8)
    item = f.lut(0, [9, 3, 5, 4])
    sequence = struct.pack("<HHL", 0xFFFE, 0xE000, f.UNDEFINED) + item + struct.pack("<HHL", 0xFFFE, 0xE00D, 0)
    whole = f.element(f.VOI_LUT, "SQ", sequence, length=f.UNDEFINED) + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    data = f.dicom(stored)
    at = data.rindex(struct.pack("<HH", 0x7FE0, 0x0010))
    np.testing.assert_allclose(decode(data[:at] + whole + data[at:]).pixels, own_range([[9, 3], [5, 4]]), atol=1e-6)


def test_a_lut_shorter_than_it_says_is_refused() -> None:
    item = f.element(f.LUT_DESCRIPTOR, "US", (500, 0, 16)) + f.element(f.LUT_DATA, "OW", b"\0" * 20)
    assert isinstance(refusal(f.dicom(SHADES, {f.VOI_LUT: ("SQ", [item])})), errors.UndecodableImage)


WINDOW: dict[int, Any] = {f.CENTER: ("DS", "2000"), f.WIDTH: ("DS", "3000")}


@pytest.mark.parametrize("changes", [{}, WINDOW], ids=["no window", "window"])
def test_monochrome1_is_inverted_monochrome2(changes: Any) -> None:
    bright = decode(f.dicom(SHADES, changes)).pixels
    dark = decode(f.dicom(SHADES, changes | {f.PHOTOMETRIC: ("CS", "MONOCHROME1")})).pixels
    np.testing.assert_allclose(dark, 1 - bright, atol=1e-6)
    assert bright[0, 0] == 0.0


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("shape", ["INVERSE", "IDENTITY"])
def test_presentation_lut_shape_inverts_nothing(photometric: str, shape: str) -> None:
    changes = {f.PHOTOMETRIC: ("CS", photometric)}
    shaped = decode(f.dicom(SHADES, changes | {f.LUT_SHAPE: ("CS", shape)})).pixels
    np.testing.assert_array_equal(shaped, decode(f.dicom(SHADES, changes)).pixels)


def test_signed_pixels() -> None:
    pixels = decode(f.dicom(np.array([[-1000, -500], [0, 1000]], np.int16))).pixels
    np.testing.assert_allclose(pixels, [[0, 0.25], [0.5, 1]], atol=1e-6)


def test_signed_pixels_of_12_bits_whose_unused_bits_hold_an_overlay() -> None:
    stored = np.array([[0x0800, 0xF000 | 0x07FF], [0x0000, 0x7000]], np.uint16)  # −2048, 2047, 0, 0
    changes = {f.STORED: ("US", 12), f.HIGH_BIT: ("US", 11), f.SIGNED: ("US", 1)}
    np.testing.assert_allclose(decode(f.dicom(stored, changes)).pixels, own_range([[-2048, 2047], [0, 0]]), atol=1e-6)


PADDED = np.pad(SHADES[8:] + np.uint16(100), 4, constant_values=65535)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("changes", [{}, WINDOW], ids=["no window", "window"])
def test_padding_is_background_and_sets_no_contrast(photometric: str, changes: Any) -> None:
    changes = changes | {f.PHOTOMETRIC: ("CS", photometric)}
    padded = decode(f.dicom(PADDED, changes | {f.PADDING: ("US", 65535)})).pixels
    np.testing.assert_array_equal(padded[4:-4, 4:-4], decode(f.dicom(PADDED[4:-4, 4:-4], changes)).pixels)
    padded[4:-4, 4:-4] = 0
    assert not padded.any()


def test_padding_range_in_either_order() -> None:
    stored = np.array([[5, 6, 7], [10, 20, 30]], np.uint16)
    for low, high in ((5, 7), (7, 5)):
        changes = {f.PADDING: ("US", low), f.PADDING_LIMIT: ("US", high)}
        np.testing.assert_allclose(decode(f.dicom(stored, changes)).pixels, [[0, 0, 0], [0, 0.5, 1]], atol=1e-6)


def test_negative_padding() -> None:
    stored = np.array([[-2000, -10], [0, 10]], np.int16)
    pixels = decode(f.dicom(stored, {f.PADDING: ("SS", -2000)})).pixels
    np.testing.assert_allclose(pixels, [[0, 0], [0.5, 1]], atol=1e-6)


def test_nothing_but_padding_is_black() -> None:
    assert not decode(f.dicom(np.full((4, 4), 9, np.uint8), {f.PADDING: ("US", 9)})).pixels.any()


def test_inversion_on_request_leaves_the_padding_black() -> None:
    data = f.dicom(PADDED, {f.PADDING: ("US", 65535)})
    plain, inverted = decode(data), decode(data, invert=True)
    assert inverted.inverted_by_request
    np.testing.assert_allclose(inverted.pixels[4:-4, 4:-4], 1 - plain.pixels[4:-4, 4:-4], atol=1e-6)
    assert inverted.pixels[0, 0] == 0.0


@pytest.mark.parametrize(
    "data", [f.pillow(Image.fromarray(SHADES)), f.pillow(Image.fromarray(COLOURS)), f.dicom(COLOURS)]
)
def test_inversion_on_request(data: bytes) -> None:
    plain, inverted = decode(data), decode(data, invert=True)
    np.testing.assert_allclose(inverted.pixels, 1 - plain.pixels, atol=1e-6)
    assert inverted.inverted_by_request
    assert not plain.inverted_by_request


@pytest.mark.parametrize("planar", [0, 1])
def test_rgb_dicom(planar: int) -> None:
    stored = COLOURS.transpose(2, 0, 1).tobytes() if planar else COLOURS.tobytes()
    film = decode(f.dicom(COLOURS, {f.PLANAR: ("US", planar), f.PIXEL_DATA: ("OB", stored)}))
    np.testing.assert_allclose(film.pixels, LUMA, atol=1e-6)
    assert film.colourfulness == pytest.approx(0.75)


def test_ybr_dicom_is_turned_into_rgb() -> None:
    ybr = np.asarray(Image.fromarray(COLOURS).convert("YCbCr"))
    film = decode(f.dicom(ybr, {f.PHOTOMETRIC: ("CS", "YBR_FULL")}))
    np.testing.assert_allclose(film.pixels, LUMA, atol=2 / 255)
    assert film.colourfulness == pytest.approx(0.75, abs=0.01)


def assert_like_pydicom(data: bytes) -> None:
    """Hold a monochrome film against pydicom's own modality and VOI LUT; without a VOI, between the percentiles."""
    import pydicom
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    dataset = pydicom.dcmread(io.BytesIO(data))
    expected = apply_modality_lut(dataset.pixel_array, dataset).astype(np.float64)
    if "WindowCenter" in dataset or "VOILUTSequence" in dataset:
        expected = apply_voi_lut(expected, dataset, prefer_lut=True)
    else:
        expected = np.clip(expected, *np.percentile(expected, (0.5, 99.5), method="inverted_cdf"))
    if "PixelPaddingValue" in dataset:
        keep = dataset.pixel_array != dataset.PixelPaddingValue
        low, high = expected[keep].min(), expected[keep].max()
        expected = np.where(keep, (expected - low) / (high - low), 0)
    else:
        expected = own_range(expected)
    np.testing.assert_allclose(decode(data).pixels, expected, atol=2e-5)


@pytest.mark.parametrize("name", [n for n in PYDICOM_MONOCHROME if n != "CT_small.dcm"])
def test_files_of_pydicom_in_greyscale(name: str) -> None:
    assert_like_pydicom(pydicom_file(name))


def test_padding_of_a_real_file_does_not_set_its_contrast() -> None:
    film = decode(pydicom_file("CT_small.dcm"))
    assert film.pixels.shape == (128, 128)
    assert film.header.modality == "CT"
    assert 0.2 < film.pixels.mean() < 0.8


@pytest.mark.parametrize("name", PYDICOM_COLOUR)
@pytest.mark.filterwarnings("ignore:The .0028,0004. 'Photometric Interpretation':UserWarning")  # pydicom, as the oracle
def test_files_of_pydicom_in_colour(name: str) -> None:
    import pydicom

    data = pydicom_file(name)
    rgb = pydicom.dcmread(io.BytesIO(data)).pixel_array
    luma = rgb @ [0.299, 0.587, 0.114] / np.iinfo(rgb.dtype).max
    film = decode(data)
    np.testing.assert_allclose(film.pixels, luma, atol=4 / 255)
    assert film.colourfulness == pytest.approx(np.ptp(rgb, axis=2).mean() / np.iinfo(rgb.dtype).max, abs=0.02)


@pytest.mark.parametrize("name", PYDICOM_REFUSED)
def test_files_of_pydicom_that_are_refused(name: str) -> None:
    assert type(refusal(pydicom_file(name))) is PYDICOM_REFUSED[name]


# ── DICOM: transfer syntaxes ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("syntax", [f.IMPLICIT, f.BIG_ENDIAN])
@pytest.mark.parametrize("stored", [SHADES, RAMP, SHADES.astype(np.int16) - 2000], ids=["u2", "u1", "i2"])
def test_plain_syntaxes_agree(syntax: str, stored: Any) -> None:
    vr = "OB" if stored.dtype.itemsize == 1 else "OW"
    data = stored.astype(stored.dtype.newbyteorder(">" if syntax == f.BIG_ENDIAN else "<")).tobytes()
    other = f.dicom(stored, {f.PIXEL_DATA: (vr, data)}, syntax=syntax)
    np.testing.assert_array_equal(decode(other).pixels, decode(f.dicom(stored)).pixels)


def rle(stored: Any) -> bytes:
    from pydicom.pixels.encoders.base import RLELosslessEncoder

    colour = stored.ndim == 3
    return RLELosslessEncoder.encode(
        stored,
        encoding_plugin="pydicom",
        rows=stored.shape[0],
        columns=stored.shape[1],
        number_of_frames=1,
        samples_per_pixel=3 if colour else 1,
        photometric_interpretation="RGB" if colour else "MONOCHROME2",
        planar_configuration=0,
        bits_allocated=8 * stored.dtype.itemsize,
        bits_stored=8 * stored.dtype.itemsize,
        pixel_representation=int(stored.dtype.kind == "i"),
    )


def jpeg_ls(stored: Any) -> bytes:
    from jpeg_ls import encode_array

    return bytes(encode_array(stored))


def jpeg_2000(stored: Any, *, bare: bool = True) -> bytes:
    return f.pillow(Image.fromarray(stored), "JPEG2000", no_jp2=bare)


@pytest.mark.parametrize(
    "stored", [SHADES, RAMP, SHADES.astype(np.int16) - 2000, COLOURS], ids=["u2", "u1", "i2", "rgb"]
)
def test_rle(stored: Any) -> None:
    film = decode(f.dicom(stored, syntax=f.RLE, compressed=f.fragments(rle(stored))))
    np.testing.assert_array_equal(film.pixels, decode(f.dicom(stored)).pixels)


@pytest.mark.parametrize("stored", [SHADES, np.tile(RAMP, (8, 8))], ids=["u2", "u1"])
def test_jpeg_ls(stored: Any) -> None:
    film = decode(f.dicom(stored, syntax=f.JPEG_LS, compressed=f.fragments(jpeg_ls(stored))))
    np.testing.assert_array_equal(film.pixels, decode(f.dicom(stored)).pixels)


@pytest.mark.parametrize("bare", [True, False], ids=["codestream", "JP2"])
@pytest.mark.parametrize("stored", [SHADES, np.tile(RAMP, (8, 8))], ids=["u2", "u1"])
def test_jpeg_2000(stored: Any, bare: bool) -> None:
    film = decode(f.dicom(stored, syntax=f.JPEG_2000, compressed=f.fragments(jpeg_2000(stored, bare=bare))))
    np.testing.assert_array_equal(film.pixels, decode(f.dicom(stored)).pixels)


@pytest.mark.parametrize(("text", "stored"), [(f.HTJ2K_8_BITS, RAMP), (f.HTJ2K_16_BITS, RAMP * np.uint16(257))])
def test_high_throughput_jpeg_2000(text: str, stored: Any) -> None:
    stream = base64.b64decode(text)
    film = decode(f.dicom(stored, syntax=f.HTJ2K, compressed=f.fragments(stream)))
    np.testing.assert_array_equal(film.pixels, decode(f.dicom(stored)).pixels)


@pytest.mark.parametrize("syntax", [f.JPEG_BASELINE, f.JPEG_EXTENDED])
def test_jpeg(syntax: str) -> None:
    stored = np.kron(RAMP, np.ones((8, 8), np.uint8))
    stream = f.pillow(Image.fromarray(stored), "JPEG", quality=95)
    film = decode(f.dicom(stored, syntax=syntax, compressed=f.fragments(stream)))
    np.testing.assert_allclose(film.pixels, decode(f.dicom(stored)).pixels, atol=4 / 255)


def test_jpeg_in_colour_believes_its_own_marker() -> None:
    stored = np.kron(COLOURS, np.ones((16, 16, 1), np.uint8))
    stream = f.pillow(Image.fromarray(stored), "JPEG", quality=95, subsampling=0)  # YCbCr, with a JFIF marker
    for photometric in ("RGB", "YBR_FULL", "YBR_FULL_422"):
        changes = {f.PHOTOMETRIC: ("CS", photometric)}
        film = decode(f.dicom(stored, changes, syntax=f.JPEG_BASELINE, compressed=f.fragments(stream)))
        np.testing.assert_allclose(film.pixels, np.kron(LUMA, np.ones((16, 16))), atol=6 / 255)


@pytest.mark.parametrize("stored", [SHADES, np.tile(RAMP, (8, 8))], ids=["u2", "u1"])
def test_lossless_jpeg_is_decoded_in_another_process(stored: Any, tmp_path: Path) -> None:
    gdcm = pytest.importorskip("gdcm")
    plain, compressed = tmp_path / "plain.dcm", tmp_path / "compressed.dcm"
    plain.write_bytes(f.dicom(stored))
    reader = gdcm.ImageReader()
    reader.SetFileName(str(plain))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(compressed))
    assert writer.Write()
    np.testing.assert_array_equal(decode(compressed.read_bytes()).pixels, decode(f.dicom(stored)).pixels)


def test_a_crash_of_that_process_is_a_damaged_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("gdcm")
    from modules import decoder_process

    crash = tmp_path / "crash.py"
    crash.write_text("import os; os.abort()")
    monkeypatch.setattr(decoder_process, "__file__", str(crash))
    assert isinstance(refusal(pydicom_file("SC_rgb_jpeg_gdcm.dcm")), errors.UndecodableImage)


def test_a_frame_in_several_fragments() -> None:
    stored = np.kron(RAMP, np.ones((8, 8), np.uint8))
    stream = jpeg_ls(stored)
    parts = f.fragments(stream[:40], stream[40:100], stream[100:], table=struct.pack("<L", 0))
    film = decode(f.dicom(stored, syntax=f.JPEG_LS, compressed=parts))
    np.testing.assert_array_equal(film.pixels, decode(f.dicom(stored)).pixels)


# ── DICOM: header ────────────────────────────────────────────────────────────────────────────────────────────────────


def header(changes: Any, **options: Any) -> ImageHeader:
    return open_image(f.dicom(SHADES, changes, **options)).header


@pytest.mark.parametrize("syntax", [f.EXPLICIT, f.IMPLICIT, f.BIG_ENDIAN])
def test_header(syntax: str) -> None:
    changes = {
        f.MODALITY: ("CS", "cr "),
        f.VIEW: ("CS", " PA"),
        f.BODY_PART: ("CS", "Chest"),
        f.AGE: ("AS", "056Y"),
        f.IMAGER_SPACING: ("DS", "0.143\\0.144"),
    }
    assert header(changes, syntax=syntax) == ImageHeader("dicom", 48, 64, "CR", "PA", "CHEST", 56.0, (0.143, 0.144))


@pytest.mark.parametrize(
    ("text", "years"),
    [("056Y", 56), ("018M", 1.5), ("002W", 2 * 7 / 365.25), ("003D", 3 / 365.25), ("7Y", 7), ("000D", 0)]
    + [(bad, None) for bad in ("", "Y", "abc", "-05Y", "0x5Y", "999Y", "000Y", "5.5Y", "056Q", "1234Y", "٠٥٦Y")],
)
def test_age(text: str, years: float | None) -> None:
    assert header({f.AGE: ("AS", text)}).age_years == (None if years is None else pytest.approx(years))


@pytest.mark.parametrize(
    ("own", "imager", "expected"),
    [
        ("0.2\\0.3", "0.1\\0.1", (0.2, 0.3)),
        ("", "0.1\\0.1", (0.1, 0.1)),
        ("0\\0", "0.1\\0.1", (0.1, 0.1)),
        ("0.2", "nan\\nan", None),
        ("1e999\\1", "-1\\-1", None),
        ("a\\b", "0,1\\0,1", None),
    ],
)
def test_pixel_spacing(own: str, imager: str, expected: Any) -> None:
    changes = {f.PIXEL_SPACING: ("DS", own), f.IMAGER_SPACING: ("DS", imager)}
    assert header(changes).pixel_spacing_mm == expected


def test_codes_of_the_header_are_made_harmless() -> None:
    hostile = "<script>alert('x')</script>\r\n" + "A" * 500
    made = header({f.BODY_PART: ("CS", hostile), f.VIEW: ("CS", "LL\\PA"), f.MODALITY: ("CS", "\0\xff\x1b[31m")})
    assert made.body_part is not None
    assert len(made.body_part) <= 16
    assert set(made.body_part) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 _-")
    assert made.view_position == "LL"
    assert made.modality == "31M"


def test_ct_and_lateral_films_are_opened_for_the_gate_to_judge() -> None:
    assert header({f.MODALITY: ("CS", "CT"), f.VIEW: ("CS", "LATERAL")}).modality == "CT"


NAME, IDENTIFIER = "Doe^Planted^Jane", "PLANTED-4711"
IDENTITY: dict[int, Any] = {
    0x00080020: ("DA", "20190231"),
    f.CHARACTER_SET: ("CS", NAME),
    0x00080080: ("LO", IDENTIFIER),
    0x00081110: ("SQ", [f.element(f.CHARACTER_SET, "CS", NAME) + f.element(f.PATIENT_NAME, "PN", NAME)]),
    f.PATIENT_NAME: ("PN", NAME),
    f.PATIENT_ID: ("LO", IDENTIFIER),
    0x00100030: ("DA", "not a date, " + IDENTIFIER),
    0x00291010: ("UN", NAME),
}


NESTED_AT = len(f.part_10(b""))
NESTED_IDENTITY = (  # pydicom reads sequences of undefined length, to find their ends
    f.element(0x00041220, "SQ", b"", length=f.UNDEFINED)
    + struct.pack("<HHL", 0xFFFE, 0xE000, f.UNDEFINED)
    + f.element(f.CHARACTER_SET, "CS", NAME)
    + f.element(f.PATIENT_NAME, "PN", NAME)
    + struct.pack("<HHLHHL", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
)


@pytest.mark.parametrize(
    "damage",
    [
        {},
        {f.MODALITY: None},
        {f.ROWS: ("US", 7)},
        {f.SLOPE: ("DS", "x")},
        {f.FRAMES: ("IS", NAME)},
        {f.AGE: ("AS", NAME)},
    ],
)
def test_a_patient_never_shows(
    damage: Any, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    shown = ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            data = f.dicom(SHADES, IDENTITY | damage)
            file = open_image(data[:NESTED_AT] + NESTED_IDENTITY + data[NESTED_AT:])
            shown = repr(file.header) + repr(file.decode().header)
        except errors.ImageError as error:
            shown = str(error) + repr(error.__cause__)
    shown += caplog.text + "".join(str(w.message) for w in caught) + "".join(capfd.readouterr())
    assert "Planted" not in shown
    assert "PLANTED" not in shown.upper()
    assert "2019" not in shown


def test_a_patient_name_in_a_damaged_compressed_file(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    stream = bytearray(jpeg_ls(SHADES))
    stream[len(stream) // 2 :] = b"\xff\xff" * 20
    error = refusal(f.dicom(SHADES, IDENTITY, syntax=f.JPEG_LS, compressed=f.fragments(bytes(stream))))
    assert isinstance(error, errors.UndecodableImage)
    assert "PLANTED" not in (caplog.text + str(error)).upper()


# ── What is refused ──────────────────────────────────────────────────────────────────────────────────────────────────

PNG, JPEG = f.pillow(Image.fromarray(RAMP)), f.pillow(Image.new("L", (64, 48), 99), "JPEG")


@pytest.mark.parametrize(
    "data", [b"", PNG[:4], PNG[:8], PNG[:30], PNG[:-1], PNG[:-14], JPEG[:2], JPEG[:3], JPEG[:200], JPEG[:-300]]
)
def test_empty_and_truncated_files(data: bytes) -> None:
    assert refusal(data).code == "undecodable_image"


def test_a_damaged_pixel_of_a_png_is_noticed() -> None:
    stored = bytearray(f.pillow(Image.fromarray(SHADES.astype(np.uint8)), compress_level=0))
    stored[len(stored) // 2] ^= 1  # not compressed: it would decode, into another film
    assert refusal(bytes(stored)).code == "undecodable_image"


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (f.pillow(Image.new("L", (9, 9)), "GIF"), "GIF"),
        (f.pillow(Image.new("L", (9, 9)), "BMP"), "BMP"),
        (f.pillow(Image.new("L", (9, 9)), "TIFF"), "TIFF"),
        (f.pillow(Image.new("RGB", (9, 9)), "WEBP"), "WebP"),
        (f.pillow(Image.new("L", (9, 9)), "JPEG2000", no_jp2=False), "JPEG 2000"),
        (b"%PDF-1.7\n%", "PDF"),
        (b"PK\x03\x04" + b"\0" * 40, "ZIP"),
        (b"\0\0\0\x18ftypheic", "HEIC"),
        (b"Dear radiologist, please find attached", "no image"),
        (b"\x00" * 200, "no image"),
        (b"\x00" * 128 + b"DICX" + b"\0" * 80, "no image"),
    ],
)
def test_other_kinds_of_files_are_named(data: bytes, name: str) -> None:
    error = refusal(data)
    assert error.code == "unsupported_image_type"
    assert name in str(error)
    for accepted in ("PNG", "JPEG", "DICOM"):
        assert accepted in str(error)


def test_the_name_of_a_file_has_no_say() -> None:
    assert open_image(PNG).header.format == "png"
    assert open_image(JPEG).header.format == "jpeg"
    assert open_image(b"II*\0" + f.dicom(SHADES)[4:]).header.format == "dicom"  # a preamble may hold anything


def test_animation() -> None:
    frames = [Image.new("L", (8, 8), shade) for shade in (0, 100)]
    error = refusal(f.pillow(frames[0], save_all=True, append_images=frames[1:]))
    assert error.code == "multiple_frames"
    assert "still" in str(error)


def test_an_animation_of_one_frame_is_a_still_image() -> None:
    still = PNG[:33] + f.chunk(b"acTL", struct.pack(">LL", 1, 0)) + PNG[33:]
    np.testing.assert_allclose(decode(still).pixels, RAMP / 255, atol=1e-6)


def test_too_many_bytes() -> None:
    error = refusal(PNG + b"\0" * 3_000_000, ImageLimits(max_bytes=2 << 20))
    assert error.code == "file_too_large"
    assert "2.9 MiB" in str(error)
    assert "2 MiB" in str(error)


@pytest.mark.parametrize(
    "data",
    [
        f.png_claiming(60_000, 60_000),
        f.png_claiming(2**31 - 1, 2**31 - 1),
        f.jpeg_claiming(65_500, 65_500, JPEG),
        f.dicom(SHADES, {f.ROWS: ("US", 65_535), f.COLUMNS: ("US", 65_535)}),
    ],
    ids=["png", "largest png", "jpeg", "dicom"],
)
def test_too_many_pixels_are_refused_by_the_header(data: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(errors.TooManyPixels) as caught:
        open_image(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.code == "too_many_pixels"
    assert "40 million" in str(caught.value)
    assert peak < 1_000_000


@pytest.mark.parametrize("side", [9_800, 20_000], ids=["warning", "error"])
def test_pillows_own_limit_is_translated_when_ours_is_higher(side: int) -> None:
    error = refusal(f.png_claiming(side, side), ImageLimits(max_pixels=10**9))
    assert error.code == "too_many_pixels"


def test_the_limit_itself_is_allowed() -> None:
    assert open_image(PNG, ImageLimits(max_bytes=len(PNG), max_pixels=24)).decode().pixels.shape == (4, 6)
    assert refusal(PNG, ImageLimits(max_pixels=23)).code == "too_many_pixels"


@pytest.mark.parametrize(
    "data",
    [
        f.png_claiming(0, 10),
        f.jpeg_claiming(0, 10, JPEG),
        f.dicom(SHADES, {f.ROWS: ("US", 0)}),
        f.dicom(SHADES, {f.COLUMNS: None}),
        f.dicom(SHADES, {f.ROWS: ("US", b"")}),
        f.png_claiming(3000, 3000),
        f.part_10(b""),
        b"\0" * 128 + b"DICM",
        f.dicom(SHADES)[:-1000],
        f.dicom(SHADES, {f.PIXEL_DATA: ("OW", b"")}),
        f.dicom(SHADES, {f.PIXEL_DATA: ("OW", SHADES.tobytes() + b"\0" * 96)}),
        f.dicom(SHADES, {f.ROWS: ("US", 63)}),
        f.dicom(SHADES, {f.STORED: ("US", 17)}),
        f.dicom(SHADES, {f.FRAMES: ("IS", "1A")}),
        f.dicom(SHADES, {f.FRAMES: ("IS", "-1")}),
        f.dicom(SHADES, compressed=f.fragments(SHADES.tobytes())),
        f.dicom(SHADES, syntax=f.JPEG_LS),
        f.dicom(SHADES, syntax=f.JPEG_LS, compressed=f.fragments()),
        f.dicom(SHADES, syntax=f.JPEG_LS, compressed=f.fragments(b"no codestream")),
        f.dicom(SHADES, syntax=f.JPEG_LS, compressed=f.fragments(jpeg_ls(SHADES)[:-2])),
        f.dicom(SHADES, syntax=f.RLE, compressed=f.fragments(b"short")),
        f.dicom(SHADES, syntax=f.RLE, compressed=f.fragments(struct.pack("<16L", 2, 64, 9999, *[0] * 13))),
        f.dicom(SHADES, syntax=f.JPEG_LS, compressed=f.fragments(jpeg_ls(SHADES))[:-100]),
    ],
    ids=lambda data: f"{len(data)} bytes",
)
def test_headers_that_contradict_the_content(data: bytes) -> None:
    error = refusal(data)
    if data == f.part_10(b""):
        assert error.code == "unsupported_image_type"  # whole, but no image
    else:
        assert error.code == "undecodable_image"


@pytest.mark.parametrize(
    ("syntax", "stream"),
    [
        (f.JPEG_BASELINE, f.pillow(Image.new("L", (4000, 4000)), "JPEG")),
        (f.JPEG_LOSSLESS, f.jpeg_claiming(4000, 4000, JPEG.replace(b"\xff\xc0", b"\xff\xc3"))),
        (f.JPEG_LS, jpeg_ls(np.zeros((4000, 4000), np.uint8))),
        (f.JPEG_2000, jpeg_2000(np.zeros((4000, 4000), np.uint8))),
        (f.JPEG_2000, jpeg_2000(np.zeros((4000, 4000), np.uint8), bare=False)),
    ],
    ids=["JPEG", "lossless", "JPEG-LS", "JPEG 2000", "JP2"],
)
def test_a_codestream_larger_than_declared_is_never_decoded(
    syntax: str, stream: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pydicom.pixels.decoders.base import Decoder

    if syntax == f.JPEG_LOSSLESS:
        pytest.importorskip("gdcm")
    monkeypatch.setattr(Decoder, "as_array", lambda *args, **kwargs: pytest.fail("a decoder ran"))
    data = f.dicom(np.zeros((64, 64), np.uint8), syntax=syntax, compressed=f.fragments(stream))
    error = refusal(data)
    assert error.code == "undecodable_image"
    assert "compressed image" in str(error)


def test_rle_that_inflates_is_bounded() -> None:
    bomb = struct.pack("<16L", 1, 64, *[0] * 14) + b"\x81\x05" * 2_000_000  # 256 MB when unpacked
    data = f.dicom(np.zeros((64, 64), np.uint8), syntax=f.RLE, compressed=f.fragments(bomb))
    tracemalloc.start()
    decode(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40_000_000


@pytest.mark.parametrize("frames", ["2", "30", "100000"])
def test_several_frames(frames: str) -> None:
    assert refusal(f.dicom(SHADES, {f.FRAMES: ("IS", frames)})).code == "multiple_frames"


def test_several_frames_that_only_the_offset_table_admits() -> None:
    stream = jpeg_ls(SHADES)
    both = f.fragments(stream, stream, table=struct.pack("<LL", 0, len(stream) + 8))
    assert refusal(f.dicom(SHADES, syntax=f.JPEG_LS, compressed=both)).code == "multiple_frames"


@pytest.mark.parametrize(
    ("syntax", "named"),
    [
        (f.DEFLATED, "Deflated"),
        (f.MPEG4, "MPEG-4"),
        ("1.2.3.4711", "transfer syntax of this"),
        ("x" * 60, "transfer syntax"),
        ("1.2.840.10008.1.2\0\x10\0\x10\0PNxxx^4711\r", "transfer syntax of this"),
    ],
)
def test_transfer_syntaxes_that_are_not_read(syntax: str, named: str) -> None:
    error = refusal(f.dicom(SHADES, syntax=syntax))
    assert error.code == "unsupported_image_type"
    assert named in str(error)
    assert "Explicit VR Little Endian" in str(error)
    assert "4711" not in str(error) and "xxx" not in str(error)


def test_a_transfer_syntax_without_an_installed_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    from modules import dicom

    monkeypatch.setattr(dicom, "DECODERS", ())
    error = refusal(f.dicom(SHADES, syntax=f.HTJ2K, compressed=f.fragments(b"")))
    assert error.code == "unsupported_image_type"
    assert "High-Throughput JPEG 2000" in str(error)


@pytest.mark.parametrize(
    "changes",
    [
        {f.PHOTOMETRIC: ("CS", "PALETTE COLOR")},
        {f.PHOTOMETRIC: None},
        {f.SAMPLES: ("US", 4)},
        {f.SAMPLES: ("US", 3)},
        {f.ALLOCATED: ("US", 32)},
        {f.ALLOCATED: ("US", 1)},
        {f.HIGH_BIT: ("US", 14)},
        {f.PIXEL_DATA: None},
    ],
)
def test_layouts_that_are_not_read(changes: Any) -> None:
    assert refusal(f.dicom(SHADES, changes)).code == "unsupported_image_type"


def nested(depth: int) -> bytes:
    """Sequences of undefined length in each other, properly closed."""
    opening = f.element(0x00081140, "SQ", b"", length=f.UNDEFINED) + struct.pack("<HHL", 0xFFFE, 0xE000, f.UNDEFINED)
    closing = struct.pack("<HHLHHL", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    return opening * depth + closing * depth


def with_elements(extra: bytes) -> bytes:
    whole = f.dicom(SHADES, {f.MODALITY: None})
    start = len(f.part_10(b""))
    return whole[:start] + extra + whole[start:]


def test_sequences_are_stepped_over() -> None:
    np.testing.assert_array_equal(decode(with_elements(nested(10))).pixels, decode(f.dicom(SHADES)).pixels)


@pytest.mark.parametrize(
    "extra",
    [
        nested(5000),
        nested(3)[:-4],
        f.element(0x00080050, "SH", "") * 2_000_000,
        nested(1)[:20] + f.element(f.CHARACTER_SET, "CS", "") * 2_000_000 + nested(1)[20:],
        f.element(0x00091001, "OB", b"", length=f.UNDEFINED) + b"\1" * 10_000_000,
    ],
    ids=lambda extra: f"{len(extra)} bytes",
)
def test_hostile_structures(extra: bytes) -> None:
    start = time.monotonic()
    assert refusal(with_elements(extra)).code == "undecodable_image"
    assert time.monotonic() - start < 5


def test_empty_fragments_without_end() -> None:
    empty = struct.pack("<HHL", 0xFFFE, 0xE000, 0) * 2_000_000
    data = f.dicom(SHADES, syntax=f.JPEG_LS, compressed=empty + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0))
    assert refusal(data).code == "undecodable_image"


def test_hostile_numbers_of_segments_and_chunks() -> None:
    comments = JPEG[:2] + b"\xff\xfe\0\2" * 1_000_000 + JPEG[2:]
    assert refusal(comments).code == "undecodable_image"
    assert refusal(PNG[:33] + f.chunk(b"teXt") * 300_000 + PNG[33:]).code == "undecodable_image"


# ── Properties ───────────────────────────────────────────────────────────────────────────────────────────────────────

VALID = (
    PNG,
    f.pillow(Image.fromarray(SHADES), exif=exif(6)),
    f.pillow(Image.fromarray(COLOURS)),
    f.pillow(Image.fromarray(np.tile(RAMP, (8, 8))), "JPEG", exif=exif(6)),
    f.dicom(SHADES, WINDOW | {f.VOI_LUT: ("SQ", [f.lut(0, [1, 2, 3])]), f.AGE: ("AS", "056Y"), f.PADDING: ("US", 0)}),
    f.dicom(SHADES, syntax=f.RLE, compressed=f.fragments(rle(SHADES))),
    f.dicom(SHADES, syntax=f.JPEG_LS, compressed=f.fragments(jpeg_ls(SHADES))),
    f.dicom(SHADES, syntax=f.JPEG_2000, compressed=f.fragments(jpeg_2000(SHADES))),
    f.dicom(np.zeros((48, 64), np.uint8), syntax=f.JPEG_BASELINE, compressed=f.fragments(JPEG)),
)
property_test = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def opens_or_is_refused(data: bytes) -> None:
    try:
        film = open_image(data, ImageLimits(max_pixels=1_000_000)).decode()
    except errors.ImageError as error:
        assert str(error).endswith(".")
    else:
        assert film.pixels.shape == (film.header.height, film.header.width)


@property_test
@given(st.sampled_from(range(len(VALID))), st.floats(0, 1))
def test_a_truncated_file_is_an_image_error(index: int, share: float) -> None:
    opens_or_is_refused(VALID[index][: int(share * len(VALID[index]))])


@property_test
@given(
    st.sampled_from(range(len(VALID))),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=8),
)
def test_a_damaged_file_is_an_image_error(index: int, flips: list[tuple[float, int]]) -> None:
    damaged = bytearray(VALID[index])
    for place, mask in flips:
        damaged[int(place * len(damaged))] ^= mask
    opens_or_is_refused(bytes(damaged))


@property_test
@given(
    st.sampled_from(range(4, len(VALID))),
    st.lists(st.tuples(st.integers(132, 700), st.integers(1, 255)), min_size=1, max_size=4),
)
def test_a_damaged_dicom_header_is_an_image_error(index: int, flips: list[tuple[int, int]]) -> None:
    damaged = bytearray(VALID[index])
    for place, mask in flips:
        damaged[place % len(damaged)] ^= mask
    opens_or_is_refused(bytes(damaged))


# ── Output, threads, start ───────────────────────────────────────────────────────────────────────────────────────────


def test_to_png_keeps_every_value() -> None:
    made = Image.open(io.BytesIO(to_png(decode(PNG))))
    assert (made.format, made.mode) == ("PNG", "L")
    np.testing.assert_array_equal(np.asarray(made), RAMP)


def test_to_png_rounds_to_the_nearest_value() -> None:
    film = Radiograph(np.array([[0.0, 0.4999 / 255, 0.501 / 255, 1.0]], np.float32), ImageHeader("png", 4, 1))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(to_png(film)))), [[0, 0, 1, 255]])


def test_to_png_shrinks_by_area_and_never_enlarges() -> None:
    film = Radiograph(np.tile(np.array([[0.0, 1.0]], np.float32), (20, 20)), ImageHeader("png", 40, 20))
    shrunk = np.asarray(Image.open(io.BytesIO(to_png(film, 20))))
    assert shrunk.shape == (10, 20)
    assert set(shrunk.ravel().tolist()) <= {127, 128}
    assert Image.open(io.BytesIO(to_png(film, 100))).size == (40, 20)
    thin = Radiograph(np.zeros((1, 5000), np.float32), ImageHeader("png", 5000, 1))
    assert Image.open(io.BytesIO(to_png(thin, 64))).size == (64, 1)


def test_display_pixels_and_encode_png_in_colour() -> None:
    greys = display_pixels(np.array([[0.0, 0.25], [0.5, 1.0]], np.float32), None)
    assert greys.dtype == np.uint8
    assert greys.tolist() == [[0, 64], [128, 255]]
    made = np.asarray(Image.open(io.BytesIO(encode_png(np.stack([greys, greys * 0, greys * 0], axis=-1)))))
    np.testing.assert_array_equal(made[..., 2], greys)  # blue comes first, as OpenCV has it
    assert not made[..., :2].any()


def test_one_file_can_be_decoded_by_several_threads() -> None:
    for data in (VALID[1], VALID[4], VALID[7]):
        file = open_image(data)
        with ThreadPoolExecutor(8) as pool:
            films = list(pool.map(lambda _, file=file: file.decode().pixels, range(16)))
        assert all(np.array_equal(film, films[0]) for film in films)


@pytest.mark.parametrize(("kind", "imported"), [("png", "False"), ("dcm", "True")])
def test_pydicom_is_imported_for_a_dicom_only(kind: str, imported: str, tmp_path: Path) -> None:
    path = tmp_path / "film"
    path.write_bytes(PNG if kind == "png" else f.dicom(SHADES))
    code = (
        "import sys, pathlib, modules.images as i; "
        f"i.open_image(pathlib.Path({str(path)!r}).read_bytes()).decode(); print('pydicom' in sys.modules)"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == imported


@pytest.mark.skipif(not FILMS.is_dir(), reason="the real films are not part of the repository")
def test_real_films() -> None:
    for path in (*FILMS.glob("originals/*.png"), *FILMS.glob("dicom/*.dcm"), *FILMS.glob("not_cxr/*")):
        film = decode(path.read_bytes())
        assert film.pixels.shape == (film.header.height, film.header.width)
        assert film.pixels.std() > 0.02


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only here is the memory of a process bounded for sure"
)
def test_a_stream_that_asks_for_gigabytes_takes_them_from_nobody() -> None:
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    stream = f.jpeg_2000_precinct_bomb(6320)
    assert len(stream) < 200
    elements = {f.ROWS: ("US", 6320), f.COLUMNS: ("US", 6320)}
    with pytest.raises(errors.UndecodableImage):
        decode(f.dicom(np.zeros((8, 8), np.uint8), elements, syntax=f.JPEG_2000, compressed=f.fragments(stream)))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB


def test_a_jpeg_of_thousands_of_scans_is_refused_before_it_is_decoded() -> None:
    whole = f.pillow(Image.new("L", (64, 64)), "JPEG", progressive=True)
    assert decode(whole).pixels.shape == (64, 64)
    scans = whole[whole.index(b"\xff\xda") : whole.rindex(b"\xff\xd9")]
    with pytest.raises(errors.UndecodableImage):
        open_image(whole[:-2] + scans * 200 + whole[-2:])


def test_a_side_that_no_detector_has_is_refused() -> None:
    with pytest.raises(errors.TooManyPixels, match="side"):
        open_image(f.pillow(Image.new("L", (20_001, 2)), "PNG"))


@pytest.mark.parametrize("frame", [b"", None])
def test_an_empty_fragment_is_damage(frame: bytes | None) -> None:
    compressed = f.fragments(*([] if frame is None else [frame]))
    with pytest.raises(errors.UndecodableImage):
        decode(f.dicom(SHADES, syntax=f.RLE, compressed=compressed))
