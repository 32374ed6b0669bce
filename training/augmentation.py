"""Random changes of training films."""

import cv2
import numpy as np
import numpy.typing as npt

from modules.records import FloatArray
from training.config import Augmentation

Bytes = npt.NDArray[np.uint8]


def enlarge(reduced: Bytes, side: int) -> Bytes:
    """Return a reduced film (s, s) at a larger side, as preprocessing enlarges a small upload."""
    return np.asarray(cv2.resize(reduced, (side, side), interpolation=cv2.INTER_CUBIC), np.uint8)


def augment(film: Bytes, side: int, recipe: Augmentation, rng: np.random.Generator) -> FloatArray:
    """Return a changed copy (side, side) in [0, 1] of a film (s, s)."""
    moved = _moved(film, recipe, rng)
    height = moved.shape[0]
    if side != height:
        interpolation = cv2.INTER_AREA if side < height else cv2.INTER_LINEAR
        moved = np.asarray(cv2.resize(moved, (side, side), interpolation=interpolation), np.uint8)
    pixels = _re_exposed(np.asarray(moved / np.float32(255), np.float32), recipe, rng)
    if rng.random() < recipe.erased:
        rows, columns = (_interval(side, rng) for _ in range(2))
        pixels[rows, columns] = rng.random()
    return np.asarray(np.clip(pixels, 0.0, 1.0), np.float32)


def _moved(film: Bytes, recipe: Augmentation, rng: np.random.Generator) -> Bytes:
    """Mirror, turn, scale, stretch and shift in one interpolation."""
    side = film.shape[0]
    angle = np.deg2rad(rng.uniform(-recipe.rotation_degrees, recipe.rotation_degrees))
    scale = np.exp(rng.uniform(-1, 1) * np.log1p(recipe.scale))
    stretch = np.exp(rng.uniform(-1, 1) * np.log1p(recipe.stretch) / 2)
    mirror = -1.0 if rng.random() < recipe.mirror else 1.0
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    linear = np.array([[cos * stretch, -sin], [sin, cos / stretch]]) @ np.diag([mirror, 1.0])
    centre = (side - 1) / 2
    offset = centre - linear @ np.array([centre, centre]) + rng.uniform(-recipe.shift, recipe.shift, 2) * side
    border = cv2.BORDER_CONSTANT if rng.random() < 0.5 else cv2.BORDER_REPLICATE
    matrix = np.column_stack([linear, offset])
    return np.asarray(cv2.warpAffine(film, matrix, (side, side), flags=cv2.INTER_LINEAR, borderMode=border), np.uint8)


def _re_exposed(pixels: FloatArray, recipe: Augmentation, rng: np.random.Generator) -> FloatArray:
    changed = pixels ** np.float32(np.exp(rng.uniform(-recipe.gamma, recipe.gamma)))
    contrast = 1.0 + rng.uniform(-recipe.contrast, recipe.contrast)
    changed = (changed - 0.5) * np.float32(contrast) + np.float32(
        0.5 + rng.uniform(-recipe.brightness, recipe.brightness)
    )
    deviation = rng.uniform(0.0, recipe.noise)
    noise = rng.standard_normal(changed.shape, np.float32) * np.float32(deviation)
    return np.asarray(changed + noise, np.float32)


def _interval(side: int, rng: np.random.Generator) -> slice:
    length = int(side * rng.uniform(0.1, 0.35))
    start = int(rng.integers(0, side - length + 1))
    return slice(start, start + length)
