"""Stage 5: Low, Moderate or High by rules that can be read in one sitting; pure functions.

The rules are chosen, not fitted. They take what was found, never how sure anyone was: doubt asks for review and never
lowers the level.
"""

from modules.odds import log_odds
from modules.pathologies import Criticality, criticality
from modules.records import Finding, Fusion, Quality, Risk, RiskLevel, Uncertainty
from modules.symptoms import IMMEDIATE_FLAGS, SLOW_FLAGS, red_flags

LOW_SENTENCE = "No listed finding above its threshold; this does not exclude disease."
UNCOUNTED_SENTENCE = "No counted finding above its threshold; this does not exclude disease."
# An uncounted finding that would need action within minutes asks for review from this margin on, in log-odds.
UNCOUNTED_MARGIN = 1.0

_ACTION = {
    Criticality.IMMEDIATE: "if real, action within minutes",
    Criticality.PROMPT: "if real, action within hours",
    Criticality.ROUTINE: "if real, follow-up within days",
}


def assess(fusion: Fusion, uncertainty: Uncertainty, quality: Quality, symptoms: str) -> Risk:
    """Decide the level.

    High: a finding that needs action within minutes, or one that needs it within hours beside an acute red-flag
    symptom, or a symptom that needs action by itself. Moderate: any other finding or red flag. Low: neither. A finding
    counts when the CNN detects it on sufficient data, or a second reader that did not see the CNN's numbers calls it
    present.
    """
    counts = {f.pathology: _by_cnn(f) or (_by_reader(f) and fusion.reader_is_evidence) for f in fusion.findings}
    order = sorted(fusion.findings, key=lambda f: criticality(f.pathology), reverse=True)
    counted = [f for f in order if counts[f.pathology]]
    uncounted = tuple(f for f in fusion.findings if f.detected and not counts[f.pathology])
    flags = red_flags(symptoms)
    level = _level({criticality(f.pathology) for f in counted}, frozenset(flags))
    factors = (
        *(_factor(finding, fusion.reader_is_evidence) for finding in counted),
        *(f"Red-flag symptom: {flag}" for flag in flags),
        *(() if counted else (_nothing_counted(uncounted, quality),)),
        *_uncounted_factor(uncounted),
        *_no_flag_factor(symptoms, flags),
    )
    reasons = (
        *(("Rated High: a person must read the film now.",) if level == "High" else ()),
        *(("A red-flag symptom was named.",) if flags and level != "High" else ()),
        *_review_always(quality),
        *_urgent_but_uncounted(uncounted),
        *uncertainty.review_reasons,
    )
    return Risk(level=level, factors=factors, needs_review=bool(reasons), review_reasons=reasons)


def _level(tiers: set[Criticality], flags: frozenset[str]) -> RiskLevel:
    if Criticality.IMMEDIATE in tiers or flags & IMMEDIATE_FLAGS:
        return "High"
    if Criticality.PROMPT in tiers and flags - SLOW_FLAGS:
        return "High"
    return "Moderate" if tiers or flags else "Low"


def _by_cnn(finding: Finding) -> bool:
    return finding.detected and finding.sufficient_data


def _by_reader(finding: Finding) -> bool:
    return finding.reader.status == "present"


def _factor(finding: Finding, reader_is_evidence: bool) -> str:
    cnn, reader = _by_cnn(finding), _by_reader(finding) and reader_is_evidence
    who = "CNN and second reader" if cnn and reader else "CNN" if cnn else "second reader"
    numbers = f"probability {finding.cnn_probability:.3f}, threshold {finding.operating_threshold:.3f}"
    return f"{finding.pathology} ({who}; CNN {numbers}; {_ACTION[criticality(finding.pathology)]})"


def _nothing_counted(uncounted: tuple[Finding, ...], quality: Quality) -> str:
    sentence = UNCOUNTED_SENTENCE if uncounted else LOW_SENTENCE
    if _review_always(quality):
        return f"{sentence} The film is outside of what this assistant was made for: do not be reassured by it."
    return sentence


def _uncounted_factor(uncounted: tuple[Finding, ...]) -> tuple[str, ...]:
    """Name what the CNN detected without counting it, so that no sentence passes over it."""
    if not uncounted:
        return ()
    names = ", ".join(finding.pathology for finding in uncounted)
    return (f"Above its threshold, but on insufficient validation data and therefore not counted: {names}",)


def _no_flag_factor(symptoms: str, flags: tuple[str, ...]) -> tuple[str, ...]:
    if flags or not symptoms.strip():
        return ()
    return ("No red-flag symptom was recognised in the text (English only, not exhaustive).",)


def _urgent_but_uncounted(uncounted: tuple[Finding, ...]) -> tuple[str, ...]:
    return tuple(
        f"{f.pathology} is far above its threshold, on insufficient validation data; if real, it needs action now."
        for f in uncounted
        if criticality(f.pathology) is Criticality.IMMEDIATE
        and log_odds(f.cnn_probability) - log_odds(f.operating_threshold) >= UNCOUNTED_MARGIN
    )


def _review_always(quality: Quality) -> tuple[str, ...]:
    reasons = []
    if quality.under_18:
        reasons.append("The patient is under 18: the network was trained on few children.")
    if quality.forced:
        reasons.append("The input gate refused this image and was overridden.")
    if quality.inverted_by_request:
        reasons.append("The greyscale was inverted on request.")
    return tuple(reasons)
