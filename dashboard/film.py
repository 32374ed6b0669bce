"""The film as the workstation shows it: windowed, with the map of one pathology, its peak and its box painted over it.

Everything here is a pure function of what the server sent and of one `View`, so that every reader has their own.
The map is laid and mixed as `modules/explainability.py` does it; where the server paints once, a view paints often.
"""

import io
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageDraw, ImageFont

from modules.answers import ImageSize
from modules.records import Box, Heatmap, Peak
from modules.settings import Colormap

Bytes = npt.NDArray[np.uint8]
Rectangle = tuple[int, int, int, int]  # left, top, right, bottom: pixels, both ends included

MAX_SIDE = 4096  # pixels; the server renders 1024, and a browser gains nothing from more
MIN_WIDTH = 1 / 256  # of a window: a width of one grey, the least that DICOM allows
MAX_WIDTH = 4.0
JPEG_QUALITY = 90
LEGEND_SIZE = (256, 14)
MIN_FONT = 9.0  # pixels
MID_GREY = 128  # of the film below the legend's colours
SATURATED = 1e6  # times the full scale; keeps any number of a reply within float32

LIGHT, DARK = (120, 230, 255), (0, 0, 0)  # cyan: no letter on a film and no strong place of a map has it

# Anchors of the usual tables (place, red, green, blue), joined by straight lines: within 3/255 of them. Inferno and
# viridis are in the public domain (CC0).
_ANCHORS = {
    Colormap.INFERNO: (
        (0, 0, 0, 4),
        (15, 10, 7, 34),
        (26, 24, 12, 60),
        (40, 47, 10, 91),
        (48, 61, 9, 101),
        (64, 87, 16, 110),
        (88, 125, 30, 109),
        (110, 160, 42, 99),
        (132, 193, 58, 80),
        (144, 210, 70, 68),
        (166, 234, 99, 42),
        (189, 248, 137, 12),
        (199, 251, 155, 6),
        (209, 252, 174, 18),
        (222, 249, 199, 47),
        (232, 245, 219, 76),
        (241, 241, 236, 109),
        (246, 242, 244, 130),
        (255, 252, 255, 164),
    ),
    Colormap.VIRIDIS: (
        (0, 68, 1, 84),
        (23, 72, 33, 115),
        (50, 65, 66, 135),
        (81, 50, 100, 142),
        (132, 31, 148, 140),
        (151, 33, 166, 133),
        (166, 47, 180, 124),
        (177, 64, 189, 114),
        (190, 90, 200, 100),
        (203, 119, 209, 83),
        (233, 197, 224, 33),
        (239, 213, 226, 26),
        (246, 231, 228, 25),
        (255, 253, 231, 37),
    ),
    Colormap.JET: (
        (0, 0, 0, 128),
        (32, 0, 0, 255),
        (96, 0, 255, 255),
        (159, 255, 255, 0),
        (223, 255, 0, 0),
        (255, 128, 0, 0),
    ),
}
# The place on each table that stands for nothing, as on the server: inferno's black would darken lung, as air does.
_FIRST = {Colormap.INFERNO: 80, Colormap.VIRIDIS: 80, Colormap.JET: 0}


@dataclass(frozen=True)
class View:
    """How one reader wants to see one film.

    `opacity` is that of the full colour. `relative` gives the map's own maximum the full colour; otherwise
    `Heatmap.full_scale` has it, on every film alike. `level` and `width` are the centre and the width of a linear
    window (DICOM PS3.3 C.11.2.1.2.1), as shares of the film's 256 greys: 0.5 and 1 leave the film as it is.
    """

    opacity: float = 0.65
    relative: bool = False
    show_peak: bool = False
    show_box: bool = False
    level: float = 0.5
    width: float = 1.0
    invert: bool = False
    colormap: Colormap = Colormap.INFERNO

    def __post_init__(self) -> None:
        if not 0.0 <= self.opacity <= 1.0:
            raise ValueError(f"an opacity lies in [0, 1], not at {self.opacity}")
        if not 0.0 <= self.level <= 1.0:
            raise ValueError(f"the level of a window lies in [0, 1], not at {self.level}")
        if not MIN_WIDTH <= self.width <= MAX_WIDTH:
            raise ValueError(f"the width of a window lies in [1/256, {MAX_WIDTH:g}], not at {self.width}")
        if not isinstance(self.colormap, Colormap):
            raise ValueError(f"no colour map is called {self.colormap!r}")  # noqa: TRY004 - one class for every refusal


