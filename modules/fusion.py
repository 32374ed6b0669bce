"""Stage 3: the CNN's probabilities and the second reader's statements, merged; pure functions.

The fused log-odds are the CNN's plus a bounded adjustment. Both readers see one film and err together, so the
adjustments are small; they are chosen, not fitted, and the fused number is therefore called adjusted, not calibrated.
"""

from typing import Literal

import numpy as np

from modules.odds import log_odds, sigmoid
from modules.pathologies import NAMES, OPACITY_GROUP
from modules.records import Adjustment, CnnPrediction, Contradiction, Finding, Fusion, Reading

# Log-odds at full confidence; chosen, not fitted. A denial weighs less: reports leave out more than they deny.
PRESENT_SHIFT = 0.8
ABSENT_SHIFT = -0.5
# No reader moves a finding further than this, whatever its confidence: odds by less than a factor of 2.3.
MAX_ADJUSTMENT = 0.8
# Weight of a statement whose confidence was not measured; chosen, not fitted.
UNMEASURED_WEIGHT = 0.5


def fuse(prediction: CnnPrediction, reading: Reading) -> Fusion:
    """Merge both readers: 14 findings in order, their contradictions and the agreement.

    Nothing un-detects what the CNN detected; `uncertain` and `not_mentioned` move nothing: silence is not evidence.
    Nor is the word of a reader that was shown the CNN's numbers; it can still contradict them.
    """
    findings = tuple(_finding(k, prediction, reading) for k in range(len(NAMES)))
    return Fusion(
        findings=findings,
        reader_is_evidence=not reading.saw_cnn,
        contradictions=_contradictions(findings) if reading.independent else (),
        agreement=None if reading.saw_cnn else _agreement(findings),
    )


def _finding(k: int, prediction: CnnPrediction, reading: Reading) -> Finding:
    name, probability = NAMES[k], float(prediction.probabilities[k])
    adjustments = _adjustments(name, reading)
    return Finding(
        pathology=name,
        cnn_probability=probability,
        operating_threshold=float(prediction.thresholds[k]),
        detected=prediction.detected[k],
        sufficient_data=prediction.sufficient_data[k],
        reader=reading.statement(name),
        fused_probability=_adjusted(probability, adjustments),
        adjustments=adjustments,
    )


def _adjusted(probability: float, adjustments: tuple[Adjustment, ...]) -> float:
    """Return the fused probability; rounding never moves it against its adjustment, nor without one."""
    shift = sum(adjustment.log_odds for adjustment in adjustments)
    shifted = sigmoid(log_odds(probability) + shift)
    if shift > 0:
        return max(probability, shifted)
    return min(probability, shifted) if shift < 0 else probability


def _adjustments(name: str, reading: Reading) -> tuple[Adjustment, ...]:
    if reading.saw_cnn:  # it had the CNN's numbers before it: its words are no second opinion
        return ()
    statement = reading.statement(name)
    shift = {"present": PRESENT_SHIFT, "absent": ABSENT_SHIFT}.get(statement.status)
    if shift is None:
        return ()
    weight = UNMEASURED_WEIGHT if statement.confidence is None else statement.confidence
    sharing = _sharing(name, reading)
    value = float(np.clip(shift * weight / len(sharing), -MAX_ADJUSTMENT, MAX_ADJUSTMENT))
    measured = "not measured, taken as" if statement.confidence is None else "measured as"
    reason = f"The second reader calls it {statement.status}; its confidence, {measured} {weight:.2f}, weighs this."
    if len(sharing) > 1:
        reason += f" One adjustment is shared by {', '.join(sharing)}: they name the same opacity."
    return (Adjustment(log_odds=value, reason=reason),)


def _sharing(name: str, reading: Reading) -> tuple[str, ...]:
    """Return the pathologies that the same words moved the same way, `name` among them."""
    if name not in OPACITY_GROUP:
        return (name,)
    status = reading.statement(name).status
    return tuple(other for other in NAMES if other in OPACITY_GROUP and reading.statement(other).status == status)


def _contradictions(findings: tuple[Finding, ...]) -> tuple[Contradiction, ...]:
    found = (_contradiction(finding) for finding in findings)
    return tuple(contradiction for contradiction in found if contradiction is not None)


def _contradiction(finding: Finding) -> Contradiction | None:
    status = finding.reader.status
    kind: Literal["not_mentioned", "denied", "not_detected"]
    if finding.detected and status == "not_mentioned":
        kind, note = "not_mentioned", "CNN detected but LLM did not mention"
    elif finding.detected and status == "absent":
        kind, note = "denied", "CNN detected but LLM says absent"
    elif not finding.detected and status == "present":
        kind, note = "not_detected", "LLM reports but CNN did not detect"
    else:
        return None
    return Contradiction(pathology=finding.pathology, cnn_probability=finding.cnn_probability, note=note, kind=kind)


def _agreement(findings: tuple[Finding, ...]) -> float | None:
    """Return the share of the reader's clear statements that match the CNN's detections, or None without any."""
    clear = [f for f in findings if f.reader.status in ("present", "absent")]
    if not clear:
        return None
    return sum(f.detected == (f.reader.status == "present") for f in clear) / len(clear)
