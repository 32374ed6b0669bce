"""What a calibration and its operating points are worth on labelled films: for the card; pure functions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluation.bootstrap import patient_bootstrap
from evaluation.films import LabelledFilm
from evaluation.metrics import (
    auroc,
    brier_skill,
    calibration_line,
    expected_calibration_error,
    predictive_values,
)
from modules.odds import probabilities
from modules.pathologies import NAMES
from modules.records import FloatArray
from training.operating_points import Outcome

PREVALENCES = (0.01, 0.05, 0.2)
REPLICATES = 1000
LEVELS = ("Low", "Moderate", "High")
Weights = npt.NDArray[Any]  # how often each film counts (N,)


@dataclass(frozen=True)
class Measured:
    """Numbers for the card: null where one cannot be measured."""

    calibration: dict[str, Any]  # over all pathologies
    meaning: dict[str, Any]  # of the points, for films without a finding
    pathologies: dict[str, dict[str, Any]]  # for each, at its point


def measure(
    rows: Sequence[LabelledFilm],
    log_odds: FloatArray,
    outcome: Outcome,
    sufficient: Sequence[bool],
    *,
    intervals: bool = True,
) -> Measured:
    """Measure calibrated log-odds (N, 14) and what their points made of the films."""
    labels = np.array([row.labels for row in rows], np.float32)
    patients = [row.patient for row in rows]
    each = {
        name: _pathology(labels[:, k], log_odds[:, k], outcome.detected[:, k], patients if intervals else None)
        for k, name in enumerate(NAMES)
    }
    return Measured(_calibration(each, sufficient), _meaning(rows, outcome, sufficient), each)


def _pathology(
    labels: FloatArray, log_odds: FloatArray, detected: npt.NDArray[np.bool_], patients: Sequence[str] | None
) -> dict[str, Any]:
    known = ~np.isnan(labels)
    truth, values, found = labels[known] == 1, log_odds[known], detected[known]
    served = probabilities(values)
    slope, intercept = calibration_line(labels[known], values)
    result: dict[str, Any] = {
        "films": int(known.sum()),
        "positive_films": int(truth.sum()),
        "auroc": _number(auroc(labels, log_odds)),
        "ece": _number(expected_calibration_error(labels[known], served)),
        "brier_skill": _number(brier_skill(labels[known], served)),
        "calibration_slope": _number(slope),
        "calibration_intercept": _number(intercept),
    }
    ones = np.ones(len(truth))
    for name, statistic in _at_the_point(truth, found).items():
        result[name] = _number(statistic(ones))
        if patients is not None:
            of_known = [patient for patient, is_known in zip(patients, known, strict=True) if is_known]
            interval = patient_bootstrap(of_known, statistic, replicates=REPLICATES)
            result[f"{name}_95ci"] = [_number(interval.low), _number(interval.high)]
    return result


def _at_the_point(truth: npt.NDArray[np.bool_], found: npt.NDArray[np.bool_]) -> dict[str, Callable[[Weights], float]]:
    """Return the statistics of an operating point, each of weights (N,) of the films."""

    def sensitivity(weights: Weights) -> float:
        return _share(weights, truth & found, truth)

    def specificity(weights: Weights) -> float:
        return _share(weights, ~truth & ~found, ~truth)

    def predictive(prevalence: float, side: int) -> Callable[[Weights], float]:
        return lambda weights: float(predictive_values(sensitivity(weights), specificity(weights), prevalence)[side])

    statistics: dict[str, Callable[[Weights], float]] = {"sensitivity": sensitivity, "specificity": specificity}
    for prevalence in PREVALENCES:
        statistics[f"ppv_at_{prevalence:.0%}"] = predictive(prevalence, 0)
        statistics[f"npv_at_{prevalence:.0%}"] = predictive(prevalence, 1)
    return statistics


def _share(weights: Weights, inside: npt.NDArray[np.bool_], of: npt.NDArray[np.bool_]) -> float:
    total = float(weights[of].sum())
    return float(weights[inside].sum()) / total if total > 0 else float("nan")


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


def _meaning(rows: Sequence[LabelledFilm], outcome: Outcome, sufficient: Sequence[bool]) -> dict[str, Any]:
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
