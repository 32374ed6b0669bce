"""AUROC and AUPRC of a cohort with patient-level intervals, in all and in parts, and beside what no network sees."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluation.bootstrap import bootstrap_samples, percentile_interval, percentile_intervals
from evaluation.cohort import Bools, Cohort, Floats
from evaluation.metrics import Interval, RankedScores, auroc
from modules.pathologies import NAMES

# Pneumonia is confounded with the size of its source in the data that this project ships with; Hernia is too rare.
OUTSIDE_OF_THE_MEAN = frozenset({"Pneumonia", "Hernia"})
LARGEST_SOURCE = 1024  # pixels
DRAWS = 200  # of one film a patient, for the estimate itself


class Ranking:
    """The scores of all pathologies, sorted once."""

    def __init__(self, labels: Floats, scores: Floats) -> None:
        self._ranked = [RankedScores(labels[:, k], scores[:, k]) for k in range(len(NAMES))]
        self.estimate = self.areas(np.ones(labels.shape[0]))
        self.in_mean = np.array([n not in OUTSIDE_OF_THE_MEAN for n in NAMES]) & ~np.isnan(self.estimate[:, 0])

    def areas(self, weights: npt.NDArray[Any]) -> Floats:
        """Return AUROC and AUPRC (14, 2) under weights (N,)."""
        return np.array([[r.auroc(weights), r.average_precision(weights)] for r in self._ranked])

    def means(self, areas: Floats) -> Floats:
        """Return the mean AUROC over the 12 and over all, of what could be measured."""
        values = areas[:, 0]
        return np.array([mean(values[self.in_mean]), mean(values)])


def mean(values: Floats) -> float:
    """Return the mean of what is defined; NaN for nothing."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else math.nan


