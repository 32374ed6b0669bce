"""What a calibration and its operating points are worth on labelled films: for the card; pure functions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.bootstrap import bootstrap_samples, percentile_intervals
from evaluation.decisions import LEVELS, PREVALENCES, rates_at_points
from evaluation.films import LabelledFilm
from evaluation.metrics import auroc, brier_skill, calibration_line, expected_calibration_error
from modules.odds import probabilities
from modules.pathologies import NAMES
from modules.records import FloatArray
from training.operating_points import Outcome

REPLICATES = 1000
# The rows of `rates_at_points`, as the card names them.
RATES = (
    "sensitivity",
    "specificity",
    *(f"{value}_at_{prevalence:.0%}" for prevalence in PREVALENCES for value in ("ppv", "npv")),
)


@dataclass(frozen=True)
class Measured:
    """Numbers for the card: null where one cannot be measured."""

    calibration: dict[str, Any]  # over all pathologies
    pathologies: dict[str, dict[str, Any]]  # for each, at its point


def measure(
    rows: Sequence[LabelledFilm], log_odds: FloatArray, outcome: Outcome, sufficient: Sequence[bool]
) -> Measured:
    """Measure calibrated log-odds (N, 14) and the detections at their points; intervals by resampling patients."""
    labels = np.array([row.labels for row in rows], np.float32)
    rates = rates_at_points(labels, outcome.detected)
    values = rates(np.ones(len(rows)))
    samples = bootstrap_samples([row.patient for row in rows], rates, REPLICATES)
    intervals = percentile_intervals(samples)
    each = {}
    for k, name in enumerate(NAMES):
        each[name] = _discrimination_and_calibration(labels[:, k], log_odds[:, k])
        for rate, value, interval in zip(RATES, values[:, k], intervals[:, k], strict=True):
            each[name][rate] = _number(value)
            each[name][f"{rate}_95ci"] = [_number(interval.low), _number(interval.high)]
    return Measured(_calibration(each, sufficient), each)


def _discrimination_and_calibration(labels: FloatArray, log_odds: FloatArray) -> dict[str, Any]:
    served = probabilities(log_odds)
    slope, intercept = calibration_line(labels, log_odds)
    return {
        "films": int((~np.isnan(labels)).sum()),
        "positive_films": int((labels == 1).sum()),
        "auroc": _number(auroc(labels, log_odds)),
        "ece": _number(expected_calibration_error(labels, served)),
        "brier_skill": _number(brier_skill(labels, served)),
        "calibration_slope": _number(slope),
        "calibration_intercept": _number(intercept),
    }


def _calibration(each: dict[str, dict[str, Any]], sufficient: Sequence[bool]) -> dict[str, Any]:
    errors = [values["ece"] for values in each.values() if values["ece"] is not None]
    of_sufficient = [name for name, enough in zip(NAMES, sufficient, strict=True) if enough]
    without_skill = [name for name in of_sufficient if not (each[name]["brier_skill"] or 0.0) > 0.0]
    return {
        "mean_ece": float(np.mean(errors)) if errors else None,
        "ece": "10 bins of equal numbers of films",
        "pathologies_with_sufficient_data": len(of_sufficient),
        "of_those_with_brier_skill_not_above_0": without_skill,
    }


def meaning(rows: Sequence[LabelledFilm], outcome: Outcome, sufficient: Sequence[bool]) -> dict[str, Any]:
    """Return what the points tell films without a finding, and how many films with one they find."""
    normal = np.array([row.no_finding for row in rows])
    counted = (outcome.detected & np.array(sufficient)).any(axis=1)
    labels = np.array([row.labels for row in rows], np.float32)
    truth = (labels == 1) & np.array(sufficient)
    right = (outcome.detected & truth).any(axis=1)
    risks = [risk for risk, is_normal in zip(outcome.risks, normal, strict=True) if is_normal]
    abnormal = truth.any(axis=1)
    return {
        "films_without_a_finding_with_any_detection": float(counted[normal].mean()),
        "films_without_a_finding_rated": {
            level: float(np.mean([risk.level == level for risk in risks])) for level in LEVELS
        },
        "films_without_a_finding_sent_to_review": float(np.mean([risk.needs_review for risk in risks])),
        "films_with_a_finding_with_any_detection": float(counted[abnormal].mean()) if abnormal.any() else None,
        "films_with_a_finding_of_which_one_is_detected": float(right[abnormal].mean()) if abnormal.any() else None,
    }


def _number(value: float) -> float | None:
    """Return the number, or None where it is not one: JSON has no NaN."""
    return float(value) if np.isfinite(value) else None
