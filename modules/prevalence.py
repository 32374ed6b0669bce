"""The prevalence dial: what a probability and a detection mean where a finding is rarer or more common; pure functions.

A calibrated probability holds for the share of films with the finding among those that it was calibrated on. If films
with and without the finding look alike at another site, and only that share differs, Bayes' rule moves every
log-odds by the same amount (Saerens, Latinne and Decaestecker, Neural Computation 2002).
"""

import math
from dataclasses import dataclass

from modules.odds import log_odds, sigmoid


@dataclass(frozen=True)
class AtPrevalence:
    """One finding on one film as a site with its own prevalence should read it."""

    prevalence: float  # at the site, in (0, 1)
    unshifted: float  # the probability as served, for the prevalence of the validation films
    shifted: float  # the same for the site
    ppv: float | None  # of a detection at the operating point; None where sensitivity or specificity is not known
    npv: float | None  # of its absence
    sentence: str


def shift(probability: float, calibrated_at: float, prevalence: float) -> float:
    """Return a probability that was calibrated at one prevalence as it is at another; raises ValueError outside (0, 1).

    Probabilities of 0 and 1 stay.
    """
    for share in (calibrated_at, prevalence):
        if not 0.0 < share < 1.0:
            raise ValueError(f"a prevalence lies between 0 and 1, both excluded; it is {share}")
    return sigmoid(log_odds(probability) + log_odds(prevalence) - log_odds(calibrated_at))


def predictive_values(sensitivity: float, specificity: float, prevalence: float) -> tuple[float, float]:
    """Return (PPV, NPV) at a prevalence by Bayes' rule; NaN where no film is on that side of the threshold."""
    detected = sensitivity * prevalence + (1.0 - specificity) * (1.0 - prevalence)
    passed = (1.0 - sensitivity) * prevalence + specificity * (1.0 - prevalence)
    ppv = sensitivity * prevalence / detected if detected else math.nan
    npv = specificity * (1.0 - prevalence) / passed if passed else math.nan
    return ppv, npv


def at_prevalence(
    pathology: str,
    probability: float,
    calibrated_at: float,
    prevalence: float,
    sensitivity: float | None = None,
    specificity: float | None = None,
) -> AtPrevalence:
    """Read one finding at a site's prevalence; raises ValueError for a prevalence outside (0, 1)."""
    shifted = shift(probability, calibrated_at, prevalence)
    ppv, npv = math.nan, math.nan
    if sensitivity is not None and specificity is not None:
        ppv, npv = predictive_values(sensitivity, specificity, prevalence)
    return AtPrevalence(
        prevalence=prevalence,
        unshifted=probability,
        shifted=shifted,
        ppv=None if math.isnan(ppv) else ppv,
        npv=None if math.isnan(npv) else npv,
        sentence=_sentence(pathology, shifted, prevalence),
    )


def _sentence(pathology: str, shifted: float, prevalence: float) -> str:
    return (
        f"Where {_per_hundred(prevalence)} in 100 films show {pathology}, of 100 such films about "
        f"{_per_hundred(shifted)} have it."
    )


def _per_hundred(share: float) -> str:
    count = 100 * share
    if count < 0.95:
        return "fewer than 1"
    return f"{count:.0f}" if count <= 99 else "more than 99"
