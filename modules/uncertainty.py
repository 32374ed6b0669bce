"""Stage 4: how sure each reader is, from what was measured, and what asks for a person's review; pure functions."""

import numpy as np

from modules.odds import probabilities
from modules.pathologies import NAMES, PATHOLOGIES
from modules.records import CnnPrediction, FloatArray, Fusion, Quality, Reading, Uncertainty

# A finding that the reader passes over in silence lowers the fused confidence by this share; chosen, not fitted.
SILENCE_PENALTY = 0.05
# Nearer to its operating point than this, in log-odds, a finding is borderline. Chosen so that this and the mirror
# check, with every film rated High, ask for review on at most a third of normal validation films (see the card).
BORDERLINE_LOG_ODDS = 0.05

_URGENCY = np.array([p.criticality for p in PATHOLOGIES])  # 0 is left for a film without a finding


def assess(prediction: CnnPrediction, reading: Reading, fusion: Fusion, quality: Quality) -> Uncertainty:
    """Measure the confidences of CNN, reader and fusion, and list the reasons for review."""
    cnn = cnn_confidence(prediction.probabilities)
    return Uncertainty(
        cnn=cnn,
        llm=reading.token_confidence,
        fused=_fused_confidence(cnn, None if reading.saw_cnn else reading.token_confidence, fusion),
        review_reasons=(
            *_instability_reasons(prediction),
            *_contradiction_reasons(fusion),
            *(f"The second reader's text: {flag}." for flag in reading.flags),
            *(f"Film quality: {warning.message}" for warning in quality.warnings),
        ),
    )


def cnn_confidence(calibrated: FloatArray) -> float:
    """Return 1 − mean binary entropy, in bits, of calibrated probabilities (K,)."""
    p = np.clip(calibrated.astype(np.float64), 1e-12, 1.0 - 1e-12)
    entropy = -(p * np.log2(p) + (1.0 - p) * np.log2(1.0 - p))
    return float(np.clip(1.0 - entropy.mean(), 0.0, 1.0))


def _fused_confidence(cnn: float, llm: float | None, fusion: Fusion) -> float:
    """Average what was measured; each contradiction counts once, in the agreement or as a silence."""
    measured = [value for value in (cnn, llm, fusion.agreement) if value is not None]
    silences = sum(c.kind == "not_mentioned" for c in fusion.contradictions)
    return sum(measured) / len(measured) * (1.0 - SILENCE_PENALTY) ** silences


def _instability_reasons(prediction: CnnPrediction) -> tuple[str, ...]:
    """Say which findings would change the urgency of the film if the CNN's numbers were slightly different.

    Asking for review at every borderline finding would ask for it on most normal films, so only those count that make
    the most urgent detected finding more or less urgent.
    """
    higher = _urgent_changes(prediction, prediction.log_odds + BORDERLINE_LOG_ODDS)
    lower = _urgent_changes(prediction, prediction.log_odds - BORDERLINE_LOG_ODDS)
    borderline = [name for name in NAMES if name in higher or name in lower]
    reasons = [f"{name} lies close to its operating threshold." for name in borderline]
    if prediction.mirrored_log_odds is not None:
        for name in _urgent_changes(prediction, prediction.mirrored_log_odds):
            detected = prediction.detected[NAMES.index(name)]
            change = "no longer detected" if detected else "detected"
            reasons.append(f"{name} is {change} when the film is mirrored.")
    return tuple(reasons)


def _urgent_changes(prediction: CnnPrediction, other: FloatArray) -> tuple[str, ...]:
    """Return the findings by which the urgency of the film differs between the prediction and other log-odds (14,)."""
    sufficient = np.array(prediction.sufficient_data)
    before = np.array(prediction.detected) & sufficient
    after = (probabilities(other) >= prediction.thresholds) & sufficient
    top_before, top_after = ((detected * _URGENCY).max() for detected in (before, after))
    if top_before == top_after:
        return ()
    changed = (before != after) & (max(top_before, top_after) == _URGENCY)
    return tuple(name for name, is_changed in zip(NAMES, changed, strict=True) if is_changed)


def _contradiction_reasons(fusion: Fusion) -> tuple[str, ...]:
    return tuple(f"{c.pathology}: {c.note}." for c in fusion.contradictions)
