"""Images that the gate is fitted to and measured on: read, re-encoded alike, and varied as films and uploads vary."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePath

import cv2
import numpy as np
import numpy.typing as npt

from evaluation.films import decode, image_files, is_archive
from modules.quality import SIDES, Kind, Side, plain_reason
from modules.records import FloatArray

COPY_SIDE = 128  # pixels; the longest side of ChestX-ray14's small copies here
JPEG_QUALITY = 90  # chosen: films come as PNG and other images as JPEG, whose traces must not tell them apart

# What follows is chosen, not fitted.
CROP_DEPTHS = (0.12, 0.20, 0.28, 0.35)  # shares of the image's side; the limits of what is cut away, and bands of it
FRAMED_SHARE = 0.3  # of fitted films, those that get a border, letters or a slanted view
QUARTERS = {Kind.TURNED_90: 1, Kind.TURNED_180: 2, Kind.TURNED_270: 3}


@dataclass(frozen=True, eq=False)
class Film:
    """A chest film (COPY_SIDE, COPY_SIDE) in [0, 1], and whose it is."""

    name: str
    patient: str
    pixels: FloatArray
    plain_reason: str | None  # why the plain rules (shape, size, colour, header) would refuse the file


@dataclass(frozen=True, eq=False)
class NotFilm:
    """An image of something else, or None for a file that is refused before it is decoded."""

    name: str
    pixels: FloatArray | None
    plain_reason: str | None

    @property
    def category(self) -> str:
        """What stands before "__" in the file's name."""
        return self.name.split("__")[0] if "__" in self.name else "no category"

    @property
    def subject(self) -> str:
        """The name without category and suffix: the same picture can be there in two formats."""
        return PurePath(self.name).stem.split("__")[-1]


def read_films(sources: Sequence[Path], every: int = 1) -> list[Film]:
    """Read every n-th film; its patient is what stands before the first "_" of its name, as in ChestX-ray14."""
    films = []
    for name, data in islice(_images(sources), 0, None, every):
        film = decode(data)
        if isinstance(film, str):
            sys.stderr.write(f"left out: {name}: {film}\n")
        else:
            patient = PurePath(name).stem.split("_")[0]
            films.append(Film(name, patient, squared(reencoded(film.pixels)), plain_reason(film)))
    return films


def read_not_films(sources: Sequence[Path]) -> list[NotFilm]:
    """Read every image of other things; a file that cannot be decoded never reaches the gate, and is kept as such."""
    images = []
    for name, data in _images(sources):
        image = decode(data)
        if isinstance(image, str):
            images.append(NotFilm(name, None, image))
        else:
            images.append(NotFilm(name, squared(reencoded(image.pixels)), plain_reason(image)))
    return images


def _images(sources: Sequence[Path]) -> Iterator[tuple[str, bytes | str]]:
    """Yield what `image_files` does, without archives that cannot be opened: these are named, and no image."""
    for name, data in image_files(sources):
        if is_archive(name):
            sys.stderr.write(f"left out: {data!s}\n")
        else:
            yield name, data


def reencoded(pixels: FloatArray) -> FloatArray:
    """Return a film (H, W) in [0, 1] with at most COPY_SIDE pixels a side, through one and the same JPEG quality."""
    shrink = min(1.0, COPY_SIDE / max(pixels.shape))
    height, width = (max(1, round(side * shrink)) for side in pixels.shape)
    small = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    encoded, buffer = cv2.imencode(
        ".jpg", cv2.convertScaleAbs(small, alpha=255.0), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    )
    if not encoded:
        raise ValueError(f"no JPEG can be made of pixels of shape {pixels.shape}")
    return np.asarray(cv2.imdecode(buffer, cv2.IMREAD_GRAYSCALE), np.float32) / np.float32(255)


def squared(pixels: FloatArray) -> FloatArray:
    """Return a copy (COPY_SIDE, COPY_SIDE); the gate looks at a square copy of any film."""
    how = cv2.INTER_AREA if max(pixels.shape) > COPY_SIDE else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(pixels, (COPY_SIDE, COPY_SIDE), interpolation=how), np.float32)


