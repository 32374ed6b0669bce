"""Heatmaps against radiologists' boxes: the pointing game (Zhang et al., IJCV 2018) and the overlap of areas.

Everything is in shares of the film's width and height, so that boxes of an original fit the map of a smaller copy.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from evaluation.metrics import intersection_over_union
from modules.explainability import BOX_LEVEL
from modules.pathologies import canonical_name
from modules.records import FloatArray, GridToImage

RASTER = 256  # cells a side, on which areas are compared
OVERLAPS = (0.1, 0.25, 0.5)  # from which on a map or a guess counts as overlapping, as in Wang et al. (CVPR 2017)
COLUMNS = ("image", "finding", "x", "y", "width", "height")


class BoxesError(ValueError):
    """The table of boxes cannot be used; the message says what to change."""


@dataclass(frozen=True)
class FindingBox:
    """A radiologist's box, in pixels of the film that it was drawn on."""

    image: str
    finding: str
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Area:
    """A box in shares of the film's sides."""

    left: float
    top: float
    right: float
    bottom: float

    def contains(self, x: float, y: float) -> bool:
        """Whether a point lies in the box."""
        return self.left <= x <= self.right and self.top <= y <= self.bottom

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """The cells of the raster whose centre lies in the box."""
        centres = (np.arange(RASTER) + 0.5) / RASTER
        rows = (centres >= self.top) & (centres <= self.bottom)
        return np.outer(rows, (centres >= self.left) & (centres <= self.right))


