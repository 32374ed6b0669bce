"""The thorax put together: what findings are drawn into, and the film is made from."""

from dataclasses import dataclass

import numpy as np

from synthetic.anatomy import Anatomy
from synthetic.bones import bone_chord
from synthetic.geometry import FloatArray, Grid, chord, fractal_noise, union
from synthetic.organs import (
    abdomen_chord,
    airway_chord,
    body_chord,
    gas_chord,
    heart_shapes,
    lung_chord,
    mediastinum_chord,
    vessel_chord,
)


@dataclass(frozen=True, eq=False)
class Thorax:
    """Path lengths (H, W) in cm; what findings are drawn into."""

    grid: Grid
    anatomy: Anatomy
    body: FloatArray  # everything inside the skin
    lung: FloatArray  # both lungs, what the mediastinum and the abdomen leave of them
    heart: FloatArray
    vessels: FloatArray  # soft tissue of the lungs' vessels
    bone: FloatArray  # cortical bone
    airway: FloatArray  # air of trachea and bronchi
    gas: FloatArray  # air in stomach and bowel


def build_thorax(grid: Grid, a: Anatomy, rng: np.random.Generator) -> Thorax:
    """Cast every ray through a patient; `rng` draws the details that no parameter of the anatomy names."""
    cavity = lung_chord(grid)
    heart = chord(grid, heart_shapes(a)[0])
    for shape in heart_shapes(a)[1:]:
        heart = union(heart, chord(grid, shape))
    taken = union(mediastinum_chord(grid, a, heart, cavity), abdomen_chord(grid, a))
    lung = np.maximum(cavity - taken, 0)
    present = np.clip(lung / np.float32(1.5), 0, 1)
    parenchyma = 1 + np.float32(0.02) * fractal_noise(rng, grid.size, 220, 3)
    return Thorax(
        grid=grid,
        anatomy=a,
        body=body_chord(grid, a) * (1 + np.float32(0.012) * fractal_noise(rng, grid.size, 24, 3)),
        lung=lung * parenchyma,
        heart=heart,
        vessels=vessel_chord(grid, a, rng) * present,
        bone=bone_chord(grid, a),
        airway=airway_chord(grid, a),
        gas=gas_chord(grid, a, rng),
    )
