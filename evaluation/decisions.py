"""What the operating points, the calibration, the confidence and the gate are worth on a cohort."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluation.bootstrap import bootstrap_samples, patient_bootstrap, percentile_intervals
from evaluation.calibration_metrics import (
    brier_score,
    brier_skill,
    calibration_line,
    expected_calibration_error,
    prior_shift,
    reliability,
    sigmoids,
)
from evaluation.cohort import Cohort, Floats
from evaluation.discrimination import mean, spread_over_patients
from evaluation.metrics import (
    Interval,
    area_under_risk_coverage,
    auroc,
    confusion,
    predictive_values,
    risk_coverage,
    roc_curve,
    wilson_interval,
)
from evaluation.scoring import OtherImage, ScoredFilm
from modules.pathologies import NAMES

PREVALENCES = (0.01, 0.05, 0.2)
SPECIFICITIES = (0.8, 0.9, 0.95, 0.99)  # of the rows of a threshold table
COVERAGES = (0.25, 0.5, 0.75, 1.0)
LEVELS = ("Low", "Moderate", "High")


def operating_points(cohort: Cohort, replicates: int, seed: int) -> dict[str, Any]:
    """Return counts and rates at each operating point; intervals by Wilson for counts, by patients for the rest."""
    rates = rates_at_points(cohort.labels, cohort.detected)
    intervals = percentile_intervals(bootstrap_samples(cohort.patients, rates, replicates, seed))
    intervals[:, ~spread_over_patients(cohort.labels, cohort.patients)] = Interval(math.nan, math.nan)
    return {name: _point(cohort, k, intervals[:, k]) for k, name in enumerate(NAMES)}


def rates_at_points(labels: npt.NDArray[Any], detected: npt.NDArray[np.bool_]) -> Callable[[npt.NDArray[Any]], Floats]:
    """Return the statistic of labels and detections (N, K) that gives sensitivity, specificity, and PPV and NPV.

    Of weights (N,) it makes rows (2 + 2 · prevalences, K), PPV and NPV at each prevalence; NaN where not defined.
    """
    positive, negative = (labels == 1).astype(float), (labels == 0).astype(float)
    hits, clear = positive * detected, negative * ~detected

    def statistic(weights: npt.NDArray[Any]) -> Floats:
        with np.errstate(invalid="ignore", divide="ignore"):
            sensitivity = (weights @ hits) / (weights @ positive)
            specificity = (weights @ clear) / (weights @ negative)
            rows = [sensitivity, specificity]
            for p in PREVALENCES:
                called = sensitivity * p + (1 - specificity) * (1 - p)
                passed = (1 - sensitivity) * p + specificity * (1 - p)
                rows += [sensitivity * p / called, specificity * (1 - p) / passed]
        return np.array(rows)

    return statistic


def _point(cohort: Cohort, k: int, intervals: npt.NDArray[np.object_]) -> dict[str, Any] | None:
    if cohort.outputs[k].threshold is None:
        return None
    counts = confusion(cohort.labels[:, k], cohort.detected[:, k])
    positives = counts.true_positive + counts.false_negative
    negatives = counts.true_negative + counts.false_positive
    at_prevalence = {}
    for i, p in enumerate(PREVALENCES):
        ppv, npv = predictive_values(counts.sensitivity, counts.specificity, p)
        at_prevalence[f"{p:g}"] = {
            "ppv": ppv,
            "ppv_interval": _if_defined(ppv, intervals[2 + 2 * i]),
            "npv": npv,
            "npv_interval": _if_defined(npv, intervals[3 + 2 * i]),
        }
    return {
        "threshold": float(cohort.thresholds[k]),
        "counted": bool(cohort.sufficient[k]),
        "confusion": asdict(counts),
        "sensitivity": counts.sensitivity,
        "sensitivity_wilson": wilson_interval(counts.true_positive, positives),
        "sensitivity_interval": _if_defined(counts.sensitivity, intervals[0]),
        "specificity": counts.specificity,
        "specificity_wilson": wilson_interval(counts.true_negative, negatives),
        "specificity_interval": _if_defined(counts.specificity, intervals[1]),
        "at_prevalence": at_prevalence,
    }


def _if_defined(value: float, interval: Interval) -> Interval:
    return Interval(math.nan, math.nan) if math.isnan(value) else interval


def threshold_tables(cohort: Cohort) -> dict[str, Any]:
    """Return for each pathology the threshold that reaches a specificity on these very films, and its sensitivity."""
    tables = {}
    for k, name in enumerate(NAMES):
        negative, positive = (cohort.probabilities[cohort.labels[:, k] == label, k] for label in (0, 1))
        rows = []
        for wanted in SPECIFICITIES:
            if negative.size and positive.size:
                limit = np.nextafter(np.quantile(negative, wanted, method="higher"), np.float32(2.0))
                rows.append(
                    {
                        "wanted_specificity": wanted,
                        "threshold": float(limit),
                        "sensitivity": float((positive >= limit).mean()),
                        "specificity": float((negative < limit).mean()),
                    }
                )
        tables[name] = rows or None
    return tables


def youden_points(cohort: Cohort) -> dict[str, Any]:
    """Return for each pathology the threshold with the largest sensitivity + specificity on these very films.

    Youden, Cancer 1950. It weighs a missed finding and a false alarm alike, whatever the prevalence.
    """
    found: dict[str, Any] = {}
    for k, name in enumerate(NAMES):
        labels, scores = cohort.labels[:, k], cohort.probabilities[:, k]
        found[name] = None
        if (labels == 1).any() and (labels == 0).any():
            curve = roc_curve(labels, scores)
            best = 1 + int(np.argmax(curve.y[1:] - curve.x[1:]))  # the first point has no finite threshold
            found[name] = {
                "threshold": float(curve.thresholds[best]),
                "sensitivity": float(curve.y[best]),
                "specificity": float(1.0 - curve.x[best]),
            }
    return found


def calibration(cohort: Cohort) -> dict[str, Any]:
    """Return the calibration of each pathology as served, and after correction for the prevalence of the films."""
    found = {}
    for k, name in enumerate(NAMES):
        labels, log_odds = cohort.labels[:, k], cohort.log_odds[:, k]
        prevalence = cohort.outputs[k].validation_prevalence
        shift = math.nan if prevalence is None else prior_shift(labels, prevalence)
        found[name] = {
            "as_served": _calibration(labels, log_odds),
            "validation_prevalence": prevalence,
            "prior_shift": shift,
            "prior_corrected": None if math.isnan(shift) else _calibration(labels, log_odds + shift),
        }
    return found


def _calibration(labels: Floats, log_odds: Floats) -> dict[str, Any]:
    p = sigmoids(log_odds)
    slope, intercept = calibration_line(labels, log_odds)
    return {
        "ece": expected_calibration_error(labels, p),
        "brier": brier_score(labels, p),
        "brier_skill": brier_skill(labels, p),
        "slope": slope,
        "intercept": intercept,
        "reliability": [asdict(part) for part in reliability(labels, p)],
    }


def normal_films(cohort: Cohort, replicates: int, seed: int) -> dict[str, Any]:
    """Return what films without a finding are told, without a second reader: alarms, levels, review."""
    chosen = np.flatnonzero(cohort.normal)
    if not chosen.size:
        return {"films": 0, "patients": 0, "shares": None}
    outcomes = [cohort.outcomes[i] for i in chosen]
    columns = {
        "any_counted_detection": (cohort.detected & cohort.sufficient)[chosen].any(axis=1),
        **{f"rated_{level}": np.array([o.risk.level == level for o in outcomes]) for level in LEVELS},
        "sent_to_review": np.array([o.risk.needs_review for o in outcomes]),
    }
    values = np.array(list(columns.values()), float)
    patients = [cohort.patients[i] for i in chosen]

    def statistic(weights: npt.NDArray[np.int64]) -> Floats:
        return np.asarray(values @ weights / weights.sum())

    intervals = percentile_intervals(bootstrap_samples(patients, statistic, replicates, seed))
    return {
        "films": int(chosen.size),
        "patients": len(set(patients)),
        "shares": {
            name: {"count": int(values[i].sum()), "share": float(values[i].mean()), "interval": intervals[i]}
            for i, name in enumerate(columns)
        },
    }


def confidence(cohort: Cohort, sure: Floats, probabilities: Floats, replicates: int, seed: int) -> dict[str, Any]:
    """Say whether a confidence (N,) ranks errors: AURC beside those of random and of perfect order."""
    known = ~np.isnan(cohort.labels)
    squared = (probabilities - np.where(known, cohort.labels, 0.0)) ** 2
    wrong = (cohort.detected != (cohort.labels == 1)).astype(float)
    return {
        "mean_confidence": float(sure.mean()),
        "errors": {
            "wrong_decisions": _ranking(cohort, sure, _film_mean(wrong, known), replicates, seed),
            "squared_error": _ranking(cohort, sure, _film_mean(squared, known), replicates, seed),
        },
    }


def _film_mean(values: Floats, known: npt.NDArray[np.bool_]) -> Floats:
    count = known.sum(axis=1)
    return np.where(count > 0, (values * known).sum(axis=1) / np.maximum(count, 1), math.nan)


def _ranking(cohort: Cohort, sure: Floats, errors: Floats, replicates: int, seed: int) -> dict[str, Any] | None:
    measured = np.flatnonzero(~np.isnan(errors))
    if not measured.size:
        return None
    sure, errors = sure[measured], errors[measured]
    curve = risk_coverage(sure, errors)

    def statistic(weights: npt.NDArray[np.int64]) -> float:
        again = np.repeat(np.arange(errors.size), weights)
        return area_under_risk_coverage(sure[again], errors[again]) - float(errors[again].mean())

    better = patient_bootstrap([cohort.patients[i] for i in measured], statistic, replicates, seed)
    area, random = float(curve.y.mean()), float(errors.mean())
    return {
        "aurc": area,
        "aurc_random_order": random,
        "aurc_perfect_order": area_under_risk_coverage(-errors, errors),
        "difference_from_random": area - random,
        "difference_from_random_interval": better,
        "ranks_errors": None if math.isnan(better.high) else bool(better.high < 0.0),
        "risk_at_coverage": {f"{c:g}": float(curve.y[max(0, math.ceil(c * curve.y.size) - 1)]) for c in COVERAGES},
        "curve": _thinned(curve.x, curve.y),
    }


def _thinned(x: Floats, y: Floats, most: int = 200) -> list[list[float]]:
    chosen = np.unique(np.linspace(0, x.size - 1, min(most, x.size)).round().astype(int))
    return [[float(x[i]), float(y[i])] for i in chosen]


def gate(films: Sequence[ScoredFilm], others: Mapping[str, OtherImage], threshold: float) -> dict[str, Any]:
    """Return how many films the gate accepts, how many other images it refuses, and how its score tells them apart."""
    refused = [film for film in films if film.refusal]
    categories: dict[str, list[OtherImage]] = {}
    for name in sorted(others):
        categories.setdefault(name.split("__")[0] if "__" in name else "uncategorised", []).append(others[name])
    let_in = [other for name in sorted(others) if not (other := others[name]).refusal]
    truth = np.array([1.0] * len(films) + [0.0] * len(others))
    scores = np.array([film.gate_score for film in films] + [other.gate_score for other in others.values()])
    return {
        "threshold": threshold,
        "films": len(films),
        "films_accepted": len(films) - len(refused),
        "films_accepted_wilson": wilson_interval(len(films) - len(refused), len(films)),
        "films_refused": [{"image": f.image, "score": f.gate_score, "reason": f.refusal} for f in refused],
        "others": None
        if not others
        else {
            "images": len(others),
            "refused": len(others) - len(let_in),
            "refused_wilson": wilson_interval(len(others) - len(let_in), len(others)),
            "auroc": auroc(truth, scores),
            "by_category": {
                name: {"images": len(members), "refused": sum(bool(m.refusal) for m in members)}
                for name, members in categories.items()
            },
            "let_in": [{"image": other.image, "score": other.gate_score} for other in let_in],
        },
    }


def overall_calibration(by_pathology: Mapping[str, Any]) -> dict[str, Any]:
    """Return the means over the pathologies that have both labels."""
    result = {}
    for kind in ("as_served", "prior_corrected"):
        entries = [e[kind] for e in by_pathology.values() if e[kind] is not None]
        entries = [e for e in entries if not math.isnan(e["brier_skill"])]
        result[kind] = {
            key: mean(np.array([e[key] for e in entries], float)) for key in ("ece", "brier", "brier_skill")
        } | {"pathologies": len(entries)}
    return result
