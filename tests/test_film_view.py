"""The film as the workstation paints it: what stands where, what the colours mean, and what is refused."""

import io
import math
import struct
import zlib
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from dashboard import film as film_view
from dashboard.film import View, decoded, legend, legend_text, painted, table
from modules import explainability
from modules.answers import ImageSize
from modules.images import display_pixels
from modules.png import encode_png
from modules.records import Box, GridToImage, Heatmap, ImageHeader, Peak, Radiograph
from modules.settings import Colormap
from synthetic.phantom import make_film
from tests.stages import predict

Pixels = npt.NDArray[np.int64]
SQUARE, WIDE, CROPPED, TALL = (
    (ImageSize(width=700, height=700), GridToImage(x_scale=100, x_offset=0, y_scale=100, y_offset=0)),
    (ImageSize(width=1400, height=350), GridToImage(x_scale=200, x_offset=0, y_scale=50, y_offset=0)),
    (ImageSize(width=1400, height=700), GridToImage(x_scale=100, x_offset=350, y_scale=100, y_offset=0)),
    (ImageSize(width=600, height=3000), GridToImage(x_scale=600 / 7, x_offset=0, y_scale=600 / 7, y_offset=1200)),
)
FILMS = {"square": SQUARE, "wide": WIDE, "cropped": CROPPED, "tall and cropped": TALL}
# a film that was padded to a square: the network's grid reaches beyond it
PADDED = (ImageSize(width=700, height=400), GridToImage(x_scale=100, x_offset=0, y_scale=100, y_offset=-150))
JPEG_ERROR = 6  # greys that a smooth picture may lose

FINITE = st.floats(allow_nan=False, allow_infinity=False)

unhurried = settings(deadline=None)  # others work on the machine too


def heatmap(
    grid: npt.ArrayLike, place: GridToImage = SQUARE[1], full_scale: float = 0.18, box: Box | None = None
) -> Heatmap:
    cells = np.asarray(grid, np.float64)
    row, column = np.unravel_index(int(cells.argmax()), cells.shape)
    x = place.x_offset + place.x_scale * (float(column) + 0.5)
    y = place.y_offset + place.y_scale * (float(row) + 0.5)
    return Heatmap(
        pathology="Mass",
        detected=True,
        probability=0.5,
        grid=tuple(map(tuple, cells.tolist())),
        full_scale=full_scale,
        peak=Peak(x=x, y=y, value=float(cells.max())) if cells.max() > 0 else None,
        zone=None,
        box=box,
        grid_to_image=place,
    )


def hot_cell(row: int, column: int, value: float = 0.17, size: int = 7) -> npt.NDArray[np.float64]:
    grid = np.zeros((size, size))
    grid[row, column] = value
    return grid


def grey_film(size: ImageSize, grey: int = 0, longest: int = 350) -> npt.NDArray[np.uint8]:
    factor = longest / max(size.width, size.height)
    return np.full((round(size.height * factor), round(size.width * factor)), grey, np.uint8)


def pixels(jpeg: bytes) -> Pixels:
    """Return red, green and blue (H, W, 3)."""
    with Image.open(io.BytesIO(jpeg)) as image:
        assert (image.format, image.mode) == ("JPEG", "RGB")
        return np.array(image, np.int64)


def paint(
    grid: npt.ArrayLike,
    where: tuple[ImageSize, GridToImage] = SQUARE,
    view: View | None = None,
    grey: int = 0,
    longest: int = 350,
) -> Pixels:
    """Paint a grid over an even film."""
    return pixels(painted(grey_film(where[0], grey, longest), heatmap(grid, where[1]), where[0], view or View()))


