import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.prevalence import at_prevalence, predictive_values, shift

shares = st.floats(min_value=0.001, max_value=0.999)


def test_bayes_rule_by_hand() -> None:
    # Of 1,000 films where 10 in 100 have it: 80 of the 100 are detected, and 90 of the 900 others.
    ppv, npv = predictive_values(0.8, 0.9, 0.1)
    assert ppv == pytest.approx(80 / 170)
    assert npv == pytest.approx(810 / 830)


def test_a_shift_by_hand() -> None:
    # Odds of 1:3 at even prevalence become 1:27 where 1 in 10 has it: the odds of having it fell from 1:1 to 1:9.
    assert shift(0.25, 0.5, 0.1) == pytest.approx(1 / 28)


@given(shares, shares)
def test_the_prevalence_of_the_validation_films_moves_nothing(probability: float, prevalence: float) -> None:
    assert shift(probability, prevalence, prevalence) == pytest.approx(probability)


@given(shares, shares, shares)
def test_there_and_back_is_where_it_was(probability: float, one: float, other: float) -> None:
    assert shift(shift(probability, one, other), other, one) == pytest.approx(probability)


@given(shares, shares, shares, shares)
def test_a_rarer_finding_is_never_more_probable(probability: float, at: float, one: float, other: float) -> None:
    rare, common = sorted((one, other))
    assert shift(probability, at, rare) <= shift(probability, at, common)
    assert 0.0 <= shift(probability, at, rare) <= 1.0


@given(shares, shares, shares)
def test_a_detection_says_more_than_the_prevalence_when_the_test_is_better_than_chance(
    sensitivity: float, specificity: float, prevalence: float
) -> None:
    ppv, npv = predictive_values(sensitivity, specificity, prevalence)
    better = sensitivity + specificity >= 1
    assert (ppv >= prevalence - 1e-9) if better else (ppv <= prevalence + 1e-9)
    assert (npv >= 1 - prevalence - 1e-9) if better else (npv <= 1 - prevalence + 1e-9)


def test_a_test_that_never_answers_on_one_side_has_no_value_there() -> None:
    assert predictive_values(0.0, 1.0, 0.1) == pytest.approx((math.nan, 0.9), nan_ok=True)
    assert predictive_values(1.0, 0.0, 0.1) == pytest.approx((0.1, math.nan), nan_ok=True)
    assert at_prevalence("Mass", 0.3, 0.1, 0.1, sensitivity=0.0, specificity=1.0).ppv is None


def test_certainty_stays_certain() -> None:
    assert shift(0.0, 0.1, 0.5) == 0.0
    assert shift(1.0, 0.1, 0.001) == 1.0


@pytest.mark.parametrize("prevalence", [0.0, 1.0, -0.1, 1.5])
def test_a_prevalence_that_is_none_is_refused(prevalence: float) -> None:
    with pytest.raises(ValueError, match="prevalence"):
        shift(0.5, 0.1, prevalence)
    with pytest.raises(ValueError, match="prevalence"):
        shift(0.5, prevalence, 0.1)


def test_the_sentence_counts_films_beside_the_unshifted_number() -> None:
    reading = at_prevalence("Effusion", 0.25, 0.5, 0.1, sensitivity=0.8, specificity=0.9)
    assert reading.unshifted == 0.25
    assert reading.shifted == pytest.approx(1 / 28)
    assert reading.ppv == pytest.approx(80 / 170)
    assert reading.sentence == "Where 10 in 100 films show Effusion, of 100 such films about 4 have it."


@pytest.mark.parametrize(("probability", "words"), [(0.001, "fewer than 1"), (0.999, "more than 99"), (0.5, "50")])
def test_small_and_large_counts_are_not_rounded_to_never_and_always(probability: float, words: str) -> None:
    assert f"about {words} have it" in at_prevalence("Mass", probability, 0.1, 0.1).sentence


def test_without_a_measured_point_there_are_no_predictive_values() -> None:
    reading = at_prevalence("Mass", 0.3, 0.1, 0.2, sensitivity=0.5)
    assert reading.ppv is None
    assert reading.npv is None
