"""Operating points, chosen together so that films without a finding are not buried in alarms; pure functions.

One dial: the share of films without a finding that may show any detection that counts. All pathologies get the same
specificity on those films, the least one that keeps the share. The points depend on films without a finding alone, of
which there are many, and not on the few positive ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evaluation.cohort import later_stages
from modules.odds import probabilities, sigmoid
from modules.records import FloatArray, Risk

BISECTIONS = 40


@dataclass(frozen=True, eq=False)
class Points:
    """Thresholds (14,) on calibrated probabilities, and which of them count."""

    thresholds: FloatArray
    sufficient: tuple[bool, ...]
    specificity: float  # of each pathology on the films without a finding that they were chosen on


@dataclass(frozen=True, eq=False)
class Outcome:
    """What points make of films: detections (N, 14), and the risk of each film without a second reader."""

    detected: npt.NDArray[np.bool_]
    risks: tuple[Risk, ...]


def choose(log_odds: FloatArray, normal: npt.NDArray[np.bool_], sufficient: Sequence[bool], alarms: float) -> Points:
    """Choose from calibrated log-odds (N, 14) of films, of which `normal` (N,) are known to show no finding.

    `alarms` in (0, 1) is the share of those that may show a detection on sufficient data. Raises ValueError when no
    film is normal.
    """
    if not normal.any():
        raise ValueError("no film is known to show no finding, so no specificity can be measured")
    films = log_odds[normal]
    # where none counts, all are taken together: else any threshold would do, and the lowest would be chosen
    counts = np.array(sufficient) if any(sufficient) else np.ones(len(sufficient), np.bool_)
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if _alarms(films, _limits(films, middle), counts) <= alarms:
            high = middle
        else:
            low = middle
    return Points(_limits(films, high), tuple(map(bool, sufficient)), high)


def outcome(log_odds: FloatArray, mirrored: FloatArray, points: Sequence[Points]) -> Outcome:
    """Run fusion, uncertainty and risk over films (N, 14) without a second reader; each film has its points."""
    films = [
        later_stages(film, mirror, p.thresholds, p.sufficient)
        for film, mirror, p in zip(log_odds, mirrored, points, strict=True)
    ]
    return Outcome(np.array([film.detected for film in films]), tuple(film.risk for film in films))


def _limits(films: FloatArray, specificity: float) -> FloatArray:
    """Return thresholds (14,), rounded up: one must not let through the films that it was set by."""
    values = np.quantile(films, specificity, axis=0, method="higher")
    above = [np.ceil(sigmoid(float(value)) * 1e7 + 1e-3) / 1e7 for value in values]
    return np.array([min(value, 1.0 - 1e-7) for value in above], np.float32)


def _alarms(films: FloatArray, thresholds: FloatArray, counts: npt.NDArray[np.bool_]) -> float:
    detected = probabilities(films) >= thresholds  # in the precision in which the server compares them
    return float((detected & counts).any(axis=1).mean())
