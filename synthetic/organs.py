"""Body, lungs, heart, vessels and gas, as path lengths of the rays through them."""

import numpy as np

from synthetic.anatomy import (
    BODY_HALF_DEPTH,
    BODY_HALF_WIDTH,
    CAGE_HALF_WIDTH,
    LUNG_CENTRE,
    LUNG_HALF_DEPTH,
    MEDIAL_REACH,
    MEDIASTINUM_HALF_WIDTH,
    Anatomy,
)
from synthetic.geometry import (
    Ellipsoid,
    FloatArray,
    Grid,
    Points,
    Splatter,
    add_chord,
    chord,
    curve,
    resample,
    smooth_path,
    splat_solid,
    union,
)


def lung_chord(grid: Grid) -> FloatArray:
    """Path length (H, W) through the pleural cavities before anything else takes its room."""
    lateral = grid.profile(CAGE_HALF_WIDTH) - np.float32(LUNG_CENTRE)
    lateral = np.where(grid.y < 0, np.maximum(lateral * (1 + grid.y / 0.3), 0.01), lateral)
    medial = grid.profile(MEDIAL_REACH)
    depth = grid.profile(LUNG_HALF_DEPTH)
    across = np.abs(grid.x) - np.float32(LUNG_CENTRE)
    reach = np.where(across > 0, lateral, medial)
    inside = np.maximum(1 - np.abs(across / reach) ** 2, 0)
    # The paravertebral gutters make a lung thick close to the wall, fuller than an ellipse.
    return np.asarray(2 * depth * inside**0.42, np.float32)


def body_chord(grid: Grid, a: Anatomy) -> FloatArray:
    """Path length (H, W) inside the skin: neck, shoulders, trunk, arms and breasts."""
    neck = curve(((-9.0, 1.0), (-4.0, 0.7), (-1.0, 0.0)), grid.y) * (a.neck_scale - 1)
    wall = curve(((-3.0, 0.0), (2.0, 0.7), (12.0, 1.0)), grid.y) * a.wall
    half_width = (grid.profile(BODY_HALF_WIDTH) * (1 + neck) + wall).astype(np.float32)
    half_depth = (grid.profile(BODY_HALF_DEPTH) + 0.6 * wall).astype(np.float32)
    inside = np.maximum(1 - np.square(grid.x / half_width), 0)
    trunk = 2 * half_depth * inside ** grid.profile(((-5.0, 0.4), (3.0, 0.3)))
    for side in (-1.0, 1.0):
        lean = np.tan(a.arm_angle)
        centre = np.float32(side) * (np.float32(18.3) + np.maximum(grid.y - 2, 0) * np.float32(lean))
        radius = np.float32(4.1 + 0.4 * a.wall) * np.clip((grid.y + 2.2) / 4, 0, 1) ** 0.5
        arm = 2 * np.sqrt(np.maximum(radius**2 - (np.cos(a.arm_angle) * (grid.x - centre)) ** 2, 0))
        trunk = np.maximum(trunk, arm.astype(np.float32))
        if a.breast:
            breast = Ellipsoid(side * 7.9, 16.6, 6.2, 6.2 + 0.3 * a.breast, a.breast / 2, 0.0)
            # Skin folds under the breast: its lower margin is sharp, its upper one fades.
            trunk += chord(grid, breast) * np.clip((grid.y - 9) / 12, 0, 1)
    return np.asarray(trunk, np.float32)


def heart_shapes(a: Anatomy) -> tuple[Ellipsoid, ...]:
    """Left ventricle, right ventricle and right atrium, scaled about the base of the heart."""
    s = a.heart_scale
    x0, y0 = 5.0 * np.sin(a.rotation), a.right_dome - 7.0
    apex = 0.78 + a.heart_turn
    return (
        Ellipsoid(x0 + 3.2 * s, y0 + 4.4 * s, 6.9 * s, 4.4 * s, 4.9 * s, apex),
        Ellipsoid(x0 + 2.0 * s, y0 + 6.2 * s, 5.6 * s, 5.0 * s, 5.4 * s),
        Ellipsoid(x0 - 1.5 * s, y0 + 3.6 * s, 3.0 * s, 4.6 * s, 4.0 * s, 0.12),
    )


