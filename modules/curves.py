"""The curves of an evaluation, in a file beside the card of the weights that they were measured with; no torch here.

A file is only served with the very weights, calibration, thresholds and preprocessing that it was measured with.
"""

import hashlib
import logging
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, ValidationError, model_validator

from modules.pathologies import NAMES
from modules.records import Probability, Record
from modules.weights import EMBEDDED_WEIGHTS, WeightsCard

logger = logging.getLogger(__name__)

CURVES_FILE = "curves.json"
MAX_ROC_POINTS = 100

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
RocPoint = tuple[Probability, Probability]


class CurvePoint(Record):
    """The operating point on the ROC curve."""

    threshold: Probability = Field(description="On the calibrated probability")
    false_positive_rate: Probability = Field(description="1 − specificity")
    sensitivity: Probability


class CurveBin(Record):
    """Films of similar probability: what was said, and how often it was true."""

    mean_probability: Probability
    observed: Probability = Field(description="Share of these films whose label is positive")
    films: int = Field(ge=1)


class PathologyCurves(Record):
    """What was measured of one pathology."""

    films: Count = Field(description="Films whose label is known")
    positive_films: Count
    positive_patients: Count
    auroc: Probability
    auroc_interval: tuple[Probability, Probability] | None = Field(description="95 %; null: not defined")
    roc: tuple[RocPoint, ...] = Field(
        min_length=2, max_length=MAX_ROC_POINTS, description="1 − specificity, sensitivity: from (0, 0) to (1, 1)"
    )
    operating_point: CurvePoint | None = Field(description="null: the weights have none")
    reliability: tuple[CurveBin, ...] = Field(description="Bins of about as many films each, by rising probability")

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if self.roc[0] != (0.0, 0.0) or self.roc[-1] != (1.0, 1.0):
            raise ValueError("a ROC curve goes from (0, 0) to (1, 1)")
        if any(b[0] < a[0] or b[1] < a[1] for a, b in pairwise(self.roc)):
            raise ValueError("a ROC curve never falls")
        return self


class Curves(Record):
    """The answer of `GET /model/curves`: ROC and reliability of each pathology that could be measured."""

    weights: str
    weights_sha256: Sha256
    served_sha256: Sha256 = Field(description="Of the card's outputs and preprocessing, as `served_digest` makes it")
    calibrated: bool = Field(description="Whether the probabilities of the reliability bins are calibrated")
    cohort: str = Field(description="Which films these are")
    split: str | None = Field(description="Of the table of labels; null: all films")
    films: int = Field(ge=1)
    patients: int = Field(ge=1)
    films_sha256: Sha256 = Field(description="Of the sorted names of the films, one a line")
    made_by: str = Field(description="How the figures came about")
    pathologies: dict[str, PathologyCurves] = Field(description="A pathology that could not be measured is absent")

    @model_validator(mode="after")
    def _are_of_the_14(self) -> Self:
        unknown = sorted(set(self.pathologies) - set(NAMES))
        if unknown:
            raise ValueError(f"not of the 14 pathologies: {', '.join(unknown)}")
        return self


def served_digest(card: WeightsCard) -> str:
    """Return the SHA-256 of what turns pixels into served numbers, the weights themselves aside."""
    served = card.model_dump_json(include={"outputs", "preprocessing"}, exclude_defaults=True)
    return hashlib.sha256(served.encode()).hexdigest()


def load_curves(choice: str, card: WeightsCard) -> Curves | None:
    """Return the curves beside the weights that CXR_WEIGHTS names, or None when there are none of these."""
    path = (EMBEDDED_WEIGHTS if choice == "embedded" else Path(choice)) / CURVES_FILE
    try:
        curves = Curves.model_validate_json(path.read_bytes())
    except OSError:
        return None
    except ValidationError:
        _log_refusal("no curves of this version of python -m evaluation")
        return None
    if curves.weights_sha256 != card.sha256:
        _log_refusal("measured with other weights")
        return None
    if curves.served_sha256 != served_digest(card):
        _log_refusal("measured with another calibration, other thresholds or another preprocessing")
        return None
    return curves


def _log_refusal(reason: str) -> None:
    logger.warning("curves_refused", extra={"fields": {"file": CURVES_FILE, "reason": reason}})
