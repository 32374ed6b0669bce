"""How far harmless changes of a film move its probabilities."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np

from evaluation.calibration_metrics import Floats, sigmoids
from modules.pathologies import NAMES
from modules.records import FloatArray, Radiograph

JPEG_QUALITY = 50
DEGREES = 10.0
BRIGHTNESS = 0.2
LARGE_SIDE = 1024  # pixels; smaller films cannot be shrunk to 512 and then 256
SMALLER_SIDES = (512, 256)


def changed_films(film: Radiograph) -> dict[str, Radiograph]:
    """Return the film under each change, by the name of the change."""
    changes: dict[str, Callable[[FloatArray], FloatArray]] = {
        f"JPEG quality {JPEG_QUALITY}": _jpeg,
        f"rotated by +{DEGREES:.0f} degrees": lambda pixels: _rotated(pixels, DEGREES),
        f"rotated by -{DEGREES:.0f} degrees": lambda pixels: _rotated(pixels, -DEGREES),
        f"brightness +{BRIGHTNESS:.0%}": lambda pixels: np.minimum(pixels * np.float32(1 + BRIGHTNESS), 1.0),
        f"brightness -{BRIGHTNESS:.0%}": lambda pixels: pixels * np.float32(1 - BRIGHTNESS),
    }
    if max(film.pixels.shape) >= LARGE_SIDE:
        changes["shrunk to 512, then 256 px"] = _shrunk
    return {name: replace(film, pixels=np.asarray(change(film.pixels), np.float32)) for name, change in changes.items()}


def summary(before: Sequence[Floats], after: Sequence[Mapping[str, Floats]], names: Sequence[str]) -> Any:
    """Return for each change the median and largest absolute change of probability, from log-odds (14,) of N films."""
    result = {}
    for change in sorted({change for film in after for change in film}):
        films = [i for i, film in enumerate(after) if change in film]
        moved = np.array([np.abs(sigmoids(after[i][change]) - sigmoids(before[i])) for i in films])
        worst, k = np.unravel_index(int(moved.argmax()), moved.shape)
        result[change] = {
            "films": len(films),
            "median": float(np.median(moved)),
            "largest": float(moved.max()),
            "largest_on": {"image": names[films[int(worst)]], "pathology": NAMES[int(k)]},
        }
    return result


def _jpeg(pixels: FloatArray) -> FloatArray:
    grey = cv2.convertScaleAbs(pixels, alpha=255.0)
    encoded, buffer = cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not encoded:
        raise ValueError(f"no JPEG can be made of pixels of shape {pixels.shape}")
    return np.asarray(cv2.imdecode(buffer, cv2.IMREAD_GRAYSCALE), np.float32) / np.float32(255.0)


def _rotated(pixels: FloatArray, degrees: float) -> FloatArray:
    height, width = pixels.shape
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    turned = cv2.warpAffine(pixels, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    return np.clip(np.asarray(turned, np.float32), 0.0, 1.0)


def _shrunk(pixels: FloatArray) -> FloatArray:
    for side in SMALLER_SIDES:
        scale = side / max(pixels.shape)
        height, width = (max(1, round(length * scale)) for length in pixels.shape)
        pixels = np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA), np.float32)
    return np.clip(pixels, 0.0, 1.0)
