"""Small records that pass between the stages, and hypothesis strategies that draw them."""

from collections.abc import Mapping

import numpy as np
from hypothesis import strategies as st

from modules.pathologies import NAMES
from modules.records import (
    CnnPrediction,
    FloatArray,
    GridToImage,
    ImageHeader,
    Quality,
    QualityWarning,
    Radiograph,
    ReaderStatement,
    Reading,
    Status,
)

QUIET = 0.02  # a probability below every threshold of these tests
THRESHOLD = 0.5
STATUSES: tuple[Status, ...] = ("present", "absent", "uncertain", "not_mentioned")
TEMPLATE = Reading(reasoning="No second reader ran: none was asked for.", independent=False)


def by_pathology(values: Mapping[str, float], default: float) -> FloatArray:
    """Return (14,) float32 values in the order of the pathologies."""
    assert set(values) <= set(NAMES)
    return np.array([values.get(name, default) for name in NAMES], np.float32)


def logit(probabilities: FloatArray) -> FloatArray:
    """Return log-odds, float32."""
    p = probabilities.astype(np.float64)
    return np.asarray(np.log(p) - np.log1p(-p), np.float32)


def predict(
    probabilities: Mapping[str, float] | None = None,
    thresholds: Mapping[str, float] | None = None,
    *,
    insufficient: frozenset[str] = frozenset(),
    mirrored: Mapping[str, float] | None = None,
    default: float = QUIET,
) -> CnnPrediction:
    """Return a prediction with these probabilities and thresholds; `mirrored` holds what the mirrored film changes."""
    probabilities = probabilities or {}
    log_odds = logit(by_pathology(probabilities, default))
    of_mirror = None if mirrored is None else logit(by_pathology({**probabilities, **mirrored}, default))
    return CnnPrediction(
        logits=log_odds,
        log_odds=log_odds,
        thresholds=by_pathology(thresholds or {}, THRESHOLD),
        sufficient_data=tuple(name not in insufficient for name in NAMES),
        features=np.ones((2, 1, 1), np.float32),
        classifier_weight=np.ones((len(NAMES), 2), np.float32),
        calibration_slope=np.ones(len(NAMES), np.float32),
        grid_to_image=GridToImage(x_scale=1.0, x_offset=0.0, y_scale=1.0, y_offset=0.0),
        mirrored_log_odds=of_mirror,
    )


def says(status: Status, confidence: float | None = None) -> ReaderStatement:
    """Return a statement with its words."""
    return ReaderStatement(status=status, quote=f"it is {status}", confidence=confidence)


def read(statements: Mapping[str, ReaderStatement | Status] | None = None, confidence: float | None = None) -> Reading:
    """Return an independent reading with these statements; silence about the rest."""
    made = {name: says(s) if isinstance(s, str) else s for name, s in (statements or {}).items()}
    return Reading(reasoning="As read.", statements=made, token_confidence=confidence)


def good_quality(*warnings: str, forced: bool = False, inverted: bool = False, under_18: bool | None = None) -> Quality:
    """Return the gate's view of a film that it accepts, or of one that was forced."""
    return Quality(
        gate_score=0.9,
        accepted=not forced,
        reason="It looks like a frontal chest radiograph.",
        warnings=tuple(QualityWarning(code="some_code", message=message) for message in warnings),
        forced=forced,
        inverted_by_request=inverted,
        under_18=under_18,
    )


def film() -> Radiograph:
    """Return a film of four grey pixels."""
    return Radiograph(np.full((2, 2), 0.5, np.float32), ImageHeader(format="png", width=2, height=2))


# ── Strategies ───────────────────────────────────────────────────────────────────────────────────────────────────────

names = st.sampled_from(NAMES)
unit = st.floats(min_value=0.0, max_value=1.0)
inner = st.floats(min_value=1e-3, max_value=1.0 - 1e-3)
statuses = st.sampled_from(STATUSES)
clear_statuses = st.sampled_from(("present", "absent"))


def vectors(values: st.SearchStrategy[float] = inner) -> st.SearchStrategy[dict[str, float]]:
    """Draw one value for each pathology."""
    return st.lists(values, min_size=len(NAMES), max_size=len(NAMES)).map(lambda v: dict(zip(NAMES, v, strict=True)))


def sets() -> st.SearchStrategy[frozenset[str]]:
    """Draw some of the pathologies."""
    return st.frozensets(names, max_size=4)


def predictions() -> st.SearchStrategy[CnnPrediction]:
    """Draw predictions with any thresholds, marks of sufficient data and mirrored film."""
    return st.builds(
        predict, vectors(), vectors(), insufficient=sets(), mirrored=st.none() | st.dictionaries(names, inner)
    )


def readings() -> st.SearchStrategy[Reading]:
    """Draw independent readings about any of the pathologies."""
    statements = st.builds(says, statuses, st.none() | unit)
    return st.builds(read, st.dictionaries(names, statements), st.none() | unit)
