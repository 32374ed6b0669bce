"""Confidence from what was measured, and a person's review for what is not settled."""

import math
import random

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from modules.fusion import fuse
from modules.pathologies import NAMES, Criticality, criticality
from modules.records import CnnPrediction, Quality, ReaderStatement, Reading, Status, Uncertainty
from modules.uncertainty import BORDERLINE_LOG_ODDS, SILENCE_PENALTY, assess, cnn_confidence
from tests.stages import (
    TEMPLATE,
    THRESHOLD,
    good_quality,
    inner,
    names,
    predict,
    predictions,
    read,
    readings,
    says,
    sets,
    unit,
    vectors,
)

NEAR = 0.505  # 0.02 in log-odds above the threshold
JUST_BELOW = 0.495
FAR = 0.9


def measure(prediction: CnnPrediction, reading: Reading, quality: Quality | None = None) -> Uncertainty:
    return assess(prediction, reading, fuse(prediction, reading), quality or good_quality())


def reasons(prediction: CnnPrediction, reading: Reading = TEMPLATE) -> tuple[str, ...]:
    return measure(prediction, reading).review_reasons


def restated(reading: Reading, name: str, statement: ReaderStatement) -> Reading:
    """Return the reading with another statement about one pathology."""
    return Reading(
        reasoning=reading.reasoning,
        statements={**reading.statements, name: statement},
        token_confidence=reading.token_confidence,
    )


# ── The CNN's confidence ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("probabilities", "confidence"),
    [
        ([0.5] * 14, 0.0),
        ([0.0] * 7 + [1.0] * 7, 1.0),
        ([0.5] * 7 + [0.0] * 7, 0.5),
        ([0.25] * 14, 0.188722),  # entropy of 1/4: 2 · 1/4 + 0.415037 · 3/4 = 0.811278 bits
        ([0.11] * 7 + [0.5] * 7, 0.250042),  # entropy of 0.11: 0.499916 bits
    ],
)
def test_cnn_confidence_is_one_less_the_mean_entropy_in_bits(probabilities: list[float], confidence: float) -> None:
    assert cnn_confidence(np.array(probabilities, np.float32)) == pytest.approx(confidence, abs=1e-5)


@given(st.lists(unit, min_size=14, max_size=14), st.randoms(use_true_random=False))
def test_cnn_confidence_is_bounded_and_independent_of_the_order_of_labels(
    probabilities: list[float], shuffler: random.Random
) -> None:
    confidence = cnn_confidence(np.array(probabilities, np.float32))
    assert 0.0 <= confidence <= 1.0
    shuffler.shuffle(probabilities)
    assert cnn_confidence(np.array(probabilities, np.float32)) == pytest.approx(confidence, abs=1e-12)


@given(st.lists(inner, min_size=14, max_size=14), st.integers(min_value=0, max_value=13))
def test_cnn_confidence_falls_as_a_probability_nears_one_half(probabilities: list[float], k: int) -> None:
    nearer = list(probabilities)
    nearer[k] = (probabilities[k] + 0.5) / 2.0
    assert cnn_confidence(np.array(nearer, np.float32)) <= cnn_confidence(np.array(probabilities, np.float32)) + 1e-9


# ── The fused confidence ─────────────────────────────────────────────────────────────────────────────────────────────


@given(predictions(), readings())
def test_every_confidence_is_bounded_and_the_readers_is_as_measured(
    prediction: CnnPrediction, reading: Reading
) -> None:
    result = measure(prediction, reading)
    assert result.cnn == cnn_confidence(prediction.probabilities)
    assert result.llm == reading.token_confidence
    assert 0.0 <= result.fused <= 1.0


@given(predictions())
def test_a_template_leaves_the_cnns_confidence_alone(prediction: CnnPrediction) -> None:
    result = measure(prediction, TEMPLATE)
    assert result.llm is None
    assert result.fused == result.cnn


@pytest.mark.parametrize(
    ("said", "token_confidence", "expected"),
    [
        ({}, None, lambda cnn: cnn),
        ({}, 0.6, lambda cnn: (cnn + 0.6) / 2),
        ({}, 0.0, lambda cnn: cnn / 2),  # measured as nought is not the same as not measured
        ({"Edema": "absent"}, None, lambda cnn: (cnn + 1.0) / 2),
        ({"Edema": "absent"}, 0.6, lambda cnn: (cnn + 0.6 + 1.0) / 3),
        ({"Edema": "absent", "Hernia": "present"}, 0.6, lambda cnn: (cnn + 0.6 + 0.5) / 3),
        ({"Edema": "uncertain"}, 0.6, lambda cnn: (cnn + 0.6) / 2),
    ],
)
def test_the_fused_confidence_averages_what_was_measured(said, token_confidence, expected) -> None:
    result = measure(predict(), read(said, token_confidence))
    assert result.fused == pytest.approx(expected(result.cnn))


