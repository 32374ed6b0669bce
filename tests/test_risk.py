"""The level follows what was found, never how sure anyone was."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.fusion import fuse
from modules.pathologies import NAMES, Criticality, criticality
from modules.records import CnnPrediction, Quality, Reading, Risk, Status, Uncertainty
from modules.risk_module import LOW_SENTENCE, UNCOUNTED_SENTENCE, assess
from modules.symptoms import red_flags
from tests.stages import TEMPLATE, good_quality, names, predict, predictions, read, readings, says, unit

FOUND = 0.9
SURE = Uncertainty(cnn=1.0, llm=1.0, fused=1.0)
LEVELS = ("Low", "Moderate", "High")

symptom_texts = st.sampled_from(("", "cough", "no chest pain", "chest pain", "syncope and SpO2 80%"))
qualities = st.builds(
    lambda warnings, forced, inverted, under_18: good_quality(
        *warnings, forced=forced, inverted=inverted, under_18=under_18
    ),
    st.lists(st.just("The film is too dark."), max_size=1),
    st.booleans(),
    st.booleans(),
    st.none() | st.booleans(),
)
uncertainties = st.builds(
    Uncertainty, cnn=unit, llm=st.none() | unit, fused=unit, review_reasons=st.sampled_from(((), ("Something.",)))
)
OUTSIDE = {
    "under 18": good_quality(under_18=True),
    "overridden": good_quality(forced=True),
    "inverted": good_quality(inverted=True),
}


def judge(
    prediction: CnnPrediction,
    reading: Reading = TEMPLATE,
    symptoms: str = "",
    quality: Quality | None = None,
    uncertainty: Uncertainty = SURE,
) -> Risk:
    return assess(fuse(prediction, reading), uncertainty, quality or good_quality(), symptoms)


def rank(risk: Risk) -> int:
    return LEVELS.index(risk.level)


# ── What never lowers the level ──────────────────────────────────────────────────────────────────────────────────────


@given(predictions(), readings(), symptom_texts, qualities, uncertainties)
def test_confidence_does_not_touch_the_level(
    prediction: CnnPrediction, reading: Reading, symptoms: str, quality: Quality, uncertainty: Uncertainty
) -> None:
    sure = judge(prediction, reading, symptoms, quality)
    other = judge(prediction, reading, symptoms, quality, uncertainty)
    assert (other.level, other.factors) == (sure.level, sure.factors)


@given(predictions(), readings(), symptom_texts, qualities)
def test_the_quality_of_the_film_does_not_touch_the_level(
    prediction: CnnPrediction, reading: Reading, symptoms: str, quality: Quality
) -> None:
    assert judge(prediction, reading, symptoms, quality).level == judge(prediction, reading, symptoms).level


@given(st.dictionaries(names, st.sampled_from([0.1, FOUND])), readings(), symptom_texts, names)
def test_one_more_detected_finding_never_lowers_the_level(
    probabilities: dict[str, float], reading: Reading, symptoms: str, name: str
) -> None:
    fewer = judge(predict({**probabilities, name: 0.1}), reading, symptoms)
    more = judge(predict({**probabilities, name: FOUND}), reading, symptoms)
    assert rank(more) >= rank(fewer)


@given(predictions(), readings(), symptom_texts, names, st.sampled_from(("absent", "uncertain", "not_mentioned")))
def test_a_report_of_the_reader_never_lowers_the_level(
    prediction: CnnPrediction, reading: Reading, symptoms: str, name: str, status: Status
) -> None:
    without, reported = (
        judge(prediction, read({**reading.statements, name: says(s)}), symptoms) for s in (status, "present")
    )
    assert rank(reported) >= rank(without)


@given(predictions(), readings(), symptom_texts, st.sampled_from(("chest pain", "haemoptysis", "SpO2 85%")))
def test_one_more_red_flag_never_lowers_the_level(
    prediction: CnnPrediction, reading: Reading, symptoms: str, flag: str
) -> None:
    fewer, more = (judge(prediction, reading, text) for text in (symptoms, f"{symptoms}. {flag}"))
    assert rank(more) >= rank(fewer)
    assert set(red_flags(symptoms)) <= set(red_flags(f"{symptoms}. {flag}"))


# ── The rules ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("reading", [TEMPLATE, read()], ids=["no reader", "silent reader"])
@pytest.mark.parametrize("name", NAMES)
def test_the_level_of_a_lone_finding_follows_its_urgency(name: str, reading: Reading) -> None:
    expected = {
        Criticality.IMMEDIATE: ("High", "High"),
        Criticality.PROMPT: ("Moderate", "High"),
        Criticality.ROUTINE: ("Moderate", "Moderate"),
    }[criticality(name)]
    assert judge(predict({name: FOUND}), reading).level == expected[0]
    assert judge(predict({name: FOUND}), reading, "syncope").level == expected[1]
    assert judge(predict({name: FOUND}), reading, "no syncope").level == expected[0]


@pytest.mark.parametrize("name", ["Pneumothorax", "Edema"])
def test_pneumothorax_and_edema_are_high(name: str) -> None:
    assert judge(predict({name: FOUND})).level == "High"
    assert judge(predict(), read({name: "present"})).level == "High"
    assert judge(predict({name: FOUND}), read({name: "absent"})).level == "High"


@pytest.mark.parametrize(
    ("symptoms", "level"),
    [
        ("chest pain", "Moderate"),
        ("fever, cough. SpO2 85%", "High"),  # needs action whatever the film shows
        ("BP 70/40, hypotensive", "High"),
        ("weight loss", "Moderate"),
        ("no fever, chest pain since yesterday", "Moderate"),
        ("denies chest pain", "Low"),
        ("cough", "Low"),
        ("", "Low"),
    ],
)
def test_a_red_flag_alone_is_moderate_or_high_by_its_urgency(symptoms: str, level: str) -> None:
    risk = judge(predict(), symptoms=symptoms)
    assert risk.level == level
    assert risk.needs_review == (level != "Low")
    assert any("does not exclude disease" in factor for factor in risk.factors)


def test_what_comes_on_over_weeks_makes_no_finding_acute() -> None:
    effusion = predict({"Effusion": FOUND})
    assert judge(effusion, symptoms="weight loss").level == "Moderate"
    assert judge(effusion, symptoms="sudden breathlessness").level == "High"


@pytest.mark.parametrize(("probability", "asked"), [(0.55, False), (0.9, True)])
def test_edema_far_above_its_threshold_asks_for_review_though_it_does_not_count(
    probability: float, asked: bool
) -> None:
    risk = judge(predict({"Edema": probability}, insufficient=frozenset({"Edema"})))
    assert (risk.level, risk.needs_review) == ("Low", asked)


def test_text_without_a_red_flag_says_that_none_was_recognised() -> None:
    assert "No red-flag symptom was recognised" in judge(predict(), symptoms="cough").factors[-1]
    assert not any("recognised" in factor for factor in judge(predict(), symptoms=" ").factors)


@pytest.mark.parametrize("name", NAMES)
def test_a_detection_on_insufficient_data_drives_nothing(name: str) -> None:
    risk = judge(predict({name: FOUND}, insufficient=frozenset({name})))
    assert (risk.level, risk.factors[0]) == ("Low", UNCOUNTED_SENTENCE)
    assert [f for f in risk.factors if name in f] == list(risk.factors[1:])  # named, and said not to count
    assert "not counted" in risk.factors[1]
    assert judge(predict({name: FOUND}, insufficient=frozenset({name})), symptoms="syncope").level == "Moderate"


@given(st.dictionaries(names, st.sampled_from([0.1, FOUND])), names, readings(), symptom_texts)
def test_an_insufficient_label_counts_as_if_it_were_not_detected(
    probabilities: dict[str, float], name: str, reading: Reading, symptoms: str
) -> None:
    detected, silent = (
        judge(predict({**probabilities, name: p}, insufficient=frozenset({name})), reading, symptoms)
        for p in (FOUND, 0.1)
    )
    assert detected.level == silent.level
    of_findings = [[f for f in risk.factors if "threshold" not in f or "(" in f] for risk in (detected, silent)]
    assert [f.split(";")[0].split(" (")[0] for f in of_findings[0]] == [
        f.split(";")[0].split(" (")[0] for f in of_findings[1]
    ]


@pytest.mark.parametrize("name", NAMES)
def test_the_readers_report_drives_the_level_even_on_insufficient_data(name: str) -> None:
    reading = read({name: "present"})
    alone = judge(predict(), reading)
    assert alone.level == ("High" if criticality(name) is Criticality.IMMEDIATE else "Moderate")
    unproven = judge(predict({name: FOUND}, insufficient=frozenset({name})), reading)
    assert unproven.level == alone.level
    assert [f.split(";")[0] for f in unproven.factors] == [f.split(";")[0] for f in alone.factors]


@pytest.mark.parametrize("status", ["absent", "uncertain", "not_mentioned"])
@pytest.mark.parametrize("name", NAMES)
def test_only_present_counts_as_the_readers_report(name: str, status: Status) -> None:
    assert judge(predict(), read({name: status})).level == "Low"


# ── Factors ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("probability", "status", "who"),
    [
        (FOUND, "present", "CNN and second reader"),
        (FOUND, "not_mentioned", "CNN"),
        (FOUND, "absent", "CNN"),
        (0.1, "present", "second reader"),
    ],
)
@pytest.mark.parametrize(
    ("name", "urgency"),
    [
        ("Edema", "if real, action within minutes"),
        ("Effusion", "if real, action within hours"),
        ("Hernia", "if real, follow-up within days"),
    ],
)
def test_a_factor_names_who_found_it(name: str, urgency: str, probability: float, status: Status, who: str) -> None:
    numbers = f"CNN probability {probability:.3f}, threshold 0.500"
    factors = judge(predict({name: probability}), read({name: status})).factors
    assert factors == (f"{name} ({who}; {numbers}; {urgency})",)


def test_factors_list_findings_in_order_and_then_the_red_flags() -> None:
    risk = judge(predict({"Hernia": FOUND, "Mass": FOUND}), symptoms="faints, coughs blood")
    assert [factor.split(" (")[0] for factor in risk.factors] == [
        "Mass",
        "Hernia",
        "Red-flag symptom: coughing blood",
        "Red-flag symptom: fainting",
    ]


@given(predictions(), readings(), symptom_texts, qualities)
def test_low_means_that_nothing_was_found_and_says_so(
    prediction: CnnPrediction, reading: Reading, symptoms: str, quality: Quality
) -> None:
    risk = judge(prediction, reading, symptoms, quality)
    said = any(factor.startswith((LOW_SENTENCE, UNCOUNTED_SENTENCE)) for factor in risk.factors)
    assert said or risk.level != "Low"
    assert not (said and any("if real" in factor for factor in risk.factors))


# ── Low, and review ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("quality", [good_quality(), good_quality(under_18=False), good_quality("It is too dark.")])
def test_low_reads_one_exact_sentence(quality: Quality) -> None:
    risk = judge(predict(), quality=quality)
    assert risk.factors == ("No listed finding above its threshold; this does not exclude disease.",)


@pytest.mark.parametrize(("word", "quality"), OUTSIDE.items())
def test_low_on_a_film_it_was_not_made_for_is_no_reassurance(word: str, quality: Quality) -> None:
    risk = judge(predict(), quality=quality)
    assert risk.level == "Low"
    assert len(risk.factors) == 1
    assert risk.factors[0].startswith(f"{LOW_SENTENCE} ")
    assert "do not be reassured" in risk.factors[0]


@pytest.mark.parametrize(("word", "quality"), OUTSIDE.items())
@pytest.mark.parametrize("probabilities", [{}, {"Mass": FOUND}, {"Edema": FOUND}], ids=LEVELS)
def test_a_film_it_was_not_made_for_always_needs_review(
    probabilities: dict[str, float], word: str, quality: Quality
) -> None:
    risk = judge(predict(probabilities), quality=quality)
    assert risk.needs_review
    rated = ["Rated High: a person must read the film now."] if risk.level == "High" else []
    assert rated + [reason for reason in risk.review_reasons if word in reason] == list(risk.review_reasons)


@given(predictions(), readings(), symptom_texts, qualities, uncertainties)
def test_review_is_needed_exactly_when_there_is_a_reason(
    prediction: CnnPrediction, reading: Reading, symptoms: str, quality: Quality, uncertainty: Uncertainty
) -> None:
    risk = judge(prediction, reading, symptoms, quality, uncertainty)
    outside = sum((bool(quality.under_18), quality.forced, quality.inverted_by_request))
    assert risk.needs_review == bool(risk.review_reasons)
    assert len(risk.review_reasons) >= outside + len(uncertainty.review_reasons) + (risk.level == "High")
    assert (
        risk.review_reasons[len(risk.review_reasons) - len(uncertainty.review_reasons) :] == uncertainty.review_reasons
    )