def mediastinum_chord(grid: Grid, a: Anatomy, heart: FloatArray, lung: FloatArray) -> FloatArray:
    """Path length (H, W) of heart, great vessels and the tissue between the lungs."""
    half_width = grid.profile(MEDIASTINUM_HALF_WIDTH)
    depth = np.float32(0.8) * grid.profile(LUNG_HALF_DEPTH) + np.float32(0.5)
    column = 2 * depth * np.sqrt(np.maximum(1 - np.square(grid.x / half_width), 0))
    splatter = Splatter(grid, a.rotation)
    step = grid.cm_per_pixel
    aorta = smooth_path([(2.3, 5.8, -3), (2.5, 9, -5), (2.1, 14, -6), (1.4, 20, -6), (0.6, 27, -6)], 300)
    splat_solid(splatter, resample(aorta, step), 1.25, step)
    cava = smooth_path([(-1.6, -0.5, 1), (-2.3, 3, 1), (-2.5, 7, 1), (-2.1, 12, 1)], 200)
    splat_solid(splatter, resample(cava, step), 1.0, step)
    k = a.knob
    great = np.zeros_like(lung)
    for shape in (
        Ellipsoid(3.75 - k, 6.2, k, k * 1.05, 2.6),
        Ellipsoid(2.2, 9.3, 1.75, 2.1, 1.8, 0.9),
        Ellipsoid(-1.2, 8.8, 2.0, 4.0, 2.0),
    ):
        add_chord(great, grid, shape)
    return union(column, great, heart, splatter.image())


def abdomen_chord(grid: Grid, a: Anatomy) -> FloatArray:
    """Path length (H, W) of what lies under the diaphragm and pushes up into the cage."""
    total = np.zeros((grid.size, grid.size), np.float32)
    for x, top, half_width, depth in (
        (-6.9, a.right_dome, 7.3, 8.9),
        (6.9, a.right_dome + a.left_lower, 7.1, 8.8),
        (0.3, a.right_dome + 2.6, 5.0, 9.0),
    ):
        centre = top + a.dome_height
        dome = chord(grid, Ellipsoid(x, centre, half_width, a.dome_height, depth))
        below = np.sqrt(np.maximum(1 - np.square((grid.x - np.float32(x)) / np.float32(half_width)), 0))
        total = np.maximum(total, np.where(grid.y > centre, np.float32(2 * depth) * below, dome))
    return total


def gas_chord(grid: Grid, a: Anatomy, rng: np.random.Generator) -> FloatArray:
    """Path length (H, W) of air in the stomach, with its level, and in the bowel."""
    x, y = float(rng.uniform(5.0, 8.0)), a.right_dome + a.left_lower + float(rng.uniform(1.6, 2.4))
    bubble = chord(grid, Ellipsoid(x, y, a.gas, a.gas * 0.62, a.gas * 0.7))
    level = np.float32(y + a.gas * 0.25)
    gas = bubble * np.clip((level - grid.y) / np.float32(0.12) + 0.5, 0, 1)
    for _ in range(int(rng.integers(2, 7))):
        centre = float(rng.uniform(-11, 11)), float(rng.uniform(a.right_dome + 7, a.right_dome + 13))
        a_axis, b_axis = rng.uniform(0.6, 1.6, 2)
        add_chord(gas, grid, Ellipsoid(*centre, float(a_axis), float(b_axis), 0.8, float(rng.uniform(0, 3))))
    return np.asarray(gas, np.float32)


