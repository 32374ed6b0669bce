"""Shapes and their path lengths along z, in cm: what a parallel ray from back to front crosses.

Axes of the patient, as the film shows them: x to the image's right (the patient's left) from the midline, y down from
the apices of the lungs, z from back to front.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
Points = npt.NDArray[np.float64]
Knots = Sequence[tuple[float, float]]


def curve(knots: Knots, at: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Interpolate (position, value) knots smoothly, with both ends held constant beyond the knots."""
    t, v = np.asarray(knots, np.float64).T
    slopes = np.gradient(v, t)
    # A slope of zero at a local extremum keeps the curve from overshooting the knots there.
    steps = np.diff(v)
    slopes[1:-1][steps[:-1] * steps[1:] <= 0] = 0.0
    x = np.clip(np.asarray(at, np.float64), t[0], t[-1])
    i = np.clip(np.searchsorted(t, x, side="right") - 1, 0, len(t) - 2)
    h = t[i + 1] - t[i]
    s = (x - t[i]) / h
    first = (1 + 2 * s) * (1 - s) ** 2 * v[i] + s * (1 - s) ** 2 * h * slopes[i]
    return np.asarray(first + s**2 * (3 - 2 * s) * v[i + 1] + s**2 * (s - 1) * h * slopes[i + 1])


@dataclass(frozen=True, eq=False)
class Grid:
    """The rays of a square film: where in the patient each pixel's ray passes."""

    size: int  # pixels a side
    x: FloatArray  # (H, W), cm
    y: FloatArray  # (H, 1), cm
    cm_per_pixel: float  # across the film
    cm_per_row: float  # down the film, in the phantom's own cm: the thorax is stretched to the patient's height
    shift: FloatArray  # (H,), cm by which the midline of a row lies to the right of the film's centre
    top: float  # y of the film's upper edge, cm

    @classmethod
    def of(cls, size: int, field: float, top: float, stretch: float, shift: float, tilt: float) -> "Grid":
        """Lay rays over `field` cm of a patient whose midline leans by `tilt` (cm per cm)."""
        pixel = field / size
        row = pixel / stretch
        y = top + (np.arange(size) + 0.5) * row
        shifts = shift + tilt * (y - 12.0) * stretch
        x = (np.arange(size) + 0.5)[None, :] * pixel - field / 2 - shifts[:, None]
        as_float = np.float32
        return cls(size, x.astype(as_float), y[:, None].astype(as_float), pixel, row, shifts.astype(as_float), top)

    def column_of(self, x: Points, y: Points) -> Points:
        """Pixel columns (continuous, 0 = left edge of the film) of points in cm."""
        shifts = np.interp(y, self.y[:, 0], self.shift)
        return np.asarray((x + shifts) / self.cm_per_pixel + self.size / 2)

    def row_of(self, y: Points) -> Points:
        """Pixel rows (continuous, 0 = upper edge of the film) of points in cm."""
        return np.asarray((y - self.top) / self.cm_per_row)

    def profile(self, knots: Knots) -> FloatArray:
        """A quantity that depends on the height only: (H, 1)."""
        return curve(knots, self.y).astype(np.float32)

    def window(self, x: float, y: float, reach_x: float, reach_y: float) -> tuple[slice, slice]:
        """Rows and columns that hold everything within `reach` cm of a point; empty when that is off the film."""
        centre = self.column_of(np.array([x, x]), np.array([y - reach_y, y + reach_y]))
        half = reach_x / self.cm_per_pixel + 2
        rows = self.row_of(np.array([y - reach_y, y + reach_y]))
        left, right = np.clip([centre.min() - half, centre.max() + half], 0, self.size).astype(int)
        above, below = np.clip([rows[0] - 2, rows[1] + 3], 0, self.size).astype(int)
        return slice(above, below), slice(left, right)


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid with semi-axes a, b in the film's plane (a turned clockwise by `angle`, radians) and c along z."""

    x: float
    y: float
    a: float
    b: float
    c: float
    angle: float = 0.0


