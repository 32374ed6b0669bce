"""From the stored values of a DICOM film to what a viewer shows (DICOM Part 4, N.2): modality LUT, VOI LUT, inversion.

A stored value has at most 16 bits, and each step maps values, not places. So pydicom maps a table of the 256 or 65,536
possible values, and the film is looked up in it once: exact, and no wide copy of 40 million pixels is made.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt

from modules.records import FloatArray

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

StoredPixels = npt.NDArray[Any]  # (H, W) of int8, uint8, int16 or uint16

WINDOW_QUANTILES = (0.005, 0.995)  # robust window for a film without one: chosen, not fitted


@dataclass(frozen=True)
class Presentation:
    """How the header asks for its stored values to be shown."""

    modality: "Dataset"  # rescale slope and intercept, or a modality LUT
    views: tuple["Dataset", ...] = ()  # VOI LUT and window, the preferred one first
    padding: tuple[int, int] | None = None  # least and largest stored value that is no image
    inverted: bool = False  # MONOCHROME1: the least value is white


def render(stored: StoredPixels, presentation: Presentation, *, invert: bool = False) -> FloatArray:
    """Return the film (H, W) in [0, 1], bright = dense; padding is 0, whichever way the greyscale runs."""
    codes = stored.view(f"u{stored.dtype.itemsize}")
    levels = np.arange(256**codes.itemsize, dtype=codes.dtype).view(stored.dtype).astype(np.int64)
    counts = cv2.calcHist([codes], [0], None, [levels.size], [0, levels.size]).ravel()
    padding = np.zeros(levels.shape, bool)
    if presentation.padding is not None:
        padding = (levels >= presentation.padding[0]) & (levels <= presentation.padding[1])
        counts[padding] = 0
    table = np.zeros(levels.shape)
    if counts.any():
        display = _display(levels, counts, presentation)
        low, high = _range(display, counts)
        if high > low:
            table = np.clip((display - low) / (high - low), 0.0, 1.0)
    if presentation.inverted != invert:
        table = 1.0 - table
    table[padding] = 0.0
    return np.asarray(cv2.LUT(codes, table.astype(np.float32)), np.float32)


def _display(levels: npt.NDArray[Any], counts: npt.NDArray[Any], presentation: Presentation) -> npt.NDArray[np.float64]:
    """Apply modality LUT and VOI LUT or window; one that leaves the film blank is passed over."""
    from pydicom.pixels.processing import apply_modality_lut, apply_windowing

    values = apply_modality_lut(levels, presentation.modality).astype(np.float64)
    for view in presentation.views:
        if "WindowCenter" in view:
            with np.errstate(over="ignore"):  # far from the centre of a sigmoid; the limit is what is meant
                display = apply_windowing(values, view)
        else:  # not `apply_voi`: it keeps places in the type of the entries, 256 or 65,536, beyond which they wrap
            display = apply_modality_lut(np.rint(values).astype(np.int64), view).astype(np.float64)
        low, high = _range(display, counts)
        if high > low:
            return display
    low, high = np.quantile(values, WINDOW_QUANTILES, weights=counts, method="inverted_cdf")
    return np.clip(values, low, high) if high > low else values


def _range(display: npt.NDArray[np.float64], counts: npt.NDArray[Any]) -> tuple[float, float]:
    """Return the least and largest of the values that occur."""
    present = display[counts > 0]
    return float(present.min()), float(present.max())
