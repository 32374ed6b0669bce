"""The events of `POST /analyze/stream`, in the order in which they are sent; `done` carries the whole answer."""

from typing import Literal

from pydantic import Field

from modules.answers import Analysis, ConfidenceScores
from modules.records import (
    Contradiction,
    Finding,
    Heatmap,
    HeatmapFinding,
    ModelInfo,
    Probability,
    Quality,
    ReaderInfo,
    ReaderStatement,
    Record,
    RiskLevel,
)
from modules.settings import ReaderMode

EventName = Literal[
    "accepted",
    "quality",
    "cnn",
    "heatmaps",
    "reader_words",
    "reader",
    "fusion",
    "uncertainty",
    "risk",
    "done",
    "error",
]


class Accepted(Record):
    """The film was decoded and will be analysed."""

    request_id: str
    disclaimer: str


class CnnSeen(Record):
    """The CNN's findings, before any second reader; `fused_probability` still equals the CNN's."""

    findings: tuple[Finding, ...]
    confidence: Probability
    model: ModelInfo


class HeatmapsDrawn(Record):
    """The Grad-CAM maps."""

    heatmap_available: bool
    heatmap_base64: str
    heatmap_finding: HeatmapFinding | None
    heatmaps: dict[str, Heatmap]


class ReaderWords(Record):
    """Words of a second reader as they are written: a draft, until `reader` tells what became of it."""

    mode: ReaderMode
    turn: Literal["film", "clinical"]
    words: str
    draft: Literal[True] = Field(True, description="Not checked yet; may be withdrawn")


class ReaderDone(Record):
    """What the second reader answered, after its reply has passed the checks, or why none did."""

    reader: ReaderInfo
    clinical_reasoning: str
    key_observations: tuple[str, ...]
    differential_diagnosis: tuple[str, ...]
    recommendation: str
    statements: dict[str, ReaderStatement]


class Fused(Record):
    """Both readers merged."""

    findings: tuple[Finding, ...]
    contradictions: tuple[Contradiction, ...]
    agreement: Probability | None


class UncertaintyMeasured(Record):
    """How sure each reader is."""

    confidence_scores: ConfidenceScores
    token_confidence: Probability | None


class RiskDecided(Record):
    """The level, and whether a person must look."""

    risk_level: RiskLevel
    risk_factors: tuple[str, ...]
    needs_review: bool
    review_reasons: tuple[str, ...]


Event = (
    Accepted
    | Quality
    | CnnSeen
    | HeatmapsDrawn
    | ReaderWords
    | ReaderDone
    | Fused
    | UncertaintyMeasured
    | RiskDecided
    | Analysis
)


EVENT_RECORDS: dict[EventName, type[Event]] = {
    "accepted": Accepted,
    "quality": Quality,
    "cnn": CnnSeen,
    "heatmaps": HeatmapsDrawn,
    "reader_words": ReaderWords,
    "reader": ReaderDone,
    "fusion": Fused,
    "uncertainty": UncertaintyMeasured,
    "risk": RiskDecided,
    "done": Analysis,
}


def closing_events(analysis: Analysis) -> tuple[tuple[EventName, Event], ...]:
    """Return what is told of the last stages once the whole answer is there."""
    return (
        (
            "reader",
            ReaderDone(
                reader=analysis.reader,
                clinical_reasoning=analysis.clinical_reasoning,
                key_observations=analysis.key_observations,
                differential_diagnosis=analysis.differential_diagnosis,
                recommendation=analysis.recommendation,
                statements={f.pathology: f.reader for f in analysis.findings},
            ),
        ),
        (
            "fusion",
            Fused(findings=analysis.findings, contradictions=analysis.contradictions, agreement=analysis.agreement),
        ),
        (
            "uncertainty",
            UncertaintyMeasured(
                confidence_scores=analysis.confidence_scores, token_confidence=analysis.reader.token_confidence
            ),
        ),
        (
            "risk",
            RiskDecided(
                risk_level=analysis.risk_level,
                risk_factors=analysis.risk_factors,
                needs_review=analysis.needs_review,
                review_reasons=analysis.review_reasons,
            ),
        ),
        ("done", analysis),
    )
