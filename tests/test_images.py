"""Images: PNG and JPEG of every mode become the right numbers, and no file does more than be read or refused."""

import io
import struct
import subprocess
import sys
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
from modules.images import ImageLimits, display_pixels, open_image, to_png
from modules.records import ImageHeader, Radiograph
from tests import image_files as f
from tests.image_files import (
    COLOURS,
    JPEG,
    LUMA,
    PNG,
    RAMP,
    SHADES,
    WINDOW,
    decode,
    exif,
    jpeg_2000,
    jpeg_ls,
    own_range,
    rle,
)

FILMS = Path(__file__).parents[2] / "shared" / "data"


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


def test_display_pixels_rounds_to_the_nearest_grey() -> None:
    greys = display_pixels(np.array([[0.0, 0.25], [0.5, 1.0]], np.float32), None)
    assert greys.dtype == np.uint8
    assert greys.tolist() == [[0, 64], [128, 255]]


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
