"""Findings: what each pathology adds to, or takes from, the path of the rays through a thorax."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from synthetic.anatomy import CAGE_HALF_WIDTH, LUNG_CENTRE, Anatomy
from synthetic.geometry import Ellipsoid, FloatArray, add_chord, chord, curve, fractal_noise
from synthetic.thorax import Thorax

Box = tuple[float, float, float, float]  # x, y, width, height in pixels
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Drawing:
    """What a finding adds to the film, cm of soft tissue (H, W), and the boxes that enclose it."""

    path: FloatArray
    boxes: tuple[Box, ...]


def box_of(mask: Mask) -> Box:
    """The smallest box around a mask (H, W)."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        raise ValueError("nothing was drawn on the film")
    x, y = int(columns[0]), int(rows[0])
    return float(x), float(y), float(columns[-1] - x + 1), float(rows[-1] - y + 1)


def enclosed(path: FloatArray, share: float = 0.08) -> Drawing:
    """A drawing whose one box encloses everything stronger than `share` of its strongest point."""
    size = np.abs(path)
    return Drawing(path, (box_of(size > share * float(size.max())),))


def adapt_anatomy(anatomy: Anatomy, names: Sequence[str]) -> Anatomy:
    """Change the patient where a finding is one of build rather than something that lies in the lung."""
    if "Cardiomegaly" in names:
        # A transverse diameter beyond half of the thorax defines the finding.
        anatomy = replace(anatomy, heart_scale=anatomy.heart_scale * 1.3, heart_turn=anatomy.heart_turn - 0.08)
    if "Emphysema" in names:
        anatomy = replace(
            anatomy,
            lung_density=anatomy.lung_density * 0.62,
            right_dome=anatomy.right_dome + 2.2,
            left_lower=anatomy.left_lower * 0.5,
            dome_height=2.6,
            heart_scale=anatomy.heart_scale * 0.86,
            vessel_scale=anatomy.vessel_scale * 0.72,
        )
    return anatomy


def draw(name: str, thorax: Thorax, rng: np.random.Generator) -> Drawing:
    """Draw one finding where `rng` places it; raises KeyError for a pathology without a drawer."""
    return _DRAWERS[name](thorax, rng)


def aerated(t: Thorax) -> FloatArray:
    """Soft tissue (H, W), cm, that a lung would gain if all its air were replaced."""
    return np.asarray(np.float32(1 - t.anatomy.lung_density) * t.lung, np.float32)


def side_of(rng: np.random.Generator) -> float:
    """-1 for the right lung (the image's left), 1 for the left one."""
    return 1.0 if rng.random() < 0.5 else -1.0


def one_lung(t: Thorax, side: float) -> FloatArray:
    """1 over the lung of one side, 0 over the other (H, W)."""
    return np.asarray(np.clip(t.grid.x * np.float32(side) / np.float32(0.2), 0, 1), np.float32)


def clear_place(t: Thorax, rng: np.random.Generator, radius: float) -> tuple[float, float]:
    """A point in a lung, cm, if there is one at least `radius` from heart, diaphragm and chest wall."""
    clear = ((t.lung > 6.0) & (t.heart < 0.5)).astype(np.uint8)
    depth = cv2.distanceTransform(clear, cv2.DIST_L2, 3) * t.grid.cm_per_pixel
    # Candidates in cm rather than pixels: the place is then the same at every size of the film.
    x = rng.uniform(4.0, 12.0, 200) * np.sign(rng.uniform(-1, 1, 200))
    y = rng.uniform(2.0, t.anatomy.right_dome, 200)
    columns = np.clip(t.grid.column_of(x, y), 0, t.grid.size - 1).astype(int)
    rows = np.clip(t.grid.row_of(y), 0, t.grid.size - 1).astype(int)
    room = depth[rows, columns]
    chosen = int(np.argmax(room >= min(radius + 0.3, 0.9 * float(room.max()))))
    return float(x[chosen]), float(y[chosen])


def solid_lesion(t: Thorax, rng: np.random.Generator, radius: float, lobes: int) -> Drawing:
    """A round lesion of soft tissue whose outline has `lobes` bumps."""
    x, y = clear_place(t, rng, radius)
    squeeze = 1 / t.anatomy.stretch  # the grid's rows are stretched, a lesion is as high as it is wide
    total = chord(t.grid, Ellipsoid(x, y, radius, radius * squeeze * float(rng.uniform(0.85, 1.1)), radius))
    for angle in rng.uniform(0, 2 * np.pi, lobes):
        bump = radius * float(rng.uniform(0.5, 0.7))
        at = x + 0.5 * radius * float(np.cos(angle)), y + 0.5 * radius * squeeze * float(np.sin(angle))
        total = np.maximum(total, chord(t.grid, Ellipsoid(*at, bump, bump * squeeze, bump * 1.4)))
    blur = max(0.3, 0.09 / t.grid.cm_per_pixel)
    total = np.asarray(cv2.GaussianBlur(total, (0, 0), blur), np.float32)
    # Somewhat denser than water, as old granulomas are: else the small ones drown among vessels.
    return enclosed(np.float32(1.25) * np.minimum(total, t.lung), 0.05)


