"""Probabilities and log-odds."""

import math

import numpy as np
import numpy.typing as npt


def log_odds(probability: float) -> float:
    """Return the log-odds of a probability; infinite at 0 and 1."""
    if probability in (0.0, 1.0):
        return math.copysign(math.inf, probability - 0.5)
    return math.log(probability) - math.log1p(-probability)


def sigmoid(value: float) -> float:
    """Return the probability of log-odds."""
    return 1.0 / (1.0 + math.exp(-value)) if value >= 0 else math.exp(value) / (1.0 + math.exp(value))


def probabilities(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the probabilities of log-odds, in the precision in which they are held against thresholds."""
    with np.errstate(over="ignore"):  # an infinite exponential is a probability of 0
        return np.asarray(1.0 / (1.0 + np.exp(-values)), np.float32)
