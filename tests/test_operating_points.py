import numpy as np
import pytest

from modules.odds import probabilities
from modules.pathologies import NAMES
from training import operating_points

K = len(NAMES)
ALL = (True,) * K


def films(count: int = 400, seed: int = 0) -> np.ndarray:
    """Return log-odds (count, 14) that go together, as a network's do."""
    rng = np.random.default_rng(seed)
    return (rng.normal(-3, 1, (count, K)) + rng.normal(0, 1, (count, 1))).astype(np.float32)


def share_with_any(log_odds: np.ndarray, points: operating_points.Points) -> float:
    detected = (probabilities(log_odds) >= points.thresholds) & np.array(points.sufficient)
    return float(detected.any(axis=1).mean())


@pytest.mark.parametrize("alarms", [0.05, 0.2, 0.5])
def test_no_more_films_without_a_finding_are_alarmed_than_was_allowed_and_hardly_fewer(alarms: float) -> None:
    log_odds = films()
    normal = np.ones(len(log_odds), bool)
    points = operating_points.choose(log_odds, normal, ALL, alarms)
    assert alarms - 0.02 <= share_with_any(log_odds, points) <= alarms


def test_more_alarms_mean_lower_thresholds_everywhere() -> None:
    log_odds, normal = films(), np.ones(400, bool)
    few, many = (operating_points.choose(log_odds, normal, ALL, alarms) for alarms in (0.1, 0.4))
    assert (few.thresholds > many.thresholds).all()
    assert few.specificity > many.specificity


def test_films_with_a_finding_have_no_say() -> None:
    log_odds = films()
    normal = np.arange(400) < 200
    changed = log_odds.copy()
    changed[~normal] += 5
    one, other = (operating_points.choose(values, normal, ALL, 0.2) for values in (log_odds, changed))
    np.testing.assert_array_equal(one.thresholds, other.thresholds)


def test_what_does_not_count_leaves_room_for_what_does() -> None:
    log_odds, normal = films(), np.ones(400, bool)
    three = tuple(k < 3 for k in range(K))
    few = operating_points.choose(log_odds, normal, three, 0.2)
    assert few.specificity < operating_points.choose(log_odds, normal, ALL, 0.2).specificity
    assert share_with_any(log_odds, few) <= 0.2


def test_without_a_film_known_to_be_normal_there_are_no_points() -> None:
    with pytest.raises(ValueError, match="no specificity"):
        operating_points.choose(films(), np.zeros(400, bool), ALL, 0.2)


def test_the_outcome_is_that_of_the_stages() -> None:
    quiet = np.full((2, K), -5.0, np.float32)
    quiet[1, NAMES.index("Pneumothorax")] = 3.0
    points = operating_points.Points(np.full(K, 0.5, np.float32), ALL, 0.9)
    found = operating_points.outcome(quiet, quiet, [points, points])
    assert found.detected.sum() == 1
    assert [risk.level for risk in found.risks] == ["Low", "High"]
    assert [risk.needs_review for risk in found.risks] == [False, True]


def test_where_no_label_counts_the_thresholds_are_those_of_all_together() -> None:
    log_odds, normal = films(), np.ones(400, bool)
    none, every = (operating_points.choose(log_odds, normal, (counts,) * K, 0.2) for counts in (False, True))
    np.testing.assert_array_equal(none.thresholds, every.thresholds)
    assert none.sufficient == (False,) * K