def nodule(t: Thorax, rng: np.random.Generator) -> Drawing:
    """A round opacity of up to three centimetres."""
    return solid_lesion(t, rng, float(rng.uniform(0.9, 1.4)), 1)


def mass(t: Thorax, rng: np.random.Generator) -> Drawing:
    """A lobulated opacity of more than three centimetres."""
    return solid_lesion(t, rng, float(rng.uniform(2.0, 2.9)), 4)


def cloud(t: Thorax, rng: np.random.Generator, ellipse: Ellipsoid, ragged: float) -> FloatArray:
    """A soft-edged share (H, W) in [0, 1] of the lung around a point; `ragged` breaks up its margin."""
    grid = t.grid
    dx, dy = (grid.x - np.float32(ellipse.x)) / np.float32(ellipse.a), (grid.y - np.float32(ellipse.y)) / ellipse.b
    noise = fractal_noise(rng, grid.size, 40, 3)
    level = 1.25 - np.hypot(dx, dy) + np.float32(ragged) * noise * np.clip(1.6 - np.hypot(dx, dy), 0, 1)
    level = np.clip(level / 0.7, 0, 1)
    return np.asarray(level * level * (3 - 2 * level), np.float32)


def consolidation(t: Thorax, rng: np.random.Generator) -> Drawing:
    """Air replaced in most of a segment, with the bronchi still open in it."""
    side = side_of(rng)
    y = float(rng.uniform(7.0, t.anatomy.right_dome - 3.5))
    x, half_width, half_height = (float(rng.uniform(*ends)) for ends in ((7.0, 8.8), (2.6, 3.6), (2.4, 3.4)))
    where = Ellipsoid(side * x, y, half_width, half_height, 0)
    share = cloud(t, rng, where, 0.16) * one_lung(t, side)
    return enclosed(np.float32(0.42) * share * aerated(t) - np.float32(0.5) * share * t.vessels)


def pneumonia(t: Thorax, rng: np.random.Generator) -> Drawing:
    """Patches of airspace opacity in one lower or middle zone."""
    side = side_of(rng)
    x, y = side * float(rng.uniform(6.6, 8.4)), float(rng.uniform(10.0, t.anatomy.right_dome - 3.0))
    share = np.zeros_like(t.lung)
    for _ in range(4):
        at = x + float(rng.normal(0, 1.5)), y + float(rng.normal(0, 1.5))
        patch = Ellipsoid(*at, float(rng.uniform(1.2, 2.2)), float(rng.uniform(1.0, 2.0)), 0)
        share = np.maximum(share, cloud(t, rng, patch, 0.3) * np.float32(rng.uniform(0.6, 1.0)))
    return enclosed(np.float32(0.3) * share * one_lung(t, side) * aerated(t))


def effusion(t: Thorax, rng: np.random.Generator) -> Drawing:
    """Free fluid that blunts a costophrenic angle and climbs the chest wall in a meniscus."""
    side = side_of(rng)
    grid = t.grid
    dome = t.anatomy.right_dome + (t.anatomy.left_lower if side > 0 else 0.0)
    level = dome + float(rng.uniform(-2.5, 1.0))
    wall = grid.profile(CAGE_HALF_WIDTH)
    outward = np.clip((grid.x * np.float32(side) - 3) / (wall - 3), 0, 1)
    surface = np.float32(level + 0.8) - np.float32(rng.uniform(3.0, 5.0)) * outward**4
    share = np.clip((grid.y - surface) / np.float32(1.4) + 0.5, 0, 1) * one_lung(t, side)
    # Lung that still lies before and behind the fluid thins its upper part, never its lower one.
    share = share * np.clip(0.65 + (grid.y - surface) / 8, 0.65, 1)
    return enclosed(np.asarray(share * aerated(t), np.float32), 0.06)