def turned(film: FloatArray, kind: Kind) -> FloatArray:
    """Return an upright film as the given kind would show it."""
    if kind is Kind.INVERTED:
        return np.asarray(1.0 - film, np.float32)
    return np.ascontiguousarray(np.rot90(film, QUARTERS.get(kind, 0)))


# ── Variation ────────────────────────────────────────────────────────────────────────────────────────────────────────


def varied(image: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Return a copy that is mirrored, turned a little, scaled, shifted and re-exposed at random."""
    mirrored = image[:, ::-1] if rng.random() < 0.5 else image
    moved = _moved(np.ascontiguousarray(mirrored), rng, degrees=10.0, scale=(0.8, 1.2), shift=0.08)
    return np.asarray(moved ** rng.uniform(0.6, 1.6), np.float32)


def nudged(film: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Return a copy that is turned, shrunk, shifted and re-exposed so little that no lung leaves the image."""
    moved = _moved(film, rng, degrees=4.0, scale=(0.93, 1.02), shift=0.02)
    return np.asarray(moved ** rng.uniform(0.6, 1.6), np.float32)


def framed(film: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Return the film, at times in one of the frames that uploads come in."""
    if rng.random() > FRAMED_SHARE:
        return film
    frames = (padded, lettered, slanted)
    return frames[int(rng.integers(len(frames)))](film, rng)


def padded(film: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Return the film with borders at two or four sides, mostly black, as of a film padded to a square."""
    share = rng.uniform(0.0, 0.25, 4)  # top, bottom, left, right
    axis = int(rng.integers(3))  # 2: all four sides
    if axis < 2:
        share[2 * axis : 2 * axis + 2] = 0.0
    grey = 0.0 if rng.random() < 0.7 else float(rng.uniform())
    return _bordered(film, share, grey)


def lettered(film: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Return the film with large white letters burned in, as of side markers and names of views."""
    letters = np.zeros((COPY_SIDE, COPY_SIDE), np.uint8)
    for _ in range(int(rng.integers(1, 4))):
        words = "".join(chr(int(c)) for c in rng.integers(65, 91, int(rng.integers(1, 9))))
        line = rng.uniform(0.1, 0.2) if rng.random() < 0.5 else rng.uniform(0.85, 0.97)
        place = int(rng.uniform(0.0, 0.75) * COPY_SIDE), int(line * COPY_SIDE)
        scale, thickness = float(rng.uniform(0.3, 0.9)), int(rng.integers(1, 3))
        cv2.putText(letters, words, place, cv2.FONT_HERSHEY_SIMPLEX, scale, 255, thickness)
    return np.maximum(film, letters.astype(np.float32) / 255)


def slanted(film: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Return the film as photographed: seen at a slant, on a plain ground, lit unevenly."""
    side = COPY_SIDE
    corners = np.array([[0, 0], [side, 0], [side, side], [0, side]], np.float32)
    inwards = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]], np.float32)
    seen = np.asarray(corners + inwards * rng.uniform(0.0, 0.12, (4, 2)) * side, np.float32)
    matrix = cv2.getPerspectiveTransform(corners, seen)
    ground = float(rng.uniform(0.0, 0.5))
    image = cv2.warpPerspective(film, matrix, (side, side), borderMode=cv2.BORDER_CONSTANT, borderValue=ground)
    light = np.linspace(rng.uniform(0.7, 1.0), rng.uniform(0.7, 1.0), side)
    return np.clip(np.asarray(image * (light if rng.random() < 0.5 else light[:, np.newaxis]), np.float32), 0.0, 1.0)


