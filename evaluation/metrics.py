"""Measures of discrimination and of decisions: arrays in, numbers out.

Labels are 1 or 0, NaN where not known; such films are left out. A measure that is not defined is NaN, never a guess.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluation.calibration_metrics import (
    ReliabilityBin,
    brier_score,
    brier_skill,
    calibration_line,
    expected_calibration_error,
    prior_shift,
    reliability,
)
from modules.prevalence import predictive_values

__all__ = [
    "Confusion",
    "Curve",
    "Interval",
    "RankedScores",
    "ReliabilityBin",
    "area_under_risk_coverage",
    "auroc",
    "average_precision",
    "brier_score",
    "brier_skill",
    "calibration_line",
    "confusion",
    "expected_calibration_error",
    "intersection_over_union",
    "precision_recall_curve",
    "predictive_values",
    "prior_shift",
    "reliability",
    "risk_coverage",
    "roc_curve",
    "wilson_interval",
]

Values = npt.NDArray[np.floating[Any]]
Floats = npt.NDArray[np.float64]
Z_95 = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Interval:
    """A 95 % interval; NaN at both ends when it is not defined."""

    low: float
    high: float


@dataclass(frozen=True)
class Curve:
    """Points of a curve, x and y (P,), with the score at which each is reached."""

    x: Floats
    y: Floats
    thresholds: Floats


@dataclass(frozen=True)
class Confusion:
    """Counts of films at one operating point."""

    true_positive: int
    false_positive: int
    true_negative: int
    false_negative: int

    @property
    def sensitivity(self) -> float:
        """Share of the positive films that were detected; NaN without any."""
        return _share(self.true_positive, self.true_positive + self.false_negative)

    @property
    def specificity(self) -> float:
        """Share of the negative films that were not detected; NaN without any."""
        return _share(self.true_negative, self.true_negative + self.false_positive)


class RankedScores:
    """Scores (N,) sorted once with their labels, so that the areas under weights (N,) cost one pass each."""

    def __init__(self, labels: Values, scores: Values) -> None:
        labels, scores = _paired(labels, scores)
        known = np.flatnonzero(~np.isnan(labels))
        self._order = known[np.argsort(-scores[known], kind="stable")]
        ranked = scores[self._order]
        self._positive = labels[self._order] == 1.0
        self._last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)) if ranked.size else np.empty(0, int)
        self.thresholds = ranked[self._last]

    def counts(self, weights: npt.NDArray[Any] | None = None) -> tuple[Floats, Floats]:
        """Return true and false positives at each distinct score, from the highest score down."""
        weight = np.ones(self._order.size) if weights is None else np.asarray(weights, np.float64)[self._order]
        true = np.cumsum(weight * self._positive)[self._last]
        false = np.cumsum(weight * ~self._positive)[self._last]
        return true, false

    def auroc(self, weights: npt.NDArray[Any] | None = None) -> float:
        """Return the area under the ROC curve, a tie counting half; NaN unless both classes have weight."""
        true, false = self.counts(weights)
        if not true.size or true[-1] <= 0 or false[-1] <= 0:
            return math.nan
        steps = np.diff(false, prepend=0.0)
        middle = true - np.diff(true, prepend=0.0) / 2
        return float((steps * middle).sum() / (true[-1] * false[-1]))

    def average_precision(self, weights: npt.NDArray[Any] | None = None) -> float:
        """Return the sum of precision over the steps of recall; NaN without a positive."""
        true, false = self.counts(weights)
        if not true.size or true[-1] <= 0:
            return math.nan
        steps = np.diff(true, prepend=0.0)
        total = true + false
        precision = np.divide(true, total, out=np.zeros_like(true), where=total > 0)
        return float((steps * precision).sum() / true[-1])


def auroc(labels: Values, scores: Values) -> float:
    """Return the area under the ROC curve (Hanley and McNeil 1982); NaN unless both labels occur."""
    return RankedScores(labels, scores).auroc()


def average_precision(labels: Values, scores: Values) -> float:
    """Return the area under the precision-recall curve, without interpolation; NaN unless both labels occur."""
    ranked = RankedScores(labels, scores)
    return math.nan if math.isnan(ranked.auroc()) else ranked.average_precision()


def roc_curve(labels: Values, scores: Values) -> Curve:
    """Return 1 − specificity against sensitivity from (0, 0); raises ValueError unless both labels occur."""
    ranked = RankedScores(labels, scores)
    true, false = ranked.counts()
    if not true.size or true[-1] <= 0 or false[-1] <= 0:
        raise ValueError("a ROC curve needs a positive and a negative film")
    return Curve(
        x=np.append(0.0, false / false[-1]),
        y=np.append(0.0, true / true[-1]),
        thresholds=np.append(math.inf, ranked.thresholds),
    )


def precision_recall_curve(labels: Values, scores: Values) -> Curve:
    """Return recall against precision, from the highest score down; raises ValueError without a positive film."""
    ranked = RankedScores(labels, scores)
    true, false = ranked.counts()
    if not true.size or true[-1] <= 0:
        raise ValueError("a precision-recall curve needs a positive film")
    return Curve(x=true / true[-1], y=true / (true + false), thresholds=ranked.thresholds)


def confusion(labels: Values, detected: npt.NDArray[Any]) -> Confusion:
    """Count the films whose label is known by label and detection."""
    truth, found = _paired(labels, np.asarray(detected, np.float64))
    known = ~np.isnan(truth)
    positive, hit = truth[known] == 1.0, found[known] != 0.0
    return Confusion(
        true_positive=int((positive & hit).sum()),
        false_positive=int((~positive & hit).sum()),
        true_negative=int((~positive & ~hit).sum()),
        false_negative=int((positive & ~hit).sum()),
    )


def wilson_interval(successes: int, total: int) -> Interval:
    """Return the score interval of a share (Wilson 1927); NaN for nothing counted."""
    if not 0 <= successes <= total:
        raise ValueError(f"{successes} of {total} is no share")
    if total == 0:
        return Interval(math.nan, math.nan)
    share, z2 = successes / total, Z_95**2
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = Z_95 / (1 + z2 / total) * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    # at the ends of the scale the arithmetic would leave 1e-17 where the formula gives 0
    return Interval(
        low=0.0 if successes == 0 else max(0.0, centre - half),
        high=1.0 if successes == total else min(1.0, centre + half),
    )


def risk_coverage(confidence: Values, errors: Values) -> Curve:
    """Return the mean error of the most confident films at each coverage (Geifman and El-Yaniv, NeurIPS 2017).

    Films of one confidence are taken together, in the mean over their orders, so that no order is made up.
    """
    sure, loss = _paired(confidence, errors)
    known = ~np.isnan(loss)
    sure, loss = sure[known], loss[known]
    if not loss.size:
        raise ValueError("a risk-coverage curve needs a film")
    levels, group = np.unique(-sure, return_inverse=True)
    mean = np.bincount(group, loss) / np.bincount(group)
    expected = np.sort(group)
    coverage = np.arange(1, loss.size + 1)
    return Curve(
        x=coverage / loss.size, y=np.cumsum(mean[expected]) / coverage, thresholds=-levels[expected].astype(np.float64)
    )


def area_under_risk_coverage(confidence: Values, errors: Values) -> float:
    """Return the mean of the risk over all coverages (AURC): lower is better."""
    return float(risk_coverage(confidence, errors).y.mean())


def intersection_over_union(mask: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_]) -> float:
    """Return the overlap of two masks (H, W) as a share of their union; NaN when both are empty."""
    union = int((mask | other).sum())
    return int((mask & other).sum()) / union if union else math.nan


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _paired(first: Values, second: Values) -> tuple[Floats, Floats]:
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"two vectors of one length are needed, not {a.shape} and {b.shape}")
    return a, b
