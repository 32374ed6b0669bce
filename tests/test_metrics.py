"""Every measure against scikit-learn, against cases worked by hand, and against what must hold for any input."""

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from evaluation.bootstrap import patient_bootstrap
from evaluation.likelihood import PRIOR_SD, fit
from evaluation.metrics import (
    Confusion,
    RankedScores,
    area_under_risk_coverage,
    auroc,
    average_precision,
    brier_score,
    brier_skill,
    calibration_line,
    confusion,
    expected_calibration_error,
    intersection_over_union,
    precision_recall_curve,
    predictive_values,
    prior_shift,
    reliability,
    risk_coverage,
    roc_curve,
    wilson_interval,
)
from modules.settings import PROJECT_ROOT

NAN = math.nan


def sample(seed: int, n: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores with ties; both classes occur."""
    generator = np.random.default_rng(seed)
    scores = np.round(generator.normal(size=n), 1)
    labels = (generator.random(n) < 1 / (1 + np.exp(-scores))).astype(float)
    labels[:2] = [0.0, 1.0]
    return labels, scores


labelled = st.lists(
    st.tuples(st.sampled_from([0.0, 1.0]), st.integers(-20, 20), st.integers(1, 3)), min_size=4, max_size=40
).filter(lambda rows: len({label for label, _, _ in rows}) == 2)


# ── Discrimination ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(5))
def test_areas_are_those_of_scikit_learn(seed: int) -> None:
    labels, scores = sample(seed)
    assert auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert average_precision(labels, scores) == pytest.approx(average_precision_score(labels, scores), abs=1e-12)


def test_areas_worked_by_hand() -> None:
    labels, scores = np.array([1.0, 0.0, 1.0, 0.0]), np.array([4.0, 3.0, 2.0, 1.0])
    assert auroc(labels, scores) == 0.75  # three of four pairs are in order
    assert average_precision(labels, scores) == pytest.approx((1 + 2 / 3) / 2)
    assert auroc(labels, np.zeros(4)) == 0.5
    assert average_precision(labels, np.zeros(4)) == 0.5  # the prevalence


@pytest.mark.parametrize("labels", [[1.0, 1.0], [0.0, 0.0], [NAN, 1.0], [NAN, NAN], []])
def test_an_area_without_both_labels_is_not_made_up(labels: list[float]) -> None:
    scores = np.arange(len(labels), dtype=float)
    assert math.isnan(auroc(np.array(labels), scores))
    assert math.isnan(average_precision(np.array(labels), scores))


@settings(max_examples=50, deadline=None)
@given(labelled)
def test_areas_depend_on_the_order_of_scores_alone(rows: list[tuple[float, int, int]]) -> None:
    labels, scores = np.array([r[0] for r in rows]), np.array([float(r[1]) for r in rows])
    for area in (auroc, average_precision):
        assert area(labels, np.arctan(scores) * 7 - 3) == pytest.approx(area(labels, scores), abs=1e-12)
        assert area(labels[::-1], scores[::-1]) == pytest.approx(area(labels, scores), abs=1e-12)
    assert auroc(labels, -scores) == pytest.approx(1 - auroc(labels, scores), abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(labelled)
def test_a_weight_is_a_repetition(rows: list[tuple[float, int, int]]) -> None:
    labels, scores, times = (np.array(column) for column in zip(*rows, strict=True))
    ranked = RankedScores(labels, scores)
    again, same = np.repeat(labels, times), np.repeat(scores, times)
    assert ranked.auroc(times) == pytest.approx(auroc(again, same), abs=1e-12)
    assert ranked.average_precision(times) == pytest.approx(average_precision(again, same), abs=1e-12)


def test_a_weight_of_zero_leaves_a_film_out() -> None:
    labels, scores = sample(3)
    weights = (np.arange(labels.size) % 3 > 0).astype(int)
    kept = weights > 0
    assert RankedScores(labels, scores).auroc(weights) == pytest.approx(roc_auc_score(labels[kept], scores[kept]))
    assert math.isnan(RankedScores(labels, scores).auroc(np.where(labels == 1, 0, 1)))


def test_unknown_labels_are_masked_everywhere() -> None:
    labels, scores = sample(1)
    holes = labels.copy()
    holes[::4] = NAN
    known = ~np.isnan(holes)
    p = 1 / (1 + np.exp(-scores))
    for measure in (auroc, average_precision, calibration_line):
        assert measure(holes, scores) == pytest.approx(measure(labels[known], scores[known]))
    for measure in (brier_score, brier_skill, expected_calibration_error):
        assert measure(holes, p) == pytest.approx(measure(labels[known], p[known]))
    assert confusion(holes, p > 0.5) == confusion(labels[known], p[known] > 0.5)


def test_vectors_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="one length"):
        auroc(np.array([0.0, 1.0]), np.array([1.0, 2.0, 3.0]))
    with pytest.raises(ValueError, match="one length"):
        brier_score(np.array([0.0, 1.0]), np.array([1.0]))


def test_curves_end_where_they_must_and_enclose_their_area() -> None:
    labels, scores = sample(2)
    roc = roc_curve(labels, scores)
    assert (roc.x[0], roc.y[0], roc.x[-1], roc.y[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(roc.y, roc.x) == pytest.approx(auroc(labels, scores))
    recall = precision_recall_curve(labels, scores)
    assert recall.x[-1] == 1
    assert recall.y[-1] == pytest.approx(labels.mean())
    with pytest.raises(ValueError, match="positive and a negative"):
        roc_curve(np.ones(3), np.arange(3.0))


# ── Decisions ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_confusion_worked_by_hand() -> None:
    found = confusion(np.array([1, 1, 1, 0, 0, NAN]), np.array([True, True, False, True, False, True]))
    assert found == Confusion(true_positive=2, false_positive=1, true_negative=1, false_negative=1)
    assert found.sensitivity == pytest.approx(2 / 3)
    assert found.specificity == 0.5
    assert math.isnan(confusion(np.zeros(2), np.zeros(2)).sensitivity)


def test_wilson_worked_by_hand() -> None:
    found = wilson_interval(8, 10)  # the example of many textbooks
    assert (found.low, found.high) == (pytest.approx(0.4902, abs=5e-5), pytest.approx(0.9433, abs=5e-5))
    assert wilson_interval(0, 10).low == 0.0
    assert wilson_interval(0, 10).high == pytest.approx(0.2775, abs=5e-5)
    assert wilson_interval(10, 10).high == 1.0
    assert math.isnan(wilson_interval(0, 0).low)
    with pytest.raises(ValueError, match="no share"):
        wilson_interval(3, 2)


def test_predictive_values_worked_by_hand() -> None:
    # of 1000: 10 ill, 9 of them found; 990 well, 99 of them alarmed
    ppv, npv = predictive_values(0.9, 0.9, 0.01)
    assert ppv == pytest.approx(9 / 108)
    assert npv == pytest.approx(891 / 892)
    assert math.isnan(predictive_values(0.0, 1.0, 0.1)[0])


def test_overlap_worked_by_hand() -> None:
    a, b = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    a[:2], b[1:3] = True, True
    assert intersection_over_union(a, b) == pytest.approx(1 / 3)
    assert math.isnan(intersection_over_union(a & False, b & False))


# ── Calibration ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_reliability_worked_by_hand() -> None:
    bins = reliability(np.array([0.0, 1.0, 1.0, 1.0]), np.array([0.1, 0.3, 0.8, 0.6]), bins=2)
    assert [(b.mean_probability, b.observed, b.count) for b in bins] == [
        (pytest.approx(0.2), 0.5, 2),
        (pytest.approx(0.7), 1.0, 2),
    ]
    labels, p = np.array([0.0, 1.0, 1.0, 1.0]), np.array([0.1, 0.3, 0.8, 0.6])
    assert expected_calibration_error(labels, p, bins=2) == pytest.approx(0.3)


@settings(max_examples=50, deadline=None)
@given(labelled, st.integers(1, 12))
def test_bins_lose_no_film_and_never_part_a_tie(rows: list[tuple[float, int, int]], count: int) -> None:
    labels, p = np.array([r[0] for r in rows]), np.array([(r[1] + 21) / 42 for r in rows])
    bins = reliability(labels, p, count)
    assert sum(b.count for b in bins) == labels.size
    assert len(bins) <= count
    edges = np.cumsum([b.count for b in bins])[:-1]
    ordered = np.sort(p)
    assert all(ordered[edge - 1] < ordered[edge] for edge in edges)


def test_equal_mass_bins_have_equal_mass_without_ties() -> None:
    labels, _ = sample(0, 100)
    assert [b.count for b in reliability(labels, np.linspace(0.01, 0.99, 100) ** 3)] == [10] * 10


def test_brier_scores() -> None:
    labels, scores = sample(4)
    p = 1 / (1 + np.exp(-scores))
    assert brier_score(labels, p) == pytest.approx(brier_score_loss(labels, p))
    assert brier_skill(labels, np.full(labels.size, labels.mean())) == pytest.approx(0.0)
    assert brier_skill(labels, labels) == 1.0
    assert math.isnan(brier_skill(np.ones(3), np.ones(3)))


@pytest.mark.parametrize("seed", range(3))
def test_calibration_line_is_that_of_scikit_learn(seed: int) -> None:
    labels, scores = sample(seed)
    reference = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(scores[:, np.newaxis], labels)
    slope, intercept = calibration_line(labels, scores)
    assert slope == pytest.approx(reference.coef_[0, 0], abs=1e-5)
    assert intercept == pytest.approx(reference.intercept_[0], abs=1e-5)


def test_calibration_line_undoes_a_distortion() -> None:
    labels, scores = sample(0, 500)
    slope, intercept = calibration_line(labels, scores)
    again, zero = calibration_line(labels, slope * scores + intercept)
    assert (again, zero) == (pytest.approx(1.0), pytest.approx(0.0, abs=1e-7))


@pytest.mark.parametrize(
    ("labels", "scores"),
    [([0, 0, 1, 1], [1, 2, 3, 4]), ([1, 1, 0], [1, 2, 3]), ([1, 1], [1, 2]), ([0, 1, 0], [2, 2, 2]), ([], [])],
)
def test_a_calibration_line_without_a_maximum_is_not_made_up(labels: list[float], scores: list[float]) -> None:
    assert all(map(math.isnan, calibration_line(np.array(labels, float), np.array(scores, float))))


def test_prior_shift_worked_by_hand() -> None:
    assert prior_shift(np.array([1.0, 0.0, NAN]), 0.2) == pytest.approx(math.log(4))
    assert math.isnan(prior_shift(np.zeros(3), 0.2))


# ── Confidence ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_risk_coverage_worked_by_hand() -> None:
    curve = risk_coverage(np.array([0.9, 0.8, 0.7, 0.6]), np.array([0.0, 0.0, 1.0, 1.0]))
    assert curve.y.tolist() == [0.0, 0.0, pytest.approx(1 / 3), 0.5]
    assert area_under_risk_coverage(np.array([0.9, 0.8, 0.7, 0.6]), np.array([0.0, 0.0, 1.0, 1.0])) == pytest.approx(
        (1 / 3 + 1 / 2) / 4
    )


def test_a_constant_confidence_is_a_random_order() -> None:
    errors = np.array([1.0, 0.0, 0.0, 1.0, 0.0])
    assert area_under_risk_coverage(np.zeros(5), errors) == pytest.approx(errors.mean())
    assert area_under_risk_coverage(-errors, errors) < errors.mean() < area_under_risk_coverage(errors, errors)


# ── Bootstrap ────────────────────────────────────────────────────────────────────────────────────────────────────────


def clustered() -> tuple[list[str], np.ndarray]:
    """Thirty patients of ten films each, all films of one patient alike."""
    values = np.random.default_rng(0).normal(size=30)
    return [str(patient) for patient in range(30) for _ in range(10)], np.repeat(values, 10)


def test_drawing_patients_is_wider_than_drawing_films() -> None:
    patients, values = clustered()

    def weighted(weights: np.ndarray) -> float:
        return float(np.average(values, weights=weights))

    by_patient = patient_bootstrap(patients, weighted, 400, seed=1)
    by_film = patient_bootstrap([str(i) for i in range(values.size)], weighted, 400, seed=1)
    assert by_patient.low < values.mean() < by_patient.high
    assert by_patient.high - by_patient.low > 2 * (by_film.high - by_film.low)
    # ten alike films say what one says: the theory for 30 independent values
    assert by_patient.high - by_patient.low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(30), rel=0.15)


def test_films_of_one_patient_are_drawn_together_and_the_seed_decides() -> None:
    patients = ["a", "a", "b", "b", "c"]
    drawn: list[list[int]] = []

    def note(weights: np.ndarray) -> float:
        drawn.append(weights.tolist())
        return float(weights @ np.arange(5))

    first = patient_bootstrap(patients, note, 50, seed=3)
    assert all(w[0] == w[1] and w[2] == w[3] and w[0] + w[2] + w[4] == 3 for w in drawn)
    assert len({tuple(w) for w in drawn}) > 3
    assert patient_bootstrap(patients, note, 50, seed=3) == first
    assert patient_bootstrap(patients, note, 50, seed=4) != first


def test_arrays_come_back_as_intervals_and_nan_stays_undefined() -> None:
    intervals = patient_bootstrap(["a", "b", "c"], lambda w: np.array([[w.sum(), NAN]], float), 20)
    assert intervals.shape == (1, 2)
    assert (intervals[0, 0].low, intervals[0, 0].high) == (3.0, 3.0)
    assert math.isnan(intervals[0, 1].low)
    assert math.isnan(patient_bootstrap(["a", "a"], lambda w: float(w.sum()), 20).low)  # one patient shows no spread


# ── Likelihood ratios ────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_fit_finds_what_was_put_in() -> None:
    generator = np.random.default_rng(0)
    n = 20_000
    offset = generator.normal(-1, 1, n)
    status = generator.integers(0, 3, n)
    design = np.column_stack([status == 0, status == 1, np.ones(n)]).astype(float)
    truth = np.array([1.2, -0.7, 0.3])
    labels = (generator.random(n) < 1 / (1 + np.exp(-(offset + design @ truth)))).astype(float)
    assert fit(labels, offset, design, np.ones(n)) == pytest.approx(truth, abs=0.12)


def test_a_status_that_was_never_used_stays_at_the_prior() -> None:
    design = np.column_stack([np.zeros(4), np.ones(4)])
    found = fit(np.array([1.0, 1.0, 1.0, 1.0]), np.zeros(4), design, np.ones(4))
    assert found[0] == 0.0
    assert 0.0 < found[1] < 3 * PRIOR_SD  # all positive: without the prior it would be infinite


def test_the_measures_import_no_torch() -> None:
    code = "import sys, evaluation.metrics, evaluation.bootstrap; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT_ROOT, check=False).returncode == 0