# ── The film ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def decoded(png: bytes) -> Bytes:
    """Return the greys (H, W) of a PNG that the server rendered; raises ValueError for anything else, or a giant."""
    try:
        with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
            _check_film(image)  # by its header, before a pixel is decoded
            return np.array(image.convert("L"), np.uint8)
    except ValueError:
        raise
    except Exception as exc:  # a damaged file fails in as many ways as there are chunks
        raise ValueError("The film that the server sent is no readable PNG.") from exc


def painted(film: Bytes, heatmap: Heatmap | None, size: ImageSize, view: View, label: str | None = None) -> bytes:
    """Return a JPEG of a film (H, W) as a view shows it, in its own resolution, with a label in its lower left corner.

    `size` is that of the film as it was analysed, in which the heat map's numbers are given. Raises ValueError for a
    heat map that cannot be painted, or that belongs to a film of another shape.
    """
    if film.ndim != 2 or film.dtype != np.uint8 or film.size == 0:
        raise ValueError(f"a film is uint8 (H, W), not {film.dtype} {film.shape}")
    grey = Image.fromarray(film).point(_window(view).tolist())
    picture = grey.convert("RGB") if heatmap is None else _with_map(grey, heatmap, size, view)
    if label:
        _write(picture, label)
    return _jpeg(picture)


def _check_film(image: Image.Image) -> None:
    if max(image.size) > MAX_SIDE:
        raise ValueError(f"The film that the server sent has a side of more than {MAX_SIDE} pixels.")
    if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
        raise ValueError("The film that the server sent has more than 8 bits a pixel.")  # Pillow would cut, not scale


def _window(view: View) -> Bytes:
    """Return the grey (256,) that each grey of the film is shown as."""
    centre, width = 256 * view.level - 0.5, 256 * view.width - 1
    greys = np.arange(256)
    # the standard's own three cases; the quotient alone would be undefined for a width of one grey
    below, above = greys <= centre - width / 2, greys > centre + width / 2
    within = ((greys - centre) / max(width, MIN_WIDTH) + 0.5) * 255
    shown = np.select([below, above], [0.0, 255.0], within)
    return np.rint(255.0 - shown if view.invert else shown).astype(np.uint8)


def _jpeg(picture: Image.Image) -> bytes:
    """Encode a picture; measured at 1024 × 1024, PNG takes ten times as long (50 ms) and six times the bytes."""
    buffer = io.BytesIO()
    # colours at full resolution: they must not bleed beyond what the network saw, nor blur a thin line
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


# ── The map ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def table(colormap: Colormap) -> Bytes:
    """Return a whole colour map as red, green and blue (256, 3)."""
    anchors = np.array(_ANCHORS[colormap], np.float64)
    channels = [np.interp(np.arange(256), anchors[:, 0], anchors[:, channel]) for channel in (1, 2, 3)]
    return np.rint(np.stack(channels, axis=1)).astype(np.uint8)


def _cells(heatmap: Heatmap) -> npt.NDArray[np.float64]:
    """Return the grid (h, w); the schema lets ragged rows pass."""
    if len({len(row) for row in heatmap.grid}) != 1 or not heatmap.grid[0]:
        raise ValueError("The heat map that the server sent has no rectangular grid.")
    return np.array(heatmap.grid, np.float64)


def _own_maximum(heatmap: Heatmap) -> float:
    """Return the largest value of a map, and 0 when nothing speaks for the pathology."""
    return max(0.0, float(_cells(heatmap).max()))


def _full_scale(heatmap: Heatmap, view: View) -> float:
    """Return the log-odds per cell that get the full colour; 0 for a relative view of a map with nothing to stretch."""
    if view.relative:
        return _own_maximum(heatmap)
    if heatmap.full_scale <= 0.0:
        raise ValueError("The heat map that the server sent has no scale.")
    return heatmap.full_scale


