import numpy as np
import pytest

from modules.records import FloatArray
from training import platt


def drawn(slope: float, intercept: float, films: int, seed: int = 0) -> tuple[FloatArray, FloatArray]:
    """Return logits (N,) and labels (N,) drawn from a known calibration."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1.0, 1.5, films)
    chance = 1 / (1 + np.exp(-(slope * logits + intercept)))
    return logits.astype(np.float32), (rng.random(films) < chance).astype(np.float32)


def columns(*pairs: tuple[FloatArray, FloatArray]) -> tuple[FloatArray, FloatArray]:
    logits, labels = zip(*pairs, strict=True)
    return np.stack(logits, axis=1), np.stack(labels, axis=1)


def test_a_known_calibration_is_found_again() -> None:
    fitted = platt.fit(*columns(drawn(1.6, 0.7, 40_000, 1), drawn(0.6, -0.4, 40_000, 2)))
    np.testing.assert_allclose(fitted.slope, [1.6, 0.6], atol=0.06)
    np.testing.assert_allclose(fitted.intercept, [0.7, -0.4], atol=0.06)


def test_many_films_are_fitted_as_scikit_learn_does() -> None:
    from sklearn.linear_model import LogisticRegression

    logits, labels = drawn(1.3, -0.2, 20_000)
    reference = LogisticRegression(C=np.inf, tol=1e-10).fit(logits[:, None], labels)
    common = platt.common_fit(logits[:, None], labels[:, None])
    np.testing.assert_allclose(common, [reference.coef_[0, 0], reference.intercept_[0]], atol=1e-4)


def test_a_thin_pathology_keeps_close_to_the_common_fit() -> None:
    many = [drawn(1.0, 0.0, 5_000, seed) for seed in range(4)]
    logits, labels = drawn(1.0, 0.0, 5_000, 9)
    thin = np.full_like(labels, np.nan)
    thin[:12] = labels[:12]
    thin[np.argsort(logits[:12])[:3]] = 1  # its few films say the opposite of all others
    fitted = platt.fit(*columns(*many, (logits, thin)))
    common = platt.common_fit(*columns(*many, (logits, thin)))
    assert abs(fitted.slope[4] - common[0]) < 2 * platt.SLOPE_SPREAD
    alone = platt.common_fit(logits[:12, None], thin[:12, None])
    assert abs(alone[0] - common[0]) > abs(fitted.slope[4] - common[0])


def test_a_pathology_without_a_label_gets_the_common_fit() -> None:
    logits, labels = columns(drawn(1.2, 0.1, 3_000), drawn(1.0, 0.0, 3_000, 1))
    labels[:, 1] = np.nan
    fitted = platt.fit(logits, labels)
    common = platt.common_fit(logits, labels)
    np.testing.assert_allclose([fitted.slope[1], fitted.intercept[1]], common)


def test_the_order_of_films_is_never_turned_around() -> None:
    logits, labels = drawn(-2.0, 0.0, 3_000)
    fitted = platt.fit(*columns((logits, labels)))
    assert fitted.slope[0] == platt.LEAST_SLOPE
    served = 1 / (1 + np.exp(-fitted.apply(logits[:, None])))
    assert served.mean() == pytest.approx(labels.mean(), abs=0.02)  # its intercept fits the slope that is served


def test_films_that_can_be_separated_get_finite_numbers() -> None:
    logits = np.array([[-2.0], [-1.0], [1.0], [2.0]], np.float32)
    fitted = platt.fit(np.tile(logits, 2), np.tile((logits > 0).astype(np.float32), 2))
    assert np.isfinite(fitted.slope).all()
    assert np.isfinite(fitted.intercept).all()


def test_nothing_known_is_an_error() -> None:
    with pytest.raises(ValueError, match="no label"):
        platt.fit(np.zeros((3, 2), np.float32), np.full((3, 2), np.nan, np.float32))


def test_a_calibration_is_applied_by_pathology() -> None:
    fitted = platt.Calibration(np.array([2.0, 0.5]), np.array([1.0, -1.0]))
    np.testing.assert_allclose(fitted.apply(np.array([[1.0, 1.0]], np.float32)), [[3.0, -0.5]])
    with pytest.raises(ValueError, match="positive slope"):
        platt.Calibration(np.array([0.0]), np.array([0.0]))


def test_all_films_of_a_patient_are_in_one_fold_and_folds_are_even() -> None:
    patients = [f"p{i % 50}" for i in range(500)]
    fold = platt.folds(patients)
    for name in set(patients):
        assert len({fold[i] for i, patient in enumerate(patients) if patient == name}) == 1
    assert np.bincount(fold).tolist() == [100] * platt.FOLDS
    np.testing.assert_array_equal(fold, platt.folds(patients))
    assert (fold != platt.folds(patients, seed=1)).any()
