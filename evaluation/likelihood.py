"""What a second reader's words are worth beside the CNN: fitted likelihood ratios."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from evaluation.bootstrap import patient_bootstrap
from evaluation.calibration_metrics import sigmoids
from evaluation.metrics import Interval
from modules.pathologies import NAMES
from modules.records import Reading

Floats = npt.NDArray[np.float64]

TERMS = ("present", "absent", "baseline")
# A normal prior of this width on each log likelihood ratio: odds by a factor of 50 either way are within two of it.
# Weak beside a few dozen statements, and it keeps a status that was hardly ever used finite. Chosen, not fitted.
PRIOR_SD = 2.0
MAX_STEPS = 50
CONVERGED = 1e-8
LONGEST_SHOWN = 60  # characters of what a file of readings says, in a message


class ReadingsError(ValueError):
    """The file of readings cannot be used; the message says what to change."""


@dataclass(frozen=True)
class LikelihoodRatio:
    """What one status does to the odds, beside what the CNN says, and how often it was used."""

    ratio: float
    interval: Interval
    statements: int


def read_readings(path: Path) -> dict[str, Reading]:
    """Read one reading a line, by image; raises ReadingsError with what is wrong and where."""
    readings: dict[str, Reading] = {}
    try:
        # not splitlines: a text in JSON may hold what else Python takes as the end of a line
        lines = path.read_text("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as exc:
        raise ReadingsError(f"{path} cannot be read as text in UTF-8: {exc}.") from exc
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                image, reading = _reading(line)
            except ReadingsError as exc:
                raise ReadingsError(f"{path}, line {number}: {exc}.") from exc
            if image in readings:
                raise ReadingsError(f"{path}, line {number}: the image has a reading already.")
            readings[image] = reading
    return readings


def _reading(line: str) -> tuple[str, Reading]:
    try:
        entry = json.loads(line, object_pairs_hook=_object)
    except ReadingsError:
        raise
    except RecursionError as exc:
        raise ReadingsError("JSON that is nested too deeply") from exc
    except ValueError as exc:
        raise ReadingsError(f"no JSON: {exc}") from exc
    if not isinstance(entry, dict) or not isinstance(entry.get("image"), str) or not entry["image"]:
        raise ReadingsError('a reading is an object with the name of its image: {"image": …, "statements": {…}}')
    try:
        return entry["image"], Reading(reasoning="from the file of readings", statements=entry.get("statements"))
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(str(part)[:LONGEST_SHOWN] for part in first["loc"]) or "statements"
        why = first["msg"].removeprefix("Value error, ")[: 4 * LONGEST_SHOWN]
        raise ReadingsError("".join(c if c.isprintable() else "?" for c in f"{where}: {why}")) from exc


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of JSON; a key that stands twice would leave open which value is meant."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ReadingsError("a key stands twice in one object")
    return found


def fit(labels: Floats, log_odds: Floats, design: Floats, weights: Floats, start: Floats | None = None) -> Floats:
    """Return the posterior mode (T,) of a logistic regression on design (N, T) with the CNN's log-odds as offset."""
    beta = np.zeros(design.shape[1]) if start is None else start.copy()
    precision = np.eye(design.shape[1]) / PRIOR_SD**2
    for _ in range(MAX_STEPS):
        p = sigmoids(log_odds + design @ beta)
        gradient = design.T @ (weights * (labels - p)) - precision @ beta
        information = design.T @ ((weights * p * (1.0 - p))[:, np.newaxis] * design) + precision
        step = np.linalg.solve(information, gradient)
        # a step is at most as wide as the prior, so that Newton cannot overshoot into the flat of the curve
        step *= min(1.0, PRIOR_SD / max(float(np.abs(step).max()), 1e-12))
        beta += step
        if np.abs(step).max() < CONVERGED:
            break
    return beta


def likelihood_ratios(
    labels: Floats,
    log_odds: Floats,
    readings: Sequence[Reading],
    patients: Sequence[str],
    replicates: int,
    seed: int,
) -> Mapping[str, LikelihoodRatio]:
    """Fit the ratio of each status over all pathologies, from labels and log-odds (N, 14) of N films.

    The baseline takes up what differs for reasons that are not the reader's, such as prevalence.
    """
    status = np.array([[reading.statement(name).status for name in NAMES] for reading in readings])
    known = ~np.isnan(labels)
    film = np.nonzero(known)[0]
    design = np.column_stack([status[known] == "present", status[known] == "absent", np.ones(film.size)]).astype(float)
    truth, offset = labels[known], log_odds[known]
    best = fit(truth, offset, design, np.ones(film.size))

    def statistic(weights: npt.NDArray[np.int64]) -> Floats:
        return fit(truth, offset, design, weights[film].astype(float), start=best)

    intervals = patient_bootstrap(patients, statistic, replicates, seed)
    return {
        term: LikelihoodRatio(
            ratio=math.exp(best[i]),
            interval=Interval(math.exp(intervals[i].low), math.exp(intervals[i].high)),
            statements=int(design[:, i].sum()),
        )
        for i, term in enumerate(TERMS)
    }


def summary(ratios: Mapping[str, LikelihoodRatio], films: int, without_film: int) -> dict[str, Any]:
    """Describe the fit for metrics.json."""
    return {
        "films": films,
        "readings_without_a_film": without_film,
        "prior": f"normal, mean 0, standard deviation {PRIOR_SD:g}, on each log likelihood ratio",
        "meaning": "odds with this status over odds with another, beside the CNN's log-odds; pooled over pathologies",
        "ratios": {
            term: {"ratio": r.ratio, "interval": r.interval, "statements": r.statements} for term, r in ratios.items()
        },
    }
