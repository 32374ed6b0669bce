"""From the stored values of a DICOM film to what a viewer shows (DICOM Part 4, N.2): modality LUT, VOI LUT, inversion.

A stored value has at most 16 bits, and each step maps values, not places. So every step works on a table of the 256 or
65,536 possible values, and the film is looked up in it once: exact, and no wide copy of 40 million pixels is made.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from modules.records import FloatArray

Values = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
StoredPixels = npt.NDArray[Any]  # (H, W) of int8, uint8, int16 or uint16

WINDOW_PERCENTILES = (0.5, 99.5)  # robust window for a film without one: chosen, not fitted
BLOCK_PIXELS = 1 << 20  # numpy widens what it counts or looks up to 64 bits: a block at a time
MAX_EXPONENT = 50.0  # exp(50) is 1 / 0 for our purposes, and does not overflow


@dataclass(frozen=True)
class LookupTable:
    """A modality or VOI LUT (Part 3, C.11.1.1): value `first` maps to the first entry, what lies beyond to the ends."""

    first: int
    entries: Values  # (N,)

    def __call__(self, values: Values) -> Values:
        """Look up values of any shape."""
        places = np.clip(np.rint(values) - self.first, 0, self.entries.size - 1)
        return np.asarray(self.entries[places.astype(np.int64)])


@dataclass(frozen=True)
class Window:
    """A window (Part 3, C.11.2.1): LINEAR, LINEAR_EXACT or SIGMOID."""

    center: float
    width: float
    function: str = "LINEAR"

    @property
    def usable(self) -> bool:
        """Whether the width is one that the standard allows; a film with another is shown without it."""
        least = 1.0 if self.function == "LINEAR" else 0.0
        return math.isfinite(self.center) and math.isfinite(self.width) and self.width > least

    def __call__(self, values: Values) -> Values:
        """Map values, up to scale and offset, as the scale that follows removes both."""
        if self.function == "SIGMOID":
            steepness = np.clip(-4.0 * (values - self.center) / self.width, -MAX_EXPONENT, MAX_EXPONENT)
            return 1.0 / (1.0 + np.exp(steepness))
        shift = 0.5 if self.function == "LINEAR" else 0.0  # C.11.2.1.2.1: c − 0.5, w − 1
        half = self.width / 2.0 - shift
        return np.clip(values, self.center - shift - half, self.center - shift + half)


@dataclass(frozen=True)
class Presentation:
    """How the header asks for its stored values to be shown."""

    slope: float = 1.0
    intercept: float = 0.0
    modality_lut: LookupTable | None = None  # replaces slope and intercept
    voi_lut: LookupTable | None = None  # preferred to the window
    window: Window | None = None
    padding: tuple[int, int] | None = None  # least and largest stored value that is no image
    inverted: bool = False  # MONOCHROME1: the least value is white


def render(stored: StoredPixels, presentation: Presentation, *, invert: bool = False) -> FloatArray:
    """Return the film (H, W) in [0, 1], bright = dense; padding is 0, whichever way the greyscale runs."""
    codes = stored.view(f"u{stored.dtype.itemsize}")
    levels = np.arange(256**stored.dtype.itemsize, dtype=codes.dtype).view(stored.dtype).astype(np.float64)
    counts = _histogram(codes, levels.size)
    padding = np.zeros(levels.shape, bool)
    if presentation.padding is not None:
        padding = (levels >= presentation.padding[0]) & (levels <= presentation.padding[1])
        counts[padding] = 0
    table = _unit_range(_display(levels, counts, presentation), counts)
    if presentation.inverted != invert:
        table = 1.0 - table
    table[padding] = 0.0
    return _look_up(table.astype(np.float32), codes)


def scale_to_own_range(stored: StoredPixels) -> FloatArray:
    """Return 16-bit greyscale (H, W) scaled so that its least value is 0 and its largest 1; a flat image is 0."""
    low, high = int(stored.min()), int(stored.max())
    scaled = np.subtract(stored, low, dtype=np.float32)
    return np.divide(scaled, max(high - low, 1), out=scaled)


def _display(levels: Values, counts: Counts, presentation: Presentation) -> Values:
    """Apply modality and VOI LUT; a window that leaves the film blank is replaced like a missing one."""
    lut = presentation.modality_lut
    values = lut(levels) if lut is not None else levels * presentation.slope + presentation.intercept
    for transform in (presentation.voi_lut, presentation.window):
        if transform is not None:
            display = transform(values)
            if _varies(display, counts):
                return display
    low, high = _percentiles(values, counts)
    return np.clip(values, low, high) if high > low else values


def _varies(values: Values, counts: Counts) -> bool:
    present = values[counts > 0]
    return present.size > 0 and bool(present.max() > present.min())


def _percentiles(values: Values, counts: Counts) -> tuple[float, float]:
    total = int(counts.sum())
    if total == 0:
        return 0.0, 0.0
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(counts[order])
    low, high = (values[order][np.searchsorted(reached, total * p / 100.0)] for p in WINDOW_PERCENTILES)
    return float(low), float(high)


def _unit_range(display: Values, counts: Counts) -> Values:
    """Scale so that the values that occur span [0, 1]; a flat film is 0."""
    if not _varies(display, counts):
        return np.zeros(display.shape)
    present = display[counts > 0]
    low, high = present.min(), present.max()
    return np.asarray(np.clip((display - low) / (high - low), 0.0, 1.0))


def _blocks(pixels: StoredPixels) -> Iterator[slice]:
    rows = max(1, BLOCK_PIXELS // pixels.shape[1])
    return (slice(start, start + rows) for start in range(0, pixels.shape[0], rows))


def _histogram(codes: StoredPixels, size: int) -> Counts:
    counts = np.zeros(size, np.int64)
    for block in _blocks(codes):
        counts += np.bincount(codes[block].ravel(), minlength=size)
    return counts


def _look_up(table: FloatArray, codes: StoredPixels) -> FloatArray:
    film = np.empty(codes.shape, np.float32)
    for block in _blocks(codes):
        film[block] = table[codes[block]]
    return film
