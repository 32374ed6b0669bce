"""How far probabilities can be taken at their word: arrays in, numbers out."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.floating[Any]]
Floats = npt.NDArray[np.float64]

MAX_STEPS = 100
CONVERGED = 1e-9
# Beyond this slope or intercept the likelihood still grows: the classes are separable and no line is the best.
DIVERGED = 1e3


@dataclass(frozen=True)
class ReliabilityBin:
    """Films of similar probability: what was said, how often it was true, how many there are."""

    mean_probability: float
    observed: float
    count: int


def reliability(labels: Values, probabilities: Values, bins: int = 10) -> tuple[ReliabilityBin, ...]:
    """Return up to `bins` bins with about as many films each; films of one probability are never parted."""
    truth, p = _known(labels, probabilities)
    if not truth.size:
        return ()
    order = np.argsort(p, kind="stable")
    truth, p = truth[order], p[order]
    bins = min(bins, truth.size)
    # the bin of a group of ties is that of its middle film
    _, first, count = np.unique(p, return_index=True, return_counts=True)
    place = np.minimum(((first + (count - 1) / 2) * bins / truth.size).astype(int), bins - 1)
    bin_of = np.repeat(place, count)
    return tuple(
        ReliabilityBin(float(p[bin_of == b].mean()), float(truth[bin_of == b].mean()), int((bin_of == b).sum()))
        for b in np.unique(bin_of)
    )


def expected_calibration_error(labels: Values, probabilities: Values, bins: int = 10) -> float:
    """Return the mean distance between what was said and what was true, over equal-mass bins (Naeini, AAAI 2015)."""
    parts = reliability(labels, probabilities, bins)
    if not parts:
        return math.nan
    total = sum(part.count for part in parts)
    return sum(part.count * abs(part.observed - part.mean_probability) for part in parts) / total


def brier_score(labels: Values, probabilities: Values) -> float:
    """Return the mean squared error of the probabilities (Brier 1950); NaN without a known label."""
    truth, p = _known(labels, probabilities)
    return float(((p - truth) ** 2).mean()) if truth.size else math.nan


def brier_skill(labels: Values, probabilities: Values) -> float:
    """Return 1 − Brier score / that of the films' own prevalence said of every film; NaN unless both labels occur."""
    truth, p = _known(labels, probabilities)
    if not truth.size or not 0.0 < truth.mean() < 1.0:
        return math.nan
    prevalence = truth.mean()
    return float(1.0 - ((p - truth) ** 2).mean() / (prevalence * (1.0 - prevalence)))


def calibration_line(labels: Values, log_odds: Values) -> tuple[float, float]:
    """Return (slope, intercept) of the logistic recalibration (Cox 1958): 1 and 0 when calibrated.

    By maximum likelihood with Newton's method. NaN when it has no maximum: one class, constant or separating scores.
    """
    truth, x = _known(labels, log_odds)
    if not truth.size or not 0.0 < truth.mean() < 1.0 or np.ptp(x) == 0.0 or _separated(truth, x):
        return math.nan, math.nan
    design = np.column_stack([x, np.ones_like(x)])
    beta = np.array([0.0, math.log(truth.mean() / (1.0 - truth.mean()))])
    value = _log_likelihood(truth, design @ beta)
    for _ in range(MAX_STEPS):
        p = sigmoids(design @ beta)
        weight = p * (1.0 - p)
        information = design.T @ (weight[:, np.newaxis] * design)
        try:
            step = np.linalg.solve(information, design.T @ (truth - p))
        except np.linalg.LinAlgError:
            return math.nan, math.nan
        shrink = 1.0
        while (new := _log_likelihood(truth, design @ (beta + shrink * step))) < value - 1e-12 and shrink > 1e-6:
            shrink /= 2.0  # Newton overshoots far from the maximum
        beta, value = beta + shrink * step, new
        if np.abs(beta).max() > DIVERGED:
            return math.nan, math.nan
        if np.abs(shrink * step).max() < CONVERGED:
            return float(beta[0]), float(beta[1])
    return math.nan, math.nan


def prior_shift(labels: Values, validation_prevalence: float) -> float:
    """Return the shift of log-odds from the validation prevalence to that of the films (Saerens et al. 2002)."""
    truth = np.asarray(labels, np.float64)
    prevalence = truth[~np.isnan(truth)].mean() if (~np.isnan(truth)).any() else 0.0
    if not 0.0 < prevalence < 1.0 or not 0.0 < validation_prevalence < 1.0:
        return math.nan
    return math.log(prevalence / (1 - prevalence)) - math.log(validation_prevalence / (1 - validation_prevalence))


def sigmoids(log_odds: Values) -> Floats:
    """Return the probabilities of log-odds, without overflow."""
    x = np.asarray(log_odds, np.float64)
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, small) / (1.0 + small)


def _known(labels: Values, values: Values) -> tuple[Floats, Floats]:
    truth, x = np.asarray(labels, np.float64), np.asarray(values, np.float64)
    if truth.ndim != 1 or truth.shape != x.shape:
        raise ValueError(f"two vectors of one length are needed, not {truth.shape} and {x.shape}")
    return truth[~np.isnan(truth)], x[~np.isnan(truth)]


def _separated(truth: Floats, x: Floats) -> bool:
    positive, negative = x[truth == 1.0], x[truth == 0.0]
    return bool(positive.min() >= negative.max() or positive.max() <= negative.min())


def _log_likelihood(truth: Floats, scores: Floats) -> float:
    return float((truth * scores - np.logaddexp(0.0, scores)).sum())