@dataclass(frozen=True)
class PlacedMap:
    """One Grad-CAM grid (h, w) in calibrated log-odds per cell, and the part of the film that it covers."""

    grid: tuple[tuple[float, ...], ...]
    area: Area

    @property
    def peak(self) -> tuple[float, float] | None:
        """Centre of the strongest cell, or None where nothing speaks for the finding."""
        cam = np.array(self.grid)
        if cam.max() <= 0.0:
            return None
        row, column = np.unravel_index(int(cam.argmax()), cam.shape)
        x = self.area.left + (float(column) + 0.5) / cam.shape[1] * (self.area.right - self.area.left)
        y = self.area.top + (float(row) + 0.5) / cam.shape[0] * (self.area.bottom - self.area.top)
        return x, y

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """The cells of the raster above half of the peak, between cells by linear interpolation."""
        cam = np.maximum(np.array(self.grid, np.float32), 0.0)
        if cam.max() <= 0.0:
            return np.zeros((RASTER, RASTER), bool)
        centres = (np.arange(RASTER, dtype=np.float32) + 0.5) / RASTER
        x = (centres - self.area.left) / (self.area.right - self.area.left)
        y = (centres - self.area.top) / (self.area.bottom - self.area.top)
        columns, rows = np.meshgrid(x * cam.shape[1] - 0.5, y * cam.shape[0] - 0.5)
        wide = cv2.remap(
            cam, columns.astype(np.float32), rows.astype(np.float32), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        seen = np.outer((y >= 0) & (y <= 1), (x >= 0) & (x <= 1))
        return np.asarray((wide >= BOX_LEVEL * cam.max()) & seen)


@dataclass(frozen=True)
class Comparison:
    """One box beside the map of its finding and two guesses that look at no film."""

    box: FindingBox
    probability: float
    detected: bool
    pointed: bool
    overlap: float
    centre_pointed: bool
    mean_box_pointed: bool | None  # None: there is no other box to take a mean of
    mean_box_overlap: float


def read_boxes(path: Path) -> tuple[FindingBox, ...]:
    """Read image, finding, x, y, width, height in pixels; raises BoxesError with what is wrong and where."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise BoxesError(f"{path} needs the columns {', '.join(COLUMNS)}; it lacks {', '.join(missing)}.")
            return tuple(_box(row, f"{path}, line {line}") for line, row in enumerate(reader, start=2))
    except (OSError, UnicodeDecodeError, csv.Error) as exc:
        raise BoxesError(f"{path} cannot be read as a CSV file in UTF-8: {exc}.") from exc


def _box(row: dict[str, str], where: str) -> FindingBox:
    finding = canonical_name(row["finding"] or "")
    if finding is None:
        raise BoxesError(f"{where}: {row['finding']!r} is none of the 14 pathologies.")
    try:
        x, y, width, height = (float(row[name]) for name in COLUMNS[2:])
    except (TypeError, ValueError) as exc:
        raise BoxesError(f"{where}: x, y, width and height are numbers of pixels.") from exc
    if not all(map(math.isfinite, (x, y, width, height))) or width <= 0 or height <= 0:
        raise BoxesError(f"{where}: a box has a width and a height above 0.")
    return FindingBox(row["image"], finding, x, y, width, height)


def placed_map(contributions: FloatArray, place: GridToImage, film: tuple[int, int]) -> PlacedMap:
    """Place contributions (h, w) on a film of (height, width) pixels."""
    height, width = film
    left, top = place.x_offset / width, place.y_offset / height
    return PlacedMap(
        grid=tuple(tuple(float(value) for value in row) for row in contributions),
        area=Area(
            left=left,
            top=top,
            right=left + place.x_scale * contributions.shape[1] / width,
            bottom=top + place.y_scale * contributions.shape[0] / height,
        ),
    )


def area_of(box: FindingBox, width: float, height: float) -> Area:
    """Return a box in shares of the film of `width` x `height` pixels that it was drawn on."""
    return Area(box.x / width, box.y / height, (box.x + box.width) / width, (box.y + box.height) / height)


def mean_area(areas: Sequence[Area]) -> Area:
    """Return the box whose sides are the means of the others'."""
    left, top, right, bottom = np.mean([(a.left, a.top, a.right, a.bottom) for a in areas], axis=0).tolist()
    return Area(left, top, right, bottom)


def compare(
    boxes: Sequence[tuple[FindingBox, Area]],
    maps: Mapping[tuple[str, str], PlacedMap],
    probability: Mapping[tuple[str, str], float],
    detected: Mapping[tuple[str, str], bool],
) -> tuple[Comparison, ...]:
    """Compare each box with the map of (image, finding).

    The mean box is that of the same finding on other films, or of all findings on other films when there is none.
    """
    result = []
    for box, area in boxes:
        key = (box.image, box.finding)
        others = [(b, a) for b, a in boxes if b.image != box.image]
        alike = [a for b, a in others if b.finding == box.finding] or [a for _, a in others]
        guess = mean_area(alike) if alike else None
        peak = maps[key].peak
        result.append(
            Comparison(
                box=box,
                probability=probability[key],
                detected=detected[key],
                pointed=peak is not None and area.contains(*peak),
                overlap=intersection_over_union(maps[key].mask, area.mask),
                centre_pointed=area.contains(0.5, 0.5),
                mean_box_pointed=None
                if guess is None
                else area.contains((guess.left + guess.right) / 2, (guess.top + guess.bottom) / 2),
                mean_box_overlap=math.nan if guess is None else intersection_over_union(guess.mask, area.mask),
            )
        )
    return tuple(result)


def summary(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Return counts, of all boxes and of those whose finding was detected, for the map and both guesses."""
    findings = sorted({c.box.finding for c in comparisons})
    return {
        "all": _counts(comparisons),
        "by_finding": {name: _counts([c for c in comparisons if c.box.finding == name]) for name in findings},
        "boxes": [
            {
                "image": c.box.image,
                "finding": c.box.finding,
                "probability": c.probability,
                "detected": c.detected,
                "pointed": c.pointed,
                "overlap": c.overlap,
                "mean_box_overlap": c.mean_box_overlap,
            }
            for c in comparisons
        ],
    }


def _counts(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    overlaps = [c.overlap for c in comparisons]
    return {
        "boxes": len(comparisons),
        "detected": sum(c.detected for c in comparisons),
        "pointed": sum(c.pointed for c in comparisons),
        "pointed_and_detected": sum(c.pointed and c.detected for c in comparisons),
        "centre_guess_pointed": sum(c.centre_pointed for c in comparisons),
        "mean_box_guess_pointed": sum(bool(c.mean_box_pointed) for c in comparisons),
        "mean_overlap": float(np.mean(overlaps)) if overlaps else math.nan,
        "overlap_at_least": {
            f"{level:g}": {
                "map": sum(c.overlap >= level for c in comparisons),
                "map_and_detected": sum(c.overlap >= level and c.detected for c in comparisons),
                "mean_box_guess": sum(c.mean_box_overlap >= level for c in comparisons),
            }
            for level in OVERLAPS
        },
    }