def _shrink(shown: tuple[int, int], size: ImageSize) -> tuple[float, float]:
    """Return shown pixels per analysed pixel, across and down; refuses a film whose shape is not that of `size`."""
    if min(size.width, size.height) < 1:
        raise ValueError(f"an image of {size.width} x {size.height} pixels has no content")
    factor = max(shown) / max(size.width, size.height)
    if max(abs(shown[0] - factor * size.width), abs(shown[1] - factor * size.height)) > 1.0:  # beyond rounding
        raise ValueError("The heat map belongs to a film of another shape.")
    return shown[0] / size.width, shown[1] / size.height


def _with_map(grey: Image.Image, heatmap: Heatmap, size: ImageSize, view: View) -> Image.Image:
    x_shrink, y_shrink = _shrink(grey.size, size)
    picture = _mixed(grey, _strength(heatmap, view, grey.size, x_shrink, y_shrink), view)
    if view.show_box and heatmap.box is not None:
        _draw_box(picture, heatmap.box, x_shrink, y_shrink)
    if view.show_peak and heatmap.peak is not None:
        _draw_peak(picture, heatmap.peak, x_shrink, y_shrink)
    return picture


def _strength(heatmap: Heatmap, view: View, shown: tuple[int, int], x_shrink: float, y_shrink: float) -> Image.Image:
    """Lay a map over the film as shown: 0 for nothing, 255 for the full colour or more, 0 where the network was blind.

    The grid is interpolated between the centres of its cells. Pillow counts pixels as we do cells, from edge to edge,
    and repeats the outermost cells, so no half shift is needed. (Its affine transform would take five times as long.)
    """
    cells, full_scale, place = np.maximum(_cells(heatmap), 0.0), _full_scale(heatmap, view), heatmap.grid_to_image
    strength = Image.new("L", shown, 0)
    across = _seen(place.x_offset * x_shrink, place.x_scale * x_shrink, cells.shape[1], shown[0])
    down = _seen(place.y_offset * y_shrink, place.y_scale * y_shrink, cells.shape[0], shown[1])
    if full_scale == 0.0 or across is None or down is None:
        return strength
    with np.errstate(over="ignore"):  # an infinite strength is a full one
        share = np.minimum(cells / full_scale, SATURATED)
    grid = Image.fromarray((255.0 * share + 0.5).astype(np.float32))  # Pillow cuts where we want to round
    seen = (across.last - across.first, down.last - down.first)
    box = (across.grid_first, down.grid_first, across.grid_last, down.grid_last)
    strength.paste(grid.resize(seen, Image.Resampling.BILINEAR, box).convert("L"), (across.first, down.first))
    return strength


class _Seen(NamedTuple):
    """The shown pixels, `last` excluded, whose centres the network saw along one axis, and the grid below them."""

    first: int
    last: int
    grid_first: float
    grid_last: float


def _seen(offset: float, scale: float, cells: int, side: int) -> _Seen | None:
    """Return where a row of cells lies on a side of the film, all in shown pixels; None when it lies outside."""
    end = offset + scale * cells
    if not (math.isfinite(offset) and math.isfinite(end) and scale > 0.0):
        raise ValueError("The heat map that the server sent has no place on the film.")
    first, last = round(min(max(0.0, offset), side)), round(max(0.0, min(end, side)))
    if first >= last:
        return None
    # rounding to whole pixels may reach half a pixel beyond the grid, where nothing can be read
    return _Seen(first, last, max(0.0, (first - offset) / scale), min(float(cells), (last - offset) / scale))


def _mixed(grey: Image.Image, strength: Image.Image, view: View) -> Image.Image:
    """Paint a strength over greys: the stronger, the more of its colour and the less of the film."""
    opacity = view.opacity * np.arange(256) / 255
    places = np.linspace(_FIRST[view.colormap], 255, 256).astype(np.uint8)
    paint = np.rint(table(view.colormap)[places] * opacity[:, np.newaxis]).astype(np.uint8)
    share_of_film = np.rint(255 * (1.0 - opacity)).astype(np.uint8)
    film = ImageChops.multiply(grey, strength.point(share_of_film.tolist()))
    channels = [ImageChops.add(film, strength.point(paint[:, channel].tolist())) for channel in range(3)]
    return Image.merge("RGB", channels)


# ── The marks ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _line_width(picture: Image.Image) -> int:
    return max(1, round(max(picture.size) / 512))


