"""Images: a DICOM film is shown as its header asks, in every transfer syntax, and no patient shows."""

import base64
import io
import logging
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from modules import errors
from modules.images import open_image
from modules.records import ImageHeader
from tests import image_files as f
from tests.image_files import (
    COLOURS,
    LUMA,
    RAMP,
    SHADES,
    WINDOW,
    decode,
    jpeg_2000,
    jpeg_ls,
    own_range,
    pydicom_file,
    refusal,
    rle,
)

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