def pneumothorax(t: Thorax, rng: np.random.Generator) -> Drawing:
    """Air around the upper and outer lung: no vessels beyond a thin pleural line."""
    side = side_of(rng)
    grid = t.grid
    y = grid.y[:, 0].astype(np.float64)
    base = float(rng.uniform(14.0, t.anatomy.right_dome))
    gap = float(rng.uniform(2.2, 4.2)) * np.clip((base - y) / base, 0, 1) ** 0.6
    # The collapsed lung's own apex hangs below that of the pleural cavity.
    fallen = float(rng.uniform(1.5, 3.0))
    wall = curve(CAGE_HALF_WIDTH, np.maximum(y - fallen, 0)) - LUNG_CENTRE
    round_apex = np.sqrt(np.clip((y - fallen) / 2.5, 0, 1))
    line = LUNG_CENTRE + np.maximum(wall - gap, 0.4) * round_apex
    line = np.where(y < fallen, 0.0, np.where(y < base, line, 99.0))[:, None].astype(np.float32)
    outward = grid.x * np.float32(side)
    beyond = np.clip((outward - line) / np.float32(0.12) + 0.5, 0, 1)
    medial = LUNG_CENTRE - 3.6 * round_apex[:, None].astype(np.float32)
    medial = np.where(grid.y < fallen + 2.5, medial, np.float32(-99))
    beyond = np.maximum(beyond, np.clip((medial - outward) / np.float32(0.12) + 0.5, 0, 1)) * one_lung(t, side)
    cavity = np.clip(t.lung / np.float32(1.5), 0, 1)
    air = beyond * (np.float32(t.anatomy.lung_density) * t.lung + np.float32(1.5) * t.vessels)
    edge = cv2.morphologyEx(beyond, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    pleura = cv2.GaussianBlur(np.asarray(edge, np.float32), (0, 0), max(0.5, 0.03 / grid.cm_per_pixel))
    path = np.asarray((np.float32(0.5) * pleura * (t.lung > 3.0) - air) * cavity, np.float32)
    return enclosed(path)


def atelectasis(t: Thorax, rng: np.random.Generator) -> Drawing:
    """One to three plates of airless lung above a dome of the diaphragm."""
    side = side_of(rng)
    grid = t.grid
    path = np.zeros_like(t.lung)
    dome = t.anatomy.right_dome + (t.anatomy.left_lower if side > 0 else 0.0)
    x0, y0 = side * float(rng.uniform(7.6, 9.0)), dome - float(rng.uniform(1.8, 3.2))
    slope = float(rng.uniform(-0.25, 0.25))
    for plate in range(int(rng.integers(1, 4))):
        half = float(rng.uniform(2.0, 3.4))
        x, y = x0 + float(rng.normal(0, 0.5)), y0 - plate * float(rng.uniform(0.9, 1.4))
        along = (grid.x - np.float32(x)) / np.float32(half)
        bow = np.float32(y) + np.float32(slope) * (grid.x - np.float32(x)) + np.float32(0.25) * along**2
        across = (grid.y - bow) / np.float32(rng.uniform(0.16, 0.28))
        ends = np.clip((1 - np.abs(along)) / np.float32(0.25), 0, 1)
        path = np.maximum(path, np.float32(rng.uniform(1.8, 2.6)) * ends * np.exp(-(across**2)))
    return enclosed(np.minimum(path, t.lung) * one_lung(t, side))


def edema(t: Thorax, rng: np.random.Generator) -> Drawing:
    """Bat's wings: haze on both sides of the hila that spares the periphery; a box for each side."""
    path, boxes = np.zeros_like(t.lung), []
    strength = np.float32(rng.uniform(0.3, 0.42))
    for side in (-1.0, 1.0):
        wing = Ellipsoid(side * float(rng.uniform(5.2, 6.0)), float(rng.uniform(11.0, 12.5)), 3.4, 5.4, 0)
        part = strength * cloud(t, rng, wing, 0.2) * one_lung(t, side) * aerated(t)
        part += np.float32(0.5) * t.vessels * (part > 0)
        boxes.append(box_of(part > 0.08 * float(part.max())))
        path += part
    return Drawing(path, tuple(boxes))


def cardiomegaly(t: Thorax, _rng: np.random.Generator) -> Drawing:
    """Nothing to add: the heart was built large; its outline is the box."""
    return Drawing(np.zeros_like(t.lung), (box_of((t.heart > 0.3) & (t.grid.y < t.anatomy.right_dome + 2.5)),))


def emphysema(t: Thorax, rng: np.random.Generator) -> Drawing:
    """The lungs were built wide and dark; some bullae are added, and each lung is a box."""
    path = np.zeros_like(t.lung)
    for _ in range(int(rng.integers(3, 7))):
        radius = float(rng.uniform(0.8, 2.0))
        x, y = side_of(rng) * float(rng.uniform(5.5, 9.5)), float(rng.uniform(1.8, 8.0))
        add_chord(path, t.grid, Ellipsoid(x, y, radius, radius, radius), -t.anatomy.lung_density)
    boxes = tuple(box_of((t.lung > 2.0) & (t.grid.x * side > 0)) for side in (-1.0, 1.0))
    return Drawing(path * np.clip(t.lung / np.float32(3), 0, 1), boxes)


_DRAWERS: dict[str, Callable[[Thorax, np.random.Generator], Drawing]] = {
    "Atelectasis": atelectasis,
    "Cardiomegaly": cardiomegaly,
    "Effusion": effusion,
    "Mass": mass,
    "Nodule": nodule,
    "Pneumonia": pneumonia,
    "Pneumothorax": pneumothorax,
    "Consolidation": consolidation,
    "Edema": edema,
    "Emphysema": emphysema,
}

SUPPORTED_FINDINGS: tuple[str, ...] = tuple(_DRAWERS)
