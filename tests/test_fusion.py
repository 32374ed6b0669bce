"""The second reader shifts a number within a cap, and hides nothing."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from modules.fusion import ABSENT_SHIFT, MAX_ADJUSTMENT, PRESENT_SHIFT, UNMEASURED_WEIGHT, fuse
from modules.odds import log_odds, sigmoid
from modules.pathologies import NAMES, OPACITY_GROUP
from modules.records import CnnPrediction, Contradiction, Finding, Fusion, ReaderStatement, Reading, Status
from tests.stages import (
    QUIET,
    STATUSES,
    TEMPLATE,
    clear_statuses,
    inner,
    names,
    predict,
    predictions,
    read,
    readings,
    says,
    statuses,
    unit,
    vectors,
)

ROUNDING = 1e-5  # the CNN's log-odds are float32
ALONE = tuple(name for name in NAMES if name not in OPACITY_GROUP)


def finding(fusion: Fusion, name: str) -> Finding:
    return fusion.findings[NAMES.index(name)]


def shift(found: Finding) -> float:
    """Return by how much the log-odds moved."""
    return log_odds(found.fused_probability) - log_odds(found.cnn_probability)


# ── What no reader can do ────────────────────────────────────────────────────────────────────────────────────────────


@given(predictions(), readings())
def test_nothing_undetects_a_finding_nor_changes_the_cnns_numbers(prediction: CnnPrediction, reading: Reading) -> None:
    fusion = fuse(prediction, reading)
    assert tuple(f.pathology for f in fusion.findings) == NAMES
    assert tuple(f.detected for f in fusion.findings) == prediction.detected
    assert [f.cnn_probability for f in fusion.findings] == [float(p) for p in prediction.probabilities]
    assert [f.operating_threshold for f in fusion.findings] == [float(t) for t in prediction.thresholds]
    assert tuple(f.sufficient_data for f in fusion.findings) == prediction.sufficient_data


@given(predictions(), readings())
def test_a_denial_never_raises_and_a_report_never_lowers(prediction: CnnPrediction, reading: Reading) -> None:
    for f in fuse(prediction, reading).findings:
        if f.reader.status == "absent":
            assert shift(f) <= ROUNDING
            assert all(a.log_odds <= 0.0 for a in f.adjustments)
        if f.reader.status == "present":
            assert shift(f) >= -ROUNDING
            assert all(a.log_odds >= 0.0 for a in f.adjustments)


@given(names, inner, st.sampled_from([("present", 1.0), ("absent", -1.0)]))
def test_a_statement_of_no_confidence_moves_the_number_not_even_by_rounding(
    name: str, probability: float, said: tuple[Status, float]
) -> None:
    status, direction = said
    f = finding(fuse(predict({name: probability}), read({name: says(status, 0.0)})), name)
    assert (f.fused_probability - f.cnn_probability) * direction >= 0.0


@given(predictions(), readings())
def test_no_adjustment_exceeds_the_cap(prediction: CnnPrediction, reading: Reading) -> None:
    for f in fuse(prediction, reading).findings:
        assert abs(sum(a.log_odds for a in f.adjustments)) <= MAX_ADJUSTMENT
        assert abs(shift(f)) <= MAX_ADJUSTMENT + ROUNDING
        assert 0.0 <= f.fused_probability <= 1.0


@given(predictions(), st.dictionaries(names, st.sampled_from(("uncertain", "not_mentioned"))), st.none() | unit)
def test_doubt_and_silence_leave_every_number_bit_identical(
    prediction: CnnPrediction, said: dict[str, Status], confidence: float | None
) -> None:
    reading = read({name: says(status, confidence) for name, status in said.items()})
    for f in fuse(prediction, reading).findings:
        assert f.fused_probability == f.cnn_probability
        assert f.adjustments == ()


@given(predictions())
def test_a_template_moves_nothing_and_contradicts_nothing(prediction: CnnPrediction) -> None:
    fusion = fuse(prediction, TEMPLATE)
    assert all(f.fused_probability == f.cnn_probability and not f.adjustments for f in fusion.findings)
    assert fusion.contradictions == ()
    assert fusion.agreement is None


# ── How it moves ─────────────────────────────────────────────────────────────────────────────────────────────────────


@given(names, inner, inner, statuses, st.none() | unit)
def test_the_fused_probability_rises_with_the_cnns(
    name: str, one: float, other: float, status: Status, confidence: float | None
) -> None:
    reading = read({name: says(status, confidence)})
    low, high = (finding(fuse(predict({name: p}), reading), name).fused_probability for p in sorted((one, other)))
    assert low <= high


@given(names, vectors(), clear_statuses, unit, unit)
def test_more_confidence_moves_further(
    name: str, probabilities: dict[str, float], status: Status, one: float, other: float
) -> None:
    less, more = (
        shift(finding(fuse(predict(probabilities), read({name: says(status, c)})), name)) for c in sorted((one, other))
    )
    assert (more >= less) if status == "present" else (more <= less)


@given(predictions(), readings(), st.randoms())
def test_the_order_of_statements_changes_nothing(prediction: CnnPrediction, reading: Reading, random) -> None:
    shuffled = list(reading.statements.items())
    random.shuffle(shuffled)
    other = Reading(reasoning="As read.", statements=dict(shuffled), token_confidence=reading.token_confidence)
    assert fuse(prediction, other) == fuse(prediction, reading)


@given(names, inner, readings())
def test_the_cnns_other_numbers_do_not_touch_a_finding(name: str, other_probability: float, reading: Reading) -> None:
    probabilities = {name: 0.4}
    alone = finding(fuse(predict(probabilities), reading), name)
    beside = finding(fuse(predict(probabilities, default=other_probability), reading), name)
    assert alone == beside


@pytest.mark.parametrize(
    ("status", "confidence", "expected"),
    [
        ("present", 1.0, 0.8),
        ("present", 0.25, 0.2),
        ("present", 0.0, 0.0),
        ("present", None, 0.4),
        ("absent", 1.0, -0.5),
        ("absent", 0.5, -0.25),
        ("absent", None, -0.25),
    ],
)
@pytest.mark.parametrize("name", ALONE)
def test_a_lone_statement_shifts_by_its_weight(
    name: str, status: Status, confidence: float | None, expected: float
) -> None:
    f = finding(fuse(predict({name: 0.5}), read({name: says(status, confidence)})), name)
    assert [a.log_odds for a in f.adjustments] == [pytest.approx(expected)]
    assert f.fused_probability == pytest.approx(1.0 / (1.0 + math.exp(-expected)), abs=1e-6)


def test_a_worked_example() -> None:
    # odds 1:3, times e^0.8 for a sure "present" -> 0.7418 : 1 -> 0.42590
    f = finding(fuse(predict({"Mass": 0.25}), read({"Mass": says("present", 1.0)})), "Mass")
    assert f.fused_probability == pytest.approx(0.42590, abs=1e-5)
    # odds 3:1, times e^-0.25 for an unmeasured denial -> 2.3364 : 1 -> 0.70028
    f = finding(fuse(predict({"Mass": 0.75}), read({"Mass": says("absent")})), "Mass")
    assert f.fused_probability == pytest.approx(0.70028, abs=1e-5)


def test_the_constants_keep_their_promises() -> None:
    assert 0.0 < -ABSENT_SHIFT <= PRESENT_SHIFT <= MAX_ADJUSTMENT <= 0.8
    assert 0.0 < UNMEASURED_WEIGHT <= 1.0
    assert math.exp(MAX_ADJUSTMENT) < 2.3


@given(st.floats(min_value=1e-9, max_value=1.0 - 1e-9))
@example(0.5)
def test_log_odds_and_sigmoid_undo_each_other(probability: float) -> None:
    assert sigmoid(log_odds(probability)) == pytest.approx(probability, rel=1e-6)


@pytest.mark.parametrize(("probability", "expected"), [(0.0, -math.inf), (1.0, math.inf)])
def test_log_odds_are_infinite_at_the_ends(probability: float, expected: float) -> None:
    assert log_odds(probability) == expected


@pytest.mark.parametrize(("value", "expected"), [(-1000.0, 0.0), (0.0, 0.5), (1000.0, 1.0)])
def test_the_sigmoid_does_not_overflow(value: float, expected: float) -> None:
    assert sigmoid(value) == expected


# ── Words that name one opacity ──────────────────────────────────────────────────────────────────────────────────────


@given(
    predictions(),
    st.dictionaries(st.sampled_from(sorted(OPACITY_GROUP)), st.builds(says, clear_statuses, st.just(1.0) | unit)),
)
def test_the_opacity_group_shares_one_adjustment_each_way(
    prediction: CnnPrediction, said: dict[str, ReaderStatement]
) -> None:
    reading = read(said)
    values = [
        a.log_odds for f in fuse(prediction, reading).findings if f.pathology in OPACITY_GROUP for a in f.adjustments
    ]
    assert sum(v for v in values if v > 0) <= PRESENT_SHIFT + 1e-12
    assert sum(v for v in values if v < 0) >= ABSENT_SHIFT - 1e-12


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"Pneumonia": "present"}, {"Pneumonia": 0.8}),
        ({"Pneumonia": "present", "Consolidation": "present"}, {"Pneumonia": 0.4, "Consolidation": 0.4}),
        (dict.fromkeys(sorted(OPACITY_GROUP), "present"), dict.fromkeys(sorted(OPACITY_GROUP), 0.8 / 3)),
        (dict.fromkeys(sorted(OPACITY_GROUP), "absent"), dict.fromkeys(sorted(OPACITY_GROUP), -0.5 / 3)),
        ({"Pneumonia": "present", "Infiltration": "absent"}, {"Pneumonia": 0.8, "Infiltration": -0.5}),
        ({"Pneumonia": "present", "Infiltration": "uncertain"}, {"Pneumonia": 0.8}),
        ({"Pneumonia": "present", "Edema": "present"}, {"Pneumonia": 0.8, "Edema": 0.8}),
    ],
)
def test_names_of_one_opacity_split_one_adjustment(said: dict[str, Status], expected: dict[str, float]) -> None:
    fusion = fuse(predict(), read({name: says(status, 1.0) for name, status in said.items()}))
    shifts = {f.pathology: sum(a.log_odds for a in f.adjustments) for f in fusion.findings if f.adjustments}
    assert shifts == pytest.approx(expected)


def test_a_shared_adjustment_names_who_shares_it() -> None:
    fusion = fuse(predict(), read({"Pneumonia": "present", "Consolidation": "present", "Mass": "present"}))
    for name in ("Pneumonia", "Consolidation"):
        assert "Pneumonia, Consolidation" in finding(fusion, name).adjustments[0].reason
    assert "shared" not in finding(fusion, "Mass").adjustments[0].reason


# ── Reasons ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(predictions(), readings())
def test_every_adjustment_has_its_reason(prediction: CnnPrediction, reading: Reading) -> None:
    for f in fuse(prediction, reading).findings:
        assert bool(f.adjustments) == (f.reader.status in ("present", "absent"))
        assert all(f"calls it {f.reader.status}" in a.reason for a in f.adjustments)


def test_a_reason_tells_a_measured_confidence_from_an_assumed_one() -> None:
    fusion = fuse(predict(), read({"Mass": says("present", 0.5), "Hernia": says("present")}))
    assert "measured as 0.50" in finding(fusion, "Mass").adjustments[0].reason
    assert "not measured, taken as 0.50" in finding(fusion, "Hernia").adjustments[0].reason


# ── Contradictions and agreement ─────────────────────────────────────────────────────────────────────────────────────

NOTES = {
    (True, "not_mentioned"): ("not_mentioned", "CNN detected but LLM did not mention"),
    (True, "absent"): ("denied", "CNN detected but LLM says absent"),
    (False, "present"): ("not_detected", "LLM reports but CNN did not detect"),
}


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("detected", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_readers_contradict_each_other_in_three_ways(name: str, detected: bool, status: Status) -> None:
    prediction = predict({name: 0.8 if detected else 0.1})
    contradictions = fuse(prediction, read({name: status})).contradictions
    if (detected, status) not in NOTES:
        assert contradictions == ()
        return
    kind, note = NOTES[detected, status]
    probability = float(prediction.probabilities[NAMES.index(name)])
    assert contradictions == (Contradiction(pathology=name, cnn_probability=probability, note=note, kind=kind),)


@given(predictions(), readings())
def test_each_pathology_contradicts_at_most_once_and_in_order(prediction: CnnPrediction, reading: Reading) -> None:
    fusion = fuse(prediction, reading)
    expected = [f.pathology for f in fusion.findings if (f.detected, f.reader.status) in NOTES]
    assert [c.pathology for c in fusion.contradictions] == expected


@pytest.mark.parametrize(("probability", "detected"), [(0.5, True), (0.4999, False)])
def test_a_finding_is_detected_at_its_threshold(probability: float, detected: bool) -> None:
    assert finding(fuse(predict({"Mass": probability}, {"Mass": 0.5}), read()), "Mass").detected is detected


@pytest.mark.parametrize(
    ("said", "agreement"),
    [
        ({}, None),
        ({"Mass": "uncertain", "Edema": "not_mentioned"}, None),
        ({"Mass": "present"}, 1.0),
        ({"Edema": "absent"}, 1.0),
        ({"Mass": "absent"}, 0.0),
        ({"Edema": "present"}, 0.0),
        ({"Mass": "present", "Edema": "absent", "Hernia": "present", "Nodule": "uncertain"}, 2 / 3),
    ],
)
def test_agreement_is_the_share_of_clear_statements_that_match(said: dict[str, Status], agreement: float) -> None:
    assert fuse(predict({"Mass": 0.8}, default=QUIET), read(said)).agreement == agreement


@given(predictions(), readings())
def test_agreement_is_bounded_and_none_without_a_clear_statement(prediction: CnnPrediction, reading: Reading) -> None:
    agreement = fuse(prediction, reading).agreement
    clear = [s for s in reading.statements.values() if s.status in ("present", "absent")]
    assert (agreement is None) == (not clear)
    assert agreement is None or 0.0 <= agreement <= 1.0