def test_a_denial_counts_once_in_the_agreement_and_a_silence_once_as_a_silence() -> None:
    prediction = predict({"Pneumonia": FAR, "Hernia": FAR})
    cnn = cnn_confidence(prediction.probabilities)
    denied = measure(prediction, read({"Pneumonia": "absent", "Hernia": "present"}, 0.6))
    assert denied.fused == pytest.approx((cnn + 0.6 + 0.5) / 3)
    silent = measure(prediction, read({"Hernia": "present"}, 0.6))
    assert silent.fused == pytest.approx((cnn + 0.6 + 1.0) / 3 * (1.0 - SILENCE_PENALTY))
    twice = measure(prediction, read({}, 0.6))
    assert twice.fused == pytest.approx((cnn + 0.6) / 2 * (1.0 - SILENCE_PENALTY) ** 2)


@given(predictions(), readings(), names)
def test_contradicting_an_agreement_never_raises_the_fused_confidence(
    prediction: CnnPrediction, reading: Reading, name: str
) -> None:
    detected = prediction.detected[NAMES.index(name)]
    agreeing, contradicting = ("present", "absent") if detected else ("absent", "present")
    before = measure(prediction, restated(reading, name, says(agreeing)))
    after = measure(prediction, restated(reading, name, says(contradicting)))
    assert after.fused <= before.fused
    assert len(after.review_reasons) == len(before.review_reasons) + 1


@pytest.mark.parametrize("status", ["present", "uncertain"])
@given(prediction=predictions(), reading=readings(), name=names)
def test_passing_over_a_detected_finding_never_raises_the_fused_confidence(
    status: Status, prediction: CnnPrediction, reading: Reading, name: str
) -> None:
    assume(prediction.detected[NAMES.index(name)])
    before = measure(prediction, restated(reading, name, says(status)))
    after = measure(prediction, restated(reading, name, says("not_mentioned")))
    assert after.fused <= before.fused + 1e-12
    assert len(after.review_reasons) == len(before.review_reasons) + 1


# ── What asks for review ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_clear_film_asks_for_no_review() -> None:
    assert reasons(predict({"Pneumothorax": FAR}, mirrored={})) == ()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("probability", [NEAR, JUST_BELOW])
def test_a_lone_borderline_finding_asks_for_review(name: str, probability: float) -> None:
    assert reasons(predict({name: probability})) == (f"{name} lies close to its operating threshold.",)


@pytest.mark.parametrize(
    ("margin", "borderline"),
    [
        (0.8 * BORDERLINE_LOG_ODDS, True),
        (-0.8 * BORDERLINE_LOG_ODDS, True),
        (1.2 * BORDERLINE_LOG_ODDS, False),
        (-1.2 * BORDERLINE_LOG_ODDS, False),
    ],
)
@pytest.mark.parametrize("threshold", [0.02, 0.5, 0.9])
def test_borderline_is_a_distance_in_log_odds(threshold: float, margin: float, borderline: bool) -> None:
    probability = 1.0 / (1.0 + (1.0 - threshold) / threshold * math.exp(-margin))
    prediction = predict({"Pneumonia": probability}, {"Pneumonia": threshold}, default=0.001)
    assert bool(reasons(prediction)) is borderline


@pytest.mark.parametrize(
    ("probabilities", "borderline"),
    [
        ({"Pneumothorax": FAR, "Edema": NEAR}, []),
        ({"Pneumothorax": FAR, "Pneumonia": JUST_BELOW, "Hernia": NEAR}, []),
        ({"Pneumonia": FAR, "Hernia": NEAR, "Effusion": JUST_BELOW}, []),
        ({"Pneumonia": FAR, "Edema": JUST_BELOW}, ["Edema"]),
        ({"Hernia": FAR, "Pneumonia": NEAR, "Nodule": NEAR}, ["Pneumonia"]),
        ({"Pneumonia": NEAR, "Effusion": NEAR}, ["Effusion", "Pneumonia"]),
        ({"Hernia": JUST_BELOW, "Fibrosis": JUST_BELOW}, ["Fibrosis", "Hernia"]),
    ],
)
def test_a_borderline_finding_counts_only_when_it_changes_the_urgency(
    probabilities: dict[str, float], borderline: list[str]
) -> None:
    assert reasons(predict(probabilities)) == tuple(f"{n} lies close to its operating threshold." for n in borderline)


