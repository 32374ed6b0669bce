"""Images that are no radiographs, drawn at random: what an input gate must learn to refuse."""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.float32]  # (side, side) in [0, 1]


def make_not_radiograph(rng: np.random.Generator, side: int = 128) -> Image:
    """Draw one image (side, side) in [0, 1] of a kind chosen at random, often with noise or blur on it."""
    draw = _KINDS[int(rng.integers(len(_KINDS)))]
    image = draw(rng, side).astype(np.float32)
    if rng.random() < 0.5:
        image += rng.normal(0.0, rng.uniform(0.004, 0.06), image.shape).astype(np.float32)
    if rng.random() < 0.5:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), rng.uniform(0.5, 3.0)), np.float32)
    return np.clip(image, 0.0, 1.0)


def noise(rng: np.random.Generator, side: int) -> Image:
    """White noise."""
    return rng.normal(0.5, rng.uniform(0.04, 0.4), (side, side)).astype(np.float32)


def clouds(rng: np.random.Generator, side: int) -> Image:
    """Noise whose power falls with frequency, as in photographs of nature."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, np.newaxis], np.fft.fftfreq(side))
    frequency[0, 0] = 1.0
    spectrum = np.fft.fft2(rng.normal(size=(side, side))) / frequency ** rng.uniform(0.8, 2.0)
    return _stretched(np.real(np.fft.ifft2(spectrum)))


def blobs(rng: np.random.Generator, side: int) -> Image:
    """Smooth blobs of one size."""
    return _stretched(np.asarray(cv2.GaussianBlur(rng.normal(size=(side, side)), (0, 0), rng.uniform(1.0, side / 4))))


def gradient(rng: np.random.Generator, side: int) -> Image:
    """A ramp in any direction."""
    angle = rng.uniform(0.0, 2 * np.pi)
    y, x = np.mgrid[:side, :side] / side
    ramp = (np.cos(angle) * x + np.sin(angle) * y) * rng.uniform(0.2, 1.6) + rng.uniform(-0.4, 0.8)
    return np.asarray(ramp, np.float32)


def ellipses(rng: np.random.Generator, side: int) -> Image:
    """Filled ellipses on a dark ground."""
    image = np.full((side, side), rng.uniform(0.0, 0.25), np.float32)
    for _ in range(int(rng.integers(1, 8))):
        _ellipse(image, rng.uniform(0, side, 2), rng.uniform(0.04, 0.55, 2) * side, rng)
    return image


def rectangles(rng: np.random.Generator, side: int) -> Image:
    """Filled rectangles, as in screenshots and charts."""
    image = np.full((side, side), rng.uniform(), np.float32)
    for _ in range(int(rng.integers(2, 12))):
        (x, y), (width, height) = rng.integers(0, side, 2), rng.integers(4, max(5, int(0.7 * side)), 2)
        image[y : y + height, x : x + width] = rng.uniform()
    return image


def text(rng: np.random.Generator, side: int) -> Image:
    """A page of letters, dark on bright or the other way round."""
    page = np.full((side, side), int(rng.uniform(180, 255)), np.uint8)
    for _ in range(int(rng.integers(3, 20))):
        letters = "".join(chr(int(c)) for c in rng.integers(33, 120, 12))
        place = int(rng.integers(-20, 60)), int(rng.integers(5, side))
        scale, ink = float(rng.uniform(0.2, 0.9)), float(rng.uniform(0, 120))
        cv2.putText(page, letters, place, cv2.FONT_HERSHEY_SIMPLEX, scale, ink, 1)
    image = np.asarray(page / 255, np.float32)
    return np.asarray(1.0 - image, np.float32) if rng.random() < 0.4 else image


def slice_like(rng: np.random.Generator, side: int) -> Image:
    """An elliptic body with organs on black, as in CT and MR slices."""
    image = np.zeros((side, side), np.float32)
    centre = side / 2 + rng.normal(0.0, side / 32, 2)
    axes = np.array([rng.uniform(0.3, 0.48), rng.uniform(0.22, 0.48)]) * side
    whole = tuple(int(v) for v in centre), tuple(int(v) for v in axes), 0.0, 0.0, 360.0
    cv2.ellipse(image, *whole, rng.uniform(0.35, 0.7), -1)
    if rng.random() < 0.5:
        cv2.ellipse(image, *whole, rng.uniform(0.7, 1.0), int(rng.integers(1, 6)))
    for _ in range(int(rng.integers(2, 12))):
        _ellipse(image, centre + rng.normal(0.0, 0.42, 2) * axes, rng.uniform(0.05, 0.45, 2) * axes + 1, rng)
    return image


def bars(rng: np.random.Generator, side: int) -> Image:
    """Bright bars within grey ones, as in films of limbs."""
    image = np.full((side, side), rng.uniform(0.0, 0.2), np.float32)
    soft = [
        (rng.uniform(0.2, 0.8), 0, rng.uniform(0.25, 0.55), rng.uniform(0.15, 0.45)) for _ in range(rng.integers(1, 5))
    ]
    bone = [
        (rng.uniform(0.3, 0.7), rng.uniform(0, 0.5), rng.uniform(0.55, 1.0), rng.uniform(0.04, 0.15))
        for _ in range(rng.integers(1, 6))
    ]
    for x, y, grey, width in soft + bone:
        start = int(x * side), int(y * side)
        end = int(x * side + rng.normal(0.0, side / 8)), side
        cv2.line(image, start, end, grey, max(1, int(width * side)))
    return image


_KINDS: tuple[Callable[[np.random.Generator, int], Image], ...] = (
    noise,
    clouds,
    blobs,
    gradient,
    ellipses,
    rectangles,
    text,
    slice_like,
    bars,
)


def _ellipse(
    image: Image, centre: npt.NDArray[np.float64], axes: npt.NDArray[np.float64], rng: np.random.Generator
) -> None:
    where, size = tuple(int(v) for v in centre), tuple(max(1, int(v)) for v in axes)
    cv2.ellipse(image, where, size, rng.uniform(0, 180), 0.0, 360.0, rng.uniform(), -1)


def _stretched(image: npt.NDArray[Any]) -> Image:
    return np.asarray((image - image.min()) / np.ptp(image), np.float32)
