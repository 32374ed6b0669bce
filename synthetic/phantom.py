"""The film: attenuation along parallel rays, scatter, quantum noise and the display curve."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from synthetic.anatomy import Anatomy, sample_anatomy
from synthetic.findings import SUPPORTED_FINDINGS, adapt_anatomy, draw
from synthetic.geometry import FloatArray, Grid
from synthetic.thorax import Thorax, build_thorax

SMALLEST_SIZE = 32  # pixels; below it the marker and the ribs are no longer drawn sensibly
SOFT_TISSUE_PER_CM = 0.19  # linear attenuation of water at about 65 keV, the mean energy of a 120 kV beam
BONE_EXCESS = 2.6  # cortical bone beyond the soft tissue it displaces, by soft tissue
VESSEL_EXCESS = 1.5  # chosen by eye: more than blood displacing air gives, as edge enhancement shows vessels


@dataclass(frozen=True)
class SyntheticFinding:
    """Where a pathology was drawn, in pixels of the film."""

    pathology: str  # one of modules.pathologies.NAMES
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, eq=False)
class SyntheticFilm:
    """A drawn film: uint8 (H, W), bright = dense, and what is to be seen on it."""

    pixels: npt.NDArray[np.uint8]
    findings: tuple[SyntheticFinding, ...]
    seed: int


@dataclass(frozen=True)
class Exposure:
    """How attenuation becomes brightness."""

    centre: float  # attenuation at the middle of the display curve
    width: float  # of the display curve, in attenuation
    floor: float  # brightness of air
    scatter: float  # scattered by primary radiation behind an average chest
    noise: float  # relative deviation of the unattenuated beam, one pixel of a 1024 px film
    border: tuple[float, float, float, float]  # collimation: left, top, right, bottom, by the film's side


def make_film(
    seed: int,
    size: int = 1024,
    findings: Sequence[str] = (),
    marker: bool = True,
    *,
    patient: int | None = None,
) -> SyntheticFilm:
    """Draw a postero-anterior chest film (size, size); the same arguments always give the same film.

    `patient` is the seed of the anatomy, for films of one patient; without it, every seed is a patient of its own.
    """
    if size < SMALLEST_SIZE:
        raise ValueError(f"a film of {size} px is too small: at least {SMALLEST_SIZE} px")
    if seed < 0 or (patient is not None and patient < 0):
        raise ValueError("seeds must not be negative")
    names = tuple(dict.fromkeys(findings))
    unsupported = [name for name in names if name not in SUPPORTED_FINDINGS]
    if unsupported:
        raise ValueError(f"cannot draw {', '.join(unsupported)}; supported: {', '.join(SUPPORTED_FINDINGS)}")
    body = seed if patient is None else patient
    anatomy = adapt_anatomy(sample_anatomy(stream(body, 0)), names)
    grid = Grid.of(size, anatomy.field, anatomy.top, anatomy.stretch, anatomy.shift, anatomy.tilt)
    thorax = build_thorax(grid, anatomy, stream(body, 1))
    path = soft_path(thorax)
    boxes: list[SyntheticFinding] = []
    for name in names:
        # Each pathology has its own stream: adding one leaves the others where they were.
        drawing = draw(name, thorax, stream(seed, 100 + SUPPORTED_FINDINGS.index(name)))
        path += drawing.path
        boxes.extend(SyntheticFinding(name, *box) for box in drawing.boxes)
    exposure = sample_exposure(stream(seed, 2), anatomy)
    pixels = develop(path * np.float32(SOFT_TISSUE_PER_CM), exposure, stream(seed, 3))
    side_marker(pixels)
    if marker:
        burn_marker(pixels)
    return SyntheticFilm(pixels, tuple(boxes), seed)


def stream(seed: int, part: int) -> np.random.Generator:
    """An independent generator for one part of a film."""
    return np.random.default_rng([seed, part])


def sample_exposure(rng: np.random.Generator, a: Anatomy) -> Exposure:
    """Draw the exposure; like a phototimer, it follows how thick the patient is."""
    thickness = 0.6 * a.wall + 0.25 * a.breast
    border = rng.uniform(0.0, 0.02, 4) * (rng.random(4) < 0.35)
    return Exposure(
        centre=SOFT_TISSUE_PER_CM * (10.9 + 1.0 * thickness + float(rng.normal(0, 1.0))),
        width=SOFT_TISSUE_PER_CM * float(rng.uniform(3.3, 5.2)),
        floor=float(rng.uniform(0.0, 0.06)),
        scatter=float(rng.uniform(0.12, 0.3)),
        noise=float(rng.uniform(0.0025, 0.005)),
        border=(float(border[0]), float(border[1]), float(border[2]), float(border[3])),
    )


def soft_path(t: Thorax) -> FloatArray:
    """What each ray crosses, as cm of soft tissue (H, W)."""
    aerated = np.float32(1 - t.anatomy.lung_density)
    path = t.body - aerated * t.lung
    path += np.float32(VESSEL_EXCESS) * t.vessels + np.float32(BONE_EXCESS) * t.bone
    path -= np.minimum(t.airway + t.gas, path * np.float32(0.5))
    return np.asarray(np.maximum(path, 0), np.float32)


def develop(attenuation: FloatArray, e: Exposure, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Turn attenuation (H, W) into a film: Beer-Lambert, scatter, detector blur, quantum noise, display curve."""
    size = attenuation.shape[0]
    transmitted = np.exp(-attenuation)
    small = cv2.resize(transmitted, (64, 64), interpolation=cv2.INTER_AREA)
    veil = cv2.GaussianBlur(np.minimum(small, np.float32(np.exp(-e.centre) * 4)), (0, 0), 5.0)
    transmitted += np.float32(e.scatter) * np.asarray(cv2.resize(veil, (size, size)), np.float32)
    transmitted = np.asarray(cv2.GaussianBlur(transmitted, (0, 0), max(0.35, 0.75 * size / 1024)), np.float32)
    # Photons counted in a pixel grow with its area, and their relative deviation falls with the square root.
    grain = cv2.GaussianBlur(rng.standard_normal((size, size), np.float32), (0, 0), 0.55)
    noise = np.float32(e.noise * size / 1024) * grain / np.sqrt(transmitted)
    density = -np.log(transmitted) + noise
    shown = 1 / (1 + np.exp((np.float32(e.centre) - density) / np.float32(e.width)))
    dark = 1 / (1 + np.exp(e.centre / e.width))
    shown = e.floor + (0.985 - e.floor) * (shown - dark) / (1 - dark)
    left, top, right, bottom = (round(part * size) for part in e.border)
    shown[:top], shown[size - bottom :] = e.floor, e.floor
    shown[:, :left], shown[:, size - right :] = e.floor, e.floor
    return np.asarray(np.clip(shown * 255 + 0.5, 0, 255), np.uint8)


def side_marker(pixels: npt.NDArray[np.uint8]) -> None:
    """Lay a lead L beside the patient's left shoulder, as radiographers do."""
    size = pixels.shape[0]
    write(pixels, "L", (round(0.91 * size), round(0.1 * size)), 0.03, outlined=False)


def burn_marker(pixels: npt.NDArray[np.uint8]) -> None:
    """Write SYNTHETIC into the upper left corner, within the first 6 % of the height."""
    size = pixels.shape[0]
    write(pixels, "SYNTHETIC", (max(2, round(0.012 * size)), max(10, round(0.04 * size))), 0.02, outlined=True)


def write(pixels: npt.NDArray[np.uint8], text: str, origin: tuple[int, int], height: float, outlined: bool) -> None:
    """Write text whose capitals are `height` of the film high, from its lower left corner on."""
    size = pixels.shape[0]
    scale = max(0.25, height * size / 21)  # OpenCV's simplex capitals are 21 px high at scale 1
    thickness = max(1, round(scale * 2))
    if outlined:
        cv2.putText(pixels, text, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, 0, thickness + 2, cv2.LINE_AA)
    cv2.putText(pixels, text, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, 255, thickness, cv2.LINE_AA)