def dark(film: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Return an underexposed copy."""
    return np.asarray(film ** rng.uniform(1.8, 2.6) * rng.uniform(0.3, 0.8), np.float32)


def bright(film: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Return a washed-out copy."""
    return np.asarray(1.0 - (1.0 - film ** rng.uniform(0.4, 0.6)) * rng.uniform(0.4, 0.9), np.float32)


def small(film: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Return a copy with much air at all sides, as of a small child on a large detector."""
    return _bordered(film, rng.uniform(0.15, 0.25, 4), 0.0)


# What a user's film may have been through; none of it is a reason to refuse it.
VARIANTS: dict[str, Callable[[FloatArray, np.random.Generator], FloatArray]] = {
    "borders around it": padded,
    "white letters on it": lettered,
    "photographed at a slant": slanted,
    "very dark": dark,
    "very bright": bright,
    "much air around it": small,
}


def cropped(film: FloatArray, cuts: dict[Side, float]) -> FloatArray:
    """Return what is left when the given share is cut away at each side, resized to (COPY_SIDE, COPY_SIDE)."""
    top, bottom, left, right = (round(cuts.get(side, 0.0) * COPY_SIDE) for side in SIDES)
    return squared(np.ascontiguousarray(film[top : COPY_SIDE - bottom, left : COPY_SIDE - right]))


def random_cuts(rng: np.random.Generator) -> dict[Side, float]:
    """Return one or two sides, and the share to cut away at each."""
    sides = rng.permutation(len(SIDES))[: int(rng.integers(1, 3))]
    return {SIDES[int(k)]: float(rng.uniform(CROP_DEPTHS[0], CROP_DEPTHS[-1])) for k in sides}


def scrambled(film: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Return parts of the film in the wrong order, or one small part: it looks like film, and is no chest."""
    if rng.random() < 0.5:
        side = int(rng.uniform(0.2, 0.4) * COPY_SIDE)
        top, left = rng.integers(0, COPY_SIDE - side, 2)
        return squared(np.ascontiguousarray(film[top : top + side, left : left + side]))
    count = int(rng.integers(2, 5))
    step = COPY_SIDE // count
    order = rng.permutation(count * count)
    if (order == np.arange(count * count)).all():
        order = order[::-1]
    tiles = [film[step * (k // count) :, step * (k % count) :][:step, :step] for k in order]
    rows = [np.hstack(tiles[row * count : (row + 1) * count]) for row in range(count)]
    return squared(np.ascontiguousarray(np.vstack(rows)))


def varied_other(image: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Return a part of the image, varied, in any of the four orientations, sometimes inverted."""
    share = rng.uniform(0.5, 1.0)
    size = int(share * COPY_SIDE)
    top, left = (int(rng.uniform(0, 1 - share) * COPY_SIDE) for _ in range(2))
    part = varied(squared(np.ascontiguousarray(image[top : top + size, left : left + size])), rng)
    part = np.asarray(1.0 - part, np.float32) if rng.random() < 0.3 else part
    return np.ascontiguousarray(np.rot90(part, int(rng.integers(4))))


def _moved(
    image: FloatArray, rng: np.random.Generator, degrees: float, scale: tuple[float, float], shift: float
) -> FloatArray:
    middle = (COPY_SIDE / 2, COPY_SIDE / 2)
    matrix = np.asarray(cv2.getRotationMatrix2D(middle, rng.uniform(-degrees, degrees), rng.uniform(*scale)))
    matrix[:, 2] = matrix[:, 2] + rng.uniform(-shift, shift, 2) * COPY_SIDE
    border = cv2.BORDER_CONSTANT if rng.random() < 0.5 else cv2.BORDER_REPLICATE
    moved = cv2.warpAffine(image, matrix, (COPY_SIDE, COPY_SIDE), borderMode=border)
    return np.clip(np.asarray(moved, np.float32), 0.0, 1.0)


def _bordered(film: FloatArray, share: npt.NDArray[np.float64], grey: float) -> FloatArray:
    """Return the film with borders at the top, bottom, left and right, by its side, resized to its former size."""
    top, bottom, left, right = (int(v * COPY_SIDE) for v in share)
    bordered = cv2.copyMakeBorder(film, top, bottom, left, right, cv2.BORDER_CONSTANT, value=grey)
    return squared(np.asarray(bordered, np.float32))
