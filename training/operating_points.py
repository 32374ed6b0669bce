"""Chooses operating points: `python -m training.operating_points --weights FOLDER --images FILMS --labels CSV`.

Each threshold is the one that leaves a given share of the normal validation films undetected. The card is rewritten
with the thresholds, with the number of positive patients behind each label, and with what the points mean on those
same films: how many normal films show any detection, are rated High, or are sent to review.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from modules import fusion, risk_module, uncertainty
from modules.cnn_model import CnnModel
from modules.odds import sigmoid
from modules.pathologies import NAMES, canonical_name
from modules.records import CnnPrediction, FloatArray, Quality, Reading, Risk
from modules.weights import WeightsCard, load_weights, write_card
from training.films import Labels, read_films, read_labels

SILENT = Reading(reasoning="none", independent=False)
GOOD_FILM = Quality(gate_score=1.0, accepted=True, reason="taken as good")


@dataclass(frozen=True)
class Validation:
    """What the network says of every validation film, beside what is known of it."""

    predictions: Sequence[CnnPrediction]
    labels: Sequence[Labels]

    @property
    def positive(self) -> npt.NDArray[np.bool_]:
        """Labels (N, 14)."""
        return np.array([row.positive for row in self.labels])

    @property
    def log_odds(self) -> FloatArray:
        """Calibrated log-odds (N, 14)."""
        return np.array([p.log_odds for p in self.predictions])


def main(argv: list[str] | None = None) -> None:
    """Score the films, choose the points, rewrite the card."""
    args = _arguments(argv)
    weights = load_weights(str(args.weights))
    validation = score(CnnModel(weights), args.images, read_labels(args.labels))
    card = choose(weights.card, validation, args.specificity)
    write_card(card, args.weights)
    sys.stdout.write(json.dumps(card.metrics["operating_points"], indent=1) + "\n")


def score(cnn: CnnModel, films: Path, labels: dict[str, Labels]) -> Validation:
    """Run the network over every labelled film."""
    predictions, rows = [], []
    for name, film in read_films(films):
        if name in labels and labels[name].split == "val":
            # the feature map of every film would fill the memory, and nothing here looks at it
            small = replace(
                cnn.predict(film),
                features=np.zeros((1, 1, 1), np.float32),
                classifier_weight=np.zeros((len(NAMES), 1), np.float32),
            )
            predictions.append(small)
            rows.append(labels[name])
    if not any(not any(row.positive) for row in rows):
        raise SystemExit(f"{films}: no labelled film without a finding, so no specificity can be measured.")
    return Validation(predictions, rows)


def choose(card: WeightsCard, validation: Validation, specificity: float) -> WeightsCard:
    """Return the card with new thresholds, counts of positive patients, and their measured meaning."""
    normal = np.asarray(~validation.positive.any(axis=1), np.bool_)
    limits = np.quantile(validation.log_odds[normal], specificity, axis=0)
    # rounded up: a threshold must not let through the films that it was set by
    thresholds = {name: float(np.ceil(sigmoid(float(v)) * 1e7) / 1e7) for name, v in zip(NAMES, limits, strict=True)}
    patients = {
        name: len({row.patient for row in validation.labels if row.positive[k]}) for k, name in enumerate(NAMES)
    }
    outputs = tuple(
        output
        if (name := canonical_name(output.label)) is None
        else output.model_copy(update={"threshold": thresholds[name], "validation_positive_patients": patients[name]})
        for output in card.outputs
    )
    card = card.model_copy(
        update={
            "outputs": outputs,
            "operating_points": f"{specificity:.0%} specificity on the normal validation films, for each pathology",
        }
    )
    return card.model_copy(update={"metrics": {**card.metrics, "operating_points": _meaning(card, validation, normal)}})


def _meaning(card: WeightsCard, validation: Validation, normal: npt.NDArray[np.bool_]) -> dict[str, Any]:
    served = [output for _, output in card.served]
    thresholds = np.array([o.threshold for o in served], np.float32)
    sufficient = tuple(o.sufficient_data for o in served)
    predictions = [replace(p, thresholds=thresholds, sufficient_data=sufficient) for p in validation.predictions]
    detected, positive = np.array([p.detected for p in predictions]), validation.positive
    risks = [_risk(p) for p, is_normal in zip(predictions, normal, strict=True) if is_normal]
    return {
        "measured_on": "the validation films that they were chosen on, without a second reader",
        "normal_films": int(normal.sum()),
        "normal_films_with_any_detection_on_sufficient_data": float(
            (detected & np.array(sufficient))[normal].any(axis=1).mean()
        ),
        "normal_films_rated": {
            level: float(np.mean([r.level == level for r in risks])) for level in ("Low", "Moderate", "High")
        },
        "normal_films_sent_to_review": float(np.mean([r.needs_review for r in risks])),
        "sensitivity": {name: float(detected[positive[:, k], k].mean()) for k, name in enumerate(NAMES)},
        "specificity": {name: float(1 - detected[~positive[:, k], k].mean()) for k, name in enumerate(NAMES)},
    }


def _risk(prediction: CnnPrediction) -> Risk:
    fused = fusion.fuse(prediction, SILENT)
    return risk_module.assess(fused, uncertainty.assess(prediction, SILENT, fused, GOOD_FILM), GOOD_FILM, "")


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training.operating_points", description=__doc__)
    parser.add_argument("--weights", type=Path, required=True, help="weights folder whose card is rewritten")
    parser.add_argument("--images", type=Path, required=True, help="folder or zip of validation films")
    parser.add_argument("--labels", type=Path, required=True, help="CSV with image, patient, split and the 14 labels")
    parser.add_argument("--specificity", type=float, default=0.9, help="for each pathology (default: 0.9)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