def add_chord(canvas: FloatArray, grid: Grid, e: Ellipsoid, weight: float = 1.0) -> None:
    """Add the path length of every ray through an ellipsoid, times `weight`, to a canvas (H, W)."""
    reach = max(e.a, e.b)
    rows, columns = grid.window(e.x, e.y, reach, reach)
    dx, dy = grid.x[rows, columns] - np.float32(e.x), grid.y[rows] - np.float32(e.y)
    cos, sin = np.float32(np.cos(e.angle)), np.float32(np.sin(e.angle))
    inside = 1 - ((dx * cos + dy * sin) / np.float32(e.a)) ** 2 - ((dy * cos - dx * sin) / np.float32(e.b)) ** 2
    canvas[rows, columns] += np.float32(2 * e.c * weight) * np.sqrt(np.maximum(inside, 0))


def chord(grid: Grid, e: Ellipsoid) -> FloatArray:
    """Path length (H, W) of every ray through an ellipsoid, cm."""
    canvas = np.zeros((grid.size, grid.size), np.float32)
    add_chord(canvas, grid, e)
    return canvas


def union(*chords: FloatArray) -> FloatArray:
    """Path length through overlapping shapes: their Euclidean sum, which leaves no crease where one meets another."""
    total = np.square(chords[0])
    for other in chords[1:]:
        total += np.square(other)
    return np.sqrt(total)


class Splatter:
    """Projects points that each carry a volume onto the film, with bilinear weights."""

    def __init__(self, grid: Grid, rotation: float = 0.0) -> None:
        self._grid = grid
        self._turn = np.sin(rotation)  # turning about the spine makes depth a sideways displacement
        self._canvas = np.zeros((grid.size, grid.size), np.float32)

    def add(self, points: Points, volumes: Points) -> None:
        """Add points (..., 3) in cm with their volumes (...) in cm³."""
        grid = self._grid
        y = points[..., 1]
        columns = (grid.column_of(points[..., 0] + self._turn * points[..., 2], y).ravel() - 0.5).astype(np.float32)
        rows = (grid.row_of(y).ravel() - 0.5).astype(np.float32)
        last = grid.size - 1
        on_film = (columns > 0) & (columns < last) & (rows > 0) & (rows < last)
        if not on_film.any():
            return
        columns, rows = columns[on_film], rows[on_film]
        weights = np.broadcast_to(volumes, y.shape).ravel()[on_film] / (grid.cm_per_pixel * grid.cm_per_row)
        left, above = columns.astype(np.int32), rows.astype(np.int32)
        right_part, lower_part = columns - left, rows - above
        # Only the window that the shape covers: it stays in the processor's cache.
        x0, y0 = int(left.min()), int(above.min())
        width, height = int(left.max()) - x0 + 2, int(above.max()) - y0 + 2
        index = (above - y0) * width + (left - x0)
        lower = weights * lower_part
        upper = weights - lower
        total = np.zeros(width * height)
        for offset, weight in ((0, upper), (width, lower)):
            right = weight * right_part
            total += np.bincount(index + offset, weight - right, minlength=len(total))
            total += np.bincount(index + (offset + 1), right, minlength=len(total))
        self._canvas[y0 : y0 + height, x0 : x0 + width] += total.reshape(height, width).astype(np.float32)

    def image(self) -> FloatArray:
        """Path length (H, W), cm: the volume over each pixel by the pixel's area."""
        return self._canvas


@dataclass(frozen=True, eq=False)
class Tube:
    """A bent tube of elliptical section: a rib, a clavicle, a vessel."""

    path: Points  # (S, 3), the centre line, cm
    normal: Points  # (S, 3), unit vectors along the section's short axis
    half_height: float | Points  # along the long axis, cm; one value or (S,)
    half_thickness: float | Points  # along `normal`, cm; one value or (S,)
    cortex: float | Points = 0.1  # thickness of the dense shell, cm; one value or (S,)


def resample(path: Points, step: float) -> Points:
    """Spread points (S, D) evenly along a polyline, `step` cm apart, never fewer than four."""
    lengths = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(path[:, :3], axis=0), axis=1))])
    at = np.linspace(0.0, lengths[-1], max(4, int(np.ceil(lengths[-1] / step)) + 1))
    return np.stack([np.interp(at, lengths, column) for column in path.T], axis=1)


