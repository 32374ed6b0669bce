"""One patient: the outlines of an average thorax, and how a body is drawn at random around them."""

from dataclasses import dataclass

import numpy as np

from synthetic.geometry import Knots

# Outlines of an average adult in cm against y, the distance below the apices; chosen by eye, not fitted to any film.
# fmt: off
CAGE_HALF_WIDTH: Knots = (
    (-0.5, 5.6), (0.0, 6.5), (0.7, 7.8), (2.0, 9.2), (4.0, 10.5), (7.0, 11.9), (11.0, 13.0), (16.0, 13.7),
    (21.0, 14.0), (26.0, 13.9), (34.0, 13.2),
)
LUNG_HALF_DEPTH: Knots = (
    (-0.3, 0.0), (0.15, 1.6), (1.0, 3.6), (3.0, 5.4), (6.0, 7.0), (10.0, 8.3), (15.0, 9.2), (20.0, 9.6),
    (24.0, 9.5), (26.5, 7.5), (29.0, 0.0),
)
MEDIAL_REACH: Knots = (
    (-0.3, 0.6), (0.0, 1.5), (0.5, 2.6), (1.5, 3.6), (4.0, 4.6), (7.0, 5.4), (30.0, 5.8),
)
BODY_HALF_WIDTH: Knots = (
    (-9.0, 6.6), (-7.0, 6.2), (-5.8, 6.5), (-4.8, 8.0), (-4.0, 10.4), (-3.2, 13.3), (-2.2, 16.2), (0.0, 18.6),
    (2.5, 19.0), (7.0, 18.0), (11.0, 16.4), (16.0, 15.7), (22.0, 15.8), (34.0, 15.4),
)
BODY_HALF_DEPTH: Knots = (
    (-9.0, 5.8), (-5.0, 5.6), (-2.0, 6.0), (1.0, 7.6), (5.0, 9.4), (10.0, 11.0), (16.0, 11.8), (34.0, 11.6),
)
MEDIASTINUM_HALF_WIDTH: Knots = (
    (-9.0, 1.6), (0.0, 2.0), (5.0, 2.4), (10.0, 2.6), (30.0, 2.8),
)
# fmt: on
LUNG_CENTRE = 5.6  # cm from the midline to the middle of a lung's apex


@dataclass(frozen=True)
class Anatomy:
    """One patient and how he stands before the film; lengths in cm, angles in radians."""

    field: float  # side of the film
    top: float  # y of the film's upper edge
    stretch: float  # the patient's height by his width, 1 = average
    shift: float  # of the patient from the middle of the film
    tilt: float  # of the midline, cm per cm
    rotation: float  # about the spine
    wall: float  # soft tissue outside the cage beyond the average
    breast: float  # path through the breasts at their thickest; 0 = none worth drawing
    heart_scale: float
    heart_turn: float  # 0 = average, positive = more upright
    right_dome: float  # y of the top of the right dome
    left_lower: float  # how much lower the left dome stands
    dome_height: float  # from the top of a dome to the level where it meets the wall
    lung_density: float  # by that of soft tissue
    knob: float  # radius of the aortic knob
    rib_rise: float  # how far a rib rises beside the spine before it dips
    rib_slope: float  # how much lower its most lateral point is than that plane
    rib_drop: float  # how much lower the front of its loop is than its head
    rib_density: float
    vessel_scale: float
    arm_angle: float  # from the vertical
    gas: float  # width of the gastric bubble
    neck_scale: float


def sample_anatomy(rng: np.random.Generator) -> Anatomy:
    """Draw a patient without findings."""
    female = rng.random() < 0.45

    def around(mean: float, spread: float) -> float:
        """A value within two spreads of the mean."""
        return float(mean + spread * np.clip(rng.standard_normal(), -2, 2))

    return Anatomy(
        field=around(36.2, 1.5),
        top=around(-4.6, 0.9),
        stretch=around(0.99, 0.07),
        shift=around(0.0, 0.5),
        tilt=around(0.0, 0.012),
        rotation=around(0.0, 0.035),
        wall=abs(around(0.7, 0.9)),
        breast=abs(around(3.0, 1.3)) if female else 0.0,
        heart_scale=around(1.0, 0.06),
        heart_turn=around(0.0, 0.1),
        right_dome=around(19.6, 0.9),
        left_lower=around(1.1, 0.4),
        dome_height=around(4.9, 0.5),
        lung_density=around(0.25, 0.02),
        knob=around(1.55, 0.2),
        rib_rise=around(0.4, 0.15),
        rib_slope=around(2.1, 0.5),
        rib_drop=around(8.8, 0.9),
        rib_density=around(1.0, 0.12),
        vessel_scale=around(1.0, 0.1),
        arm_angle=around(0.36, 0.13),
        gas=around(1.8, 0.5),
        neck_scale=around(1.0, 0.08),
    )
