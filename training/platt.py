"""Calibration: Platt scaling (Platt 1999) per pathology, pulled towards one fit for all; pure functions.

A pathology with many positive films is fitted by its own films. A thin one keeps close to the slope and intercept that
all pathologies share, since two parameters fitted on a dozen positives would mostly be noise.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from modules.records import FloatArray

Floats = npt.NDArray[np.float64]

# Standard deviations of the normal priors around the common fit; chosen, not fitted.
SLOPE_SPREAD = 0.3
INTERCEPT_SPREAD = 0.5
LEAST_SLOPE = 0.05  # a calibration never turns the order of films around
FOLDS = 5
NEWTON_STEPS = 50


@dataclass(frozen=True, eq=False)
class Calibration:
    """Calibrated log-odds = slope · logit + intercept, for K pathologies."""

    slope: Floats  # (K,)
    intercept: Floats  # (K,)

    def __post_init__(self) -> None:
        if self.slope.shape != self.intercept.shape or not (self.slope > 0).all():
            raise ValueError("one positive slope and one intercept for each pathology")

    def apply(self, logits: FloatArray) -> FloatArray:
        """Return calibrated log-odds (N, K) of logits (N, K)."""
        return np.asarray(logits * self.slope + self.intercept, np.float32)


def fit(logits: FloatArray, labels: FloatArray) -> Calibration:
    """Fit logits (N, K) to labels (N, K), NaN where not known; raises ValueError without a known label."""
    common, known = common_fit(logits, labels), ~np.isnan(labels)
    spread = np.array([SLOPE_SPREAD, INTERCEPT_SPREAD])
    fitted = np.array(
        [_fit_one(logits[known[:, k], k], labels[known[:, k], k], common, spread) for k in range(logits.shape[1])]
    )
    for k in np.flatnonzero(fitted[:, 0] < LEAST_SLOPE):  # the intercept of another slope would be wrong
        fixed = np.array([LEAST_SLOPE, common[1]])
        held = np.array([1e-6, INTERCEPT_SPREAD])
        fitted[k] = _fit_one(logits[known[:, k], k], labels[known[:, k], k], fixed, held)
    return Calibration(np.maximum(fitted[:, 0], LEAST_SLOPE), fitted[:, 1])


def common_fit(logits: FloatArray, labels: FloatArray) -> Floats:
    """Return slope and intercept (2,) that fit all pathologies together; raises ValueError without a known label."""
    known = ~np.isnan(labels)
    if not known.any():
        raise ValueError("no label is known")
    return _fit_one(logits[known], labels[known], np.array([1.0, 0.0]), np.full(2, np.inf))


def folds(patients: Sequence[str], seed: int = 0, count: int = FOLDS) -> npt.NDArray[np.intp]:
    """Return the fold (N,) of each film; all films of a patient are in one fold."""
    names = sorted(set(patients))
    order = np.random.default_rng(seed).permutation(len(names)) % count
    fold_of = dict(zip(names, order, strict=True))
    return np.array([fold_of[patient] for patient in patients], np.intp)


def _fit_one(logits: FloatArray, labels: FloatArray, centre: Floats, spread: Floats) -> Floats:
    """Return (slope, intercept) of the largest posterior, by Newton's method with halved steps."""
    z, y = logits.astype(np.float64), labels.astype(np.float64)
    precision = 1.0 / spread**2

    def loss(at: Floats) -> float:
        value = z * at[0] + at[1]
        return float(np.logaddexp(0.0, value).sum() - (y * value).sum() + 0.5 * (precision * (at - centre) ** 2).sum())

    at = centre.copy()
    for _ in range(NEWTON_STEPS):
        p = 1.0 / (1.0 + np.exp(-(z * at[0] + at[1])))
        weight = p * (1.0 - p)
        gradient = np.array([((p - y) * z).sum(), (p - y).sum()]) + precision * (at - centre)
        curvature = np.array([[(weight * z * z).sum(), (weight * z).sum()], [(weight * z).sum(), weight.sum()]])
        curvature += np.diag(precision + 1e-9)
        step = np.linalg.solve(curvature, gradient)
        size, before = 1.0, loss(at)
        while size > 1e-6 and loss(at - size * step) > before:
            size /= 2
        at = at - size * step
        if np.abs(size * step).max() < 1e-9:
            break
    return at