@pytest.mark.parametrize(
    ("probabilities", "mirrored", "expected"),
    [
        ({"Edema": FAR}, {"Edema": 0.1}, ("Edema is no longer detected when the film is mirrored.",)),
        ({}, {"Edema": FAR}, ("Edema is detected when the film is mirrored.",)),
        ({"Pneumonia": FAR}, {"Edema": FAR}, ("Edema is detected when the film is mirrored.",)),
        ({"Edema": FAR}, {"Pneumonia": FAR}, ()),
        ({"Edema": FAR}, {"Edema": 0.1, "Pneumothorax": FAR}, ()),
        ({"Edema": FAR, "Pneumonia": FAR}, {"Pneumonia": 0.1}, ()),
        (
            {"Pneumonia": FAR},
            {"Pneumonia": 0.1, "Hernia": FAR},
            ("Pneumonia is no longer detected when the film is mirrored.",),
        ),
        ({"Edema": FAR}, {"Edema": 0.6}, ()),
    ],
)
def test_a_mirrored_film_counts_only_when_it_changes_the_urgency(
    probabilities: dict[str, float], mirrored: dict[str, float], expected: tuple[str, ...]
) -> None:
    assert reasons(predict(probabilities, mirrored=mirrored)) == expected
    assert reasons(predict(probabilities)) == ()


def urgency(prediction: CnnPrediction, detected: list[bool]) -> int:
    """Return the highest urgency of what is detected on sufficient data; 0 for nothing."""
    order = list(Criticality)[::-1]
    found = zip(NAMES, detected, prediction.sufficient_data, strict=True)
    return max((order.index(criticality(n)) + 1 for n, seen, enough in found if seen and enough), default=0)


@given(st.dictionaries(names, st.sampled_from([0.1, FAR])), st.dictionaries(names, st.sampled_from([0.1, FAR])), sets())
def test_the_mirror_asks_for_review_exactly_when_the_urgency_differs(
    probabilities: dict[str, float], mirrored: dict[str, float], insufficient: frozenset[str]
) -> None:
    prediction = predict(probabilities, insufficient=insufficient, mirrored=mirrored)
    other = [{**probabilities, **mirrored}.get(name, 0.0) >= THRESHOLD for name in NAMES]
    differs = urgency(prediction, list(prediction.detected)) != urgency(prediction, other)
    assert bool(reasons(prediction)) is differs


@given(vectors(), st.sampled_from(NAMES))
def test_a_mirrored_film_with_the_same_numbers_never_asks_for_review(probabilities: dict[str, float], at: str) -> None:
    thresholds = {at: probabilities[at]}  # exactly at its operating point
    same = reasons(predict(probabilities, thresholds, mirrored={}))
    assert not any("mirrored" in reason for reason in same)


@given(predictions())
def test_labels_with_insufficient_data_cause_no_instability(prediction: CnnPrediction) -> None:
    for reason in reasons(prediction):
        name = next(n for n in NAMES if reason.startswith(f"{n} "))
        assert prediction.sufficient_data[NAMES.index(name)]


@pytest.mark.parametrize("name", NAMES)
def test_an_insufficient_label_is_neither_borderline_nor_unstable(name: str) -> None:
    insufficient = frozenset({name})
    assert reasons(predict({name: NEAR}, insufficient=insufficient)) == ()
    assert reasons(predict({name: FAR}, insufficient=insufficient, mirrored={name: 0.1})) == ()


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({}, "Pneumonia: CNN detected but LLM did not mention."),
        ({"Pneumonia": "absent"}, "Pneumonia: CNN detected but LLM says absent."),
        ({"Pneumonia": "present", "Edema": "present"}, "Edema: LLM reports but CNN did not detect."),
    ],
)
def test_a_contradiction_asks_for_review(said: dict[str, Status], reason: str) -> None:
    assert reasons(predict({"Pneumonia": FAR}), read(said)) == (reason,)


@given(predictions(), readings())
def test_each_contradiction_is_a_reason_once(prediction: CnnPrediction, reading: Reading) -> None:
    found = [f"{c.pathology}: {c.note}." for c in fuse(prediction, reading).contradictions]
    assert [reason for reason in reasons(prediction, reading) if ": " in reason] == found


def test_a_warning_about_the_film_asks_for_review() -> None:
    quality = good_quality("The film is too dark.", "The film is cropped.")
    assert measure(predict(), TEMPLATE, quality).review_reasons == (
        "Film quality: The film is too dark.",
        "Film quality: The film is cropped.",
    )


def test_the_extreme_thresholds_can_be_assessed() -> None:
    prediction = predict({"Pneumonia": FAR}, {"Pneumonia": 0.0, "Edema": 1.0}, mirrored={})
    assert reasons(prediction) == ()