def measure(cohort: Cohort, replicates: int, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the measures of each pathology by name, and the means."""
    ranking = Ranking(cohort.labels, cohort.log_odds)

    def statistic(weights: npt.NDArray[np.int64]) -> Floats:
        areas = ranking.areas(weights)
        return np.append(areas.ravel(), ranking.means(areas))

    samples = bootstrap_samples(cohort.patients, statistic, replicates, seed)
    intervals = percentile_intervals(samples)
    enough = spread_over_patients(cohort.labels, cohort.patients)
    by_pathology = {}
    for k, name in enumerate(NAMES):
        labels = cohort.labels[:, k]
        by_pathology[name] = {
            "films": int((~np.isnan(labels)).sum()),
            "positive_films": int((labels == 1).sum()),
            "positive_patients": len({p for p, y in zip(cohort.patients, labels, strict=True) if y == 1}),
            "prevalence": mean(labels),
            **_with_interval("auroc", ranking.estimate[k, 0], intervals[2 * k], enough[k]),
            **_with_interval(
                "auprc",
                math.nan if math.isnan(ranking.estimate[k, 0]) else ranking.estimate[k, 1],
                intervals[2 * k + 1],
                enough[k],
            ),
        }
    means = ranking.means(ranking.estimate)
    return by_pathology, {
        "pathologies_in_mean": [name for k, name in enumerate(NAMES) if ranking.in_mean[k]],
        **_with_interval("mean_auroc", means[0], intervals[-2]),
        "pathologies_measured": [name for k, name in enumerate(NAMES) if not math.isnan(ranking.estimate[k, 0])],
        **_with_interval("mean_auroc_of_all_measured", means[1], intervals[-1]),
        "one_film_a_patient": _one_film_a_patient(cohort, ranking, replicates, seed),
    }


def spread_over_patients(labels: Floats, patients: Sequence[str]) -> Bools:
    """Return for which pathologies (14,) both labels come from two patients at least: one shows no spread."""
    names = np.asarray(patients)
    return np.array(
        [min(np.unique(names[labels[:, k] == label]).size for label in (0.0, 1.0)) > 1 for k in range(len(NAMES))]
    )


def _with_interval(name: str, value: float, interval: Interval, enough: object = True) -> dict[str, Any]:
    # an interval of what is not defined on the films themselves would be made up
    undefined = math.isnan(value) or not enough
    return {name: value, f"{name}_interval": Interval(math.nan, math.nan) if undefined else interval}


def _one_film_a_patient(cohort: Cohort, ranking: Ranking, replicates: int, seed: int) -> dict[str, Any]:
    """Measure on one film a patient, taken at random again and again; intervals draw the patients as well."""
    generator = np.random.default_rng(seed)
    names, patient_of = np.unique(np.asarray(cohort.patients), return_inverse=True)
    order = np.argsort(patient_of, kind="stable")
    count = np.bincount(patient_of)
    first = np.cumsum(count) - count

    def drawn(patients: npt.NDArray[np.int64]) -> Floats:
        films = order[first[patients] + (generator.random(patients.size) * count[patients]).astype(np.int64)]
        areas = ranking.areas(np.bincount(films, minlength=len(cohort.rows)))
        return np.append(areas[:, 0], ranking.means(areas))

    enough = spread_over_patients(cohort.labels, cohort.patients)
    everyone = np.arange(names.size)
    estimate = np.array([drawn(everyone) for _ in range(min(DRAWS, replicates))])
    value = np.array([mean(column) for column in estimate.T])
    if names.size > 1:
        sampled = np.array([drawn(generator.integers(0, names.size, names.size)) for _ in range(replicates)])
    else:
        sampled = np.full((replicates, value.size), math.nan)
    return {
        "patients": int(names.size),
        **_with_interval("mean_auroc", value[-2], percentile_interval(sampled[:, -2])),
        **_with_interval("mean_auroc_of_all_measured", value[-1], percentile_interval(sampled[:, -1])),
        "auroc": {name: value[k] for k, name in enumerate(NAMES)},
        "auroc_interval": {
            name: percentile_interval(sampled[:, k]) if enough[k] else Interval(math.nan, math.nan)
            for k, name in enumerate(NAMES)
        },
    }


def subgroups(cohort: Cohort, replicates: int, seed: int) -> dict[str, Any]:
    """Return the AUROC of each pathology, and the mean over the 12, in each group of films."""
    return {
        kind: {group: _subgroup(cohort, mask, replicates, seed) for group, mask in masks.items()}
        for kind, masks in cohort.subgroups.items()
    }


def _subgroup(cohort: Cohort, mask: Bools, replicates: int, seed: int) -> dict[str, Any]:
    labels, scores = cohort.labels[mask], cohort.log_odds[mask]
    patients = [p for p, inside in zip(cohort.patients, mask, strict=True) if inside]
    ranked = [RankedScores(labels[:, k], scores[:, k]) for k in range(len(NAMES))]
    estimate = np.array([r.auroc() for r in ranked])
    in_mean = np.array([n not in OUTSIDE_OF_THE_MEAN for n in NAMES]) & ~np.isnan(estimate)

    def statistic(weights: npt.NDArray[np.int64]) -> Floats:
        areas = np.array([r.auroc(weights) for r in ranked])
        return np.append(areas, mean(areas[in_mean]))

    intervals = percentile_intervals(bootstrap_samples(patients, statistic, replicates, seed))
    enough = spread_over_patients(labels, patients)
    detected = cohort.detected[mask]
    return {
        "films": int(mask.sum()),
        "patients": len(set(patients)),
        **_with_interval("mean_auroc", mean(estimate[in_mean]), intervals[-1]),
        "pathologies": {
            name: {
                "positive_films": int((labels[:, k] == 1).sum()),
                **_with_interval("auroc", estimate[k], intervals[k], enough[k]),
                "sensitivity": _rate(detected[labels[:, k] == 1, k]),
                "specificity": _rate(~detected[labels[:, k] == 0, k]),
            }
            for k, name in enumerate(NAMES)
        },
    }


def _rate(values: Bools) -> float:
    return float(values.mean()) if values.size else math.nan


def baselines(cohort: Cohort) -> dict[str, Any]:
    """Return the AUROC of scores that look at no pixel: how large the source was, and how the film was taken."""
    sizes = np.array([float(row.native_px) if row.native_px.isdigit() else math.nan for row in cohort.rows])
    views = np.array([{"AP": 1.0, "PA": 0.0}.get(row.view, math.nan) for row in cohort.rows])
    largest = np.where(np.isnan(sizes), math.nan, (sizes == LARGEST_SOURCE).astype(float))
    scores: dict[str, Floats] = {"native_px": sizes, f"native_px is {LARGEST_SOURCE}": largest, "view is AP": views}
    return {name: _by_pathology(cohort, score) for name, score in scores.items() if not np.isnan(score).all()}


def _by_pathology(cohort: Cohort, score: Floats) -> dict[str, float]:
    known = ~np.isnan(score)
    return {name: auroc(cohort.labels[known, k], score[known]) for k, name in enumerate(NAMES)}


def gallery(cohort: Cohort, each: int) -> dict[str, Any]:
    """Return for each pathology the files of the most confident false alarms and of the surest misses."""
    found = {}
    for k, name in enumerate(NAMES):
        detected = cohort.detected[:, k]
        negative = np.flatnonzero((cohort.labels[:, k] == 0) & detected)
        positive = np.flatnonzero((cohort.labels[:, k] == 1) & ~detected)
        high = negative[np.argsort(-cohort.log_odds[negative, k], kind="stable")][:each]
        low = positive[np.argsort(cohort.log_odds[positive, k], kind="stable")][:each]
        found[name] = {
            "false_positive": _shown(cohort, high.tolist(), k),
            "false_negative": _shown(cohort, low.tolist(), k),
        }
    return found


def _shown(cohort: Cohort, films: Sequence[int], k: int) -> list[dict[str, Any]]:
    return [
        {
            "image": cohort.rows[i].image,
            "probability": float(cohort.probabilities[i, k]),
        }
        for i in films
    ]
