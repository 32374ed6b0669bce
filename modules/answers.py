"""The answers of the API, made of the records of the stages; the dashboard parses the same classes."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from modules.records import (
    Contradiction,
    Finding,
    Heatmap,
    HeatmapFinding,
    ModelInfo,
    Number,
    Probability,
    Quality,
    ReaderInfo,
    Record,
    RiskLevel,
)
from modules.settings import ReaderMode


class ConfidenceScores(Record):
    """Always numbers, for clients of the original API; `reader.token_confidence` tells 0.0 from "not measured"."""

    cnn: Probability
    llm: Probability
    fused: Probability


class ImageSize(Record):
    """Size of the film as it was analysed, in pixels."""

    width: int
    height: int


class Analysis(Record):
    """The answer of `POST /analyze`. The first ten fields are the original API; the rest is added beside them."""

    visual_findings: dict[str, Probability] = Field(description="Fused probability of each of the 14 pathologies")
    clinical_reasoning: str
    differential_diagnosis: tuple[str, ...]
    confidence_scores: ConfidenceScores
    risk_level: RiskLevel
    risk_factors: tuple[str, ...]
    contradictions: tuple[Contradiction, ...]
    heatmap_available: bool
    heatmap_base64: str = Field(description='PNG of the top finding over the film, or ""')
    disclaimer: str

    findings: tuple[Finding, ...]
    agreement: Probability | None
    key_observations: tuple[str, ...] = Field(description="The second reader's, on the film; empty when none ran")
    recommendation: str = Field(description="The second reader's; empty when none ran")
    reader: ReaderInfo
    quality: Quality
    needs_review: bool
    review_reasons: tuple[str, ...]
    heatmap_finding: HeatmapFinding | None
    heatmaps: dict[str, Heatmap]
    model: ModelInfo
    image: ImageSize
    timings_ms: dict[str, Number]
    version: str = Field(description="Version of the code that made this answer")
    request_id: str


class ReaderHealth(Record):
    """State of the second reader."""

    mode_requested: ReaderMode
    mode: ReaderMode = Field(description="The reader that would answer now")
    model: str | None = None
    state: Literal["loading", "ready", "fallback"]
    reason: str | None = None


class Health(Record):
    """The answer of `GET /health`."""

    status: Literal["healthy"] = "healthy"
    cnn_ready: bool
    model: ModelInfo
    reader: ReaderHealth
    version: str


class Problem(BaseModel):
    """An error, as RFC 9457 describes it, with a stable `code`."""

    model_config = ConfigDict(frozen=True, extra="allow")

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    gate_score: Probability | None = None
    errors: list[dict[str, str]] | None = Field(None, description="For invalid_request: each field and what is wrong")