def _draw_box(picture: Image.Image, box: Box, x_shrink: float, y_shrink: float) -> None:
    """Outline the part of a box that lies on the film."""
    across = _span(box.x * x_shrink, box.width * x_shrink, picture.width)
    down = _span(box.y * y_shrink, box.height * y_shrink, picture.height)
    if across is None or down is None:
        return
    outline, line = (across[0], down[0], across[1], down[1]), _line_width(picture)
    draw = ImageDraw.Draw(picture)
    draw.rectangle(_grown(outline), outline=DARK, width=line + 2)
    draw.rectangle(outline, outline=LIGHT, width=line)


def _span(start: float, length: float, side: int) -> tuple[int, int] | None:
    """Return the first and the last pixel of a stretch, within a side; None when it lies outside or has no length."""
    end = start + length
    if not (math.isfinite(start) and math.isfinite(end) and start < end and start < side and end > 0.0):
        return None
    first = min(side - 1, round(max(0.0, start)))
    return first, max(first, round(min(float(side), end)) - 1)


def _draw_peak(picture: Image.Image, peak: Peak, x_shrink: float, y_shrink: float) -> None:
    """Draw a ring with four hairs around a peak on the film, its inside left free to be read."""
    x, y = peak.x * x_shrink, peak.y * y_shrink
    if not (0.0 <= x <= picture.width and 0.0 <= y <= picture.height):
        return
    column, row = min(picture.width - 1, int(x)), min(picture.height - 1, int(y))
    line = _line_width(picture)
    radius = max(4, round(max(picture.size) / 64))
    far, half = radius + max(3, radius // 2), line // 2
    ring = (column - radius, row - radius, column + radius, row + radius)
    left, top = column - half, row - half
    right, bottom = left + line - 1, top + line - 1
    hairs = (
        (column - far, top, column - radius, bottom),
        (column + radius, top, column + far, bottom),
        (left, row - far, right, row - radius),
        (left, row + radius, right, row + far),
    )
    draw = ImageDraw.Draw(picture)
    for hair in hairs:
        draw.rectangle(_grown(hair), fill=DARK)
    draw.ellipse(_grown(ring), outline=DARK, width=line + 2)
    for hair in hairs:
        draw.rectangle(hair, fill=LIGHT)
    draw.ellipse(ring, outline=LIGHT, width=line)


def _write(picture: Image.Image, label: str) -> None:
    """Write a label into the lower left corner, as large as it fits and no larger than it must be."""
    size = max(MIN_FONT, max(picture.size) / 40)
    margin = round(size / 2)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size)
    room = picture.width - 2 * margin
    length = draw.textlength(label, font)
    if length > room > 0:
        font = ImageFont.load_default(max(MIN_FONT, size * room / length))
    place, outline = (margin, picture.height - margin), _line_width(picture)
    draw.text(place, label, LIGHT, font, anchor="ld", stroke_width=outline, stroke_fill=DARK)


def _grown(rectangle: Rectangle) -> Rectangle:
    left, top, right, bottom = rectangle
    return left - 1, top - 1, right + 1, bottom + 1


# ── The legend ───────────────────────────────────────────────────────────────────────────────────────────────────────


def legend(view: View, heatmap: Heatmap) -> bytes:
    """Return a PNG (14, 256) of the colours from nothing to full, each as it looks over the middle grey of a film."""
    width, height = LEGEND_SIZE
    greys = np.tile(np.arange(width, dtype=np.uint8), (height, 1))
    if _full_scale(heatmap, view) == 0.0:
        greys[:] = 0  # nothing to stretch: no colour means anything
    bar = _mixed(Image.new("L", LEGEND_SIZE, MID_GREY), Image.fromarray(greys), view)
    buffer = io.BytesIO()
    bar.save(buffer, "PNG")
    return buffer.getvalue()


def legend_text(view: View, heatmap: Heatmap) -> str:
    """Say in words and numbers what the colours mean."""
    scale, silent = _full_scale(heatmap, view), _own_maximum(heatmap) == 0.0
    if view.relative and silent:
        return "No cell speaks for it."
    if view.relative:
        return (
            f"Stretched to this map's own maximum of {_amount(scale)} log-odds per cell: "
            "colours of different maps cannot be compared."
        )
    text = f"Full colour: {_amount(scale)} log-odds per cell or more; the same on every film."
    return f"{text} No cell speaks for it." if silent else text


def _amount(value: float) -> str:
    return f"{value:.2g}" if value >= 0.001 else "less than 0.001"