def png_header(width: int, height: int) -> bytes:
    """Return a PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


# ── What comes from the server ───────────────────────────────────────────────────────────────────────────────────────


def test_the_greys_of_the_servers_png_come_back_unchanged() -> None:
    greys = np.random.default_rng(0).integers(0, 256, (41, 67)).astype(np.uint8)
    film = decoded(encode_png(greys))
    assert film.dtype == np.uint8
    np.testing.assert_array_equal(film, greys)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"junk",
        b"<html>no film</html>",
        encode_png(np.zeros((64, 64), np.uint8))[:60],
        png_header(64, 64),
        png_header(4097, 1),
        png_header(1, 4097),
        png_header(12_000, 12_000),  # Pillow warns
        png_header(2**31 - 1, 2**31 - 1),  # Pillow refuses
    ],
)
def test_what_is_no_film_or_a_giant_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="server sent"):
        decoded(data)


def test_a_giant_is_refused_before_its_pixels_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    giant = encode_png(np.zeros((4, 5000), np.uint8))
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(ValueError, match="4096"):
        decoded(giant)


def test_another_type_of_image_and_deeper_greys_are_refused() -> None:
    for mode, kind in (("L", "JPEG"), ("I;16", "PNG")):
        buffer = io.BytesIO()
        Image.new(mode, (8, 8)).save(buffer, kind)
        with pytest.raises(ValueError, match="server sent"):
            decoded(buffer.getvalue())


@unhurried
@given(st.data())
def test_a_damaged_png_is_read_or_refused_and_nothing_else(data: st.DataObject) -> None:
    png = bytearray(encode_png(np.arange(96, dtype=np.uint8).reshape(8, 12)))
    for place in data.draw(st.lists(st.integers(0, len(png) - 1), min_size=1, max_size=6)):
        png[place] = data.draw(st.integers(0, 255))
    try:
        film = decoded(bytes(png))
    except ValueError:
        return
    assert film.ndim == 2


@pytest.mark.parametrize(
    "film", [np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.float32), np.zeros((0, 4), np.uint8)]
)
def test_what_is_no_film_is_not_painted(film: npt.NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="film"):
        painted(film, None, SQUARE[0], View())


# ── The view and its window ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "wrong",
    [
        {"opacity": 1.01},
        {"opacity": -0.1},
        {"opacity": math.nan},
        {"level": 1.5},
        {"level": math.nan},
        {"width": 0.0},
        {"width": math.inf},
        {"width": math.nan},
        {"colormap": "inferno?"},
    ],
)
def test_a_view_that_cannot_be_shown_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"lies in|no colour map"):
        View(**wrong)


def windowed(view: View) -> Pixels:
    """Return what each of the 256 greys is shown as, from patches that JPEG leaves alone."""
    greys = np.repeat(np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16), 8, axis=0), 8, axis=1)
    shown = pixels(painted(greys, None, ImageSize(width=128, height=128), view))
    assert np.ptp(shown, axis=2).max() == 0
    return shown[4::8, 4::8, 0].ravel()


def by_the_standard(view: View) -> list[float]:
    """PS3.3 C.11.2.1.2.1, word for word, for 256 greys."""
    c, w = 256 * view.level, 256 * view.width

    def shown(x: int) -> float:
        if x <= c - 0.5 - (w - 1) / 2:
            return 0.0
        if x > c - 0.5 + (w - 1) / 2:
            return 255.0
        return ((x - (c - 0.5)) / (w - 1) + 0.5) * 255

    return [shown(x) for x in range(256)]


@example(level=0.5, width=1.0)
@example(level=0.5, width=1 / 256)
@example(level=0.0, width=0.25)
@example(level=1.0, width=4.0)
@unhurried
@given(level=st.floats(0, 1), width=st.floats(1 / 256, 4))
def test_the_window_is_dicoms(level: float, width: float) -> None:
    view = View(level=level, width=width)
    assert np.abs(windowed(view) - by_the_standard(view)).max() <= 2  # rounding, and JPEG
    inverted = windowed(replace(view, invert=True))
    assert np.abs(inverted - (255 - np.array(by_the_standard(view)))).max() <= 2


def test_the_default_window_leaves_every_grey_alone() -> None:
    np.testing.assert_allclose(windowed(View()), np.arange(256), atol=1)
    assert windowed(View(width=1 / 256)).tolist() == [0] * 128 + [255] * 128


def test_inverting_leaves_the_colours_alone() -> None:
    grid = np.full((7, 7), 0.18)
    positive, negative = (paint(grid, view=View(opacity=1.0, invert=invert), grey=40) for invert in (False, True))
    np.testing.assert_array_equal(positive, negative)


# ── The map ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", list(Colormap))
def test_the_tables_are_the_usual_ones(kind: Colormap) -> None:
    greys = np.arange(256, dtype=np.uint8)[np.newaxis]
    usual = cv2.applyColorMap(greys, getattr(cv2, f"COLORMAP_{kind.name}"))[0, :, ::-1]
    assert np.abs(table(kind).astype(int) - usual.astype(int)).max() <= 4


@pytest.mark.parametrize("where", FILMS.values(), ids=FILMS)
@unhurried
@given(row=st.integers(0, 6), column=st.integers(0, 6))
def test_the_strongest_place_is_the_peak(where: tuple[ImageSize, GridToImage], row: int, column: int) -> None:
    shown = paint(hot_cell(row, column), where, longest=700).sum(axis=2).astype(float)
    peak = heatmap(hot_cell(row, column), where[1]).peak
    assert peak is not None
    cell = where[1].x_scale * shown.shape[1] / where[0].width, where[1].y_scale * shown.shape[0] / where[0].height
    expected = peak.x * shown.shape[1] / where[0].width - 0.5, peak.y * shown.shape[0] / where[0].height - 0.5
    rows, columns = np.nonzero(shown >= 0.95 * shown.max())
    # a cell at the edge is drawn on to it, so that its centre is one end of the strongest stretch
    assert np.abs(columns - expected[0]).min() <= 1 + 0.05 * cell[0]
    assert np.abs(rows - expected[1]).min() <= 1 + 0.05 * cell[1]
    assert np.abs(columns - expected[0]).max() <= cell[0]
    assert np.abs(rows - expected[1]).max() <= cell[1]
    if 0 < row < 6 and 0 < column < 6:
        assert columns.mean() == pytest.approx(expected[0], abs=1)
        assert rows.mean() == pytest.approx(expected[1], abs=1)


@pytest.mark.parametrize("grey", [0, 128, 255])
def test_nothing_is_painted_beyond_what_the_network_saw(grey: int) -> None:
    for where in (CROPPED, TALL):
        shown = paint(np.full((7, 7), 1.0), where, grey=grey)
        size, place = where
        shrink = max(shown.shape) / max(size.width, size.height)
        left, right = place.x_offset * shrink, (place.x_offset + 7 * place.x_scale) * shrink
        top, bottom = place.y_offset * shrink, (place.y_offset + 7 * place.y_scale) * shrink
        y, x = np.indices(shown.shape[:2]) + 0.5
        block = 8  # within which JPEG may smear
        beyond = (x < left - block) | (x > right + block) | (y < top - block) | (y > bottom + block)
        assert beyond.any()
        assert np.abs(shown - grey)[beyond].max() <= 1
        assert np.ptp(shown[round((top + bottom) / 2), round((left + right) / 2)]) > 50


def test_a_cell_that_says_nothing_leaves_the_film_alone() -> None:
    shown = paint(hot_cell(1, 1), grey=128)
    assert np.abs(shown[150:] - 128).max() <= 1
    for silent in (np.zeros((7, 7)), np.full((7, 7), -3.0)):
        for relative in (False, True):
            assert np.abs(paint(silent, grey=128, view=View(relative=relative)) - 128).max() <= 1


def test_faint_places_do_not_darken_lung() -> None:
    for kind in Colormap:
        shown = paint(np.full((7, 7), 0.01), grey=40, view=View(colormap=kind)).mean()
        assert shown >= 39


def test_the_absolute_scale_keeps_weak_maps_pale_and_the_relative_one_stretches_them() -> None:
    strong, weak = hot_cell(3, 3, 0.18), hot_cell(3, 3, 0.018)
    assert paint(weak).max() < 0.3 * paint(strong).max()
    relative = View(relative=True)
    np.testing.assert_array_equal(paint(weak, view=relative), paint(strong, view=relative))
    np.testing.assert_array_equal(paint(strong, view=relative), paint(strong))
    np.testing.assert_array_equal(paint(np.full((7, 7), 0.18)), paint(np.full((7, 7), 5.0)))  # full is full


@pytest.mark.parametrize("kind", list(Colormap))
def test_full_colour_at_full_opacity_is_the_end_of_the_table(kind: Colormap) -> None:
    shown = paint(np.full((7, 7), 0.18), view=View(opacity=1.0, colormap=kind), grey=90)
    assert np.abs(shown - table(kind)[255]).max() <= 3


def test_without_opacity_or_without_a_map_the_film_stands_alone() -> None:
    film = make_film(seed=4, size=256).pixels
    size = ImageSize(width=700, height=700)
    alone = painted(film, None, size, View())
    assert painted(film, heatmap(np.ones((7, 7))), size, View(opacity=0.0)) == alone
    assert np.abs(pixels(alone) - film[..., np.newaxis]).mean() < 2


@unhurried
@given(opacity=st.floats(0, 1), value=st.floats(0, 0.18))
def test_opacity_rises_with_the_strength_up_to_the_views_own(opacity: float, value: float) -> None:
    shown = paint(np.full((2, 2), value), (ImageSize(width=32, height=32), heatmap_place(2, 32)), View(opacity=opacity))
    share = round(255 * value / 0.18) / 255
    colour = table(Colormap.INFERNO)[int(80 + 175 * share)]
    assert np.abs(shown - opacity * share * colour).max() <= JPEG_ERROR


def heatmap_place(cells: int, side: float) -> GridToImage:
    return GridToImage(x_scale=side / cells, x_offset=0, y_scale=side / cells, y_offset=0)


@pytest.mark.parametrize("kind", list(Colormap))
@pytest.mark.parametrize("where", [*FILMS.values(), PADDED], ids=[*FILMS, "padded"])
def test_it_agrees_with_the_servers_own_overlay(where: tuple[ImageSize, GridToImage], kind: Colormap) -> None:
    size, place = where
    rng = np.random.default_rng(7)
    cells = rng.normal(0.03, 0.1, (7, 7)).astype(np.float32)
    greys = make_film(seed=2, size=512, findings=["Mass"]).pixels
    film = np.asarray(cv2.resize(greys, (size.width, size.height)) / 255, np.float32)
    radiograph = Radiograph(film, ImageHeader("png", size.width, size.height))
    prediction = replace(predict(), grid_to_image=place)
    png = explainability.overlay_png(radiograph, cells, prediction, kind)
    server = np.asarray(cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR), np.int64)[..., ::-1]
    shown = display_pixels(film, explainability.MAX_OVERLAY_SIDE)
    ours = pixels(painted(shown, heatmap(cells, place, explainability.FULL_SCALE_LOG_ODDS), size, View(colormap=kind)))
    assert ours.shape == server.shape
    assert np.abs(ours - server).mean() < 1.2


# ── Maps that no server of ours sends ────────────────────────────────────────────────────────────────────────────────


def test_the_smallest_and_a_huge_grid_are_painted() -> None:
    size = ImageSize(width=64, height=64)
    film = grey_film(size, 50, longest=64)
    one = pixels(painted(film, heatmap([[0.18]], heatmap_place(1, 64)), size, View()))
    assert np.ptp(one, axis=(0, 1)).max() <= 1  # one cell, one colour
    cells = np.zeros((512, 512))
    cells[256:384, 128:256] = 1.0
    huge = pixels(painted(film, heatmap(cells, heatmap_place(512, 64)), size, View()))
    assert np.ptp(huge[40, 24]) > 50
    assert np.abs(huge[:20] - 50).max() <= JPEG_ERROR


@pytest.mark.parametrize("grid", [(), ((),), ((1.0, 2.0), (3.0,))])
def test_a_grid_that_is_none_is_refused_not_shown_as_silence(grid: tuple[tuple[float, ...], ...]) -> None:
    broken = heatmap([[1.0]]).model_copy(update={"grid": grid})
    for refused in (
        lambda: painted(grey_film(SQUARE[0]), broken, SQUARE[0], View()),
        lambda: legend_text(View(), broken),
        lambda: legend(View(relative=True), broken),
    ):
        with pytest.raises(ValueError, match="server sent"):
            refused()


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_makes_no_heat_map(wrong: float) -> None:
    for changes in ({"grid": ((wrong,),)}, {"full_scale": wrong}):
        with pytest.raises(ValidationError, match="finite number"):
            Heatmap.model_validate(heatmap([[1.0]]).model_dump() | changes)
    with pytest.raises(ValidationError, match="finite number"):
        Peak(x=wrong, y=1.0, value=1.0)


@pytest.mark.parametrize("full_scale", [0.0, -1.0])
def test_a_scale_that_is_none_is_refused(full_scale: float) -> None:
    with pytest.raises(ValueError, match="no scale"):
        paint_scaled(full_scale)


def paint_scaled(full_scale: float) -> bytes:
    return painted(grey_film(SQUARE[0]), heatmap([[1.0]], full_scale=full_scale), SQUARE[0], View())


def test_a_map_of_a_film_of_another_shape_is_refused_and_rounding_is_not() -> None:
    with pytest.raises(ValueError, match="another shape"):
        painted(np.zeros((350, 350), np.uint8), heatmap([[1.0]]), WIDE[0], View())
    painted(np.zeros((333, 1000), np.uint8), heatmap([[1.0]]), ImageSize(width=3001, height=1001), View())
    painted(np.zeros((1, 1024), np.uint8), heatmap([[1.0]]), ImageSize(width=5000, height=1), View())


@unhurried
@given(
    cells=st.lists(st.lists(FINITE, min_size=3, max_size=3), min_size=1, max_size=4),
    place=st.tuples(*[FINITE] * 4),
    peak=st.tuples(FINITE, FINITE),
    box=st.tuples(*[FINITE] * 4),
    full_scale=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    relative=st.booleans(),
)
def test_any_numbers_are_painted_or_refused(
    cells: list[list[float]],
    place: tuple[float, ...],
    peak: tuple[float, float],
    box: tuple[float, ...],
    full_scale: float,
    relative: bool,
) -> None:
    sent = heatmap([[1.0]]).model_copy(
        update={
            "grid": tuple(map(tuple, cells)),
            "full_scale": full_scale,
            "peak": Peak(x=peak[0], y=peak[1], value=1.0),
            "box": Box(x=box[0], y=box[1], width=box[2], height=box[3]),
            "grid_to_image": GridToImage(x_scale=place[0], x_offset=place[1], y_scale=place[2], y_offset=place[3]),
        }
    )
    view = View(relative=relative, show_peak=True, show_box=True)
    try:
        shown = painted(np.zeros((20, 30), np.uint8), sent, ImageSize(width=60, height=40), view)
    except ValueError:
        return
    assert pixels(shown).shape == (20, 30, 3)


# ── Peak, box, label and legend ──────────────────────────────────────────────────────────────────────────────────────


def changed(view: View, where: tuple[ImageSize, GridToImage], box: Box | None = None, grey: int = 0) -> Pixels:
    """Return rows and columns (n, 2) that the marks of a view change."""
    sent = heatmap(hot_cell(2, 4, 1e-6), where[1], box=box)
    film = grey_film(where[0], grey, longest=700)
    with_marks, without = painted(film, sent, where[0], view), painted(film, sent, where[0], View())
    return np.argwhere(np.abs(pixels(with_marks) - pixels(without)).max(axis=2) > 60)


@pytest.mark.parametrize("grey", [0, 128, 255])
@pytest.mark.parametrize("where", FILMS.values(), ids=FILMS)
def test_the_ring_lies_around_the_peak_and_leaves_it_free(where: tuple[ImageSize, GridToImage], grey: int) -> None:
    marks = changed(View(show_peak=True), where, grey=grey)
    shrink = 700 / max(where[0].width, where[0].height)
    centre = (
        (where[1].y_offset + 2.5 * where[1].y_scale) * shrink,
        (where[1].x_offset + 4.5 * where[1].x_scale) * shrink,
    )
    assert marks.size  # on white as on black
    np.testing.assert_allclose((marks.min(axis=0) + marks.max(axis=0) + 1) / 2, centre, atol=2)
    away = np.hypot(*(marks + 0.5 - centre).T)
    assert 5 < away.min() < 12
    assert away.max() < 25


@pytest.mark.parametrize("grey", [0, 128, 255])
def test_the_box_is_a_thin_rectangle_in_its_place(grey: int) -> None:
    marks = changed(View(show_box=True), CROPPED, Box(x=400, y=100, width=300, height=200), grey)
    np.testing.assert_allclose(marks.min(axis=0), (50, 200), atol=2)
    np.testing.assert_allclose(marks.max(axis=0), (150, 350), atol=2)
    inside = (marks > (56, 206)).all(axis=1) & (marks < (144, 344)).all(axis=1)
    assert not inside.any()


def test_every_mark_is_light_with_a_dark_outline() -> None:
    white, size = grey_film(SQUARE[0], 255, longest=700), SQUARE[0]
    sent = heatmap(hot_cell(2, 4, 1e-6), box=Box(x=100, y=100, width=200, height=200))
    for view, label in ((View(show_peak=True), None), (View(show_box=True), None), (View(), "NOT DETECTED")):
        shown = pixels(painted(white, sent, size, view, label))
        light = np.abs(shown - film_view.LIGHT).max(axis=2) < 60
        dark = shown.max(axis=2) < 70
        assert light.sum() > 50
        assert dark.sum() > light.sum()


def test_what_lies_beyond_the_film_is_not_marked() -> None:
    assert not changed(View(show_box=True), SQUARE, Box(x=800, y=0, width=50, height=50)).size
    assert not changed(View(show_box=True), SQUARE, Box(x=0, y=0, width=0, height=50)).size
    partly = changed(View(show_box=True), SQUARE, Box(x=600, y=600, width=9e9, height=9e9))
    np.testing.assert_allclose(partly.max(axis=0), (699, 699), atol=1)


def test_marks_are_drawn_only_when_asked_for_and_known() -> None:
    film, size = grey_film(SQUARE[0]), SQUARE[0]
    box = Box(x=100, y=100, width=200, height=200)
    plain = painted(film, heatmap(hot_cell(3, 3)), size, View())
    assert painted(film, heatmap(hot_cell(3, 3), box=box), size, View()) == plain
    assert painted(film, heatmap(hot_cell(3, 3)), size, View(show_box=True)) == plain
    silent = heatmap(np.zeros((7, 7)))
    assert painted(film, silent, size, View(show_peak=True)) == painted(film, None, size, View())


@pytest.mark.parametrize("grey", [0, 255])
@pytest.mark.parametrize("width", [1000, 260])
def test_a_label_stands_in_the_lower_left_corner_within_the_film(grey: int, width: int) -> None:
    film, size = np.full((1000, width), grey, np.uint8), ImageSize(width=width, height=1000)
    shown = pixels(painted(film, None, size, View(), "Pleural Thickening: NOT DETECTED"))
    written = np.argwhere(np.abs(shown - grey).max(axis=2) > 60)
    assert written[:, 0].min() > 940
    assert written.max(axis=0)[0] < 1000
    assert 0 < written[:, 1].min() < 30
    assert width / 5 < written[:, 1].max() < width - 5
    assert painted(film, None, size, View(), "") == painted(film, None, size, View())


def bar(view: View, sent: Heatmap) -> Pixels:
    with Image.open(io.BytesIO(legend(view, sent))) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (256, 14))
        return np.array(image, np.int64)


@pytest.mark.parametrize("kind", list(Colormap))
def test_the_legend_shows_the_colours_that_a_film_gets(kind: Colormap) -> None:
    view = View(colormap=kind)
    shown = bar(view, heatmap([[1.0]]))
    assert shown[0, 0].tolist() == [film_view.MID_GREY] * 3
    painted_full = paint(np.full((7, 7), 0.18), view=view, grey=film_view.MID_GREY)
    assert np.abs(shown[0, 255] - painted_full[100, 100]).max() <= 3
    assert np.ptp(bar(replace(view, opacity=0.0), heatmap([[1.0]]))) == 0
    assert np.ptp(bar(replace(view, relative=True), heatmap([[0.0]]))) == 0


@pytest.mark.parametrize(
    ("relative", "value", "text"),
    [
        (False, 0.3, "Full colour: 0.18 log-odds per cell or more; the same on every film."),
        (
            False,
            -0.3,
            "Full colour: 0.18 log-odds per cell or more; the same on every film. No cell speaks for it.",
        ),
        (
            True,
            0.0301,
            "Stretched to this map's own maximum of 0.03 log-odds per cell: "
            "colours of different maps cannot be compared.",
        ),
        (True, 0.0, "No cell speaks for it."),
    ],
)
def test_the_legend_says_what_the_colours_mean(relative: bool, value: float, text: str) -> None:
    assert legend_text(View(relative=relative), heatmap([[value]])) == text


def test_a_tiny_maximum_is_not_written_as_zero() -> None:
    assert "less than 0.001 log-odds" in legend_text(View(relative=True), heatmap([[1e-9]]))