def smooth_path(knots: Sequence[Sequence[float]], count: int = 40) -> Points:
    """A smooth centre line (count, 3) through a few points."""
    points = np.asarray(knots, np.float64)
    t = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    at = np.linspace(0.0, t[-1], count)
    return np.stack([curve(list(zip(t, column, strict=True)), at) for column in points.T], axis=1)


def splat_bone(splatter: Splatter, tube: Tube, step: float, marrow: float) -> None:
    """Splat a bone with rounded ends: a dense shell around an inside whose density is `marrow` of the shell's."""
    count = len(tube.path)
    sizes = [np.broadcast_to(v, (count,)) for v in (tube.half_height, tube.half_thickness, tube.cortex)]
    samples = resample(np.column_stack([tube.path, tube.normal, *sizes]), step)
    centre, normal = samples[:, :3], samples[:, 3:6]
    tangent = np.gradient(centre, axis=0)
    length = np.linalg.norm(tangent, axis=1)
    along = np.cumsum(length)
    from_end = np.minimum(along, along[-1] - along + length[-1]) / np.maximum(samples[:, 6], 1e-3)
    cap = np.sqrt(1 - np.square(1 - np.clip(from_end, 0.02, 1)))
    a, b, cortex = samples[:, 6] * cap, samples[:, 7] * cap, samples[:, 8]
    across = np.cross(tangent / length[:, None], normal)
    girth = np.pi * float(a.mean() + b.mean())
    phi = np.linspace(0, 2 * np.pi, max(12, int(np.ceil(girth / step))), endpoint=False)
    perimeter = np.sqrt((a[:, None] * np.cos(phi)) ** 2 + (b[:, None] * np.sin(phi)) ** 2)
    around = np.sin(phi)[None, :, None] * across[:, None] * a[:, None, None]
    around = around + np.cos(phi)[None, :, None] * normal[:, None] * b[:, None, None]
    shell = perimeter * (2 * np.pi / len(phi)) * length[:, None]  # cm² of surface that each point stands for
    splatter.add(centre[:, None] + around, shell * cortex[:, None])
    count = max(4, int(np.ceil(2 * float(a.mean()) / step)))
    q = (np.arange(count) + 0.5) / count * 2 - 1
    fill = np.sqrt(1 - q**2) / np.sqrt(1 - q**2).sum()
    inside = centre[:, None] + (q * a[:, None])[..., None] * across[:, None]
    volumes = (np.pi * a * b * length * marrow)[:, None] * fill / 2
    for layer in (-0.5, 0.5):
        splatter.add(inside + (layer * b[:, None] * np.sqrt(1 - q**2))[..., None] * normal[:, None], volumes)


def splat_solid(splatter: Splatter, path: Points, radius: float | Points, step: float) -> None:
    """Splat solid tubes of circular section along paths (..., S, 3), `radius` one value or (..., S)."""
    r = np.broadcast_to(np.asarray(radius, np.float64), path.shape[:-1])
    tangent = np.gradient(path, axis=-2)
    length = np.linalg.norm(tangent, axis=-1)
    flat = np.hypot(tangent[..., 0], tangent[..., 1]) + 1e-9
    side = np.stack([-tangent[..., 1] / flat, tangent[..., 0] / flat, np.zeros_like(r)], axis=-1)
    count = max(5, int(np.ceil(2 * r.max() / step)))
    q = (np.arange(count) + 0.5) / count * 2 - 1
    profile = np.sqrt(1 - q**2) / np.sqrt(1 - q**2).sum()
    offsets = side[..., None, :] * (q * r[..., None])[..., None]
    splatter.add(path[..., None, :] + offsets, (np.pi * r**2 * length)[..., None] * profile)


def fractal_noise(rng: np.random.Generator, size: int, finest: int, octaves: int = 3) -> FloatArray:
    """Smooth noise (size, size) of about unit deviation whose finest grain is `size / finest` pixels."""
    total = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        cells = max(3, finest >> octave)
        grain = rng.standard_normal((cells, cells), np.float32)
        if cells < size:
            total += cv2.resize(grain, (size, size), interpolation=cv2.INTER_CUBIC)
        else:
            total += cv2.resize(grain, (size, size), interpolation=cv2.INTER_AREA)
    return total / np.float32(np.sqrt(octaves) * 0.75)
