"""Intervals by resampling patients, not films: films of one patient are alike, and one patient may have many."""

import math
from collections.abc import Callable, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from evaluation.metrics import Interval

Floats = npt.NDArray[np.float64]
Weights = npt.NDArray[np.int64]

LEVELS = (2.5, 97.5)  # per cent
# An interval of fewer defined replicates than this share would describe lucky samples only; chosen, not fitted.
MIN_DEFINED_SHARE = 0.5
MIN_PATIENTS = 2


@overload
def patient_bootstrap(
    patients: Sequence[str], statistic: Callable[[Weights], float], replicates: int = ..., seed: int = ...
) -> Interval: ...


@overload
def patient_bootstrap(
    patients: Sequence[str], statistic: Callable[[Weights], npt.NDArray[Any]], replicates: int = ..., seed: int = ...
) -> npt.NDArray[np.object_]: ...


def patient_bootstrap(
    patients: Sequence[str],
    statistic: Callable[[Weights], float | npt.NDArray[Any]],
    replicates: int = 2000,
    seed: int = 0,
) -> Interval | npt.NDArray[np.object_]:
    """Return the 95 % percentile interval of a statistic, over patients drawn with replacement (Efron 1979).

    `statistic` is given how often each film counts, integers (N,), and returns a number, or an array; an array of
    Intervals of the same shape then comes back. Replicates in which it is NaN are left out.
    """
    samples = bootstrap_samples(patients, statistic, replicates, seed)
    return percentile_interval(samples) if samples.ndim == 1 else percentile_intervals(samples)


def bootstrap_samples(
    patients: Sequence[str],
    statistic: Callable[[Weights], float | npt.NDArray[Any]],
    replicates: int = 2000,
    seed: int = 0,
) -> Floats:
    """Return the statistic of each replicate (R, ...); NaN throughout for fewer than two patients."""
    if replicates < 1:
        raise ValueError("at least one replicate is needed")
    names, film_of = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    if names.size < MIN_PATIENTS:
        shape = np.shape(statistic(np.ones(len(patients), np.int64)))
        return np.full((replicates, *shape), math.nan)
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(replicates):
        drawn = np.bincount(generator.integers(0, names.size, names.size), minlength=names.size)
        values.append(np.asarray(statistic(drawn[film_of]), np.float64))
    return np.stack(values)


def percentile_interval(samples: Floats) -> Interval:
    """Return the 95 % interval of samples (R,); NaN when the statistic was not defined in most of them."""
    defined = samples[~np.isnan(samples)]
    if defined.size < max(1.0, MIN_DEFINED_SHARE * samples.size):
        return Interval(math.nan, math.nan)
    low, high = np.percentile(defined, LEVELS)
    return Interval(float(low), float(high))


def percentile_intervals(samples: Floats) -> npt.NDArray[np.object_]:
    """Return an array of Intervals, one for each element of the statistic, from samples (R, ...)."""
    intervals = np.empty(samples.shape[1:], object)
    for index in np.ndindex(*samples.shape[1:]):
        intervals[index] = percentile_interval(samples[(slice(None), *index)])
    return intervals
