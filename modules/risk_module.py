"""Stage 5: Low, Moderate or High by rules that can be read in one sitting; pure functions.

The rules are chosen, not fitted. They take what was found, never how sure anyone was: doubt asks for review and never
lowers the level.
"""

from modules.pathologies import Criticality, criticality
from modules.records import Finding, Fusion, Quality, Risk, Uncertainty
from modules.symptoms import red_flags

LOW_SENTENCE = "No listed finding above its threshold; this does not exclude disease."


_URGENCY = (Criticality.IMMEDIATE, Criticality.PROMPT, Criticality.ROUTINE)


def assess(fusion: Fusion, uncertainty: Uncertainty, quality: Quality, symptoms: str) -> Risk:
    """Decide the level.

    High: a finding that needs action within minutes, or one that needs it within hours beside a red-flag symptom.
    Moderate: any other finding, or a red flag alone. Low: neither. A finding counts when the CNN detects it on
    sufficient data, or the second reader calls it present.
    """
    counted = sorted((f for f in fusion.findings if _counts(f)), key=lambda f: _URGENCY.index(criticality(f.pathology)))
    flags = red_flags(symptoms)
    tiers = {criticality(f.pathology) for f in counted}
    uncounted = _uncounted(fusion)
    factors = (*(_factor(f) for f in counted), *(f"Red-flag symptom: {flag}" for flag in flags), *uncounted)
    reasons = (*_review_always(quality), *uncertainty.review_reasons)
    if Criticality.IMMEDIATE in tiers or (Criticality.PROMPT in tiers and flags):
        return Risk(level="High", factors=factors, needs_review=bool(reasons), review_reasons=reasons)
    if counted or flags:
        return Risk(level="Moderate", factors=factors, needs_review=bool(reasons), review_reasons=reasons)
    factors = (_low_sentence(quality), *uncounted)
    return Risk(level="Low", factors=factors, needs_review=bool(reasons), review_reasons=reasons)


def _counts(finding: Finding) -> bool:
    return (finding.detected and finding.sufficient_data) or finding.reader.status == "present"


def _uncounted(fusion: Fusion) -> tuple[str, ...]:
    """Name what the CNN detected without counting it, so that no sentence passes over it."""
    names = [f.pathology for f in fusion.findings if f.detected and not _counts(f)]
    if not names:
        return ()
    return (f"Above its threshold, but on insufficient validation data and therefore not counted: {', '.join(names)}",)


def _factor(finding: Finding) -> str:
    by_cnn = finding.detected and finding.sufficient_data
    by_reader = finding.reader.status == "present"
    who = "CNN and second reader" if by_cnn and by_reader else "CNN" if by_cnn else "second reader"
    urgency = {
        Criticality.IMMEDIATE: "would need action within minutes",
        Criticality.PROMPT: "would need action within hours",
        Criticality.ROUTINE: "not urgent by itself",
    }[criticality(finding.pathology)]
    return f"{finding.pathology} ({who}; {urgency})"


def _low_sentence(quality: Quality) -> str:
    if _review_always(quality):
        return f"{LOW_SENTENCE} The film is outside of what this assistant was made for: do not be reassured by it."
    return LOW_SENTENCE


def _review_always(quality: Quality) -> tuple[str, ...]:
    reasons = []
    if quality.under_18:
        reasons.append("The patient is under 18: the network was trained on few children.")
    if quality.forced:
        reasons.append("The input gate refused this image and was overridden.")
    if quality.inverted_by_request:
        reasons.append("The greyscale was inverted on request.")
    return tuple(reasons)
