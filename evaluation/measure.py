"""Scored films in, everything that metrics.json says out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation import decisions, discrimination, likelihood, localisation, robustness
from evaluation.cohort import Cohort, as_json
from evaluation.localisation import FindingBox
from evaluation.scoring import ChangedFilm, OtherImage, Unreadable
from modules.pathologies import NAMES
from modules.records import ModelInfo, Reading

SCHEMA_VERSION = 1
WORST_ERRORS = 3  # of each kind, for each pathology


@dataclass(frozen=True, eq=False)
class Material:
    """Everything that is measured, and with what."""

    cohort: Cohort
    model: ModelInfo
    options: Mapping[str, Any]
    unreadable: tuple[Unreadable, ...]
    others: Mapping[str, OtherImage]
    gate_threshold: float
    changed: tuple[ChangedFilm, ...] = ()  # of the robustness check
    boxes: tuple[FindingBox, ...] = ()
    boxes_size: int | None = None  # side in pixels of the film that boxes were drawn on; None: the file's own size
    readings: Mapping[str, Reading] | None = None
    replicates: int = 2000
    seed: int = 0


def measure(material: Material) -> dict[str, Any]:
    """Return one dict that JSON can hold: null where a measure is not defined, never a made-up number."""
    cohort, replicates, seed = material.cohort, material.replicates, material.seed
    by_pathology, means = discrimination.measure(cohort, replicates, seed)
    calibration = decisions.calibration(cohort)
    silent = np.array([outcome.uncertainty.fused for outcome in cohort.outcomes])
    fused = np.array([outcome.fused_probabilities for outcome in cohort.outcomes])
    result = {
        "schema_version": SCHEMA_VERSION,
        "weights": material.model.weights,
        "weights_sha256": material.model.sha256,
        "calibrated": material.model.calibrated,
        "options": dict(material.options),
        "bootstrap": {"replicates": replicates, "seed": seed, "unit": "patient", "interval": "95 %, percentile"},
        "counts": {
            "films": len(cohort.rows),
            "patients": len(set(cohort.patients)),
            "films_without_a_finding": int(cohort.normal.sum()),
            "refused_by_the_gate": sum(bool(film.refusal) for film in cohort.films),
            "unreadable": len(material.unreadable),
        },
        "unreadable": [{"image": u.image, "reason": u.reason} for u in material.unreadable],
        "discrimination": {"pathologies": by_pathology, **means},
        "baselines": discrimination.baselines(cohort),
        "operating_points": decisions.operating_points(cohort, replicates, seed),
        "threshold_tables": decisions.threshold_tables(cohort),
        "youden_points": decisions.youden_points(cohort),
        "calibration": {
            "of": "calibrated probabilities"
            if material.model.calibrated
            else "raw outputs: the weights are uncalibrated",
            "mean": decisions.overall_calibration(calibration),
            "pathologies": calibration,
        },
        "films_without_a_finding": decisions.normal_films(cohort, replicates, seed),
        "confidence": {"without_a_reader": decisions.confidence(cohort, silent, fused, replicates, seed)},
        "subgroups": discrimination.subgroups(cohort, replicates, seed),
        "gate": decisions.gate(cohort.films, material.others, material.gate_threshold),
        "localisation": _localisation(material),
        "robustness": _robustness(material),
        "worst_errors": discrimination.gallery(cohort, WORST_ERRORS),
    }
    result["likelihood_ratios"], with_reader = _reader(material)
    if with_reader is not None:
        result["confidence"]["with_the_reader"] = with_reader
    cleaned: dict[str, Any] = as_json(result)
    return cleaned


def _localisation(material: Material) -> dict[str, Any] | None:
    cohort = material.cohort
    place = {film.image: i for i, film in enumerate(cohort.films)}
    known = [box for box in material.boxes if box.image in place]
    if not material.boxes:
        return None
    boxes = []
    for box in known:
        film, side = cohort.films[place[box.image]], material.boxes_size
        size = (film.width, film.height) if side is None else (side, side)
        boxes.append((box, localisation.area_of(box, *size)))
    keys = {(box.image, box.finding): (place[box.image], NAMES.index(box.finding)) for box in known}
    comparisons = localisation.compare(
        boxes,
        {(image, name): cohort.films[i].maps[name] for (image, name), (i, _) in keys.items()},
        {key: float(cohort.probabilities[position]) for key, position in keys.items()},
        {key: bool(cohort.detected[position]) for key, position in keys.items()},
    )
    return {"boxes_without_a_film": len(material.boxes) - len(known), **localisation.summary(comparisons)}


def _robustness(material: Material) -> Any:
    if not material.changed:
        return None
    place = {film.image: i for i, film in enumerate(material.cohort.films)}
    return robustness.summary(
        [material.cohort.log_odds[place[film.image]] for film in material.changed],
        [{change: np.array(values) for change, values in film.log_odds.items()} for film in material.changed],
        [film.image for film in material.changed],
    )


def _reader(material: Material) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Return the likelihood ratios, and the confidence of films with a reading; None where nothing was read."""
    readings, cohort = material.readings, material.cohort
    if readings is None:
        return None, None
    chosen = [i for i, row in enumerate(cohort.rows) if row.image in readings]
    without_film = len(set(readings) - {row.image for row in cohort.rows})
    if not chosen:
        return {"films": 0, "readings_without_a_film": without_film, "ratios": None}, None
    read = [readings[cohort.rows[i].image] for i in chosen]
    part = Cohort(tuple(cohort.rows[i] for i in chosen), tuple(cohort.films[i] for i in chosen), cohort.outputs)
    ratios = likelihood.likelihood_ratios(
        part.labels, part.log_odds, read, part.patients, material.replicates, material.seed
    )
    outcomes = [part.outcome(i, reading) for i, reading in enumerate(read)]
    confidence = decisions.confidence(
        part,
        np.array([o.uncertainty.fused for o in outcomes]),
        np.array([o.fused_probabilities for o in outcomes]),
        material.replicates,
        material.seed,
    )
    return likelihood.summary(ratios, len(chosen), without_film), confidence
