"""The PNG encoder: what it writes is read back by others, pixel for pixel."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from modules.explainability import MAX_OVERLAY_SIDE
from modules.png import encode_png
from synthetic.phantom import make_film


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (5, 4), (300, 200), (1, 1, 3), (6, 1, 3), (123, 77, 3)])
def test_pixels_come_back_as_they_were(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(len(shape)).integers(0, 256, shape, np.uint8)
    data = encode_png(pixels)
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "PNG"
        assert image.mode == ("RGB" if len(shape) == 3 else "L")
        image.verify()
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(np.asarray(image), pixels)
    np.testing.assert_array_equal(_by_opencv(data, len(shape) == 3), pixels)


def test_rows_that_are_not_in_one_piece_are_encoded_as_they_are_seen() -> None:
    film = np.arange(60, dtype=np.uint8).reshape(6, 10)
    for view in (film[::2], film[:, ::-1], film.T, np.stack([film] * 3, axis=-1)[:, :, ::-1]):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(encode_png(view)))), view)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (4,), (4, 4, 2), (4, 4, 4), (1, 4, 4, 3)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"no PNG can be made of pixels of shape \("):
        encode_png(np.zeros(shape, np.uint8))


def test_a_film_takes_no_more_room_than_opencvs_fastest() -> None:
    grey = make_film(seed=3, size=MAX_OVERLAY_SIDE).pixels
    fastest = cv2.imencode(".png", grey, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1]
    assert len(encode_png(grey)) < 1.1 * fastest.size


def _by_opencv(data: bytes, in_colour: bool) -> np.ndarray:
    read = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR if in_colour else cv2.IMREAD_GRAYSCALE)
    return read[:, :, ::-1] if in_colour else read
