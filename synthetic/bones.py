"""Ribs, shoulder girdle and spine: hollow tubes and closed forms, as path lengths of cortical bone."""

from itertools import pairwise

import cv2
import numpy as np

from synthetic.anatomy import CAGE_HALF_WIDTH, Anatomy
from synthetic.geometry import FloatArray, Grid, Points, Splatter, Tube, curve, smooth_path, splat_bone

RIBS = 12
VERTEBRAE = 22  # from the middle of the neck to the upper lumbar spine


def bone_chord(grid: Grid, a: Anatomy) -> FloatArray:
    """Path length (H, W) of cortical bone in ribs, shoulder girdle and spine."""
    splatter = Splatter(grid, a.rotation)
    step = 1.25 * grid.cm_per_pixel
    for side in (-1.0, 1.0):
        for index in range(RIBS):
            splat_bone(splatter, rib_tube(a, index, side), step, 0.21)
        for tube in shoulder_tubes(a, side):
            splat_bone(splatter, tube, step, 0.1)
    return splatter.image() + scapula_blades(grid) + spine_chord(grid)


def rib_tube(a: Anatomy, index: int, side: float) -> Tube:
    """Rib `index` (0 = first) from its head at the spine round to the end of its bone in front."""
    head = -0.3 + 2.1 * index - (0.3 if index == 0 else 0.0)
    # Upper ribs are small steep loops, the lowest two end in the flank.
    end = (2.3, 2.45, 2.5, 2.5, 2.45, 2.4, 2.3, 2.2, 2.1, 1.95, 1.3, 0.9)[index]
    drop = a.rib_drop * (0.5, 0.68, 0.82, 0.92, 1.0, 1.05, 1.1, 1.15, 1.2, 1.25, 1.6, 1.9)[index]
    depth = (2.4, 4.6, 7.0, 8.2, 8.7, 9.1, 9.4, 9.6, 9.6, 9.6, 9.6, 9.6)[index]
    slope = a.rib_slope * (0.5, 0.6, 0.75, 0.85, 0.95, 1.0, 1.05, 1.1, 1.2, 1.3, 1.4, 1.5)[index]
    theta = np.linspace(0.02, end, 120)
    # From its head a rib first rises a little; then its loop lies in a plane that dips towards the front.
    y = head - a.rib_rise * np.sin(2 * np.minimum(theta, np.pi / 2)) + drop * (1 - np.cos(theta)) / 2
    y += slope * np.sin(theta)
    # Each point lies on the cage at its own height, so that the ribs' outer edges line up along the wall.
    width = (curve(CAGE_HALF_WIDTH, y) + 0.2) * ((0.76, 0.96)[index] if index < 2 else 1.0)
    x = 1.7 + (width - 1.7) * np.sin(theta) ** 0.9
    z = -depth * np.cos(theta)
    normal = np.stack([side * np.sin(theta), np.zeros_like(theta), -np.cos(theta)], axis=1)
    size = (0.8, 0.85)[index] if index < 2 else (0.8 if index > 9 else 1.0)
    front = np.clip((theta - 1.4) / 0.8, 0, 1)
    height = size * (0.62 + 0.12 * front - 0.12 * np.clip(1 - theta / 0.4, 0, 1))
    cortex = 0.055 * a.rib_density * (1 - (0.95 if index < 2 else 0.4) * front)
    return Tube(np.stack([side * x, y, z], axis=1), normal, height, 0.36 * size, cortex)


