"""Images that are no radiographs, drawn at random: what an input gate must learn to refuse."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.float32]  # (side, side) in [0, 1]


def make_not_radiograph(rng: np.random.Generator, side: int = 128, kinds: Sequence[str] = ()) -> Image:
    """Draw one image (side, side) in [0, 1] of a kind chosen at random, often with noise or blur on it.

    `kinds` are names in KINDS; without any, all of them are drawn. Raises KeyError for an unknown kind.
    """
    names = tuple(kinds) or tuple(KINDS)
    draw = KINDS[names[int(rng.integers(len(names)))]]
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
    return _exchanged(np.asarray(page / 255, np.float32), rng)


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


def gratings(rng: np.random.Generator, side: int) -> Image:
    """Waves in one or two directions, as of woven cloth or a printed screen."""
    y, x = np.mgrid[:side, :side] / side
    image = np.zeros((side, side))
    for _ in range(int(rng.integers(1, 3))):
        angle, waves = rng.uniform(0.0, np.pi), rng.uniform(1.0, 14.0)
        image += np.sin(2 * np.pi * (waves * (np.cos(angle) * x + np.sin(angle) * y) + rng.uniform()))
    return _stretched(image)


def patches(rng: np.random.Generator, side: int) -> Image:
    """Flat patches around random points, as in drawings and maps."""
    points, greys = rng.uniform(0.0, side, (int(rng.integers(4, 40)), 2)), rng.uniform(size=40)
    y, x = np.mgrid[:side, :side]
    nearest = np.argmin([(x - px) ** 2 + (y - py) ** 2 for px, py in points], axis=0)
    return np.asarray(greys[nearest], np.float32)


def chart(rng: np.random.Generator, side: int) -> Image:
    """Axes with columns or curves."""
    image = np.ones((side, side), np.float32)
    left, bottom = (int(v * side) for v in (rng.uniform(0.05, 0.25), rng.uniform(0.75, 0.95)))
    thickness = int(rng.integers(1, 3))
    cv2.line(image, (left, bottom), (side - 4, bottom), 0.0, thickness)
    cv2.line(image, (left, 4), (left, bottom), 0.0, thickness)
    if rng.random() < 0.5:
        count = int(rng.integers(2, 12))
        width = (side - left) / count
        for k in range(count):
            top = rng.uniform(0.1, 0.9) * bottom
            corner = int(left + (k + 0.8) * width), bottom
            cv2.rectangle(image, (int(left + k * width), int(top)), corner, rng.uniform(0.0, 0.8), -1)
    else:
        x = np.linspace(left, side - 4, 12)
        for _ in range(int(rng.integers(1, 5))):
            y = np.clip(bottom * (0.5 + np.cumsum(rng.normal(0.0, 0.12, 12))), 4, bottom)
            curve = np.stack([x, y], axis=1).astype(np.int32).reshape(-1, 1, 2)
            cv2.polylines(image, [curve], False, rng.uniform(0.0, 0.6), thickness)
    return _exchanged(image, rng)


def window(rng: np.random.Generator, side: int) -> Image:
    """A program's window: bars, panels, lines of text and pictures in them."""
    ground = rng.uniform(0.85, 1.0)
    image = np.full((side, side), ground, np.float32)
    image[: int(rng.uniform(0.04, 0.14) * side)] = rng.uniform(0.2, 0.8)
    if rng.random() < 0.6:
        image[:, : int(rng.uniform(0.1, 0.35) * side)] = rng.uniform(0.5, 0.95)
    for _ in range(int(rng.integers(1, 5))):
        (x, y), (width, height) = rng.integers(0, side - 8, 2), rng.integers(6, side // 2, 2)
        image[y : y + height, x : x + width] = rng.uniform()
    for y in range(int(0.18 * side), side - 3, int(rng.integers(4, 10))):
        start, length = int(rng.uniform(0.02, 0.5) * side), int(rng.uniform(0.1, 0.6) * side)
        ink = rng.uniform(0.0, 0.6, length).astype(np.float32)
        image[y : y + 2, start : start + length] = ink[: max(0, side - start)]
    return _exchanged(image, rng)


def scene(rng: np.random.Generator, side: int) -> Image:
    """A photograph's layout: sky, textured ground, and things that stand on it."""
    horizon = int(rng.uniform(0.2, 0.8) * side)
    image = clouds(rng, side) * rng.uniform(0.1, 0.5) + rng.uniform(0.0, 0.4)
    image[:horizon] = np.linspace(rng.uniform(0.5, 1.0), rng.uniform(0.4, 1.0), horizon)[:, np.newaxis]
    for _ in range(int(rng.integers(1, 9))):
        x, width, height = rng.integers(0, side), rng.uniform(0.03, 0.35) * side, rng.uniform(0.1, 0.9) * side
        foot = min(side - 1.0, horizon + rng.uniform(0.0, 0.4) * side)
        if rng.random() < 0.5:
            corners = (int(x - width / 2), int(foot - height)), (int(x + width / 2), int(foot))
            cv2.rectangle(image, *corners, rng.uniform(), -1)
        else:
            _ellipse(image, np.array([x, foot - height / 2]), np.array([width, height]) / 2, rng)
    return image


def portrait(rng: np.random.Generator, side: int) -> Image:
    """A face before a plain ground: as symmetric as a chest."""
    image = np.full((side, side), rng.uniform(0.0, 1.0), np.float32)
    x, y = side * rng.uniform(0.4, 0.6), side * rng.uniform(0.35, 0.55)
    width, skin = side * rng.uniform(0.15, 0.3), rng.uniform(0.3, 0.9)
    parts = [  # x, y, half width and half height by half of the face's width; grey by the skin's
        (0.0, 2.6, 2.0, 1.6, rng.uniform(0.1, 1.0)),
        (0.0, -0.3, 1.15, 1.3, rng.uniform(0.1, 1.0)),
        (0.0, 0.0, 1.0, 1.35, 1.0),
        *((sign * 0.42, -0.2, 0.2, 0.12, rng.uniform(0.0, 0.5)) for sign in (-1, 1)),
        (0.0, 0.25, 0.12, 0.3, 0.85),
        (0.0, 0.7, 0.4, 0.1, rng.uniform(0.3, 0.8)),
    ]
    for dx, dy, half_width, half_height, grey in parts:
        centre = int(x + dx * width), int(y + dy * width)
        axes = max(1, int(half_width * width)), max(1, int(half_height * width))
        cv2.ellipse(image, centre, axes, 0.0, 0.0, 360.0, skin * grey, -1)
    return image


def head_slice(rng: np.random.Generator, side: int) -> Image:
    """A bright ring around two mirrored halves with folds, as in CT and MR slices of a head."""
    image = np.zeros((side, side), np.float32)
    centre = np.array([side / 2, side / 2]) + rng.normal(0.0, side / 24, 2)
    axes = side * np.array([rng.uniform(0.28, 0.42), rng.uniform(0.36, 0.48)])
    half = clouds(rng, side) * rng.uniform(0.1, 0.5) + rng.uniform(0.15, 0.45)
    mirrored = (half + half[:, ::-1]) / 2
    inside = np.zeros((side, side), np.float32)
    whole = tuple(int(v) for v in centre), tuple(int(v) for v in axes), 0.0, 0.0, 360.0
    cv2.ellipse(inside, *whole, 1.0, -1)
    image += inside * mirrored
    dark = rng.uniform(0.0, 0.25)
    for sign in (-1, 1):
        place = centre + np.array([sign * rng.uniform(0.1, 0.25), rng.uniform(-0.2, 0.2)]) * axes
        size = max(1, int(0.1 * axes[0])), max(1, int(rng.uniform(0.15, 0.4) * axes[1]))
        cv2.ellipse(image, tuple(int(v) for v in place), size, -15.0 * sign, 0.0, 360.0, dark, -1)
    cv2.ellipse(image, *whole, rng.uniform(0.5, 1.0), int(rng.integers(1, 7)))
    return image


def hand(rng: np.random.Generator, side: int) -> Image:
    """Fingers of jointed bones that spread from a palm, as in films of hands and feet."""
    image = np.full((side, side), rng.uniform(0.0, 0.15), np.float32)
    palm = side * np.array([rng.uniform(0.35, 0.65), rng.uniform(0.6, 0.85)])
    soft, bone = rng.uniform(0.2, 0.45), rng.uniform(0.6, 1.0)
    cv2.ellipse(image, tuple(int(v) for v in palm), (int(0.2 * side), int(0.18 * side)), 0.0, 0.0, 360.0, soft, -1)
    spread, thickness = rng.uniform(0.15, 0.4), rng.uniform(0.03, 0.06) * side
    fingers = [(angle, rng.uniform(0.4, 0.65) * side) for angle in spread * np.arange(-2, 3) + rng.normal(0.0, 0.1)]
    for grey, width in ((soft, 2.4 * thickness), (bone, thickness)):  # flesh of every finger lies below all bones
        for angle, length in fingers:
            direction = np.array([np.sin(angle), -np.cos(angle)])
            joints = [palm + direction * length * share for share in (0.1, 0.45, 0.7, 0.9)]
            for start, end in pairwise(joints):
                gap = 0.12 * (end - start) if grey == bone else 0.0
                (x1, y1), (x2, y2) = (start + gap).tolist(), (end - gap).tolist()
                cv2.line(image, (int(x1), int(y1)), (int(x2), int(y2)), grey, max(1, int(width)))
    return image


def column(rng: np.random.Generator, side: int) -> Image:
    """A bright column of blocks in a grey body with gas in it, as in films of the abdomen and spine."""
    image = np.full((side, side), rng.uniform(0.0, 0.1), np.float32)
    half = int(rng.uniform(0.3, 0.48) * side)
    image[:, side // 2 - half : side // 2 + half] = rng.uniform(0.35, 0.6)
    for _ in range(int(rng.integers(0, 10))):
        _ellipse(image, rng.uniform(0.2, 0.8, 2) * side, rng.uniform(0.03, 0.12, 2) * side, rng)
    width, height = rng.uniform(0.05, 0.12) * side, rng.uniform(0.07, 0.18) * side
    bone = rng.uniform(0.65, 1.0)
    for top in np.arange(rng.uniform(-height, 0.0), side, height * 1.2):
        middle = side / 2 + 0.04 * side * np.sin(top / side * 3)
        corners = (int(middle - width), int(top)), (int(middle + width), int(top + height))
        cv2.rectangle(image, *corners, bone, -1)
    if rng.random() < 0.5:
        for sign in (-1, 1):  # wings of a pelvis
            place = int(side / 2 + sign * 0.22 * side), int(rng.uniform(0.7, 0.9) * side)
            cv2.ellipse(image, place, (int(0.16 * side), int(0.2 * side)), 20.0 * sign, 0.0, 360.0, 0.9 * bone, -1)
    return image


# Neighbours resemble each other, so that both halves of this list, every other one, hold pages, slices and films.
KINDS: dict[str, Callable[[np.random.Generator, int], Image]] = {
    draw.__name__: draw
    for draw in (
        noise,
        gratings,
        clouds,
        blobs,
        gradient,
        patches,
        ellipses,
        rectangles,
        text,
        chart,
        slice_like,
        head_slice,
        bars,
        hand,
        scene,
        window,
        portrait,
        column,
    )
}


def _ellipse(
    image: Image, centre: npt.NDArray[np.float64], axes: npt.NDArray[np.float64], rng: np.random.Generator
) -> None:
    where, size = tuple(int(v) for v in centre), tuple(max(1, int(v)) for v in axes)
    cv2.ellipse(image, where, size, rng.uniform(0, 180), 0.0, 360.0, rng.uniform(), -1)


def _stretched(image: npt.NDArray[Any]) -> Image:
    return np.asarray((image - image.min()) / np.ptp(image), np.float32)


def _exchanged(image: Image, rng: np.random.Generator) -> Image:
    """Return the image, at times with black and white exchanged."""
    return np.asarray(1.0 - image, np.float32) if rng.random() < 0.4 else image