def airway_chord(grid: Grid, a: Anatomy) -> FloatArray:
    """Path length (H, W) of air in the trachea and the main bronchi."""
    splatter = Splatter(grid, a.rotation)
    step = grid.cm_per_pixel
    trachea = smooth_path([(0, -9, 3), (0, -3, 2), (-0.1, 3, 0), (-0.3, 8.2, -2)], 300)
    windpipe = resample(trachea, step)
    splat_solid(splatter, windpipe, curve(((3.0, 0.85), (8.2, 0.5)), windpipe[:, 1]), step)
    for end, radius in (((-3.6, 11.0, -2.0), 0.58), ((4.2, 11.4, -2.0), 0.5)):
        bronchus = smooth_path([(-0.3, 7.8, -2), (end[0] * 0.5, 9.2, -2), end], 100)
        splat_solid(splatter, resample(bronchus, step), radius, step)
    return splatter.image()


def vessel_chord(grid: Grid, a: Anatomy, rng: np.random.Generator) -> FloatArray:
    """Path length (H, W) of the pulmonary vessels: a tree that forks from each hilum, and the hila themselves."""
    splatter = Splatter(grid, a.rotation)
    step = 1.2 * grid.cm_per_pixel
    for side in (-1.0, 1.0):
        hilum = np.array([side * 3.6, 10.6 if side < 0 else 9.9, 0.0])
        x, y = float(hilum[0]), float(hilum[1])
        for radius, knots in (
            (0.62, ((x, y - 0.8, 0.0), (x + side * 0.9, y + 1.0, 0.0), (x + side * 1.3, y + 4.6, -1.0))),
            (0.55, ((x - side * 1.5, y, 0.0), (x + side * 0.2, y - 0.6, 0.0), (x + side * 1.2, y - 2.2, 0.0))),
        ):
            artery = resample(smooth_path(knots, 100), step)
            splat_solid(splatter, artery, np.linspace(radius, 0.26, len(artery)) * a.vessel_scale, step)
        # Angles from straight lateral, positive downwards; the bases get more blood than the apices.
        first = np.concatenate([rng.uniform(-1.45, -0.3, 5), rng.uniform(-0.3, 0.6, 5), rng.uniform(0.5, 1.35, 9)])
        starts = hilum + np.stack(
            [
                side * rng.uniform(0, 1.2, 19),
                np.clip(first, -1, 1) * 2.2 * rng.uniform(0.3, 1, 19),
                rng.normal(0, 1.5, 19),
            ],
            1,
        )
        grow_vessels(splatter, rng, starts, first, side, 0.3 * a.vessel_scale, step)
    return splatter.image()


def grow_vessels(
    splatter: Splatter,
    rng: np.random.Generator,
    starts: Points,
    angles: Points,
    side: float,
    radius: float,
    step: float,
) -> None:
    """Splat a generation of branches (N) at a time, each forking into two thinner and shorter ones."""
    radii = radius * rng.uniform(0.7, 1.2, len(angles))
    depth_angles = rng.uniform(-0.5, 0.5, len(angles))
    mean_length = 3.4
    for _ in range(4):
        lengths = mean_length * rng.uniform(0.7, 1.3, len(angles))
        bend = rng.normal(0, 0.3, len(angles))
        t = np.linspace(0, 1, max(4, int(np.ceil(mean_length * 1.3 / step))))
        heading = angles[:, None] + bend[:, None] * t
        increments = np.stack(
            [side * np.cos(heading), np.sin(heading), np.sin(depth_angles)[:, None] + 0 * heading], -1
        )
        paths = starts[:, None] + np.cumsum(increments, axis=1) * (lengths / len(t))[:, None, None]
        splat_solid(splatter, paths, radii[:, None] * (1 - 0.28 * t), step)
        fork = rng.uniform(0.2, 0.55, len(angles))
        angles = np.concatenate([heading[:, -1] + fork, heading[:, -1] - fork * 0.8])
        starts = np.concatenate([paths[:, -1], paths[:, -1]])
        radii = np.concatenate([radii * 0.7, radii * 0.62])
        depth_angles = np.concatenate([depth_angles + fork, depth_angles - fork])
        mean_length *= 0.8