def shoulder_tubes(a: Anatomy, side: float) -> list[Tube]:
    """Clavicle, borders of the scapula and upper arm of one side."""
    lean = np.tan(a.arm_angle)

    def bone(
        half_height: float | Points, half_thickness: float | Points, cortex: float, *knots: tuple[float, ...]
    ) -> Tube:
        """A bone whose section's short axis is z, through points (x, y) or (x, y, z)."""
        path = smooth_path([(side * k[0], k[1], k[2] if len(k) > 2 else 0.0) for k in knots])
        return Tube(path, np.tile([0.0, 0.0, 1.0], (len(path), 1)), half_height, half_thickness, cortex)

    collar = np.r_[np.linspace(0.75, 0.52, 20), np.linspace(0.52, 0.6, 20)]
    head = np.r_[np.full(22, 2.3), np.linspace(2.3, 1.3, 18)]
    return [
        bone(
            collar, 0.8 * collar, 0.11, (1.9, 3.0, 7), (4.5, 2.2, 6.5), (8, 0.7, 4), (11.5, -0.6, 0), (16.8, -0.9, -2)
        ),
        bone(0.16, 0.25, 0.06, (12.3, 2.6), (12.6, 6.5), (13.0, 10.5), (13.9, 13.6)),
        bone(np.linspace(0.4, 0.15, 40), 0.3, 0.08, (16.4, 5.2), (15.6, 8.0), (14.7, 11.5), (13.9, 13.6)),
        bone(0.14, 0.2, 0.05, (12.3, 2.6), (13.6, 1.9), (15.0, 2.1)),
        bone(np.linspace(0.12, 0.5, 40), 0.2, 0.06, (12.7, 4.0), (14.6, 2.4), (16.4, 0.7), (18.4, 0.1)),
        bone(0.7, 0.5, 0.07, (15.2, 2.0), (15.9, 2.5), (16.2, 3.2)),
        bone(0.3, 0.5, 0.05, (16.7, 2.0), (16.8, 3.8), (16.5, 5.6)),
        bone(head, 1.5, 0.07, (18.6, 0.9), (18.7, 2.5), (18.9, 4.0), (19.2, 6.5)),
        bone(1.2, 1.0, 0.25, (19.0, 5.6), (19.0 + 6 * lean, 11.6), (19.0 + 16 * lean, 21.6)),
    ]


def scapula_blades(grid: Grid) -> FloatArray:
    """Path length (H, W) of cortical bone in the flat of both shoulder blades."""
    blades = np.zeros((grid.size, grid.size), np.uint8)
    corners = np.array(
        [(12.3, 2.6), (12.6, 6.5), (13.0, 10.5), (13.9, 13.6), (14.7, 11.5), (15.6, 8.0), (16.4, 5.2), (15.0, 2.1)]
    )
    for side in (-1.0, 1.0):
        columns = grid.column_of(side * corners[:, 0], corners[:, 1])
        outline = np.stack([columns, grid.row_of(corners[:, 1])], axis=1)
        cv2.fillPoly(blades, [np.round(outline * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    return blades.astype(np.float32) * np.float32(0.16 / 255)


def spine_chord(grid: Grid) -> FloatArray:
    """Path length (H, W) of cortical bone in the vertebrae, in closed form row by row."""
    spine = np.zeros((grid.size, grid.size), np.float32)
    tops = vertebra_tops()
    y = grid.y
    middle = slice(*np.clip(grid.column_of(np.array([-4.0, 4.0]), np.array([10.0, 10.0])), 0, grid.size).astype(int))
    x = grid.x[:, middle]
    for top, bottom in pairwise(tops):
        height, half = bottom - top, float(curve(((-9, 1.15), (0, 1.4), (12, 1.6), (30, 2.2)), top))
        rows = slice(*np.clip(grid.row_of(np.array([top - 0.5, bottom + 1.0])), 0, grid.size).astype(int))
        if rows.stop <= rows.start:
            continue
        xr, yr = x[rows], y[rows]
        waist = np.float32(half) * (
            1 - 0.09 * np.cos(np.clip((yr - top) / height - 0.5, -0.5, 0.5) * np.pi).astype(np.float32)
        )
        width = np.sqrt(np.maximum(1 - np.square(xr / waist), 0))
        along = (yr - top) / np.float32(height)
        body = np.clip((0.43 - np.abs(along - 0.43)) * np.float32(height / 0.12), 0, 1)
        endplate = np.exp(-np.square((0.43 - np.abs(along - 0.43)) * np.float32(height / 0.14)))
        part = body * width * 0.34 + endplate * width * 0.3
        for side in (-1.0, 1.0):
            pedicle = np.hypot((xr - side * 0.68 * half) / 0.42, (yr - top - 0.38 * height) / 0.55)
            part += 0.2 * np.exp(-np.square((pedicle - 0.8) / 0.3))
            process = np.maximum(1 - np.square((np.abs(xr - side * 1.45 * half)) / (0.8 * half)), 0)
            part += 0.14 * process * np.exp(-np.square((yr - top - 0.35 * height) / 0.38))
        spinous = np.hypot(xr / 0.32, (yr - bottom - 0.05) / 0.75)
        part += 0.3 * np.clip(1.3 - spinous, 0, 1)
        spine[rows, middle] += part.astype(np.float32)
    return spine


def vertebra_tops() -> list[float]:
    """Upper edges of the vertebrae, cm, from the neck down; each is higher than the one above it."""
    tops = [-9.5]
    for _ in range(VERTEBRAE):
        tops.append(tops[-1] + float(curve(((-9, 1.65), (2, 2.0), (30, 2.9)), tops[-1])))
    return tops
